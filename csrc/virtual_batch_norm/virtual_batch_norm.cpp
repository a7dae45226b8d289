// Virtual batch normalisation: every example and channel is a row of its own, read three times from the first-level
// cache: for its mean, for its variance (about that mean, so that nothing cancels), and for the output. The formulas
// and their letters are those of gmkernels/ops/virtual_batch_norm/autograd.py; the second derivative is their tangent.
//
// Where a row is a single number, sixteen channels fill the lanes of a pack instead. The algebra of a row is written
// once for both: its number type N is T or pack<T>.
//
// Gradients by what all examples share are summed over pieces of the batch, piece after piece: one order, whatever the
// threads.
#include <cmath>
#include <vector>

#include "gmk/rows.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using Args = gmk_virtual_norm_args;
enum Order { kForward, kBackward, kDouble };
constexpr int64_t kTask = 4096;  // elements
constexpr int64_t kPiece = 64;   // examples of a piece, where a row is a single number
constexpr int kShared = 4;       // mean, var, weight, bias

GMK_INLINE float root(float a) { return std::sqrt(a); }
GMK_INLINE double root(double a) { return std::sqrt(a); }
template <class T> GMK_INLINE pack<T> root(const pack<T>& a) { return sqrt(a); }

template <class N> struct Shared {
  N mean, var, weight, bias;
};

// What is summed over the positions of a row. In the tangent's letters, xd and ud are the tangents of x - e and u.
template <class N> struct Sums {
  N mean, square;           // e; the variance o
  N g, gx;                  // sum g, sum g (x - e)
  N mean_d, square_d, gxd;  // the tangents of e and o, sum g xd
};

// Coefficients of a row: y = (x - e + offset) gain + b, and what the derivatives need.
template <class N> struct Row {
  N d, offset, r, gain;     // d, a d, r, r w
  N slope, level;           // dx = gain g + slope (x - e) + level
  Shared<N> shared;         // this row's part of the gradients by what is shared
  N d_d, offset_d, gain_d;  // tangents
  N slope_d, level_d;
};

template <class T> struct Mix {
  T own, rest, eps, inverse;  // c, a, and one over the number of positions

  explicit Mix(const Args& s) : own(T(s.own)), rest(T(1) - T(s.own)), eps(T(s.eps)), inverse(T(1) / T(s.positions)) {}

  template <Order order, class N>
  GMK_INLINE Row<N> row(const Sums<N>& s, const Shared<N>& h, const Shared<N>& v) const {
    const N a(rest), c(own), half(T(0.5)), one(T(1)), two(T(2)), per(inverse);
    Row<N> k;
    k.d = s.mean - h.mean;
    k.offset = a * k.d;
    k.r = one / root(fma(a, h.var, c * fma(k.offset, k.d, s.square)) + N(eps));
    k.gain = k.r * h.weight;
    if constexpr (order == kForward) return k;
    const N gu = fma(k.offset, s.g, s.gx), r2 = k.r * k.r;
    const N m = -(k.gain * s.g), p = -(half * (r2 * k.gain)), w = p * gu;  // M, and V
    const N q = two * (c * k.offset) * w;
    k.slope = two * c * w * per;
    if constexpr (order == kBackward) {
      k.level = (c * m + q) * per;
      k.shared = {a * m - q, a * w, k.r * gu, s.g};
      return k;
    }
    k.d_d = s.mean_d - v.mean;
    k.offset_d = a * k.d_d;
    const N var_d = fma(a, v.var, c * fma(two * k.offset, k.d_d, s.square_d));
    const N r_d = -(half * (r2 * k.r)) * var_d;
    k.gain_d = fma(r_d, h.weight, k.r * v.weight);
    const N gu_d = fma(k.offset_d, s.g, s.gxd);
    const N m_d = -(k.gain_d * s.g);
    const N p_d = -(half * fma(r2, k.gain_d, two * (k.r * r_d) * k.gain));
    const N w_d = fma(p_d, gu, p * gu_d);
    const N q_d = two * c * fma(k.offset_d, w, k.offset * w_d);
    k.slope_d = two * c * w_d * per;
    k.level_d = (c * m_d + q_d) * per;
    k.shared = {a * m_d - q_d, a * w_d, fma(r_d, gu, k.r * gu_d), N(T(0))};
    return k;
  }
};

// The output of one element or pack: y; dx; or the gradients by x and g of the inner product with the cotangents.
template <class P> GMK_INLINE P normal(const Row<P>& k, const P& bias, const P& x) {
  return fma(x + k.offset, k.gain, bias);
}
template <class P> GMK_INLINE P gradient(const Row<P>& k, const P& x, const P& g) {
  return fma(k.gain, g, fma(k.slope, x, k.level));
}
template <class P> GMK_INLINE P gradient_d(const Row<P>& k, const P& x, const P& xd, const P& g) {
  return fma(k.gain_d, g, fma(k.slope_d, x, fma(k.slope, xd, k.level_d)));
}
template <class P> GMK_INLINE P normal_d(const Row<P>& k, const P& bias_d, const P& x, const P& xd) {
  return fma(x + k.offset, k.gain_d, fma(xd + k.offset_d, k.gain, bias_d));
}

template <Order order, class T> Row<pack<T>> broadcast(const Row<T>& k) {
  using P = pack<T>;
  Row<P> r;
  r.offset = P(k.offset), r.gain = P(k.gain);
  if constexpr (order != kForward) r.slope = P(k.slope), r.level = P(k.level);
  if constexpr (order == kDouble) {
    r.offset_d = P(k.offset_d), r.gain_d = P(k.gain_d);
    r.slope_d = P(k.slope_d), r.level_d = P(k.level_d);
  }
  return r;
}

// RowSum (gmk/rows.h) of rows that may be much shorter than a block: the same order of sums, without the empty packs.
template <class T> struct ShortSum {
  pack<T> lanes[kPacks];
  const int used;
  explicit ShortSum(int64_t length) : used(int(std::min<int64_t>(kPacks, (length + kLanes - 1) / kLanes))) {
    for (int p = 0; p < used; ++p) lanes[p] = pack<T>(T(0));
  }
  GMK_INLINE void add(int p, int n, const pack<T>& a) {
    lanes[p] += n == kLanes ? a : select<T>(iota<typename native<T>::mask>() < n, a, T(0));
  }
  T total() {
    for (int half = kPacks / 2; half > 0; half /= 2)
      for (int p = 0; p < half && p + half < used; ++p) lanes[p] += lanes[p + half];
    return fold(lanes[0]);
  }
};

template <class T, Order order> struct Kernel {
  using P = pack<T>;
  const Args& a;
  const Mix<T> mix{a};
  const gmk_sizes sizes =
      a.positions == 1 ? gmk_sizes{a.batch, 1, a.channels} : gmk_sizes{a.batch, a.channels, a.positions};

  template <class N, class F> Shared<N> shared(const void* const (&from)[kShared], const F& get) const {
    const auto one = [&](const void* p) { return p ? get(static_cast<const T*>(p)) : N(T(0)); };
    return {one(from[0]), one(from[1]), one(from[2]), one(from[3])};
  }

  struct Buffers {
    Input<T> x, g, v;
    Output<T> out, by_grad;
    Buffers(const Args& a, const gmk_sizes& sizes)
        : x(a.x, sizes), g(a.grad, sizes), v(a.v_x, sizes), out(a.out, a.x.dtype), by_grad(a.out_grad, a.x.dtype) {}
  };

  // One example and channel, element after element.
  void row(Buffers& io, int64_t b, int64_t c, T* part, int64_t step) const {
    const int64_t length = a.positions, start = c * length;
    const Shared<T> h = shared<T>(a.shared, [&](const T* p) { return p[c]; });
    const Shared<T> v = shared<T>(a.v_shared, [&](const T* p) { return p[c]; });
    const auto blocks = [&](const auto& f) {
      for (int64_t i = 0; i < length; i += kBlock) {
        const int n = int(std::min<int64_t>(kBlock, length - i));
        const T* px = io.x.block(b, start + i, n);
        const T* pg = order == kForward ? nullptr : io.g.block(b, start + i, n);
        const T* pv = order == kDouble ? io.v.block(b, start + i, n) : nullptr;
        f(i, n, px, pg, pv);
      }
    };
    Sums<T> s{};
    {
      ShortSum<T> x(length), g(length), xd(length);
      blocks([&](int64_t, int n, const T* px, const T* pg, const T* pv) {
        each_pack(n, [&](int p, int lanes) {
          x.add(p, lanes, get(px, p, lanes));
          if constexpr (order != kForward) g.add(p, lanes, get(pg, p, lanes));
          if constexpr (order == kDouble) xd.add(p, lanes, get(pv, p, lanes));
        });
      });
      s.mean = x.total() * mix.inverse;
      if constexpr (order != kForward) s.g = g.total();
      if constexpr (order == kDouble) s.mean_d = xd.total() * mix.inverse;
    }
    const P mean(s.mean), mean_d(s.mean_d);
    {
      ShortSum<T> xx(length), gx(length), xxd(length), gxd(length);
      blocks([&](int64_t, int n, const T* px, const T* pg, const T* pv) {
        each_pack(n, [&](int p, int lanes) {
          const P x = get(px, p, lanes) - mean;
          xx.add(p, lanes, x * x);
          if constexpr (order != kForward) gx.add(p, lanes, get(pg, p, lanes) * x);
          if constexpr (order == kDouble) {
            const P xd = get(pv, p, lanes) - mean_d;
            xxd.add(p, lanes, x * xd);
            gxd.add(p, lanes, get(pg, p, lanes) * xd);
          }
        });
      });
      s.square = xx.total() * mix.inverse;
      if constexpr (order != kForward) s.gx = gx.total();
      if constexpr (order == kDouble) s.square_d = T(2) * xxd.total() * mix.inverse, s.gxd = gxd.total();
    }
    const Row<T> k = mix.template row<order>(s, h, v);
    if constexpr (order != kForward) {
      const T parts[kShared] = {k.shared.mean, k.shared.var, k.shared.weight, k.shared.bias};
      for (int i = 0; i < kShared; ++i) part[i * step + c] = parts[i];
    }
    const Row<P> w = broadcast<order>(k);
    const P bias(h.bias), bias_d(v.bias);
    blocks([&](int64_t i, int n, const T* px, const T* pg, const T* pv) {
      const int64_t place = (b * a.channels + c) * length + i;
      T* out = io.out.block(place);
      T* by_grad = order == kDouble ? io.by_grad.block(place) : nullptr;
      each_pack(n,
                [&](int p, int lanes) { element(w, bias, bias_d, mean, mean_d, p, lanes, px, pg, pv, out, by_grad); });
      io.out.commit(place, n);
      if constexpr (order == kDouble) io.by_grad.commit(place, n);
    });
  }

  GMK_INLINE static void element(const Row<P>& k, const P& bias, const P& bias_d, const P& mean, const P& mean_d, int p,
                                 int lanes, const T* px, const T* pg, const T* pv, T* out, T* by_grad) {
    const P x = get(px, p, lanes) - mean;
    if constexpr (order == kForward) put(out, p, lanes, normal(k, bias, x));
    if constexpr (order == kBackward) put(out, p, lanes, gradient(k, x, get(pg, p, lanes)));
    if constexpr (order == kDouble) {
      const P xd = get(pv, p, lanes) - mean_d;
      put(out, p, lanes, gradient_d(k, x, xd, get(pg, p, lanes)));
      put(by_grad, p, lanes, normal_d(k, bias_d, x, xd));
    }
  }

  // A block of channels c .. c + n of examples of one position each.
  void columns(Buffers& io, int64_t first, int64_t last, int64_t c, int n, T* part, int64_t step) const {
    P sums[kShared][kPacks];
    for (auto& row : sums)
      for (P& sum : row) sum = P(T(0));
    for (int64_t b = first; b < last; ++b) {
      const int64_t place = b * a.channels + c;
      const T* px = io.x.block(b, c, n);
      const T* pg = order == kForward ? nullptr : io.g.block(b, c, n);
      const T* pv = order == kDouble ? io.v.block(b, c, n) : nullptr;
      T* out = io.out.block(place);
      T* by_grad = order == kDouble ? io.by_grad.block(place) : nullptr;
      each_pack(n, [&](int p, int lanes) {
        const auto at = [&](const T* q) { return gmk::GMK_ISA::get(q + c, p, lanes); };
        const Shared<P> h = shared<P>(a.shared, at), v = shared<P>(a.v_shared, at);
        const P x = gmk::GMK_ISA::get(px, p, lanes), zero(T(0));
        Sums<P> s{x, (x - x) * (x - x), zero, zero, zero, zero, zero};
        if constexpr (order != kForward) s.g = gmk::GMK_ISA::get(pg, p, lanes), s.gx = s.g * (x - x);
        if constexpr (order == kDouble) s.mean_d = gmk::GMK_ISA::get(pv, p, lanes);
        const Row<P> k = mix.template row<order>(s, h, v);
        if constexpr (order != kForward) {
          sums[0][p] += k.shared.mean, sums[1][p] += k.shared.var;
          sums[2][p] += k.shared.weight, sums[3][p] += k.shared.bias;
        }
        element(k, h.bias, v.bias, x, s.mean_d, p, lanes, px, pg, pv, out, by_grad);
      });
      io.out.commit(place, n);
      if constexpr (order == kDouble) io.by_grad.commit(place, n);
    }
    if constexpr (order != kForward)
      for (int i = 0; i < kShared; ++i)
        each_pack(n, [&](int p, int lanes) { put(part + i * step + c, p, lanes, sums[i][p]); });
  }

  void operator()() const {
    const int64_t channels = a.channels, piece = a.positions == 1 ? kPiece : 1;
    const int64_t pieces = (a.batch + piece - 1) / piece, step = pieces * channels;
    std::vector<T> parts(order == kForward ? 0 : kShared * step);
    if (a.positions == 1) {
      const int64_t blocks = (channels + kBlock - 1) / kBlock;
      parallel_for(pieces * blocks, [&](int64_t task) {
        Buffers io(a, sizes);
        const int64_t k = task / blocks, c = task % blocks * kBlock;
        columns(io, k * piece, std::min(a.batch, (k + 1) * piece), c, int(std::min<int64_t>(kBlock, channels - c)),
                parts.data() + k * channels, step);
      });
    } else {
      const int64_t rows = std::max<int64_t>(1, kTask / std::max<int64_t>(1, a.positions)), total = a.batch * channels;
      parallel_for((total + rows - 1) / rows, [&](int64_t task) {
        Buffers io(a, sizes);
        for (int64_t i = task * rows; i < std::min(total, (task + 1) * rows); ++i)
          row(io, i / channels, i % channels, parts.data() + i / channels * channels, step);
      });
    }
    if constexpr (order != kForward) {
      // A gradient by what is shared is zero where there is nothing to add up.
      for (int i = 0; i < kShared; ++i) {
        T* out = static_cast<T*>(a.out_shared[i]);
        if (!out) continue;
        std::fill(out, out + channels, T(0));
        for (int64_t k = 0; k < (a.positions ? pieces : 0); ++k)
          for (int64_t c = 0; c < channels; ++c) out[c] += parts[i * step + k * channels + c];
      }
    }
  }
};

template <Order order> int choose(const Args& a) {
  if (a.x.dtype == GMK_F64)
    Kernel<double, order>{a}();
  else
    Kernel<float, order>{a}();
  return 0;
}

}  // namespace

int virtual_batch_norm(const Args& a) { return choose<kForward>(a); }
int virtual_batch_norm_backward(const Args& a) { return choose<kBackward>(a); }
int virtual_batch_norm_double_backward(const Args& a) { return choose<kDouble>(a); }

}  // namespace GMK_ISA
}  // namespace gmk
