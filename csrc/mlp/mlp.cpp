// Whole multilayer perceptrons, by themselves or as conditioners of couplings: one call forward, one backward. Samples
// pass narrow layers one after another, so that nothing leaves the cache between and threads meet once, where weights
// have been packed. Wide layers are computed in blocks of their outputs, since packed as a whole their weights would
// leave the cache. Backward, threads meet once more before the sums over the batch.
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
  Couple<T> couple{};

  explicit Mlp(const Args& args) : Sums<T>(args) {
    if (a.split) couple = couple_by<T>(a.scale_map);
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
    if (a.split) steps.add(Base::kCouple);
    int64_t widest = 0;
    for (int64_t l = 1; l < a.layers; ++l) widest = std::max(widest, a.widths[l]);
    struct Kept {
      std::array<Matrix<T>, GMK_MLP_LAYERS> w;
      Norm after;
      T* active[2];  // what a layer reads, and what it makes
    };
    const auto lay_out = [&](Arena& arena) {
      const int64_t stored = a.batch * widest + kLanes;
      return Kept{this->matrices(arena, false), norm(arena), {arena.take<T>(stored), arena.take<T>(stored)}};
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
    this->pass(steps, k.w, false, flow, activate,
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

  void backward() const {
    Steps steps;
    if (a.split) steps.add(Base::kCouple);
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
      for (int64_t l = 0; l < a.layers; ++l) packed += this->summed_in_blocks(l) ? this->packed_size(l) : 0;
      return Kept{arena.take<T>(stored),
                  arena.take<T>(stored),
                  arena.take<T>(scaled),
                  arena.take<T>(scaled),
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
    this->pass(steps, k.w, true, flow, activate, uncouple);
    this->sums(k.active, k.slopes, along, k.packed);
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
