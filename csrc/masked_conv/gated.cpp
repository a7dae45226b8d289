// A masked convolution and the gate of its outputs in one: sums go through the gate, and gradients come through it,
// while they are in the cache.
#include "conv.h"
#include "gmk/vmath.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using Args = gmk_gated_conv_args;

// tanh(a) and sigmoid(b) as backward wants them.
template <class T> gmk_image kept(const Args& args) {
  const gmk_conv_args& a = args.conv;
  const int64_t plane = a.height * a.width;
  return {args.kept, a.outputs * plane, plane, a.width, 1};
}

template <class T> void forward(const Args& args) {
  const gmk_conv_args& a = args.conv;
  const Conv<T> conv(a, a.channels);
  const gmk_image keep = kept<T>(args), &cond = args.cond;
  const bool alike = cond.h == 0 && cond.w == 0;  // for all pixels of an image
  conv.forward(2, {keep, a.outputs}, [&](const auto& chunk, const auto& sums) {
    const Buffer<T> out(kGated, chunk.count * sums.step);
    for (int64_t c = 0; c < chunk.count; ++c) {
      const int64_t first = chunk.first + c, other = chunk.other + c;
      T *const x = sums[c], *const y = sums[chunk.count + c], more[2] = {T(0), T(0)};
      if (cond.data && alike) {
        read(more, cond.data, a.dtype, sums.n * cond.n + first * cond.c, 1, 1);
        read(more + 1, cond.data, a.dtype, sums.n * cond.n + other * cond.c, 1, 1);
      } else if (cond.data) {
        add_pixels(conv.g, cond, a.dtype, sums.n, first, sums.first, sums.count, x);
        add_pixels(conv.g, cond, a.dtype, sums.n, other, sums.first, sums.count, y);
      }
      for (int64_t i = 0; i < sums.count; i += kLanes) {
        const pack<T> t = tanh(load(x + i) + more[0]), s = sigmoid(load(y + i) + more[1]);
        store(out.data + c * sums.step + i, t * s);
        store(x + i, t);
        store(y + i, s);
      }
    }
    typename Conv<T>::Sums{out.data, sums.step, sums.n, sums.first, sums.count}.to(conv.g, 0, chunk.count, a.out,
                                                                                   a.dtype, chunk.place);
    if (!keep.data) return;
    sums.to(conv.g, 0, chunk.count, keep, dtype_of<T>(), chunk.first);
    sums.to(conv.g, chunk.count, chunk.count, keep, dtype_of<T>(), chunk.other);
  });
}

template <class T> void backward(const Args& args) {
  const gmk_conv_args& a = args.conv;
  const Conv<T> conv(a, a.channels + a.outputs);
  const gmk_image keep = kept<T>(args), &by_cond = args.out_cond;
  const int64_t size = a.outputs / a.groups, half = size / 2;
  const bool summed = a.out_bias || args.out_label;
  const auto sums = conv.backward(
      a.outputs / 2, summed, {keep, a.outputs}, [&](const Strip& u, int64_t c, const auto& planes, T* sum) {
        const int64_t first = c / half * size + c % half, other = first + half, end = conv.reached(u);
        const int64_t last = std::min(end, conv.g.pixels), room = end - u.begin;
        T *const x = planes[first], *const y = planes[other];
        const bool direct = a.grad.w == 1 && a.dtype == dtype_of<T>();
        const Buffer<T> plane(kGated, direct ? 0 : room);
        if (!direct) pack_plane(conv.g, a.grad, a.dtype, u.n, c, u.begin, end, plane.data);
        const T* const from = static_cast<const T*>(keep.data) + u.n * keep.n;
        const T* const image = static_cast<const T*>(a.grad.data) + u.n * a.grad.n + c * a.grad.c;
        conv.g.rows(u.begin, last, [&](int64_t line, int64_t begin, int64_t until, int64_t at) {
          const T *t_row = from + first * keep.c + line * keep.h, *s_row = from + other * keep.c + line * keep.h;
          const T* const g_row = direct ? image + line * a.grad.h : plane.data + (at - begin);
          const int64_t real = std::min(until, a.width);
          for (int64_t i = begin; i < until; i += kLanes) {
            const int lanes = int(std::clamp<int64_t>(real - i, 0, kLanes));
            const bool all = lanes == kLanes;
            const pack<T> g = all ? load(g_row + i) : load_n(g_row + i, lanes);
            const pack<T> t = all ? load(t_row + i) : load_n(t_row + i, lanes);
            const pack<T> s = all ? load(s_row + i) : load_n(s_row + i, lanes);
            const pack<T> by_x = g * (s * fma(-t, t, T(1))), by_y = g * (t * fma(-s, s, s));
            const int64_t to = at + (i - begin);
            if (to + kLanes <= room) {  // over the gap, which stays zero, into the next row, which comes later
              store(x + to, by_x);
              store(y + to, by_y);
            } else {
              store_n(x + to, by_x, int(room - to));
              store_n(y + to, by_y, int(room - to));
            }
          }
        });
        std::fill(x + (last - u.begin), x + room, T(0));
        std::fill(y + (last - u.begin), y + room, T(0));
        if (sum) sum[first] = conv.sum(u, x), sum[other] = conv.sum(u, y);
        if (!by_cond.data) return;
        unpack(conv.g, x, 0, 1, u.begin, u.end - u.begin, by_cond, a.dtype, u.n, first);
        unpack(conv.g, y, 0, 1, u.begin, u.end - u.begin, by_cond, a.dtype, u.n, other);
      });
  if (a.out_bias) conv.add_up(sums);
  if (!args.out_label) return;
  std::vector<T> label(size_t(a.batch * a.outputs), T(0));
  const int64_t of_image = conv.strips.cut.pieces * a.outputs;
  for (int64_t i = 0; i < int64_t(sums.size()); ++i)
    label[size_t(i / of_image * a.outputs + i % a.outputs)] += sums[size_t(i)];
  write(args.out_label, a.dtype, 0, label.data(), a.batch * a.outputs);
}

}  // namespace

int gated_conv_forward(const Args& a) {
  return a.conv.dtype == GMK_F64 ? (forward<double>(a), 0) : (forward<float>(a), 0);
}
int gated_conv_backward(const Args& a) {
  return a.conv.dtype == GMK_F64 ? (backward<double>(a), 0) : (backward<float>(a), 0);
}

}  // namespace GMK_ISA
}  // namespace gmk
