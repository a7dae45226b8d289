// Masked 2-D and causal 1-D convolution: nothing is multiplied by zero but the gaps between the rows. See planes.h.
#include <memory>

#include "gmk/parallel.h"
#include "tile.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using Args = gmk_conv_args;
constexpr int64_t kStrip = 1536;               // pixels that a task computes of one image
constexpr int64_t kGroup = 8;                  // blocks of channels that it computes
constexpr int64_t kCorrelated = 1024;          // pixels that are correlated at a time
constexpr int64_t kColumns = 32;               // columns of weights that they are correlated for
constexpr int64_t kPacked = int64_t(1) << 20;  // elements of the images that are in planes at a time, in the last cache

// Working memory that a thread keeps for its next call: asked for anew, its pages would cost as much as a convolution.
// It is uninitialised, begins on a cache line, and a thread has one of each kind at a time.
enum Kind { kInputs, kGradients, kWeights, kBias, kKinds };
constexpr int64_t kKept = int64_t(1) << 26;  // bytes; what is larger is given back

template <class T> struct Buffer {
  std::unique_ptr<char[]> own;
  T* data;
  Buffer(Kind kind, int64_t count) {
    thread_local struct {
      std::unique_ptr<char[]> memory;
      int64_t bytes = 0;
    } kept[kKinds];
    const int64_t bytes = count * int64_t(sizeof(T)) + 64;
    auto& here = kept[kind];
    if (bytes > kKept) {
      own.reset(new char[size_t(bytes)]);
    } else if (bytes > here.bytes) {
      here.memory.reset();
      here.memory.reset(new char[size_t(bytes)]);
      here.bytes = bytes;
    }
    data = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>((own ? own : here.memory).get()) + 63) / 64 * 64);
  }
};

// What one direction computes, and its weights in the order in which they are used: blocks of a few channels to be
// computed; in each, the channels summed over; of these, the taps.
template <class T> struct Weights {
  struct Block {
    int64_t first, begin, end;  // its first channel; the channels of which it sees the last tap
    int64_t place;              // of its weights
    int count;
  };
  const Geometry& g;
  const int64_t summed;
  std::vector<Block> blocks;
  std::vector<int64_t> offset;  // of a tap
  const Buffer<T> packed, bias;

  int seen(const Block& b, int64_t channel) const {
    return std::max(0, int(g.taps.size()) - (channel < b.begin || channel >= b.end));
  }

  Weights(const Args& a, const Geometry& geometry, bool transposed)
      : g(geometry),
        summed(transposed ? a.outputs : a.channels),
        packed(kWeights, a.outputs * a.channels * int64_t(geometry.taps.size())),
        bias(kBias, transposed ? a.channels : a.outputs) {
    const int64_t computed = transposed ? a.channels : a.outputs, places = a.kernel_height * a.kernel_width;
    const int64_t step = transposed ? places : a.channels * places, along = transposed ? a.channels * places : places;
    for (const Tap& tap : g.taps) offset.push_back(transposed ? -tap.offset : tap.offset);
    const int64_t size = computed / g.groups;
    int64_t total = 0;
    for (int64_t group = 0; size > 0 && group < g.groups; ++group) {
      const Cut cut(size, Shape<T>::channels);
      for (int64_t i = 0; i < cut.pieces; ++i) {
        const int64_t first = group * size + cut.begin(i);
        const auto [begin, end] = g.centre(first, computed, summed, transposed);
        blocks.push_back({first, begin, end, total, cut.size(i)});
        for (int64_t s = 0; s < summed; ++s) total += seen(blocks.back(), s) * cut.size(i);
      }
    }
    std::fill_n(bias.data, computed, T(0));
    if (!transposed && a.bias) read(bias.data, a.bias, a.dtype, 0, 1, computed);
    parallel_for(int64_t(blocks.size()), [&](int64_t i) {
      const Block& b = blocks[size_t(i)];
      T* to = packed.data + b.place;
      for (int64_t s = 0; s < summed; ++s) {
        const int taps = seen(b, s);
        for (int c = 0; c < b.count; ++c)
          for (int t = 0; t < taps; ++t)
            read(to + t * b.count + c, a.weight, a.dtype, (b.first + c) * step + s * along + g.taps[size_t(t)].place, 1,
                 1);
        to += taps * b.count;
      }
    });
  }
};

// Images in planes, as many as fit into the buffer at a time.
template <class T> struct Planes {
  const Geometry& g;
  const gmk_image& image;
  const int32_t dtype;
  const int64_t channels;
  Buffer<T> buffer;

  Planes(Kind kind, const Geometry& geometry, const gmk_image& source, const Args& a, int64_t count, int64_t batch)
      : g(geometry), image(source), dtype(a.dtype), channels(count), buffer(kind, batch * count * geometry.plane) {}
  const T* pixels(int64_t n, int64_t c) const { return buffer.data + (n * channels + c) * g.plane + g.lead; }
  template <class F> void fill(int64_t first, int64_t count, const F& look) {
    parallel_for(
        count * channels,
        [&](int64_t i) {
          T* plane = buffer.data + i * g.plane;
          pack_plane(g, image, dtype, first + i / channels, i % channels, plane);
          look(i, plane + g.lead);
        },
        std::max<int64_t>(1, 8192 / g.plane));
  }
  void fill(int64_t first, int64_t count) {
    fill(first, count, [](int64_t, const T*) {});
  }
};

template <class T> struct Conv {
  static int64_t at_once(const Args& a, const Geometry& g, int64_t channels) {
    return std::min(a.batch, std::max<int64_t>(1, kPacked / std::max<int64_t>(1, channels * g.plane)));
  }

  // Images first .. first + count, from planes.
  static void run(const Geometry& g, const Planes<T>& x, const Weights<T>& w, const gmk_image& out, int32_t dtype,
                  int64_t first, int64_t count) {
    constexpr int C = Shape<T>::channels, V = Shape<T>::vectors, row = V * kLanes;
    const int64_t blocks = int64_t(w.blocks.size()), strips = (g.pixels + kStrip - 1) / kStrip;
    const Cut groups(blocks, kGroup);
    parallel_for(count * strips * groups.pieces, [&](int64_t task) {
      const int64_t n = task / (strips * groups.pieces), strip = task / groups.pieces % strips;
      const int64_t begin = strip * kStrip, end = std::min(g.pixels, begin + kStrip);
      const int64_t first_block = groups.begin(task % groups.pieces), blocks_here = groups.size(task % groups.pieces);
      const auto *block = &w.blocks[size_t(first_block)], *last = block + blocks_here - 1;
      const int64_t channel = block->first, channels = last->first + last->count - channel;
      const Cut tiles((end - begin + kLanes - 1) / kLanes, V);
      alignas(64) T sums[kGroup * C * row];
      for (int64_t j = 0; j < tiles.pieces; ++j) {
        const int64_t q = begin + tiles.begin(j) * kLanes, pixels = std::min<int64_t>(tiles.size(j) * kLanes, end - q);
        for (int64_t c = 0; c < channels; ++c) std::fill_n(sums + c * row, row, w.bias.data[channel + c]);
        with_count<V>(tiles.size(j), [&](auto width) {
          for (int64_t i = 0; i < blocks_here; ++i)
            with_count<C>(block[i].count, [&](auto size) {
              convolve<size(), width()>(
                  x.pixels(n, 0) + q, g.plane, w.offset.data(), w.summed,
                  [&](int64_t s) { return w.seen(block[i], s); }, w.packed.data + block[i].place,
                  sums + (block[i].first - channel) * row);
            });
        });
        unpack(g, sums, row, channels, q, pixels, out, dtype, first + n, channel);
      }
    });
  }

  static void forward(const Args& a) {
    const Geometry g(a);
    if (a.batch == 0 || a.outputs == 0 || g.pixels == 0) return;
    const Weights<T> w(a, g, false);
    const int64_t batch = at_once(a, g, a.channels);
    Planes<T> x(kInputs, g, a.x, a, a.channels, batch);
    for (int64_t first = 0; first < a.batch; first += batch) {
      const int64_t count = std::min(batch, a.batch - first);
      x.fill(first, count);
      run(g, x, w, a.out, a.dtype, first, count);
    }
  }

  static void backward(const Args& a) {
    const Geometry g(a);
    const int64_t places = a.kernel_height * a.kernel_width;
    std::vector<T> by_weight(a.out_weight ? size_t(a.outputs * a.channels * places) : 0, T(0));
    std::vector<T> by_bias(a.out_bias ? size_t(a.outputs) : 0, T(0));
    if (a.batch > 0 && g.pixels > 0) {
      std::unique_ptr<Weights<T>> w;
      if (a.out.data) w = std::make_unique<Weights<T>>(a, g, true);
      const int64_t batch = at_once(a, g, std::max(a.channels, a.outputs));
      Planes<T> grad(kGradients, g, a.grad, a, a.outputs, batch);
      std::unique_ptr<Planes<T>> x;
      if (a.out_weight) x = std::make_unique<Planes<T>>(kInputs, g, a.x, a, a.channels, batch);
      std::vector<T> sums(a.out_bias ? size_t(batch * a.outputs) : 0);
      for (int64_t first = 0; first < a.batch; first += batch) {
        const int64_t count = std::min(batch, a.batch - first);
        grad.fill(first, count, [&](int64_t i, const T* plane) {
          if (!a.out_bias) return;
          pack<T> sum(T(0));
          for (int64_t q = 0; q < g.pixels; q += kLanes) sum += load(plane + q);
          sums[size_t(i)] = fold(sum);
        });
        for (int64_t i = 0; a.out_bias && i < count * a.outputs; ++i) by_bias[size_t(i % a.outputs)] += sums[size_t(i)];
        if (x) {
          x->fill(first, count);
          weights(a, g, grad, *x, count, by_weight.data());
        }
        if (w) run(g, grad, *w, a.out, a.dtype, first, count);
      }
    }
    if (a.out_weight) write(a.out_weight, a.dtype, 0, by_weight.data(), int64_t(by_weight.size()));
    if (a.out_bias) write(a.out_bias, a.dtype, 0, by_bias.data(), int64_t(by_bias.size()));
  }

  // Adds the gradients by the weights of the images in planes. A task takes a few output channels, whose planes stay in
  // the first cache with its sums, and some of the columns: pairs of an input channel and a tap.
  static void weights(const Args& a, const Geometry& g, const Planes<T>& grad, const Planes<T>& x, int64_t count,
                      T* out) {
    constexpr int C = Shape<T>::outputs, V = Shape<T>::inputs;
    const int64_t taps = int64_t(g.taps.size()), places = a.kernel_height * a.kernel_width;
    if (a.outputs == 0 || a.channels == 0 || taps == 0) return;
    std::vector<int64_t> offset;
    for (int64_t i = 0; i < a.channels; ++i)
      for (const Tap& tap : g.taps) offset.push_back(i * g.plane + tap.offset);
    const Cut outputs(a.outputs, C), columns(int64_t(offset.size()), kColumns);
    const Cut strips((g.pixels + kLanes - 1) / kLanes, kCorrelated / kLanes);
    parallel_for(outputs.pieces * columns.pieces, [&](int64_t task) {
      const int64_t o = task / columns.pieces, first = outputs.begin(o), begin = columns.begin(task % columns.pieces);
      const Cut tiles(columns.size(task % columns.pieces), V);
      pack<T> sums[C * kColumns];
      std::fill_n(sums, C * kColumns, pack<T>(T(0)));
      with_count<C>(outputs.size(o), [&](auto c) {
        for (int64_t n = 0; n < count; ++n)
          for (int64_t s = 0; s < strips.pieces; ++s)
            for (int64_t j = 0; j < tiles.pieces; ++j)
              with_count<V>(tiles.size(j), [&](auto v) {
                const int64_t q = strips.begin(s) * kLanes;
                correlate<c(), v()>(grad.pixels(n, first) + q, g.plane, x.pixels(n, 0) + q,
                                    offset.data() + begin + tiles.begin(j), strips.size(s) * kLanes,
                                    sums + c() * tiles.begin(j));
              });
        for (int64_t j = 0; j < tiles.pieces; ++j)
          for (int k = 0, v = tiles.size(j); k < c() * v; ++k) {
            const int64_t output = first + k / v, column = begin + tiles.begin(j) + k % v;
            const int64_t input = column / taps, tap = column % taps;
            const auto [from, to] = g.centre(output, a.outputs, a.channels, false);
            if (tap < taps - 1 || (from <= input && input < to))
              out[(output * a.channels + input) * places + g.taps[size_t(tap)].place] +=
                  fold(sums[c() * tiles.begin(j) + k]);
          }
      });
    });
  }
};

template <class F> int typed(const Args& a, const F& f) {
  a.dtype == GMK_F64 ? f(Conv<double>()) : f(Conv<float>());
  return 0;
}

}  // namespace

int conv_forward(const Args& a) {
  return typed(a, [&](auto conv) { conv.forward(a); });
}
int conv_backward(const Args& a) {
  return typed(a, [&](auto conv) { conv.backward(a); });
}

}  // namespace GMK_ISA
}  // namespace gmk
