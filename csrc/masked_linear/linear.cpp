// A linear layer of which output o sees the first seen[o] inputs.
#include "gmk/abi.h"
#include "gmk/staircase.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using namespace staircase;

constexpr int64_t kBlock = 8 * kRows;  // rows of a task: about as many as stay near the processor

// A batch as lanes, strip after strip.
template <class T> struct Lanes {
  Strips strips;
  int64_t features;
  std::vector<T> data;

  Lanes(int64_t batch, int64_t count)
      : strips(batch, kPacks<T>), features(count), data(strips.packs * kLanes * count) {}
  T* strip(int64_t s) { return data.data() + strips.first(s) * features; }

  void fill(const gmk_rows& from, bool relu) {
    parallel_for(
        strips.count(),
        [&](int64_t s) {
          const int64_t lanes = strips.width(s) * kLanes;
          to_lanes(strip(s), lanes, static_cast<const T*>(from.data) + strips.first(s) * from.batch, from.batch,
                   from.inner, strips.samples(s), features);
          if (relu)
            for (T *at = strip(s), *end = at + lanes * features; at < end; at += kLanes)
              store(at, max(pack<T>(T(0)), load(at)));
        },
        grain(strips.count(), int64_t(data.size())));
  }
};

// body(strip, packs as a constant, first row, rows, sums of the rows) for every strip and block of rows; then the sums
// are `out`, a row of which has `count` numbers.
template <class T, class Body>
void blocks(const Strips& strips, T* out, int64_t count, int64_t work, const Body& body) {
  const int64_t per_strip = ceil_div(count, kBlock), tasks = per_strip * strips.count();
  parallel_for(
      tasks,
      [&](int64_t task) {
        const int64_t place = in_turn(task, tasks), s = place % strips.count(), first = place / strips.count() * kBlock;
        const int64_t rows = std::min(kBlock, count - first);
        alignas(64) T sums[kBlock * kPacks<T> * kLanes];
        with_packs<T>(strips.width(s), [&](auto packs) { body(s, packs, first, rows, sums); });
        from_lanes(out + strips.first(s) * count + first, count, sums, strips.width(s) * kLanes, strips.samples(s),
                   rows);
      },
      grain(tasks, work));
}

template <class T> void forward(const gmk_masked_linear_args& a) {
  Lanes<T> x(a.batch, a.inputs);
  x.fill(a.x, a.relu);
  const View<T> weight{static_cast<const T*>(a.weight), a.inputs, 1};
  const T* bias = static_cast<const T*>(a.bias);
  blocks(x.strips, static_cast<T*>(a.out), a.outputs, a.batch * a.inputs * a.outputs,
         [&](int64_t s, auto packs, int64_t first, int64_t rows, T* sums) {
           constexpr int V = decltype(packs)::value;
           constexpr int64_t lanes = V * kLanes;
           for (int64_t r = 0; r < rows; ++r) std::fill_n(sums + r * lanes, lanes, bias ? bias[first + r] : T(0));
           for (int64_t r = 0; r < rows; r += kRows) {
             const int64_t some = std::min<int64_t>(kRows, rows - r);
             const int64_t* seen = a.seen + first + r;
             const int64_t all = std::max<int64_t>(0, *std::min_element(seen, seen + some));
             const View<T> w = weight.from(first + r, 0);
             product<T, V>(sums + r * lanes, some, w, x.strip(s), lanes, all);
             for (int64_t i = 0; i < some; ++i)
               product<T, V>(sums + (r + i) * lanes, 1, w.from(i, all), x.strip(s) + all * lanes, lanes, seen[i] - all);
           }
         });
}

// Outputs in runs in which `seen` does not fall: in a run, those that see an input are its last.
inline std::vector<int64_t> runs(const gmk_masked_linear_args& a) {
  std::vector<int64_t> starts{0};
  for (int64_t o = 1; o < a.outputs; ++o)
    if (a.seen[o] < a.seen[o - 1]) starts.push_back(o);
  starts.push_back(a.outputs);
  return starts;
}

template <class T> void by_x(const gmk_masked_linear_args& a) {
  Lanes<T> g(a.batch, a.outputs);
  g.fill(a.grad, false);
  const View<T> weight{static_cast<const T*>(a.weight), 1, a.inputs};
  const std::vector<int64_t> starts = runs(a);
  T* out = static_cast<T*>(a.out);
  blocks(g.strips, out, a.inputs, a.batch * a.inputs * a.outputs,
         [&](int64_t s, auto packs, int64_t first, int64_t rows, T* sums) {
           constexpr int V = decltype(packs)::value;
           constexpr int64_t lanes = V * kLanes;
           std::fill_n(sums, rows * lanes, T(0));
           for (int64_t r = 0; r < rows; r += kRows) {
             const int64_t some = std::min<int64_t>(kRows, rows - r), input = first + r;
             for (size_t run = 0; run + 1 < starts.size(); ++run) {
               const int64_t *begin = a.seen + starts[run], *end = a.seen + starts[run + 1];
               // Those of which only some of the inputs are seen come one by one, and before those that see all.
               const int64_t part = std::upper_bound(begin, end, input) - a.seen;
               const int64_t full = std::lower_bound(begin, end, input + some) - a.seen;
               for (int64_t o = part; o < full; ++o)
                 product<T, V>(sums + r * lanes, a.seen[o] - input, weight.from(input, o), g.strip(s) + o * lanes,
                               lanes, 1);
               product<T, V>(sums + r * lanes, some, weight.from(input, full), g.strip(s) + full * lanes, lanes,
                             end - a.seen - full);
             }
           }
         });
  if (!a.relu) return;
  const T* x = static_cast<const T*>(a.x.data);
  parallel_for(
      a.batch,
      [&](int64_t b) {
        const T* from = x + b * a.x.batch;
        T* to = out + b * a.inputs;
        if (a.x.inner == 1)
          for (int64_t i = 0; i < a.inputs; ++i) to[i] = from[i] > T(0) ? to[i] : T(0);
        else
          for (int64_t i = 0; i < a.inputs; ++i) to[i] = from[i * a.x.inner] > T(0) ? to[i] : T(0);
      },
      grain(a.batch, a.batch * a.inputs));
}

template <class T> void by_parameters(const gmk_masked_linear_args& a) {
  std::vector<T> straight;
  const T* g = static_cast<const T*>(a.grad.data);
  int64_t g_step = a.grad.batch;
  if (a.grad.inner != 1) {
    g_step = a.outputs;
    straight.resize(a.batch * a.outputs);
    for (int64_t b = 0; b < a.batch; ++b)
      for (int64_t o = 0; o < a.outputs; ++o) straight[b * g_step + o] = g[b * a.grad.batch + o * a.grad.inner];
    g = straight.data();
  }
  if (a.out_bias) bias_gradient(static_cast<T*>(a.out_bias), a.outputs, g, g_step, a.batch);
  if (!a.out_weight) return;
  const int64_t pitch = ceil_div(a.inputs, kLanes) * kLanes;
  const T* x = static_cast<const T*>(a.x.data);
  std::vector<T> whole;
  if (a.relu || a.x.inner != 1 || a.x.batch != pitch) {  // copied with whole packs in every row
    whole.assign(a.batch * pitch, T(0));
    for (int64_t b = 0; b < a.batch; ++b) {
      const T* from = x + b * a.x.batch;
      T* to = whole.data() + b * pitch;
      for (int64_t i = 0; i < a.inputs; ++i) to[i] = from[i * a.x.inner];
      if (a.relu)
        for (int64_t i = 0; i < pitch; i += kLanes) store(to + i, max(pack<T>(T(0)), load(to + i)));
    }
    x = whole.data();
  }
  weight_gradient(static_cast<T*>(a.out_weight), a.outputs, a.inputs, g, g_step, x, pitch, a.batch, a.seen);
}

template <class T> void backward(const gmk_masked_linear_args& a) {
  if (a.out) by_x<T>(a);
  if (a.out_weight || a.out_bias) by_parameters<T>(a);
}

}  // namespace

int masked_linear(const gmk_masked_linear_args& a) {
  a.x.dtype == GMK_F64 ? forward<double>(a) : forward<float>(a);
  return 0;
}

int masked_linear_backward(const gmk_masked_linear_args& a) {
  a.x.dtype == GMK_F64 ? backward<double>(a) : backward<float>(a);
  return 0;
}

}  // namespace GMK_ISA
}  // namespace gmk
