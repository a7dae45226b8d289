// A PixelCNN or Gated PixelCNN as the sampler keeps it: packed weights, and for each layer the rows of its input that
// its kernel looks back on.
#pragma once

#include <vector>

#include "gmk/abi.h"
#include "gmk/product.h"

namespace gmk {
namespace GMK_ISA {
namespace autoregressive {

using namespace products;

using Args = gmk_pixelcnn_args;

// The last rows of an activation, zeros beside them and above; pixel after pixel, all channels of each.
template <class T> struct Rows {
  int64_t channels = 0, margin = 0, kept = 0, columns = 0, step = 0;  // step: from sample to sample
  T* data = nullptr;

  Rows() = default;
  Rows(Arena& arena, const Args& a, int64_t c, int64_t beside, int64_t above)
      : channels(c), margin(beside), kept(above + 1), columns(a.width + 2 * beside) {
    step = round_up(kept * columns * channels, kLanes);
    data = arena.take<T>(a.batch * step);
  }
  T* at(int64_t sample, int64_t row, int64_t x) const {
    return data + sample * step + ((row + kept) % kept * columns + margin + x) * channels;
  }
};

// Parameters in their order.
template <class T> struct Reader {
  const T* at;
  const T* take(int64_t count) {
    const T* found = at;
    if (at) at += count;
    return found;
  }
};

// What all layers are made of: weights (outputs, inputs, rows, columns) and a bias.
template <class T> struct Layer {
  int64_t outputs, inputs, rows, columns;
  const T *weight, *bias;
  Layer(Reader<T>& from, int64_t o, int64_t i, int64_t r, int64_t c) : outputs(o), inputs(i), rows(r), columns(c) {
    weight = from.take(o * i * r * c);
    bias = from.take(o);
  }
  T value(int64_t o, int64_t channel, int64_t row, int64_t column) const {
    return weight[((o * inputs + channel) * rows + row) * columns + column];
  }
  // All taps of the first `count` rows.
  Matrix<T> whole(Arena& arena, int64_t count) const {
    Matrix<T> m(arena, outputs, count * columns * inputs);
    if (weight)
      m.fill([&](int64_t o, int64_t i) { return value(o, i % inputs, i / (columns * inputs), i / inputs % columns); },
             bias);
    return m;
  }
  // For one group of outputs: taps in `row` left of the centre, and the groups at the centre that the group may see.
  Matrix<T> group(Arena& arena, int64_t g, int64_t groups, bool strictly, int64_t row, bool biased) const {
    const int64_t each = outputs / groups, left = (rows == columns ? columns / 2 : columns - 1) * inputs;
    Matrix<T> m(arena, each, left + (strictly ? g : g + 1) * (inputs / groups));
    if (weight)
      m.fill([&](int64_t o, int64_t i) { return value(g * each + o, i % inputs, row, i / inputs); },
             biased ? bias + g * each : nullptr);
    return m;
  }
  std::vector<Matrix<T>> grouped(Arena& arena, int64_t groups, bool strictly, bool biased = true) const {
    std::vector<Matrix<T>> all;
    for (int64_t g = 0; g < groups; ++g) all.push_back(group(arena, g, groups, strictly, rows / 2, biased));
    return all;
  }
};

template <class T> using Groups = std::vector<Matrix<T>>;

// A masked convolution, its input, and what the rows above make of the current row.
template <class T> struct Masked {
  Matrix<T> above;
  Groups<T> here;
  Rows<T> in;
  T* ahead;  // (batch, width, outputs)
  int64_t kernel;

  Masked(Arena& arena, const Args& a, const Layer<T>& layer, bool strictly)
      : above(layer.whole(arena, layer.rows / 2)),
        here(layer.grouped(arena, a.groups, strictly, false)),
        in(arena, a, layer.inputs, layer.columns / 2, layer.rows / 2),
        ahead(arena.take<T>(a.batch * a.width * layer.outputs)),
        kernel(layer.rows) {}
};

template <class T> struct Block {
  Groups<T> reduce, expand;
  Masked<T> masked;
  Block(Arena& arena, const Args& a, const Layer<T>& first, const Layer<T>& middle, const Layer<T>& last)
      : reduce(first.grouped(arena, a.groups, false)),
        expand(last.grouped(arena, a.groups, false)),
        masked(arena, a, middle, false) {}
};

template <class T> struct GatedLayer {
  Matrix<T> vertical, link;
  Groups<T> horizontal, residual;
  Rows<T> down, across;
  T* ahead;  // (batch, width, 2 C)
  int64_t kernel;
  GatedLayer(Arena& arena, const Args& a, const Layer<T>& v, const Layer<T>& h, const Layer<T>& l, const Layer<T>& r,
             bool first)
      : vertical(v.whole(arena, v.rows)),
        link(l.whole(arena, 1)),
        horizontal(h.grouped(arena, a.groups, first, false)),
        residual(r.grouped(arena, a.groups, false)),
        down(arena, a, v.inputs, v.columns / 2, v.columns / 2),
        across(arena, a, v.inputs, v.columns / 2, 0),
        ahead(arena.take<T>(a.batch * a.width * v.outputs)),
        kernel(v.columns) {
    if (h.bias)  // both are added to the same sums
      for (int64_t o = 0; o < link.outputs; ++o) link.bias[o] = l.bias[o] + h.bias[o];
  }
};

// Everything that lives in the caller's memory, in one order; with memory at nullptr, only its size.
template <class T> struct Network {
  const Args& a;
  Arena arena;
  Reader<T> reader;
  std::vector<Masked<T>> first;  // of a PixelCNN, one
  std::vector<Block<T>> blocks;
  std::vector<GatedLayer<T>> layers;
  Groups<T> head, output;

  Network(const Args& args, void* memory, bool fill)
      : a(args), arena(memory), reader{fill ? static_cast<const T*>(args.parameters) : nullptr} {
    const int64_t w = a.features;
    if (a.gated) {
      for (int64_t i = 0, in = a.channels; i < a.layers; ++i, in = w) {
        const int64_t k = a.kernels[i];
        const Layer<T> v(reader, 2 * w, in, k / 2 + 1, k), h(reader, 2 * w, in, 1, k / 2 + 1);
        const Layer<T> l(reader, 2 * w, 2 * w, 1, 1), r(reader, w, w, 1, 1);
        layers.emplace_back(arena, a, v, h, l, r, i == 0);
      }
    } else {
      const int64_t k = a.kernels[0];
      first.emplace_back(arena, a, Layer<T>(reader, 2 * w, a.channels, k, k), true);
      for (int64_t i = 1; i < a.layers; ++i) {
        const int64_t size = a.kernels[i];
        const Layer<T> reduce(reader, w, 2 * w, 1, 1), middle(reader, w, w, size, size), expand(reader, 2 * w, w, 1, 1);
        blocks.emplace_back(arena, a, reduce, middle, expand);
      }
    }
    head = Layer<T>(reader, a.hidden, stream(), 1, 1).grouped(arena, a.groups, false);
    output = Layer<T>(reader, a.outputs, a.hidden, 1, 1).grouped(arena, a.groups, false);
  }
  int64_t stream() const { return a.gated ? a.features : 2 * a.features; }
};

}  // namespace autoregressive
}  // namespace GMK_ISA
}  // namespace gmk
