// The two inner loops of the convolutions, both over vectors of sixteen pixels: sums over channels and taps, and sums
// over pixels.
#pragma once

#include "planes.h"

namespace gmk {
namespace GMK_ISA {

// As many sums as there are registers for: with 32 of 64 bytes, 24 leave room for what is multiplied. The shapes decide
// nothing but speed: every sum is one chain of additions.
template <class T> struct Shape {
  static constexpr int count = pack<T>::count;
  static constexpr int channels = count == 1 ? 8 : count == 2 ? 6 : 3, vectors = count == 1 ? 3 : 1;  // to convolve
  static constexpr int outputs = count == 1 ? 6 : 3, inputs = count == 1 ? 4 : count == 2 ? 2 : 1;    // to correlate
};

// sums[c][q] += sum over the channels i and the first seen(i) taps of w x[i][q + offset], for C channels and V vectors
// of pixels. The weights lie in the order in which they are used, C side by side.
template <int C, int V, class T, class Seen>
GMK_INLINE void convolve(const T* x, int64_t plane, const int64_t* offset, int64_t channels, const Seen& seen,
                         const T* w, T* sums) {
  constexpr int row = Shape<T>::vectors * kLanes;
  pack<T> sum[C][V];
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[c][v] = load(sums + c * row + v * kLanes);
  for (int64_t i = 0; i < channels; ++i, x += plane) {
    const int taps = seen(i);
    for (int t = 0; t < taps; ++t, w += C) {
      const T* p = x + offset[t];
      pack<T> pixels[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) pixels[v] = load(p + v * kLanes);
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

// sums[c][v] += sum over pixels of g[c][q] x[offset[v] + q], lane by lane, for C planes g and V places of x.
template <int C, int V, class T>
GMK_OUTLINE void correlate(const T* g, int64_t plane, const T* x, const int64_t* offset, int64_t pixels,
                           pack<T>* sums) {
  pack<T> sum[C][V];
  const T* from[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) from[v] = x + offset[v];
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[c][v] = sums[c * V + v];
  for (int64_t q = 0; q < pixels; q += kLanes) {
    pack<T> other[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) other[v] = load(from[v] + q);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const pack<T> one = load(g + c * plane + q);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[c][v] = fma(one, other[v], sum[c][v]);
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[c * V + v] = sum[c][v];
}

// Calls f with constants: the least pieces of at most Most, from a number known at run time only.
template <int Most, class F> GMK_INLINE void with_count(int count, const F& f) {
  if constexpr (Most > 1)
    if (count < Most) return with_count<Most - 1>(count, f);
  f(std::integral_constant<int, Most>());
}

// Item i of n cut into ceil(n / most) pieces of nearly the same size.
struct Cut {
  int64_t n, pieces;
  Cut(int64_t count, int64_t most) : n(count), pieces((count + most - 1) / most) {}
  int64_t begin(int64_t i) const { return n * i / pieces; }
  int size(int64_t i) const { return int(begin(i + 1) - begin(i)); }
};

}  // namespace GMK_ISA
}  // namespace gmk
