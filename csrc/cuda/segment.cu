// Segments: what a level kept of the statistics' drafts, and the next ones, without the host
// between (csrc/cpu/segment_loop.cpp). One block a row.
#include "ce/draft_tree.h"
#include "cuda/match.h"
#include "cuda/ngram_table.h"

namespace ce::cuda {
namespace {

constexpr int kThreads = 512;

struct Shared {
  unsigned long long own, other;  // match_key in the row and in its corpus
  int32_t slot, length, room;     // slot -1: the row has got what it wants
  int32_t found;
};

__device__ __forceinline__ int32_t* told(const SegmentArgs& args, int round, int which, int r) {
  return args.rounds + (static_cast<int64_t>(round) * 4 + which) * args.rows + r;
}

// Whether a token that a review has kept ends the request: min_tokens keeps none that would not.
__device__ __forceinline__ bool ends(const SegmentArgs& args, const DeviceSampler& sampler,
                                     int32_t token) {
  for (int i = sampler.stop_begin; i < sampler.stop_end; ++i)
    if (args.stop_ids[i] == token) return true;
  return false;
}

// What the last review of row r left; false: it is the row's last one. All lanes of a warp.
__device__ __forceinline__ bool settle(const SegmentArgs& args, int r, int32_t slot) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int32_t own = args.own[r], accepted = args.num_accepted[r];
  const int32_t gained = own < 0 ? 0 : accepted + 1;
  const int32_t length = args.lengths[r], first = length - gained;
  if (lane == 0) {
    *told(args, args.round - 1, 2, r) = accepted;
    *told(args, args.round - 1, 3, r) = own;
  }
  if (own < 0) return false;
  const int32_t* tokens = args.tokens + slot * args.token_stride + first;
  const float* probs = args.kept_probs + static_cast<int64_t>(r) * args.kept_stride;
  const int64_t at = static_cast<int64_t>(r) * args.gained_stride + first - args.begins[r];
  bool ended = false;
  for (int32_t i = lane; i < gained; i += kWarp) {
    args.gained[at + i] = tokens[i];
    args.gained_probs[at + i] = probs[i];
    ended = ended || ends(args, args.samplers[r], tokens[i]);
  }
  double confidence = args.confidences[r];
  for (int32_t i = 0; i < gained; ++i) confidence *= static_cast<double>(probs[i]);
  __syncwarp();  // everybody has read the confidence
  if (lane == 0) args.confidences[r] = confidence;
  if (__ballot_sync(kAllLanes, ended) != 0) return false;
  const int32_t got = length - args.begins[r];
  return got < args.wanted[r] && got < args.most[r] && confidence >= args.least_confidences[r];
}

// Up to `count` drafts behind the row's `length` tokens; returns how many. All threads call it.
__device__ __forceinline__ int32_t propose(const SegmentArgs& args, const NgramView& table,
                                           Shared& s, int r, int32_t length, int32_t count) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  int32_t* row = args.tokens + s.slot * args.token_stride;
  const int32_t* corpus = args.corpora == nullptr ? nullptr : args.corpora[r];
  const int32_t corpus_length = corpus == nullptr ? 0 : args.corpus_lengths[r];
  if (thread == 0) s.own = s.other = 0;
  __syncthreads();  // matches are zeros, and the row's end is there
  const int32_t limit = length < args.max_match ? length : args.max_match;
  const int32_t* last = row + length - 1;
  const uint64_t own = best_match(row, length, last, limit, thread, kThreads);
  const uint64_t other = best_match(corpus, corpus_length, last, limit, thread, kThreads);
  if (thread % kWarp == 0 && own != 0) atomicMax(&s.own, static_cast<unsigned long long>(own));
  if (thread % kWarp == 0 && other != 0)
    atomicMax(&s.other, static_cast<unsigned long long>(other));
  __syncthreads();  // matches are complete
  if (thread < kWarp) {
    int32_t found = copy_match(row, length, corpus, corpus_length, s.own, s.other, count);
    __syncwarp();  // the copy is there
    if (table.order > 0) found = extend_chain(table, row, length, found, count);
    if (thread == 0) s.found = found;
  }
  __syncthreads();  // the drafts are there
  return s.found;
}

__global__ void __launch_bounds__(kThreads, 1) segment_kernel(SegmentArgs args, NgramView table) {
  after_previous_launch();
  auto& s = shared_memory<Shared>();
  const int r = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  if (thread < kWarp) {
    const int32_t slot = args.slots[r];
    if (slot < 0 && args.round > 0 && thread == 0) *told(args, args.round - 1, 2, r) = -1;
    const bool more = slot >= 0 && (args.round == 0 || settle(args, r, slot));
    if (thread == 0) {
      s.slot = more ? slot : -1;
      s.length = args.lengths[r];
      s.room = args.begins[r] + args.most[r] - s.length - 1;
      if (slot >= 0 || args.round == 0) args.open[r] = more ? 1 : 0;
      args.slots[r] = s.slot;
    }
  }
  __syncthreads();  // the row's state
  if (!args.drafts) return;
  int32_t drafted = 0, asked = 0;
  bool fits = true;
  while (s.slot >= 0 && drafted < s.room) {
    const int32_t left = s.room - drafted, width = args.widths[r];
    const int32_t count = width < left ? width : left;
    fits = drafted + count <= args.capacity;
    if (!fits) break;
    const int32_t found = propose(args, table, s, r, s.length + drafted, count);
    ++asked;
    drafted += found;
    if (found == 0 || drafted >= args.leasts[r]) break;
  }
  if (thread != 0) return;
  if (!fits) args.slots[r] = -1;
  args.drafted[r] = drafted;
  *told(args, args.round, 0, r) = drafted;
  *told(args, args.round, 1, r) = asked;
}

}  // namespace

void draft_segment(const SegmentArgs& args, const NgramView& table, Stream stream) {
  CE_CHECK(table.order >= 0 && table.order <= kMaxOrder, "draft_segment: order must be in 0..",
           kMaxOrder, ", got ", table.order);
  CE_CHECK(args.max_match >= 1, "max_match must be >= 1, got ", args.max_match);
  CE_CHECK(args.round >= 0, "draft_segment: round must be >= 0, got ", args.round);
  if (args.rows <= 0) return;
  CE_LAUNCH(segment_kernel, static_cast<unsigned>(args.rows), kThreads, sizeof(Shared), stream,
            args, table);
}

}  // namespace ce::cuda
