// Weights as the convolutions read them, and the memory that a thread keeps for its calls.
#pragma once

#include <memory>

#include "gmk/parallel.h"
#include "tile.h"

namespace gmk {
namespace GMK_ISA {

// Asked for anew, its pages would cost as much as a convolution. It is uninitialised, begins on a cache line, and a
// thread has one of each kind at a time.
enum Kind { kInputs, kGradients, kSums, kGated, kWeights, kBias, kPartial, kKinds };
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

// Blocks of a few channels to be computed; in each, the channels summed over; of these, the taps. Blocks come in
// chunks, whose sums are finished together: of neighbours or, in halves, of as many in the one half of a group's
// channels as in the other.
template <class T> struct Weights {
  static constexpr int kBlocks = 8;  // of a chunk
  struct Block {
    int64_t first, begin, end;  // its first channel; the channels of which it sees the last tap
    int64_t place;              // of its weights
    int count, row;             // its channels, and where their sums are among the chunk's
  };
  struct Chunk {
    int64_t begin, end;    // blocks
    int64_t first, other;  // its first channel, in either half
    int64_t place;         // of the first channel, among those of all first halves
    int count;             // its channels, in a half
  };
  const Geometry& g;
  const int64_t summed;
  std::vector<Block> blocks;
  std::vector<Chunk> chunks;
  const Margins<T> margins;
  std::vector<int64_t> offset;  // of a tap
  const Buffer<T> packed, bias;

  Seen seen(const Block& b) const { return {offset.data(), b.begin, b.end, int(offset.size())}; }

  Weights(const gmk_conv_args& a, const Geometry& geometry, bool transposed, int halves)
      : g(geometry),
        summed(transposed ? a.outputs : a.channels),
        margins(geometry, transposed),
        packed(kWeights, a.outputs * a.channels * int64_t(geometry.taps.size())),
        bias(kBias, transposed ? a.channels : a.outputs) {
    const int64_t computed = transposed ? a.channels : a.outputs, places = a.kernel_height * a.kernel_width;
    const int64_t step = transposed ? places : a.channels * places, along = transposed ? a.channels * places : places;
    for (const Tap& tap : g.taps) offset.push_back(transposed ? -tap.offset : tap.offset);
    cut(computed, transposed, halves);
    std::fill_n(bias.data, computed, T(0));
    if (!transposed && a.bias) read(bias.data, a.bias, a.dtype, 0, 1, computed);
    const T* const direct = a.dtype == dtype_of<T>() ? static_cast<const T*>(a.weight) : nullptr;
    parallel_for(int64_t(blocks.size()), [&](int64_t i) {
      const Block& b = blocks[size_t(i)];
      T* to = packed.data + b.place;
      for (int64_t s = 0; s < summed; ++s)
        for (int t = 0, taps = seen(b)(s); t < taps; ++t, to += b.count) {
          const int64_t start = b.first * step + s * along + g.taps[size_t(t)].place;
          if (direct)
            for (int c = 0; c < b.count; ++c) to[c] = direct[start + c * step];
          else
            read(to, a.weight, a.dtype, start, step, b.count);
        }
    });
  }

 private:
  void cut(int64_t computed, bool transposed, int halves) {
    const int64_t size = computed / g.groups, half = size / halves;
    const Cut pieces(half, Shape<T>::channels), together(pieces.pieces, kBlocks / halves);
    int64_t total = 0;
    for (int64_t group = 0; half > 0 && group < g.groups; ++group)
      for (int64_t c = 0; c < together.pieces; ++c) {
        const int64_t from = together.begin(c), until = together.begin(c + 1), begin = int64_t(blocks.size());
        const int64_t first = pieces.begin(from), count = pieces.begin(until) - first;
        for (int64_t h = 0; h < halves; ++h)
          for (int64_t i = from; i < until; ++i) {
            const int64_t channel = group * size + h * half + pieces.begin(i);
            const auto [sees, last] = g.centre(channel, computed, summed, transposed);
            blocks.push_back({channel, sees, last, total, pieces.size(i), int(h * count + pieces.begin(i) - first)});
            for (int64_t s = 0; s < summed; ++s) total += seen(blocks.back())(s) * pieces.size(i);
          }
        chunks.push_back({begin, int64_t(blocks.size()), group * size + first, group * size + half + first,
                          group * half + first, int(count)});
      }
  }
};

}  // namespace GMK_ISA
}  // namespace gmk
