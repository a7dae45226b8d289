// The random stream in blocks of sixteen counters, 64 elements. A block depends on the key and its place in the stream
// alone, so threads, chunks and batch cuts cannot change it.
#pragma once

#include <cstring>

#include "gmk/philox.h"
#include "gmk/vmath.h"

namespace gmk {
namespace GMK_ISA {

constexpr int kStreamBlock = 4 * kLanes;

struct Key {
  uint64_t seed, offset;
};

// The four words of the block's counters. Lane p belongs to counter 4 (p mod 4) + p div 4, which is the order that
// interleave() wants them in.
struct StreamWords {
  u32 word[4];
};

GMK_INLINE StreamWords draw(const Key& key, int64_t block) {
  // As low_words() takes lanes together.
  constexpr uint64_t counter[kLanes] = {0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15};
  pack<uint64_t> w[4];
  philox_words(uint64_t(block) * kLanes + load(counter), key.offset, key.seed, w);
  StreamWords b;
  for (int k = 0; k < 4; ++k) b.word[k] = low_words(w[k]);
  return b;
}

template <class T> GMK_INLINE T uniform(uint32_t word) { return (T(int32_t(word >> 9)) + T(0.5)) * T(kUniformStep); }
template <class T> GMK_INLINE pack<T> uniform(const u32& word) {
  if constexpr (sizeof(T) == 4) {
    return (convert<float>(bits<int32_t>(word >> 9)) + 0.5f) * kUniformStep;
  } else {
    uint32_t w[kLanes];
    T u[kLanes];
    store(w, word);
    for (int l = 0; l < kLanes; ++l) u[l] = uniform<T>(w[l]);
    return load(u);
  }
}

// The block's 64 normals in the order of the stream.
template <class T> GMK_INLINE void normals(const StreamWords& b, T* ordered) {
  pack<T> z[4];
  for (int k = 0; k < 4; k += 2) normal_pair(uniform<T>(b.word[k]), uniform<T>(b.word[k + 1]), z[k], z[k + 1]);
  interleave(z, ordered);
}

// The stream's normals, read forwards in pieces of at most two blocks; what neighbouring pieces share is drawn once.
template <class T> class Normals {
  const Key key;
  int64_t low = 0, high = 0;  // the buffer holds elements low .. high of the stream
  T buffer[3 * kStreamBlock];

 public:
  explicit Normals(const Key& k) : key(k) {}

  // Elements start .. start + n.
  const T* piece(int64_t start, int n) {
    if (start < low || start >= high) {
      low = high = start / kStreamBlock * kStreamBlock;
    } else if (start + n > low + 3 * kStreamBlock) {
      const int64_t first = start / kStreamBlock * kStreamBlock;
      std::memmove(buffer, buffer + (first - low), size_t(high - first) * sizeof(T));
      low = first;
    }
    for (; high < start + n; high += kStreamBlock) normals(draw(key, high / kStreamBlock), buffer + (high - low));
    return buffer + (start - low);
  }
};

}  // namespace GMK_ISA
}  // namespace gmk
