// Images as the convolutions walk them: each channel a plane whose rows lie one after the other with a few zeros
// between, so that a tap is one distance for every pixel of the image, and a vector of pixels runs on over row ends.
//
//   zeros (lead) | row 0, zeros (gap) | row 1, zeros | ... | zeros up to the plane's length
//
// The gap after a row is the margin at its right and at the left of the next one at once. What is computed for the gap
// itself is not used.
#pragma once

#include <algorithm>
#include <vector>

#include "gmk/convert.h"

namespace gmk {
namespace GMK_ISA {

// A tap: how far away in a plane, and where in the weights of one pair of channels.
struct Tap {
  int64_t offset, place;
};

struct Geometry {
  int64_t height, width, row, lead, pixels, plane;  // of an image, in elements; pixels counts the gaps as well
  std::vector<Tap> taps;                            // the centre is the last one, where it is grouped
  int64_t groups;
  bool own;  // a group sees itself at the centre

  explicit Geometry(const gmk_conv_args& a) : height(a.height), width(a.width), groups(1), own(true) {
    struct Step {
      int64_t down, right, place;
    };
    std::vector<Step> steps;
    const int64_t up = a.kernel_height / 2, left = a.kernel_width / 2;
    if (a.rule == GMK_CAUSAL) {
      for (int64_t j = 0; j < a.kernel_width; ++j) steps.push_back({0, (j + 1 - a.kernel_width) * a.dilation, j});
    } else {
      for (int64_t u = 0; u <= up; ++u)
        for (int64_t v = 0; v < (u < up ? a.kernel_width : left); ++v)
          steps.push_back({u - up, v - left, u * a.kernel_width + v});
      groups = a.groups;
      own = a.rule == GMK_MASK_B;
      if (own || groups > 1) steps.push_back({0, 0, up * a.kernel_width + left});
    }
    // A tap that is beyond the image from everywhere adds nothing.
    steps.erase(std::remove_if(steps.begin(), steps.end(),
                               [&](const Step& s) { return -s.down >= height || std::abs(s.right) >= width; }),
                steps.end());
    int64_t gap = 0, reach = 0;
    for (const Step& s : steps) gap = std::max(gap, std::abs(s.right));
    row = width + gap;
    for (const Step& s : steps) {
      taps.push_back({s.down * row + s.right, s.place});
      reach = std::max(reach, std::abs(taps.back().offset));
    }
    pixels = height * row;
    lead = (reach + kLanes - 1) / kLanes * kLanes;
    // An odd number of cache lines, so that the same pixel of all channels does not fall into few sets of the cache.
    plane = (lead + pixels + kTail + reach + kLanes - 1) / kLanes * kLanes;
    if (plane / kLanes % 2 == 0) plane += kLanes;
  }
  static constexpr int64_t kTail = 4 * kLanes;  // what the last tile may reach past the image

  // The channels at which the centre is seen: of the inputs for an output channel, or of the outputs for an input.
  std::pair<int64_t, int64_t> centre(int64_t channel, int64_t count, int64_t others, bool transposed) const {
    if (groups == 1) return {0, others};
    const int64_t group = channel / (count / groups), size = others / groups;
    if (!transposed) return {0, (group + own) * size};
    return {(group + !own) * size, others};
  }
};

// Copies images first .. first + count into planes, zeros around.
template <class T>
void pack_plane(const Geometry& g, const gmk_image& image, int32_t dtype, int64_t n, int64_t c, T* to) {
  std::fill_n(to, g.lead, T(0));
  T* at = to + g.lead;
  for (int64_t y = 0; y < g.height; ++y, at += g.row) {
    read(at, image.data, dtype, n * image.n + c * image.c + y * image.h, image.w, g.width);
    std::fill_n(at + g.width, g.row - g.width, T(0));
  }
  std::fill(at, to + g.plane, T(0));
}

// Takes pixels first .. first + count of some channels, c and after, to their places in an image, the gaps left out.
template <class T>
void unpack(const Geometry& g, const T* from, int64_t step, int64_t channels, int64_t first, int64_t count,
            const gmk_image& image, int32_t dtype, int64_t n, int64_t c) {
  for (int64_t y = first / g.row, q = y * g.row; q < first + count && y < g.height; ++y, q += g.row) {
    const int64_t begin = std::max<int64_t>(0, first - q), end = std::min(g.width, first + count - q);
    const int64_t start = n * image.n + c * image.c + y * image.h;
    const T* source = from + (q - first);
    if (dtype != dtype_of<T>()) {
      for (int64_t k = 0; k < channels; ++k)
        for (int64_t x = begin; x < end; ++x)
          write(image.data, dtype, start + k * image.c + x * image.w, source + k * step + x, 1);
      continue;
    }
    T* to = static_cast<T*>(image.data) + start;
    if (image.w == 1) {
      for (int64_t x = begin; x < end; x += kLanes) {
        const int lanes = int(std::min<int64_t>(kLanes, end - x));
        for (int64_t k = 0; k < channels; ++k)
          store_n(to + k * image.c + x, load_n(source + k * step + x, lanes), lanes);
      }
    } else {
      for (int64_t x = begin; x < end; ++x)
        for (int64_t k = 0; k < channels; ++k) to[k * image.c + x * image.w] = source[k * step + x];
    }
  }
}

}  // namespace GMK_ISA
}  // namespace gmk
