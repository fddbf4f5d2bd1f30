// The CUDA kernels' launchers: one struct of arguments per operation. All pointers are device
// memory unless said otherwise; a launch never waits for the device, reads nothing from it and
// decides nothing by it, so that a sequence of launches can be captured in a graph and replayed
// when the memory behind the pointers holds other rows. The row-invariance contract of kernels.h
// holds here too.
#pragma once

#include <cstdint>

#include "ce/cuda_batch.h"
#include "ce/ngram.h"

namespace ce::cuda {

// out[a, :] = table[token of activation row a, :], zeros in holes. A packed table is a matrix in
// the layout of LinearArgs.
struct EmbeddingArgs {
  Batch batch;
  const void* table;
  Element dtype;
  bool packed;
  int64_t vocab, cols;
  float* out;  // [rows * width, cols]
};
void embedding(const EmbeddingArgs& args, Stream stream);

// out[r * logit_width + j] = x[activation row of the j-th wanted token of row r]: of the last
// wanted[r] tokens of the row; zeros behind them. Rows of any element type, in words of 4 bytes.
struct SelectArgs {
  Batch batch;
  const int32_t* wanted;  // [rows]
  int32_t logit_width;
  const uint32_t* x;
  int64_t words;  // of a row, padding included
  uint32_t* out;
};
void select_logit_rows(const SelectArgs& args, Stream stream);

// out = x / sqrt(mean(x^2) + eps) * weight, statistics in float32.
struct RmsNormArgs {
  const float* x;  // [rows, cols]
  const float* weight;
  float eps;
  int64_t rows, cols;
  void* out;  // [rows, out_stride]
  int64_t out_stride;
  Element dtype;
};
void rms_norm(const RmsNormArgs& args, Stream stream);

// out[a, c] = silu(gate_up[a, c]) * gate_up[a, cols + c]; geglu: the tanh form of GELU instead.
struct GateArgs {
  const float* gate_up;  // [rows, 2 cols]
  int64_t rows, cols;
  void* out;  // [rows, out_stride]
  int64_t out_stride;
  Element dtype;
};
void swiglu(const GateArgs& args, Stream stream);
void geglu(const GateArgs& args, Stream stream);

// y = x W^T (+ bias), for any number of rows.
//
// Weights are packed in the order in which the tensor cores' registers want them: tiles of 16
// outputs x 16 k, [n / 16][k / 16][lane][8], n padded to kLinearOutputs and k to kLinearStep with
// zeros. With g = lane / 4 and q = lane % 4, element e of a lane is
//   W[g + 8 (e / 2 % 2)][2 q + 8 (e / 4) + e % 2].
//
// Order of an output's sum: K is cut into linear_splits(n, k, multiprocessors) ranges; a range is
// one chain of mma.sync m16n8k16 steps over ascending k; ranges are added in ascending order, then
// the bias, then the old y. The number of rows decides nothing but how much runs at a time.
enum class LinearOutput : int32_t {
  store = 0,   // float32 y[r, o] = sum
  add = 1,     // float32 y[r, o] += sum
  swiglu = 2,  // element y[r, 8 t + i] = silu(output 16 t + i) * (output 16 t + 8 + i), i < 8
  geglu = 3,   // likewise, with the tanh form of GELU
  relu = 4,    // element y[r, o] = max(sum, 0)
  round = 5,   // element y[r, o] = sum
};
inline constexpr int kLinearOutputs = 128;
inline constexpr int kLinearStep = 64;
struct LinearArgs {
  const void* weights;
  Element dtype;
  int64_t n, k;
  const void* x;  // [rows, x_stride] of dtype; x_stride is a multiple of 8
  int64_t x_stride, rows;
  const float* bias;  // [n] in the order of the packed outputs, or null
  LinearOutput output;
  void* y;
  int64_t y_stride, y_cols;  // gates: columns past y_cols are padding and are not written
  float* workspace;          // linear_workspace_floats(...)
  int32_t* counters;         // linear_counters(...) zeros; they are zeros again afterwards
  int32_t multiprocessors;   // of the device; part of the result's definition
};
int linear_splits(int64_t n, int64_t k, int multiprocessors);
int64_t linear_workspace_floats(int64_t n, int64_t k, int64_t rows, int multiprocessors);
int64_t linear_counters(int64_t n, int64_t rows);
void linear(const LinearArgs& args, Stream stream);

// cos and sin of position * inv_freq, [rows * width, half].
struct RopeAnglesArgs {
  Batch batch;
  const float* inv_freq;
  int32_t half;
  float *cos, *sin;
};
void rope_angles(const RopeAnglesArgs& args, Stream stream);

// Rotates queries and keys (pairs i and i + head_dim / 2), stores keys and values in the cache and
// queries in a matrix of their own.
struct RopeStoreArgs {
  Batch batch;
  const float* qkv;  // [rows * width, (heads + 2 kv_heads) * head_dim]
  const float* cos;  // [rows * width, head_dim / 2], or null: no rotation
  const float* sin;
  int32_t heads;
  CacheView cache;
  void* queries;  // [rows * width, heads * head_dim]
};
void rope_store(const RopeStoreArgs& args, Stream stream);

// The accepted path of each row moves down: node path[r, i] to index bases[r] + i, for i <
// path_lengths[r], in all `planes` (layers x keys and values) of the cache. Ascending paths never
// overwrite what they still need.
struct CommitArgs {
  Batch batch;                  // slots, bases, block tables
  const int32_t* paths;         // [rows, path_stride]
  const int32_t* path_lengths;  // [rows]
  int32_t path_stride;
  void* cache;  // plane p starts p * plane_elements elements on
  int64_t planes, plane_elements;
  int32_t kv_heads, head_dim;
};
void commit_path(const CommitArgs& args, Stream stream);

// Whole pages, in all planes: from pairs[i][0] to pairs[i][1]; a pair with -1 is skipped.
struct CopyPagesArgs {
  const int32_t* pairs;
  int64_t count;
  void* cache;
  int64_t planes, plane_elements, page_elements;
};
void copy_pages(const CopyPagesArgs& args, Stream stream);

// Attention of each query over its row's cached tokens up to its own position (a tree's query: of
// its path), in chunks of kAttentionChunk positions aligned to position 0, each with its own
// maximum; chunks are merged in ascending order.
struct AttentionArgs {
  Batch batch;
  const void* queries;  // [rows * width, heads * head_dim]
  int32_t heads;
  float scale;
  RelativeBias bias;
  // Behind an encoder: row r begins with the sources[r] tokens that the encoder reads. Queries see
  // what is behind them or, with over_source, all of them and nothing else. null: there are none.
  const int32_t* sources;
  bool over_source;
  CacheView cache;
  void* out;           // [rows * width, heads * head_dim] of the cache's dtype
  int32_t max_chunks;  // of the longest row that the cache can hold
  float* partials;     // attention_partial_floats(...)
  int32_t multiprocessors;
  int32_t shared_limit;  // bytes of shared memory that a block may have; speed alone
};
inline constexpr int kAttentionMaxRows = 256;
int64_t attention_partial_floats(int64_t activation_rows, int heads, int head_dim, int max_chunks);
void attention(const AttentionArgs& args, Stream stream);

// What one request asks of its tokens, as Sampler of sampling.h; lists lie in shared arrays.
struct DeviceSampler {
  float temperature, top_p, min_p;
  float repetition_penalty, presence_penalty, frequency_penalty;
  int32_t top_k, sample_index;
  uint64_t seed;
  int32_t prompt_length, min_tokens, source_length;
  int32_t rejects;               // by the rejection rule; temperature above 0
  int32_t bias_begin, bias_end;  // in bias_ids and bias_values, ids unique
  int32_t stop_begin, stop_end;  // in stop_ids
};

// The processed distribution of a logit row: of tokens whose choice_key (noise.h) is at least
// `least`, by the weights exp((value - highest) / temperature).
struct DeviceDistribution {
  uint64_t least, total;  // weights in units of 2^-44; total 0: there is none
  float highest;
  int32_t reason;  // why there is none (kNo...), else 0
};

// Tokens of a pass' logit rows by the `exact` rule. Logit row r * logit_width + j belongs to the
// j-th of the last wanted[r] tokens of row r and chooses the token behind it.
struct ChooseArgs {
  Batch batch;
  const int32_t* wanted;  // [rows]
  int32_t logit_width;
  const float* logits;  // [rows * logit_width, logits_stride]
  int64_t logits_stride;
  int32_t vocab;
  const DeviceSampler* samplers;  // [rows]
  const int32_t* bias_ids;
  const float* bias_values;
  const int32_t* stop_ids;
  const uint32_t* allowed;  // [rows * logit_width, ceil(vocab / 32)] bit masks, or null
  // What the samplers of this pass can need, known to the host: `edits` when one has biases,
  // penalties or stop ids, or there are masks; `filters` when one has top_k, top_p or min_p, one
  // rejects, or `probs` are wanted.
  bool edits, filters;
  float* processed;  // [rows * logit_width, vocab] with edits
  int32_t* seen;     // [rows * logit_width, vocab] zeros with edits; zeros again afterwards
  uint64_t* best;    // [rows * logit_width] zeros; accept() makes them zeros again
  // [rows * logit_width, 2], or null: of the token that logit row i chooses, and of the row's
  // drafted token i - 1 by the logits behind the token before it
  float* probs;
  DeviceDistribution*
      distributions;  // [rows * logit_width] of rows that reject, with `probs` of all; or null
};
// best[i]: choice_token(best[i]) is the token, or one of the kNo... values.
inline constexpr int32_t kNoNumber = -1;   // all logits are NaN, or a logit is +inf
inline constexpr int32_t kNoAllowed = -2;  // every token is excluded
void choose(const ChooseArgs& args, Stream stream);

// The `count` tokens that each logit row would choose first, second, ... by what choose() decided
// by (for rows that reject: by their probabilities), after it. It had `distributions` and `probs`.
struct RunnersUpArgs {
  ChooseArgs chosen;
  int32_t count;
  int32_t* tokens;  // [rows * logit_width, count], -1: there are no more
  float* probs;     // likewise
};
void runners_up(const RunnersUpArgs& args, Stream stream);

// Walks each row's drafted tokens from its base (chains: from frontiers[r]) as far as they are the
// chosen ones, writes the level's own token behind them and what follows from it. Rows are compact
// afterwards: tokens[base + i] is the i-th accepted token.
struct AcceptArgs {
  Batch batch;
  const int32_t* wanted;  // [rows] of which the first belongs to the token before the frontier
  int32_t logit_width;
  uint64_t* best;         // of choose; zeros afterwards
  int32_t* tokens;        // the batch's, written
  float* draft_probs;     // [token rows, token_stride], or null: 1 each
  const float* probs;     // of choose; needed for lenience > 1 and for draft_probs
  float lenience;         // beyond 1: where no draft is the level's own token, the one it finds
                          // likeliest passes if that is likelier than draft_probs / lenience
  int32_t* num_accepted;  // [rows]
  int32_t* own;           // [rows] the level's own token, or why there is none (kNo...)
  int32_t* lengths;       // [rows] of the row afterwards
  int32_t* paths;         // [rows, 64] accepted nodes, for commit_path; null: chains
  int32_t* path_lengths;  // [rows]
  // [rows, kept_stride], or null: of what the row gains, accepted tokens and own one, the
  // probabilities that draft_probs gets
  float* kept_probs;
  int32_t kept_stride;
  const DeviceSampler* samplers;  // of choose, or null: no row rejects
};
void accept(const AcceptArgs& args, Stream stream);

// The rejection rule (review_by_rejection of accept.h) for the rows that go by it: decides and
// writes for them what accept() does for the others, after both. A drafted token that was drawn
// from a distribution is node j of a chain from the base on, child of node j - 1; any other one was
// proposed with certainty.
struct RejectionArgs {
  ChooseArgs chosen;
  AcceptArgs accepted;
  const uint32_t* numbers;  // [rows] of this review among all of its row
  // [rows * logit_width] pointers to [vocab]: what node j was drawn from, null: with certainty; and
  // where the distribution of the i-th token that the row gains is kept, null: nowhere. Those of
  // one position may be the same.
  const float* const* drawn;
  float* const* kept;
  uint64_t* rests;  // [rows * logit_width, 2] for the kernels among themselves
  int32_t* judged;  // [rows * logit_width, 3] likewise
};
void rejection(const RejectionArgs& args, Stream stream);

// Max-Gram and n-gram chains (max_gram.h, ngram.h): drafts for row i go behind its lengths[i]
// tokens, up to counts[i]; drafted[i] says how many. Their draft_probs become 1.
struct DraftArgs {
  int32_t rows;
  const int32_t* slots;  // [rows], -1: none
  const int32_t* lengths;
  const int32_t* counts;
  int32_t* tokens;
  float* draft_probs;  // or null
  int64_t token_stride;
  int32_t max_match;
  const int32_t* const* corpora;  // [rows] pointers (null: none), or null
  const int32_t* corpus_lengths;
  uint64_t* matches;  // [rows, 2] zeros; zeros again afterwards
  int32_t* drafted;   // [rows]
};
void max_gram(const DraftArgs& args, Stream stream);

// A table's arrays in device memory.
struct NgramView {
  int32_t order = 0, block_shift = 0;  // order 0: no table
  int64_t vocab = 0;
  const float* counts = nullptr;  // [256] what a logarithmic count stands for; for trees
  NgramOrder orders[kMaxOrder];
};
// Goes on behind the drafted[i] tokens of max_gram, up to counts[i].
void ngram_chain(const DraftArgs& args, const NgramView& table, Stream stream);

// Trees by n-gram statistics (draft_tree.h), the same as the CPU's: drafted[i] nodes go behind the
// lengths[i] tokens of row i, one token each in topological order, of which the first searched[i]
// are the row's own n-grams.
struct DraftTreeArgs {
  int32_t rows;
  const int32_t* slots;  // [rows], -1: none
  const int32_t* lengths;
  const int32_t* searched;
  const int32_t* budgets;  // [rows] nodes, at most kMaxTreeNodes
  const int32_t* depths;   // [rows]
  int32_t* tokens;
  int64_t token_stride;
  float least;              // nodes are drafted only above this path probability
  const float* doubts;      // DraftWeights
  const int32_t* finished;  // tokens of finished requests, or null
  const int32_t* finished_length;
  // Their places 2 .. *finished_length - 1, by the two tokens in front of each (last << 32 | the
  // one before), which are ascending, and then by place.
  const int64_t* finished_pairs;
  const int32_t* finished_places;
  const int32_t* const* predictions;  // [rows] pointers, or null
  const int32_t* prediction_lengths;  // [rows], 0: none
  int32_t* parents;                   // [rows, kMaxTreeNodes], -1: the row's last token
  float* probs;                       // [rows, kMaxTreeNodes] of the whole path
  int32_t* drafted;                   // [rows]
};
void draft_tree(const DraftTreeArgs& args, const NgramView& table, Stream stream);

// A round of segments (segment_loop.h). Of the rows that were under review it takes over what
// accept() left; those that want more get drafts behind their tokens, as max_gram and ngram_chain
// make them, asked for as SegmentRow says. The others become holes, and so do those that would get
// more drafts than `capacity`.
struct SegmentArgs {
  int32_t rows;
  int32_t round;          // 0: nothing was reviewed yet
  bool drafts;            // false in the last call
  int32_t* slots;         // [rows]; -1: not under review
  int32_t* lengths;       // [rows] of rows without drafts, as accept() leaves them
  const int32_t* begins;  // [rows] those before the segments
  // [rows] of SegmentRow: tokens, most, width, least, min_confidence
  const int32_t *wanted, *most, *widths, *leasts;
  const double* least_confidences;
  double* confidences;  // [rows] the product of the probabilities of a segment's tokens
  int32_t* tokens;
  int64_t token_stride;
  int32_t max_match;
  const int32_t* const* corpora;  // [rows] pointers (null: none), or null
  const int32_t* corpus_lengths;
  const DeviceSampler* samplers;  // [rows], for what ends a request
  const int32_t* stop_ids;
  const int32_t *num_accepted, *own;  // of accept()
  const float* kept_probs;            // [rows, kept_stride]
  int32_t kept_stride;
  int32_t capacity;  // drafts under one review
  int32_t* drafted;  // [rows]
  // What the host hears. Of round i, [4, rows] from rounds + 4 i rows on: drafts under review,
  // times that the statistics were asked for them, drafts kept (-1: the row was not under review),
  // the level's own token or why there is none (kNo...).
  int32_t* rounds;
  int32_t* open;        // [rows] 1: wants more
  int32_t* gained;      // [rows, gained_stride] tokens of the segments so far
  float* gained_probs;  // [rows, gained_stride]
  int32_t gained_stride;
};
void draft_segment(const SegmentArgs& args, const NgramView& table, Stream stream);

// The batch of a review of what was just drafted behind the lengths[i] tokens of each row: what is
// not cached of these, and the drafts, a chain, or with `parents` a tree.
struct DraftedBatchArgs {
  int32_t rows, width;
  const int32_t* slots;  // [rows], -1: none
  const int32_t* lengths;
  const int32_t* cached;     // [rows], or null: all but the last token
  const int32_t* frontiers;  // [rows] tokens that need no review, more than cached; null: lengths
  const int32_t* ends;       // [rows], or null; rows as long as that are done: holes
  const int32_t* drafted;    // [rows], or null: nothing; at most width - lengths + cached
  const int32_t* parents;    // [rows, kMaxTreeNodes], or null
  const int32_t* tokens;
  int64_t token_stride;
  int32_t *starts, *counts, *bases;  // [rows] of the Batch
  uint64_t* ancestors;               // [rows, width], with parents
  int32_t* wanted;                   // [rows] from the token before the frontier on
  int32_t* nodes;                    // [rows, kMaxTreeNodes] a copy of the drafted tokens
};
void drafted_batch(const DraftedBatchArgs& args, Stream stream);

}  // namespace ce::cuda
