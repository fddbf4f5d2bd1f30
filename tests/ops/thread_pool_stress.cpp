// Forks of all shapes on pools of several sizes, for test_thread_pool.py: built with
// ThreadSanitizer, which reports any access that the pool does not order. Exits with 1 when an item
// was computed never or twice.
#include <chrono>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#include "ce/parallel.h"
#include "ce/thread_pool.h"

namespace {

// Each item is a plain int that exactly one worker may touch; the caller reads it afterwards.
bool fork_once(ce::ThreadPool& pool, int64_t count, int64_t grain) {
  std::vector<int> items(static_cast<size_t>(count), 0);
  pool.parallel_for(count, grain, [&](int64_t begin, int64_t end, int worker) {
    if (worker < 0 || worker >= pool.size() || end > count) return;
    for (int64_t i = begin; i < end; ++i) items[static_cast<size_t>(i)] += 1;
  });
  for (int item : items)
    if (item != 1) return false;
  return true;
}

bool many_forks(ce::ThreadPool& pool, int forks, bool pauses) {
  bool right = true;
  for (int i = 0; i < forks; ++i) {
    right &= fork_once(pool, i % 40, 1 + i % 3);
    // Longer than workers spin, so that they fall asleep and must be woken.
    if (pauses && i % 20 == 0) std::this_thread::sleep_for(2 * ce::ThreadPool::kIdleTime);
  }
  return right;
}

bool errors_come_back(ce::ThreadPool& pool) {
  try {
    ce::for_each_item(pool, 30, [](int64_t i) {
      if (i % 7 == 3) ce::fail("item ", i);
    });
  } catch (const ce::InvalidArgument&) {
    return fork_once(pool, 30, 1);
  }
  return false;
}

}  // namespace

int main() {
  bool right = true;
  for (int threads : {1, 2, 3, 8}) {
    ce::ThreadPool pool(threads);
    right &= many_forks(pool, 300, threads == 2);
    for (int i = 0; i < 6000; ++i) right &= fork_once(pool, 2, 1);  // workers come late
    right &= errors_come_back(pool);
    bool first = true, second = true;
    std::thread other([&] { first = many_forks(pool, 150, false); });
    second = many_forks(pool, 150, true);
    other.join();
    right &= first && second;
  }
  for (int i = 0; i < 30; ++i) right &= fork_once(*std::make_unique<ce::ThreadPool>(4), i, 1);
  std::printf("%s\n", right ? "right" : "wrong");
  return right ? 0 : 1;
}
