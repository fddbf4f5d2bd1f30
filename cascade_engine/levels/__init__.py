"""Levels: what drafts and what reviews. Level 0 is the target, the last one is statistical."""

from cascade_engine.levels.custom import DrafterLevel
from cascade_engine.levels.encoder_decoder import EncoderDecoderLevel
from cascade_engine.levels.neural import NeuralLevel
from cascade_engine.levels.protocol import (
    Drafter,
    DraftRequest,
    DraftTree,
    RecurrentDrafter,
    check_drafter,
)
from cascade_engine.levels.rows import (
    DraftItem,
    LogprobRequest,
    Rejection,
    ReviewItem,
    TokenLogprobs,
    TokenRows,
    Verdict,
    cut,
)
from cascade_engine.levels.segments import (
    SegmentDrafted,
    SegmentItem,
    SegmentPass,
    Segments,
    SegmentsDrafted,
)
from cascade_engine.levels.speculation import Speculated, Speculation
from cascade_engine.levels.statistical import DraftedTree, Proposal, StatisticalLevel
from cascade_engine.levels.tree import MAX_NODES, ROOT, TokenTree, TokenTrie, shares_of

__all__ = [
    "MAX_NODES",
    "ROOT",
    "DraftItem",
    "DraftRequest",
    "DraftTree",
    "DraftedTree",
    "Drafter",
    "DrafterLevel",
    "EncoderDecoderLevel",
    "LogprobRequest",
    "NeuralLevel",
    "Proposal",
    "RecurrentDrafter",
    "Rejection",
    "ReviewItem",
    "SegmentDrafted",
    "SegmentItem",
    "SegmentPass",
    "Segments",
    "SegmentsDrafted",
    "Speculated",
    "Speculation",
    "StatisticalLevel",
    "TokenLogprobs",
    "TokenRows",
    "TokenTree",
    "TokenTrie",
    "Verdict",
    "check_drafter",
    "cut",
    "shares_of",
]
