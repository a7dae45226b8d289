// The random stream in blocks of sixteen counters, 64 elements. A block depends on the key and its place in the stream
// alone, so threads, chunks and batch cuts cannot change it.
#include <algorithm>
#include <type_traits>

#include "gmk/convert.h"
#include "gmk/parallel.h"
#include "gmk/philox.h"
#include "gmk/vmath.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using u64 = pack<uint64_t>;
constexpr int64_t kBlock = 4 * kLanes;
constexpr int64_t kBlocksPerTask = 128;

// Words 0 and 1 of each counter in the halves of pairs[0], words 2 and 3 in those of pairs[1]; lane = counter.
struct Block {
  uint64_t pairs[2][kLanes];
};

GMK_INLINE Block draw(const gmk_random_args& a, int64_t block) {
  uint64_t lane[kLanes];
  for (int l = 0; l < kLanes; ++l) lane[l] = uint64_t(block) * kLanes + uint64_t(l);
  u64 w[4];
  philox_words(load(lane), a.offset, a.seed, w);
  Block b;
  for (int half = 0; half < 2; ++half)
    store(b.pairs[half], (w[2 * half] & uint64_t(0xFFFFFFFF)) | (w[2 * half + 1] << 32));
  return b;
}

// The block's 64 words in the order of the stream.
GMK_INLINE void in_order(const Block& b, uint32_t* word) {
  uint64_t both[2 * kLanes];
  for (int l = 0; l < kLanes; ++l) both[2 * l] = b.pairs[0][l], both[2 * l + 1] = b.pairs[1][l];
  for (int k = 0; k < 2 * kLanes; ++k) word[2 * k] = uint32_t(both[k]), word[2 * k + 1] = uint32_t(both[k] >> 32);
}

template <class T> GMK_INLINE void uniforms(const uint32_t* word, T* u, int64_t n) {
  for (int64_t k = 0; k < n; ++k) u[k] = (T(int32_t(word[k] >> 9)) + T(0.5)) * T(kUniformStep);
}

// Calls emit(first, n, block, skip) for each block of the stream that the elements meet: n elements from skip on in
// the block go to out[first ...].
template <class F> int blocks(const gmk_random_args& a, const F& emit) {
  if (a.count <= 0) return 0;
  const int64_t low = a.start / kBlock, high = (a.start + a.count - 1) / kBlock + 1;
  parallel_for((high - low + kBlocksPerTask - 1) / kBlocksPerTask, [&](int64_t task) {
    const int64_t from = low + task * kBlocksPerTask, to = std::min(high, from + kBlocksPerTask);
    for (int64_t block = from; block < to; ++block) {
      const int64_t skip = std::max<int64_t>(0, a.start - block * kBlock);
      const int64_t first = block * kBlock + skip - a.start;
      emit(first, std::min(kBlock - skip, a.count - first), draw(a, block), skip);
    }
  });
  return 0;
}

template <class T> int uniform_as(const gmk_random_args& a) {
  return blocks(a, [&](int64_t first, int64_t n, const Block& b, int64_t skip) {
    uint32_t word[kBlock];
    in_order(b, word);
    T u[kBlock];
    uniforms(word, u, kBlock);
    std::copy_n(u + skip, n, static_cast<T*>(a.out) + first);
  });
}

template <class T> int normal_as(const gmk_random_args& a) {
  return blocks(a, [&](int64_t first, int64_t n, const Block& b, int64_t skip) {
    T z[2][2][kLanes];  // half, member of the pair, counter
    for (int half = 0; half < 2; ++half) {
      uint32_t word[2][kLanes];
      T u[2][kLanes];
      for (int l = 0; l < kLanes; ++l) word[0][l] = uint32_t(b.pairs[half][l]), word[1][l] = uint32_t(b.pairs[half][l] >> 32);
      for (int member = 0; member < 2; ++member) uniforms(word[member], u[member], kLanes);
      pack<T> z0, z1;
      normal_pair(load(u[0]), load(u[1]), z0, z1);
      store(z[half][0], z0);
      store(z[half][1], z1);
    }
    T ordered[kBlock];
    for (int l = 0; l < kLanes; ++l)
      for (int k = 0; k < 4; ++k) ordered[4 * l + k] = z[k / 2][k % 2][l];
    write(a.out, a.dtype, first, ordered + skip, n);
  });
}

// word < floor(p 2^32), which for integers is word + 1 <= p 2^32: every quantity is exact in double.
template <class T> int bernoulli_as(const gmk_random_args& a) {
  return blocks(a, [&](int64_t first, int64_t n, const Block& b, int64_t skip) {
    uint32_t word[kBlock];
    in_order(b, word);
    T p[kBlock] = {}, drawn[kBlock];
    read(p + skip, a.p, a.dtype, first, 1, n);
    for (int64_t k = 0; k < kBlock; ++k) {
      const double limit = double(p[k]) * 0x1p32;
      drawn[k] = p[k] != p[k] ? p[k] : double(word[k]) + 1.0 <= limit ? T(1) : T(0);
    }
    write(a.out, a.dtype, first, drawn + skip, n);
  });
}

}  // namespace

int random_bits(const gmk_random_args& a) {
  return blocks(a, [&](int64_t first, int64_t n, const Block& b, int64_t skip) {
    uint32_t word[kBlock];
    in_order(b, word);
    std::copy_n(word + skip, n, static_cast<int64_t*>(a.out) + first);
  });
}

int random_uniform(const gmk_random_args& a) { return a.dtype == GMK_F64 ? uniform_as<double>(a) : uniform_as<float>(a); }
int random_normal(const gmk_random_args& a) { return a.dtype == GMK_F64 ? normal_as<double>(a) : normal_as<float>(a); }
int random_bernoulli(const gmk_random_args& a) { return a.dtype == GMK_F64 ? bernoulli_as<double>(a) : bernoulli_as<float>(a); }

}  // namespace GMK_ISA
}  // namespace gmk
