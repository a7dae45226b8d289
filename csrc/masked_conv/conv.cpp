// Masked 2-D and causal 1-D convolution: nothing is multiplied by zero but what taps find beyond a border. See
// planes.h.
#include "conv.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using Args = gmk_conv_args;

template <class T> void forward(const Args& a) {
  const Conv<T> conv(a, a.channels);
  conv.forward(1, {}, [&](const auto& chunk, const auto& sums) {
    sums.to(conv.g, 0, chunk.count, a.out, a.dtype, chunk.first);
  });
}

template <class T> void backward(const Args& a) {
  const Conv<T> conv(a, a.channels + a.outputs);
  const auto sums =
      conv.backward(a.outputs, a.out_bias, {}, [&](const Strip& u, int64_t c, const auto& planes, T* sum) {
        pack_plane(conv.g, a.grad, a.dtype, u.n, c, u.begin, conv.reached(u), planes[c]);
        if (sum) sum[c] = conv.sum(u, planes[c]);
      });
  if (a.out_bias) conv.add_up(sums);
}

}  // namespace

int conv_forward(const Args& a) { return a.dtype == GMK_F64 ? (forward<double>(a), 0) : (forward<float>(a), 0); }
int conv_backward(const Args& a) { return a.dtype == GMK_F64 ? (backward<double>(a), 0) : (backward<float>(a), 0); }

}  // namespace GMK_ISA
}  // namespace gmk
