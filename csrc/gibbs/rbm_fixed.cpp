// Block Gibbs sampling of restricted Boltzmann machines in integers.
//
// Sums of integers do not depend on their order, so each chain takes at each half-step whatever is least work: the rows
// of the units that are on, added to nothing; those of the units that are off, taken from the sum of all; or those of
// the units that have changed since the last step, added to and taken from the fields of then.
//
// Where the definition promises that the weights of every unit, made positive, add up to less than 2^16, fields are
// kept in 16 bits: from the sum of all negative weights upwards no partial sum can leave them.
#include "gibbs.h"

namespace gmk {
namespace GMK_ISA {
namespace {
using namespace rbm;

// ---- sums of rows ---------------------------------------------------------------------------------------------------

// sum += (or -=) the rows of a list, Vectors native vectors wide, in the order of the list.
template <int Vectors, bool Minus, class T>
GMK_INLINE void add_strip(T* sum, const T* matrix, int64_t step, const List& list) {
  typedef T vector __attribute__((vector_size(kVectorBytes)));
  constexpr int kWidth = kVectorBytes / int(sizeof(T));
  vector total[Vectors];
  for (int k = 0; k < Vectors; ++k) std::memcpy(&total[k], sum + k * kWidth, kVectorBytes);
  for (int64_t n = 0; n < list.count; ++n) {
    const T* row = matrix + int64_t(list.row[n]) * step;
    for (int k = 0; k < Vectors; ++k) {
      vector w;
      std::memcpy(&w, row + k * kWidth, kVectorBytes);
      total[k] = Minus ? total[k] - w : total[k] + w;
    }
  }
  for (int k = 0; k < Vectors; ++k) std::memcpy(sum + k * kWidth, &total[k], kVectorBytes);
}

constexpr int kStrip = 8;  // native vectors that stay in registers

// Elements from .. to of the sum; both lie on cache lines, and are kStrip vectors apart or fewer.
template <bool Minus, class T>
GMK_OUTLINE void add_rows(T* sum, const Matrix<T>& matrix, const List& list, int64_t from, int64_t to) {
  constexpr int kWidth = kVectorBytes / int(sizeof(T));
  int64_t left = (to - from + kWidth - 1) / kWidth;
  const T* base = matrix[0];
  const auto strip = [&](auto vectors) {
    constexpr int n = decltype(vectors)::value;
    for (; left >= n; left -= n, from += n * kWidth) add_strip<n, Minus>(sum + from, base + from, matrix.step, list);
  };
  strip(std::integral_constant<int, kStrip>());
  strip(std::integral_constant<int, 4>());
  strip(std::integral_constant<int, 2>());
  strip(std::integral_constant<int, 1>());
}

// Elements a strip of so many bytes of each row; many rows of it stay in the second-level cache.
template <class T> constexpr int64_t strip_elements() { return 512 / int64_t(sizeof(T)); }

// ---- the machine in integers ----------------------------------------------------------------------------------------

int floor_log2(double x) { return std::ilogb(x); }

// x rounded to nearest, ties to even: |x| < 2^22, or 2^51.
GMK_INLINE float rounded(float x) { return (x + 12582912.0f) - 12582912.0f; }
GMK_INLINE double rounded(double x) { return (x + 6755399441055744.0) - 6755399441055744.0; }

// Calls body(from, to) for ranges of rows, on all threads.
template <class F> void by_rows(int64_t rows, const F& body) {
  constexpr int64_t kRows = 64;
  parallel_for((rows + kRows - 1) / kRows, [&](int64_t k) { body(k * kRows, std::min(rows, k * kRows + kRows)); });
}

// The binary digits after the point, and whether sums fit 16 bits: fixed_point() of the definition.
template <class T> struct Scale {
  int bits;
  bool narrow;

  Scale(const T* weight, int64_t visible, int64_t hidden, T most) {
    const double largest = std::max(double(most), 0x1p-30), units = double(std::max(visible, hidden));
    const int fine = 14 - floor_log2(largest);
    const double room = std::max(0x1p-60, 65535.0 - 0.5 * units);
    const int int16 = floor_log2(32767.0 / largest);
    const double reach = double(reach_of(weight, visible, hidden, T(std::ldexp(1.0, fine))));
    const int tight = std::min({int16, fine + floor_log2(room / (reach + 0.5 * units + 0.5)), 20});
    narrow = tight >= 8;
    bits = narrow ? tight : std::min({int16, floor_log2(0x1p30 / std::max(units, 1.0) / largest), 20});
  }

  // The largest sum of magnitudes along a row or column.
  static int64_t reach_of(const T* weight, int64_t visible, int64_t hidden, T scale) {
    std::vector<int64_t> columns(size_t(hidden), 0);
    int64_t most = 0;
    std::mutex mutex;
    by_rows(visible, [&](int64_t from, int64_t to) {
      std::vector<int32_t> mine(size_t(hidden), 0);  // of 64 rows: below 2^22
      int64_t longest = 0;
      for (int64_t i = from; i < to; ++i) {
        const T* w = weight + i * hidden;
        int64_t row = 0;
        for (int64_t j = 0; j < hidden; ++j) {
          const int32_t q = int32_t(rounded(std::abs(w[j]) * scale));
          mine[j] += q;
          row += q;
        }
        longest = std::max(longest, row);
      }
      std::lock_guard<std::mutex> lock(mutex);
      most = std::max(most, longest);
      for (int64_t j = 0; j < hidden; ++j) columns[j] += mine[j];
    });
    for (int64_t sum : columns) most = std::max(most, sum);
    return most;
  }
};

// out = the transpose of in, columns from .. to of it.
template <class T>
void transpose(const T* in, int64_t rows, int64_t step, const Matrix<T>& out, int64_t from, int64_t to) {
  constexpr int64_t kTile = 32;
  for (int64_t r = 0; r < rows; r += kTile)
    for (int64_t c = from; c < to; ++c)
      for (int64_t k = r, end = std::min(rows, r + kTile); k < end; ++k) out[c][k] = in[k * step + c];
}

// One direction: given units to drawn ones. T is uint16_t or int32_t; sums wrap in neither.
template <class T> struct Side {
  Matrix<T> weight;        // a row per given unit, a column per drawn unit
  Matrix<T> none, all;     // the sums of no unit and of every unit
  Matrix<int32_t> offset;  // what to add to a sum to have the field
  int64_t given, drawn;

  Side(int64_t n, int64_t m) : weight(n, m), none(1, m), all(1, m), offset(1, m), given(n), drawn(m) {}

  template <class F> void finish(const F* bias, int bits) {
    constexpr int64_t kColumns = 256;
    const F scale = F(std::ldexp(1.0, bits));
    parallel_for((drawn + kColumns - 1) / kColumns, [&](int64_t k) {
      const int64_t from = k * kColumns, to = std::min(drawn, from + kColumns);
      T *zero = none[0], *total = all[0];
      for (int64_t i = 0; i < given; ++i) {
        const T* w = weight[i];
        for (int64_t j = from; j < to; ++j) total[j] = T(total[j] + w[j]);
        if (sizeof(T) == 2)
          for (int64_t j = from; j < to; ++j) zero[j] = T(zero[j] + (int16_t(w[j]) < 0 ? T(-w[j]) : T(0)));
      }
      for (int64_t j = from; j < to; ++j) {
        total[j] = T(total[j] + zero[j]);
        const double b = std::nearbyint(std::min(0x1p30, std::max(-0x1p30, double(bias[j]) * double(scale))));
        offset[0][j] = int32_t(b) - int32_t(zero[j]);
      }
    });
  }
};

template <class T> struct Machine {
  Side<T> up, down;

  template <class F>
  Machine(const F* weight, const F* vb, const F* hb, int64_t visible, int64_t hidden, int bits)
      : up(visible, hidden), down(hidden, visible) {
    const F scale = F(std::ldexp(1.0, bits));
    by_rows(visible, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i)
        for (int64_t j = 0; j < hidden; ++j) up.weight[i][j] = T(int32_t(rounded(weight[i * hidden + j] * scale)));
    });
    by_rows(hidden,
            [&](int64_t from, int64_t to) { transpose(up.weight[0], visible, up.weight.step, down.weight, from, to); });
    up.finish(hb, bits);
    down.finish(vb, bits);
  }
};

// ---- chains ---------------------------------------------------------------------------------------------------------

GMK_INLINE i32 wide(const uint16_t* sum) {
#if defined(__AVX512F__)
  return bits<int32_t>(i32::of((i32::vector)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)sum))));
#else
  int32_t x[kLanes];
  for (int l = 0; l < kLanes; ++l) x[l] = sum[l];
  return load(x);
#endif
}
GMK_INLINE i32 wide(const int32_t* sum) { return load(sum); }

// The units of one side, for a group of chains.
template <class T> struct States {
  int64_t units, blocks;
  Matrix<uint64_t> now, then;    // the states; those that the fields of the other side belong to
  Matrix<uint32_t> more, fewer;  // units whose rows to add, and to take away
  std::vector<List> plus, minus;
  Matrix<T> sum;       // of this side, from the states of the other
  bool known = false;  // whether `then` means anything

  States(int64_t chains, int64_t n)
      : units(n),
        blocks(blocks_of(n)),
        now(chains, blocks),
        then(chains, blocks),
        more(chains, n),
        fewer(chains, n),
        plus(size_t(chains)),
        minus(size_t(chains)),
        sum(chains, n) {}
};

template <class T> int64_t count_bits(const T* word, int64_t blocks) {
  int64_t found = 0;
  for (int64_t b = 0; b < blocks; ++b) found += __builtin_popcountll(word[b]);
  return found;
}

// Brings the sums of the drawn side up to the states of the given one.
template <class T> void sums(const Side<T>& side, States<T>& given, States<T>& drawn, int64_t chains) {
  for (int64_t c = 0; c < chains; ++c) {
    uint64_t *now = given.now[c], *then = given.then[c];
    List &plus = given.plus[c] = {given.more[c], 0}, &minus = given.minus[c] = {given.fewer[c], 0};
    const int64_t set = count_bits(now, given.blocks);
    int64_t changed = given.units + 1;
    if (given.known) {
      changed = 0;
      for (int64_t b = 0; b < given.blocks; ++b) changed += __builtin_popcountll(now[b] ^ then[b]);
    }
    if (changed <= std::min(set, given.units - set)) {
      for (int64_t b = 0; b < given.blocks; ++b)
        append(plus, now[b] & ~then[b], b), append(minus, then[b] & ~now[b], b);
    } else if (set <= given.units - set) {
      std::copy_n(side.none[0], drawn.sum.step, drawn.sum[c]);
      for (int64_t b = 0; b < given.blocks; ++b) append(plus, now[b], b);
    } else {
      std::copy_n(side.all[0], drawn.sum.step, drawn.sum[c]);
      for (int64_t b = 0; b < given.blocks; ++b) append(minus, ~now[b] & real(given.units, b), b);
    }
    std::copy_n(now, given.blocks, then);
  }
  given.known = true;
  constexpr int64_t kWide = strip_elements<T>();
  for (int64_t at = 0; at < side.drawn; at += kWide)
    for (int64_t c = 0; c < chains; ++c) {
      const int64_t end = std::min(drawn.sum.step, at + kWide);
      if (given.plus[c].count) add_rows<false>(drawn.sum[c], side.weight, given.plus[c], at, end);
      if (given.minus[c].count) add_rows<true>(drawn.sum[c], side.weight, given.minus[c], at, end);
    }
}

template <class T>
GMK_INLINE uint64_t draw(const uint32_t* word, const T* sum, const int32_t* offset, float scale, int64_t packs) {
  uint64_t found = 0;
  for (int64_t p = 0; p < packs; ++p) {
    const f32 field = convert<float>(wide(sum + p * kLanes) + load(offset + p * kLanes)) * scale;
    found |= uint64_t(on(field, load(word + p * kLanes))) << (16 * p);
  }
  return found;
}

template <class T>
void draws(const Stream& stream, uint64_t chain, uint64_t half_step, const Side<T>& side, const T* sum, float scale,
           const uint64_t* held, uint64_t* now) {
  for (int64_t b = 0; b < blocks_of(side.drawn); ++b) {
    uint32_t word[kWord];
    stream.draw(chain, half_step, b, word);
    const int64_t at = b * kWord, packs = std::min<int64_t>(4, (side.drawn - at + kLanes - 1) / kLanes);
    const int32_t* offset = side.offset[0] + at;
    const uint64_t found =
        packs == 4 ? draw(word, sum + at, offset, scale, 4) : draw(word, sum + at, offset, scale, packs);
    const uint64_t keep = held ? held[b] : 0;
    now[b] = (now[b] & keep) | (found & real(side.drawn, b) & ~keep);
  }
}

template <class T, class F> int run(const gmk_rbm_gibbs_args& a, int bits) {
  const F *v = static_cast<const F*>(a.v), *betas = static_cast<const F*>(a.beta);
  const Machine<T> machine(static_cast<const F*>(a.weight), static_cast<const F*>(a.visible_bias),
                           static_cast<const F*>(a.hidden_bias), a.visible, a.hidden, bits);
  const Stream stream(a.key);
  const int64_t group = chains_per_task(a.chains);
  std::vector<char> bad((a.chains + group - 1) / group, 0);
  parallel_for((a.chains + group - 1) / group, [&](int64_t task) {
    const int64_t start = task * group, chains = std::min(group, a.chains - start);
    States<T> visible(chains, a.visible), hidden(chains, a.hidden);
    Matrix<uint64_t> held(a.clamp ? chains : 0, visible.blocks);
    std::vector<float> scale(size_t(chains), 0.0f);
    for (int64_t c = 0; c < chains; ++c) {
      if (!read_states(v + (start + c) * a.visible, a.visible, visible.now[c])) bad[task] = 1;
      if (a.clamp) read_mask(a.clamp + (start + c) * a.clamp_step, a.visible, held[c]);
      scale[c] = (betas ? float(betas[start + c]) : 1.0f) * float(std::ldexp(1.0, -bits));
    }
    if (bad[task]) return;
    for (int64_t t = 0; t < std::max<int64_t>(a.steps, 1); ++t) {
      sums(machine.up, visible, hidden, chains);
      for (int64_t c = 0; c < chains; ++c)
        draws(stream, a.first + start + c, 2 * t, machine.up, hidden.sum[c], scale[c], nullptr, hidden.now[c]);
      if (t == a.steps) break;
      sums(machine.down, hidden, visible, chains);
      for (int64_t c = 0; c < chains; ++c)
        draws(stream, a.first + start + c, 2 * t + 1, machine.down, visible.sum[c], scale[c],
              a.clamp ? held[c] : nullptr, visible.now[c]);
    }
    for (int64_t c = 0; c < chains; ++c) {
      write_states(visible.now[c], a.visible, static_cast<F*>(a.out_v) + (start + c) * a.visible);
      write_states(hidden.now[c], a.hidden, static_cast<F*>(a.out_h) + (start + c) * a.hidden);
    }
  });
  return std::find(bad.begin(), bad.end(), 1) == bad.end() ? 0 : GMK_BAD_VALUES;
}

template <class F> int fixed_as(const gmk_rbm_gibbs_args& a) {
  const F* weight = static_cast<const F*>(a.weight);
  const F most = largest(weight, a.visible * a.hidden);
  if (!std::isfinite(most) || !finite(static_cast<const F*>(a.visible_bias), a.visible) ||
      !finite(static_cast<const F*>(a.hidden_bias), a.hidden) ||
      !allowed(static_cast<const F*>(a.beta), a.chains, false))
    return GMK_BAD_VALUES;
  const Scale<F> scale(weight, a.visible, a.hidden, most);
  return scale.narrow ? run<uint16_t, F>(a, scale.bits) : run<int32_t, F>(a, scale.bits);
}

}  // namespace

int rbm_gibbs_fixed(const gmk_rbm_gibbs_args& a) {
  return a.dtype == GMK_F64 ? fixed_as<double>(a) : fixed_as<float>(a);
}

}  // namespace GMK_ISA
}  // namespace gmk
