// Images as the convolutions walk them: each channel a plane, its rows one after the other with nothing between, and
// zeros before and after. A tap is one distance for every pixel of the image, and a vector of pixels runs on over row
// ends; which of its lanes a tap takes beyond the left or the right border, a mask says (see margins.h). Of a large
// image, only a strip and what its taps reach lies in planes at a time.
#pragma once

#include <algorithm>
#include <vector>

#include "gmk/convert.h"

namespace gmk {
namespace GMK_ISA {

// A tap: how far away in a plane, by how many columns, and where in the weights of one pair of channels.
struct Tap {
  int64_t offset, right, place;
};

// Item i of n cut into ceil(n / most) pieces of nearly the same size.
struct Cut {
  int64_t n, pieces;
  Cut(int64_t count, int64_t most) : n(count), pieces((count + most - 1) / most) {}
  int64_t begin(int64_t i) const { return n * i / pieces; }
  int size(int64_t i) const { return int(begin(i + 1) - begin(i)); }
};

struct Geometry {
  int64_t height, width, pixels;  // of an image
  int64_t reach;                  // the farthest tap
  std::vector<Tap> taps;          // the centre is the last one, where it is grouped
  int64_t groups;
  bool own;  // a group sees itself at the centre

  explicit Geometry(const gmk_conv_args& a)
      : height(a.height), width(a.width), pixels(height * width), reach(0), groups(1), own(true) {
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
    for (const Step& s : steps) {
      // There is nothing beside a single row but the zeros before and after it.
      taps.push_back({s.down * width + s.right, height > 1 ? s.right : 0, s.place});
      reach = std::max(reach, std::abs(taps.back().offset));
    }
  }

  // The channels at which the centre is seen: of the inputs for an output channel, or of the outputs for an input.
  std::pair<int64_t, int64_t> centre(int64_t channel, int64_t count, int64_t others, bool transposed) const {
    if (groups == 1) return {0, others};
    const int64_t group = channel / (count / groups), size = others / groups;
    if (!transposed) return {0, (group + own) * size};
    return {(group + !own) * size, others};
  }

  // Calls f(place, at, count) for the pieces that pixels first .. last of an image are made of: `place` elements into a
  // channel, the first of them `at` pixels after `first`, each image.w from the next.
  template <class F> void pieces(const gmk_image& image, int64_t first, int64_t last, const F& f) const {
    if (first >= last) return;
    if (image.h == width * image.w) return f(first * image.w, int64_t(0), last - first);
    for (int64_t y = first / width, q = y * width; q < last; ++y, q += width) {
      const int64_t begin = std::max(first, q);
      f(y * image.h + (begin - q) * image.w, begin - first, std::min(last, q + width) - begin);
    }
  }
};

// Pixels begin .. end of image n.
struct Strip {
  int64_t n, begin, end;
};

// How images are cut into strips whose planes stay in the cache next to a core.
struct Strips {
  static constexpr int64_t kMost = 1536;              // pixels of a strip
  static constexpr int64_t kNear = int64_t(1) << 19;  // elements of all its channels
  static constexpr int64_t kTail = 4 * kLanes;        // what the last tile may reach past it
  const Cut cut;
  const int64_t pixels, count, lead, plane;  // of planes, in elements

  Strips(const Geometry& g, int64_t batch, int64_t channels)
      : cut((g.pixels + kLanes - 1) / kLanes,
            std::clamp<int64_t>(kNear / std::max<int64_t>(1, channels), 8 * kLanes, kMost) / kLanes),
        pixels(g.pixels),
        count(batch * cut.pieces),
        lead((g.reach + kLanes - 1) / kLanes * kLanes),
        plane(odd_lines(2 * lead + (cut.n + cut.pieces - 1) / std::max<int64_t>(1, cut.pieces) * kLanes + kTail)) {}

  Strip operator[](int64_t i) const {
    const int64_t piece = i % cut.pieces;
    return {i / cut.pieces, cut.begin(piece) * kLanes, std::min(pixels, cut.begin(piece + 1) * kLanes)};
  }

 private:
  // An odd number of cache lines, so that the same pixel of all channels does not fall into few sets of the cache.
  static int64_t odd_lines(int64_t length) {
    const int64_t lines = (length + kLanes - 1) / kLanes;
    return (lines + (lines % 2 == 0)) * kLanes;
  }
};

// to[0 .. count] = from[0 .. count], where up to a vector more may be read, but not written.
template <class T> GMK_INLINE void put_row(T* to, const T* from, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  if (i < count) store_n(to + i, load(from + i), int(count - i));
}

// Copies pixels first .. last of a channel of an image into a plane, zeros beyond the image.
template <class T>
void pack_plane(const Geometry& g, const gmk_image& image, int32_t dtype, int64_t n, int64_t c, int64_t first,
                int64_t last, T* to) {
  const int64_t begin = std::max<int64_t>(0, first), end = std::min(last, g.pixels), start = n * image.n + c * image.c;
  std::fill(to, to + (begin - first), T(0));
  g.pieces(image, begin, end, [&](int64_t place, int64_t at, int64_t count) {
    read(to + (begin - first) + at, image.data, dtype, start + place, image.w, count);
  });
  std::fill(to + (std::max(begin, end) - first), to + (last - first), T(0));
}

// Adds pixels first .. first + count of a channel of an image.
template <class T>
void add_pixels(const Geometry& g, const gmk_image& image, int32_t dtype, int64_t n, int64_t c, int64_t first,
                int64_t count, T* to) {
  g.pieces(image, first, first + count, [&](int64_t place, int64_t at, int64_t length) {
    for (int64_t i = 0; i < length; i += kLanes) {
      const int lanes = int(std::min<int64_t>(kLanes, length - i));
      T other[kLanes];
      read(other, image.data, dtype, n * image.n + c * image.c + place + i * image.w, image.w, lanes);
      store_n(to + at + i, load_n(to + at + i, lanes) + load_n(other, lanes), lanes);
    }
  });
}

// Takes pixels first .. first + count of some channels, c and after, to their places in an image.
template <class T>
void unpack(const Geometry& g, const T* from, int64_t step, int64_t channels, int64_t first, int64_t count,
            const gmk_image& image, int32_t dtype, int64_t n, int64_t c) {
  const bool same = dtype == dtype_of<T>();
  const int64_t start = n * image.n + c * image.c;
  if (same && image.w != 1) {  // channels side by side
    g.pieces(image, first, first + count, [&](int64_t place, int64_t at, int64_t length) {
      T* const to = static_cast<T*>(image.data) + start + place;
      for (int64_t i = 0; i < length; ++i)
        for (int64_t k = 0; k < channels; ++k) to[k * image.c + i * image.w] = from[k * step + at + i];
    });
    return;
  }
  for (int64_t k = 0; k < channels; ++k, from += step)
    g.pieces(image, first, first + count, [&](int64_t place, int64_t at, int64_t length) {
      const int64_t to = start + k * image.c + place;
      if (same)
        put_row(static_cast<T*>(image.data) + to, from + at, length);
      else
        for (int64_t i = 0; i < length; ++i) write(image.data, dtype, to + i * image.w, from + at + i, 1);
    });
}

}  // namespace GMK_ISA
}  // namespace gmk
