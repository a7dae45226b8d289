// The log-probability of x under a Bernoulli distribution with the logit l, for any number type N (see dual.h).
#pragma once

#include "gmk/vmath.h"

namespace gmk {
namespace GMK_ISA {

// x l - log(1 + exp(l)) without cancellation, given softplus(-|l|): for x in [0, 1] a sum of two terms of one sign.
template <class P> GMK_INLINE P bernoulli_of(const P& l, const P& x, const P& softplus) {
  using T = typename P::scalar;
  return -fma(abs(l), select<T>(l > P(T(0)), P(T(1)) - x, x), softplus);
}
template <class P> GMK_INLINE P bernoulli(const P& l, const P& x) { return bernoulli_of(l, x, softplus(-abs(l))); }
// Its derivative by l.
template <class N> GMK_INLINE N bernoulli_slope(const N& l, const N& x) { return x - sigmoid(l); }
// Both, bit for bit.
template <class P> GMK_INLINE P bernoulli_with_slope(const P& l, const P& x, P& slope) {
  P softplus;
  slope = x - sigmoid_and_softplus(l, softplus);
  return bernoulli_of(l, x, softplus);
}

}  // namespace GMK_ISA
}  // namespace gmk
