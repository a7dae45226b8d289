// Walks the samples of row-wise operators in blocks of 128 logical elements, whatever the strides and storage types.
//
// A block that lies side by side in memory in the compute type is used where it is; any other is copied into a small
// buffer first. Kernels therefore see plain arrays, and the order of their sums depends on logical indices alone.
#pragma once

#include <algorithm>

#include "gmk/convert.h"
#include "gmk/parallel.h"

namespace gmk {
namespace GMK_ISA {

constexpr int kBlock = 128;
constexpr int kPacks = kBlock / kLanes;

template <class T> struct Input {
  const gmk_rows rows;
  const int64_t length;  // of the inner dimension
  const bool plain;      // every sample lies side by side in memory in the compute type
  T buffer[kBlock];

  Input(const gmk_rows& r, const gmk_sizes& sizes)
      : rows(r), length(sizes.inner), plain(r.inner == 1 && sizes.outer == 1 && r.dtype == dtype_of<T>()) {}

  // Elements i .. i + n of sample b.
  GMK_INLINE const T* block(int64_t b, int64_t i, int n) {
    if (!plain) return block_apart(b, i, n);
    const T* here = static_cast<const T*>(rows.data) + b * rows.batch + i;
    // The rows of a slice lie on different pages, where the processor's own prefetching stops: ask for the next one.
    for (int ahead = 0; ahead < n; ahead += 64 / int(sizeof(T))) __builtin_prefetch(here + rows.batch + ahead);
    return here;
  }

 private:
  // Any layout, out of the way of the usual one: a call takes all vector registers from the loops around it.
  GMK_OUTLINE const T* block_apart(int64_t b, int64_t i, int n) {
    int64_t o = 0, k = i;
    if (i >= length) o = i / length, k = i % length;  // a division costs as much as a short row
    const auto start = [&] { return b * rows.batch + o * rows.outer + k * rows.inner; };
    if (rows.inner == 1 && k + n <= length && rows.dtype == dtype_of<T>())
      return static_cast<const T*>(rows.data) + start();
    for (int done = 0; done < n; k = 0, ++o) {
      const int64_t piece = std::min<int64_t>(n - done, length - k);
      read(buffer + done, rows.data, rows.dtype, start(), rows.inner, piece);
      done += int(piece);
    }
    return buffer;
  }
};

// A contiguous output: blocks are written in place, or from the buffer by commit().
template <class T> struct Output {
  void* data;
  int32_t dtype;
  T buffer[kBlock];

  Output(void* p, int32_t type) : data(p), dtype(type) {}
  T* block(int64_t i) { return dtype == dtype_of<T>() ? static_cast<T*>(data) + i : buffer; }
  void commit(int64_t i, int n) {
    if (dtype != dtype_of<T>()) write(data, dtype, i, buffer, n);
  }
};

// Which samples a thread takes first. What follows another pass over the same samples, as backward follows forward,
// begins with those read last, which are still in the caches: with the last of a few groups, because within a group
// the processor's prefetching wants to go forward.
enum class Order { first_to_last, last_to_first };
constexpr int64_t kGroup = 16;  // tasks

// Runs row(b, features) for every sample, in tasks of about this many elements, at least one sample each. A task makes
// its own worker, so that buffers are neither shared nor made anew for every sample. Cut by size alone.
template <Order order = Order::first_to_last, class F>
void each_row(const gmk_sizes& sizes, int64_t elements, const F& make_worker) {
  const int64_t features = sizes.outer * sizes.inner;
  const int64_t rows = std::max<int64_t>(1, elements / std::max<int64_t>(1, features));
  parallel_over((sizes.batch + rows - 1) / rows, [&](int64_t begin, int64_t end) {
    const int64_t size = order == Order::first_to_last ? end - begin : kGroup;
    for (int64_t stop = end; stop > begin; stop -= size)
      for (int64_t task = std::max(begin, stop - size); task < stop; ++task) {
        auto&& row = make_worker();
        for (int64_t b = task * rows; b < std::min(sizes.batch, (task + 1) * rows); ++b) row(b, features);
      }
  });
}

// Calls f(p, n) for each pack of a block of n elements: lanes 16 p .., of which n are real.
template <class F> GMK_INLINE void each_pack(int n, const F& f) {
  if (n == kBlock) {
    for (int p = 0; p < kPacks; ++p) f(p, kLanes);
  } else {
    int p = 0;
    for (; (p + 1) * kLanes <= n; ++p) f(p, kLanes);
    if (p * kLanes < n) f(p, n - p * kLanes);
  }
}
template <class T> GMK_INLINE pack<T> get(const T* block, int p, int n) {
  return n == kLanes ? load(block + p * kLanes) : load_n(block + p * kLanes, n);
}
template <class T> GMK_INLINE void put(T* block, int p, int n, const pack<T>& a) {
  if (n == kLanes)
    store(block + p * kLanes, a);
  else
    store_n(block + p * kLanes, a, n);
}

// 128 running sums, one per position in a block, folded by halves at the end: the order is part of the definition, and
// the Triton kernels follow it.
template <class T> struct RowSum {
  pack<T> lanes[kPacks];
  RowSum() {
    for (auto& lane : lanes) lane = pack<T>(T(0));
  }
  GMK_INLINE void add(int p, int n, const pack<T>& a) {
    lanes[p] += n == kLanes ? a : select<T>(iota<typename native<T>::mask>() < n, a, T(0));
  }
  T total() const {
    pack<T> s[kPacks];
    for (int p = 0; p < kPacks; ++p) s[p] = lanes[p];
    for (int half = kPacks / 2; half > 0; half /= 2)
      for (int p = 0; p < half; ++p) s[p] += s[p + half];
    return fold(s[0]);
  }
};

}  // namespace GMK_ISA
}  // namespace gmk
