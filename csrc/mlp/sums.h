// Gradients of a perceptron's weights and biases: sums over the batch.
#pragma once

#include <numeric>

#include "layers.h"
#include "rowwise.h"

namespace gmk {
namespace GMK_ISA {
namespace {

constexpr int64_t kLong = 256;  // samples of a large batch
constexpr int64_t kPanels = 4;  // kLanes columns each, put together at a time

template <class T> struct Sums : Layers<T> {
  using P = pack<T>;
  using Layers<T>::Layers, Layers<T>::a, Layers<T>::offset, Layers<T>::hidden, Layers<T>::input, Layers<T>::work;

  // sums over the batch: out[m][i] = sum of g[b][m] h[b][i], for M rows and V packs, of which `lanes` numbers count.
  // What lies `ahead` of g is read next, and is fetched meanwhile.
  template <int M, int V>
  GMK_INLINE void outer(const T* g, int64_t g_step, int64_t ahead, const T* h, int64_t h_step, int64_t left, T* out,
                        int64_t out_step) const {
    P sum[M][V];  // in registers as long as every loop over them is unrolled
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[m][v] = P(T(0));
    const int whole = int(std::min<int64_t>(V, left / kLanes)), rest = int(left - whole * kLanes);
    for (int64_t b = 0; b < a.batch; ++b, g += g_step, h += h_step) {
      __builtin_prefetch(g + ahead, 0, 2);
      P row[V];
      if (whole == V)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) row[v] = load(h + v * kLanes);
      else
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
          row[v] = v < whole ? load(h + v * kLanes) : v == whole ? load_n(h + v * kLanes, rest) : P(T(0));
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const P factor(g[m]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[m][v] = fma(factor, row[v], sum[m][v]);
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        T* to = out + m * out_step + v * kLanes;
        if (v < whole)
          store(to, sum[m][v]);
        else if (v == whole && rest)
          store_n(to, sum[m][v], rest);
      }
  }
  // some rows of it, and columns
  GMK_INLINE void outer_block(const T* g, int64_t g_step, int64_t ahead, int64_t rows, const T* h, int64_t h_step,
                              int64_t columns, T* out, int64_t out_step) const {
    constexpr int kRows = 4;
    const auto wide = [&](auto count, int64_t o) {
      constexpr int M = decltype(count)::value;
      const auto part = [&](auto packs, int64_t i) {
        outer<M, decltype(packs)::value>(g + o, g_step, ahead, h + i, h_step, columns - i, out + o * out_step + i,
                                         out_step);
      };
      int64_t i = 0;
      for (; columns - i > (kPacks<T> - 1) * kLanes; i += kPacks<T> * kLanes)
        part(std::integral_constant<int, kPacks<T>>(), i);
      if constexpr (kPacks<T> > 3)
        if (columns - i > 2 * kLanes) return part(std::integral_constant<int, 3>(), i);
      if constexpr (kPacks<T> > 2)
        if (columns - i > kLanes) return part(std::integral_constant<int, 2>(), i);
      if (columns > i) part(std::integral_constant<int, 1>(), i);
    };
    int64_t o = 0;
    for (; o + kRows <= rows; o += kRows) wide(std::integral_constant<int, kRows>(), o);
    for (; o < rows; ++o) wide(std::integral_constant<int, 1>(), o);
  }

  // Sums over the batch of some of the numbers that its samples have side by side.
  P column(const T* from, int64_t step, int lanes) const {
    P sum(T(0));
    for (int64_t b = 0; b < a.batch; ++b) sum = sum + get(from + b * step, lanes);
    return sum;
  }

  // What a sample's gradient by the last layer's output is to be multiplied by, if it is.
  const T* factor() const { return static_cast<const T*>(a.grad_likelihood); }

  // A layer's gradients are sums of g h over the batch, or by g h: where these lie.
  struct Factors {
    const T *g, *h, *by;
    int64_t g_step, h_step;
    P row(int64_t b, int64_t o, int lanes) const {
      const P found = get(g + b * g_step + o, lanes);
      return by ? P(by[b]) * found : found;
    }
  };
  bool summed_in_blocks(int64_t l) const {
    const int64_t inputs = a.widths[l];
    const int64_t read = inputs * std::max(a.widths[l + 1], a.batch) * int64_t(sizeof(T));
    return a.out_weight[l] && inputs >= kBlockPacks * kLanes && read >= kWide;
  }
  int64_t packed_size(int64_t l) const { return round_up(a.widths[l + 1], kLanes) * a.batch; }

  // Columns row .. of g, kLanes together, and their sums.
  void put_together(int64_t l, int64_t row, const Factors& f, T* to) const {
    const int64_t columns = std::min(kPanels * kLanes, a.widths[l + 1] - row);
    for (int64_t b = 0; b < a.batch; ++b)
      for (int64_t o = 0; o < columns; o += kLanes) {
        __builtin_prefetch(f.g + (b + kAhead) * f.g_step + row + o);
        store(to + o * a.batch + b * kLanes, f.row(b, row + o, int(std::min<int64_t>(kLanes, columns - o))));
      }
    for (int64_t o = 0; a.out_bias[l] && o < columns; o += kLanes) {
      const int lanes = int(std::min<int64_t>(kLanes, columns - o));
      put(static_cast<T*>(a.out_bias[l]) + row + o, lanes, column(to + o * a.batch, kLanes, lanes));
    }
  }

  // Gradients by weights and biases, and by what follows the coupling. In large batches the numbers of a column of g
  // lie on as many pages as there are samples: kLanes columns are put together first, in wide layers into `packed`.
  // `read` is what the first layer reads (if it is nowhere, fill(strip, i, width) makes numbers i .. of all samples),
  // `grad` the gradient by what a perceptron by itself gives.
  template <class Fill>
  void sums(const T* read, int64_t read_step, const T* grad, int64_t grad_step, const T* active, const T* slopes,
            const T* along, T* packed, const Fill& fill) const {
    constexpr int64_t kNorm = -1;
    const auto factors = [&](int64_t l) {
      const bool outside = l + 1 == a.layers && !a.split;
      return Factors{outside ? grad : slopes + offset[l + 1], l ? active + offset[l] : read,
                     outside ? factor() : nullptr, outside ? grad_step : hidden, l ? hidden : read_step};
    };
    struct Block {
      int64_t layer, row;
      T* packed;
    };
    std::vector<Block> todo;
    if (a.out_norm_log_scale || a.out_norm_shift)
      for (int64_t i = 0; i < a.features; i += kLanes) todo.push_back({kNorm, i, nullptr});
    T* room = packed;
    for (int64_t l = 0; l < a.layers; ++l) {
      const bool blocks = summed_in_blocks(l);
      if (a.out_weight[l] || a.out_bias[l])
        for (int64_t o = 0; o < a.widths[l + 1]; o += (blocks ? kPanels : 1) * kLanes)
          todo.push_back({l, o, blocks ? room + o * a.batch : nullptr});
      if (blocks) room += packed_size(l);
    }
    parallel_for(
        int64_t(todo.size()),
        [&](int64_t t) {
          const auto [l, row, together] = todo[size_t(t)];
          if (l == kNorm) return norm_sums(row, along);
          const Factors f = factors(l);
          if (together) return put_together(l, row, f, together);
          const int lanes = int(std::min<int64_t>(kLanes, a.widths[l + 1] - row));
          const T* g = f.g + row;
          int64_t g_step = f.g_step;
          thread_local Scratch own;
          if (a.batch >= kLong || f.by) {
            T* to = reinterpret_cast<T*>(own.of(a.batch * kLanes * int64_t(sizeof(T))));
            for (int64_t b = 0; b < a.batch; ++b) {
              __builtin_prefetch(g + (b + kAhead) * g_step);
              store(to + b * kLanes, f.row(b, row, lanes));
            }
            g = to, g_step = kLanes;
          }
          if (a.out_weight[l])
            outer_block(g, g_step, 0, lanes, f.h, f.h_step, a.widths[l],
                        static_cast<T*>(a.out_weight[l]) + row * a.widths[l], a.widths[l]);
          if (a.out_bias[l]) put(static_cast<T*>(a.out_bias[l]) + row, lanes, column(g, g_step, lanes));
          own.shrink();
        },
        a.batch * work() < kSmall ? int64_t(todo.size()) : 1);

    for (int64_t l = 0; l < a.layers; ++l) {
      if (!summed_in_blocks(l)) continue;
      const Factors f = factors(l);
      const int64_t inputs = a.widths[l], outputs = a.widths[l + 1];
      this->in_blocks(
          inputs, a.batch, outputs,
          [&](T* strip, int64_t i, int64_t width) {
            if (f.h)
              pack_strip(strip, f.h, i, width, inputs, a.batch, f.h_step, true);
            else
              fill(strip, i, width);
          },
          [&](const T* strip, int64_t i, int64_t some, int64_t first, int64_t rows) {
            const int64_t width = round_up(some, kLanes);
            for (int64_t o = first; o < first + rows; o += kLanes)
              outer_block(packed + o * a.batch, kLanes, a.batch * kLanes, std::min<int64_t>(kLanes, outputs - o), strip,
                          width, some, static_cast<T*>(a.out_weight[l]) + o * inputs + i, inputs);
          });
      packed += packed_size(l);
    }
  }
  // Gradients by what the pairs are made of, from those by the pairs.
  void pair_sums(const T* by_pair) const {
    constexpr int64_t kColumns = 8 * kLanes;
    const int64_t width = a.widths[0], tasks = (width + kColumns - 1) / kColumns;
    parallel_for(
        tasks,
        [&](int64_t t) {
          const int64_t o = t * kColumns, columns = std::min(kColumns, width - o);
          T* each = a.out_each ? static_cast<T*>(a.out_each) + o : nullptr;
          for (int64_t r = 0; each && r < a.rows; ++r) std::fill_n(each + r * width, columns, T(0));
          for (int64_t b = 0; b < a.batch / a.rows; ++b) {
            const T* from = by_pair + b * a.rows * width + o;
            if (a.out_x)
              walk(columns, [&](int64_t i, int lanes) {
                P sum(T(0));
                for (int64_t r = 0; r < a.rows; ++r) sum = sum + get(from + r * width + i, lanes);
                put(static_cast<T*>(a.out_x) + b * width + o + i, lanes, sum);
              });
            for (int64_t r = 0; each && r < a.rows; ++r)
              walk(columns, [&](int64_t i, int lanes) {
                T* to = each + r * width + i;
                put(to, lanes, get(to, lanes) + get(from + r * width + i, lanes));
              });
          }
        },
        a.batch * width < kSmall ? tasks : 1);
  }
  void norm_sums(int64_t i, const T* along) const {
    const int lanes = int(std::min<int64_t>(kLanes, a.features - i));
    const auto* logdet = static_cast<const T*>(a.grad_logdet);
    if (a.out_norm_log_scale)
      put(static_cast<T*>(a.out_norm_log_scale) + i, lanes,
          column(along + i, a.features, lanes) + P(std::accumulate(logdet, logdet + a.batch, T(0))));
    if (a.out_norm_shift)
      put(static_cast<T*>(a.out_norm_shift) + i, lanes, column(static_cast<const T*>(a.grad) + i, a.grad_step, lanes));
  }
};

}  // namespace
}  // namespace GMK_ISA
}  // namespace gmk
