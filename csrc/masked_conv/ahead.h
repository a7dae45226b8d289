// What is to be read or written next, brought near while there is nothing to do but to multiply.
#pragma once

#include <array>

#include "planes.h"

namespace gmk {
namespace GMK_ISA {

// Memory to be asked for, a little with every step of a loop.
struct Soon {
  const char* first;
  int64_t step;
  GMK_INLINE void ask(int64_t i) const { __builtin_prefetch(first + i * step, 0, 2); }
};

// Memory that is wanted soon is asked for between products, in small portions, so that it has arrived by then: products
// leave the way to memory idle, and what comes between them waits for little else.
class Ahead {
  struct Area {  // `count` pieces of so many bytes, `step` apart
    const char* first;
    int64_t step, count, bytes;
  };
  std::array<Area, 3> areas;
  size_t used = 0, now = 0;
  int64_t piece = 0, place = 0, share = 0, step = 0;

 public:
  // What a strip has of an image, by whole rows if there are several.
  void want(const Geometry& g, const gmk_image& image, int32_t dtype, int64_t channels, const Strip& u) {
    if (!image.data || channels == 0) return;
    const int64_t size = dtype_size(dtype), y = u.begin / g.width, rows = std::min(g.height, u.end / g.width + 1) - y;
    const bool line = g.height == 1;
    const int64_t place = line ? u.begin * image.w : y * image.h;
    const int64_t length = line ? (u.end - u.begin) * image.w : rows * image.h;
    const bool planes = image.c >= length, whole = image.c == length;
    areas[used++] = {static_cast<const char*>(image.data) + size * (u.n * image.n + place), size * image.c,
                     planes && !whole ? channels : 1, size * length * (whole ? channels : 1)};
  }
  // In this many portions of so many steps.
  void over(int64_t portions, int64_t steps) {
    int64_t bytes = 0;
    for (size_t i = 0; i < used; ++i) bytes += areas[i].count * areas[i].bytes;
    share = bytes / std::max<int64_t>(1, portions) + 1;
    step = share / std::max<int64_t>(1, steps) + 1;
  }
  // Of memory that is at hand, if there is nothing else.
  Soon portion(const void* near) {
    if (now == used) return {static_cast<const char*>(near), 0};
    const Area& area = areas[now];
    const Soon soon{area.first + piece * area.step + place, step};
    if ((place += share) >= area.bytes) {
      place = 0;
      if (++piece == area.count) piece = 0, ++now;
    }
    return soon;
  }
  // A portion at once.
  void ask() {
    if (now == used) return;
    const Soon soon = portion(nullptr);
    for (int64_t i = 0; i < share; i += 64) __builtin_prefetch(soon.first + i, 0, 2);
  }
};

}  // namespace GMK_ISA
}  // namespace gmk
