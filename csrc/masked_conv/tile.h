// The two inner loops of the convolutions, both over vectors of sixteen pixels: sums over channels and taps, and sums
// over pixels.
#pragma once

#include <utility>

#include "ahead.h"
#include "margins.h"

namespace gmk {
namespace GMK_ISA {

// As many sums as there are registers for: with 32 of 64 bytes, 24 leave room for what is multiplied. The shapes decide
// nothing but speed: every sum is one chain of additions.
template <class T> struct Shape {
  static constexpr int count = pack<T>::count;
  static constexpr int channels = count == 1 ? 8 : count == 2 ? 6 : 3, vectors = count == 1 ? 3 : 1;  // to convolve
  static constexpr int outputs = count <= 2 ? 6 : 3, inputs = count == 1 ? 4 : 1;                     // to correlate
};

// Which of the taps an input channel has: all, or all but the last where it is not among `begin` .. `end`.
struct Seen {
  const int64_t* offset;
  int64_t begin, end;
  int taps;
  int operator()(int64_t channel) const { return std::max(0, taps - (channel < begin || channel >= end)); }
};

// sums[c * row + q] = start[c] + sum over the channels i and their taps of w x[i][q + offset], for C channels and V
// vectors of pixels, where `lanes` begin. The weights lie in the order in which they are used, C side by side.
template <int C, int V, class T>
GMK_INLINE void convolve(const T* start, const T* x, int64_t plane, int64_t channels, const Seen seen, const T* w,
                         const Lanes<T>* lanes, int64_t width, T* sums, int64_t row, const Soon soon) {
  pack<T> sum[C][V];
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[c][v] = pack<T>(start[c]);
  for (int64_t i = 0; i < channels; ++i, x += plane) {
    soon.ask(i);
    const int taps = seen(i);
    for (int t = 0; t < taps; ++t, w += C) {
      const T* p = x + seen.offset[t];
      pack<T> pixels[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) pixels[v] = lanes[v * width + t].of(p + v * kLanes);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        const pack<T> weight(w[c]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[c][v] = fma(pixels[v], weight, sum[c][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(sums + c * row + v * kLanes, sum[c][v]);
}

// Calls f with the constants 0 .. N - 1. What nothing else indexes stays in registers; after loops, even unrolled ones,
// GCC keeps a copy of it in memory, which costs short sums as much as adding them up.
template <class F, int... I> GMK_INLINE void each_constant(const F& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>()), ...);
}
template <int N, class F> GMK_INLINE void each_constant(const F& f) {
  each_constant(f, std::make_integer_sequence<int, N>());
}

// fold() of N packs at once.
template <int N, class T> GMK_INLINE void fold_each(const pack<T>* from, T* to) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4 && N > 4) {  // two halves of vectors in the place of one, four times
    each_constant<(N + 15) / 16>([&](auto block) GMK_LAMBDA {
      constexpr int order[16] = {0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15}, k = block() * 16;
      __m512 x[16];
      each_constant<16>([&](auto i) GMK_LAMBDA {
        if constexpr (k + order[i()] < N)
          x[i()] = (__m512)from[k + order[i()]].v[0];
        else
          x[i()] = _mm512_setzero_ps();
      });
      each_constant<8>([&](auto i) GMK_LAMBDA {
        x[i()] = _mm512_shuffle_f32x4(x[i()], x[i() + 8], 0x44) + _mm512_shuffle_f32x4(x[i()], x[i() + 8], 0xEE);
      });
      each_constant<4>([&](auto i) GMK_LAMBDA {
        x[i()] = _mm512_shuffle_f32x4(x[i()], x[i() + 4], 0x88) + _mm512_shuffle_f32x4(x[i()], x[i() + 4], 0xDD);
      });
      each_constant<2>([&](auto i) GMK_LAMBDA {
        x[i()] = _mm512_shuffle_ps(x[i()], x[i() + 2], 0x44) + _mm512_shuffle_ps(x[i()], x[i() + 2], 0xEE);
      });
      x[0] = _mm512_shuffle_ps(x[0], x[1], 0x88) + _mm512_shuffle_ps(x[0], x[1], 0xDD);
      store_n(to + k, pack<T>::of(x[0]), N - k < 16 ? N - k : 16);
    });
    return;
  }
#endif
  each_constant<N>([&](auto k) GMK_LAMBDA { to[k()] = fold(from[k()]); });
}

// sums[c][v] (+)= sum over pixels of g[c][q] x[offset[v] + q], for C planes g and V places of x, whose `lanes` lie side
// by side; `fresh`: there is nothing yet to be added to.
template <int C, int V, class T>
GMK_OUTLINE void correlate(const T* g, int64_t plane, const T* x, const int64_t* offset, const Lanes<T>* lanes,
                           int64_t width, int64_t pixels, bool fresh, T* sums) {
  pack<T> sum[C * V];
  const T* from[V];
  each_constant<V>([&](auto v) GMK_LAMBDA { from[v()] = x + offset[v()]; });
  each_constant<C * V>([&](auto k) GMK_LAMBDA { sum[k()] = pack<T>(T(0)); });
  for (int64_t q = 0; q < pixels; q += kLanes, lanes += width) {
    pack<T> other[V];
    each_constant<V>([&](auto v) GMK_LAMBDA { other[v()] = lanes[v()].of(from[v()] + q); });
    each_constant<C>([&](auto c) GMK_LAMBDA {
      const pack<T> one = load(g + c() * plane + q);
      each_constant<V>([&](auto v) GMK_LAMBDA { sum[c() * V + v()] = fma(one, other[v()], sum[c() * V + v()]); });
    });
  }
  T found[C * V];
  fold_each<C * V>(sum, found);
  for (int k = 0; k < C * V; ++k) sums[k] = fresh ? found[k] : sums[k] + found[k];
}

// Calls f with constants: the least pieces of at most Most, from a number known at run time only.
template <int Most, class F> GMK_INLINE void with_count(int count, const F& f) {
  if constexpr (Most > 1)
    if (count < Most) return with_count<Most - 1>(count, f);
  f(std::integral_constant<int, Most>());
}

}  // namespace GMK_ISA
}  // namespace gmk
