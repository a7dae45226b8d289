// Which pixels of a vector a tap finds inside the image, and not beyond the left or the right border.
#pragma once

#include "planes.h"

namespace gmk {
namespace GMK_ISA {

// Of sixteen pixels, those to be read; the others are zero. AVX-512 reads under a mask as fast as without.
#if defined(__AVX512F__)
template <class T> struct Lanes {
  uint16_t bits = 0xFFFF;
  void drop(int lane) { bits = uint16_t(bits & ~(1u << lane)); }
  GMK_INLINE pack<T> of(const T* p) const {
    pack<T> r;
    if constexpr (sizeof(T) == 4) {
      r.v[0] = _mm512_maskz_loadu_ps(bits, p);
    } else {
      r.v[0] = _mm512_maskz_loadu_pd(__mmask8(bits), p);
      r.v[1] = _mm512_maskz_loadu_pd(__mmask8(bits >> 8), p + 8);
    }
    return r;
  }
};
#else
template <class T> struct Lanes {
  using M = typename native<T>::mask;
  M lane[kLanes];
  Lanes() { std::fill_n(lane, kLanes, M(-1)); }
  void drop(int l) { lane[l] = 0; }
  GMK_INLINE pack<T> of(const T* p) const {
    pack<T> r;
    for (int i = 0; i < r.count; ++i) {
      typename pack<M>::vector x, mask;
      std::memcpy(&x, p + i * native<T>::width, sizeof x);
      std::memcpy(&mask, lane + i * native<T>::width, sizeof mask);
      r.v[i] = (typename pack<T>::vector)(x & mask);
    }
    return r;
  }
};
#endif

// For each vector of an image, the lanes of all taps, one after the other, and of the first ones again: a few columns
// of the weights, which are taps of one channel after the other, find theirs side by side.
template <class T> struct Margins {
  static constexpr int64_t kAgain = 4;
  const int64_t step;  // from a vector to the next one
  std::vector<Lanes<T>> lanes;

  Margins(const Geometry& g, bool transposed)
      : step(int64_t(g.taps.size()) + kAgain), lanes(size_t((g.pixels + kLanes - 1) / kLanes * step)) {
    for (int64_t t = 0; !g.taps.empty() && t < step; ++t) {
      const int64_t right = g.taps[size_t(t) % g.taps.size()].right * (transposed ? -1 : 1);
      for (int64_t x = right < 0 ? 0 : g.width - right; x < (right < 0 ? -right : g.width); ++x)
        for (int64_t pixel = x; pixel < g.pixels; pixel += g.width)
          lanes[size_t(pixel / kLanes * step + t)].drop(int(pixel % kLanes));
    }
  }
  const Lanes<T>* at(int64_t pixel) const { return lanes.data() + pixel / kLanes * step; }
};

}  // namespace GMK_ISA
}  // namespace gmk
