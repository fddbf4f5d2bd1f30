// Doubts that made the most tokens per target call on public transcripts of chat models
// (Spec-Bench, AlpacaEval; half of the questions of each).
#include "ce/draft_tree.h"

namespace ce {

const DraftWeights kTreeWeights = {{
    {{13, 12, 3.3f, 1.9f, .7f, .75f, .5f, .25f}, {6.6f, 12, 1.9f, 1.5f, .9f, .5f, .3f, .3f}},
    {{15, 6.4f, 1.4f, .95f, .6f, .6f, .3f, .3f}, {6, 2.5f, 1.6f, 1.6f, 1.2f, .5f, .5f, .3f}},
    {{13, 12, 7, .6f, .6f, .6f, .6f, .6f}, {8, 6.5f, 8, 4, 4, 4, 4, 4}},
}};

const DraftWeights kChainWeights = {{
    {{5, 4.3f, 3.9f, 1.4f, .5f, .5f, .5f, .2f}, {2.6f, 2.6f, 1.9f, 1, .9f, .5f, .3f, .3f}},
    {{15, 6.4f, 1.4f, .95f, .6f, .6f, .3f, .3f}, {6, 2.5f, 1.6f, 1.6f, 1.2f, .5f, .5f, .3f}},
    {{200, 7.4f, 5, .6f, .6f, .6f, .6f, .6f}, {8, 7.7f, 6.7f, 6.5f, 6.5f, 6.5f, 6.5f, 6.5f}},
}};

}  // namespace ce
