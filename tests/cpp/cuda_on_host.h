// Enough of CUDA's device intrinsics for a C++ compiler to run the one-lane formulas of gmk/simt.h without a GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define __CUDACC__ 1
#define __device__
#define __forceinline__ inline

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }

template <class To, class From> To same_bits(From from) {
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline float __int_as_float(int32_t a) { return same_bits<float>(a); }
inline int32_t __float_as_int(float a) { return same_bits<int32_t>(a); }
inline double __longlong_as_double(int64_t a) { return same_bits<double>(a); }
inline int64_t __double_as_longlong(double a) { return same_bits<int64_t>(a); }
