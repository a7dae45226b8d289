// Affine coupling: the mathematics, for any number type N (a pack of floats or doubles, or dual numbers over one).
#pragma once

#include "gmk/scale_map.h"

namespace gmk {
namespace GMK_ISA {

template <class N> struct Forward {
  N y, a;  // a is this element's part of the log-determinant
};
template <class N> GMK_INLINE Forward<N> affine_forward(const N& x, const Scale<N>& k, const N& t, bool inverse) {
  return {inverse ? (x - t) * k.factor : fma(x, k.factor, t), inverse ? -k.a : k.a};
}

template <class N> struct Backward {
  N x, s;
};
template <class N>
GMK_INLINE Backward<N> affine_backward(const N& g, const N& l, const N& x, const Scale<N>& k, const N& t,
                                       bool inverse) {
  const N d = inverse ? x - t : x, gm = g * k.factor;
  return {gm, fma(g * d, k.factor, l) * (inverse ? -k.slope : k.slope)};
}

}  // namespace GMK_ISA
}  // namespace gmk
