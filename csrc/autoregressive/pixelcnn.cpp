// PixelCNN and Gated PixelCNN, pixel after pixel. What the rows above contribute to a row is computed for the whole row
// when it begins; a pixel then costs the taps to its left, its own, and the 1x1 products. Every layer keeps as many
// rows of its input as its kernel looks back on.
#include <cstring>

#include "draw.h"
#include "gmk/parallel.h"
#include "network.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using namespace autoregressive;

// Samples that go together: enough that weights, which do not fit the cache next to a core, are worth fetching, and few
// enough that their activations do. One alone stays on one thread: a barrier for each row costs what it saves. And
// several take whole products: to skip what relu sets to zero, as one alone does, has to look for it in each, and gains
// nothing.
constexpr int64_t kMost = 16;

template <class T> struct Sampler {
  const Args& a;
  const Network<T>& net;
  const int64_t from, count;  // samples
  Draw<T> draw;
  Positive<T> positive;
  // (count, channels) each. The first four are kept for every layer where groups of channels take turns.
  std::vector<T> stream, active, inner, gates, hidden, found;
  std::vector<T> sums;  // of a row of the vertical stack

  Sampler(const Args& args, const Network<T>& network, int64_t begin, int64_t end)
      : a(args), net(network), from(begin), count(end - begin), draw(args) {
    const auto room = [&](int64_t channels) { return std::vector<T>(count * channels + kLanes); };
    const int64_t kept = a.groups > 1 ? a.layers : 1;
    stream = room(kept * net.stream());
    active = room(kept * net.stream());
    inner = room(kept * 2 * a.features);
    gates = room(kept * a.features);
    hidden = room(a.hidden);
    found = room(a.outputs);
    sums.resize(a.gated ? a.width * 2 * a.features + kLanes : 0);
  }

  // ---- a row -------------------------------------------------------------------------------------------------------

  const T* condition(int64_t sample, int64_t layer, int64_t width) const {
    const int64_t layers = a.layers - !a.gated;
    return a.condition ? static_cast<const T*>(a.condition) + (sample * layers + layer) * width : nullptr;
  }
  // Where the sums of a sample begin: the bias and its condition.
  const T* origin(const Matrix<T>& m, const T* condition, std::vector<T>& memory) const {
    if (!condition) return m.bias;
    memory.assign(m.outputs + kLanes, T(0));
    for (int64_t o = 0; o < m.outputs; ++o) memory[o] = m.bias[o] + condition[o];
    return memory.data();
  }
  // Windows of `rows` rows that end with `last`, for all pixels.
  static void windows(const Rows<T>& in, int64_t sample, int64_t last, int64_t rows, int64_t kernel,
                      std::vector<Piece<T>>& pieces) {
    pieces.clear();
    for (int64_t row = last - rows + 1; row <= last; ++row)
      pieces.push_back({in.at(sample, row, -(kernel / 2)), kernel * in.channels});
  }
  static Input<T> input(const std::vector<Piece<T>>& pieces, int64_t step) {
    return {pieces.data(), int(pieces.size()), step};
  }

  void above(const Masked<T>& m, int64_t layer, int64_t row) const {
    std::vector<Piece<T>> pieces;
    std::vector<T> memory;
    const int64_t o = m.above.outputs;
    for (int64_t s = from; s < from + count; ++s) {
      windows(m.in, s, row - 1, m.kernel / 2, m.kernel, pieces);
      const T* start = origin(m.above, layer < 0 ? nullptr : condition(s, layer, a.features), memory);
      product(m.above, input(pieces, m.in.channels), a.width, {start, 0, m.ahead + s * a.width * o, o});
    }
  }

  // tanh(a) sigmoid(b) of one group's halves.
  static void gate(const T* in, const T* condition, int64_t half, T* out) {
    for (int64_t i = 0; i < half; i += kLanes) {
      const int n = int(std::min<int64_t>(kLanes, half - i));
      pack<T> x = load_n(in + i, n), y = load_n(in + half + i, n);
      if (condition) x = x + load_n(condition + i, n), y = y + load_n(condition + half + i, n);
      store_n(out + i, tanh(x) * sigmoid(y), n);
    }
  }

  void vertical(int64_t row) {
    const int64_t wide = 2 * a.features, each = wide / a.groups;
    std::vector<Piece<T>> pieces;
    std::vector<T> memory;
    for (int64_t l = 0; l < a.layers; ++l) {
      const GatedLayer<T>& layer = net.layers[l];
      for (int64_t s = from; s < from + count; ++s) {
        const T* by = condition(s, l, 2 * wide);
        windows(layer.down, s, row, layer.kernel / 2 + 1, layer.kernel, pieces);
        product(layer.vertical, input(pieces, layer.down.channels), a.width,
                {layer.vertical.bias, 0, sums.data(), wide});
        const Piece<T> all{sums.data(), wide};
        product(layer.link, {&all, 1, wide}, a.width,
                {origin(layer.link, by ? by + wide : nullptr, memory), 0, layer.ahead + s * a.width * wide, wide});
        for (int64_t p = 0; l + 1 < a.layers && p < a.width; ++p)
          for (int64_t g = 0; g < a.groups; ++g)
            gate(&sums[p * wide + g * each], by ? by + g * each : nullptr, each / 2,
                 net.layers[l + 1].down.at(s, row, p) + g * each / 2);
      }
    }
  }

  void begin_row(int64_t row) {
    if (a.gated) return vertical(row);
    above(net.first[0], -1, row);
    for (int64_t i = 0; i + 1 < a.layers; ++i) above(net.blocks[i].masked, i, row);
  }

  // ---- a pixel -----------------------------------------------------------------------------------------------------

  // One product for all samples. With `positives`, inputs count as they are after relu; `in` has to be so already if
  // there are several samples.
  void apply(const Matrix<T>& m, const Piece<T>& piece, int64_t step, const Output<T>& out, bool positives) {
    const Input<T> in{&piece, 1, step};
    if (!positives || count > 1) return product(m, in, count, out);
    positive.find(in);
    product(m, positive, out);
  }

  // From the taps to the left and at the pixel itself, on top of what the rows above gave.
  void here(const Matrix<T>& m, const Rows<T>& in, const T* ahead, int64_t outputs, int64_t row, int64_t x,
            int64_t margin, T* to, int64_t step, bool relu, bool positives) {
    const Piece<T> window{in.at(from, row, x - margin), m.inputs};
    apply(m, window, in.step, {ahead + (from * a.width + x) * outputs, a.width * outputs, to, step, nullptr, 0, relu},
          positives);
  }

  // Where a layer's values are, of `channels` channels.
  T* of(std::vector<T>& values, int64_t layer, int64_t channels) const {
    return values.data() + (a.groups > 1 ? layer * count * channels : 0);
  }
  // The stream before a block, and what relu leaves of a group of its channels.
  const T* activate(int64_t layer, int64_t g) {
    const int64_t width = net.stream(), each = width / a.groups;
    T *x = of(stream, layer, width), *y = of(active, layer, width);
    if (count == 1) return x;
    for (int64_t s = 0; s < count; ++s)
      for (int64_t c = s * width + g * each; c < s * width + (g + 1) * each; ++c) y[c] = x[c] > T(0) ? x[c] : T(0);
    return y;
  }

  // Both give what the head reads.
  const T* plain(int64_t row, int64_t x, int64_t g) {
    const int64_t h = a.features, wide = 2 * h, half = h / a.groups, each = wide / a.groups;
    const Masked<T>& first = net.first[0];
    here(first.here[g], first.in, first.ahead + g * each, wide, row, x, first.kernel / 2, &stream[g * each], wide,
         false, false);
    const T* activated = activate(0, g);
    for (int64_t i = 0; i + 1 < a.layers; ++i) {
      const Block<T>& b = net.blocks[i];
      const Rows<T>& in = b.masked.in;
      T* const middle = of(inner, i, h);
      apply(b.reduce[g], {activated, b.reduce[g].inputs}, wide,
            {b.reduce[g].bias, 0, in.at(from, row, x) + g * half, in.step, nullptr, 0, true}, true);
      here(b.masked.here[g], in, b.masked.ahead + g * half, h, row, x, b.masked.kernel / 2, middle + g * half, h, true,
           true);
      apply(b.expand[g], {middle, b.expand[g].inputs}, h,
            {b.expand[g].bias, 0, of(stream, i + 1, wide) + g * each, wide, of(stream, i, wide) + g * each, wide},
            true);
      activated = activate(i + 1, g);
    }
    return activated;
  }

  const T* gated(int64_t row, int64_t x, int64_t g) {
    const int64_t c = a.features, half = c / a.groups;
    for (int64_t l = 0; l < a.layers; ++l) {
      const GatedLayer<T>& layer = net.layers[l];
      here(layer.horizontal[g], layer.across, layer.ahead + 2 * g * half, 2 * c, row, x, layer.kernel / 2, inner.data(),
           2 * half, false, false);
      T* const open = of(gates, l, c);
      for (int64_t s = 0; s < count; ++s) gate(&inner[s * 2 * half], nullptr, half, open + s * c + g * half);
      const bool last = l + 1 == a.layers;
      T* to = (last ? stream.data() : net.layers[l + 1].across.at(from, row, x)) + g * half;
      const T* add = l == 0 ? nullptr : layer.across.at(from, row, x) + g * half;
      apply(layer.residual[g], {open, layer.residual[g].inputs}, c,
            {layer.residual[g].bias, 0, to, last ? c : net.layers[l + 1].across.step, add, layer.across.step}, false);
    }
    return activate(0, g);
  }

  void pixel(int64_t row, int64_t x) {
    const int64_t place = row * a.width + x, plane = a.height * a.width, channels = a.channels / a.groups;
    const int64_t hidden_each = a.hidden / a.groups, outputs = a.outputs / a.groups;
    int64_t held = 0;
    for (int64_t s = from; a.mask && s < from + count; ++s) held += a.mask[s * plane + place];
    for (int64_t g = 0; g < a.groups; ++g) {
      const T* top = a.gated ? gated(row, x, g) : plain(row, x, g);
      if (held < count) {
        apply(net.head[g], {top, net.head[g].inputs}, net.stream(),
              {net.head[g].bias, 0, &hidden[g * hidden_each], a.hidden, nullptr, 0, true}, true);
        apply(net.output[g], {hidden.data(), net.output[g].inputs}, a.hidden,
              {net.output[g].bias, 0, found.data(), outputs}, true);
      }
      for (int64_t s = from; s < from + count; ++s) {
        int64_t level[3];
        int64_t* image = a.image + (s * a.channels + g * channels) * plane + place;
        if (a.mask && a.mask[s * plane + place])
          for (int64_t c = 0; c < channels; ++c) level[c] = image[c * plane];
        else
          draw(&found[(s - from) * outputs], outputs, place, s, g * channels, channels, level);
        for (int64_t c = 0; c < channels; ++c) {
          image[c * plane] = level[c];
          const T value = static_cast<const T*>(a.values)[level[c]];
          if (a.gated) {
            net.layers[0].across.at(s, row, x)[g * channels + c] = value;
            net.layers[0].down.at(s, row + 1, x)[g * channels + c] = value;
          } else {
            net.first[0].in.at(s, row, x)[g * channels + c] = value;
          }
        }
      }
    }
  }

  void run() {
    for (int64_t row = a.row_begin; row < a.row_end; ++row) {
      begin_row(row);
      for (int64_t x = 0; x < a.width; ++x) pixel(row, x);
    }
  }
};

template <class T> int run(const Args& a) {
  if (!a.state) {
    *a.state_bytes = Network<T>(a, nullptr, false).arena.bytes();
    return 0;
  }
  const bool begin = a.row_begin == 0;
  if (begin) std::memset(a.state, 0, size_t(*a.state_bytes));
  const Network<T> net(a, a.state, begin);
  const int64_t size = std::clamp<int64_t>((a.batch + 3) / 4, 1, kMost), tasks = (a.batch + size - 1) / size;
  parallel_for(tasks, [&](int64_t t) { Sampler<T>(a, net, t * size, std::min(a.batch, (t + 1) * size)).run(); });
  return 0;
}

}  // namespace

int pixelcnn_sample(const Args& a) { return a.dtype == GMK_F64 ? run<double>(a) : run<float>(a); }

}  // namespace GMK_ISA
}  // namespace gmk
