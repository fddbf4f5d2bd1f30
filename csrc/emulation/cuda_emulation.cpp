#include "emulation/cuda_emulation.h"

#include <deque>
#include <random>
#include <vector>

#include "ce/check.h"
#include "emulation/fiber.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace ce::emulation {
namespace {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr size_t kGuardBytes = 256;
constexpr unsigned char kPoison = 0xff, kGuard = 0xa5;

struct Copy {
  void* shared;
  const void* global;
  int bytes;
};
enum class State { ready, at_barrier, at_collective, done };

struct Thread {
  Fiber fiber;
  dim3 index;
  State state = State::done;
  Place place{};                            // where it waits
  std::vector<Copy> open;                   // asked for, not committed
  std::deque<std::vector<Copy>> in_flight;  // committed groups, oldest first
  bool waited = false;                      // for the launch before
};

struct Collective {
  int arrived = 0;
  const char* name = nullptr;
  Place place{};
  void* offers[kWarp] = {};
};

// The launch that is running; there is one at a time.
struct Launch {
  const char* kernel = nullptr;
  const std::function<void()>* body = nullptr;
  int threads = 0;
  size_t shared_bytes = 0;
  std::vector<unsigned char> memory;
  unsigned char* shared = nullptr;
  std::vector<int> pending;  // copies in flight to each 16 bytes of shared memory
  std::vector<Thread> thread = std::vector<Thread>(kMaxThreads);
  std::vector<Collective> warps = std::vector<Collective>(kMaxThreads / kWarp);
  std::vector<int> ready;
  int running = 0, at_barrier = 0, done = 0;
  std::string error;
  std::mt19937_64 random{0};
} now;

Thread& self() {
  return now.thread[static_cast<size_t>(now.running)];
}

std::string where(const Thread& thread, const Place& place) {
  std::ostringstream text;
  text << now.kernel << ", block (" << blockIdx.x << ", " << blockIdx.y << ", " << blockIdx.z
       << "), thread " << &thread - now.thread.data();
  if (place.file != nullptr) text << ", " << place.file << ":" << place.line;
  return text.str();
}

bool same(const Place& a, const Place& b) {
  return a.line == b.line && std::strcmp(a.file, b.file) == 0;
}

// The running thread stands still until somebody makes it ready again.
void wait(State state, const Place& place) {
  const int me = now.running;
  self().state = state;
  self().place = place;
  self().fiber.leave();
  now.running = me;
  threadIdx = self().index;
}

void wake(int thread) {
  now.thread[static_cast<size_t>(thread)].state = State::ready;
  now.ready.push_back(thread);
}

void thread_main(void*) {
  (*now.body)();
  Thread& thread = self();
  if (!thread.open.empty() || !thread.in_flight.empty())
    misuse("the thread ends with asynchronous copies in flight", {});
  if (now.at_barrier > 0) misuse("the thread ends while others wait at __syncthreads", {});
  thread.state = State::done;
  ++now.done;
  thread.fiber.leave();
}

void describe_deadlock() {
  std::ostringstream text;
  text << "no thread can go on:";
  for (int i = 0, shown = 0; i < now.threads && shown < 4; ++i) {
    const Thread& thread = now.thread[static_cast<size_t>(i)];
    if (thread.state == State::done) continue;
    const bool barrier = thread.state == State::at_barrier;
    text << " [" << where(thread, thread.place) << ": waits at a "
         << (barrier ? "block barrier" : "warp collective") << "]";
    ++shown;
  }
  now.error = text.str();
}

void run_block() {
  std::memset(now.shared, kPoison, now.shared_bytes);
  std::memset(now.shared + now.shared_bytes, kGuard, kGuardBytes);
  now.pending.assign(now.shared_bytes / 16 + 1, 0);
  now.done = now.at_barrier = 0;
  now.ready.clear();
  for (auto& warp : now.warps) warp.arrived = 0;
  for (int i = 0; i < now.threads; ++i) {
    Thread& thread = now.thread[static_cast<size_t>(i)];
    const unsigned u = static_cast<unsigned>(i);
    thread.index = {u % blockDim.x, u / blockDim.x % blockDim.y, u / blockDim.x / blockDim.y};
    thread.open.clear();
    thread.in_flight.clear();
    thread.waited = false;
    thread.fiber.start(thread_main, nullptr);
    wake(i);
  }
  while (now.error.empty() && now.done < now.threads) {
    if (now.ready.empty()) {
      describe_deadlock();
      break;
    }
    const size_t pick = now.random() % now.ready.size();
    now.running = now.ready[pick];
    now.ready[pick] = now.ready.back();
    now.ready.pop_back();
    threadIdx = self().index;
    self().fiber.enter();
  }
  for (size_t i = 0; now.error.empty() && i < kGuardBytes; ++i)
    if (now.shared[now.shared_bytes + i] != kGuard) {
      std::ostringstream text;
      text << now.kernel << ": wrote " << i << " bytes behind its " << now.shared_bytes
           << " bytes of shared memory";
      now.error = text.str();
    }
}

// The 16 bytes at `place` as an index of Launch::pending.
size_t granule(const void* place) {
  return static_cast<size_t>(static_cast<const unsigned char*>(place) - now.shared) / 16;
}

uint16_t half_of(uint32_t pair, int which) {
  return static_cast<uint16_t>(which == 0 ? pair : pair >> 16);
}

}  // namespace

void set_seed(uint64_t seed) {
  now.random.seed(seed);
}

void* shared_arena(size_t bytes) {
  if (bytes != now.shared_bytes)
    misuse("uses " + std::to_string(bytes) + " bytes of shared memory, but the launch asked for " +
               std::to_string(now.shared_bytes),
           {});
  return now.shared;
}

int lane() {
  return now.running % kWarp;
}

void misuse(const std::string& what, const Place& place) {
  now.error = where(self(), place) + ": " + what;
  self().fiber.leave();  // for good: the launch is over
  __builtin_unreachable();
}

void launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes,
            const std::function<void()>& body) {
  const unsigned threads = block.x * block.y * block.z;
  CE_CHECK(threads > 0 && threads <= kMaxThreads, kernel, ": a block of ", threads, " threads");
  CE_CHECK(threads % kWarp == 0, kernel, ": ", threads, " threads are not whole warps");
  CE_CHECK(shared_bytes <= 227 << 10, kernel, ": ", shared_bytes, " bytes of shared memory");
  now.kernel = kernel;
  now.body = &body;
  now.threads = static_cast<int>(threads);
  now.shared_bytes = shared_bytes;
  now.error.clear();
  now.memory.resize(shared_bytes + kGuardBytes + 128);
  const auto address = reinterpret_cast<uintptr_t>(now.memory.data());
  now.shared = reinterpret_cast<unsigned char*>((address + 127) / 128 * 128);
  gridDim = grid;
  blockDim = block;
  std::vector<unsigned> order(size_t{grid.x} * grid.y * grid.z);
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<unsigned>(i);
  std::shuffle(order.begin(), order.end(), now.random);
  for (const unsigned i : order) {
    blockIdx = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
    run_block();
    if (!now.error.empty()) throw InvalidArgument(now.error);
  }
}

void block_barrier(const Place& place) {
  if (now.done > 0) misuse("__syncthreads, but some threads of the block have ended", place);
  for (int i = 0; now.at_barrier > 0 && i < now.threads; ++i) {
    const Thread& other = now.thread[static_cast<size_t>(i)];
    if (other.state != State::at_barrier) continue;
    if (!same(other.place, place))
      misuse(
          "__syncthreads diverges; other threads wait at line " + std::to_string(other.place.line),
          place);
    break;
  }
  if (++now.at_barrier < now.threads) {
    wait(State::at_barrier, place);
    return;
  }
  now.at_barrier = 0;
  for (int i = 0; i < now.threads; ++i)
    if (i != now.running) wake(i);
  wake(now.running);  // somebody else may go first
  wait(State::ready, place);
}

void warp_collective(uint32_t mask, void* mine, void (*compute)(Lanes), const char* name,
                     const Place& place) {
  if (mask != ~0u) misuse("the emulation knows collectives of whole warps only", place);
  const int warp = now.running / kWarp;
  Collective& meeting = now.warps[static_cast<size_t>(warp)];
  if (meeting.arrived == 0) {
    meeting.name = name;
    meeting.place = place;
  } else if (!same(meeting.place, place)) {
    misuse(std::string(name) + ", but other lanes of the warp are at " + meeting.name + ", line " +
               std::to_string(meeting.place.line),
           place);
  }
  meeting.offers[lane()] = mine;
  if (++meeting.arrived < kWarp) {
    wait(State::at_collective, place);
    return;
  }
  if (compute != nullptr) compute(meeting.offers);
  meeting.arrived = 0;
  for (int i = warp * kWarp; i < (warp + 1) * kWarp; ++i) wake(i);
  wait(State::ready, place);
}

uint32_t ballot(uint32_t mask, bool vote, const Place& place) {
  struct Offer {
    bool vote;
    uint32_t result;
  } mine{vote, 0};
  warp_collective(
      mask, &mine,
      [](Lanes lanes) {
        uint32_t bits = 0;
        for (int i = 0; i < kWarp; ++i)
          bits |= static_cast<uint32_t>(static_cast<Offer*>(lanes[i])->vote) << i;
        for (int i = 0; i < kWarp; ++i) static_cast<Offer*>(lanes[i])->result = bits;
      },
      "__ballot_sync", place);
  return mine.result;
}

void wait_for_previous_launch() {
  self().waited = true;
}

void copy_async(void* shared, const void* global, int bytes, bool constant, const Place& place) {
  if (!constant && !self().waited) misuse("cp.async before the wait for the launch before", place);
  const auto* begin = static_cast<unsigned char*>(shared);
  if (bytes < 0 || bytes > 16) misuse("cp.async of " + std::to_string(bytes) + " bytes", place);
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 ||
      (bytes > 0 && reinterpret_cast<uintptr_t>(global) % 16 != 0))
    misuse("cp.async needs addresses that are multiples of 16", place);
  if (begin < now.shared || begin + 16 > now.shared + now.shared_bytes)
    misuse("cp.async to a place outside shared memory", place);
  std::memset(shared, kPoison, 16);
  ++now.pending[granule(shared)];
  self().open.push_back({shared, global, bytes});
}

void copy_async_commit() {
  self().in_flight.push_back(std::move(self().open));
  self().open.clear();
}

void copy_async_wait(int groups_left) {
  auto& groups = self().in_flight;
  while (groups.size() > static_cast<size_t>(groups_left)) {
    for (const Copy& copy : groups.front()) {
      --now.pending[granule(copy.shared)];
      std::memset(copy.shared, 0, 16);
      if (copy.bytes > 0) std::memcpy(copy.shared, copy.global, static_cast<size_t>(copy.bytes));
    }
    groups.pop_front();
  }
}

// Lanes 8 i .. 8 i + 7 name the rows of matrix i; lane l gets row l / 4, columns 2 (l % 4) and the
// next of each of the four (transposed: column l / 4, rows 2 (l % 4) and the next).
void load_matrix(uint32_t* registers, const void* row, bool transposed, const Place& place) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) misuse("ldmatrix row is misaligned", place);
  const auto* begin = static_cast<const unsigned char*>(row);
  if (begin < now.shared || begin + 16 > now.shared + now.shared_bytes)
    misuse("ldmatrix row is outside shared memory", place);
  if (now.pending[granule(row)] > 0)
    misuse("ldmatrix reads data of an asynchronous copy that was not waited for", place);
  struct Offer {
    const uint16_t* row;
    uint32_t* registers;
    bool transposed;
  } mine{static_cast<const uint16_t*>(row), registers, transposed};
  warp_collective(
      ~0u, &mine,
      [](Lanes lanes) {
        for (int l = 0; l < kWarp; ++l)
          for (int i = 0; i < 4; ++i) {
            const auto element = [&](int pair) {
              const int fixed = l / 4, moving = l % 4 * 2 + pair;
              const bool t = static_cast<Offer*>(lanes[l])->transposed;
              const int r = t ? moving : fixed, c = t ? fixed : moving;
              return static_cast<uint32_t>(static_cast<Offer*>(lanes[8 * i + r])->row[c]);
            };
            static_cast<Offer*>(lanes[l])->registers[i] = element(0) | element(1) << 16;
          }
      },
      transposed ? "ldmatrix.trans" : "ldmatrix", place);
}

// Fragments as in the PTX manual: with g = lane / 4 and q = lane % 4, register i of A holds row
// g + 8 (i % 2), columns 2 q + 8 (i / 2) and the next; register i of B rows 2 q + 8 i and the next
// of column g; sum i row g + 8 (i / 2), column 2 q + i % 2.
void mma_m16n8k16(float* sums, const uint32_t* a, const uint32_t* b, Widen widen,
                  const Place& place) {
  struct Offer {
    float* sums;
    const uint32_t *a, *b;
    Widen widen;
  } mine{sums, a, b, widen};
  warp_collective(
      ~0u, &mine,
      [](Lanes lanes) {
        const auto at = [&](int l) { return static_cast<Offer*>(lanes[l]); };
        float a[16][16], b[16][8];
        for (int l = 0; l < kWarp; ++l)
          for (int e = 0; e < 2; ++e) {
            const int g = l / 4, k = l % 4 * 2 + e;
            for (int i = 0; i < 4; ++i)
              a[g + i % 2 * 8][k + i / 2 * 8] = at(l)->widen(half_of(at(l)->a[i], e));
            for (int i = 0; i < 2; ++i) b[k + i * 8][g] = at(l)->widen(half_of(at(l)->b[i], e));
          }
        for (int l = 0; l < kWarp; ++l)
          for (int i = 0; i < 4; ++i) {
            const int row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
            float products = 0.0f;  // of the step first, then the old sum: as tensor cores round
            for (int k = 0; k < 16; ++k) products += a[row][k] * b[k][column];
            at(l)->sums[i] += products;
          }
      },
      "mma", place);
}

}  // namespace ce::emulation
