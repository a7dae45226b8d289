// What perceptrons do with a sample's numbers between and after their products: activations, and the affine coupling.
#pragma once

#include "../coupling/affine.h"
#include "gmk/rows.h"

namespace gmk {
namespace GMK_ISA {
namespace {

template <class T, int kind> struct Activation {
  using P = pack<T>;
  static GMK_INLINE P value(const P& a) {
    if constexpr (kind == GMK_RELU) return select(a <= P(T(0)), P(T(0)), a);
    if constexpr (kind == GMK_SILU) return a * sigmoid(a);
    return tanh(a);
  }
  static GMK_INLINE P slope(const P& a, const P& h) {
    if constexpr (kind == GMK_RELU) return select(a <= P(T(0)), P(T(0)), P(T(1)));
    if constexpr (kind == GMK_SILU) {
      const P s = sigmoid(a);
      return fma(h, P(T(1)) - s, s);  // s + a s (1 - s)
    }
    return fma(-h, h, P(T(1)));
  }
};

// f(offset, lanes) for every pack of n numbers
template <class F> GMK_INLINE void walk(int64_t n, const F& f) {
  for (int64_t i = 0; i < n; i += kLanes) f(i, int(std::min<int64_t>(kLanes, n - i)));
}
template <class T> GMK_INLINE pack<T> get(const T* p, int lanes) {
  return lanes == kLanes ? load(p) : load_n(p, lanes);
}
template <class T> GMK_INLINE void put(T* p, int lanes, const pack<T>& v) {
  if (lanes == kLanes)
    store(p, v);
  else
    store_n(p, v, lanes);
}

// The affine transformation of a sample's numbers, given log-scales s and shifts t.
template <class T> struct Couple {
  // x -> y; returns the log-determinant
  T (*forward)(const T* x, const T* s, const T* t, int64_t n, T c, bool inverse, T* y);
  // the gradient g of y and l of the log-determinant -> that of x (if wanted), those of s and t, and g y (if wanted)
  void (*backward)(const T* g, T l, const T* x, const T* s, const T* t, int64_t n, T c, bool inverse, T* dx, T* ds,
                   T* dt, T* gy);
};

template <class T, int Map> struct CoupleBy {
  using P = pack<T>;

  static T forward(const T* x, const T* s, const T* t, int64_t n, T c, bool inverse, T* y) {
    RowSum<T> logdet;
    walk(n, [&](int64_t i, int lanes) {
      const Forward<P> f =
          affine_forward(get(x + i, lanes), scale<Map>(get(s + i, lanes), c, inverse), get(t + i, lanes), inverse);
      put(y + i, lanes, f.y);
      logdet.add(int(i / kLanes % GMK_ISA::kPacks), lanes, f.a);
    });
    return logdet.total();
  }
  static void backward(const T* g, T l, const T* x, const T* s, const T* t, int64_t n, T c, bool inverse, T* dx, T* ds,
                       T* dt, T* gy) {
    walk(n, [&](int64_t i, int lanes) {
      const P gi = get(g + i, lanes), xi = get(x + i, lanes), ti = get(t + i, lanes);
      const Scale<P> k = scale<Map>(get(s + i, lanes), c, inverse);
      const Backward<P> r = affine_backward(gi, P(l), xi, k, ti, inverse);
      if (gy) put(gy + i, lanes, gi * affine_forward(xi, k, ti, inverse).y);
      if (dx) put(dx + i, lanes, r.x);
      put(ds + i, lanes, r.s);
      put(dt + i, lanes, inverse ? -r.x : gi);
    });
  }
};

template <class T> Couple<T> couple_by(int32_t map) {
  switch (map) {
#define GMK_MAP(M) \
  case M: return {CoupleBy<T, M>::forward, CoupleBy<T, M>::backward};
    GMK_MAP(GMK_EXP)
    GMK_MAP(GMK_TANH)
    GMK_MAP(GMK_ATAN)
    GMK_MAP(GMK_SIGMOID)
    GMK_MAP(GMK_RECIPROCAL_SIGMOID)
    GMK_MAP(GMK_SOFTPLUS)
    GMK_MAP(GMK_SOFT_CLIP)
#undef GMK_MAP
    default: return {};
  }
}

}  // namespace
}  // namespace GMK_ISA
}  // namespace gmk
