// The rejection rule: sums over the vocabulary for all drafts at once, then one block a row walks
// its drafts and draws its own token, then the distributions of what the row gains are kept.
#include "cuda/rejection.h"

namespace ce::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kKept = 4 * kThreads;  // tokens that a block of keep_kernel looks after

struct Walk {
  int accepted, node;
  int32_t own;     // why there is none; 0: it is to be drawn
  uint64_t tried;  // children that were rejected behind the last accepted token
  uint64_t total;  // of what is left
  double share;    // of the draft, in what is left of the drawn one's
  double scale;    // likewise of the level
  double choose;   // in (0, 1)
  bool rest;       // what is left is that of a drawn draft
};

struct Shared {
  Drafts drafts;
  Walk walk;
  unsigned long long sums[kWarps];
  int32_t own;
};

struct RestShared {
  Drafts drafts;
  unsigned long long sums[2];
};

// rests[first + j]: of drawn draft j, the sums of max(0, level - draft / lenience), of block
// verification max(0, reach level - draft); and of min(draft, lenience level).
__global__ void __launch_bounds__(kThreads) rest_kernel(RejectionArgs args) {
  after_previous_launch();
  auto& shared = shared_memory<RestShared>();
  const ChooseArgs& c = args.chosen;
  const int64_t logit_row = blockIdx.x;
  const int j = static_cast<int>(logit_row % c.logit_width);
  const Row row = row_at(args, static_cast<int>(logit_row / c.logit_width));
  if (j >= row.nodes || args.drawn[logit_row] == nullptr) return;
  read_drafts(args, row, shared.drafts);
  if (threadIdx.x == 0) shared.sums[0] = shared.sums[1] = 0;
  __syncthreads();
  const double lenience = args.accepted.lenience;
  const bool blocks = !row.is_tree && lenience == 1.0;
  const Left left{law_at(c, logit_row),
                  args.drawn[logit_row],
                  blocks ? shared.drafts.reach[j] : 1.0,
                  1.0 / lenience,
                  nullptr,
                  0};
  unsigned long long rest = 0, both = 0;
  for (int i = static_cast<int>(threadIdx.x); i < c.vocab; i += kThreads) {
    rest += left.rest(i);
    const double own = lenience * left.law.prob(i), drafted = left.drawn[i];
    both += static_cast<unsigned long long>((own < drafted ? own : drafted) * kRest);
  }
  rest = warp_total(rest);
  both = warp_total(both);
  if (threadIdx.x % kWarp == 0) {
    atomicAdd(&shared.sums[0], rest);
    atomicAdd(&shared.sums[1], both);
  }
  __syncthreads();
  if (threadIdx.x < 2) args.rests[2 * logit_row + threadIdx.x] = shared.sums[threadIdx.x];
}

// Block verification: see Review::chain of csrc/cpu/rejection.cpp. One thread.
__device__ __forceinline__ Walk walk_chain(const RejectionArgs& args, const Row& row,
                                           const Drafts& d) {
  const DeviceSampler& s = args.chosen.samplers[row.r];
  const uint32_t number = args.numbers[row.r];
  Walk w{0, -1, 0, 0, 0, 1.0, 1.0, 0.0, false};
  for (int j = 0;; ++j) {
    if (d.reasons[j] != 0) return {j, j - 1, d.reasons[j], 0, 0, 1.0, 1.0, 0.0, false};
    const uint64_t whole = args.chosen.distributions[row.first + j].total;
    const bool drawn = j < row.nodes && args.drawn[row.first + j] != nullptr;
    uint64_t left = whole;
    double pass = d.reach[j];
    if (j < row.nodes) {
      left = drawn ? args.rests[2 * (row.first + j)] : whole - d.mass[j];
      const double total = static_cast<double>(left) *
                           (drawn ? 1.0 / kRest : d.reach[j] / static_cast<double>(whole));
      pass = d.reach[j] < 1.0 ? total / (total + 1.0 - d.reach[j]) : 1.0;
    }
    if (j == 0 || uniforms(s, number, row.base + j, 0).accept < pass) {
      const bool all = j == row.nodes || left == 0;
      w = {j, j - 1, 0, 0, all ? whole : left, 1.0, d.reach[j], 0.0, drawn && !all};
      if (!drawn && !all) w.tried = uint64_t{1} << j;
    }
    if (j == row.nodes || d.reach[j + 1] <= 0.0) break;
  }
  w.choose = uniforms(s, number, row.base + w.accepted, 0).choose;
  return w;
}

// The child of w.node that stays, -1: none; leaves in `w` what is left then. One thread.
__device__ __forceinline__ int stays(const RejectionArgs& args, const Row& row, const Drafts& d,
                                     Walk& w) {
  const DeviceSampler& s = args.chosen.samplers[row.r];
  const uint32_t number = args.numbers[row.r];
  const int64_t logit_row = row.first + w.node + 1;
  const int32_t position = row.base + w.accepted;
  const double lenience = args.accepted.lenience;
  const Law law = law_at(args.chosen, logit_row);
  Left left{law, nullptr, 1.0, 1.0 / lenience, d.tokens, 0};
  w.tried = 0;
  w.total = law.total;
  w.rest = false;
  int round = 0;
  for (uint64_t bits = d.children[w.node + 1]; bits != 0; bits &= bits - 1) {
    const int c = __ffsll(bits) - 1;
    const bool first = round == 0, in = d.tokens[c] < args.chosen.vocab;
    const uint64_t mass = in && !first ? left.mass(d.tokens[c]) : d.mass[c];
    const double level =
        first ? lenience * d.prob[c] : static_cast<double>(mass) / static_cast<double>(w.total);
    if (uniforms(s, number, position, round++).accept * (first ? d.drawn[c] : 1.0f) < level)
      return c;
    const float* drawn = first ? args.drawn[row.first + c] : nullptr;
    const uint64_t rest = drawn != nullptr ? args.rests[2 * (row.first + c)] : w.total - mass;
    w.choose = uniforms(s, number, position, round).choose;
    if (rest == 0) return level > 0.0 ? c : -1;
    w.total = rest;
    w.rest = w.rest || drawn != nullptr;
    left.drawn = drawn != nullptr ? drawn : left.drawn;
    if (drawn == nullptr) w.tried = left.removed |= uint64_t{1} << c;
  }
  w.choose = uniforms(s, number, position, round).choose;
  return -1;
}

// A round for each child, from the root on: see Review::tree of csrc/cpu/rejection.cpp. One thread.
__device__ __forceinline__ Walk walk_tree(const RejectionArgs& args, const Row& row,
                                          const Drafts& d) {
  Walk w{0, -1, 0, 0, 0, 1.0 / static_cast<double>(args.accepted.lenience), 1.0, 0.0, false};
  for (;;) {
    w.own = d.reasons[w.node + 1];
    const int first = __ffsll(d.children[w.node + 1]) - 1;
    int32_t* judged = args.judged + 3 * (row.first + w.accepted);
    judged[0] = w.node + 1;
    judged[1] = first;
    judged[2] = first < 0 ? -1 : d.tokens[first];
    if (w.own != 0) return w;
    const int next = stays(args, row, d, w);
    if (next < 0) return w;
    w.node = next;
    if (args.accepted.paths != nullptr)
      args.accepted.paths[static_cast<int64_t>(row.r) * kMaxNodes + w.accepted] = next;
    ++w.accepted;
  }
}

// The first token whose mass, with all before it, is above `wanted`. All threads of the block.
__device__ __forceinline__ int32_t pick(const Left& left, uint64_t wanted, int vocab,
                                        Shared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  int begin = 0, end = vocab;
  while (end - begin > kWarp) {
    const int part = static_cast<int>(ceil_div(end - begin, kThreads)) * kWarp;
    unsigned long long sum = 0;
    const int mine = begin + warp * part;
    for (int i = mine + lane; i < end && i < mine + part; i += kWarp) sum += left.mass(i);
    sum = warp_total(sum);
    __syncthreads();  // the last parts' sums have been read
    if (lane == 0) shared.sums[warp] = sum;
    __syncthreads();
    int found = 0;
    for (; found < kWarps - 1 && wanted >= shared.sums[found]; ++found)
      wanted -= shared.sums[found];
    begin += found * part;
    end = begin + part < end ? begin + part : end;
  }
  unsigned long long sum = begin + lane < end ? left.mass(begin + lane) : 0;
  for (int by = 1; by < kWarp; by *= 2) {
    const unsigned long long below = __shfl_up_sync(kAllLanes, sum, by);
    sum += lane >= by ? below : 0;
  }
  return begin + __ffsll(__ballot_sync(kAllLanes, sum > wanted)) - 1;
}

// Writes the tokens that the row gains and what follows from them.
__device__ __forceinline__ void write_row(const RejectionArgs& args, const Row& row,
                                          const Shared& shared) {
  const AcceptArgs& a = args.accepted;
  const Walk& w = shared.walk;
  const int64_t offset = row.slot * args.chosen.batch.token_stride + row.base;
  const int gained = w.accepted + (shared.own >= 0 ? 1 : 0);
  for (int i = static_cast<int>(threadIdx.x); i < gained; i += kThreads) {
    const int32_t* judged = args.judged + 3 * (row.first + i);
    int32_t token = shared.own;
    if (i < w.accepted) token = shared.drafts.tokens[judged[3] - 1];  // the next one's logit row
    a.tokens[offset + i] = token;
    if (a.draft_probs == nullptr && a.kept_probs == nullptr) continue;
    const float prob =
        token < args.chosen.vocab
            ? mixture_at(args, row.first, judged[0], judged[1], judged[2]).prob(token)
            : 0.0f;
    if (a.draft_probs != nullptr) a.draft_probs[offset + i] = prob;
    if (a.kept_probs != nullptr)
      a.kept_probs[static_cast<int64_t>(row.r) * a.kept_stride + i] = prob;
  }
  if (threadIdx.x != 0) return;
  a.num_accepted[row.r] = w.accepted;
  a.own[row.r] = shared.own;
  a.lengths[row.r] = row.base + gained;
  if (a.paths != nullptr) a.path_lengths[row.r] = w.accepted;
}

__global__ void __launch_bounds__(kThreads) walk_kernel(RejectionArgs args) {
  after_previous_launch();
  auto& shared = shared_memory<Shared>();
  const Row row = row_at(args, static_cast<int>(blockIdx.x));
  if (row.nodes < 0) return;
  Drafts& d = shared.drafts;
  read_drafts(args, row, d);
  const bool blocks = !row.is_tree && args.accepted.lenience == 1.0f;
  if (blocks)
    for (int j = static_cast<int>(threadIdx.x); j <= row.nodes; j += kThreads) {
      int32_t* judged = args.judged + 3 * (row.first + j);
      judged[0] = j;
      judged[1] = judged[2] = -1;
      if (args.accepted.paths != nullptr && j < row.nodes)
        args.accepted.paths[static_cast<int64_t>(row.r) * kMaxNodes + j] = j;
    }
  if (threadIdx.x == 0) {
    shared.walk = blocks ? walk_chain(args, row, d) : walk_tree(args, row, d);
    shared.own = shared.walk.own;
  }
  __syncthreads();
  const Walk& w = shared.walk;
  if (w.own == 0) {
    const int64_t logit_row = row.first + w.node + 1;
    const int first = __ffsll(d.children[w.node + 1]) - 1;
    const Left left{law_at(args.chosen, logit_row),
                    w.rest ? args.drawn[row.first + first] : nullptr,
                    w.scale,
                    w.share,
                    d.tokens,
                    w.tried};
    const uint64_t wanted = static_cast<uint64_t>(w.choose * static_cast<double>(w.total));
    const uint64_t last = w.total - 1;
    const int32_t own = pick(left, wanted < last ? wanted : last, args.chosen.vocab, shared);
    if (threadIdx.x == 0) shared.own = own;
  }
  __syncthreads();
  write_row(args, row, shared);
}

// Distributions of the tokens that rows gain, where they are kept.
__global__ void __launch_bounds__(kThreads) keep_kernel(RejectionArgs args) {
  after_previous_launch();
  const ChooseArgs& c = args.chosen;
  const int64_t entry = blockIdx.y;
  const Row row = row_at(args, static_cast<int>(entry / c.logit_width));
  const int i = static_cast<int>(entry % c.logit_width);
  if (row.nodes < i || args.accepted.own[row.r] < 0) return;
  if (i > args.accepted.num_accepted[row.r] || args.kept[entry] == nullptr) return;
  const int32_t* judged = args.judged + 3 * entry;
  const Mixture law = mixture_at(args, row.first, judged[0], judged[1], judged[2]);
  float* out = args.kept[entry];
  const int begin = static_cast<int>(blockIdx.x) * kKept + static_cast<int>(threadIdx.x);
  for (int id = begin; id < c.vocab && id < begin + kKept; id += kThreads) out[id] = law.prob(id);
}

}  // namespace

void rejection(const RejectionArgs& args, Stream stream) {
  const ChooseArgs& c = args.chosen;
  CE_CHECK(c.distributions != nullptr, "rejection: needs the distributions of choose");
  CE_CHECK(c.logit_width <= kMaxNodes + 1, "rejection: at most ", kMaxNodes,
           " drafted tokens a row, got ", c.logit_width - 1);
  CE_CHECK(args.accepted.lenience >= 1.0f, "lenience must be >= 1 (1: lossless), got ",
           args.accepted.lenience);
  if (c.batch.rows <= 0) return;
  const int64_t rows = int64_t{c.batch.rows} * c.logit_width;
  CE_CHECK(rows <= 65535, "rejection: at most 65535 logit rows, got ", rows);
  const unsigned count = static_cast<unsigned>(rows);
  CE_LAUNCH(rest_kernel, count, kThreads, sizeof(RestShared), stream, args);
  CE_LAUNCH(walk_kernel, static_cast<unsigned>(c.batch.rows), kThreads, sizeof(Shared), stream,
            args);
  const dim3 grid(static_cast<unsigned>(ceil_div(c.vocab, kKept)), count);
  CE_LAUNCH(keep_kernel, grid, kThreads, 0, stream, args);
}

}  // namespace ce::cuda
