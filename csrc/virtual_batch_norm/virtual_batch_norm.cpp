// Virtual batch normalisation: every example and channel is a row of its own, read three times from a cache: for its
// mean, for its variance (about that mean, so that nothing cancels), and for the output. The formulas and their letters
// are those of gmkernels/ops/virtual_batch_norm/autograd.py; the second derivative is their tangent.
//
// A root and a division take longer than a short row, so the algebra of sixteen channels fills the lanes of a pack.
// Where a row is a single number, it is all there is.
//
// Sums have 64 lanes, an element's position modulo 64, folded by halves: four packs, which stay in registers. Gradients
// by what all examples share are summed over pieces of the batch, piece after piece: one order, whatever the threads.
#include <algorithm>
#include <type_traits>
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
    k.r = one / sqrt(fma(a, h.var, c * fma(k.offset, k.d, s.square)) + N(eps));
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

// Coefficients of sixteen rows, lane by lane.
template <class T> struct Lanes {
  T at[kLanes];
  GMK_INLINE void operator=(const pack<T>& a) { store(at, a); }
  GMK_INLINE pack<T> all() const { return load(at); }
  GMK_INLINE pack<T> of(int row) const { return pack<T>(at[row]); }
};

// The sums of K numbers over the elements of a row: term(k, p, lanes) is the k-th of pack p of a block.
template <class T, int K> struct Four {
  pack<T> lanes[K][4];
  Four() {
    for (auto& row : lanes)
      for (auto& lane : row) lane = pack<T>(T(0));
  }
  template <class F> static GMK_INLINE pack<T> real(int k, int p, int n, const F& term) {
    return n == kLanes ? term(k, p, n) : select<T>(iota<typename native<T>::mask>() < n, term(k, p, n), T(0));
  }
  template <int J, class F> GMK_INLINE void add(int p, int n, const F& term) {
    if (const int left = std::min(kLanes, n - (p + J) * kLanes); left > 0)
      for (int k = 0; k < K; ++k) lanes[k][J] += real(k, p + J, left, term);
  }
  template <class F> GMK_INLINE void block(int n, const F& term) {
    int p = 0;
    for (; (p + 4) * kLanes <= n; p += 4)
      for (int j = 0; j < 4; ++j)
        for (int k = 0; k < K; ++k) lanes[k][j] += term(k, p + j, kLanes);
    if (p * kLanes == n) return;
    add<0>(p, n, term);
    add<1>(p, n, term);
    add<2>(p, n, term);
    add<3>(p, n, term);
  }
  GMK_INLINE T total(int k) const { return fold((lanes[k][0] + lanes[k][2]) + (lanes[k][1] + lanes[k][3])); }
};

template <class T, Order order> struct Kernel {
  using P = pack<T>;
  const Args& a;
  const Mix<T> mix{a};
  const gmk_sizes sizes =
      a.positions == 1 ? gmk_sizes{a.batch, 1, a.channels} : gmk_sizes{a.batch, a.channels, a.positions};

  struct Buffers {
    Input<T> x, g, v;
    Output<T> out, by_grad;
    Buffers(const Args& a, const gmk_sizes& sizes)
        : x(a.x, sizes), g(a.grad, sizes), v(a.v_x, sizes), out(a.out, a.x.dtype), by_grad(a.out_grad, a.x.dtype) {}
  };

  // What channels c .. c + lanes share, and the cotangents of that.
  GMK_INLINE Shared<P> shared(const void* const (&from)[kShared], int64_t c, int lanes) const {
    const auto read = [&](int i) { return get(static_cast<const T*>(from[i]) + c, 0, lanes); };
    return {read(0), read(1), read(2), from[3] ? read(3) : P(T(0))};
  }
  GMK_INLINE Shared<P> cotangents(int64_t c, int lanes) const {
    if constexpr (order == kDouble) return shared(a.v_shared, c, lanes);
    return {P(T(0)), P(T(0)), P(T(0)), P(T(0))};
  }

  bool in_place(const gmk_rows& r) const {
    return r.inner == 1 && r.dtype == dtype_of<T>() && a.positions <= (int64_t(1) << 30);
  }

  // Channels c .. c + rows of one example, at most sixteen.
  void group(Buffers& io, int64_t b, int64_t c, int rows, T* part, int64_t step) const {
    const int64_t length = a.positions;
    // Rows that lie side by side in the type of the computation are walked where they are, others a block at a time.
    const bool plain =
        in_place(a.x) && (order == kForward || in_place(a.grad)) && (order != kDouble || in_place(a.v_x));
    const auto blocks = [&](int row, const auto& f) {
      const int64_t start = (c + row) * length;
      if (plain) {
        const auto here = [&](const gmk_rows& r) {
          return static_cast<const T*>(r.data) + b * r.batch + (c + row) * r.outer;
        };
        f(start, int(length), here(a.x), order == kForward ? nullptr : here(a.grad),
          order == kDouble ? here(a.v_x) : nullptr);
        return;
      }
      for (int64_t i = 0; i < length; i += kBlock) {
        const int n = int(std::min<int64_t>(kBlock, length - i));
        const T* px = io.x.block(b, start + i, n);
        const T* pg = order == kForward ? nullptr : io.g.block(b, start + i, n);
        const T* pv = order == kDouble ? io.v.block(b, start + i, n) : nullptr;
        f(start + i, n, px, pg, pv);
      }
    };
    // out[k].at[row] becomes the sum over the row of term_of(row)(k, p, lanes, operands).
    const auto total = [&](auto& out, const auto& term_of) {
      constexpr int kTerms = int(std::extent_v<std::remove_reference_t<decltype(out)>>);
      for (int row = 0; row < rows; ++row) {
        const auto term = term_of(row);
        if (plain && length <= kLanes) {
          blocks(row, [&](int64_t, int n, const T* px, const T* pg, const T* pv) {
            const auto f = [&](int k, int p, int lanes) { return term(k, p, lanes, px, pg, pv); };
            for (int k = 0; k < kTerms; ++k) out[k].at[row] = fold(Four<T, kTerms>::real(k, 0, n, f));
          });
          continue;
        }
        Four<T, kTerms> four;
        blocks(row, [&](int64_t, int n, const T* px, const T* pg, const T* pv) {
          four.block(n, [&](int k, int p, int lanes) { return term(k, p, lanes, px, pg, pv); });
        });
        for (int k = 0; k < kTerms; ++k) out[k].at[row] = four.total(k);
      }
    };
    // All means come before the first variance: a row alone would wait for each of its sums.
    const P per(mix.inverse), zero(T(0));
    Lanes<T> first[order + 1] = {}, second[order == kDouble ? 4 : order + 1] = {}, mean, mean_d;
    total(first, [](int) {
      return [](int k, int p, int lanes, const T* px, const T* pg, const T* pv) {
        return get(k == 0 ? px : k == 1 ? pg : pv, p, lanes);
      };
    });
    mean = first[0].all() * per, mean_d = order == kDouble ? first[order].all() * per : zero;
    total(second, [&](int row) {
      const P centre = mean.of(row), centre_d = mean_d.of(row);
      return [centre, centre_d](int k, int p, int lanes, const T* px, const T* pg, const T* pv) {
        const P x = get(px, p, lanes) - centre;
        if (k == 0) return x * x;
        if (k == 1) return get(pg, p, lanes) * x;
        const P xd = get(pv, p, lanes) - centre_d;
        return k == 2 ? x * xd : get(pg, p, lanes) * xd;
      };
    });
    Sums<P> s{mean.all(), second[0].all() * per, zero, zero, mean_d.all(), zero, zero};
    if constexpr (order != kForward) s.g = first[1].all(), s.gx = second[1].all();
    if constexpr (order == kDouble) s.square_d = P(T(2)) * second[2].all() * per, s.gxd = second[3].all();
    const Shared<P> h = shared(a.shared, c, rows), v = cotangents(c, rows);
    const Row<P> k = mix.template row<order>(s, h, v);
    if constexpr (order != kForward) {
      put(part + c, 0, rows, k.shared.mean);
      put(part + step + c, 0, rows, k.shared.var);
      put(part + 2 * step + c, 0, rows, k.shared.weight);
      put(part + 3 * step + c, 0, rows, k.shared.bias);
    }
    Row<Lanes<T>> held;
    Lanes<T> bias, bias_d;
    held.offset = k.offset, held.gain = k.gain, bias = h.bias, bias_d = v.bias;
    if constexpr (order != kForward) held.slope = k.slope, held.level = k.level;
    if constexpr (order == kDouble) {
      held.offset_d = k.offset_d, held.gain_d = k.gain_d;
      held.slope_d = k.slope_d, held.level_d = k.level_d;
    }
    for (int row = 0; row < rows; ++row) {
      Row<P> w;
      w.offset = held.offset.of(row), w.gain = held.gain.of(row);
      if constexpr (order != kForward) w.slope = held.slope.of(row), w.level = held.level.of(row);
      if constexpr (order == kDouble) {
        w.offset_d = held.offset_d.of(row), w.gain_d = held.gain_d.of(row);
        w.slope_d = held.slope_d.of(row), w.level_d = held.level_d.of(row);
      }
      const P centre = mean.of(row), centre_d = mean_d.of(row), shift = bias.of(row), shift_d = bias_d.of(row);
      blocks(row, [&](int64_t i, int n, const T* px, const T* pg, const T* pv) {
        const int64_t place = b * a.channels * length + i;
        T* out = io.out.block(place);
        T* by_grad = order == kDouble ? io.by_grad.block(place) : nullptr;
        const int whole = n / kLanes;
        for (int p = 0; p < whole; ++p)
          element(w, shift, shift_d, centre, centre_d, p, kLanes, px, pg, pv, out, by_grad);
        if (const int left = n - whole * kLanes; left > 0)
          element(w, shift, shift_d, centre, centre_d, whole, left, px, pg, pv, out, by_grad);
        io.out.commit(place, n);
        if constexpr (order == kDouble) io.by_grad.commit(place, n);
      });
    }
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

  // Channels c .. c + n of examples of one position each.
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
        const Shared<P> h = shared(a.shared, c + p * kLanes, lanes), v = cotangents(c + p * kLanes, lanes);
        const P x = get(px, p, lanes), nothing = x - x;  // NaN where x is not finite, as a mean over more would give
        Sums<P> s{x, nothing, P(T(0)), P(T(0)), P(T(0)), P(T(0)), P(T(0))};
        if constexpr (order != kForward) s.g = get(pg, p, lanes), s.gx = s.g * nothing;
        if constexpr (order == kDouble) s.mean_d = get(pv, p, lanes);
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
    } else if (a.positions > 0) {
      // As many rows at once as the first-level cache holds.
      const int64_t rows = std::clamp<int64_t>(kTask / a.positions, 1, kLanes), groups = (channels + rows - 1) / rows;
      const int64_t many = std::max<int64_t>(1, kTask / (rows * a.positions)), total = a.batch * groups;
      parallel_for((total + many - 1) / many, [&](int64_t task) {
        Buffers io(a, sizes);
        for (int64_t i = task * many; i < std::min(total, (task + 1) * many); ++i) {
          const int64_t b = i / groups, c = i % groups * rows;
          group(io, b, c, int(std::min(rows, channels - c)), parts.data() + b * channels, step);
        }
      });
    }
    if constexpr (order != kForward) {
      // Of no positions, parts is all zeros.
      for (int i = 0; i < kShared; ++i) {
        T* out = static_cast<T*>(a.out_shared[i]);
        if (!out) continue;
        std::fill(out, out + channels, T(0));
        for (int64_t k = 0; k < pieces; ++k)
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
