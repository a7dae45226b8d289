// Dual numbers v + d eps, eps^2 = 0: a program run on them yields its value and its derivative along a direction.
//
// A gradient kernel run on dual inputs yields the product of the Hessian with that direction, which is what double
// backward needs (Pearlmutter, "Fast exact multiplication by the Hessian", 1994). So each kernel is written once, for
// numbers of type N, and its second derivative is the same code with N = dual<pack<T>>.
#pragma once

#include "gmk/simd.h"
#include "gmk/vmath.h"

namespace gmk {
namespace GMK_ISA {

template <class P> struct dual {
  using scalar = typename P::scalar;
  P v, d;
  dual() = default;
  GMK_INLINE dual(const P& value) : v(value), d(scalar(0)) {}
  GMK_INLINE dual(scalar value) : v(value), d(scalar(0)) {}
  GMK_INLINE dual(const P& value, const P& derivative) : v(value), d(derivative) {}
};

template <class P> GMK_INLINE dual<P> operator+(const dual<P>& a, const dual<P>& b) { return {a.v + b.v, a.d + b.d}; }
template <class P> GMK_INLINE dual<P> operator-(const dual<P>& a, const dual<P>& b) { return {a.v - b.v, a.d - b.d}; }
template <class P> GMK_INLINE dual<P> operator-(const dual<P>& a) { return {-a.v, -a.d}; }
template <class P> GMK_INLINE dual<P> operator*(const dual<P>& a, const dual<P>& b) {
  return {a.v * b.v, fma(a.v, b.d, a.d * b.v)};
}
template <class P> GMK_INLINE dual<P> operator/(const dual<P>& a, const dual<P>& b) {
  const P q = a.v / b.v;
  return {q, (a.d - q * b.d) / b.v};
}
template <class P> GMK_INLINE dual<P>& operator+=(dual<P>& a, const dual<P>& b) { return a = a + b; }
template <class P> GMK_INLINE dual<P> fma(const dual<P>& a, const dual<P>& b, const dual<P>& c) {
  return {fma(a.v, b.v, c.v), fma(a.v, b.d, fma(a.d, b.v, c.d))};
}

template <class P> GMK_INLINE const P& value(const P& a) { return a; }
template <class P> GMK_INLINE const P& value(const dual<P>& a) { return a.v; }

// a where the mask is set, b elsewhere (found by argument-dependent lookup for plain packs and duals alike).
template <class M, class T> GMK_INLINE pack<T> pick(const M& m, const pack<T>& a, const pack<T>& b) {
  return select<T>(m, a, b);
}
template <class M, class P> GMK_INLINE dual<P> pick(const M& m, const dual<P>& a, const dual<P>& b) {
  return {pick(m, a.v, b.v), pick(m, a.d, b.d)};
}

// a between -c and c; NaN passes through, being the second operand.
template <class T> GMK_INLINE pack<T> clip(const pack<T>& a, typename pack<T>::scalar c) {
  return max(pack<T>(-c), min(pack<T>(c), a));
}
template <class P> GMK_INLINE dual<P> clip(const dual<P>& a, typename P::scalar c) {
  const P v = clip(a.v, c);
  return {v, pick(v == a.v, a.d, P(0))};
}

template <class P> GMK_INLINE dual<P> abs(const dual<P>& a) { return {abs(a.v), pick(a.v < P(0), -a.d, a.d)}; }
template <class P> GMK_INLINE dual<P> exp(const dual<P>& a) {
  const P e = exp(a.v);
  return {e, e * a.d};
}
template <class P> GMK_INLINE dual<P> log(const dual<P>& a) { return {log(a.v), a.d / a.v}; }
template <class P> GMK_INLINE dual<P> tanh(const dual<P>& a) {
  const P h = tanh(a.v);
  return {h, fma(-h, h, P(1)) * a.d};
}
template <class P> GMK_INLINE dual<P> atan(const dual<P>& a) { return {atan(a.v), a.d / fma(a.v, a.v, P(1))}; }
template <class P> GMK_INLINE dual<P> sigmoid(const dual<P>& a) {
  const P g = sigmoid(a.v);
  return {g, g * sigmoid(-a.v) * a.d};
}
template <class P> GMK_INLINE dual<P> softplus(const dual<P>& a) { return {softplus(a.v), sigmoid(a.v) * a.d}; }
template <class P> GMK_INLINE dual<P> logsigmoid(const dual<P>& a) { return {logsigmoid(a.v), sigmoid(-a.v) * a.d}; }

}  // namespace GMK_ISA
}  // namespace gmk
