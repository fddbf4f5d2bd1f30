#include "ce/thread_pool.h"

#include <atomic>
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

// Iterations of pause before a worker sleeps: a few hundred microseconds, longer than what lies
// between two passes of a small model, because one that must be woken comes some 25 microseconds
// late.
constexpr int kIdleSpins = 20000;
// Before the caller, who waits for workers that have begun, leaves its processor to them.
constexpr int kJoinSpins = 4000;

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
  void (*body)(void*, int) = nullptr;
  void* context = nullptr;
  std::mutex mutex;
  std::condition_variable wake;
  std::mutex callers;  // one job at a time, whoever calls
  std::vector<std::thread> threads;

  void work(int worker) {
    uint64_t seen = 0;
    for (;;) {
      wait_for_news(seen);
      seen = generation.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_relaxed)) return;
      if (gate.fetch_add(kWorker, std::memory_order_acq_rel) & kOpen) body(context, worker);
      gate.fetch_sub(kWorker, std::memory_order_release);
    }
  }

  void wait_for_news(uint64_t seen) {
    for (int spin = 0; spin < kIdleSpins; ++spin) {
      if (generation.load(std::memory_order_acquire) != seen) return;
      pause_briefly();
    }
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
  impl_ = new Impl;
  for (int worker = 1; worker < threads; ++worker)
    impl_->threads.emplace_back([this, worker] { impl_->work(worker); });
}

ThreadPool::~ThreadPool() {
  impl_->stop.store(true);
  impl_->announce();
  for (auto& thread : impl_->threads) thread.join();
  delete impl_;
}

void ThreadPool::run(void (*body)(void*, int), void* context) {
  std::lock_guard one_at_a_time(impl_->callers);
  if (threads_ == 1) return body(context, 0);
  impl_->body = body;
  impl_->context = context;
  impl_->gate.fetch_or(Impl::kOpen, std::memory_order_release);
  impl_->announce();
  body(context, 0);
  impl_->close_and_wait();
}

}  // namespace ce
