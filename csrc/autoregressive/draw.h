// From the outputs of a network to the levels of a pixel; gmkernels/ops/autoregressive/reference.py line by line.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "gmk/abi.h"
#include "gmk/philox.h"
#include "gmk/product.h"

namespace gmk {
namespace GMK_ISA {
namespace autoregressive {

using namespace products;

enum Head { kBernoulli = 0, kCategorical = 1, kMixture = 2 };

struct Words {
  uint32_t choice, value;
};

// Words 0 and 1 of counter (pixel, channel, sample, low half of the offset), under the seed with the high half of the
// offset added to its own.
GMK_INLINE Words draw_words(const int64_t* key, int64_t pixel, int64_t channel, int64_t sample) {
  const uint64_t offset = uint64_t(key[1]);
  uint64_t c[4] = {uint64_t(pixel), uint64_t(channel), uint64_t(sample), offset & 0xFFFFFFFFu};
  philox4x32(c, uint64_t(key[0]) + (offset >> 32 << 32));
  return {uint32_t(c[0]), uint32_t(c[1])};
}

template <class T> class Draw {
  const gmk_pixelcnn_args& a;
  const double temperature;
  std::vector<T> likely;

  // How many of the cumulative probabilities lie at or below u.
  int64_t categorical(const T* logits, int64_t count, uint32_t word) {
    const T most = *std::max_element(logits, logits + count), divisor = T(temperature);
    likely.resize(round_up(count, kLanes));
    for (int64_t l = 0; l < count; l += kLanes) {
      const pack<T> z = load_n(logits + l, int(std::min<int64_t>(kLanes, count - l)));
      store(likely.data() + l, exp((z - pack<T>(most)) / pack<T>(divisor)));
    }
    double total = 0.0;
    for (int64_t l = 0; l < count; ++l) total += double(likely[l]);
    const double target = (double(word) + 0.5) * 0x1p-32 * total;
    double sum = 0.0;
    int64_t level = 0;
    while (level < count - 1 && (sum += double(likely[level])) <= target) ++level;
    return level;
  }

  int64_t bernoulli(T logit, uint32_t word) const {
    const double field = double(logit) / temperature;
    const bool on = field >= 0;
    const double e = std::exp(-std::fabs(field));
    const bool rare = (double(on ? ~word : word) + 1.0) * (1.0 + e) <= e * 0x1p32;
    return rare != on;
  }

  int64_t logistic(double mean, double log_scale, uint32_t word) const {
    const double u = std::log((double(word) + 0.5) / (double(~word) + 0.5));
    const double quantile = mean + temperature * std::exp(std::max(log_scale, -7.0)) * u;
    const double place = std::ceil((quantile + 1.0) * (0.5 * double(a.levels - 1)) - 0.5);
    return place > 0.0 ? int64_t(std::min(place, double(a.levels - 1))) : 0;
  }

  void mixture(const T* found, int64_t outputs, int64_t channels, const Words* words, int64_t* level) {
    const bool several = channels > 1;
    const int64_t count = outputs / (several ? 1 + 3 * channels : 3), rows = several ? 3 : 2;
    const T* rest = found + count + categorical(found, count, words[0].choice);
    const auto parameter = [&](int64_t channel, int64_t row) { return double(rest[(channel * rows + row) * count]); };
    for (int64_t c = 0, place = 0; c < channels; ++c) {
      double mean = parameter(c, 0);
      for (int64_t before = 0; before < c; ++before, ++place)
        mean += std::tanh(parameter(place, 2)) * (double(level[before]) * (2.0 / double(a.levels - 1)) - 1.0);
      level[c] = logistic(mean, parameter(c, 1), words[c].value);
    }
  }

 public:
  explicit Draw(const gmk_pixelcnn_args& args) : a(args), temperature(args.temperature) {}

  // The levels of channels from .. from + channels of a pixel, out of the outputs of one pass.
  void operator()(const T* found, int64_t outputs, int64_t pixel, int64_t sample, int64_t from, int64_t channels,
                  int64_t* level) {
    Words words[3];
    for (int64_t c = 0; c < channels; ++c) words[c] = draw_words(a.key, pixel, from + c, a.first + sample);
    if (a.head == kBernoulli)
      level[0] = bernoulli(found[0], words[0].choice);
    else if (a.head == kCategorical)
      level[0] = categorical(found, outputs, words[0].choice);
    else
      mixture(found, outputs, channels, words, level);
  }
};

}  // namespace autoregressive
}  // namespace GMK_ISA
}  // namespace gmk
