// The convolutions and their gradients, strip by strip. What becomes of sums while they are in the cache, and where
// the gradients of sums come from, is the caller's, who may have a gate in between.
#pragma once

#include "weights.h"

namespace gmk {
namespace GMK_ISA {

// Two ways to go about strips: each by one thread, or one after the other, all threads on each.
struct Serial {
  static constexpr int64_t spans = 1;  // of a chunk's tiles
  template <class F> void operator()(int64_t count, int64_t, const F& body) const {
    for (int64_t i = 0; i < count; ++i) body(i);
  }
};
struct Shared {
  static constexpr int64_t spans = 4;
  template <class F> void operator()(int64_t count, int64_t grain, const F& body) const {
    parallel_for(count, body, grain);
  }
};

template <class T> struct Conv {
  using Chunk = typename Weights<T>::Chunk;
  static constexpr int kRow = Shape<T>::vectors * kLanes;  // pixels of a tile
  static constexpr int64_t kColumns = 32;                  // columns of the weights that a task correlates
  static constexpr int64_t kParts = 16;                    // of the gradient by the weights, at most,
  static constexpr int64_t kPartials = int64_t(1) << 22;   // and the sums of all of them
  static constexpr int64_t kFew = 4;                       // strips or parts that leave processors without one
  static constexpr double kSmall = 1e6;                    // multiplications that are not worth sharing out

  const gmk_conv_args& a;
  const Geometry g;
  const Strips strips;

  Conv(const gmk_conv_args& args, int64_t channels) : a(args), g(args), strips(g, args.batch, channels) {}

  // The planes of a strip's channels.
  struct Planes {
    const int64_t step;
    const Buffer<T> buffer;
    T* const first;  // the strip's first pixel, of channel 0
    Planes(Kind kind, const Strips& s, int64_t channels)
        : step(s.plane), buffer(kind, channels * s.plane), first(buffer.data + s.lead) {}
    T* operator[](int64_t channel) const { return first + channel * step; }
  };
  // Packs the inputs of a strip, and those before it that its taps reach.
  void inputs(const Strip& u, int64_t channel, const Planes& x) const {
    pack_plane(g, a.x, a.dtype, u.n, channel, u.begin - strips.lead, u.end + Strips::kTail, x[channel] - strips.lead);
  }
  // How far a strip and the taps that reach it go.
  int64_t reached(const Strip& u) const { return u.end + strips.lead + Strips::kTail; }

  bool few(int64_t n) const {
    const double products = double(a.channels * a.outputs) * double(int64_t(g.taps.size()) * g.pixels);
    return n < kFew && products >= kSmall * double(strips.cut.pieces);
  }
  int64_t grain() const { return std::max<int64_t>(1, 8192 / strips.plane); }

  // Some channels' sums for pixels first .. first + count of an image, channels `step` apart.
  struct Sums {
    T* const data;
    const int64_t step, n, first, count;
    T* operator[](int64_t channel) const { return data + channel * step; }
    void to(const Geometry& g, int64_t from, int64_t channels, const gmk_image& image, int32_t dtype, int64_t c) const {
      unpack(g, (*this)[from], step, channels, first, count, image, dtype, n, c);
    }
  };
  // finish(chunk, sums) for all chunks, and all tiles of a span at once: what goes through whole channels goes to
  // memory in its order.
  template <class Each, class F>
  static void run(const Weights<T>& w, const Planes& x, const Strip& u, const Each& each, Ahead& ahead,
                  const F& finish) {
    const Cut tiles((u.end - u.begin + kLanes - 1) / kLanes, Shape<T>::vectors);
    ahead.over(tiles.pieces * int64_t(w.blocks.size()), w.summed);
    each(int64_t(w.chunks.size()) * Each::spans, 1, [&](int64_t task) {
      const Chunk& chunk = w.chunks[size_t(task / Each::spans)];
      const int64_t span = task % Each::spans, from = tiles.pieces * span / Each::spans,
                    until = tiles.pieces * (span + 1) / Each::spans;
      if (from == until) return;
      const int64_t begin = tiles.begin(from) * kLanes, end = tiles.begin(until) * kLanes, step = end - begin + kLanes;
      const Buffer<T> buffer(kSums, Weights<T>::kBlocks * Shape<T>::channels * step);
      for (int64_t j = from; j < until; ++j)
        tile(w, chunk, x, u.begin, tiles.begin(j) * kLanes, tiles.size(j), ahead,
             buffer.data + tiles.begin(j) * kLanes - begin, step);
      finish(chunk, Sums{buffer.data, step, u.n, u.begin + begin, std::min(end, u.end - u.begin) - begin});
    });
  }
  // Apart from what is done with the sums, so that it is compiled once.
  static GMK_OUTLINE void tile(const Weights<T>& w, const Chunk& chunk, const Planes& x, int64_t begin, int64_t pixel,
                               int vectors, Ahead& ahead, T* sums, int64_t step) {
    const Lanes<T>* const lanes = w.margins.at(begin + pixel);
    with_count<Shape<T>::vectors>(vectors, [&](auto width) {
      for (int64_t i = chunk.begin; i < chunk.end; ++i) {
        const Soon soon = ahead.portion(x.first);
        const auto& block = w.blocks[size_t(i)];
        with_count<Shape<T>::channels>(block.count, [&](auto size) {
          convolve<size(), width()>(w.bias.data + block.first, x.first + pixel, x.step, w.summed, w.seen(block),
                                    w.packed.data + block.place, lanes, w.margins.step, sums + block.row * step, step,
                                    soon);
        });
      }
    });
  }

  // Images beside the convolution's own that go with a strip.
  struct Also {
    gmk_image image;
    int64_t channels;
  };
  template <class F> void forward(int halves, const Also& also, const F& finish) const {
    if (strips.count == 0 || a.outputs == 0) return;
    const Weights<T> w(a, g, false, halves);
    const auto strip = [&](int64_t i, const auto& each) {
      const Strip u = strips[i];
      const Planes x(kInputs, strips, a.channels);
      each(a.channels, grain(), [&](int64_t c) { inputs(u, c, x); });
      Ahead ahead;
      if (each.spans == 1) {
        ahead.want(g, a.out, a.dtype, a.outputs / halves, u);
        ahead.want(g, also.image, dtype_of<T>(), also.channels, u);
        if (i + 1 < strips.count) ahead.want(g, a.x, a.dtype, a.channels, strips[i + 1]);
      }
      run(w, x, u, each, ahead, finish);
    };
    if (few(strips.count))
      for (int64_t i = 0; i < strips.count; ++i) strip(i, Shared());
    else
      parallel_for(strips.count, [&](int64_t i) { strip(i, Serial()); });
  }

  // fill(strip, i, planes, sums) for i < items packs the gradients of some sums, from the strip's first pixel to as far
  // as it is reached from, and writes what the strip's own come to, unless sums == nullptr. Those of all strips are
  // returned.
  template <class F> std::vector<T> backward(int64_t items, bool summed, const Also& also, const F& fill) const {
    std::vector<T> sums(summed ? size_t(strips.count * a.outputs) : 0);
    std::unique_ptr<Weights<T>> w;
    if (a.out.data && strips.count > 0) w = std::make_unique<Weights<T>>(a, g, true, 1);
    std::vector<int64_t> offset;  // of a column of the weights: an input channel and a tap
    for (int64_t i = 0; i < a.channels; ++i)
      for (const Tap& tap : g.taps) offset.push_back(i * strips.plane + tap.offset);
    const int64_t columns = int64_t(offset.size()), size = a.out_weight ? a.outputs * columns : 0;
    const int64_t most = std::clamp<int64_t>(kPartials / std::max<int64_t>(1, size), 1, kParts);
    const bool shared = few(std::min(most, strips.count));
    const Cut parts(strips.count, std::max<int64_t>(1, shared ? strips.count : (strips.count + most - 1) / most));
    const Margins<T> margins(g, false);
    const Buffer<T> partial(kPartial, size * parts.pieces);

    const auto strip = [&](int64_t i, const auto& each, T* to, bool fresh) {
      const Strip u = strips[i];
      const Planes grad(kGradients, strips, a.outputs);
      each(items, grain(), [&](int64_t c) { fill(u, c, grad, summed ? sums.data() + i * a.outputs : nullptr); });
      Ahead own, next;
      if (each.spans == 1) {
        own.want(g, a.out, a.dtype, a.channels, u);
        if (size > 0) own.want(g, a.x, a.dtype, a.channels, u);
        if (i + 1 < strips.count) next.want(g, a.grad, a.dtype, items, strips[i + 1]);
        if (i + 1 < strips.count) next.want(g, also.image, dtype_of<T>(), also.channels, strips[i + 1]);
      }
      if (w)
        run(*w, grad, u, each, own,
            [&](const Chunk& chunk, const Sums& found) { found.to(g, 0, chunk.count, a.out, a.dtype, chunk.first); });
      if (size == 0) return;
      const Planes x(kInputs, strips, a.channels);
      each(a.channels, grain(), [&](int64_t c) { inputs(u, c, x); });
      weights(grad, x, offset, margins, u, each, next, fresh, to);
    };
    parallel_for(shared ? 0 : parts.pieces, [&](int64_t p) {
      for (int64_t i = parts.begin(p); i < parts.begin(p + 1); ++i)
        strip(i, Serial(), partial.data + p * size, i == parts.begin(p));
    });
    for (int64_t i = 0; shared && i < strips.count; ++i) strip(i, Shared(), partial.data, i == 0);
    if (a.out_weight) add_up(partial.data, parts.pieces, columns);
    return sums;
  }

  // The sums over a strip's pixels for all outputs and columns. A task takes a few output channels, whose planes stay
  // in the first cache, and some of the columns.
  template <class Each>
  void weights(const Planes& grad, const Planes& x, const std::vector<int64_t>& offset, const Margins<T>& margins,
               const Strip& u, const Each& each, Ahead& ahead, bool fresh, T* sums) const {
    constexpr int C = Shape<T>::outputs, V = Shape<T>::inputs;
    const int64_t step = int64_t(offset.size()), pixels = u.end - u.begin;
    const int64_t taps = int64_t(g.taps.size());
    static_assert(V <= Margins<T>::kAgain);
    const Cut outputs(a.outputs, C), columns(step, kColumns);
    ahead.over(outputs.pieces * columns.pieces * Cut(kColumns, V).pieces, pixels / kLanes);
    each(outputs.pieces * columns.pieces, 1, [&](int64_t task) {
      const int64_t o = task / columns.pieces, first = outputs.begin(o), begin = columns.begin(task % columns.pieces);
      const Cut tiles(columns.size(task % columns.pieces), V);
      with_count<C>(outputs.size(o), [&](auto c) {
        for (int64_t j = 0; j < tiles.pieces; ++j)
          with_count<V>(tiles.size(j), [&](auto v) {
            const int64_t column = begin + tiles.begin(j);
            ahead.ask();
            correlate<c(), v()>(grad[first], grad.step, x.first, offset.data() + column,
                                margins.at(u.begin) + column % taps, margins.step, pixels, fresh,
                                sums + first * step + column * c());
          });
      });
    });
  }

  // The gradient by the weights from its parts, zero where it is masked.
  void add_up(const T* partial, int64_t parts, int64_t step) const {
    const int64_t taps = int64_t(g.taps.size()), places = a.kernel_height * a.kernel_width, size = a.channels * places;
    const Cut outputs(a.outputs, Shape<T>::outputs), columns(step, kColumns);
    parallel_for(outputs.pieces, [&](int64_t i) {
      const int64_t first = outputs.begin(i), count = outputs.size(i);
      std::vector<T> rows(size_t(count * size), T(0)), sums(size_t(count * step), T(0));
      for (int64_t p = 0; p < parts; ++p)
        for (int64_t k = 0; k < count * step; ++k) sums[size_t(k)] += partial[(p * a.outputs + first) * step + k];
      const T* sum = sums.data();
      for (int64_t piece = 0; piece < columns.pieces; ++piece) {
        const Cut tiles(columns.size(piece), Shape<T>::inputs);
        for (int64_t j = 0; j < tiles.pieces; ++j)
          for (int64_t c = 0; c < count; ++c) {
            const auto [from, to] = g.centre(first + c, a.outputs, a.channels, false);
            const int64_t begin = columns.begin(piece) + tiles.begin(j);
            int64_t input = begin / taps, tap = begin % taps;
            for (int v = 0; v < tiles.size(j); ++v, ++sum) {
              if (tap < taps - 1 || (from <= input && input < to))
                rows[size_t(c * size + input * places + g.taps[size_t(tap)].place)] = *sum;
              if (++tap == taps) tap = 0, ++input;
            }
          }
      }
      write(a.out_weight, a.dtype, first * size, rows.data(), count * size);
    });
  }

  // A strip's gradients of a channel, added up.
  T sum(const Strip& u, const T* plane) const {
    pack<T> total(T(0)), other(T(0));
    int64_t q = 0;
    for (; q + kLanes < u.end - u.begin; q += 2 * kLanes) total += load(plane + q), other += load(plane + q + kLanes);
    if (q < u.end - u.begin) total += load(plane + q);
    return fold(total + other);
  }
  // Over the batch, for the bias.
  void add_up(const std::vector<T>& sums) const {
    std::vector<T> total(size_t(a.outputs), T(0));
    for (size_t i = 0; i < sums.size(); ++i) total[i % total.size()] += sums[i];
    write(a.out_bias, a.dtype, 0, total.data(), a.outputs);
  }
};

}  // namespace GMK_ISA
}  // namespace gmk
