// Block Gibbs sampling of restricted Boltzmann machines in float32 or float64.
//
// A field is the bias plus the weights of the units that are on, added in the order of the units. Adding a zero changes
// nothing, so rows of the units that are on, picked from lists, give the same bits as the dense product in that order;
// a group of chains takes whichever is less work. A group walks through all steps by itself: chains do not see each
// other, so neither threads nor the cut of the batch change a bit.
#include "gibbs.h"

namespace gmk {
namespace GMK_ISA {
namespace {
using namespace rbm;

// The first `left` lanes, if there are fewer than sixteen.
template <class T> GMK_INLINE pack<T> get(const T* from, int64_t left) {
  return left >= kLanes ? load(from) : load_n(from, int(left));
}

// A row per given unit and a column per drawn unit, cut into strips of columns that are as wide as a pack. A strip lies
// together: sums of rows walk through one strip after the other, out of the first-level cache.
template <class T> struct Strips {
  static constexpr int64_t kWidth = kLanes;
  int64_t given, drawn, count;
  Matrix<T> memory;  // strip s, given unit i: row s * given + i

  Strips(int64_t n, int64_t m)
      : given(n), drawn(m), count((m + kWidth - 1) / kWidth), memory(count * std::max<int64_t>(n, 1), kWidth) {}
  T* operator()(int64_t strip, int64_t unit) const { return memory[strip * given + unit]; }

  // From weights (given, drawn) in memory.
  void fill(const T* weight) {
    constexpr int64_t kRows = 64;
    parallel_for((given + kRows - 1) / kRows, [&](int64_t task) {
      for (int64_t i = task * kRows; i < std::min(given, (task + 1) * kRows); ++i)
        for (int64_t s = 0; s < count; ++s)
          store((*this)(s, i), get(weight + i * drawn + s * kWidth, drawn - s * kWidth));
    });
  }

  void fill_transposed(const Strips& other) {
    parallel_for(count, [&](int64_t s) {
      const int64_t wide = std::min(kWidth, drawn - s * kWidth);
      for (int64_t t = 0; t < other.count; ++t) {
        const T* in = other(t, s * kWidth);
        T* out = (*this)(s, t * kWidth);
        for (int64_t j = 0; j < std::min(kWidth, given - t * kWidth); ++j)
          for (int64_t l = 0; l < wide; ++l) out[j * kWidth + l] = in[l * kWidth + j];
      }
    });
  }
};

// To the sum of each chain the rows of its list in a strip, in the order of the list. Four chains take turns, so that
// none waits for its last addition.
template <class T> GMK_OUTLINE void add_rows(const T* strip, const List* lists, T* const* sums, int64_t chains) {
  const auto row = [strip](uint32_t at) { return load(strip + at); };
  const auto finish = [&](pack<T> total, int64_t c, int64_t n) {
    for (const List list = lists[c]; n < list.count; ++n) total += row(list.row[n]);
    store(sums[c], total);
  };
  int64_t c = 0;
  for (; c + 4 <= chains; c += 4) {
    const List a = lists[c], b = lists[c + 1], d = lists[c + 2], e = lists[c + 3];
    pack<T> of_a = load(sums[c]), of_b = load(sums[c + 1]), of_d = load(sums[c + 2]), of_e = load(sums[c + 3]);
    const int64_t shared = std::min({a.count, b.count, d.count, e.count});
    for (int64_t n = 0; n < shared; ++n) {
      of_a += row(a.row[n]);
      of_b += row(b.row[n]);
      of_d += row(d.row[n]);
      of_e += row(e.row[n]);
    }
    finish(of_a, c, shared);
    finish(of_b, c + 1, shared);
    finish(of_d, c + 2, shared);
    finish(of_e, c + 3, shared);
  }
  for (; c < chains; ++c) finish(load(sums[c]), c, 0);
}

// A dense product does this share of the work of picking every row: it holds several chains against each row.
constexpr double kDenseShare = 0.42;

// One direction: given units to drawn ones.
template <class T> struct Side {
  static constexpr int64_t kWidth = Strips<T>::kWidth;
  Strips<T> weight;
  Matrix<T> bias;

  Side(const T* b, int64_t n, int64_t m) : weight(n, m), bias(1, m) { std::copy_n(b, m, bias[0]); }

  // Fields of Chains chains in Packs strips, all given units in their order.
  template <int Chains, int Packs>
  GMK_INLINE void dense(const Matrix<T>& states, const Matrix<T>& field, int64_t c0, int64_t strip) const {
    pack<T> total[Chains][Packs];
    for (int c = 0; c < Chains; ++c)
      for (int p = 0; p < Packs; ++p) total[c][p] = load(bias[0] + (strip + p) * kWidth);
    const T *w = weight(strip, 0), *s = states[c0];
    for (int64_t i = 0; i < weight.given; ++i, w += kWidth) {
      pack<T> across[Packs];
      for (int p = 0; p < Packs; ++p) across[p] = load(w + p * weight.given * kWidth);
      for (int c = 0; c < Chains; ++c)
        for (int p = 0; p < Packs; ++p) total[c][p] = fma(pack<T>(s[c * states.step + i]), across[p], total[c][p]);
    }
    for (int c = 0; c < Chains; ++c)
      for (int p = 0; p < Packs; ++p) store(field[c0 + c] + (strip + p) * kWidth, total[c][p]);
  }
  template <int Chains>
  void dense_chains(const Matrix<T>& states, const Matrix<T>& field, int64_t c, int64_t from, int64_t to) const {
    constexpr int kWide = kVectorBytes == 64 ? (sizeof(T) == 4 ? 4 : 2) : 1;
    for (; from + kWide <= to; from += kWide) dense<Chains, kWide>(states, field, c, from);
    for (; from < to; ++from) dense<Chains, 1>(states, field, c, from);
  }
  void dense_fields(const Matrix<T>& states, const Matrix<T>& field, int64_t chains) const {
    constexpr int64_t kStrips = 4;
    for (int64_t from = 0; from < weight.count; from += kStrips) {
      const int64_t to = std::min(weight.count, from + kStrips);
      int64_t c = 0;
      for (; c + 4 <= chains; c += 4) dense_chains<4>(states, field, c, from, to);
      for (; c < chains; ++c) dense_chains<1>(states, field, c, from, to);
    }
  }

  void picked_fields(const std::vector<List>& lists, const Matrix<T>& field, int64_t chains) const {
    std::vector<T*> sums(static_cast<size_t>(chains));
    for (int64_t strip = 0; strip < weight.count; ++strip) {
      for (int64_t c = 0; c < chains; ++c) {
        sums[c] = field[c] + strip * kWidth;
        std::copy_n(bias[0] + strip * kWidth, kWidth, sums[c]);
      }
      add_rows(weight(strip, 0), lists.data(), sums.data(), chains);
    }
  }
};

// The units of one side, for a group of chains: bits, or numbers where they are Gaussian or given as such.
template <class T> struct States {
  int64_t units, blocks;
  Matrix<uint64_t> bits;
  Matrix<uint32_t> room;
  std::vector<List> lists;
  Matrix<T> numbers, field;

  States(int64_t chains, int64_t n)
      : units(n),
        blocks(blocks_of(n)),
        bits(chains, blocks),
        room(chains, n),
        lists(size_t(chains)),
        field(chains, n) {}

  void need_numbers(int64_t chains) {
    if (numbers.rows < chains) numbers = Matrix<T>(chains, units);
  }
};

// The fields of the drawn side.
template <class T> void fields(const Side<T>& side, States<T>& given, States<T>& drawn, int64_t chains, bool real) {
  if (!real) {
    int64_t count = 0;
    for (int64_t c = 0; c < chains; ++c) {
      List& list = given.lists[c] = {given.room[c], 0};
      for (int64_t b = 0; b < given.blocks; ++b) append(list, given.bits[c][b], b, kLanes);
      count += list.count;
    }
    if (chains < 4 || double(count) <= kDenseShare * double(chains * given.units))
      return side.picked_fields(given.lists, drawn.field, chains);
    given.need_numbers(chains);
    for (int64_t c = 0; c < chains; ++c) write_states(given.bits[c], given.units, given.numbers[c]);
  }
  side.dense_fields(given.numbers, drawn.field, chains);
}

template <class T> T at(const void* beta, int64_t chain) { return beta ? static_cast<const T*>(beta)[chain] : T(1); }

// Draws the binary units of one chain from its fields.
template <class T>
void draw_binary(const Stream& stream, uint64_t chain, uint64_t half_step, const T* field, T beta, int64_t units,
                 uint64_t* bits) {
  const int64_t step = (units + kLanes - 1) / kLanes * kLanes;
  for (int64_t b = 0; b < blocks_of(units); ++b) {
    uint32_t word[kWord];
    stream.draw(chain, half_step, b, word);
    uint64_t found = 0;
    for (int64_t p = 0; p < 4 && b * kWord + p * kLanes < step; ++p)
      found |= uint64_t(on(load(field + b * kWord + p * kLanes) * beta, load(word + p * kLanes))) << (16 * p);
    bits[b] = found & real(units, b);
  }
}

template <class T>
void draw_gaussian(const Stream& stream, uint64_t chain, uint64_t half_step, const T* mean, T beta, int64_t units,
                   T* out) {
  const T spread = T(1) / std::sqrt(beta);
  for (int64_t b = 0; b < blocks_of(units); ++b) {
    uint32_t word[kWord];
    stream.draw(chain, half_step, b, word);
    T radius[kWord / 2], angle[kWord / 2];
    for (int k = 0; k < kWord / 2; ++k) {
      radius[k] = (T(int32_t(word[2 * k] >> 9)) + T(0.5)) * T(kUniformStep);
      angle[k] = (T(int32_t(word[2 * k + 1] >> 9)) + T(0.5)) * T(kUniformStep);
    }
    T even[kWord / 2], odd[kWord / 2];
    for (int k = 0; k < kWord / 2; k += kLanes) {
      pack<T> z0, z1;
      normal_pair(load(radius + k), load(angle + k), z0, z1);
      store(even + k, z0);
      store(odd + k, z1);
    }
    for (int64_t l = 0, n = std::min<int64_t>(kWord, units - b * kWord); l < n; ++l)
      out[b * kWord + l] = fma(l % 2 ? odd[l / 2] : even[l / 2], spread, mean[b * kWord + l]);
  }
}

template <class T> int gibbs_as(const gmk_rbm_gibbs_args& a) {
  const T *v = static_cast<const T*>(a.v), *weight = static_cast<const T*>(a.weight);
  const T *vb = static_cast<const T*>(a.visible_bias), *hb = static_cast<const T*>(a.hidden_bias);
  if (!finite(weight, a.visible * a.hidden) || !finite(vb, a.visible) || !finite(hb, a.hidden) ||
      !allowed(static_cast<const T*>(a.beta), a.chains, a.gaussian) || (a.gaussian && !finite(v, a.chains * a.visible)))
    return GMK_BAD_VALUES;
  const Stream stream(a.key);
  Side<T> up(hb, a.visible, a.hidden), down(vb, a.hidden, a.visible);
  up.weight.fill(weight);
  down.weight.fill_transposed(up.weight);
  const int64_t group = chains_per_task(a.chains);
  std::vector<char> bad((a.chains + group - 1) / group, 0);
  parallel_for((a.chains + group - 1) / group, [&](int64_t task) {
    const int64_t start = task * group, chains = std::min(group, a.chains - start);
    States<T> visible(chains, a.visible), hidden(chains, a.hidden);
    Matrix<uint64_t> held(a.clamp ? chains : 0, visible.blocks);
    for (int64_t c = 0; c < chains; ++c) {
      const T* given = v + (start + c) * a.visible;
      if (a.gaussian) {
        visible.need_numbers(chains);
        std::copy_n(given, a.visible, visible.numbers[c]);
      } else if (!read_states(given, a.visible, visible.bits[c])) {
        bad[task] = 1;
      }
      if (a.clamp) read_mask(a.clamp + (start + c) * a.clamp_step, a.visible, held[c]);
    }
    if (bad[task]) return;
    for (int64_t t = 0; t < std::max<int64_t>(a.steps, 1); ++t) {
      fields(up, visible, hidden, chains, a.gaussian);
      for (int64_t c = 0; c < chains; ++c)
        draw_binary(stream, a.first + start + c, 2 * t, hidden.field[c], at<T>(a.beta, start + c), a.hidden,
                    hidden.bits[c]);
      if (t == a.steps) break;
      fields(down, hidden, visible, chains, false);
      for (int64_t c = 0; c < chains; ++c) {
        const uint64_t chain = a.first + start + c;
        const T beta = at<T>(a.beta, start + c);
        if (a.gaussian) {
          T *mean = visible.field[c], *now = visible.numbers[c];
          draw_gaussian(stream, chain, 2 * t + 1, mean, beta, a.visible, mean);
          for (int64_t i = 0; i < a.visible; ++i)
            if (!a.clamp || !(held[c][i / kWord] >> (i % kWord) & 1)) now[i] = mean[i];
          continue;
        }
        uint64_t drawn[8], *now = visible.bits[c];
        std::vector<uint64_t> many(visible.blocks > 8 ? size_t(visible.blocks) : 0);
        uint64_t* next = visible.blocks > 8 ? many.data() : drawn;
        draw_binary(stream, chain, 2 * t + 1, visible.field[c], beta, a.visible, next);
        for (int64_t b = 0; b < visible.blocks; ++b) {
          const uint64_t keep = a.clamp ? held[c][b] : 0;
          now[b] = (now[b] & keep) | (next[b] & ~keep);
        }
      }
    }
    for (int64_t c = 0; c < chains; ++c) {
      T* out = static_cast<T*>(a.out_v) + (start + c) * a.visible;
      if (a.gaussian)
        std::copy_n(visible.numbers[c], a.visible, out);
      else
        write_states(visible.bits[c], a.visible, out);
      write_states(hidden.bits[c], a.hidden, static_cast<T*>(a.out_h) + (start + c) * a.hidden);
    }
  });
  return std::find(bad.begin(), bad.end(), 1) == bad.end() ? 0 : GMK_BAD_VALUES;
}

template <class T> int conditional_as(const gmk_rbm_conditional_args& a) {
  const int64_t n = a.to_visible ? a.hidden : a.visible, m = a.to_visible ? a.visible : a.hidden;
  const T *given = static_cast<const T*>(a.given), *weight = static_cast<const T*>(a.weight);
  const T *bias = static_cast<const T*>(a.bias), *betas = static_cast<const T*>(a.beta);
  if (!finite(weight, n * m) || !finite(bias, m) || !finite(given, a.chains * n) ||
      !allowed(betas, a.chains, a.gaussian))
    return GMK_BAD_VALUES;
  const Stream stream(a.key);
  Side<T> side(bias, n, m);
  if (a.to_visible) {
    Strips<T> up(a.visible, a.hidden);
    up.fill(weight);
    side.weight.fill_transposed(up);
  } else {
    side.weight.fill(weight);
  }
  const int64_t group = chains_per_task(a.chains);
  parallel_for((a.chains + group - 1) / group, [&](int64_t task) {
    const int64_t start = task * group, chains = std::min(group, a.chains - start);
    States<T> from(chains, n), to(chains, m);
    bool binary = true;
    for (int64_t c = 0; c < chains; ++c) binary &= read_states(given + (start + c) * n, n, from.bits[c]);
    if (!binary) {
      from.need_numbers(chains);
      for (int64_t c = 0; c < chains; ++c) std::copy_n(given + (start + c) * n, n, from.numbers[c]);
    }
    fields(side, from, to, chains, !binary);
    for (int64_t c = 0; c < chains; ++c) {
      const T beta = at<T>(betas, start + c);
      T *field = to.field[c], *mean = static_cast<T*>(a.out_mean) + (start + c) * m,
        *sample = static_cast<T*>(a.out_sample) + (start + c) * m;
      if (a.gaussian) {
        draw_gaussian(stream, a.first + start + c, 1, field, beta, m, sample);
        std::copy_n(field, m, mean);
        continue;
      }
      draw_binary(stream, a.first + start + c, a.to_visible, field, beta, m, to.bits[c]);
      write_states(to.bits[c], m, sample);
      for (int64_t j = 0; j < m; j += kLanes) {
        const int k = int(std::min<int64_t>(kLanes, m - j));
        store_n(mean + j, sigmoid(load_n(field + j, k) * beta), k);
      }
    }
  });
  return 0;
}

}  // namespace

int rbm_gibbs(const gmk_rbm_gibbs_args& a) { return a.dtype == GMK_F64 ? gibbs_as<double>(a) : gibbs_as<float>(a); }
int rbm_conditional(const gmk_rbm_conditional_args& a) {
  return a.dtype == GMK_F64 ? conditional_as<double>(a) : conditional_as<float>(a);
}

}  // namespace GMK_ISA
}  // namespace gmk
