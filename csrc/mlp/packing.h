// The weights of perceptrons as their products read them, and the memory for it.
#pragma once

#include <memory>
#include <vector>

#include "gmk/parallel.h"
#include "gmk/product.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using products::Arena;
using products::Matrix;
using products::round_up;

// Memory that a thread keeps from call to call, because fresh memory costs a page fault for every page.
class Scratch {
  static constexpr int64_t kKept = int64_t(16) << 20;
  std::unique_ptr<char[]> memory;
  int64_t size = 0;

 public:
  char* of(int64_t bytes) {
    if (bytes > size) memory.reset(), memory.reset(new char[bytes]), size = bytes;
    return memory.get();
  }
  void shrink() {
    if (size > kKept) memory.reset(), size = 0;
  }
};

// Rows to be fetched before they are read: a strip has more of them, or shorter ones, than the processor fetches
// itself.
constexpr int64_t kAhead = 8;

// kLanes rows of as many numbers, to columns.
template <class T> GMK_INLINE void transpose(const T* from, int64_t step, T* to, int64_t to_step) {
  for (int r = 0; r < kLanes; ++r) __builtin_prefetch(from + r * step + 2 * kLanes);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    // By pairs of rows, then by fours, and then the quarters that lie in the same columns of them.
    __m512 a[16], b[16];
    const auto pairs = [](__m512 x, __m512 y, bool high) {
      const __m512d u = _mm512_castps_pd(x), v = _mm512_castps_pd(y);
      return _mm512_castpd_ps(high ? _mm512_unpackhi_pd(u, v) : _mm512_unpacklo_pd(u, v));
    };
    for (int r = 0; r < 16; ++r) a[r] = _mm512_loadu_ps(from + r * step);
    for (int r = 0; r < 16; r += 2)
      b[r] = _mm512_unpacklo_ps(a[r], a[r + 1]), b[r + 1] = _mm512_unpackhi_ps(a[r], a[r + 1]);
    for (int r = 0; r < 16; r += 4)
      for (int c = 0; c < 4; ++c) a[r + c] = pairs(b[r + c / 2], b[r + 2 + c / 2], c % 2);
    for (int c = 0; c < 4; ++c) {
      const __m512 even = _mm512_shuffle_f32x4(a[c], a[4 + c], 0x88), odd = _mm512_shuffle_f32x4(a[c], a[4 + c], 0xdd);
      const __m512 rest = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0x88);
      const __m512 last = _mm512_shuffle_f32x4(a[8 + c], a[12 + c], 0xdd);
      _mm512_storeu_ps(to + c * to_step, _mm512_shuffle_f32x4(even, rest, 0x88));
      _mm512_storeu_ps(to + (4 + c) * to_step, _mm512_shuffle_f32x4(odd, last, 0x88));
      _mm512_storeu_ps(to + (8 + c) * to_step, _mm512_shuffle_f32x4(even, rest, 0xdd));
      _mm512_storeu_ps(to + (12 + c) * to_step, _mm512_shuffle_f32x4(odd, last, 0xdd));
    }
    return;
  }
#endif
  for (int r = 0; r < kLanes; ++r)
    for (int c = 0; c < kLanes; ++c) to[c * to_step + r] = from[r * step + c];
}

// As many columns of as many numbers as rows of them begin at `from`, kLanes at most; the other lanes are zero.
template <class T> GMK_INLINE void pack_square(T* to, const T* from, int64_t step, int rows, int some) {
  if (rows == kLanes && some == kLanes) return transpose(from, step, to, kLanes);
  for (int r = 0; r < kLanes; ++r)
    for (int c = 0; c < some; ++c) to[c * kLanes + r] = r < rows ? from[r * step + c] : T(0);
}

// One strip of a packed matrix, as Matrix has them: rows o .. of w, `step` apart, or columns if `natural`.
template <class T>
void pack_strip(T* to, const T* w, int64_t o, int64_t width, int64_t outputs, int64_t inputs, int64_t step,
                bool natural) {
  const int64_t real = std::min(width, outputs - o);
  if (natural) {  // w is (inputs, outputs) here
    for (int64_t i = 0; i < inputs; ++i, to += width) {
      for (int64_t r = 0; r < real; r += kLanes) __builtin_prefetch(w + (i + kAhead) * step + o + r);
      std::memcpy(to, w + i * step + o, size_t(real) * sizeof(T));
      std::fill(to + real, to + width, T(0));
    }
    return;
  }
  for (int64_t begin = 0; begin < inputs; begin += kLanes) {
    const int64_t end = std::min<int64_t>(begin + kLanes, inputs);
    int64_t r = 0;
    if (end - begin == kLanes)
      for (; r + kLanes <= real; r += kLanes)
        transpose(w + (o + r) * step + begin, step, to + begin * width + r, width);
    for (; r < width; ++r)
      for (int64_t i = begin; i < end; ++i) to[i * width + r] = r < real ? w[(o + r) * step + i] : T(0);
  }
}

template <class T> T* aligned(T* p) { return reinterpret_cast<T*>(round_up(reinterpret_cast<int64_t>(p), 64)); }

template <class T> struct Strip {
  T* to;
  const T* weight;
  int64_t o, width, outputs, inputs;
};
template <class T> void add_strips(std::vector<Strip<T>>& todo, const Matrix<T>& w, const T* weight) {
  T* to = w.weight;
  for (int64_t o = 0; o < w.outputs; o += products::kPacks<T> * kLanes) {
    const int64_t width = std::min<int64_t>(products::kPacks<T> * kLanes, round_up(w.outputs - o, kLanes));
    todo.push_back({to, weight, o, width, w.outputs, w.inputs});
    to += width * w.inputs;
  }
}
template <class T> void pack_strips(const std::vector<Strip<T>>& todo, bool natural) {
  int64_t work = 0;
  for (const Strip<T>& s : todo) work += s.width * s.inputs;
  parallel_for(
      int64_t(todo.size()),
      [&](int64_t i) {
        const Strip<T>& s = todo[size_t(i)];
        pack_strip(s.to, s.weight, s.o, s.width, s.outputs, s.inputs, natural ? s.outputs : s.inputs, natural);
      },
      work < (1 << 14) ? int64_t(todo.size()) : 1);  // with fewer, threads cost more than they save
}

}  // namespace
}  // namespace GMK_ISA
}  // namespace gmk
