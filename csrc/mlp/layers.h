// The layers of a perceptron, by itself or in a coupling, and a pass of a batch through them, either way.
#pragma once

#include <array>

#include "gmk/abi.h"
#include "packing.h"
#include "rowwise.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using products::kPacks;
using products::kTile;
using products::Piece;
using products::product;
template <class T> using Source = products::Input<T>;
template <class T> using Target = products::Output<T>;
using Args = gmk_mlp_args;

// Multiplications: with fewer, threads cost more than they save.
constexpr int64_t kSmall = 1 << 14;
constexpr int64_t kWide = 1 << 19;  // bytes of a wide layer's weights
constexpr int64_t kFew = 4;
constexpr int64_t kTogether = 128;                      // samples that pass the narrow layers before others follow
constexpr int64_t kBlockPacks = 8, kBlockVectors = 64;  // a block of what is packed, and of what it is multiplied by

template <class T> struct Layers {
  const Args& a;
  std::array<int64_t, GMK_MLP_LAYERS + 1> offset{};  // of a layer's output among what is kept of a sample
  int64_t hidden = 0;                                // how much that is
  const T* input;                                    // what the perceptron reads
  int64_t kept = 0, changed = 0, count = 0;  // of a coupling: where both parts begin, and how many numbers change

  explicit Layers(const Args& args) : a(args), input(static_cast<const T*>(args.x)) {
    for (int64_t l = 1; l < a.layers + (a.split ? 1 : 0); ++l) offset[l] = hidden, hidden += a.widths[l];
    if (!a.split) return;
    count = a.widths[a.layers] / 2;
    a.split > 0 ? changed = a.split : kept = count;
    input += kept;
  }
  const T* weight(int64_t l) const { return static_cast<const T*>(a.weight[l]); }
  int64_t work() const {
    int64_t sum = 0;
    for (int64_t l = 0; l < a.layers; ++l) sum += a.widths[l] * a.widths[l + 1];
    return sum;
  }

  // Steps of a pass: layers, the pairs before the first, and the coupling or the likelihood after the last.
  static constexpr int64_t kPair = -3, kCouple = -2, kJudge = -1;
  struct Steps {
    int64_t step[GMK_MLP_LAYERS + 2];
    int count = 0;
    void add(int64_t s) { step[count++] = s; }
  };
  // Where a layer's product reads and writes, in the first sample.
  struct Flow {
    const T* from;
    int64_t step;
    Target<T> to;
  };

  // A few samples are fewer operations than packing the weights for them.
  bool few() const { return a.batch <= kFew; }
  static bool wide(const Matrix<T>& w) {
    return w.outputs >= kBlockPacks * kLanes && w.outputs * w.inputs * int64_t(sizeof(T)) >= kWide;
  }
  // Weights of the layers in turn, for products that take a sample from width to width, backwards if `natural`; those
  // that are not packed as a whole have no room.
  std::array<Matrix<T>, GMK_MLP_LAYERS> matrices(Arena& arena, bool natural) const {
    std::array<Matrix<T>, GMK_MLP_LAYERS> w;
    for (int64_t l = 0; l < a.layers; ++l) {
      w[l].outputs = a.widths[natural ? l : l + 1], w[l].inputs = a.widths[natural ? l + 1 : l];
      if (!few() && !wide(w[l])) w[l].weight = arena.take<T>(round_up(w[l].outputs, kLanes) * w[l].inputs);
      w[l].bias = arena.take<T>(w[l].outputs);
    }
    return w;
  }

  // Of a matrix, some outputs for some samples.
  void multiply(const Matrix<T>& w, const Flow& flow, int64_t first, int64_t samples, int64_t o = 0) const {
    const Piece<T> piece{flow.from + first * flow.step, w.inputs};
    Target<T> to = flow.to;
    to.start = w.bias, to.to += first * to.step + o;
    if (to.add) to.add += first * to.add_step + o;
    product(w, Source<T>{&piece, 1, flow.step}, samples, to);
  }

  // All of a wide product: fill(strip, first column, columns) packs some columns of one factor, and body(strip, first
  // column, columns, first vector, vectors) multiplies them by vectors of the other. A thread goes through the vectors
  // of one block of columns before it packs the next.
  template <class Fill, class Body>
  static void in_blocks(int64_t columns, int64_t depth, int64_t vectors, const Fill& fill, const Body& body) {
    const int64_t packs = (columns + kLanes - 1) / kLanes, parts = packs / kBlockPacks;
    const int64_t groups = (vectors + kBlockVectors - 1) / kBlockVectors;
    ranges(parts * groups, 1, [&](int64_t begin, int64_t end) {
      thread_local Scratch own;
      T* strip = aligned(reinterpret_cast<T*>(own.of((depth * kPacks<T> * kLanes + 2 * kLanes) * int64_t(sizeof(T)))));
      for (int64_t i = begin, count; i < end; i += count) {
        const int64_t part = i / groups, group = i % groups, from = packs * part / parts;
        count = std::min(groups - group, end - i);
        const int64_t first = group * kBlockVectors, some = std::min(vectors, first + count * kBlockVectors) - first;
        // Strips about as wide as each other: a last one of a single pack would multiply at half the speed.
        const int64_t wide = packs * (part + 1) / parts - from, strips = (wide + kPacks<T> - 1) / kPacks<T>;
        for (int64_t s = 0; s < strips; ++s) {
          const int64_t o = (from + wide * s / strips) * kLanes, end = (from + wide * (s + 1) / strips) * kLanes;
          fill(strip, o, end - o);
          body(strip, o, std::min(end, columns) - o, first, some);
        }
      }
      own.shrink();
    });
  }

  // All of a layer for B samples, from weights that are not packed; sums have the same order.
  template <int B, class After>
  void unpacked(int64_t l, const Matrix<T>& w, bool natural, const Flow& flow, const After& after) const {
    const int64_t blocks = (w.outputs + kLanes - 1) / kLanes;
    ranges(blocks, B * w.outputs * w.inputs < kSmall ? blocks : 1, [&](int64_t begin, int64_t end) {
      alignas(64) T block[kLanes * kLanes];
      for (int64_t o = begin * kLanes; o < std::min(end * kLanes, w.outputs); o += kLanes) {
        const int lanes = int(std::min<int64_t>(kLanes, w.outputs - o));
        pack<T> sum[B];
        for (int b = 0; b < B; ++b) sum[b] = load(w.bias + o);
        for (int64_t k = 0; k < w.inputs; k += kLanes) {
          const int some = int(std::min<int64_t>(kLanes, w.inputs - k));
          if (!natural) pack_square(block, weight(l) + o * w.inputs + k, w.inputs, lanes, some);
          for (int i = 0; i < some; ++i) {
            const pack<T> column = natural ? get(weight(l) + (k + i) * w.outputs + o, lanes) : load(block + i * kLanes);
            for (int b = 0; b < B; ++b) sum[b] = fma(pack<T>(flow.from[b * flow.step + k + i]), column, sum[b]);
          }
        }
        for (int b = 0; b < B; ++b) {
          if (flow.to.add) sum[b] = sum[b] + get(flow.to.add + b * flow.to.add_step + o, lanes);
          put(flow.to.to + b * flow.to.step + o, lanes, sum[b]);
        }
      }
      after(l, 0, B, begin * kLanes, std::min(end * kLanes, w.outputs) - begin * kLanes);
    });
  }

  // body(begin, end) for ranges of some tasks
  template <class Body> static void ranges(int64_t tasks, int64_t grain, const Body& body) {
    parallel_ranges(
        tasks, grain,
        [](int64_t begin, int64_t end, void* context) { (*static_cast<const Body*>(context))(begin, end); },
        const_cast<Body*>(&body));
  }

  // A pass: each layer's product goes where flow(layer) says, then after(layer, first sample, samples, first output,
  // outputs) is called for blocks of it; other(step, first sample, samples) is a step that is no layer.
  template <class Where, class After, class Other>
  void pass(const Steps& steps, const std::array<Matrix<T>, GMK_MLP_LAYERS>& w, bool natural, const Where& flow,
            const After& after, const Other& other) const {
    const int64_t tiles = (a.batch + kTile - 1) / kTile;
    for (int begin = 0, end; begin < steps.count; begin = end) {
      const auto apart = [&](int i) { return steps.step[i] >= 0 && (few() || wide(w[steps.step[i]])); };
      end = begin + 1;
      if (apart(begin)) {
        const int64_t l = steps.step[begin], outputs = w[l].outputs, inputs = w[l].inputs;
        const Flow way = flow(l);
        if (few()) {
          static_assert(kFew == 4);
          if (a.batch == 1) unpacked<1>(l, w[l], natural, way, after);
          if (a.batch == 2) unpacked<2>(l, w[l], natural, way, after);
          if (a.batch == 3) unpacked<3>(l, w[l], natural, way, after);
          if (a.batch == 4) unpacked<4>(l, w[l], natural, way, after);
          continue;
        }
        in_blocks(
            outputs, inputs, a.batch,
            [&](T* strip, int64_t o, int64_t width) {
              pack_strip(strip, weight(l), o, width, outputs, inputs, natural ? outputs : inputs, natural);
            },
            [&](T* strip, int64_t o, int64_t some, int64_t first, int64_t samples) {
              Matrix<T> part;
              part.outputs = some, part.inputs = inputs, part.weight = strip, part.bias = w[l].bias + o;
              multiply(part, way, first, samples, o);
              after(l, first, samples, o, some);
            });
        continue;
      }
      while (end < steps.count && !apart(end)) ++end;
      ranges(tiles, a.batch * work() < kSmall ? tiles : 1, [&](int64_t from, int64_t to) {
        const int64_t last = std::min(to * kTile, a.batch);
        for (int64_t first = from * kTile, samples; first < last; first += samples) {
          samples = std::min(kTogether, last - first);
          for (int i = begin; i < end; ++i) {
            const int64_t l = steps.step[i];
            if (l < 0) {
              other(l, first, samples);
            } else {
              multiply(w[l], flow(l), first, samples);
              after(l, first, samples, 0, w[l].outputs);
            }
          }
        }
      });
    }
  }
  void pack_narrow(std::array<Matrix<T>, GMK_MLP_LAYERS>& w, const Steps& steps, bool natural) const {
    std::vector<Strip<T>> todo;
    for (int i = 0; i < steps.count; ++i) {
      const int64_t l = steps.step[i];
      if (l < 0) continue;
      const T* bias = natural ? nullptr : static_cast<const T*>(a.bias[l]);
      for (int64_t o = 0; o < w[l].outputs; ++o) w[l].bias[o] = bias ? bias[o] : T(0);
      if (w[l].weight) add_strips(todo, w[l], weight(l));
    }
    pack_strips(todo, natural);
  }
};

}  // namespace
}  // namespace GMK_ISA
}  // namespace gmk
