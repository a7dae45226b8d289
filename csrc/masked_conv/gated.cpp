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
  const int64_t half = a.outputs / a.groups / 2;
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
      T* tanhs = static_cast<T*>(keep.data);
      if (tanhs) tanhs += sums.n * keep.n + first * keep.c + sums.first;
      for (int64_t i = 0; i < sums.count; i += kLanes) {
        const pack<T> t = tanh(load(x + i) + more[0]), s = sigmoid(load(y + i) + more[1]);
        store(out.data + c * sums.step + i, t * s);
        if (!tanhs) continue;
        const int lanes = int(std::min<int64_t>(kLanes, sums.count - i));
        store_n(tanhs + i, t, lanes);
        store_n(tanhs + half * keep.c + i, s, lanes);
      }
    }
    typename Conv<T>::Sums{out.data, sums.step, sums.n, sums.first, sums.count}.to(conv.g, 0, chunk.count, a.out,
                                                                                   a.dtype, chunk.place);
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
        const bool direct = a.grad.w == 1 && a.grad.h == a.width && a.dtype == dtype_of<T>();
        const Buffer<T> plane(kGated, direct ? 0 : room);
        const T* from = plane.data;
        if (direct)
          from = static_cast<const T*>(a.grad.data) + u.n * a.grad.n + c * a.grad.c + u.begin;
        else
          pack_plane(conv.g, a.grad, a.dtype, u.n, c, u.begin, end, plane.data);
        const T* const tanhs = static_cast<const T*>(keep.data) + u.n * keep.n + first * keep.c + u.begin;
        const T* const sigmoids = tanhs + half * keep.c;
        for (int64_t q = 0; q < last - u.begin; q += kLanes) {
          const int lanes = int(std::min<int64_t>(kLanes, last - u.begin - q));
          const auto get = [&](const T* p) { return lanes == kLanes ? load(p + q) : load_n(p + q, lanes); };
          const pack<T> g = get(from), t = get(tanhs), s = get(sigmoids);
          store_n(x + q, g * (s * fma(-t, t, T(1))), lanes);
          store_n(y + q, g * (t * fma(-s, s, s)), lanes);
        }
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
