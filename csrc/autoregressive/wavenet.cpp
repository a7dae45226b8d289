// WaveNets, sample after sample. A layer costs the product of its gate's window, which lies in its ring, and that of
// its residual; one sample alone reads every weight once a step, which is what it costs.
#include "wavenet.h"

#include <cmath>
#include <cstring>

#include "draw.h"
#include "gmk/parallel.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using namespace autoregressive;
using namespace wavenet;

// Samples that go together: at most so many that rings and gates stay near a core, and at least so many, where the
// weights do not, that fetching them takes no longer than multiplying by them. One alone stays on one thread: two would
// have to meet after every product, some forty times in a step of 40 us, and whichever is not running when it should
// would hold up the other.
constexpr int64_t kMost = 16, kLeast = 4, kNear = 1 << 20;
// Times whose local conditions are projected together.
constexpr int64_t kAhead = 16;

template <class T> struct Sampler {
  const Args& a;
  const Network<T>& net;
  const int64_t from, count, wide;  // samples; channels before a gate
  gmk_pixelcnn_args as_pixels;      // what levels are drawn by
  Draw<T> draw;
  Positive<T> positive;
  std::vector<T> starts;  // (count, layers, wide): bias and condition
  std::vector<T> ahead;   // (count, kAhead, layers, wide): with the local condition
  std::vector<T> inner, gates, total, hidden, found;

  static gmk_pixelcnn_args pixels(const Args& a) {
    gmk_pixelcnn_args p = {};
    p.head = a.head == GMK_WAVENET_MIXTURE ? kMixture : kCategorical;
    p.levels = a.levels, p.temperature = a.temperature, p.key = a.key, p.first = a.first;
    return p;
  }

  Sampler(const Args& args, const Network<T>& network, int64_t begin, int64_t end)
      : a(args),
        net(network),
        from(begin),
        count(end - begin),
        wide(2 * args.gate),
        as_pixels(pixels(args)),
        draw(as_pixels) {
    const auto room = [&](int64_t channels) { return std::vector<T>(count * channels + kLanes); };
    starts = room(a.layers * wide);
    if (a.local) ahead = room(kAhead * a.layers * wide);
    inner = room(wide), gates = room(a.layers * a.gate), total = room(a.skip), hidden = room(a.hidden);
    found = room(a.outputs);
    const T* condition = static_cast<const T*>(a.condition);
    for (int64_t s = 0; s < count; ++s)
      for (int64_t l = 0; l < a.layers; ++l)
        for (int64_t c = 0; c < wide; ++c) {
          const int64_t i = (s * a.layers + l) * wide + c;
          starts[i] = net.layers[l].dilated.bias[c] + (condition ? condition[from * a.layers * wide + i] : T(0));
        }
  }

  // What bias, condition and local condition give the gates of times begin .. end.
  void project(int64_t begin, int64_t end) {
    const T* local = static_cast<const T*>(a.local);
    for (int64_t s = 0; s < count; ++s)
      for (int64_t l = 0; l < a.layers; ++l) {
        const Piece<T> piece{local + ((from + s) * a.time + begin) * a.local_channels, a.local_channels};
        product(net.layers[l].local, {&piece, 1, a.local_channels}, end - begin,
                {&starts[(s * a.layers + l) * wide], 0, &ahead[(s * kAhead * a.layers + l) * wide], a.layers * wide});
      }
  }

  // ---- a step ------------------------------------------------------------------------------------------------------

  // The first convolution: a column of weights for each tap, times what the network sees of the sample there.
  void first(int64_t t, T* to, int64_t step) const {
    const int64_t strip = kPacks<T> * kLanes, taps = std::min(a.first_kernel, t);
    for (int64_t s = 0; s < count; ++s) {
      std::copy_n(net.first.bias, a.residual, to + s * step);
      for (int64_t k = a.first_kernel - taps; k < a.first_kernel; ++k) {
        const int64_t place = (from + s) * a.time + t - a.first_kernel + k;
        int64_t column = k * a.inputs;
        T factor(1);
        if (a.head == GMK_WAVENET_GAUSSIAN)
          factor = static_cast<const T*>(a.out)[place];
        else if (a.inputs == 1)
          factor = static_cast<const T*>(a.values)[static_cast<const int64_t*>(a.out)[place]];
        else
          column += static_cast<const int64_t*>(a.out)[place];
        for (int64_t o = 0; o < a.residual; o += strip) {
          const int64_t width = std::min(strip, round_up(a.residual - o, kLanes));
          const T* w = net.first.weight + o * net.first.inputs + column * width;
          for (int64_t i = 0; i < width; i += kLanes) {
            const int n = int(std::min<int64_t>(kLanes, a.residual - o - i));
            if (n <= 0) break;
            T* h = to + s * step + o + i;
            store_n(h, fma(pack<T>(factor), load(w + i), load_n(h, n)), n);
          }
        }
      }
    }
  }

  void gate(int64_t l) {
    for (int64_t s = 0; s < count; ++s)
      for (int64_t c = 0; c < a.gate; c += kLanes) {
        const int n = int(std::min<int64_t>(kLanes, a.gate - c));
        const T* at = &inner[s * wide + c];
        store_n(&gates[(s * a.layers + l) * a.gate + c], tanh(load_n(at, n)) * sigmoid(load_n(at + a.gate, n)), n);
      }
  }

  // One alone leaves out what relu has set to zero, as the weights are what it waits for.
  void after_relu(const Matrix<T>& m, const std::vector<T>& in, const Output<T>& out) {
    const Piece<T> piece{in.data(), m.inputs};
    if (count > 1) return product(m, {&piece, 1, m.inputs}, count, out);
    positive.find({&piece, 1, m.inputs});
    product(m, positive, out);
  }

  void step(int64_t t) {
    std::vector<Piece<T>>& pieces = window;
    first(t, net.layers[0].at(from, t), net.layers[0].step);
    for (int64_t l = 0; l < a.layers; ++l) {
      const Layer<T>& layer = net.layers[l];
      pieces.clear();
      // Before the beginning, and so until a ring has gone round once, there are zeros.
      for (int64_t k = a.kernel - 1; k >= 0; --k)
        pieces.push_back({layer.at(from, t + layer.length - k * layer.dilation), a.residual});
      const int64_t each = a.layers * wide;
      const T* start = a.local ? &ahead[t % kAhead * each + l * wide] : &starts[l * wide];
      product(layer.dilated, {pieces.data(), int(pieces.size()), layer.step}, count,
              {start, a.local ? kAhead * each : each, inner.data(), wide});
      gate(l);
      if (l + 1 == a.layers) break;
      const Piece<T> open{&gates[l * a.gate], a.gate};
      const Layer<T>& next = net.layers[l + 1];
      product(layer.residual, {&open, 1, a.layers * a.gate}, count,
              {layer.residual.bias, 0, next.at(from, t), next.step, layer.at(from, t), layer.step});
    }
  }

  void sample(int64_t t) {
    const Piece<T> all{gates.data(), a.layers * a.gate};
    product(net.skip, {&all, 1, all.count}, count, {net.skip.bias, 0, total.data(), a.skip, nullptr, 0, true});
    after_relu(net.head, total, {net.head.bias, 0, hidden.data(), a.hidden, nullptr, 0, true});
    after_relu(net.output, hidden, {net.output.bias, 0, found.data(), a.outputs});
    for (int64_t s = 0; s < count; ++s) {
      const T* at = &found[s * a.outputs];
      const int64_t place = (from + s) * a.time + t;
      if (a.head == GMK_WAVENET_GAUSSIAN)
        static_cast<T*>(a.out)[place] = gaussian(at, draw_words(a.key, t, 0, a.first + from + s));
      else
        draw(at, a.outputs, t, from + s, 0, 1, static_cast<int64_t*>(a.out) + place);
    }
  }

  T gaussian(const T* at, Words words) const {
    const double u = (double(words.choice) + 0.5) * 0x1p-32, v = (double(words.value) + 0.5) * 0x1p-32;
    const double normal = std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * M_PI * v);
    return T(double(at[0]) + a.temperature * std::exp(std::max(double(at[1]), -7.0)) * normal);
  }

  void run() {
    for (int64_t t = a.begin; t < a.end; ++t) {
      if (a.local && (t == a.begin || t % kAhead == 0)) {
        const int64_t begin = t / kAhead * kAhead;
        project(begin, std::min(begin + kAhead, a.time));
      }
      step(t);
      if (t >= a.held) sample(t);
    }
  }

 private:
  std::vector<Piece<T>> window;
};

template <class T> int run(const Args& a) {
  if (!a.state) {
    *a.state_bytes = Network<T>(a, nullptr, false).arena.bytes();
    return 0;
  }
  const bool begin = a.begin == 0;
  if (begin) std::memset(a.state, 0, size_t(*a.state_bytes));
  const Network<T> net(a, a.state, begin);
  const int64_t least = net.weights() * int64_t(sizeof(T)) > kNear ? kLeast : 1;
  const int64_t size = std::clamp<int64_t>((a.batch + 3) / 4, least, kMost), tasks = (a.batch + size - 1) / size;
  parallel_for(tasks, [&](int64_t t) { Sampler<T>(a, net, t * size, std::min(a.batch, (t + 1) * size)).run(); });
  return 0;
}

}  // namespace

int wavenet_sample(const Args& a) { return a.dtype == GMK_F64 ? run<double>(a) : run<float>(a); }

}  // namespace GMK_ISA
}  // namespace gmk
