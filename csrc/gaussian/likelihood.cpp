// Log-likelihoods of Bernoulli and Gaussian decoders, summed over each sample. See gaussian.h for the mathematics.
#include "gaussian.h"
#include "gmk/rows.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using Args = gmk_likelihood_args;
constexpr int64_t kTask = 16384;  // elements

// An operand of which some samples in turn may have one row.
template <class T> struct Shared {
  Input<T> input;
  const int64_t samples;

  Shared(const gmk_rows& rows, const gmk_sizes& sizes, int64_t count) : input(rows, sizes), samples(count) {}
  const T* block(int64_t b, int64_t i, int n) { return input.block(samples > 1 ? b / samples : b, i, n); }
};

// An operand that may be missing, and then is one number everywhere.
template <class T> struct Optional {
  Shared<T> rows;
  const pack<T> missing;
  const T* here = nullptr;

  Optional(const gmk_rows& r, const gmk_sizes& sizes, T value, int64_t count) : rows(r, sizes, count), missing(value) {}
  void block(int64_t b, int64_t i, int n) { here = rows.input.rows.data ? rows.block(b, i, n) : nullptr; }
  GMK_INLINE pack<T> get(int p, int lanes) const { return here ? GMK_ISA::get(here, p, lanes) : missing; }
};

template <class T> struct Likelihood {
  using P = pack<T>;
  using D = dual<P>;

  static Optional<T> operand(const Args& a, const gmk_rows& rows, T missing) {
    return Optional<T>(rows, a.sizes, missing, 1);
  }
  static Shared<T> target(const Args& a) { return Shared<T>(a.x, a.sizes, a.x_samples); }
  static Optional<T> factor(const Args& a) { return Optional<T>(a.weight, a.sizes, T(1), a.weight_samples); }

  static void bernoulli(const Args& a) {
    each_row(a.sizes, kTask, [&] {
      return [&, logits = Input<T>(a.location, a.sizes), x = target(a), weight = factor(a)](int64_t b,
                                                                                            int64_t features) mutable {
        RowSum<T> sum;
        for (int64_t i = 0; i < features; i += kBlock) {
          const int n = int(std::min<int64_t>(kBlock, features - i));
          const T *pl = logits.block(b, i, n), *px = x.block(b, i, n);
          weight.block(b, i, n);
          each_pack(n, [&](int p, int lanes) {
            sum.add(p, lanes, weight.get(p, lanes) * GMK_ISA::bernoulli(get(pl, p, lanes), get(px, p, lanes)));
          });
        }
        static_cast<T*>(a.out)[b] = sum.total();
      };
    });
  }

  static void bernoulli_backward(const Args& a) {
    each_row(a.sizes, kTask, [&] {
      return [&, logits = Input<T>(a.location, a.sizes), x = target(a), weight = factor(a),
              out = Output<T>(a.out_location, a.location_dtype)](int64_t b, int64_t features) mutable {
        const P g(static_cast<const T*>(a.grad)[b]);
        for (int64_t i = 0; i < features; i += kBlock) {
          const int n = int(std::min<int64_t>(kBlock, features - i));
          const T *pl = logits.block(b, i, n), *px = x.block(b, i, n);
          weight.block(b, i, n);
          T* po = out.block(b * features + i);
          each_pack(n, [&](int p, int lanes) {
            put(po, p, lanes, g * weight.get(p, lanes) * bernoulli_slope(get(pl, p, lanes), get(px, p, lanes)));
          });
          out.commit(b * features + i, n);
        }
      };
    });
  }

  static void bernoulli_double_backward(const Args& a) {
    each_row(a.sizes, kTask, [&] {
      return
          [&, v = Input<T>(a.v_location, a.sizes), logits = Input<T>(a.location, a.sizes), x = target(a),
           weight = factor(a), out = Output<T>(a.out_location, a.location_dtype)](int64_t b, int64_t features) mutable {
            const P g(static_cast<const T*>(a.grad)[b]);
            RowSum<T> sum;
            for (int64_t i = 0; i < features; i += kBlock) {
              const int n = int(std::min<int64_t>(kBlock, features - i));
              const T *pv = v.block(b, i, n), *pl = logits.block(b, i, n), *px = x.block(b, i, n);
              weight.block(b, i, n);
              T* po = out.block(b * features + i);
              each_pack(n, [&](int p, int lanes) {
                const P along = get(pv, p, lanes), w = weight.get(p, lanes);
                const D slope = bernoulli_slope(D(get(pl, p, lanes), along), D(get(px, p, lanes)));
                put(po, p, lanes, g * w * slope.d);
                sum.add(p, lanes, w * along * slope.v);
              });
              out.commit(b * features + i, n);
            }
            static_cast<T*>(a.out)[b] = sum.total();
          };
    });
  }

  static void gaussian(const Args& a) {
    each_row(a.sizes, kTask, [&] {
      return [&, x = target(a), mean = operand(a, a.location, T(0)), logvar = operand(a, a.logvar, T(0)),
              weight = factor(a)](int64_t b, int64_t features) mutable {
        RowSum<T> sum;
        for (int64_t i = 0; i < features; i += kBlock) {
          const int n = int(std::min<int64_t>(kBlock, features - i));
          const T* px = x.block(b, i, n);
          mean.block(b, i, n);
          logvar.block(b, i, n);
          weight.block(b, i, n);
          each_pack(n, [&](int p, int lanes) {
            const P v = logvar.get(p, lanes);
            sum.add(p, lanes,
                    weight.get(p, lanes) *
                        GMK_ISA::gaussian(get(px, p, lanes) - mean.get(p, lanes), v, precision(logvar, v)));
          });
        }
        static_cast<T*>(a.out)[b] = sum.total();
      };
    });
  }

  static void gaussian_backward(const Args& a) {
    each_row(a.sizes, kTask, [&] {
      return [&, x = target(a), mean = operand(a, a.location, T(0)), logvar = operand(a, a.logvar, T(0)),
              weight = factor(a), dm = Output<T>(a.out_location, a.location_dtype),
              dv = Output<T>(a.out_logvar, a.logvar.dtype)](int64_t b, int64_t features) mutable {
        const P g(static_cast<const T*>(a.grad)[b]);
        for (int64_t i = 0; i < features; i += kBlock) {
          const int n = int(std::min<int64_t>(kBlock, features - i));
          const T* px = x.block(b, i, n);
          mean.block(b, i, n);
          logvar.block(b, i, n);
          weight.block(b, i, n);
          T *pm = dm.block(b * features + i), *pv = a.out_logvar ? dv.block(b * features + i) : nullptr;
          each_pack(n, [&](int p, int lanes) {
            const P r = get(px, p, lanes) - mean.get(p, lanes), gw = g * weight.get(p, lanes);
            const GaussianSlope<P> s = gaussian_slope(r, precision(logvar, logvar.get(p, lanes)));
            put(pm, p, lanes, gw * s.mean);
            if (pv) put(pv, p, lanes, gw * s.logvar);
          });
          dm.commit(b * features + i, n);
          if (pv) dv.commit(b * features + i, n);
        }
      };
    });
  }

  static void gaussian_double_backward(const Args& a) {
    each_row(a.sizes, kTask, [&] {
      return [&, vm = Input<T>(a.v_location, a.sizes), vv = operand(a, a.v_logvar, T(0)), x = target(a),
              mean = operand(a, a.location, T(0)), logvar = operand(a, a.logvar, T(0)), weight = factor(a),
              om = Output<T>(a.out_location, a.location_dtype),
              ov = Output<T>(a.out_logvar, a.logvar.dtype)](int64_t b, int64_t features) mutable {
        const P g(static_cast<const T*>(a.grad)[b]);
        RowSum<T> sum;
        for (int64_t i = 0; i < features; i += kBlock) {
          const int n = int(std::min<int64_t>(kBlock, features - i));
          const T *pa = vm.block(b, i, n), *px = x.block(b, i, n);
          vv.block(b, i, n);
          mean.block(b, i, n);
          logvar.block(b, i, n);
          weight.block(b, i, n);
          T *pm = om.block(b * features + i), *pv = a.out_logvar ? ov.block(b * features + i) : nullptr;
          each_pack(n, [&](int p, int lanes) {
            const P along = get(pa, p, lanes), along_v = vv.get(p, lanes), w = weight.get(p, lanes), gw = g * w;
            const P q = precision(logvar, logvar.get(p, lanes));
            // The tangents along (v_mean, v_logvar): r falls by v_mean, and the precision by v_logvar times itself.
            const D r(get(px, p, lanes) - mean.get(p, lanes), -along);
            const GaussianSlope<D> s = gaussian_slope(r, D(q, -along_v * q));
            put(pm, p, lanes, gw * s.mean.d);
            if (pv) put(pv, p, lanes, gw * s.logvar.d);
            sum.add(p, lanes, w * fma(along, s.mean.v, along_v * s.logvar.v));
          });
          om.commit(b * features + i, n);
          if (pv) ov.commit(b * features + i, n);
        }
        static_cast<T*>(a.out)[b] = sum.total();
      };
    });
  }

  // exp(-logvar), which is 1 without a logvar.
  static GMK_INLINE P precision(const Optional<T>& logvar, const P& v) { return logvar.here ? exp(-v) : P(T(1)); }
};

template <class F> int with_type(const Args& a, const F& f) {
  bool wide = false;
  for (const gmk_rows* rows : {&a.location, &a.logvar, &a.x, &a.weight}) wide = wide || rows->dtype == GMK_F64;
  if (wide)
    f(Likelihood<double>{});
  else
    f(Likelihood<float>{});
  return 0;
}

}  // namespace

int bernoulli_log_likelihood(const Args& a) {
  return with_type(a, [&](auto k) { k.bernoulli(a); });
}
int bernoulli_log_likelihood_backward(const Args& a) {
  return with_type(a, [&](auto k) { k.bernoulli_backward(a); });
}
int bernoulli_log_likelihood_double_backward(const Args& a) {
  return with_type(a, [&](auto k) { k.bernoulli_double_backward(a); });
}
int gaussian_log_likelihood(const Args& a) {
  return with_type(a, [&](auto k) { k.gaussian(a); });
}
int gaussian_log_likelihood_backward(const Args& a) {
  return with_type(a, [&](auto k) { k.gaussian_backward(a); });
}
int gaussian_log_likelihood_double_backward(const Args& a) {
  return with_type(a, [&](auto k) { k.gaussian_double_backward(a); });
}

}  // namespace GMK_ISA
}  // namespace gmk
