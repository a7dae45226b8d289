// Interpolation between samples with one random number each, and the penalty on the norm of a gradient: the norm and
// the direction in which the penalty grows come from one visit to a sample, which stays in the cache between the two.
#include <cmath>

#include "gmk/rows.h"
#include "gmk/stream.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using Args = gmk_penalty_args;
constexpr int64_t kTask = 4096;  // elements

// f(block, n, where in the sample) for each block of a sample.
template <class F> GMK_INLINE void each_block(int64_t features, const F& f) {
  for (int64_t i = 0; i < features; i += kBlock) f(i, int(std::min<int64_t>(kBlock, features - i)));
}

template <class T> void interpolate(const Args& a) {
  const Key key{uint64_t(a.key[0]), uint64_t(a.key[1])};
  each_row(a.sizes, kTask, [&] {
    return [&, x = Input<T>(a.a, a.sizes), y = Input<T>(a.b, a.sizes), out = Output<T>(a.out, a.a.dtype)](
               int64_t b, int64_t features) mutable {
      const int64_t element = a.first + b;
      uint64_t word[4];
      philox_words(uint64_t(element / 4), key.offset, key.seed, word);
      const pack<T> eps(uniform<T>(uint32_t(word[element % 4])));
      each_block(features, [&](int64_t i, int n) {
        const T *px = x.block(b, i, n), *py = y.block(b, i, n);
        T* to = out.block(b * features + i);
        each_pack(n, [&](int p, int lanes) {
          const pack<T> from = get(py, p, lanes);
          put(to, p, lanes, fma(eps, get(px, p, lanes) - from, from));
        });
        out.commit(b * features + i, n);
      });
    };
  });
}

// p = (n - k)^2 from n^2, and c in dp/dg = c g. A sum of squares of 0 has no slope.
template <class T> struct Penalty {
  T value, slope;
};
template <class T> GMK_INLINE Penalty<T> penalty_of(T squared, T target, bool one_sided) {
  if (target == T(0)) return {squared, T(2)};
  const T norm = std::sqrt(squared);
  T excess = norm - target;
  if (one_sided && excess < T(0)) excess = T(0);
  return {excess * excess, norm == T(0) ? T(0) : T(2) * excess / norm};
}

template <class T> void penalty(const Args& a) {
  each_row(a.sizes, kTask, [&] {
    return [&, g = Input<T>(a.a, a.sizes), out = Output<T>(a.out, a.a.dtype)](int64_t b, int64_t features) mutable {
      RowSum<T> squares;
      each_block(features, [&](int64_t i, int n) {
        const T* pg = g.block(b, i, n);
        each_pack(n, [&](int p, int lanes) {
          const pack<T> v = get(pg, p, lanes);
          squares.add(p, lanes, v * v);
        });
      });
      const Penalty<T> found = penalty_of(squares.total(), T(a.target), a.one_sided != 0);
      if (a.out_penalty) static_cast<T*>(a.out_penalty)[b] = found.value;
      if (!a.out) return;
      const pack<T> factor(a.weight ? found.slope * static_cast<const T*>(a.weight)[b] : found.slope);
      each_block(features, [&](int64_t i, int n) {
        const T* pg = g.block(b, i, n);
        T* to = out.block(b * features + i);
        each_pack(n, [&](int p, int lanes) { put(to, p, lanes, factor * get(pg, p, lanes)); });
        out.commit(b * features + i, n);
      });
    };
  });
}

}  // namespace

int random_interpolate(const Args& a) {
  if (a.a.dtype == GMK_F64)
    interpolate<double>(a);
  else
    interpolate<float>(a);
  return 0;
}
int norm_penalty(const Args& a) {
  if (a.a.dtype == GMK_F64)
    penalty<double>(a);
  else
    penalty<float>(a);
  return 0;
}

}  // namespace GMK_ISA
}  // namespace gmk
