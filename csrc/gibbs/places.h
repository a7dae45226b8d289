// Sets of units as lists of places, and sums of the rows of a list out of a tile of weights in the first-level cache.
#pragma once

#include "gibbs.h"

namespace gmk {
namespace GMK_ISA {
namespace rbm {

constexpr int kTilePacks = 6;  // packs of units whose rows make a tile: of 256 bytes each, a tile is 24 KiB
template <class T> constexpr int kStripPacks = 256 / int(sizeof(T)) / kLanes;

// Appends first + the places of the set bits, in order; writes up to sixteen places beyond the end.
GMK_INLINE uint32_t* append_places(uint32_t* out, uint32_t bits, uint32_t first) {
#if defined(__AVX512F__)
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i place = _mm512_add_epi32(lane, _mm512_set1_epi32(int(first)));
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(__mmask16(bits), place));
  return out + __builtin_popcount(bits);
#else
  for (; bits; bits &= bits - 1) *out++ = first + uint32_t(__builtin_ctz(bits));
  return out;
#endif
}

enum class Sum { plus, minus, twice };

// total +=, -= or += 2 times the rows of a tile at these places, in order. Rows are Packs packs, one after the other.
template <Sum How, class T, int Packs>
GMK_INLINE void add_places(pack<T> (&total)[Packs], const T* tile, const uint32_t* first, const uint32_t* last) {
  for (; first < last; ++first) {
    const T* row = tile + size_t(*first) * (Packs * kLanes);
    for (int p = 0; p < Packs; ++p) {
      const pack<T> w = load(row + p * kLanes);
      total[p] = How == Sum::plus ? total[p] + w : How == Sum::minus ? total[p] - w : fma(pack<T>(T(2)), w, total[p]);
    }
  }
}

}  // namespace rbm
}  // namespace GMK_ISA
}  // namespace gmk
