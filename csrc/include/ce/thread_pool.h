// A small pool of worker threads for one engine. Work is handed out by fork and join: workers spin
// briefly for the next piece and then sleep, so that the gap between two operations of a forward
// pass costs about a microsecond and an idle engine costs nothing.
#pragma once

#include <cstdint>

namespace ce {

class ThreadPool {
 public:
  static constexpr int kMaxThreads = 1024;

  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return threads_; }

  // Calls body(context, 0) and, on workers 1..size()-1 that are free to take part before it is
  // done, body(context, worker), possibly more than once one after the other; returns when all of
  // them are done. The body must share out the work itself. Not to be called from inside a body.
  void run(void (*body)(void* context, int worker), void* context);

  // body(begin, end, worker) over [0, count) in pieces of at most `grain`, handed out as workers
  // become free. Which worker gets which piece varies; results must not depend on it.
  // Runs on the caller alone when there is one piece.
  template <typename Body>
  void parallel_for(int64_t count, int64_t grain, const Body& body) {
    if (count <= 0) return;
    if (threads_ == 1 || count <= grain) {
      body(int64_t{0}, count, 0);
      return;
    }
    struct Shared {
      const Body* body;
      int64_t count, grain;
      int64_t next;
    } shared{&body, count, grain, 0};
    run(
        [](void* context, int worker) {
          auto& s = *static_cast<Shared*>(context);
          for (;;) {
            const int64_t begin = __atomic_fetch_add(&s.next, s.grain, __ATOMIC_RELAXED);
            if (begin >= s.count) return;
            const int64_t end = begin + s.grain < s.count ? begin + s.grain : s.count;
            (*s.body)(begin, end, worker);
          }
        },
        &shared);
  }

 private:
  struct Impl;
  Impl* impl_;
  int threads_;
};

}  // namespace ce
