// Threads: torch's own pool, found at run time, so that torch.set_num_threads is honoured and no second OpenMP runtime
// enters the process. Work is cut by the problem's size, never by the thread count: a task computes the same bits
// whichever thread runs it.
#pragma once

#include <cstdint>
#include <exception>
#include <mutex>

namespace gmk {

using TaskRange = void (*)(int64_t begin, int64_t end, void* context);

// Runs body over [0, tasks) in contiguous ranges; serially when tasks <= grain, and in a forked child (whose copy of
// the pool has no threads left).
void parallel_ranges(int64_t tasks, int64_t grain, TaskRange body, void* context);

const char* pool_name();

// Runs body(begin, end) for contiguous ranges of [0, tasks); the first exception of any of them is rethrown here.
template <class F> void parallel_over(int64_t tasks, const F& body, int64_t grain = 1) {
  struct Shared {
    const F& body;
    std::mutex mutex;
    std::exception_ptr error;
  } shared{body, {}, nullptr};
  parallel_ranges(
      tasks, grain,
      [](int64_t begin, int64_t end, void* context) {
        auto& s = *static_cast<Shared*>(context);
        try {
          s.body(begin, end);
        } catch (...) {
          std::lock_guard<std::mutex> lock(s.mutex);
          if (!s.error) s.error = std::current_exception();
        }
      },
      &shared);
  if (shared.error) std::rethrow_exception(shared.error);
}

// Runs task(i) for i in [0, tasks).
template <class F> void parallel_for(int64_t tasks, const F& task, int64_t grain = 1) {
  parallel_over(
      tasks,
      [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) task(i);
      },
      grain);
}

}  // namespace gmk
