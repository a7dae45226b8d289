#include <string>

#include "gmk/abi.h"
#include "gmk/cuda.h"

namespace {
thread_local std::string last_error;
}

int gmk::cuda_status(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return 0;
  cudaGetLastError();  // a launch error is sticky until read
  last_error = std::string(what) + ": " + cudaGetErrorString(error);
  return 1;
}

extern "C" const char* gmk_last_error(void) { return last_error.c_str(); }

extern "C" int gmk_cuda_available(void) {
  int devices = 0;
  if (gmk::cuda_status(cudaGetDeviceCount(&devices), "looking for a GPU") != 0) return 1;
  return devices > 0 ? 0 : gmk::cuda_status(cudaErrorNoDevice, "looking for a GPU");
}
