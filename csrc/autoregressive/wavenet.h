// A WaveNet as the sampler keeps it: packed weights in the order in which a step reads them, and for each layer a ring
// of the activations that it looks back on.
#pragma once

#include <utility>
#include <vector>

#include "gmk/abi.h"
#include "gmk/product.h"

namespace gmk {
namespace GMK_ISA {
namespace wavenet {

using namespace products;
using Args = gmk_wavenet_args;

template <class T> struct Layer {
  int64_t dilation, length, channels;
  int64_t step;  // from one sample's ring to the next one's
  Matrix<T> dilated, residual, local;
  T* ring;

  Layer(Arena& arena, const Args& a, int64_t d, bool last)
      : dilation(d),
        length((a.kernel - 1) * d + 1),
        channels(a.residual),
        step(round_up(length * a.residual, kLanes)),
        dilated(arena, 2 * a.gate, a.kernel * a.residual) {
    if (!last) residual = Matrix<T>(arena, a.residual, a.gate);
    if (a.local) local = Matrix<T>(arena, 2 * a.gate, a.local_channels);
    ring = arena.take<T>(a.batch * step);
  }
  T* at(int64_t sample, int64_t time) const { return ring + sample * step + time % length * channels; }
};

// Everything that lives in the caller's memory, in one order; with memory at nullptr, only its size. The skip sums of
// all layers are one product with all gates, in which a sum stays in its register from the first layer to the last.
template <class T> struct Network {
  const Args& a;
  Arena arena;
  Matrix<T> first, skip, head, output;
  std::vector<Layer<T>> layers;

  Network(const Args& args, void* memory, bool fill) : a(args), arena(memory) {
    first = Matrix<T>(arena, a.residual, a.first_kernel * a.inputs);
    for (int64_t l = 0; l < a.layers; ++l) layers.emplace_back(arena, a, a.dilations[l], l + 1 == a.layers);
    skip = Matrix<T>(arena, a.skip, a.layers * a.gate);
    head = Matrix<T>(arena, a.hidden, a.skip);
    output = Matrix<T>(arena, a.outputs, a.hidden);
    if (fill) pack();
  }
  // That a step reads.
  int64_t weights() const {
    const int64_t layer = 2 * a.gate * a.kernel * a.residual + (a.residual + a.skip) * a.gate;
    return a.layers * layer + a.hidden * (a.skip + a.outputs);
  }

 private:
  // Weights (outputs, inputs, taps) as a matrix whose inputs come tap by tap.
  static void taps(Matrix<T>& m, const T* weight, const T* bias, int64_t inputs, int64_t count) {
    m.fill([&](int64_t o, int64_t i) { return weight[(o * inputs + i % inputs) * count + i / inputs]; }, bias);
  }

  void pack() {
    const T* from = static_cast<const T*>(a.parameters);
    const auto take = [&](int64_t count) { return std::exchange(from, from + count); };
    const T* w = take(a.residual * a.inputs * a.first_kernel);
    taps(first, w, take(a.residual), a.inputs, a.first_kernel);
    std::vector<const T*> mixes(a.layers), biases(a.layers);
    for (int64_t l = 0; l < a.layers; ++l) {
      Layer<T>& layer = layers[l];
      const int64_t kept = l + 1 == a.layers ? 0 : a.residual;
      w = take(2 * a.gate * a.residual * a.kernel);
      taps(layer.dilated, w, take(2 * a.gate), a.residual, a.kernel);
      w = take((kept + a.skip) * a.gate);
      const T* bias = take(kept + a.skip);
      if (kept) taps(layer.residual, w, bias, a.gate, 1);
      mixes[l] = w + kept * a.gate, biases[l] = bias + kept;
      if (a.local)
        taps(layer.local, static_cast<const T*>(a.local_weight) + l * 2 * a.gate * a.local_channels, nullptr,
             a.local_channels, 1);
    }
    skip.fill([&](int64_t o, int64_t i) { return mixes[i / a.gate][o * a.gate + i % a.gate]; }, nullptr);
    for (int64_t l = 0; l < a.layers; ++l)
      for (int64_t o = 0; o < a.skip; ++o) skip.bias[o] += biases[l][o];
    w = take(a.hidden * a.skip);
    taps(head, w, take(a.hidden), a.skip, 1);
    w = take(a.outputs * a.hidden);
    taps(output, w, take(a.outputs), a.hidden, 1);
  }
};

}  // namespace wavenet
}  // namespace GMK_ISA
}  // namespace gmk
