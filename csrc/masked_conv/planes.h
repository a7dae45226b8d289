// Images as the convolutions walk them: each channel a plane whose rows lie one after the other with a few zeros
// between, so that a tap is one distance for every pixel of the image, and a vector of pixels runs on over row ends.
//
//   row 0, zeros (gap) | row 1, zeros | ...    and zeros before and after
//
// The gap after a row is the margin at its right and at the left of the next one at once. What is computed for the gap
// itself is not used. Of a large image, only a strip and what its taps reach lies in planes at a time.
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

// Item i of n cut into ceil(n / most) pieces of nearly the same size.
struct Cut {
  int64_t n, pieces;
  Cut(int64_t count, int64_t most) : n(count), pieces((count + most - 1) / most) {}
  int64_t begin(int64_t i) const { return n * i / pieces; }
  int size(int64_t i) const { return int(begin(i + 1) - begin(i)); }
};

struct Geometry {
  int64_t height, width, row, pixels;  // of an image, in elements; pixels counts the gaps as well
  int64_t reach;                       // the farthest tap
  std::vector<Tap> taps;               // the centre is the last one, where it is grouped
  int64_t groups;
  bool own;  // a group sees itself at the centre

  explicit Geometry(const gmk_conv_args& a) : height(a.height), width(a.width), reach(0), groups(1), own(true) {
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
    int64_t gap = 0;
    for (const Step& s : steps) gap = std::max(gap, std::abs(s.right));
    row = width + gap;
    for (const Step& s : steps) {
      taps.push_back({s.down * row + s.right, s.place});
      reach = std::max(reach, std::abs(taps.back().offset));
    }
    pixels = height * row;
  }

  // The channels at which the centre is seen: of the inputs for an output channel, or of the outputs for an input.
  std::pair<int64_t, int64_t> centre(int64_t channel, int64_t count, int64_t others, bool transposed) const {
    if (groups == 1) return {0, others};
    const int64_t group = channel / (count / groups), size = others / groups;
    if (!transposed) return {0, (group + own) * size};
    return {(group + !own) * size, others};
  }

  // Calls f(y, begin, end, at) for the pieces of rows that pixels first .. last are made of: columns begin .. end, the
  // first of them `at` pixels after `first`. Columns from `width` on are the gap.
  template <class F> void rows(int64_t first, int64_t last, const F& f) const {
    for (int64_t y = first / row, q = y * row; q < last; ++y, q += row) {
      const int64_t begin = std::max<int64_t>(0, first - q);
      f(y, begin, std::min(row, last - q), q + begin - first);
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

// to[0 .. count] = from[0 .. real], then zeros, by whole vectors as long as they do not pass `room`.
template <class T> GMK_INLINE void copy_row(T* to, const T* from, int64_t real, int64_t count, int64_t room) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t lanes = std::clamp<int64_t>(real - i, 0, kLanes);
    const pack<T> x = lanes == kLanes ? load(from + i) : load_n(from + i, int(lanes));
    if (i + kLanes <= room)
      store(to + i, x);
    else
      store_n(to + i, x, int(count - i));
  }
}

// to[0 .. count] = from[0 .. count], where up to a vector more may be read, but not written.
template <class T> GMK_INLINE void put_row(T* to, const T* from, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  if (i < count) store_n(to + i, load(from + i), int(count - i));
}

// Copies pixels first .. last of a channel of an image into a plane, zeros in the gaps and beyond the image.
template <class T>
void pack_plane(const Geometry& g, const gmk_image& image, int32_t dtype, int64_t n, int64_t c, int64_t first,
                int64_t last, T* to) {
  const int64_t begin = std::max<int64_t>(0, first), end = std::min(last, g.pixels), start = n * image.n + c * image.c;
  std::fill(to, to + (begin - first), T(0));
  T* const inside = to + (begin - first);
  g.rows(begin, end, [&](int64_t y, int64_t from, int64_t until, int64_t at) {
    const int64_t real = std::max(g.width, from) - from, here = start + y * image.h + from * image.w;
    const int64_t copied = std::min(real, until - from);
    if (image.w == 1 && dtype == dtype_of<T>())
      return copy_row(inside + at, static_cast<const T*>(image.data) + here, copied, until - from, last - begin - at);
    read(inside + at, image.data, dtype, here, image.w, copied);
    std::fill(inside + at + copied, inside + at + (until - from), T(0));
  });
  std::fill(to + (std::max(begin, end) - first), to + (last - first), T(0));
}

// Adds pixels first .. first + count of a channel of an image.
template <class T>
void add_pixels(const Geometry& g, const gmk_image& image, int32_t dtype, int64_t n, int64_t c, int64_t first,
                int64_t count, T* to) {
  const bool direct = image.w == 1 && dtype == dtype_of<T>();
  g.rows(first, first + count, [&](int64_t y, int64_t begin, int64_t until, int64_t at) {
    const int64_t start = n * image.n + c * image.c + y * image.h;
    for (int64_t i = begin; i < std::min(until, g.width); i += kLanes) {
      const int lanes = int(std::min<int64_t>(kLanes, std::min(until, g.width) - i));
      T other[kLanes];
      if (!direct) read(other, image.data, dtype, start + i * image.w, image.w, lanes);
      T* const here = to + at + (i - begin);
      const T* const from = direct ? static_cast<const T*>(image.data) + start + i : other;
      store_n(here, load_n(here, lanes) + load_n(from, lanes), lanes);
    }
  });
}

// Takes pixels first .. first + count of some channels, c and after, to their places in an image, the gaps left out.
template <class T>
void unpack(const Geometry& g, const T* from, int64_t step, int64_t channels, int64_t first, int64_t count,
            const gmk_image& image, int32_t dtype, int64_t n, int64_t c) {
  const bool same = dtype == dtype_of<T>();
  if (same && image.w != 1) {  // channels side by side
    g.rows(first, first + count, [&](int64_t y, int64_t begin, int64_t until, int64_t at) {
      T* const to = static_cast<T*>(image.data) + n * image.n + c * image.c + y * image.h;
      for (int64_t x = begin; x < std::min(until, g.width); ++x)
        for (int64_t k = 0; k < channels; ++k) to[k * image.c + x * image.w] = from[k * step + at + (x - begin)];
    });
    return;
  }
  for (int64_t k = 0; k < channels; ++k, from += step)
    g.rows(first, first + count, [&](int64_t y, int64_t begin, int64_t until, int64_t at) {
      const int64_t end = std::min(until, g.width), start = n * image.n + (c + k) * image.c + y * image.h;
      if (!same)
        for (int64_t x = begin; x < end; ++x) write(image.data, dtype, start + x * image.w, from + at + (x - begin), 1);
      else
        put_row(static_cast<T*>(image.data) + start + begin, from + at, end - begin);
    });
}

}  // namespace GMK_ISA
}  // namespace gmk
