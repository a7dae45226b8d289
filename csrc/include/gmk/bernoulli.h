// The log-probability of x under a Bernoulli distribution with the logit l, for any number type N (see dual.h).
#pragma once

#include "gmk/vmath.h"

namespace gmk {
namespace GMK_ISA {

// x l - log(1 + exp(l)) without cancellation: for x in [0, 1] a sum of two terms of one sign.
template <class P> GMK_INLINE P bernoulli(const P& l, const P& x) {
  using T = typename P::scalar;
  const P a = abs(l);
  return -fma(a, select<T>(l > P(T(0)), P(T(1)) - x, x), softplus(-a));
}
// Its derivative by l.
template <class N> GMK_INLINE N bernoulli_slope(const N& l, const N& x) { return x - sigmoid(l); }

}  // namespace GMK_ISA
}  // namespace gmk
