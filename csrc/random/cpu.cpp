// The random stream as operators: bits, uniforms, normals and Bernoulli draws. See stream.h for its blocks.
#include <algorithm>
#include <type_traits>

#include "gmk/convert.h"
#include "gmk/parallel.h"
#include "gmk/stream.h"

namespace gmk {
namespace GMK_ISA {
namespace {

constexpr int64_t kBlock = kStreamBlock;
constexpr int64_t kBlocksPerTask = 128;

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
      emit(first, std::min(kBlock - skip, a.count - first), draw({a.seed, a.offset}, block), skip);
    }
  });
  return 0;
}

template <class T> int uniform_as(const gmk_random_args& a) {
  return blocks(a, [&](int64_t first, int64_t n, const StreamWords& b, int64_t skip) {
    uint32_t word[kBlock];
    interleave(b.word, word);
    T* out = static_cast<T*>(a.out) + first;
    for (int64_t k = 0; k < n; ++k) out[k] = uniform<T>(word[skip + k]);
  });
}

template <class T> int normal_as(const gmk_random_args& a) {
  return blocks(a, [&](int64_t first, int64_t n, const StreamWords& b, int64_t skip) {
    T ordered[kBlock];
    normals(b, ordered);
    write(a.out, a.dtype, first, ordered + skip, n);
  });
}

// word < floor(p 2^32), which for integers is word + 1 <= p 2^32: every quantity is exact in double.
template <class T> int bernoulli_as(const gmk_random_args& a) {
  return blocks(a, [&](int64_t first, int64_t n, const StreamWords& b, int64_t skip) {
    uint32_t word[kBlock];
    interleave(b.word, word);
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
  return blocks(a, [&](int64_t first, int64_t n, const StreamWords& b, int64_t skip) {
    uint32_t word[kBlock];
    interleave(b.word, word);
    std::copy_n(word + skip, n, static_cast<int64_t*>(a.out) + first);
  });
}

int random_uniform(const gmk_random_args& a) {
  return a.dtype == GMK_F64 ? uniform_as<double>(a) : uniform_as<float>(a);
}
int random_normal(const gmk_random_args& a) { return a.dtype == GMK_F64 ? normal_as<double>(a) : normal_as<float>(a); }
int random_bernoulli(const gmk_random_args& a) {
  return a.dtype == GMK_F64 ? bernoulli_as<double>(a) : bernoulli_as<float>(a);
}

}  // namespace GMK_ISA
}  // namespace gmk
