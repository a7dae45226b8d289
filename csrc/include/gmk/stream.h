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

// Words 0 and 1 of each counter in the halves of pairs[0], words 2 and 3 in those of pairs[1]; lane = counter.
struct StreamWords {
  uint64_t pairs[2][kLanes];
};

GMK_INLINE StreamWords draw(const Key& key, int64_t block) {
  using u64 = pack<uint64_t>;
  u64 w[4];
  philox_words(uint64_t(block) * kLanes + iota<uint64_t>(), key.offset, key.seed, w);
  StreamWords b;
  for (int half = 0; half < 2; ++half)
    store(b.pairs[half], (w[2 * half] & uint64_t(0xFFFFFFFF)) | (w[2 * half + 1] << 32));
  return b;
}

template <class T> GMK_INLINE void uniforms(const uint32_t* word, T* u, int64_t n) {
  for (int64_t k = 0; k < n; ++k) u[k] = (T(int32_t(word[k] >> 9)) + T(0.5)) * T(kUniformStep);
}

// The block's 64 normals in the order of the stream.
template <class T> GMK_INLINE void normals(const StreamWords& b, T* ordered) {
  T z[2][2][kLanes];  // half, member of the pair, counter
  for (int half = 0; half < 2; ++half) {
    uint32_t word[2][kLanes];
    T u[2][kLanes];
    for (int l = 0; l < kLanes; ++l)
      word[0][l] = uint32_t(b.pairs[half][l]), word[1][l] = uint32_t(b.pairs[half][l] >> 32);
    for (int member = 0; member < 2; ++member) uniforms(word[member], u[member], kLanes);
    pack<T> z0, z1;
    normal_pair(load(u[0]), load(u[1]), z0, z1);
    store(z[half][0], z0);
    store(z[half][1], z1);
  }
  for (int l = 0; l < kLanes; ++l)
    for (int k = 0; k < 4; ++k) ordered[4 * l + k] = z[k / 2][k % 2][l];
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
