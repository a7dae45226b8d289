// Storage types to compute types and back: float and double as they are, float16 and bfloat16 through float.
#pragma once

#include <algorithm>

#include "gmk/abi.h"
#include "gmk/simd.h"

namespace gmk {
namespace GMK_ISA {

GMK_INLINE float from_bf16(uint16_t h) {
  const uint32_t u = uint32_t(h) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

// Round to nearest even; NaN stays NaN.
GMK_INLINE uint16_t to_bf16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return f != f ? uint16_t(0x7fc0) : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

#if defined(__F16C__)
GMK_INLINE float from_f16(uint16_t h) { return _cvtsh_ss(h); }
GMK_INLINE uint16_t to_f16(float f) { return _cvtss_sh(f, 0); }
#else
GMK_INLINE float from_f16(uint16_t h) {
  // The exponent and fraction, moved into place, scaled by 2^112: denormals come out right because the product is
  // exact.
  const uint32_t magnitude = uint32_t(h & 0x7fff) << 13, sign = uint32_t(h & 0x8000) << 16;
  float f;
  std::memcpy(&f, &magnitude, 4);
  f *= 0x1p112f;
  uint32_t u;
  std::memcpy(&u, &f, 4);
  if ((h & 0x7c00) == 0x7c00) u |= 0x7f800000;  // infinity, NaN
  u |= sign;
  std::memcpy(&f, &u, 4);
  return f;
}
GMK_INLINE uint16_t to_f16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  const uint16_t sign = uint16_t(u >> 16 & 0x8000);
  u &= 0x7fffffff;
  if (u > 0x7f800000) return uint16_t(sign | 0x7e00 | (u >> 13 & 0x3ff));
  if (u >= 0x477ff000) return uint16_t(sign | 0x7c00);  // 65520 and above round to infinity
  if (u < 0x38800000) {                                 // below 2^-14: add 0.5, whose last bit is worth 2^-24
    float a;
    std::memcpy(&a, &u, 4);
    a += 0.5f;
    std::memcpy(&u, &a, 4);
    return uint16_t(sign | (u - 0x3f000000));
  }
  return uint16_t(sign | ((u - 0x38000000 + 0xfff + (u >> 13 & 1)) >> 13));
}
#endif

GMK_INLINE int64_t dtype_size(int32_t dtype) { return dtype == GMK_F64 ? 8 : dtype == GMK_F32 ? 4 : 2; }
template <class T> constexpr int32_t dtype_of() { return sizeof(T) == 8 ? GMK_F64 : GMK_F32; }

// The steps that are rare, out of the way of the others: with them inside, read() is too long to be inlined where its
// step is known.
template <class T, class S, class F> GMK_OUTLINE void read_apart(T* dst, const S* p, int64_t step, int64_t n, F value) {
  if (step == 0 && n > 0)
    std::fill_n(dst, n, T(value(p[0])));
  else
    for (int64_t k = 0; k < n; ++k) dst[k] = T(value(p[k * step]));
}

// dst[k] = src[start + k * step] for k < n.
template <class T> void read(T* dst, const void* src, int32_t dtype, int64_t start, int64_t step, int64_t n) {
  const auto run = [&](auto* p, auto&& value) {
    p += start;
    // The two common steps are spelled out so that they are vectorised: side by side, and interleaved with another.
    if (step == 1)
      for (int64_t k = 0; k < n; ++k) dst[k] = T(value(p[k]));
    else if (step == 2)
      for (int64_t k = 0; k < n; ++k) dst[k] = T(value(p[2 * k]));
    else
      read_apart(dst, p, step, n, value);
  };
  switch (dtype) {
    case GMK_F32: return run(static_cast<const float*>(src), [](float v) { return v; });
    case GMK_F64: return run(static_cast<const double*>(src), [](double v) { return v; });
    case GMK_F16: return run(static_cast<const uint16_t*>(src), [](uint16_t v) { return from_f16(v); });
    default: return run(static_cast<const uint16_t*>(src), [](uint16_t v) { return from_bf16(v); });
  }
}

// dst[start + k] = src[k] for k < n.
template <class T> void write(void* dst, int32_t dtype, int64_t start, const T* src, int64_t n) {
  switch (dtype) {
    case GMK_F32:
      for (int64_t k = 0; k < n; ++k) static_cast<float*>(dst)[start + k] = float(src[k]);
      return;
    case GMK_F64:
      for (int64_t k = 0; k < n; ++k) static_cast<double*>(dst)[start + k] = double(src[k]);
      return;
    case GMK_F16:
      for (int64_t k = 0; k < n; ++k) static_cast<uint16_t*>(dst)[start + k] = to_f16(float(src[k]));
      return;
    default:
      for (int64_t k = 0; k < n; ++k) static_cast<uint16_t*>(dst)[start + k] = to_bf16(float(src[k]));
      return;
  }
}

}  // namespace GMK_ISA
}  // namespace gmk
