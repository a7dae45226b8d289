// The random words of units, and whether a binary unit is on: what all kernels of restricted Boltzmann machines share.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "gmk/abi.h"
#include "gmk/parallel.h"
#include "gmk/philox.h"
#include "gmk/vmath.h"

namespace gmk {
namespace GMK_ISA {
namespace rbm {

using u64s = pack<uint64_t>;
constexpr int kWord = 64;  // units in a word of states, and in a block of random words

// ---- random words ---------------------------------------------------------------------------------------------------

// Word unit mod 4 of counter (unit div 4, chain, half-step, low half of the offset), under the seed with the high half
// of the offset added to its own.
struct Stream {
  uint64_t seed;
  uint32_t offset;
  explicit Stream(const int64_t* key)
      : seed(uint64_t(key[0]) + (uint64_t(key[1]) >> 32 << 32)), offset(uint32_t(uint64_t(key[1]))) {}

  // The words of units 64 block .. 64 block + 64 of a chain, in order.
  GMK_INLINE void draw(uint64_t chain, uint64_t half_step, int64_t block, uint32_t* word) const {
    u64s w[4] = {uint64_t(block) * kLanes + iota<uint64_t>(), u64s(chain), u64s(half_step), u64s(uint64_t(offset))};
    philox4x32(w, seed);
    const u64s a = (w[0] & uint64_t(0xFFFFFFFF)) | (w[1] << 32), b = (w[2] & uint64_t(0xFFFFFFFF)) | (w[3] << 32);
#if defined(__AVX512F__)
    const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11),
                  high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    for (int i = 0; i < 2; ++i) {
      _mm512_storeu_si512(word + 32 * i, _mm512_permutex2var_epi64((__m512i)a.v[i], low, (__m512i)b.v[i]));
      _mm512_storeu_si512(word + 32 * i + 16, _mm512_permutex2var_epi64((__m512i)a.v[i], high, (__m512i)b.v[i]));
    }
#else
    uint64_t halves[2][kLanes], both[2 * kLanes];
    store(halves[0], a);
    store(halves[1], b);
    for (int l = 0; l < kLanes; ++l) both[2 * l] = halves[0][l], both[2 * l + 1] = halves[1][l];
    for (int k = 0; k < 2 * kLanes; ++k) word[2 * k] = uint32_t(both[k]), word[2 * k + 1] = uint32_t(both[k] >> 32);
#endif
  }
};

// ---- draws ----------------------------------------------------------------------------------------------------------

// The lanes of a mask as bits, lane 0 the lowest.
template <class M> GMK_INLINE uint32_t mask_bits(const pack<M>& mask) {
  uint32_t found = 0;
  for (int i = 0; i < mask.count; ++i) {
#if defined(__AVX512F__)
    if constexpr (sizeof(M) == 4)
      found |= uint32_t(_mm512_movepi32_mask((__m512i)mask.v[i])) << (16 * i);
    else
      found |= uint32_t(_mm512_movepi64_mask((__m512i)mask.v[i])) << (8 * i);
#elif defined(__AVX2__)
    if constexpr (sizeof(M) == 4)
      found |= uint32_t(_mm256_movemask_ps((__m256)mask.v[i])) << (8 * i);
    else
      found |= uint32_t(_mm256_movemask_pd((__m256d)mask.v[i])) << (4 * i);
#else
    for (int l = 0; l < native<M>::width; ++l) found |= uint32_t(mask.v[i][l] & 1) << (native<M>::width * i + l);
#endif
  }
  return found;
}

// Words as numbers, rounded to nearest.
GMK_INLINE f32 number(const u32& w, float) {
#if defined(__AVX512F__)
  return f32::of(_mm512_cvtepu32_ps((__m512i)w.v[0]));
#else
  return convert<float>(bits<int32_t>(w >> 16)) * 65536.0f + convert<float>(bits<int32_t>(w & 0xFFFFu));
#endif
}
GMK_INLINE f64 number(const u32& w, double) {
  uint32_t word[kLanes];
  double x[kLanes];
  store(word, w);
  for (int l = 0; l < kLanes; ++l) x[l] = double(word[l]);
  return load(x);
}

// exp(-|x|). In float: multiplications and additions that are each rounded once, as in on_single of the definition.
GMK_INLINE f32 exp_minus(const f32& x) {
  const f32 t = min(f32(30.0f), abs(x)) * 1.4426950216293335f;
  const f32 magic = t + 12582912.0f;  // 1.5 * 2^23: rounds to an integer, which is then in the low bits
  const f32 f = t - (magic - 12582912.0f);
  f32 e = f * -0.001326472731307149f + 0.009671512991189957f;
  e = e * f + -0.05550733581185341f;
  e = e * f + 0.24022242426872253f;
  e = e * f + -0.6931470036506653f;
  e = e * f + 1.0f;
  return bits<float>(bits<int32_t>(e) - (bits<int32_t>(magic) << 23));
}
GMK_INLINE f64 exp_minus(const f64& x) { return exp(-abs(x)); }

// Bit l is set where word[l] < floor(2^32 sigmoid(x[l])): looked at from the less likely of the two values, whose
// probability e / (1 + e) keeps its digits. A NaN is nowhere on.
template <class T> GMK_INLINE uint32_t on(const pack<T>& x, const u32& word) {
  const pack<T> e = exp_minus(x);
  const mask_of<T> likely = x >= T(0);
  u32 flip;
  if constexpr (sizeof(T) == 4) {
    flip = bits<uint32_t>(likely);
  } else {
    int64_t wide[kLanes];
    uint32_t narrow[kLanes];
    store(wide, likely);
    for (int l = 0; l < kLanes; ++l) narrow[l] = uint32_t(wide[l]);
    flip = load(narrow);
  }
  const mask_of<T> rare = (number(word ^ flip, T()) + T(1)) * (e + T(1)) <= e * T(4294967296.0);
  return mask_bits(rare) ^ mask_bits(likely);
}

// ---- memory ---------------------------------------------------------------------------------------------------------

// Zeroed rows on cache lines of their own.
template <class T> class Matrix {
  std::unique_ptr<T, void (*)(void*)> memory{nullptr, std::free};

 public:
  int64_t rows = 0, step = 0;
  Matrix() = default;
  Matrix(int64_t n, int64_t columns) : rows(n) {
    constexpr int64_t kWhole = std::max<int64_t>(kLanes, 64 / int64_t(sizeof(T)));  // a cache line, and a pack
    step = (columns + kWhole - 1) / kWhole * kWhole;
    const size_t bytes = std::max<size_t>(64, size_t(rows * step) * sizeof(T));
    memory.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!memory) throw std::bad_alloc();
    std::memset(static_cast<void*>(memory.get()), 0, bytes);
  }
  T* operator[](int64_t row) const { return memory.get() + row * step; }
};

// ---- states ---------------------------------------------------------------------------------------------------------

// A set of units as a list, in order: where the row of each begins, in a matrix whose rows are so many elements apart.
struct List {
  uint32_t* row;
  int64_t count;
};

GMK_INLINE void append(List& list, uint64_t word, int64_t block, uint32_t apart = 1) {
  for (; word; word &= word - 1) list.row[list.count++] = uint32_t(block * kWord + __builtin_ctzll(word)) * apart;
}

GMK_INLINE int64_t blocks_of(int64_t units) { return (units + kWord - 1) / kWord; }
// The units of a block that exist.
GMK_INLINE uint64_t real(int64_t units, int64_t block) {
  const int64_t left = units - block * kWord;
  return left >= kWord ? ~uint64_t(0) : (uint64_t(1) << left) - 1;
}

// A row of zeros and ones as bits; false if there is anything else.
template <class T> bool read_states(const T* states, int64_t units, uint64_t* word) {
  bool good = true;
  for (int64_t b = 0; b < blocks_of(units); ++b) {
    uint64_t found = 0;
    for (int64_t l = 0, n = std::min<int64_t>(kWord, units - b * kWord); l < n; ++l) {
      const T x = states[b * kWord + l];
      found |= uint64_t(x == T(1)) << l;
      good &= (x == T(1)) | (x == T(0));
    }
    word[b] = found;
  }
  return good;
}
template <class T> void write_states(const uint64_t* word, int64_t units, T* states) {
  for (int64_t u = 0; u < units; ++u) states[u] = T(int(word[u / kWord] >> (u % kWord) & 1));
}
inline void read_mask(const uint8_t* mask, int64_t units, uint64_t* word) {
  for (int64_t b = 0; b < blocks_of(units); ++b) {
    word[b] = 0;
    for (int64_t l = 0, n = std::min<int64_t>(kWord, units - b * kWord); l < n; ++l)
      word[b] |= uint64_t(mask[b * kWord + l] != 0) << l;
  }
}

// The largest magnitude, as a bit pattern: infinity or more if a value is not finite.
template <class T> auto largest_bits(const T* x, int64_t n) {
  std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t> most = 0, word;
  for (int64_t k = 0; k < n; ++k) {
    std::memcpy(&word, x + k, sizeof word);
    most = std::max(most, decltype(most)(word << 1));
  }
  return decltype(most)(most >> 1);
}
template <class T> T largest(const T* x, int64_t n) {
  const auto most = largest_bits(x, n);
  T value;
  std::memcpy(&value, &most, sizeof value);
  return value;
}
template <class T> bool finite(const T* x, int64_t n) { return std::isfinite(largest(x, n)); }
// Inverse temperatures, or none: finite, and not negative, or above 0.
template <class T> bool allowed(const T* beta, int64_t n, bool positive) {
  bool good = true;
  for (int64_t c = 0; beta && c < n; ++c)
    good &= std::isfinite(beta[c]) && (positive ? beta[c] > T(0) : beta[c] >= T(0));
  return good;
}

// ---- work -----------------------------------------------------------------------------------------------------------

// How many chains share a sweep over the weights: by the size of the batch alone.
inline int64_t chains_per_task(int64_t chains) {
  const int64_t most = std::max<int64_t>(32, std::min<int64_t>(64, (chains + 7) / 8));
  return std::max<int64_t>(1, std::min(most, (chains + 1) / 2));
}

}  // namespace rbm
}  // namespace GMK_ISA
}  // namespace gmk
