// What the kernels of the CUDA core share: status codes with a sentence, and the shape of a grid.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace gmk {

// 0, or the error kept for gmk_last_error(); `what` names the step that failed.
int cuda_status(cudaError_t error, const char* what);

constexpr int kThreads = 256;
// Blocks for that many independent items; kernels stride over the grid, so a few per multiprocessor are enough.
inline unsigned blocks_for(int64_t items) {
  const int64_t needed = (items + kThreads - 1) / kThreads;
  return unsigned(needed < 4096 ? needed : 4096);
}

}  // namespace gmk
