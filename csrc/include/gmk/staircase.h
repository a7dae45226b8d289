// Products over matrices of which each row has its own length: what masked layers leave of their weights when units
// come in order of degree. Batches lie with their samples in lanes, a few packs of them together: a weight is then one
// number that meets them all, and rows of weights are read as they lie in memory, as far as they go.
//
// A sum has one order, through its terms in turn, so that tiles, strips and threads do not change a bit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "gmk/parallel.h"
#include "gmk/simd.h"

namespace gmk {
namespace GMK_ISA {
namespace staircase {

// Rows and packs of samples that a tile computes together, as registers allow.
#if defined(__AVX512F__)
constexpr int kRows = 6;
template <class T> constexpr int kPacks = sizeof(T) == 4 ? 4 : 2;
#elif defined(__AVX2__)
constexpr int kRows = 3;
template <class T> constexpr int kPacks = sizeof(T) == 4 ? 2 : 1;
#else
constexpr int kRows = 2;
template <class T> constexpr int kPacks = 1;
#endif

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Element (r, k) of a matrix is at at[r * row + k * column].
template <class T> struct View {
  const T* at;
  int64_t row, column;
  View from(int64_t r, int64_t k) const { return {at + r * row + k * column, row, column}; }
};

template <class T, int R, int V> GMK_INLINE void tile(T* sums, View<T> w, const T* x, int64_t step, int64_t n) {
  pack<T> sum[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) sum[r][v] = load(sums + (r * V + v) * kLanes);
  for (int64_t k = 0; k < n; ++k, w.at += w.column, x += step) {
    pack<T> lanes[V];
    for (int v = 0; v < V; ++v) lanes[v] = load(x + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const pack<T> factor(w.at[r * w.row]);
      for (int v = 0; v < V; ++v) sum[r][v] = fma(factor, lanes[v], sum[r][v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(sums + (r * V + v) * kLanes, sum[r][v]);
}

// sums[r] += sum over k < n of w(r, k) * x[k], for V packs of lanes; rows of sums are V packs apart, those of x `step`.
template <class T, int V>
GMK_OUTLINE void product(T* sums, int64_t rows, View<T> w, const T* x, int64_t step, int64_t n) {
  if (n <= 0) return;
  const auto next = [&](auto count) {
    constexpr int R = decltype(count)::value;
    tile<T, R, V>(sums, w, x, step, n);
    sums += R * V * kLanes, w.at += R * w.row, rows -= R;
  };
  while (rows >= kRows) next(std::integral_constant<int, kRows>());
  if constexpr (kRows > 4)
    if (rows >= 4) next(std::integral_constant<int, 4>());
  if constexpr (kRows > 2)
    if (rows >= 2) next(std::integral_constant<int, 2>());
  if (rows) next(std::integral_constant<int, 1>());
}

// body(number of packs as a constant)
template <class T, class Body> GMK_INLINE void with_packs(int64_t packs, const Body& body) {
  if constexpr (kPacks<T> > 3)
    if (packs == 4) return body(std::integral_constant<int, 4>());
  if constexpr (kPacks<T> > 2)
    if (packs == 3) return body(std::integral_constant<int, 3>());
  if constexpr (kPacks<T> > 1)
    if (packs == 2) return body(std::integral_constant<int, 2>());
  body(std::integral_constant<int, 1>());
}

// The samples of a batch in strips of so many packs.
struct Strips {
  int64_t batch, packs, each;
  Strips(int64_t samples, int64_t most) : batch(samples), packs(ceil_div(samples, kLanes)) {
    // A batch of few packs is cut in two all the same, so that two threads have something to do.
    each = packs <= most ? std::max<int64_t>(1, ceil_div(packs, 2)) : most;
  }
  int64_t count() const { return ceil_div(packs, each); }
  int64_t width(int64_t strip) const { return std::min(each, packs - strip * each); }
  int64_t first(int64_t strip) const { return strip * each * kLanes; }
  int64_t samples(int64_t strip) const { return std::min(batch - first(strip), width(strip) * kLanes); }
};

// to[f * lanes + b] = from[b * batch_step + f * step], zeros (or any last sample's values never used) beyond the
// samples.
template <class T>
void to_lanes(T* to, int64_t lanes, const T* from, int64_t batch_step, int64_t step, int64_t samples,
              int64_t features) {
  for (int64_t f0 = 0; f0 < features; f0 += 16) {
    const int64_t end = std::min(features, f0 + 16);
    for (int64_t b = 0; b < samples; ++b)
      for (int64_t f = f0; f < end; ++f) to[f * lanes + b] = from[b * batch_step + f * step];
    for (int64_t f = f0; f < end; ++f) std::fill(to + f * lanes + samples, to + (f + 1) * lanes, T(0));
  }
}

// to[b * step + f] = from[f * lanes + b], four features at a time.
template <class T>
void from_lanes(T* to, int64_t step, const T* from, int64_t lanes, int64_t samples, int64_t features) {
  int64_t f = 0;
  for (; f + 4 <= features; f += 4)
    for (int64_t b = 0; b < samples; b += kLanes) {
      T mixed[4 * kLanes];
      const T* at = from + f * lanes + b;
      const pack<T> rows[4] = {load(at), load(at + lanes), load(at + 2 * lanes), load(at + 3 * lanes)};
      interleave(rows, mixed);
      const int64_t some = std::min<int64_t>(kLanes, samples - b);
      for (int64_t p = 0; p < some; ++p)
        std::memcpy(to + (b + p) * step + f, mixed + 4 * (4 * (p % 4) + p / 4), 4 * sizeof(T));
    }
  for (; f < features; ++f)
    for (int64_t b = 0; b < samples; ++b) to[b * step + f] = from[f * lanes + b];
}

// Light blocks and heavy ones in turn, so that threads, which take neighbours, get about the same.
inline int64_t in_turn(int64_t i, int64_t count) { return i % 2 ? count - 1 - i / 2 : i / 2; }

// How many tasks go together, so that no thread is started for less than some thousand multiplications.
inline int64_t grain(int64_t tasks, int64_t work) {
  constexpr int64_t kLeast = 1 << 15;
  return std::max<int64_t>(1, ceil_div(tasks * kLeast, std::max<int64_t>(work, 1)));
}

// out(o, i) = sum over the batch of g(b, o) * x(b, i) for i < seen[o], and 0 for the others.
// Rows of x are `pitch` apart and can be read up to a whole number of packs.
template <class T>
void weight_gradient(T* out, int64_t outputs, int64_t inputs, const T* g, int64_t g_step, const T* x, int64_t pitch,
                     int64_t batch, const int64_t* seen) {
  constexpr int64_t kBlock = 8 * kRows;
  constexpr int V = kPacks<T>;
  const int64_t blocks = ceil_div(outputs, kBlock), width = V * kLanes;
  parallel_for(
      blocks,
      [&](int64_t task) {
        const int64_t first = in_turn(task, blocks) * kBlock, end = std::min(outputs, first + kBlock);
        alignas(64) T sums[kRows * V * kLanes];
        for (int64_t i = 0; i < inputs; i += width) {
          const int64_t packs = std::min<int64_t>(V, ceil_div(inputs - i, kLanes));
          for (int64_t o = first; o < end; o += kRows) {
            const int64_t rows = std::min<int64_t>(kRows, end - o);
            const int64_t most = *std::max_element(seen + o, seen + o + rows);
            if (most > i) {
              std::fill(sums, sums + rows * packs * kLanes, T(0));
              with_packs<T>(packs, [&](auto v) {
                product<T, decltype(v)::value>(sums, rows, View<T>{g + o, 1, g_step}, x + i, pitch, batch);
              });
            }
            for (int64_t r = 0; r < rows; ++r) {
              const int64_t some = std::clamp<int64_t>(seen[o + r] - i, 0, std::min(width, inputs - i));
              T* to = out + (o + r) * inputs + i;
              std::copy(sums + r * packs * kLanes, sums + r * packs * kLanes + some, to);
              std::fill(to + some, to + std::min(width, inputs - i), T(0));
            }
          }
        }
      },
      grain(blocks, outputs * inputs * batch));
}

// out(o) = sum over the batch of g(b, o).
template <class T> void bias_gradient(T* out, int64_t outputs, const T* g, int64_t g_step, int64_t batch) {
  std::fill(out, out + outputs, T(0));
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t o = 0; o < outputs; ++o) out[o] += g[b * g_step + o];
}

}  // namespace staircase
}  // namespace GMK_ISA
}  // namespace gmk
