#include "gmk/parallel.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace gmk {
namespace {

using TorchParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, TaskRange body, void* context);

std::atomic<bool> in_forked_child{false};

// The symbol is part of torch's stable C interface since 2.10. RTLD_NOLOAD: torch is there already or not at all.
TorchParallelFor find_torch() {
#if defined(__APPLE__)
  const char* library = "libtorch_cpu.dylib";
#else
  const char* library = "libtorch_cpu.so";
#endif
  void* handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
  return handle ? reinterpret_cast<TorchParallelFor>(dlsym(handle, "torch_parallel_for")) : nullptr;
}

TorchParallelFor torch_parallel_for() {
  static const TorchParallelFor found = [] {
    pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });
    return find_torch();
  }();
  return found;
}

// Without torch (tests of the bare core) a few threads are started for each call.
void own_threads(int64_t tasks, int64_t grain, TaskRange body, void* context) {
  const int64_t most = std::max<int64_t>(1, std::thread::hardware_concurrency());
  const int64_t count = std::min(most, (tasks + grain - 1) / grain);
  std::vector<std::thread> threads;
  for (int64_t t = 1; t < count; ++t) threads.emplace_back(body, tasks * t / count, tasks * (t + 1) / count, context);
  body(0, tasks / count, context);
  for (auto& thread : threads) thread.join();
}

}  // namespace

const char* pool_name() { return torch_parallel_for() ? "torch" : "own threads"; }

void parallel_ranges(int64_t tasks, int64_t grain, TaskRange body, void* context) {
  if (tasks <= 0) return;
  const TorchParallelFor torch = torch_parallel_for();
  if (tasks <= grain || in_forked_child) {
    body(0, tasks, context);
  } else if (!torch) {
    own_threads(tasks, grain, body, context);
  } else {
    torch(0, tasks, grain, body, context);  // never fails: the body catches its own exceptions
  }
}

}  // namespace gmk
