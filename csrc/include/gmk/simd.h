// Sixteen lanes of float, double, int or unsigned, whatever the machine's vectors are.
//
// Every kernel is written once over pack<T> and compiled once per instruction set (GMK_ISA names the namespace, so that
// the copies of an inline function never meet at link time). A pack is a few native vectors; since its lane count is
// fixed, sums run in the same order on SSE2, AVX2, AVX-512 and NEON and give the same bits. Nothing is contracted by
// the compiler (-ffp-contract=off): a fused multiply-add is written fma(), and is fused everywhere, in software if need
// be.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#ifndef GMK_ISA
#define GMK_ISA baseline
#endif
#if defined(__x86_64__) && !defined(__FMA__)
#define GMK_INLINE inline  // there an fma is sixteen library calls: inlining it all only makes the build slow
#define GMK_LAMBDA
#else
#define GMK_INLINE inline __attribute__((always_inline))
#define GMK_LAMBDA __attribute__((always_inline))  // GMK_INLINE after the parameters of a lambda
#endif
#define GMK_OUTLINE inline __attribute__((noinline))  // long and never hot: built once, not at every use

namespace gmk {
namespace GMK_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = 16;

template <class T> struct native;
#define GMK_NATIVE(T, MASK)                                              \
  template <> struct native<T> {                                         \
    typedef T type __attribute__((vector_size(kVectorBytes)));           \
    using mask = MASK;                                                   \
    static constexpr int count = kLanes * int(sizeof(T)) / kVectorBytes; \
    static constexpr int width = kVectorBytes / int(sizeof(T));          \
  };
GMK_NATIVE(float, int32_t)
GMK_NATIVE(double, int64_t)
GMK_NATIVE(int32_t, int32_t)
GMK_NATIVE(uint32_t, int32_t)
GMK_NATIVE(int64_t, int64_t)
GMK_NATIVE(uint64_t, int64_t)
#undef GMK_NATIVE

template <class T> struct pack {
  using scalar = T;
  using vector = typename native<T>::type;
  static constexpr int count = native<T>::count;
  vector v[count];

  pack() = default;
  static GMK_INLINE pack of(const vector& first) {  // of a single native vector
    pack r;
    r.v[0] = first;
    return r;
  }
  GMK_INLINE pack(T x) {  // broadcast
    for (int i = 0; i < count; ++i) v[i] = x - vector{};
  }
};
using f32 = pack<float>;
using f64 = pack<double>;
using i32 = pack<int32_t>;
using u32 = pack<uint32_t>;
template <class T> using mask_of = pack<typename native<T>::mask>;

#define GMK_BINARY(OP)                                                                                                 \
  template <class T> GMK_INLINE pack<T> operator OP(pack<T> a, const pack<T>& b) {                                     \
    for (int i = 0; i < a.count; ++i) a.v[i] = a.v[i] OP b.v[i];                                                       \
    return a;                                                                                                          \
  }                                                                                                                    \
  template <class T> GMK_INLINE pack<T> operator OP(pack<T> a, typename pack<T>::scalar b) { return a OP pack<T>(b); } \
  template <class T> GMK_INLINE pack<T> operator OP(typename pack<T>::scalar a, pack<T> b) { return pack<T>(a) OP b; }
GMK_BINARY(+)
GMK_BINARY(-)
GMK_BINARY(*)
GMK_BINARY(/)
GMK_BINARY(&)
GMK_BINARY(|)
GMK_BINARY(^)
#undef GMK_BINARY

#define GMK_COMPARE(OP)                                                                                \
  template <class T> GMK_INLINE mask_of<T> operator OP(const pack<T>& a, const pack<T>& b) {           \
    mask_of<T> m;                                                                                      \
    for (int i = 0; i < a.count; ++i) m.v[i] = a.v[i] OP b.v[i];                                       \
    return m;                                                                                          \
  }                                                                                                    \
  template <class T> GMK_INLINE mask_of<T> operator OP(const pack<T>& a, typename pack<T>::scalar b) { \
    return a OP pack<T>(b);                                                                            \
  }
GMK_COMPARE(<)
GMK_COMPARE(<=)
GMK_COMPARE(>)
GMK_COMPARE(>=)
GMK_COMPARE(==)
GMK_COMPARE(!=)
#undef GMK_COMPARE

template <class T> GMK_INLINE pack<T>& operator+=(pack<T>& a, const pack<T>& b) { return a = a + b; }
template <class T> GMK_INLINE pack<T>& operator-=(pack<T>& a, const pack<T>& b) { return a = a - b; }
template <class T> GMK_INLINE pack<T> operator-(pack<T> a) {
  for (int i = 0; i < a.count; ++i) a.v[i] = -a.v[i];
  return a;
}
template <class T> GMK_INLINE pack<T> operator<<(pack<T> a, int n) {
  for (int i = 0; i < a.count; ++i) a.v[i] = a.v[i] << n;
  return a;
}
template <class T> GMK_INLINE pack<T> operator>>(pack<T> a, int n) {
  for (int i = 0; i < a.count; ++i) a.v[i] = a.v[i] >> n;
  return a;
}

// a where the mask is set, b elsewhere.
template <class T> GMK_INLINE pack<T> select(const mask_of<T>& m, pack<T> a, const pack<T>& b) {
  for (int i = 0; i < a.count; ++i) a.v[i] = m.v[i] ? a.v[i] : b.v[i];
  return a;
}
template <class T> GMK_INLINE pack<T> select(const mask_of<T>& m, typename pack<T>::scalar a, const pack<T>& b) {
  return select(m, pack<T>(a), b);
}
template <class T> GMK_INLINE pack<T> select(const mask_of<T>& m, const pack<T>& a, typename pack<T>::scalar b) {
  return select(m, a, pack<T>(b));
}

// Reinterpret the bits (same element size).
template <class To, class From> GMK_INLINE pack<To> bits(const pack<From>& a) {
  static_assert(sizeof(To) == sizeof(From), "same width");
  pack<To> r;
  for (int i = 0; i < r.count; ++i) r.v[i] = (typename pack<To>::vector)a.v[i];
  return r;
}
// Convert the values (same element size; truncates towards zero).
template <class To, class From> GMK_INLINE pack<To> convert(const pack<From>& a) {
  static_assert(sizeof(To) == sizeof(From), "same width");
  pack<To> r;
  for (int i = 0; i < r.count; ++i) r.v[i] = __builtin_convertvector(a.v[i], typename pack<To>::vector);
  return r;
}

GMK_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
GMK_INLINE double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
template <class T> GMK_INLINE pack<T> fma(const pack<T>& a, const pack<T>& b, pack<T> c) {
  for (int i = 0; i < c.count; ++i) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      c.v[i] = _mm512_fmadd_ps(a.v[i], b.v[i], c.v[i]);
    else
      c.v[i] = _mm512_fmadd_pd(a.v[i], b.v[i], c.v[i]);
#elif defined(__FMA__)
    if constexpr (sizeof(T) == 4)
      c.v[i] = _mm256_fmadd_ps(a.v[i], b.v[i], c.v[i]);
    else
      c.v[i] = _mm256_fmadd_pd(a.v[i], b.v[i], c.v[i]);
#else
    typename pack<T>::vector r = c.v[i];
    for (int l = 0; l < native<T>::width; ++l) r[l] = fma(T(a.v[i][l]), T(b.v[i][l]), T(r[l]));
    c.v[i] = r;
#endif
  }
  return c;
}
template <class T> GMK_INLINE pack<T> fma(const pack<T>& a, const pack<T>& b, T c) { return fma(a, b, pack<T>(c)); }
template <class T> GMK_INLINE pack<T> fma(const pack<T>& a, T b, const pack<T>& c) { return fma(a, pack<T>(b), c); }
template <class T> GMK_INLINE pack<T> fma(const pack<T>& a, T b, T c) { return fma(a, pack<T>(b), pack<T>(c)); }

// The 64-bit product of each lane's low 32 bits with m: one instruction on x86, where a full 64-bit product is several.
GMK_INLINE uint64_t mul32(uint64_t a, uint32_t m) { return uint64_t(uint32_t(a)) * m; }
GMK_INLINE pack<uint64_t> mul32(pack<uint64_t> a, uint32_t m) {
  for (int i = 0; i < a.count; ++i) {
#if defined(__AVX512F__)
    a.v[i] = (pack<uint64_t>::vector)_mm512_maskz_mul_epu32(0xFF, (__m512i)a.v[i], _mm512_set1_epi64(m));
#elif defined(__AVX2__)
    a.v[i] = (pack<uint64_t>::vector)_mm256_mul_epu32((__m256i)a.v[i], _mm256_set1_epi64x(m));
#else
    a.v[i] = (a.v[i] & 0xFFFFFFFFu) * uint64_t(m);
#endif
  }
  return a;
}

template <class T> GMK_INLINE pack<T> sqrt(pack<T> a) {
  for (int i = 0; i < a.count; ++i)
    for (int l = 0; l < native<T>::width; ++l) a.v[i][l] = std::sqrt(T(a.v[i][l]));
  return a;
}

template <class T> GMK_INLINE pack<T> abs(const pack<T>& a) {
  using M = typename native<T>::mask;
  return bits<T>(bits<M>(a) & std::numeric_limits<M>::max());
}
// |a| with the sign of s, bit for bit.
template <class T> GMK_INLINE pack<T> copysign(const pack<T>& a, const pack<T>& s) {
  using M = typename native<T>::mask;
  return bits<T>((bits<M>(a) & std::numeric_limits<M>::max()) | (bits<M>(s) & std::numeric_limits<M>::min()));
}
// The second operand when they compare equal or one is NaN, as the machine instruction does.
#if defined(__AVX512F__) || defined(__AVX2__)
#if defined(__AVX512F__)
#define GMK_NATIVE_CALL(NAME, SUFFIX, A, B) _mm512_##NAME##_##SUFFIX(A, B)
#else
#define GMK_NATIVE_CALL(NAME, SUFFIX, A, B) _mm256_##NAME##_##SUFFIX(A, B)
#endif
#define GMK_MIN_MAX(NAME)                                                   \
  template <class T> GMK_INLINE pack<T> NAME(pack<T> a, const pack<T>& b) { \
    for (int i = 0; i < a.count; ++i) {                                     \
      if constexpr (sizeof(T) == 4)                                         \
        a.v[i] = GMK_NATIVE_CALL(NAME, ps, a.v[i], b.v[i]);                 \
      else                                                                  \
        a.v[i] = GMK_NATIVE_CALL(NAME, pd, a.v[i], b.v[i]);                 \
    }                                                                       \
    return a;                                                               \
  }
GMK_MIN_MAX(min)
GMK_MIN_MAX(max)
#undef GMK_MIN_MAX
#undef GMK_NATIVE_CALL
#else
template <class T> GMK_INLINE pack<T> min(const pack<T>& a, const pack<T>& b) { return select<T>(a < b, a, b); }
template <class T> GMK_INLINE pack<T> max(const pack<T>& a, const pack<T>& b) { return select<T>(a > b, a, b); }
#endif

// Vector by vector: of several at once, as AVX2 needs, GCC copies halves through memory, and waits for them.
template <class T> GMK_INLINE pack<T> load(const T* p) {
  pack<T> r;
  for (int i = 0; i < r.count; ++i) std::memcpy(&r.v[i], p + i * native<T>::width, sizeof r.v[i]);
  return r;
}
template <class T> GMK_INLINE void store(T* p, const pack<T>& a) {
  for (int i = 0; i < a.count; ++i) std::memcpy(p + i * native<T>::width, &a.v[i], sizeof a.v[i]);
}

// The first n lanes (0 <= n <= 16) of memory, zeros beyond; nothing past them is touched.
template <class T> GMK_INLINE pack<T> load_n(const T* p, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return bits<T>(pack<float>::of(_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p)));
#endif
  T x[kLanes] = {};
  for (int l = 0; l < n; ++l) x[l] = p[l];
  return load(x);
}
template <class T> GMK_INLINE void store_n(T* p, const pack<T>& a, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), bits<float>(a).v[0]);
#endif
  T x[kLanes];
  store(x, a);
  for (int l = 0; l < n; ++l) p[l] = x[l];
}

// The lane numbers 0 .. 15.
template <class T> GMK_INLINE pack<T> iota() {
  constexpr T x[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load(x);
}

// The low halves of sixteen 64-bit lanes: of lanes 2j and 2j + 1, then 8 + 2j and 9 + 2j, for j = 0 .. 3. That order
// costs one instruction for two vectors.
GMK_INLINE u32 low_words(const pack<uint64_t>& a) {
  u32 r;
  for (int i = 0; i < r.count; ++i) {
#if defined(__AVX512F__)
    r.v[i] = (u32::vector)_mm512_shuffle_ps((__m512)a.v[i], (__m512)a.v[i + 1], 0x88);
#elif defined(__AVX2__)
    r.v[i] = (u32::vector)_mm256_shuffle_ps((__m256)a.v[i], (__m256)a.v[i + r.count], 0x88);
#else
    for (int l = 0; l < 4; ++l) r.v[i][l] = uint32_t(a.v[i + (l / 2) * r.count][l % 2]);
#endif
  }
  return r;
}

// out[4 c + k] = a[k][p], where c = 4 (p mod 4) + p div 4: sixteen groups of four, out of lanes in the order that lets
// them change places inside 128 bits.
template <class T> GMK_INLINE void interleave(const pack<T> (&a)[4], T* out) {
#if defined(__AVX512F__) || defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    pack<T> r[4];
    for (int i = 0; i < r[0].count; ++i) {
      using V = typename pack<T>::vector;
#if defined(__AVX512F__)
#define GMK_UNPACK(HALF, KIND, A, B) _mm512_unpack##HALF##_##KIND(A, B)
      using S = __m512;
      using D = __m512d;
#else
#define GMK_UNPACK(HALF, KIND, A, B) _mm256_unpack##HALF##_##KIND(A, B)
      using S = __m256;
      using D = __m256d;
#endif
      const D ab_low = (D)GMK_UNPACK(lo, ps, (S)a[0].v[i], (S)a[1].v[i]);
      const D ab_high = (D)GMK_UNPACK(hi, ps, (S)a[0].v[i], (S)a[1].v[i]);
      const D cd_low = (D)GMK_UNPACK(lo, ps, (S)a[2].v[i], (S)a[3].v[i]);
      const D cd_high = (D)GMK_UNPACK(hi, ps, (S)a[2].v[i], (S)a[3].v[i]);
      r[0].v[i] = (V)GMK_UNPACK(lo, pd, ab_low, cd_low);
      r[1].v[i] = (V)GMK_UNPACK(hi, pd, ab_low, cd_low);
      r[2].v[i] = (V)GMK_UNPACK(lo, pd, ab_high, cd_high);
      r[3].v[i] = (V)GMK_UNPACK(hi, pd, ab_high, cd_high);
#undef GMK_UNPACK
    }
    for (int k = 0; k < 4; ++k) store(out + k * kLanes, r[k]);
    return;
  }
#endif
  T x[4][kLanes];
  for (int k = 0; k < 4; ++k) store(x[k], a[k]);
  for (int p = 0; p < kLanes; ++p)
    for (int k = 0; k < 4; ++k) out[4 * (4 * (p % 4) + p / 4) + k] = x[k][p];
}

// The sum of the lanes, halves folded onto each other: (l, l + 8), (l, l + 4), (l, l + 2), (l, l + 1).
template <class T> GMK_INLINE T fold(const pack<T>& a) {
#if defined(__AVX2__) || defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {  // in registers: through memory, every step would wait for the last
#if defined(__AVX512F__)
    const __m256 eight = _mm512_castps512_ps256(a.v[0]) + _mm512_extractf32x8_ps(a.v[0], 1);
#else
    const __m256 eight = a.v[0] + a.v[1];
#endif
    const __m128 four = _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
    const __m128 two = four + _mm_movehl_ps(four, four);
    return two[0] + two[1];
  }
#endif
  T x[kLanes];
  store(x, a);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) x[l] += x[l + half];
  return x[0];
}

}  // namespace GMK_ISA
}  // namespace gmk
