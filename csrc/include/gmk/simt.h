// simd.h on one lane, for CUDA: the same names, so that vmath.h and philox.h are written once. Every operation is the
// round-to-nearest instruction, which the compiler never contracts, and gives the bits of the C++ core.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#undef GMK_ISA
#define GMK_ISA     cuda
#define GMK_INLINE  __device__ __forceinline__
#define GMK_OUTLINE GMK_INLINE

namespace gmk {
namespace GMK_ISA {

constexpr int kLanes = 1;

template <class T> struct pack {
  using scalar = T;
  T v;
  pack() = default;
  GMK_INLINE pack(T x) : v(x) {}
};
using f32 = pack<float>;
using f64 = pack<double>;
using i32 = pack<int32_t>;
using u32 = pack<uint32_t>;
template <class T> using mask_of = pack<bool>;

GMK_INLINE float sum(float a, float b) { return __fadd_rn(a, b); }
GMK_INLINE double sum(double a, double b) { return __dadd_rn(a, b); }
GMK_INLINE float difference(float a, float b) { return __fsub_rn(a, b); }
GMK_INLINE double difference(double a, double b) { return __dsub_rn(a, b); }
GMK_INLINE float product(float a, float b) { return __fmul_rn(a, b); }
GMK_INLINE double product(double a, double b) { return __dmul_rn(a, b); }
GMK_INLINE float quotient(float a, float b) { return __fdiv_rn(a, b); }
GMK_INLINE double quotient(double a, double b) { return __ddiv_rn(a, b); }
template <class T> GMK_INLINE T sum(T a, T b) { return T(std::make_unsigned_t<T>(a) + std::make_unsigned_t<T>(b)); }
template <class T> GMK_INLINE T difference(T a, T b) {
  return T(std::make_unsigned_t<T>(a) - std::make_unsigned_t<T>(b));
}
template <class T> GMK_INLINE T conjunction(T a, T b) { return a & b; }
template <class T> GMK_INLINE T exclusive(T a, T b) { return a ^ b; }

#define GMK_BINARY(OP, NAME)                                                                                        \
  template <class T> GMK_INLINE pack<T> operator OP(pack<T> a, pack<T> b) { return NAME(a.v, b.v); }                \
  template <class T> GMK_INLINE pack<T> operator OP(pack<T> a, typename pack<T>::scalar b) { return NAME(a.v, b); } \
  template <class T> GMK_INLINE pack<T> operator OP(typename pack<T>::scalar a, pack<T> b) { return NAME(a, b.v); }
GMK_BINARY(+, sum)
GMK_BINARY(-, difference)
GMK_BINARY(*, product)
GMK_BINARY(/, quotient)
GMK_BINARY(&, conjunction)
GMK_BINARY(^, exclusive)
#undef GMK_BINARY

#define GMK_COMPARE(OP)                                                                             \
  template <class T> GMK_INLINE pack<bool> operator OP(pack<T> a, pack<T> b) { return a.v OP b.v; } \
  template <class T> GMK_INLINE pack<bool> operator OP(pack<T> a, typename pack<T>::scalar b) { return a.v OP b; }
GMK_COMPARE(<)
GMK_COMPARE(>)
GMK_COMPARE(>=)
GMK_COMPARE(==)
#undef GMK_COMPARE

template <class T> GMK_INLINE pack<T> operator-(pack<T> a) { return -a.v; }
template <class T> GMK_INLINE pack<T> operator<<(pack<T> a, int n) { return T(std::make_unsigned_t<T>(a.v) << n); }
template <class T> GMK_INLINE pack<T> operator>>(pack<T> a, int n) { return T(a.v >> n); }

template <class T> GMK_INLINE pack<T> select(pack<bool> m, pack<T> a, pack<T> b) { return m.v ? a : b; }

template <class To, class From> GMK_INLINE pack<To> bits(pack<From> a) {
  static_assert(sizeof(To) == sizeof(From), "same width");
  if constexpr (sizeof(To) == 8 && std::numeric_limits<From>::is_integer)
    return To(__longlong_as_double(a.v));
  else if constexpr (sizeof(To) == 8)
    return To(__double_as_longlong(a.v));
  else if constexpr (std::numeric_limits<From>::is_integer)
    return To(__int_as_float(a.v));
  else
    return To(__float_as_int(a.v));
}
template <class To, class From> GMK_INLINE pack<To> convert(pack<From> a) { return To(a.v); }

GMK_INLINE f32 fma(f32 a, f32 b, f32 c) { return __fmaf_rn(a.v, b.v, c.v); }
GMK_INLINE f32 sqrt(f32 a) { return __fsqrt_rn(a.v); }
GMK_INLINE f64 sqrt(f64 a) { return __dsqrt_rn(a.v); }
GMK_INLINE f32 abs(f32 a) { return fabsf(a.v); }
GMK_INLINE f64 abs(f64 a) { return fabs(a.v); }
GMK_INLINE f32 copysign(f32 a, f32 s) { return copysignf(a.v, s.v); }
// The second operand when they compare equal or one is NaN.
template <class T> GMK_INLINE pack<T> min(pack<T> a, pack<T> b) { return select<T>(a < b, a, b); }
template <class T> GMK_INLINE pack<T> max(pack<T> a, pack<T> b) { return select<T>(a > b, a, b); }

template <class T> GMK_INLINE pack<T> load(const T* p) { return *p; }
template <class T> GMK_INLINE void store(T* p, pack<T> a) { *p = a.v; }

GMK_INLINE uint64_t mul32(uint64_t a, uint32_t m) { return uint64_t(uint32_t(a)) * m; }
GMK_INLINE pack<uint64_t> mul32(pack<uint64_t> a, uint32_t m) { return mul32(a.v, m); }

}  // namespace GMK_ISA
}  // namespace gmk
