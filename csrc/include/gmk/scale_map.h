// The scale maps of affine layers, for any number type N (a pack of floats or doubles, or dual numbers over one).
#pragma once

#include "gmk/abi.h"
#include "gmk/dual.h"

namespace gmk {
namespace GMK_ISA {

// What a scale map makes of the raw log-scale s: the log-scale a, its slope da/ds, and the factor that is multiplied
// with, exp(a) forward or exp(-a) inverse. Whatever a caller leaves unused, the compiler removes.
template <class N> struct Scale {
  N a, slope, factor;
};

// The elementary function inside a map whose log-scale is a constant times that function; else s itself.
template <int Map> constexpr bool has_inner = Map == GMK_TANH || Map == GMK_ATAN;
template <int Map, class N> GMK_INLINE N inner(const N& s) {
  if constexpr (Map == GMK_TANH)
    return tanh(s);
  else if constexpr (Map == GMK_ATAN)
    return atan(s);
  else
    return s;
}

// h is inner(s).
template <int Map, class N> GMK_INLINE Scale<N> scale(const N& s, const N& h, typename N::scalar c, bool inverse) {
  using T = typename N::scalar;
  if constexpr (Map == GMK_SIGMOID || Map == GMK_RECIPROCAL_SIGMOID) {
    const N shifted = s + N(T(2)), g = sigmoid(shifted), e = g + N(c);
    const N a = c == 0 ? logsigmoid(shifted) : log(e), slope = g * sigmoid(-shifted) / e;
    constexpr bool reciprocal = Map == GMK_RECIPROCAL_SIGMOID;
    return {reciprocal ? -a : a, reciprocal ? -slope : slope, inverse != reciprocal ? N(T(1)) / e : e};
  } else if constexpr (Map == GMK_SOFTPLUS) {
    const N p = softplus(s) + N(T(1e-3));
    const auto over = value(p) > c;  // false for NaN, which passes through
    const N e = pick(over, N(c), p);
    return {log(e), pick(over, N(T(0)), sigmoid(s) / e), inverse ? N(T(1)) / e : e};
  } else {
    N a, slope;
    if constexpr (Map == GMK_EXP) {
      a = clip(s, c);
      slope = pick(value(a) == value(s), N(T(1)), N(T(0)));
    } else if constexpr (Map == GMK_TANH) {
      a = N(c) * h;
      slope = fma(-h, h, N(T(1))) * N(c);
    } else if constexpr (Map == GMK_ATAN) {
      a = N(c) * h;
      slope = N(c) / fma(s, s, N(T(1)));
    } else {  // soft clip; c is 1 / clamp
      const N q = N(T(1)) + abs(s) * N(c);
      a = s / q;
      slope = N(T(1)) / (q * q);
    }
    return {a, slope, exp(inverse ? -a : a)};
  }
}
template <int Map, class N> GMK_INLINE Scale<N> scale(const N& s, typename N::scalar c, bool inverse) {
  return scale<Map>(s, inner<Map>(s), c, inverse);
}

// The constant a map works with, rounded once from double.
template <class T> T scale_constant(int32_t map, double clamp) {
  return T(map == GMK_ATAN ? 0.636 * clamp : map == GMK_SOFT_CLIP ? 1.0 / clamp : clamp);
}

}  // namespace GMK_ISA
}  // namespace gmk
