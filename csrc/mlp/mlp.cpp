// Whole multilayer perceptrons, by themselves or as conditioners of couplings: one call forward, one backward. Between
// layers nothing leaves the cache, and threads meet once, where weights have been packed (backward a second time,
// before the sums over the batch).
#include <array>
#include <memory>
#include <numeric>

#include "gmk/dispatch.h"
#include "gmk/parallel.h"
#include "gmk/product.h"
#include "rowwise.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using products::Arena;
using products::kPacks;
using products::kTile;
using products::Matrix;
using products::Piece;
using products::product;
using products::round_up;
template <class T> using Source = products::Input<T>;
template <class T> using Target = products::Output<T>;
using Args = gmk_mlp_args;

// Elements to pack, or multiplications: with fewer, threads cost more than they save.
constexpr int64_t kSmall = 1 << 14;

// Memory that a thread keeps from call to call, because fresh memory costs a page fault for every page.
class Scratch {
  static constexpr int64_t kKept = int64_t(16) << 20;
  std::unique_ptr<char[]> memory;
  int64_t size = 0;

 public:
  char* of(int64_t bytes) {
    if (bytes > size) memory.reset(), memory.reset(new char[bytes]), size = bytes;
    return memory.get();
  }
  void shrink() {
    if (size > kKept) memory.reset(), size = 0;
  }
};

// One strip of packed weights: columns o of W, or rows of W if `natural`, as Matrix has them.
template <class T>
void pack_strip(T* to, const T* w, int64_t o, int64_t width, int64_t outputs, int64_t inputs, bool natural) {
  const int64_t real = std::min(width, outputs - o);
  if (natural) {  // W is (inputs, outputs) here
    for (int64_t i = 0; i < inputs; ++i, to += width) {
      std::memcpy(to, w + i * outputs + o, size_t(real) * sizeof(T));
      std::fill(to + real, to + width, T(0));
    }
    return;
  }
  for (int64_t begin = 0; begin < inputs; begin += kLanes) {
    const int64_t end = std::min<int64_t>(begin + kLanes, inputs);
    for (int64_t r = 0; r < width; ++r) {
      const T* row = w + (o + r) * inputs;
      for (int64_t i = begin; i < end; ++i) to[i * width + r] = r < real ? row[i] : T(0);
    }
  }
}

template <class T, int kind> struct Mlp {
  using P = pack<T>;
  using A = Activation<T, kind>;
  const Args& a;
  std::array<int64_t, GMK_MLP_LAYERS + 1> offset{};  // of a layer's output among what is kept of a sample
  int64_t hidden = 0;                                // how much that is
  Couple<T> couple{};
  const T* input;                            // what the perceptron reads
  int64_t kept = 0, changed = 0, count = 0;  // of a coupling: where both parts begin, and how many numbers change

  explicit Mlp(const Args& args) : a(args), input(static_cast<const T*>(args.x)) {
    for (int64_t l = 1; l < a.layers + (a.split ? 1 : 0); ++l) offset[l] = hidden, hidden += a.widths[l];
    if (!a.split) return;
    couple = couple_by<T>(a.scale_map);
    count = a.widths[a.layers] / 2;
    a.split > 0 ? changed = a.split : kept = count;
    input += kept;
  }
  const T* weight(int64_t l) const { return static_cast<const T*>(a.weight[l]); }
  int64_t work() const {
    int64_t sum = 0;
    for (int64_t l = 0; l < a.layers; ++l) sum += a.widths[l] * a.widths[l + 1];
    return sum;
  }

  // Weights of the layers in turn; the product takes a sample from width to width, backwards if `natural`.
  std::array<Matrix<T>, GMK_MLP_LAYERS> matrices(Arena& arena, bool natural) const {
    std::array<Matrix<T>, GMK_MLP_LAYERS> w;
    for (int64_t l = 0; l < a.layers; ++l)
      w[l] = natural ? Matrix<T>(arena, a.widths[l], a.widths[l + 1]) : Matrix<T>(arena, a.widths[l + 1], a.widths[l]);
    return w;
  }
  void pack_all(std::array<Matrix<T>, GMK_MLP_LAYERS>& w, bool natural, bool first) const {
    struct Strip {
      int64_t layer, o, width;
      T* to;
    };
    std::vector<Strip> todo;
    for (int64_t l = first ? 0 : 1; l < a.layers; ++l) {
      const T* bias = natural ? nullptr : static_cast<const T*>(a.bias[l]);
      for (int64_t o = 0; o < w[l].outputs; ++o) w[l].bias[o] = bias ? bias[o] : T(0);
      T* to = w[l].weight;
      for (int64_t o = 0; o < w[l].outputs; o += kPacks<T> * kLanes) {
        const int64_t width = std::min<int64_t>(kPacks<T> * kLanes, round_up(w[l].outputs - o, kLanes));
        todo.push_back({l, o, width, to});
        to += width * w[l].inputs;
      }
    }
    parallel_for(
        int64_t(todo.size()),
        [&](int64_t i) {
          const Strip& s = todo[i];
          pack_strip(s.to, weight(s.layer), s.o, s.width, w[s.layer].outputs, w[s.layer].inputs, natural);
        },
        work() < kSmall ? int64_t(todo.size()) : 1);
  }

  // body(first row, rows) for shares of the batch
  template <class Body> void each_share(const Body& body) const {
    const int64_t tiles = (a.batch + kTile - 1) / kTile;
    struct Shared {
      const Body& body;
      int64_t batch;
    } shared{body, a.batch};
    parallel_ranges(
        tiles, a.batch * work() < kSmall ? tiles : 1,
        [](int64_t begin, int64_t end, void* context) {
          const auto& s = *static_cast<Shared*>(context);
          const int64_t first = begin * kTile;
          s.body(first, std::min(end * kTile, s.batch) - first);
        },
        &shared);
  }

  // What every number of a coupling's result is multiplied by and shifted by afterwards, if it is.
  struct Norm {
    T* gain;
    const T* shift;
    T logdet = T(0);
  };
  Norm norm(Arena& arena) const {
    return {a.norm_log_scale ? arena.take<T>(a.features + kLanes) : nullptr, static_cast<const T*>(a.norm_shift)};
  }
  void fill(Norm& n) const {
    if (!n.gain) return;
    RowSum<T> sum;
    walk(a.features, [&](int64_t i, int lanes) {
      const P log_scale = get(static_cast<const T*>(a.norm_log_scale) + i, lanes);
      put(n.gain + i, lanes, exp(log_scale));
      sum.add(int(i / kLanes % GMK_ISA::kPacks), lanes, log_scale);
    });
    n.logdet = sum.total();
  }

  void forward() const {
    thread_local Scratch mine;
    Arena size(nullptr);
    matrices(size, false), norm(size);
    Arena arena(mine.of(size.bytes()));
    auto w = matrices(arena, false);
    Norm after = norm(arena);
    pack_all(w, false, true), fill(after);
    int64_t widest = 0;
    for (int64_t l = 1; l < a.layers; ++l) widest = std::max(widest, a.widths[l]);
    each_share([&](int64_t first, int64_t rows) {
      thread_local Scratch own;
      T* active = reinterpret_cast<T*>(own.of((rows * widest + kLanes) * int64_t(sizeof(T))));
      Piece<T> piece{input + first * a.x_step, a.widths[0]};
      int64_t step = a.x_step;
      for (int64_t l = 0; l < a.layers; ++l) {
        const bool last = l + 1 == a.layers, outside = last && !a.split;
        const int64_t width = a.widths[l + 1], to_step = outside ? width : hidden;
        T* to = outside ? static_cast<T*>(a.out) + first * width
                        : static_cast<T*>(a.hidden) + first * hidden + offset[l + 1];
        product(w[l], Source<T>{&piece, 1, step}, rows, Target<T>{w[l].bias, 0, to, to_step});
        if (last) break;
        for (int64_t b = 0; b < rows; ++b)
          walk(width, [&](int64_t i, int lanes) {
            put(active + b * width + i, lanes, A::value(get(to + b * to_step + i, lanes)));
          });
        piece = {active, width}, step = width;
      }
      if (a.split) transform(first, rows, after);
      own.shrink();
    });
    mine.shrink();
  }

  // The coupling itself, for some samples.
  void transform(int64_t first, int64_t rows, const Norm& after) const {
    const T c = scale_constant<T>(a.scale_map, a.clamp);
    for (int64_t b = first; b < first + rows; ++b) {
      const T* x = static_cast<const T*>(a.x) + b * a.x_step;
      const T* s = static_cast<const T*>(a.hidden) + b * hidden + offset[a.layers];
      T* y = static_cast<T*>(a.out) + b * a.features;
      std::copy_n(x + kept, a.widths[0], y + kept);
      static_cast<T*>(a.out_logdet)[b] =
          couple.forward(x + changed, s, s + count, count, c, a.inverse != 0, y + changed) + after.logdet;
      if (after.gain)
        walk(a.features, [&](int64_t i, int lanes) {
          put(y + i, lanes, fma(get(y + i, lanes), get(after.gain + i, lanes), get(after.shift + i, lanes)));
        });
    }
  }
  // Its gradients: by log-scale and shift into `slopes`, by what it transforms into out_x. `grad` and `along` are those
  // by the coupling's result, and their products with it, if these are needed.
  void transform_backward(int64_t first, int64_t rows, const T* grad, int64_t grad_step, T* slopes, T* along) const {
    const T c = scale_constant<T>(a.scale_map, a.clamp);
    for (int64_t b = first; b < first + rows; ++b) {
      const T* x = static_cast<const T*>(a.x) + b * a.x_step;
      const T* s = static_cast<const T*>(a.hidden) + b * hidden + offset[a.layers];
      const T* g = grad + b * grad_step;
      T *ds = slopes + b * hidden + offset[a.layers], *gy = along ? along + b * a.features : nullptr;
      couple.backward(g + changed, static_cast<const T*>(a.grad_logdet)[b], x + changed, s, s + count, count, c,
                      a.inverse != 0, a.out_x ? static_cast<T*>(a.out_x) + b * a.features + changed : nullptr, ds,
                      ds + count, gy ? gy + changed : nullptr);
      if (gy)
        walk(a.widths[0], [&](int64_t i, int lanes) {
          put(gy + kept + i, lanes, get(g + kept + i, lanes) * get(x + kept + i, lanes));
        });
    }
  }

  // sums over the batch: out[m][i] = sum of g[b][m] h[b][i], for M rows and V packs, of which `lanes` numbers count
  template <int M, int V>
  GMK_INLINE void outer(const T* g, int64_t g_step, const T* h, int64_t h_step, int64_t left, T* out,
                        int64_t out_step) const {
    P sum[M][V];
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) sum[m][v] = P(T(0));
    const int whole = int(std::min<int64_t>(V, left / kLanes)), rest = int(left - whole * kLanes);
    for (int64_t b = 0; b < a.batch; ++b, g += g_step, h += h_step) {
      P row[V];
      if (whole == V)
        for (int v = 0; v < V; ++v) row[v] = load(h + v * kLanes);
      else
        for (int v = 0; v < V; ++v)
          row[v] = v < whole ? load(h + v * kLanes) : v == whole ? load_n(h + v * kLanes, rest) : P(T(0));
      for (int m = 0; m < M; ++m) {
        const P factor(g[m]);
        for (int v = 0; v < V; ++v) sum[m][v] = fma(factor, row[v], sum[m][v]);
      }
    }
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) {
        T* to = out + m * out_step + v * kLanes;
        if (v < whole)
          store(to, sum[m][v]);
        else if (v == whole && rest)
          store_n(to, sum[m][v], rest);
      }
  }
  template <int M>
  GMK_INLINE void outer_rows(const T* g, int64_t g_step, const T* h, int64_t h_step, int64_t inputs, T* out) const {
    int64_t i = 0;
    for (; inputs - i > (kPacks<T> - 1) * kLanes; i += kPacks<T> * kLanes)
      outer<M, kPacks<T>>(g, g_step, h + i, h_step, inputs - i, out + i, inputs);
    for (; i < inputs; i += kLanes) outer<M, 1>(g, g_step, h + i, h_step, inputs - i, out + i, inputs);
  }

  void backward() const {
    thread_local Scratch mine;
    const int64_t stored = a.batch * hidden + kLanes;
    const int64_t scaled_size = a.norm_log_scale ? a.batch * a.features + kLanes : 0;
    struct Kept {
      T *active, *slopes;  // of every hidden number: its activation, and the gradient by it
      T *scaled, *along;   // the gradient by what the coupling gives, and its product with that
    };
    const auto lay_out = [&](Arena& arena) {
      return Kept{arena.take<T>(stored), arena.take<T>(stored), arena.take<T>(scaled_size),
                  arena.take<T>(a.out_norm_log_scale ? scaled_size : 0)};
    };
    Arena size(nullptr);
    lay_out(size), matrices(size, true), norm(size);
    Arena arena(mine.of(size.bytes()));
    const Kept k = lay_out(arena);
    auto w = matrices(arena, true);
    Norm after = norm(arena);
    pack_all(w, true, a.out_x != nullptr), fill(after);
    const T* grad = after.gain ? k.scaled : static_cast<const T*>(a.grad);
    const int64_t grad_step = after.gain ? a.features : a.grad_step;
    T *active = k.active, *slopes = k.slopes, *along = a.out_norm_log_scale ? k.along : nullptr;
    each_share([&](int64_t first, int64_t rows) {
      if (after.gain)
        for (int64_t b = first; b < first + rows; ++b)
          walk(a.features, [&](int64_t i, int lanes) {
            const P g = get(static_cast<const T*>(a.grad) + b * a.grad_step + i, lanes);
            put(k.scaled + b * a.features + i, lanes, g * get(after.gain + i, lanes));
          });
      if (a.split) transform_backward(first, rows, grad, grad_step, slopes, along);
      for (int64_t l = a.layers - 1; l >= (a.out_x ? 0 : 1); --l) {
        const bool outside = l + 1 == a.layers && !a.split;
        const int64_t width = a.widths[l], from_step = outside ? grad_step : hidden;
        const Piece<T> piece{outside ? grad + first * grad_step : slopes + first * hidden + offset[l + 1],
                             a.widths[l + 1]};
        const Source<T> from{&piece, 1, from_step};
        if (l == 0) {
          const int64_t step = a.split ? a.features : width;
          Target<T> to{w[0].bias, 0, static_cast<T*>(a.out_x) + first * step + kept, step};
          if (a.split) to.add = grad + first * grad_step + kept, to.add_step = grad_step;
          product(w[0], from, rows, to);
          break;
        }
        T* to = slopes + first * hidden + offset[l];
        product(w[l], from, rows, Target<T>{w[l].bias, 0, to, hidden});
        const T* before = static_cast<const T*>(a.hidden) + first * hidden + offset[l];
        T* after = active + first * hidden + offset[l];
        for (int64_t b = 0; b < rows; ++b)
          walk(width, [&](int64_t i, int lanes) {
            const int64_t at = b * hidden + i;
            const P x = get(before + at, lanes), h = A::value(x);
            put(after + at, lanes, h);
            put(to + at, lanes, get(to + at, lanes) * A::slope(x, h));
          });
      }
    });
    sums(active, slopes, along);
    mine.shrink();
  }

  // Sums over the batch of some of the numbers that its samples have side by side.
  P column(const T* from, int64_t step, int lanes) const {
    P sum(T(0));
    for (int64_t b = 0; b < a.batch; ++b) sum = sum + get(from + b * step, lanes);
    return sum;
  }

  // Gradients by weights and biases, and by what follows the coupling.
  void sums(const T* active, const T* slopes, const T* along) const {
    constexpr int64_t kRows = 4, kNorm = -1;
    struct Block {
      int64_t layer, row;
    };
    std::vector<Block> todo;
    if (a.out_norm_log_scale || a.out_norm_shift)
      for (int64_t i = 0; i < a.features; i += kLanes) todo.push_back({kNorm, i});
    for (int64_t l = 0; l < a.layers; ++l)
      if (a.out_weight[l] || a.out_bias[l])
        for (int64_t o = 0; o < a.widths[l + 1]; o += kLanes) todo.push_back({l, o});
    parallel_for(
        int64_t(todo.size()),
        [&](int64_t t) {
          const auto [l, row] = todo[t];
          if (l == kNorm) {
            const int lanes = int(std::min<int64_t>(kLanes, a.features - row));
            const auto* logdet = static_cast<const T*>(a.grad_logdet);
            if (a.out_norm_log_scale)
              put(static_cast<T*>(a.out_norm_log_scale) + row, lanes,
                  column(along + row, a.features, lanes) + P(std::accumulate(logdet, logdet + a.batch, T(0))));
            if (a.out_norm_shift)
              put(static_cast<T*>(a.out_norm_shift) + row, lanes,
                  column(static_cast<const T*>(a.grad) + row, a.grad_step, lanes));
            return;
          }
          const bool outside = l + 1 == a.layers && !a.split;
          const int64_t outputs = a.widths[l + 1], inputs = a.widths[l], end = std::min(row + kLanes, outputs);
          const int64_t g_step = outside ? a.grad_step : hidden, h_step = l ? hidden : a.x_step;
          const T* g = outside ? static_cast<const T*>(a.grad) : slopes + offset[l + 1];
          const T* h = l ? active + offset[l] : input;
          if (a.out_weight[l]) {
            T* out = static_cast<T*>(a.out_weight[l]);
            int64_t o = row;
            for (; o + kRows <= end; o += kRows) outer_rows<kRows>(g + o, g_step, h, h_step, inputs, out + o * inputs);
            for (; o < end; ++o) outer_rows<1>(g + o, g_step, h, h_step, inputs, out + o * inputs);
          }
          if (a.out_bias[l]) {
            const int lanes = int(end - row);
            put(static_cast<T*>(a.out_bias[l]) + row, lanes, column(g + row, g_step, lanes));
          }
        },
        a.batch * work() < kSmall ? int64_t(todo.size()) : 1);
  }
};

template <class T, class F> void with_activation(const Args& a, const F& f) {
  if (a.activation == GMK_RELU) return f(Mlp<T, GMK_RELU>(a));
  if (a.activation == GMK_SILU) return f(Mlp<T, GMK_SILU>(a));
  f(Mlp<T, GMK_TANH_ACTIVATION>(a));
}
template <class F> int with_type(const Args& a, const F& f) {
  if (a.dtype == GMK_F32)
    with_activation<float>(a, f);
  else
    with_activation<double>(a, f);
  return 0;
}

}  // namespace

int mlp(const Args& a) {
  return with_type(a, [](const auto& net) { net.forward(); });
}
int mlp_backward(const Args& a) {
  return with_type(a, [](const auto& net) { net.backward(); });
}

}  // namespace GMK_ISA
}  // namespace gmk
