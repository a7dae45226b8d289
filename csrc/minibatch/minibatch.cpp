// Minibatch discrimination: sums over all pairs of a batch, with no pair ever written to memory.
//
// A task is one kernel b. Its coordinates are laid out as C rows of samples, so that sixteen samples j fill the lanes
// of a pack while one sample i is broadcast. Each unordered pair is visited once: what it adds for j stays in lanes
// ("columns"), what it adds for i goes into sixteen running sums per i ("rows"), folded at the end. Samples i are taken
// in tiles so that the row sums stay in the first-level cache. Nothing depends on threads, and the order of sums is
// fixed.
//
// Backward and double backward rebuild the distances: storing them would take batch^2 numbers per kernel.
#include <vector>

#include "gmk/convert.h"
#include "gmk/parallel.h"
#include "gmk/vmath.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using Args = gmk_minibatch_args;
enum Order { kForward, kBackward, kDouble };

// What one kernel b needs; kept per thread between tasks. All sample counts are rounded up to full packs.
template <class T> struct Scratch {
  std::vector<pack<T>> x, v, g;           // coordinates, cotangents (C rows of packs), upstream gradients
  std::vector<pack<T>> column, column_x;  // sums for j: of the output, and of the C coordinates
  std::vector<pack<T>> row, row_x;        // the same for i, sixteen partial sums each
};

template <class T> GMK_INLINE T lane(const std::vector<pack<T>>& a, int64_t i) {
  return reinterpret_cast<const T*>(a.data())[i];
}

// w with the sign of d, zero where d is zero.
template <class T> GMK_INLINE pack<T> signed_by(const pack<T>& w, const pack<T>& d) {
  using M = typename native<T>::mask;
  const pack<T> s = bits<T>(bits<M>(w) ^ (bits<M>(d) & std::numeric_limits<M>::min()));
  return select<T>(d != T(0), s, T(0));
}

// C is the number of coordinates, or 0 when only known at run time.
template <class T, int C, Order order> struct Pairs {
  using P = pack<T>;
  const Args& a;
  const int64_t batch = a.batch, dim = C ? C : a.dim, packs = (batch + kLanes - 1) / kLanes;
  // Row sums of a tile: about 16 KiB.
  const int64_t tile = std::max<int64_t>(
      kLanes,
      (16384 / (kLanes * sizeof(T)) / (order == kForward ? 1 : std::max<int64_t>(1, dim + (order == kDouble)))) /
          kLanes * kLanes);

  void load_kernel(Scratch<T>& s, int64_t b) const {
    const auto fill = [&](std::vector<P>& to, const void* from, int64_t rows, int64_t start, int64_t step_i,
                          int64_t step_c) {
      to.assign(rows * packs, P(T(0)));
      for (int64_t c = 0; c < rows; ++c)
        read(reinterpret_cast<T*>(&to[c * packs]), from, a.dtype, start + c * step_c, step_i, batch);
    };
    fill(s.x, a.m, dim, b * a.stride_b, a.stride_i, a.stride_c);
    if (order != kForward) fill(s.g, a.grad, 1, b, a.kernels, 0);
    if (order == kDouble) fill(s.v, a.v, dim, b * dim, a.kernels * dim, 1);
    if (order != kBackward) s.column.assign(packs, P(T(0)));
    if (order != kForward) s.column_x.assign(packs * dim, P(T(0)));
    if (order != kBackward) s.row.assign(tile, P(T(0)));
    if (order != kForward) s.row_x.assign(tile * dim, P(T(0)));
  }

  // Pairs of samples first .. last with the sixteen samples of pack j; of those only the lanes in `live` beyond i count
  // if `diagonal`, where i itself is among the sixteen.
  template <bool diagonal>
  GMK_INLINE void against(Scratch<T>& s, int64_t first, int64_t last, int64_t tile_start, int64_t j,
                          const mask_of<T>& live) const {
    const int64_t dim = C ? C : this->dim;  // a constant to the compiler where it is one
    const P* x = &s.x[j];
    P held[C ? C : 1], sums[C ? C : 1];  // coordinates and coordinate sums of pack j, in registers when C is known
    for (int c = 0; c < C; ++c) {
      held[c] = x[c * packs];
      sums[c] = P(T(0));
    }
    const P g = order == kForward ? P(T(0)) : s.g[j];
    P sum(T(0));
    for (int64_t i = first; i < last; ++i) {
      P distance(T(0)), along(T(0));
      for (int64_t c = 0; c < dim; ++c) {
        const P d = P(lane(s.x, c * packs * kLanes + i)) - (C ? held[c] : x[c * packs]);
        distance += abs(d);
        if constexpr (order == kDouble) {
          // p = sum_c sign(x_i - x_j) (v_i - v_j)
          along += signed_by(P(lane(s.v, c * packs * kLanes + i)) - s.v[c * packs + j], d);
        }
      }
      P e = exp(-distance);
      mask_of<T> counted = live;
      if constexpr (diagonal)
        counted = counted & (iota<typename native<T>::mask>() > typename native<T>::mask(i - j * kLanes));
      e = select<T>(counted, e, T(0));
      if constexpr (order == kForward) {
        sum += e;
        s.row[i - tile_start] += e;
      } else {
        P w = (g + lane(s.g, i)) * e;
        if constexpr (order == kDouble) {
          // Lanes that do not count may hold inf - inf; they must not turn 0 into NaN.
          along = select<T>(counted, along, T(0));
          sum -= e * along;
          s.row[i - tile_start] -= e * along;
          w = -(w * along);
        }
        P* row = &s.row_x[(i - tile_start) * dim];
        for (int64_t c = 0; c < dim; ++c) {
          const P t = signed_by(w, P(lane(s.x, c * packs * kLanes + i)) - (C ? held[c] : x[c * packs]));
          if (C)
            sums[c] += t;
          else
            s.column_x[j * dim + c] += t;
          row[c] -= t;
        }
      }
    }
    if (order != kBackward) s.column[j] += sum;
    if (order != kForward)
      for (int c = 0; c < C; ++c) s.column_x[j * dim + c] += sums[c];
  }

  void operator()(Scratch<T>& s, int64_t b) const {
    load_kernel(s, b);
    const auto lanes = iota<typename native<T>::mask>();
    for (int64_t start = 0; start < batch; start += tile) {
      const int64_t stop = std::min(batch, start + tile);
      for (int64_t j = start / kLanes; j < packs; ++j) {
        const auto live = lanes < typename native<T>::mask(std::min<int64_t>(kLanes, batch - j * kLanes));
        const int64_t own = j * kLanes;
        against<false>(s, start, std::min(stop, own), start, j, live);
        if (own < stop) against<true>(s, own, std::min(stop, own + kLanes), start, j, live);
      }
      // The tile's row sums join the column sums, which are complete for these samples once all earlier tiles ran.
      for (int64_t i = start; i < stop; ++i) {
        if (order != kBackward) {
          T& o = reinterpret_cast<T*>(s.column.data())[i];
          o += fold(s.row[i - start]);
          s.row[i - start] = P(T(0));
          write(a.out, a.dtype, i * a.kernels + b, &o, 1);
        }
        if (order != kForward) {
          for (int64_t c = 0; c < dim; ++c) {
            P& r = s.row_x[(i - start) * dim + c];
            const T o = reinterpret_cast<const T*>(&s.column_x[i / kLanes * dim + c])[i % kLanes] + fold(r);
            r = P(T(0));
            write(a.out_m, a.dtype, (i * a.kernels + b) * dim + c, &o, 1);
          }
        }
      }
    }
  }
};

template <class T, int C, Order order> void run(const Args& a) {
  const Pairs<T, C, order> pairs{a};
  parallel_for(a.kernels, [&](int64_t b) {
    static thread_local Scratch<T> scratch;
    pairs(scratch, b);
  });
}

template <Order order> int choose(const Args& a) {
  if (a.dtype == GMK_F64) return run<double, 0, order>(a), 0;
  if constexpr (order != kDouble) {
    switch (a.dim) {
      case 1: return run<float, 1, order>(a), 0;
      case 2: return run<float, 2, order>(a), 0;
      case 3: return run<float, 3, order>(a), 0;
      case 4: return run<float, 4, order>(a), 0;
      case 5: return run<float, 5, order>(a), 0;
      case 6: return run<float, 6, order>(a), 0;
      case 8: return run<float, 8, order>(a), 0;
    }
  }
  return run<float, 0, order>(a), 0;
}

}  // namespace

int minibatch_discrimination(const Args& a) { return choose<kForward>(a); }
int minibatch_discrimination_backward(const Args& a) { return choose<kBackward>(a); }
int minibatch_discrimination_double_backward(const Args& a) { return choose<kDouble>(a); }

}  // namespace GMK_ISA
}  // namespace gmk
