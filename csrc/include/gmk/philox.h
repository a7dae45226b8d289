// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011), the project's
// random stream: element i is word i mod 4 of counter (i div 4, offset) under key seed, all three numbers 64 bits wide,
// low word first.
//
// W is uint64_t for one counter or pack<uint64_t> for sixteen; only the low 32 bits of each lane count. Known answers
// (counter, key -> words) of the authors' Random123:
//   all zeros -> 6627e8d5 e169c58d bc57ac4c 9b00dbd8
//   all ones  -> 408f276d 41c83b0e a20bc7c6 6d5451fd
//   243f6a88 85a308d3 13198a2e 03707344, a4093822 299f31d0 -> d16cfe09 94fdcceb 5001e420 24126ea1
#pragma once

#ifdef __CUDACC__
#include "simt.h"
#else
#include "simd.h"
#endif

namespace gmk {
namespace GMK_ISA {

template <class W> GMK_INLINE void philox4x32(W (&c)[4], uint64_t seed) {
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const W p0 = mul32(c[0], 0xD2511F53u), p1 = mul32(c[2], 0xCD9E8D57u);
    c[0] = (p1 >> 32) ^ c[1] ^ uint64_t(k0);
    c[1] = p1;
    c[2] = (p0 >> 32) ^ c[3] ^ uint64_t(k1);
    c[3] = p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// The words of counter (index, offset); with a pack, of counters (index + lane, offset).
template <class W> GMK_INLINE void philox_words(const W& index, uint64_t offset, uint64_t seed, W (&words)[4]) {
  words[0] = index;
  words[1] = index >> 32;
  words[2] = W(offset);
  words[3] = W(offset >> 32);
  philox4x32(words, seed);
}

// A word's uniform is (2 (word >> 9) + 1) 2^-24: in the open interval (0, 1), and exact in float32.
constexpr float kUniformStep = 0x1p-23f;

}  // namespace GMK_ISA
}  // namespace gmk
