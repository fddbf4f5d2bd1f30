#include "ce/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "ce/check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ce {
namespace {

constexpr int kSpinsPerLook = 64;  // at the clock
// From then on a worker without work lets others have the processor.
constexpr auto kOwnTime = std::chrono::microseconds(500);
// Before the caller, who waits for workers that have begun, leaves its processor to them.
constexpr int kJoinSpins = 4000;

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

// A job is open from `run` publishing it until the caller has done its own share. Workers that
// come while it is open take part; the caller waits for those alone, so that a worker which the
// system keeps waiting for a processor never holds up a job it has not begun.
struct ThreadPool::Impl {
  static constexpr uint64_t kOpen = 1, kWorker = 2;

  std::atomic<uint64_t> gate{0};        // kOpen, and kWorker times the workers inside
  std::atomic<uint64_t> generation{0};  // jobs published so far
  std::atomic<int> sleepers{0};
  std::atomic<bool> stop{false};
  Pieces body = nullptr;
  const void* context = nullptr;
  int64_t count = 0, grain = 1;
  // The next piece of each worker's share, on a cache line of its own.
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  std::vector<Share> shares;
  std::mutex mutex;
  std::condition_variable wake;
  std::mutex callers;  // one job at a time, whoever calls
  std::vector<std::thread> threads;

  explicit Impl(int workers) : shares(static_cast<size_t>(workers)) {}

  void work(int worker) {
    uint64_t seen = 0;
    for (;;) {
      wait_for_news(seen);
      seen = generation.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_relaxed)) return;
      if (gate.fetch_add(kWorker, std::memory_order_acq_rel) & kOpen) take_part(worker);
      gate.fetch_sub(kWorker, std::memory_order_release);
    }
  }

  void hand_out(Pieces wanted, const void* its_context, int64_t items, int64_t piece) {
    body = wanted;
    context = its_context;
    count = items;
    grain = piece;
    const int64_t pieces = ceil_div(items, piece), workers = std::ssize(shares);
    for (int64_t w = 0; w < workers; ++w) {
      Share& share = shares[static_cast<size_t>(w)];
      share.next.store(ceil_div(pieces * w, workers), std::memory_order_relaxed);
      share.end = ceil_div(pieces * (w + 1), workers);
    }
  }

  void take_part(int worker) {
    const Pieces take = body;
    const void* const its_context = context;
    const int64_t items = count, size = grain;
    for (size_t i = 0, at = static_cast<size_t>(worker); i < shares.size(); ++i) {
      Share& share = shares[at];
      while (share.next.load(std::memory_order_relaxed) < share.end) {
        const int64_t piece = share.next.fetch_add(1, std::memory_order_relaxed);
        if (piece >= share.end) break;
        take(its_context, piece * size, std::min((piece + 1) * size, items), worker);
      }
      if (++at == shares.size()) at = 0;
    }
  }

  void wait_for_news(uint64_t seen) {
    const auto begin = std::chrono::steady_clock::now();
    auto idle = begin - begin;
    do {
      for (int spin = 0; spin < kSpinsPerLook; ++spin) {
        if (generation.load(std::memory_order_acquire) != seen) return;
        pause_briefly();
      }
      idle = std::chrono::steady_clock::now() - begin;
      if (idle > kOwnTime) std::this_thread::yield();
    } while (idle < kIdleTime);
    std::unique_lock lock(mutex);
    sleepers.fetch_add(1);
    wake.wait(lock, [&] { return generation.load() != seen; });
    sleepers.fetch_sub(1);
  }

  void announce() {
    generation.fetch_add(1);  // sequentially consistent: ordered before the read of sleepers
    if (sleepers.load() > 0) {
      {
        std::lock_guard lock(mutex);
      }
      wake.notify_all();
    }
  }

  void close_and_wait() {
    gate.fetch_and(~kOpen, std::memory_order_acq_rel);
    for (int spin = 0; gate.load(std::memory_order_acquire) != 0; ++spin) {
      if (spin < kJoinSpins)
        pause_briefly();
      else
        std::this_thread::yield();
    }
  }
};

ThreadPool::ThreadPool(int threads) : impl_(nullptr), threads_(threads) {
  CE_CHECK(threads >= 1 && threads <= kMaxThreads, "threads must be in 1..", kMaxThreads, ", got ",
           threads);
  impl_ = new Impl(threads);
  for (int worker = 1; worker < threads; ++worker)
    impl_->threads.emplace_back([this, worker] { impl_->work(worker); });
}

ThreadPool::~ThreadPool() {
  impl_->stop.store(true);
  impl_->announce();
  for (auto& thread : impl_->threads) thread.join();
  delete impl_;
}

void ThreadPool::run(Pieces body, const void* context, int64_t count, int64_t grain) {
  std::lock_guard one_at_a_time(impl_->callers);
  impl_->hand_out(body, context, count, grain);
  impl_->gate.fetch_or(Impl::kOpen, std::memory_order_release);
  impl_->announce();
  impl_->take_part(0);
  impl_->close_and_wait();
}

}  // namespace ce
