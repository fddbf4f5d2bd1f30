// Independent work items over the pool, with errors carried back to the caller.
#pragma once

#include <exception>
#include <mutex>
#include <string>

#include "ce/check.h"
#include "ce/thread_pool.h"

namespace ce {

// body(i) for each i in [0, count), in any order. An exception must not leave a worker: the
// message of the first is thrown here as InvalidArgument, when all items are done.
template <typename Body>
void for_each_item(ThreadPool& pool, int64_t count, const Body& body) {
  std::mutex mutex;
  std::string error;
  pool.parallel_for(count, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      try {
        body(i);
      } catch (const std::exception& problem) {
        const std::lock_guard lock(mutex);
        if (error.empty()) error = problem.what();
      }
    }
  });
  if (!error.empty()) throw InvalidArgument(error);
}

}  // namespace ce
