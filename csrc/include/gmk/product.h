// Products of packed weights with vectors that lie anywhere: for one vector, a walk over the weights of what is not
// zero; for many, tiles that keep their sums in registers. A sum has one order, from its start through the inputs in
// turn, so that it does not matter how many vectors go together.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "gmk/vmath.h"

namespace gmk {
namespace GMK_ISA {
namespace products {

// Packs of outputs, and vectors, that a tile computes together, as registers allow: their sums, the weights and a
// factor. (Larger ones are no faster: with AVX-512 these reach nine tenths of what the processor can multiply.)
#if defined(__AVX512F__)
template <class T> constexpr int kPacks = sizeof(T) == 4 ? 4 : 2;
constexpr int kTile = 4;
#elif defined(__AVX2__)
template <class T> constexpr int kPacks = sizeof(T) == 4 ? 2 : 1;
constexpr int kTile = 3;
#else
template <class T> constexpr int kPacks = 1;
constexpr int kTile = 4;
#endif

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Hands out aligned pieces of a block of memory; of a block at nullptr, only its size is of interest.
class Arena {
  char* const base;
  int64_t used = 0;

 public:
  explicit Arena(void* memory) : base(reinterpret_cast<char*>(round_up(reinterpret_cast<int64_t>(memory), 64))) {}
  // One pack more than asked for, so that the last of a vector can be read whole.
  template <class T> T* take(int64_t count) {
    const int64_t at = used;
    used += round_up((count + kLanes) * int64_t(sizeof(T)), 64);
    return reinterpret_cast<T*>(base + at);
  }
  int64_t bytes() const { return used + 64; }
};

// Weights in strips of kPacks packs of outputs, the last as narrow as it can be; in a strip, one input after another.
template <class T> struct Matrix {
  int64_t outputs = 0, inputs = 0;
  T *weight = nullptr, *bias = nullptr;

  Matrix() = default;
  Matrix(Arena& arena, int64_t o, int64_t i) : outputs(o), inputs(i) {
    weight = arena.take<T>(round_up(o, kLanes) * i);
    bias = arena.take<T>(o);
  }
  // value(output, input)
  template <class Value> void fill(const Value& value, const T* biases) {
    T* to = weight;
    for (int64_t strip = 0; strip < outputs; strip += kPacks<T> * kLanes) {
      const int64_t width = std::min<int64_t>(kPacks<T> * kLanes, round_up(outputs - strip, kLanes));
      for (int64_t i = 0; i < inputs; ++i)
        for (int64_t o = strip; o < strip + width; ++o) *to++ = o < outputs ? value(o, i) : T(0);
    }
    for (int64_t o = 0; o < outputs; ++o) bias[o] = biases ? biases[o] : T(0);
  }
};

// Inputs one after another in pieces; vector m has each piece m * step further on.
template <class T> struct Piece {
  const T* at;
  int64_t count;
};
template <class T> struct Input {
  const Piece<T>* pieces;
  int count;
  int64_t step;
};

// Where sums begin and go, vector m at m * step. `add` is added to the finished sum, if there is one.
template <class T> struct Output {
  const T* start;
  int64_t start_step;
  T* to;
  int64_t step;
  const T* add = nullptr;
  int64_t add_step = 0;
  bool relu = false;
};

template <class T> GMK_INLINE pack<T> relu(const pack<T>& x) { return max(x, pack<T>(T(0))); }

template <class T> GMK_INLINE void finish(const Output<T>& out, int64_t m, int64_t o, int64_t left, pack<T> sum) {
  if (out.add) sum = sum + load(out.add + m * out.add_step + o);
  if (out.relu) sum = relu(sum);
  T* to = out.to + m * out.step + o;
  if (left >= kLanes)
    store(to, sum);
  else
    store_n(to, sum, int(left));
}

template <class T, int M, int V>
GMK_INLINE void tile(const Input<T>& in, int64_t first, const T* w, const Output<T>& out, int64_t o, int64_t outputs) {
  pack<T> sum[M][V];
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) sum[m][v] = load(out.start + (first + m) * out.start_step + o + v * kLanes);
  for (int p = 0; p < in.count; ++p) {
    const T* x = in.pieces[p].at + first * in.step;
    for (int64_t k = 0; k < in.pieces[p].count; ++k, ++x, w += V * kLanes) {
      // One vector alone waits for weights from a far cache, and what the processor fetches of itself ends with a page.
      if constexpr (M == 1)
        for (int v = 0; v < V; ++v) __builtin_prefetch(w + 16 * V * kLanes + v * kLanes);
      pack<T> column[V];
      for (int v = 0; v < V; ++v) column[v] = load(w + v * kLanes);
      for (int m = 0; m < M; ++m) {
        const pack<T> factor(x[m * in.step]);
        for (int v = 0; v < V; ++v) sum[m][v] = fma(factor, column[v], sum[m][v]);
      }
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) finish(out, first + m, o + v * kLanes, outputs - o - v * kLanes, sum[m][v]);
}

template <class T, int V>
GMK_INLINE void strip(const Input<T>& in, int64_t vectors, const T* w, const Output<T>& out, int64_t o,
                      int64_t outputs) {
  int64_t m = 0;
  for (; m + kTile <= vectors; m += kTile) tile<T, kTile, V>(in, m, w, out, o, outputs);
  if (m + 2 <= vectors) tile<T, 2, V>(in, m, w, out, o, outputs), m += 2;
  if (m < vectors) tile<T, 1, V>(in, m, w, out, o, outputs);
}

// body(packs of the strip, its weights, its first output) for each strip
template <class T, class Body> GMK_INLINE void strips(const Matrix<T>& w, const Body& body) {
  const T* at = w.weight;
  int64_t o = 0;
  const auto next = [&](auto packs) {
    body(packs, at, o);
    at += w.inputs * packs.value * kLanes;
    o += packs.value * kLanes;
  };
  while (w.outputs - o > (kPacks<T> - 1) * kLanes) next(std::integral_constant<int, kPacks<T>>());
  if constexpr (kPacks<T> > 3)
    if (w.outputs - o > 2 * kLanes) return next(std::integral_constant<int, 3>());
  if constexpr (kPacks<T> > 2)
    if (w.outputs - o > kLanes) return next(std::integral_constant<int, 2>());
  if constexpr (kPacks<T> > 1)
    if (w.outputs - o > 0) next(std::integral_constant<int, 1>());
}

template <class T>
GMK_OUTLINE void product(const Matrix<T>& w, const Input<T>& in, int64_t vectors, const Output<T>& out) {
  strips(w, [&](auto packs, const T* at, int64_t o) {
    strip<T, decltype(packs)::value>(in, vectors, at, out, o, w.outputs);
  });
}

// The inputs of one vector that are above zero, and their places: after relu, about half.
template <class T> struct Positive {
  std::vector<T> value;
  std::vector<int32_t> place;
  int64_t count = 0;

  void find(const Input<T>& in) {
    int64_t total = 0;
    for (int p = 0; p < in.count; ++p) total += in.pieces[p].count;
    if (int64_t(value.size()) < total + kLanes) value.resize(total + kLanes), place.resize(total + kLanes);
    count = 0;
    int32_t before = 0;
    for (int p = 0; p < in.count; ++p) {
      const T* x = in.pieces[p].at;
      int64_t k = 0;
#if defined(__AVX512F__)
      if constexpr (sizeof(T) == 4) {
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for (; k + kLanes <= in.pieces[p].count; k += kLanes) {
          const __m512 v = _mm512_loadu_ps(x + k);
          const __mmask16 some = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_GT_OQ);
          _mm512_storeu_ps(value.data() + count, _mm512_maskz_compress_ps(some, v));
          const __m512i at = _mm512_add_epi32(lanes, _mm512_set1_epi32(before + int32_t(k)));
          _mm512_storeu_si512(place.data() + count, _mm512_maskz_compress_epi32(some, at));
          count += __builtin_popcount(some);
        }
      }
#endif
      for (; k < in.pieces[p].count; ++k) {
        value[count] = x[k];
        place[count] = before + int32_t(k);
        count += x[k] > T(0);
      }
      before += int32_t(in.pieces[p].count);
    }
  }
};

// One vector, of which only what is above zero counts. A product with zero adds nothing, so leaving it out changes no
// bit of a sum.
template <class T> GMK_OUTLINE void product(const Matrix<T>& w, const Positive<T>& in, const Output<T>& out) {
  strips(w, [&](auto packs, const T* at, int64_t o) {
    constexpr int V = decltype(packs)::value;
    pack<T> sum[V];
    for (int v = 0; v < V; ++v) sum[v] = load(out.start + o + v * kLanes);
    for (int64_t k = 0; k < in.count; ++k) {
      const T* row = at + int64_t(in.place[k]) * (V * kLanes);
      const pack<T> factor(in.value[k]);
      for (int v = 0; v < V; ++v) sum[v] = fma(factor, load(row + v * kLanes), sum[v]);
    }
    for (int v = 0; v < V; ++v) finish(out, 0, o + v * kLanes, w.outputs - o - v * kLanes, sum[v]);
  });
}

}  // namespace products
}  // namespace GMK_ISA
}  // namespace gmk
