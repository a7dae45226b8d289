// Draws from Gaussian posteriors with their KL divergence. See gaussian.h for the mathematics.
#include "gaussian.h"
#include "gmk/rows.h"
#include "gmk/stream.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using Args = gmk_reparameterize_args;
constexpr int64_t kTask = 4096;  // elements

template <class T> struct Reparameterize {
  using P = pack<T>;
  using D = dual<P>;

  static Normals<T> noise(const Args& a) { return Normals<T>({uint64_t(a.key[0]), uint64_t(a.key[1])}); }

  static void forward(const Args& a) {
    const T free_bits = T(a.free_bits), beta = T(a.beta);
    each_row(a.sizes, kTask, [&] {
      return [&, mu = Input<T>(a.mu, a.sizes), logvar = Input<T>(a.logvar, a.sizes), z = Output<T>(a.out_z, a.mu.dtype),
              eps = noise(a)](int64_t b, int64_t features) mutable {
        RowSum<T> kl;
        for (int64_t i = 0; i < features; i += kBlock) {
          const int n = int(std::min<int64_t>(kBlock, features - i));
          const T *pm = mu.block(b, i, n), *pv = logvar.block(b, i, n),
                  *pe = eps.piece((a.first + b) * features + i, n);
          T* pz = z.block(b * features + i);
          each_pack(n, [&](int p, int lanes) {
            const Draw<P> d = reparameterize(get(pm, p, lanes), get(pv, p, lanes), get(pe, p, lanes), free_bits);
            put(pz, p, lanes, d.z);
            kl.add(p, lanes, d.kl);
          });
          z.commit(b * features + i, n);
        }
        static_cast<T*>(a.out_kl)[b] = beta * kl.total();
      };
    });
  }

  static void backward(const Args& a) {
    const T free_bits = T(a.free_bits), beta = T(a.beta);
    each_row(a.sizes, kTask, [&] {
      return [&, g = Input<T>(a.grad_z, a.sizes), mu = Input<T>(a.mu, a.sizes), logvar = Input<T>(a.logvar, a.sizes),
              dmu = Output<T>(a.out_mu, a.mu.dtype), dlogvar = Output<T>(a.out_logvar, a.mu.dtype),
              eps = noise(a)](int64_t b, int64_t features) mutable {
        const P l(beta * static_cast<const T*>(a.grad_kl)[b]);
        for (int64_t i = 0; i < features; i += kBlock) {
          const int n = int(std::min<int64_t>(kBlock, features - i));
          const T *pg = g.block(b, i, n), *pm = mu.block(b, i, n), *pv = logvar.block(b, i, n);
          const T* pe = eps.piece((a.first + b) * features + i, n);
          T *pdm = dmu.block(b * features + i), *pdv = dlogvar.block(b * features + i);
          each_pack(n, [&](int p, int lanes) {
            const DrawGradient<P> r = reparameterize_backward(get(pg, p, lanes), l, get(pm, p, lanes),
                                                              get(pv, p, lanes), get(pe, p, lanes), free_bits);
            put(pdm, p, lanes, r.mu);
            put(pdv, p, lanes, r.logvar);
          });
          dmu.commit(b * features + i, n);
          dlogvar.commit(b * features + i, n);
        }
      };
    });
  }

  // The tangents of backward and forward along (v_mu, v_logvar).
  static void double_backward(const Args& a) {
    const T free_bits = T(a.free_bits), beta = T(a.beta);
    each_row(a.sizes, kTask, [&] {
      return [&, vm = Input<T>(a.v_mu, a.sizes), vv = Input<T>(a.v_logvar, a.sizes), g = Input<T>(a.grad_z, a.sizes),
              mu = Input<T>(a.mu, a.sizes), logvar = Input<T>(a.logvar, a.sizes), om = Output<T>(a.out_mu, a.mu.dtype),
              ov = Output<T>(a.out_logvar, a.mu.dtype), oz = Output<T>(a.out_z, a.mu.dtype),
              eps = noise(a)](int64_t b, int64_t features) mutable {
        const D l(P(beta * static_cast<const T*>(a.grad_kl)[b]));
        RowSum<T> kl;
        for (int64_t i = 0; i < features; i += kBlock) {
          const int n = int(std::min<int64_t>(kBlock, features - i));
          const T *pvm = vm.block(b, i, n), *pvv = vv.block(b, i, n), *pg = g.block(b, i, n);
          const T *pm = mu.block(b, i, n), *pv = logvar.block(b, i, n),
                  *pe = eps.piece((a.first + b) * features + i, n);
          T *pom = om.block(b * features + i), *pov = ov.block(b * features + i), *poz = oz.block(b * features + i);
          each_pack(n, [&](int p, int lanes) {
            const D m(get(pm, p, lanes), get(pvm, p, lanes)), v(get(pv, p, lanes), get(pvv, p, lanes)),
                e(get(pe, p, lanes));
            const Draw<D> d = reparameterize(m, v, e, free_bits);
            const DrawGradient<D> r = reparameterize_backward(D(get(pg, p, lanes)), l, m, v, e, free_bits);
            put(pom, p, lanes, r.mu.d);
            put(pov, p, lanes, r.logvar.d);
            put(poz, p, lanes, d.z.d);
            kl.add(p, lanes, d.kl.d);
          });
          om.commit(b * features + i, n);
          ov.commit(b * features + i, n);
          oz.commit(b * features + i, n);
        }
        static_cast<T*>(a.out_kl)[b] = beta * kl.total();
      };
    });
  }
};

template <class F> int with_type(const Args& a, const F& f) {
  if (a.mu.dtype == GMK_F64)
    f(Reparameterize<double>{});
  else
    f(Reparameterize<float>{});
  return 0;
}

}  // namespace

int reparameterize_kl(const Args& a) {
  return with_type(a, [&](auto k) { k.forward(a); });
}
int reparameterize_kl_backward(const Args& a) {
  return with_type(a, [&](auto k) { k.backward(a); });
}
int reparameterize_kl_double_backward(const Args& a) {
  return with_type(a, [&](auto k) { k.double_backward(a); });
}

}  // namespace GMK_ISA
}  // namespace gmk
