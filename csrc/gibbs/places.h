// Sums of rows of weights over the units that are on, out of tiles that fit the first-level cache: by lists of places,
// or by tables of all sums of four rows, whichever is less work.
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

// total += or -= the rows of a tile at these places, in order. Rows are Packs packs, one after the other.
template <bool Minus, class T, int Packs>
GMK_INLINE void add_places(pack<T> (&total)[Packs], const T* tile, const uint32_t* first, const uint32_t* last) {
  for (; first < last; ++first) {
    const T* row = tile + size_t(*first) * (Packs * kLanes);
    for (int p = 0; p < Packs; ++p)
      total[p] = Minus ? total[p] - load(row + p * kLanes) : total[p] + load(row + p * kLanes);
  }
}

// All sums of the rows of four units, for 24 units: what a chain adds for four of them is found by their states.
template <class T, int Packs> class Quads {
  static constexpr int kQuads = 6;
  alignas(64) T sums[kQuads][16][Packs * kLanes];

 public:
  static constexpr int kUnits = 4 * kQuads;

  // row(unit, p): a pack of the row of a unit, zeros where there is no such unit.
  template <class F> GMK_INLINE void build(const F& row) {
    for (int q = 0; q < kQuads; ++q)
      for (int p = 0; p < Packs; ++p) {
        pack<T> s[16];
        s[0] = pack<T>(T(0));
        for (int k = 0; k < 4; ++k) {
          const pack<T> w = row(4 * q + k, p);
          for (int i = 0; i < 1 << k; ++i) s[i + (1 << k)] = s[i] + w;
        }
        for (int i = 0; i < 16; ++i) store(sums[q][i] + p * kLanes, s[i]);
      }
  }

  // total += the rows of the 24 units from `first` on that are set in `on`, sixteen units a number.
  GMK_INLINE void add(pack<T> (&total)[Packs], const uint16_t* on, int64_t packs, int64_t first) const {
    for (int q = 0; q < kQuads; ++q) {
      const int64_t unit = first + 4 * q;
      if (unit / kLanes >= packs) return;
      const T* sum = sums[q][on[unit / kLanes] >> unit % kLanes & 15];
      for (int p = 0; p < Packs; ++p) total[p] += load(sum + p * kLanes);
    }
  }
};

}  // namespace rbm
}  // namespace GMK_ISA
}  // namespace gmk
