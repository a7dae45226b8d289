// Affine coupling over strided samples. See affine.h for the mathematics.
#include "affine.h"

#include "gmk/parallel.h"
#include "gmk/rows.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using Args = gmk_affine_coupling_args;

template <class T> GMK_INLINE mask_of<T> kept_lanes(const uint8_t* mask, int n) {
  pack<typename native<T>::mask> m(0);
  typename native<T>::mask x[kLanes] = {};
  for (int l = 0; l < n; ++l) x[l] = mask[l];
  std::memcpy(&m, x, sizeof m);
  return m != 0;
}

constexpr int64_t kTask = 4096;  // elements

// inner() of n log-scales, where the map has one, in a loop of its own. The two chains of tanh and of the exp of its
// result together are longer than what a processor looks ahead, which then waits for one element after the other.
template <int Map, class T> GMK_INLINE const T* inner_block(const T* s, int n, T* out) {
  if constexpr (has_inner<Map>) {
    each_pack(n, [&](int p, int lanes) { put(out, p, lanes, inner<Map>(get(s, p, lanes))); });
    return out;
  }
  return s;
}

// Calls f(masked, inverse) with constants: left inside, these branches cost as much as exp.
template <class F> GMK_INLINE void settled(bool masked, bool inverse, const F& f) {
  using Yes = std::true_type;
  using No = std::false_type;
  if (masked)
    inverse ? f(Yes{}, Yes{}) : f(Yes{}, No{});
  else
    inverse ? f(No{}, Yes{}) : f(No{}, No{});
}

template <class T, int Map> struct Affine {
  using P = pack<T>;
  using D = dual<P>;

  static void forward(const Args& a) {
    const T constant = scale_constant<T>(a.scale_map, a.clamp);
    each_row(a.sizes, kTask, [&] {
      return [&, x = Input<T>(a.x, a.sizes), s = Input<T>(a.log_scale, a.sizes), t = Input<T>(a.shift, a.sizes),
              y = Output<T>(a.out_y, a.x.dtype)](int64_t b, int64_t features) mutable {
        const T c = constant;  // a copy that no store can reach
        RowSum<T> logdet;
        T inner_buffer[kBlock], *inner = static_cast<T*>(a.out_inner);
        for (int64_t i = 0; i < features; i += kBlock) {
          const int n = int(std::min<int64_t>(kBlock, features - i));
          const T *px = x.block(b, i, n), *ps = s.block(b, i, n), *pt = t.block(b, i, n);
          const T* ph = inner_block<Map>(ps, n, inner ? inner + b * features + i : inner_buffer);
          T* py = y.block(b * features + i);
          settled(a.mask, a.inverse, [&](auto masked, auto inverse) {
            each_pack(n, [&](int p, int lanes) {
              const P xp = get(px, p, lanes);
              const Scale<P> k = scale<Map>(get(ps, p, lanes), get(ph, p, lanes), c, inverse);
              Forward<P> f = affine_forward(xp, k, get(pt, p, lanes), inverse);
              if constexpr (decltype(masked)::value) {
                const auto kept = kept_lanes<T>(a.mask + i + p * kLanes, lanes);
                f = {select<T>(kept, xp, f.y), select<T>(kept, T(0), f.a)};
              }
              put(py, p, lanes, f.y);
              logdet.add(p, lanes, f.a);
            });
          });
          y.commit(b * features + i, n);
        }
        static_cast<T*>(a.out_logdet)[b] = logdet.total();
      };
    });
  }

  static void backward(const Args& a) {
    const T constant = scale_constant<T>(a.scale_map, a.clamp);
    each_row<Order::last_to_first>(a.sizes, kTask, [&] {
      return [&, g = Input<T>(a.grad_y, a.sizes), x = Input<T>(a.x, a.sizes), s = Input<T>(a.log_scale, a.sizes),
              t = Input<T>(a.inverse ? a.shift : a.x, a.sizes), dx = Output<T>(a.out_x, a.x.dtype),
              ds = Output<T>(a.out_s, a.log_scale.dtype)](int64_t b, int64_t features) mutable {
        const T c = constant;
        T inner_buffer[kBlock];
        const T* inner = static_cast<const T*>(a.inner);
        const P l(static_cast<const T*>(a.grad_logdet)[b]);
        for (int64_t i = 0; i < features; i += kBlock) {
          const int n = int(std::min<int64_t>(kBlock, features - i));
          const T *pg = g.block(b, i, n), *px = x.block(b, i, n), *pt = a.inverse ? t.block(b, i, n) : px;
          const T* ph = inner ? inner + b * features + i : nullptr;
          const T* ps = ph && Map == GMK_TANH ? ph : s.block(b, i, n);  // all that is asked of s is in tanh(s)
          if (!ph) ph = inner_block<Map>(ps, n, inner_buffer);
          T *pdx = dx.block(b * features + i), *pds = ds.block(b * features + i);
          settled(a.mask, a.inverse, [&](auto masked, auto inverse) {
            each_pack(n, [&](int p, int lanes) {
              const P gp = get(pg, p, lanes);
              const Scale<P> k = scale<Map>(get(ps, p, lanes), get(ph, p, lanes), c, inverse);
              Backward<P> r = affine_backward(gp, l, get(px, p, lanes), k, get(pt, p, lanes), inverse);
              if constexpr (decltype(masked)::value) {
                const auto kept = kept_lanes<T>(a.mask + i + p * kLanes, lanes);
                r = {select<T>(kept, gp, r.x), select<T>(kept, T(0), r.s)};
              }
              put(pdx, p, lanes, r.x);
              put(pds, p, lanes, r.s);
            });
          });
          dx.commit(b * features + i, n);
          ds.commit(b * features + i, n);
        }
      };
    });
  }

  // The tangents of backward and forward along (v_x, v_s).
  static void double_backward(const Args& a) {
    const T c = scale_constant<T>(a.scale_map, a.clamp);
    const bool inverse = a.inverse;
    each_row(a.sizes, kTask, [&] {
      return [&, vx = Input<T>(a.v_x, a.sizes), vs = Input<T>(a.v_s, a.sizes), g = Input<T>(a.grad_y, a.sizes),
              x = Input<T>(a.x, a.sizes), s = Input<T>(a.log_scale, a.sizes), t = Input<T>(a.shift, a.sizes),
              ox = Output<T>(a.out_x, a.x.dtype), os = Output<T>(a.out_s, a.log_scale.dtype),
              oy = Output<T>(a.out_y, a.x.dtype)](int64_t b, int64_t features) mutable {
        const P l(static_cast<const T*>(a.grad_logdet)[b]);
        RowSum<T> logdet;
        for (int64_t i = 0; i < features; i += kBlock) {
          const int n = int(std::min<int64_t>(kBlock, features - i));
          const T *pvx = vx.block(b, i, n), *pvs = vs.block(b, i, n), *pg = g.block(b, i, n);
          const T *px = x.block(b, i, n), *ps = s.block(b, i, n), *pt = t.block(b, i, n);
          T *pox = ox.block(b * features + i), *pos = os.block(b * features + i), *poy = oy.block(b * features + i);
          each_pack(n, [&](int p, int lanes) {
            const P along = get(pvx, p, lanes);
            const D xd(get(px, p, lanes), along), sd(get(ps, p, lanes), get(pvs, p, lanes)), td(get(pt, p, lanes));
            P y, ld;
            const Scale<D> k = scale<Map>(sd, c, inverse);
            {
              const Forward<D> f = affine_forward(xd, k, td, inverse);
              y = f.y.d;
              ld = f.a.d;
            }
            const Backward<D> r = affine_backward(D(get(pg, p, lanes)), D(l), xd, k, td, inverse);
            P dx = r.x.d, ds = r.s.d;
            if (a.mask) {
              const auto kept = kept_lanes<T>(a.mask + i + p * kLanes, lanes);
              y = select<T>(kept, along, y);
              ld = select<T>(kept, T(0), ld);
              dx = select<T>(kept, T(0), dx);
              ds = select<T>(kept, T(0), ds);
            }
            put(pox, p, lanes, dx);
            put(pos, p, lanes, ds);
            put(poy, p, lanes, y);
            logdet.add(p, lanes, ld);
          });
          ox.commit(b * features + i, n);
          os.commit(b * features + i, n);
          oy.commit(b * features + i, n);
        }
        static_cast<T*>(a.out_logdet)[b] = logdet.total();
      };
    });
  }
};

// Calls f with Affine<T, Map> for the compute type and scale map of a call.
template <class T, class F> int with_map(const Args& a, const F& f) {
  switch (a.scale_map) {
    case GMK_EXP: return f(Affine<T, GMK_EXP>{});
    case GMK_TANH: return f(Affine<T, GMK_TANH>{});
    case GMK_ATAN: return f(Affine<T, GMK_ATAN>{});
    case GMK_SIGMOID: return f(Affine<T, GMK_SIGMOID>{});
    case GMK_RECIPROCAL_SIGMOID: return f(Affine<T, GMK_RECIPROCAL_SIGMOID>{});
    case GMK_SOFTPLUS: return f(Affine<T, GMK_SOFTPLUS>{});
    default: return f(Affine<T, GMK_SOFT_CLIP>{});
  }
}
template <class F> int with_affine(const Args& a, const F& f) {
  const bool wide = a.x.dtype == GMK_F64 || a.log_scale.dtype == GMK_F64;
  return wide ? with_map<double>(a, f) : with_map<float>(a, f);
}

}  // namespace

int affine_coupling(const Args& a) {
  return with_affine(a, [&](auto k) { return k.forward(a), 0; });
}
int affine_coupling_backward(const Args& a) {
  return with_affine(a, [&](auto k) { return k.backward(a), 0; });
}
int affine_coupling_double_backward(const Args& a) {
  return with_affine(a, [&](auto k) { return k.double_backward(a), 0; });
}

}  // namespace GMK_ISA
}  // namespace gmk
