// Planar flows: the mathematics, for any number type N. Sixteen samples ride in the lanes; z is D packs in memory.
#pragma once

#include <cmath>

#include "gmk/dual.h"

namespace gmk {
namespace GMK_ISA {

// Plain doubles with a tangent, for the few operations on the parameters themselves.
struct Tangent {
  double v, d;
  Tangent(double value = 0, double derivative = 0) : v(value), d(derivative) {}
};
inline Tangent operator+(Tangent a, Tangent b) { return {a.v + b.v, a.d + b.d}; }
inline Tangent operator-(Tangent a, Tangent b) { return {a.v - b.v, a.d - b.d}; }
inline Tangent operator*(Tangent a, Tangent b) { return {a.v * b.v, a.v * b.d + a.d * b.v}; }
inline Tangent operator/(Tangent a, Tangent b) { return {a.v / b.v, (a.d - a.v / b.v * b.d) / b.v}; }
inline Tangent& operator+=(Tangent& a, Tangent b) { return a = a + b; }
inline double logistic(double x) { return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x)); }
inline Tangent logistic(Tangent x) { return {logistic(x.v), logistic(x.v) * logistic(-x.v) * x.d}; }
inline double softplus1(double x) { return std::log1p(std::exp(-std::fabs(x))) + std::fmax(x, 0.0); }
inline Tangent softplus1(Tangent x) { return {softplus1(x.v), logistic(x.v) * x.d}; }
inline double plain(double x) { return x; }
inline double plain(Tangent x) { return x.v; }

// u_hat = u + shift w and gain = 1 + w.u_hat, where shift = (softplus(-w.u) - 1) / |w|^2 and gain = softplus(w.u): the
// correction of Rezende and Mohamed (2015, appendix A.1) without the cancellation of m(w.u) - w.u.
template <class S> struct Direction {
  S wu = 0, norm = 0, shift = 0, gain = 1;
  Direction(const S* u, const S* w, int64_t dim) {
    for (int64_t d = 0; d < dim; ++d) {
      wu += w[d] * u[d];
      norm += w[d] * w[d];
    }
    if (plain(norm) > 0) {
      shift = (softplus1(S(0) - wu) - S(1)) / norm;
      gain = softplus1(wu);
    } else if (!(plain(norm) == 0)) {
      shift = gain = norm * S(NAN);  // NaN in, NaN out
    }
  }
  // Gradients by u_hat and gain to gradients by u and w, added to what w has already.
  void pull_back(const S* u, const S* w, const S* grad_hat, S grad_gain, S* grad_u, S* grad_w, int64_t dim) const {
    if (plain(norm) == 0) {
      for (int64_t d = 0; d < dim; ++d) grad_u[d] = grad_hat[d];
      return;
    }
    S grad_shift = 0;
    for (int64_t d = 0; d < dim; ++d) grad_shift += grad_hat[d] * w[d];
    const S grad_norm = S(0) - grad_shift * shift / norm;
    const S grad_wu = grad_gain * logistic(wu) - grad_shift / norm * logistic(S(0) - wu);
    for (int64_t d = 0; d < dim; ++d) {
      grad_u[d] = grad_hat[d] + grad_wu * w[d];
      grad_w[d] += shift * grad_hat[d] + grad_wu * u[d] + S(2) * grad_norm * w[d];
    }
  }
};

// The parameters of one flow as the sample loops use them, broadcast to all lanes.
template <class N> struct Flow {
  const N *u_hat, *w;
  N b, gain;
};

// One flow on 16 samples: z is updated in place; returns this flow's determinant and leaves tanh in h.
template <class N> GMK_INLINE N planar_forward(N* z, const Flow<N>& f, int64_t dim, N& h) {
  using T = typename N::scalar;
  N a = f.b;
  for (int64_t d = 0; d < dim; ++d) a = fma(z[d], f.w[d], a);
  h = tanh(a);
  for (int64_t d = 0; d < dim; ++d) z[d] = fma(h, f.u_hat[d], z[d]);
  const N hh = h * h;
  return fma(N(T(1)) - hh, f.gain, hh);
}

// Back through one flow: z is its input, g holds the gradient by its output and becomes that by its input; the
// gradients by the parameters are added to theirs.
template <class N> struct FlowGradient {
  N *u_hat, *w;
  N *b, *gain;
};
template <class N>
GMK_INLINE void planar_backward(const N* z, const N& h, N* g, const N& l, const Flow<N>& f, const FlowGradient<N>& out,
                                int64_t dim) {
  using T = typename N::scalar;
  const N hh = h * h, rest = N(T(1)) - hh, per_det = l / fma(rest, f.gain, hh);
  N grad_h = (h + h) * (N(T(1)) - f.gain) * per_det;
  for (int64_t d = 0; d < dim; ++d) {
    grad_h = fma(g[d], f.u_hat[d], grad_h);
    out.u_hat[d] += g[d] * h;
  }
  *out.gain += rest * per_det;
  const N grad_a = grad_h * rest;
  *out.b += grad_a;
  for (int64_t d = 0; d < dim; ++d) {
    out.w[d] += grad_a * z[d];
    g[d] = fma(grad_a, f.w[d], g[d]);
  }
}

}  // namespace GMK_ISA
}  // namespace gmk
