// A small pool of worker threads for one engine. Work is handed out by fork and join: workers spin
// for the next piece, a few milliseconds at most, and then sleep, so that the gap between two
// operations of a forward pass costs about a microsecond and an idle engine costs nothing.
#pragma once

#include <chrono>
#include <cstdint>

namespace ce {

class ThreadPool {
 public:
  static constexpr int kMaxThreads = 1024;
  // A worker that has had nothing to do for so long sleeps. Longer than what lies between two
  // passes, because one that must be woken costs the caller some 50 microseconds and comes later
  // still.
  static constexpr auto kIdleTime = std::chrono::milliseconds(5);

  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return threads_; }

  // body(begin, end, worker), which must not throw, over [0, count) in pieces of `grain`, the last
  // perhaps smaller, or in one piece where there is one thread; returns when all are done. Worker w
  // takes the w-th share of the pieces, so that operations over the same rows find in its cache
  // what it wrote there, and then what others have not begun: a worker that the system keeps
  // waiting for a processor holds up no piece. Results must not depend on who takes what. Runs on
  // the caller alone when there is one piece. Not to be called from a body.
  template <typename Body>
  void parallel_for(int64_t count, int64_t grain, const Body& body) {
    if (count <= 0) return;
    if (threads_ == 1 || count <= grain) {
      body(int64_t{0}, count, 0);
      return;
    }
    run([](const void* context, int64_t begin, int64_t end,
           int worker) { (*static_cast<const Body*>(context))(begin, end, worker); },
        &body, count, grain);
  }

 private:
  using Pieces = void (*)(const void* context, int64_t begin, int64_t end, int worker);
  void run(Pieces body, const void* context, int64_t count, int64_t grain);

  struct Impl;
  Impl* impl_;
  int threads_;
};

}  // namespace ce
