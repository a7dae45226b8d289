// Whole multilayer perceptrons, by themselves or as conditioners of couplings: one call forward, one backward. Samples
// pass narrow layers one after another, so that nothing leaves the cache between and threads meet once, where weights
// have been packed. Wide layers are computed in blocks of their outputs, since packed as a whole their weights would
// leave the cache. Backward, threads meet once more before the sums over the batch.
#include "gmk/bernoulli.h"
#include "gmk/dispatch.h"
#include "rowwise.h"
#include "sums.h"

namespace gmk {
namespace GMK_ISA {
namespace {

template <class T, int kind> struct Mlp : Sums<T> {
  using Base = Layers<T>;
  using Base::a, Base::offset, Base::hidden, Base::input, Base::kept, Base::changed, Base::count;
  using typename Base::Flow, typename Base::Steps;
  using P = pack<T>;
  using A = Activation<T, kind>;
  // relu of relu is relu, and so is its slope: hidden layers are kept after it then, and read where they are kept.
  static constexpr bool kAfter = kind == GMK_RELU;
  Couple<T> couple{};

  explicit Mlp(const Args& args) : Sums<T>(args) {
    if (a.split) couple = couple_by<T>(a.scale_map);
  }

  // What a sample is that is a pair: the sum of both, before activation.
  struct Pair {
    const T *x, *row;
    P operator()(int64_t i, int lanes) const { return get(x + i, lanes) + get(row + i, lanes); }
  };
  Pair pair(int64_t b) const {
    return {static_cast<const T*>(a.x) + b / a.rows * a.x_step,
            static_cast<const T*>(a.each) + b % a.rows * a.widths[0]};
  }
  void pair_up(int64_t first, int64_t samples, T* to, int64_t step) const {
    for (int64_t b = first; b < first + samples; ++b) {
      const Pair sum = pair(b);
      walk(a.widths[0], [&](int64_t i, int lanes) { put(to + b * step + i, lanes, A::value(sum(i, lanes))); });
    }
  }

  // The log-likelihood of logits, which become its derivatives by them.
  void judge(int64_t first, int64_t samples) const {
    const int64_t features = a.widths[a.layers];
    for (int64_t b = first; b < first + samples; ++b) {
      const T* target = static_cast<const T*>(a.target) + b / a.target_samples * a.target_step;
      T* logits = static_cast<T*>(a.out) + b * features;
      RowSum<T> sum;
      walk(features, [&](int64_t i, int lanes) {
        const P l = get(logits + i, lanes), x = get(target + i, lanes);
        P slope;
        sum.add(int(i / kLanes % GMK_ISA::kPacks), lanes, bernoulli_with_slope(l, x, slope));
        put(logits + i, lanes, slope);
      });
      static_cast<T*>(a.out_likelihood)[b] = sum.total();
    }
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
    if (a.each) steps.add(Base::kPair);
    for (int64_t l = 0; l < a.layers; ++l) steps.add(l);
    if (a.split) steps.add(Base::kCouple);
    if (a.target) steps.add(Base::kJudge);
    int64_t widest = 0;
    for (int64_t l = a.each ? 0 : 1; l < a.layers; ++l) widest = std::max(widest, a.widths[l]);
    struct Kept {
      std::array<Matrix<T>, GMK_MLP_LAYERS> w;
      Norm after;
      T* active[2];  // what a layer reads, and what it makes
    };
    const auto lay_out = [&](Arena& arena) {
      const int64_t stored = a.batch * widest + kLanes;
      return Kept{this->matrices(arena, false),
                  norm(arena),
                  {arena.take<T>(kAfter && !a.each ? 0 : stored), arena.take<T>(kAfter ? 0 : stored)}};
    };
    thread_local Scratch mine;
    Arena size(nullptr);
    lay_out(size);
    Arena arena(mine.of(size.bytes()));
    Kept k = lay_out(arena);
    this->pack_narrow(k.w, steps, false), fill(k.after);

    const auto flow = [&](int64_t l) {
      const bool outside = l + 1 == a.layers && !a.split;
      T* to = outside ? static_cast<T*>(a.out) : static_cast<T*>(a.hidden) + offset[l + 1];
      const Target<T> target{nullptr, 0, to, outside ? a.widths[l + 1] : hidden};
      if (l && kAfter) return Flow{static_cast<T*>(a.hidden) + offset[l], hidden, target};
      return l || a.each ? Flow{k.active[l % 2], widest, target} : Flow{input, a.x_step, target};
    };
    const auto activate = [&](int64_t l, int64_t first, int64_t samples, int64_t o, int64_t outputs) {
      if (l + 1 == a.layers) return;
      for (int64_t b = first; b < first + samples; ++b) {
        T* from = static_cast<T*>(a.hidden) + b * hidden + offset[l + 1] + o;
        T* to = kAfter ? from : k.active[(l + 1) % 2] + b * widest + o;
        walk(outputs, [&](int64_t i, int lanes) { put(to + i, lanes, A::value(get(from + i, lanes))); });
      }
    };
    this->pass(steps, k.w, false, flow, activate, [&](int64_t step, int64_t first, int64_t samples) {
      if (step == Base::kPair)
        pair_up(first, samples, k.active[0], widest);
      else if (step == Base::kJudge)
        judge(first, samples);
      else
        transform(first, samples, k.after);
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

  void backward() const {
    Steps steps;
    if (a.split) steps.add(Base::kCouple);
    const bool through = a.out_x || a.out_each;
    for (int64_t l = a.layers - 1; l >= (through ? 0 : 1); --l) steps.add(l);
    const bool pairs_kept = a.each && !this->summed_in_blocks(0);
    if (pairs_kept && !through) steps.add(Base::kPair);
    const bool normed = a.norm_log_scale != nullptr;
    struct Kept {
      T *active, *slopes;  // of every hidden number: its activation, and the gradient by it
      T *pairs, *by_pair;  // likewise of what pairs read; the sums may make those as they go
      T *scaled, *along;   // the gradient by what the coupling gives, and its product with that
      T* packed;           // see sums
      std::array<Matrix<T>, GMK_MLP_LAYERS> w;
      Norm after;
    };
    const auto lay_out = [&](Arena& arena) {
      const int64_t pairs = a.each ? a.batch * a.widths[0] + kLanes : 0;
      const int64_t stored = a.batch * hidden + kLanes, wide = normed ? a.batch * a.features + kLanes : 0;
      int64_t packed = 0;
      for (int64_t l = 0; l < a.layers; ++l) packed += this->summed_in_blocks(l) ? this->packed_size(l) : 0;
      return Kept{arena.take<T>(kAfter ? 0 : stored),
                  arena.take<T>(stored),
                  arena.take<T>(pairs_kept ? pairs : 0),
                  arena.take<T>(pairs),
                  arena.take<T>(wide),
                  arena.take<T>(wide),
                  arena.take<T>(packed),
                  this->matrices(arena, true),
                  norm(arena)};
    };
    thread_local Scratch mine;
    Arena size(nullptr);
    lay_out(size);
    Arena arena(mine.of(size.bytes()));
    Kept k = lay_out(arena);
    this->pack_narrow(k.w, steps, true), fill(k.after);
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
      if (a.each) {
        to.to = k.by_pair, to.step = a.widths[0];
        return found;
      }
      to.to = static_cast<T*>(a.out_x) + kept, to.step = a.split ? a.features : a.widths[0];
      if (a.split) to.add = grad + kept, to.add_step = grad_step;
      return found;
    };
    const auto activate = [&](int64_t l, int64_t first, int64_t samples, int64_t o, int64_t outputs) {
      const Flow way = flow(l);
      const T* factor = l + 1 == a.layers ? this->factor() : nullptr;
      T* active = l ? k.active : k.pairs;
      for (int64_t b = first; b < first + samples; ++b) {
        T* slopes = way.to.to + b * way.to.step + o;
        if (factor)
          walk(outputs, [&](int64_t i, int lanes) { put(slopes + i, lanes, get(slopes + i, lanes) * P(factor[b])); });
        if (l == 0 && !a.each) continue;
        const int64_t at = l ? b * hidden + offset[l] + o : b * a.widths[0] + o;
        const Pair sum = l ? Pair{} : pair(b);
        const T* from = l ? static_cast<const T*>(a.hidden) + at : nullptr;
        // Of wide layers these are short pieces of long rows.
        for (int64_t i = 0; l && i < outputs; i += 64 / int64_t(sizeof(T)))
          __builtin_prefetch(from + kAhead * hidden + i);
        walk(outputs, [&](int64_t i, int lanes) {
          const P x = l ? get(from + i, lanes) : sum(o + i, lanes), h = A::value(x);
          if (l ? !kAfter : pairs_kept) put(active + at + i, lanes, h);
          put(slopes + i, lanes, get(slopes + i, lanes) * A::slope(x, h));
        });
      }
    };
    const auto other = [&](int64_t step, int64_t first, int64_t samples) {
      if (step == Base::kPair) return pair_up(first, samples, k.pairs, a.widths[0]);
      for (int64_t b = first; normed && b < first + samples; ++b)
        walk(a.features, [&](int64_t i, int lanes) {
          put(k.scaled + b * a.features + i, lanes,
              get(static_cast<const T*>(a.grad) + b * a.grad_step + i, lanes) * get(k.after.gain + i, lanes));
        });
      transform_backward(first, samples, grad, grad_step, k.slopes, along);
    };
    this->pass(steps, k.w, true, flow, activate, other);
    const T* active = kAfter ? static_cast<const T*>(a.hidden) : k.active;
    const T* read = a.each ? pairs_kept ? k.pairs : nullptr : input;
    const auto pair_strip = [&](T* strip, int64_t i, int64_t width) {
      for (int64_t b = 0; b < a.batch; ++b, strip += width) {
        const Pair sum = pair(b);
        walk(std::min(width, a.widths[0] - i),
             [&](int64_t o, int lanes) { store(strip + o, A::value(sum(i + o, lanes))); });
      }
    };
    this->sums(read, a.each ? a.widths[0] : a.x_step, grad, grad_step, active, k.slopes, along, k.packed, pair_strip);
    if (a.each && through) this->pair_sums(k.by_pair);
    mine.shrink();
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
