// Gaussian posteriors and the likelihoods of decoders: the mathematics, for any number type N (a pack of floats or
// doubles, or dual numbers over one).
#pragma once

#include "gmk/bernoulli.h"
#include "gmk/dual.h"

namespace gmk {
namespace GMK_ISA {

// The KL divergence of one dimension from N(0, 1), never counted below its free bits, and whether those hold it there.
template <class N> GMK_INLINE N kl_of(const N& mu, const N& logvar, const N& variance) {
  using T = typename N::scalar;
  return N(T(0.5)) * fma(mu, mu, (variance - N(T(1))) - logvar);
}

template <class N> struct Draw {
  N z, kl;
};
template <class N>
GMK_INLINE Draw<N> reparameterize(const N& mu, const N& logvar, const N& eps, typename N::scalar free_bits) {
  using T = typename N::scalar;
  const N kl = kl_of(mu, logvar, exp(logvar));
  return {fma(exp(N(T(0.5)) * logvar), eps, mu), pick(value(kl) < free_bits, N(free_bits), kl)};
}

// From the gradient g by z, and l by this dimension's part of the divergence.
template <class N> struct DrawGradient {
  N mu, logvar;
};
template <class N>
GMK_INLINE DrawGradient<N> reparameterize_backward(const N& g, const N& l, const N& mu, const N& logvar, const N& eps,
                                                   typename N::scalar free_bits) {
  using T = typename N::scalar;
  const N half(T(0.5)), variance = exp(logvar);
  const N live = pick(value(kl_of(mu, logvar, variance)) < free_bits, N(T(0)), l);
  return {fma(live, mu, g), half * fma(g * exp(half * logvar), eps, live * (variance - N(T(1))))};
}

// The log-density of N(m, exp(logvar)) at a distance r from m, with the precision exp(-logvar) given.
template <class N> GMK_INLINE N gaussian(const N& r, const N& logvar, const N& precision) {
  using T = typename N::scalar;
  return N(T(-0.5)) * fma(r * precision, r, logvar + N(T(1.83787706640934548356)));  // log(2 pi)
}
// Its derivatives by m and logvar.
template <class N> struct GaussianSlope {
  N mean, logvar;
};
template <class N> GMK_INLINE GaussianSlope<N> gaussian_slope(const N& r, const N& precision) {
  using T = typename N::scalar;
  const N scaled = r * precision;
  return {scaled, N(T(0.5)) * fma(scaled, r, N(T(-1)))};
}

}  // namespace GMK_ISA
}  // namespace gmk
