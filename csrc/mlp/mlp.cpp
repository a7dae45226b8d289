// Whole multilayer perceptrons, by themselves or as conditioners of couplings: one call forward, one backward. Samples
// pass narrow layers one after another, so that nothing leaves the cache between and threads meet once, where weights
// have been packed. Wide layers are computed in blocks of their outputs, since packed as a whole their weights would
// leave the cache. Backward, threads meet once more before the sums over the batch.
#include <array>
#include <memory>
#include <numeric>

#include "gmk/dispatch.h"
#include "gmk/parallel.h"
#include "packing.h"
#include "rowwise.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using products::kPacks;
using products::kTile;
using products::Piece;
using products::product;
template <class T> using Source = products::Input<T>;
template <class T> using Target = products::Output<T>;
using Args = gmk_mlp_args;

// Multiplications: with fewer, threads cost more than they save.
constexpr int64_t kSmall = 1 << 14;
constexpr int64_t kWide = 1 << 18;                      // bytes of a wide layer's weights
constexpr int64_t kLong = 256;                          // samples of a large batch
constexpr int64_t kBlockPacks = 8, kBlockVectors = 64;  // a block of what is packed, and of what it is multiplied by

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

  // Steps of a pass: layers, and the coupling at their end.
  static constexpr int64_t kCouple = -1;
  struct Steps {
    int64_t step[GMK_MLP_LAYERS + 1];
    int count = 0;
    void add(int64_t s) { step[count++] = s; }
  };
  // Where a layer's product reads and writes, in the first sample.
  struct Flow {
    const T* from;
    int64_t step;
    Target<T> to;
  };

  static bool wide(const Matrix<T>& w) {
    return w.outputs >= kBlockPacks * kLanes && w.outputs * w.inputs * int64_t(sizeof(T)) >= kWide;
  }
  // Weights of the layers in turn, for products that take a sample from width to width, backwards if `natural`; those
  // of wide layers have no room.
  std::array<Matrix<T>, GMK_MLP_LAYERS> matrices(Arena& arena, bool natural) const {
    std::array<Matrix<T>, GMK_MLP_LAYERS> w;
    for (int64_t l = 0; l < a.layers; ++l) {
      w[l].outputs = a.widths[natural ? l : l + 1], w[l].inputs = a.widths[natural ? l + 1 : l];
      if (!wide(w[l])) w[l].weight = arena.take<T>(round_up(w[l].outputs, kLanes) * w[l].inputs);
      w[l].bias = arena.take<T>(w[l].outputs);
    }
    return w;
  }

  // Of a matrix, some outputs for some samples.
  void multiply(const Matrix<T>& w, const Flow& flow, int64_t first, int64_t samples, int64_t o = 0) const {
    const Piece<T> piece{flow.from + first * flow.step, w.inputs};
    Target<T> to = flow.to;
    to.start = w.bias, to.to += first * to.step + o;
    if (to.add) to.add += first * to.add_step + o;
    product(w, Source<T>{&piece, 1, flow.step}, samples, to);
  }

  // All of a wide product: fill(strip, first column, columns) packs some columns of one factor, and body(strip, first
  // column, columns, first vector, vectors) multiplies them by vectors of the other. A thread goes through the vectors
  // of one block of columns before it packs the next.
  template <class Fill, class Body>
  static void in_blocks(int64_t columns, int64_t depth, int64_t vectors, const Fill& fill, const Body& body) {
    const int64_t packs = (columns + kLanes - 1) / kLanes, parts = packs / kBlockPacks;
    const int64_t groups = (vectors + kBlockVectors - 1) / kBlockVectors;
    ranges(parts * groups, 1, [&](int64_t begin, int64_t end) {
      thread_local Scratch own;
      T* strip = aligned(reinterpret_cast<T*>(own.of((depth * kPacks<T> * kLanes + 2 * kLanes) * int64_t(sizeof(T)))));
      for (int64_t i = begin, count; i < end; i += count) {
        const int64_t part = i / groups, group = i % groups, last = packs * (part + 1) / parts;
        count = std::min(groups - group, end - i);
        const int64_t first = group * kBlockVectors, some = std::min(vectors, first + count * kBlockVectors) - first;
        for (int64_t p = packs * part / parts; p < last; p += kPacks<T>) {
          const int64_t o = p * kLanes, width = std::min<int64_t>(kPacks<T>, last - p) * kLanes;
          fill(strip, o, width);
          body(strip, o, std::min(width, columns - o), first, some);
        }
      }
      own.shrink();
    });
  }

  // body(begin, end) for ranges of some tasks
  template <class Body> static void ranges(int64_t tasks, int64_t grain, const Body& body) {
    parallel_ranges(
        tasks, grain,
        [](int64_t begin, int64_t end, void* context) { (*static_cast<const Body*>(context))(begin, end); },
        const_cast<Body*>(&body));
  }

  // A pass: each layer's product goes where flow(layer) says, then after(layer, first sample, samples, first output,
  // outputs) is called for blocks of it; coupled(first sample, samples) is the step of the coupling.
  template <class Where, class After, class Coupled>
  void pass(const Steps& steps, const std::array<Matrix<T>, GMK_MLP_LAYERS>& w, bool natural, const Where& flow,
            const After& after, const Coupled& coupled) const {
    const int64_t tiles = (a.batch + kTile - 1) / kTile;
    for (int begin = 0, end; begin < steps.count; begin = end) {
      const auto apart = [&](int i) { return steps.step[i] != kCouple && wide(w[steps.step[i]]); };
      end = begin + 1;
      if (apart(begin)) {
        const int64_t l = steps.step[begin], outputs = w[l].outputs, inputs = w[l].inputs;
        const Flow way = flow(l);
        in_blocks(
            outputs, inputs, a.batch,
            [&](T* strip, int64_t o, int64_t width) {
              pack_strip(strip, weight(l), o, width, outputs, inputs, natural ? outputs : inputs, natural);
            },
            [&](T* strip, int64_t o, int64_t some, int64_t first, int64_t samples) {
              Matrix<T> part;
              part.outputs = some, part.inputs = inputs, part.weight = strip, part.bias = w[l].bias + o;
              multiply(part, way, first, samples, o);
              after(l, first, samples, o, some);
            });
        continue;
      }
      while (end < steps.count && !apart(end)) ++end;
      ranges(tiles, a.batch * work() < kSmall ? tiles : 1, [&](int64_t from, int64_t to) {
        const int64_t first = from * kTile, samples = std::min(to * kTile, a.batch) - first;
        for (int i = begin; i < end; ++i) {
          const int64_t l = steps.step[i];
          if (l == kCouple) {
            coupled(first, samples);
          } else {
            multiply(w[l], flow(l), first, samples);
            after(l, first, samples, 0, w[l].outputs);
          }
        }
      });
    }
  }
  void pack_narrow(std::array<Matrix<T>, GMK_MLP_LAYERS>& w, const Steps& steps, bool natural) const {
    std::vector<Strip<T>> todo;
    for (int i = 0; i < steps.count; ++i) {
      const int64_t l = steps.step[i];
      if (l == kCouple) continue;
      const T* bias = natural ? nullptr : static_cast<const T*>(a.bias[l]);
      for (int64_t o = 0; o < w[l].outputs; ++o) w[l].bias[o] = bias ? bias[o] : T(0);
      if (!wide(w[l])) add_strips(todo, w[l], weight(l));
    }
    pack_strips(todo, natural);
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
    Steps steps;
    for (int64_t l = 0; l < a.layers; ++l) steps.add(l);
    if (a.split) steps.add(kCouple);
    int64_t widest = 0;
    for (int64_t l = 1; l < a.layers; ++l) widest = std::max(widest, a.widths[l]);
    struct Kept {
      std::array<Matrix<T>, GMK_MLP_LAYERS> w;
      Norm after;
      T* active[2];  // what a layer reads, and what it makes
    };
    const auto lay_out = [&](Arena& arena) {
      const int64_t stored = a.batch * widest + kLanes;
      return Kept{matrices(arena, false), norm(arena), {arena.take<T>(stored), arena.take<T>(stored)}};
    };
    thread_local Scratch mine;
    Arena size(nullptr);
    lay_out(size);
    Arena arena(mine.of(size.bytes()));
    Kept k = lay_out(arena);
    pack_narrow(k.w, steps, false), fill(k.after);

    const auto flow = [&](int64_t l) {
      const bool outside = l + 1 == a.layers && !a.split;
      T* to = outside ? static_cast<T*>(a.out) : static_cast<T*>(a.hidden) + offset[l + 1];
      return Flow{
          l ? k.active[l % 2] : input, l ? widest : a.x_step, {nullptr, 0, to, outside ? a.widths[l + 1] : hidden}};
    };
    const auto activate = [&](int64_t l, int64_t first, int64_t samples, int64_t o, int64_t outputs) {
      if (l + 1 == a.layers) return;
      for (int64_t b = first; b < first + samples; ++b) {
        const T* from = static_cast<const T*>(a.hidden) + b * hidden + offset[l + 1] + o;
        T* to = k.active[(l + 1) % 2] + b * widest + o;
        walk(outputs, [&](int64_t i, int lanes) { put(to + i, lanes, A::value(get(from + i, lanes))); });
      }
    };
    pass(steps, k.w, false, flow, activate,
         [&](int64_t first, int64_t samples) { transform(first, samples, k.after); });
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
  // some rows of it, and columns
  GMK_INLINE void outer_block(const T* g, int64_t g_step, int64_t rows, const T* h, int64_t h_step, int64_t columns,
                              T* out, int64_t out_step) const {
    constexpr int kRows = 4;
    const auto wide = [&](auto count, int64_t o) {
      constexpr int M = decltype(count)::value;
      int64_t i = 0;
      T* to = out + o * out_step;
      for (; columns - i > (kPacks<T> - 1) * kLanes; i += kPacks<T> * kLanes)
        outer<M, kPacks<T>>(g + o, g_step, h + i, h_step, columns - i, to + i, out_step);
      for (; i < columns; i += kLanes) outer<M, 1>(g + o, g_step, h + i, h_step, columns - i, to + i, out_step);
    };
    int64_t o = 0;
    for (; o + kRows <= rows; o += kRows) wide(std::integral_constant<int, kRows>(), o);
    for (; o < rows; ++o) wide(std::integral_constant<int, 1>(), o);
  }

  void backward() const {
    Steps steps;
    if (a.split) steps.add(kCouple);
    for (int64_t l = a.layers - 1; l >= (a.out_x ? 0 : 1); --l) steps.add(l);
    const bool normed = a.norm_log_scale != nullptr;
    struct Kept {
      T *active, *slopes;  // of every hidden number: its activation, and the gradient by it
      T *scaled, *along;   // the gradient by what the coupling gives, and its product with that
      T* packed;           // see sums
      std::array<Matrix<T>, GMK_MLP_LAYERS> w;
      Norm after;
    };
    const auto lay_out = [&](Arena& arena) {
      const int64_t stored = a.batch * hidden + kLanes, scaled = normed ? a.batch * a.features + kLanes : 0;
      int64_t packed = 0;
      for (int64_t l = 0; l < a.layers; ++l) packed += summed_in_blocks(l) ? packed_size(l) : 0;
      return Kept{arena.take<T>(stored),
                  arena.take<T>(stored),
                  arena.take<T>(scaled),
                  arena.take<T>(scaled),
                  arena.take<T>(packed),
                  matrices(arena, true),
                  norm(arena)};
    };
    thread_local Scratch mine;
    Arena size(nullptr);
    lay_out(size);
    Arena arena(mine.of(size.bytes()));
    Kept k = lay_out(arena);
    pack_narrow(k.w, steps, true), fill(k.after);
    const T* grad = normed ? k.scaled : static_cast<const T*>(a.grad);
    const int64_t grad_step = normed ? a.features : a.grad_step;
    T* along = a.out_norm_log_scale ? k.along : nullptr;

    const auto flow = [&](int64_t l) {
      const bool outside = l + 1 == a.layers && !a.split;
      Flow found{outside ? grad : k.slopes + offset[l + 1], outside ? grad_step : hidden, {}};
      if (l) {
        found.to.to = k.slopes + offset[l], found.to.step = hidden;
        return found;
      }
      Target<T>& to = found.to;
      to.to = static_cast<T*>(a.out_x) + kept, to.step = a.split ? a.features : a.widths[0];
      if (a.split) to.add = grad + kept, to.add_step = grad_step;
      return found;
    };
    const auto activate = [&](int64_t l, int64_t first, int64_t samples, int64_t o, int64_t outputs) {
      if (l == 0) return;
      for (int64_t b = first; b < first + samples; ++b) {
        const int64_t at = b * hidden + offset[l] + o;
        walk(outputs, [&](int64_t i, int lanes) {
          const P x = get(static_cast<const T*>(a.hidden) + at + i, lanes), h = A::value(x);
          put(k.active + at + i, lanes, h);
          put(k.slopes + at + i, lanes, get(k.slopes + at + i, lanes) * A::slope(x, h));
        });
      }
    };
    const auto uncouple = [&](int64_t first, int64_t samples) {
      for (int64_t b = first; normed && b < first + samples; ++b)
        walk(a.features, [&](int64_t i, int lanes) {
          const P g = get(static_cast<const T*>(a.grad) + b * a.grad_step + i, lanes);
          put(k.scaled + b * a.features + i, lanes, g * get(k.after.gain + i, lanes));
        });
      transform_backward(first, samples, grad, grad_step, k.slopes, along);
    };
    pass(steps, k.w, true, flow, activate, uncouple);
    sums(k.active, k.slopes, along, k.packed);
    mine.shrink();
  }

  // Sums over the batch of some of the numbers that its samples have side by side.
  P column(const T* from, int64_t step, int lanes) const {
    P sum(T(0));
    for (int64_t b = 0; b < a.batch; ++b) sum = sum + get(from + b * step, lanes);
    return sum;
  }

  // A layer's gradients are sums of g h over the batch: where these lie.
  struct Factors {
    const T *g, *h;
    int64_t g_step, h_step;
  };
  bool summed_in_blocks(int64_t l) const {
    const int64_t inputs = a.widths[l];
    const int64_t read = inputs * std::max(a.widths[l + 1], a.batch) * int64_t(sizeof(T));
    return a.out_weight[l] && inputs >= kBlockPacks * kLanes && read >= kWide;
  }
  int64_t packed_size(int64_t l) const { return round_up(a.widths[l + 1], kLanes) * a.batch; }

  // Gradients by weights and biases, and by what follows the coupling. In large batches the numbers of a column of g
  // lie on as many pages as there are samples: kLanes columns are put together first, in wide layers into `packed`.
  void sums(const T* active, const T* slopes, const T* along, T* packed) const {
    constexpr int64_t kNorm = -1;
    const auto factors = [&](int64_t l) {
      const bool outside = l + 1 == a.layers && !a.split;
      return Factors{outside ? static_cast<const T*>(a.grad) : slopes + offset[l + 1], l ? active + offset[l] : input,
                     outside ? a.grad_step : hidden, l ? hidden : a.x_step};
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
        for (int64_t o = 0; o < a.widths[l + 1]; o += kLanes)
          todo.push_back({l, o, blocks ? room + o * a.batch : nullptr});
      if (blocks) room += packed_size(l);
    }
    parallel_for(
        int64_t(todo.size()),
        [&](int64_t t) {
          const auto [l, row, together] = todo[size_t(t)];
          if (l == kNorm) return norm_sums(row, along);
          const Factors f = factors(l);
          const int lanes = int(std::min<int64_t>(kLanes, a.widths[l + 1] - row));
          const T* g = f.g + row;
          int64_t g_step = f.g_step;
          thread_local Scratch own;
          if (together || a.batch >= kLong) {
            T* to = together ? together : reinterpret_cast<T*>(own.of(a.batch * kLanes * int64_t(sizeof(T))));
            for (int64_t b = 0; b < a.batch; ++b) store(to + b * kLanes, get(g + b * g_step, lanes));
            g = to, g_step = kLanes;
          }
          if (a.out_weight[l] && !together)
            outer_block(g, g_step, lanes, f.h, f.h_step, a.widths[l],
                        static_cast<T*>(a.out_weight[l]) + row * a.widths[l], a.widths[l]);
          if (a.out_bias[l]) put(static_cast<T*>(a.out_bias[l]) + row, lanes, column(g, g_step, lanes));
          own.shrink();
        },
        a.batch * work() < kSmall ? int64_t(todo.size()) : 1);

    for (int64_t l = 0; l < a.layers; ++l) {
      if (!summed_in_blocks(l)) continue;
      const Factors f = factors(l);
      const int64_t inputs = a.widths[l], outputs = a.widths[l + 1];
      in_blocks(
          inputs, a.batch, outputs,
          [&](T* strip, int64_t i, int64_t width) {
            pack_strip(strip, f.h, i, width, inputs, a.batch, f.h_step, true);
          },
          [&](const T* strip, int64_t i, int64_t some, int64_t first, int64_t rows) {
            const int64_t width = round_up(some, kLanes);
            for (int64_t o = first; o < first + rows; o += kLanes)
              outer_block(packed + o * a.batch, kLanes, std::min<int64_t>(kLanes, outputs - o), strip, width, some,
                          static_cast<T*>(a.out_weight[l]) + o * inputs + i, inputs);
          });
      packed += packed_size(l);
    }
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
