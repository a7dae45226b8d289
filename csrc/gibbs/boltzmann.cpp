// Sequential Gibbs sweeps of fully connected machines, and Hopfield recall, their limit at zero temperature.
//
// A few chains walk through the units together, sixteen units at a time, so that a row of the weights that one of them
// needs is near for the others. Every draw comes down to a threshold that is known before the sweep; so the units of a
// block that change are found sixteen at once, and only those cost anything: the block's own fields are brought up to
// date after each, all others once per block. The order of sums is that of the definition: what a field receives, it
// receives unit by unit. Chains do not see each other, so how they are grouped changes no bit.
#include "gibbs.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using Args = gmk_boltzmann_args;
using rbm::kWord;
using rbm::mask_bits;
using rbm::Matrix;
constexpr int kRefresh = 64;  // sweeps between fresh sums of the fields; part of the definition

// log(u / (1 - u)) of the uniforms u = (word + 1/2) 2^-32: both ends keep their digits.
template <class T> GMK_INLINE pack<T> logits(const u32& word) {
  const pack<T> up = rbm::number(word, T()) + T(0.5), down = rbm::number(word ^ ~0u, T()) + T(0.5);
  return log(up / down);
}

// The thresholds of n units of a chain in a sweep, in order; room for a multiple of 64.
template <class T>
GMK_INLINE void thresholds(const rbm::Stream& stream, uint64_t chain, uint64_t sweep, int64_t n, T* out) {
  for (int64_t block = 0; block * kWord < n; ++block) {
    uint32_t word[kWord];
    stream.draw(chain, sweep, block, word);
    for (int k = 0; k < kWord; k += kLanes) store(out + block * kWord + k, logits<T>(load(word + k)));
  }
}

template <class T> struct Machine {
  using P = pack<T>;
  const Args& a;
  const T *x = static_cast<const T*>(a.x), *weight = static_cast<const T*>(a.weight),
          *bias = static_cast<const T*>(a.bias);
  const int64_t units = a.units, blocks = (units + kLanes - 1) / kLanes, whole = units / kLanes;
  const int rest = int(units % kLanes);
  const T low = a.spin ? T(-1) : T(0), change = T(1) - low;

  GMK_INLINE P row(const T* from, int64_t block) const {
    return block < whole ? load(from + block * kLanes) : load_n(from + block * kLanes, rest);
  }

  // ---- fields from nothing ----

  // The fields of `Chains` chains in `Packs` whole packs, from the bias up through all units.
  template <int Chains, int Packs> GMK_INLINE void sums(const T* const* states, T* const* fields, int64_t block) const {
    P total[Chains][Packs];
    for (int p = 0; p < Packs; ++p)
      for (int c = 0; c < Chains; ++c) total[c][p] = load(bias + (block + p) * kLanes);
    const T* w = weight + block * kLanes;
    for (int64_t j = 0; j < units; ++j, w += units) {
      P across[Packs];
      for (int p = 0; p < Packs; ++p) across[p] = load(w + p * kLanes);
      for (int c = 0; c < Chains; ++c)
        for (int p = 0; p < Packs; ++p) total[c][p] = fma(P(states[c][j]), across[p], total[c][p]);
    }
    for (int c = 0; c < Chains; ++c)
      for (int p = 0; p < Packs; ++p) store(fields[c] + (block + p) * kLanes, total[c][p]);
  }

  template <int Chains> void sums_of(const T* const* states, T* const* fields, int64_t from, int64_t to) const {
    constexpr int kWide = sizeof(T) == 4 ? 4 : 2;
    int64_t block = from;
    for (; block + kWide <= std::min(to, whole); block += kWide) sums<Chains, kWide>(states, fields, block);
    for (; block < std::min(to, whole); ++block) sums<Chains, 1>(states, fields, block);
    if (block >= to) return;
    for (int c = 0; c < Chains; ++c) {
      P total = load_n(bias + block * kLanes, rest);
      for (int64_t j = 0; j < units; ++j) total = fma(P(states[c][j]), row(weight + j * units, block), total);
      store(fields[c] + block * kLanes, total);
    }
  }

  void all_fields(const Matrix<T>& states, const Matrix<T>& fields, int64_t chains) const {
    constexpr int kChains = 4;
    const int64_t strip = 8;  // packs whose column of the weights stays in the second-level cache
    for (int64_t from = 0; from < blocks; from += strip) {
      int64_t c = 0;
      const T* s[kChains];
      T* f[kChains];
      for (; c + kChains <= chains; c += kChains) {
        for (int k = 0; k < kChains; ++k) s[k] = states[c + k], f[k] = fields[c + k];
        sums_of<kChains>(s, f, from, std::min(blocks, from + strip));
      }
      for (; c < chains; ++c)
        s[0] = states[c], f[0] = fields[c], sums_of<1>(s, f, from, std::min(blocks, from + strip));
    }
  }

  // ---- changes ----

  template <int Count> GMK_INLINE void add(T* field, const T* const* rows, const T* by) const {
    for (int64_t block = 0; block < blocks; ++block) {
      P total = load(field + block * kLanes);
      for (int k = 0; k < Count; ++k) total = fma(P(by[k]), row(rows[k], block), total);
      store(field + block * kLanes, total);
    }
  }

  // Looks at the units of a block in order; `wanted(field, on)` gives the lanes that ought to be on. Changes the state
  // and the fields, and tells whether anything changed.
  template <class F>
  GMK_INLINE bool visit(int64_t block, T* field, uint16_t& state, uint32_t free, const F& wanted) const {
    P here = load(field + block * kLanes);
    uint32_t on = state, left = free;
    uint32_t differ = (wanted(here, on) ^ on) & left;
    if (!differ) return false;
    const T* rows[kLanes];
    T by[kLanes];
    int count = 0;
    do {
      const int lane = __builtin_ctz(differ);
      rows[count] = weight + (block * kLanes + lane) * units;
      by[count] = on >> lane & 1 ? -change : change;
      on ^= 1u << lane;
      left &= ~((2u << lane) - 1);
      here = fma(P(by[count]), row(rows[count], block), here);
      ++count;
      differ = (wanted(here, on) ^ on) & left;
    } while (differ);
    int k = 0;
    for (; k + 4 <= count; k += 4) add<4>(field, rows + k, by + k);
    if (count - k == 3) add<3>(field, rows + k, by + k);
    if (count - k == 2) add<2>(field, rows + k, by + k);
    if (count - k == 1) add<1>(field, rows + k, by + k);
    state = uint16_t(on);
    return true;
  }
};

// The chains of a task: their states as bits, and as numbers for the sums.
template <class T> struct Chains {
  const Machine<T>& m;
  const int64_t first, count;
  Matrix<T> numbers, fields;
  std::vector<uint16_t> on, free;

  Chains(const Machine<T>& machine, int64_t from, int64_t to)
      : m(machine),
        first(from),
        count(to - from),
        numbers(count, m.units),
        fields(count, m.units),
        on(count * m.blocks),
        free(count * m.blocks) {
    for (int64_t c = 0; c < count; ++c)
      for (int64_t i = 0; i < m.units; ++i) {
        const int64_t at = (first + c) * m.units + i;
        const uint16_t bit = uint16_t(1u << i % kLanes);
        numbers[c][i] = m.x[at];
        if (m.x[at] > 0) on[c * m.blocks + i / kLanes] |= bit;
        if (!m.a.clamp || !m.a.clamp[at]) free[c * m.blocks + i / kLanes] |= bit;
      }
  }
  T number(int64_t c, int64_t i) const { return on[c * m.blocks + i / kLanes] >> i % kLanes & 1 ? T(1) : m.low; }

  void refresh() {
    for (int64_t c = 0; c < count; ++c)
      for (int64_t i = 0; i < m.units; ++i) numbers[c][i] = number(c, i);
    m.all_fields(numbers, fields, count);
  }
  void write() const {
    for (int64_t c = 0; c < count; ++c)
      for (int64_t i = 0; i < m.units; ++i) static_cast<T*>(m.a.out)[(first + c) * m.units + i] = number(c, i);
  }
};

template <class T> void gibbs(const Machine<T>& m, int64_t from, int64_t to) {
  using P = pack<T>;
  const Args& a = m.a;
  Chains<T> chains(m, from, to);
  Matrix<T> limits(chains.count, (m.units + kWord - 1) / kWord * kWord);
  std::vector<T> in_order(a.order ? size_t(limits.step) : 0);
  const rbm::Stream stream(a.key);
  for (int64_t sweep = 0; sweep < a.sweeps; ++sweep) {
    if (sweep % kRefresh == 0) chains.refresh();
    for (int64_t c = 0; c < chains.count; ++c) {
      T* limit = limits[c];
      thresholds(stream, uint64_t(a.first + from + c), uint64_t(sweep), m.units, a.order ? in_order.data() : limit);
      if (a.order)
        for (int64_t i = 0; i < m.units; ++i) limit[i] = in_order[a.order[i]];
    }
    for (int64_t block = 0; block < m.blocks; ++block)
      for (int64_t c = 0; c < chains.count; ++c) {
        const T beta = static_cast<const T*>(a.beta)[from + c];
        const P slope(a.spin ? beta + beta : beta), limit = load(limits[c] + block * kLanes);
        m.visit(block, chains.fields[c], chains.on[c * m.blocks + block], chains.free[c * m.blocks + block],
                [&](const P& field, uint32_t) { return mask_bits(slope * field > limit); });
      }
  }
  chains.write();
}

template <class T> void recall(const Machine<T>& m, int64_t from, int64_t to) {
  using P = pack<T>;
  Chains<T> chains(m, from, to);
  std::vector<int64_t> used(chains.count, 0);
  std::vector<char> going(chains.count, 1), moved(chains.count);
  for (int64_t sweep = 0; sweep < m.a.sweeps; ++sweep) {
    if (sweep % kRefresh == 0) chains.refresh();
    std::fill(moved.begin(), moved.end(), 0);
    for (int64_t block = 0; block < m.blocks; ++block)
      for (int64_t c = 0; c < chains.count; ++c)
        if (going[c])
          moved[c] |= m.visit(
              block, chains.fields[c], chains.on[c * m.blocks + block], chains.free[c * m.blocks + block],
              [&](const P& field, uint32_t on) { return mask_bits(field > T(0)) | (on & ~mask_bits(field < T(0))); });
    for (int64_t c = 0; c < chains.count; ++c)
      if (moved[c]) used[c] = sweep + 1;
    going = moved;
    if (std::find(going.begin(), going.end(), 1) == going.end()) break;
  }
  std::copy(used.begin(), used.end(), m.a.used + from);
  chains.write();
}

template <class T> int run(const Args& a, void (*task)(const Machine<T>&, int64_t, int64_t)) {
  const Machine<T> machine{a};
  // Few enough for several processors, and enough to share what they read.
  const int64_t size = std::clamp<int64_t>((a.batch + 3) / 4, 8, 32);
  parallel_for((a.batch + size - 1) / size,
               [&](int64_t t) { task(machine, t * size, std::min(a.batch, (t + 1) * size)); });
  return 0;
}

}  // namespace

int boltzmann_gibbs(const Args& a) { return a.dtype == GMK_F64 ? run<double>(a, gibbs) : run<float>(a, gibbs); }
int hopfield_recall(const Args& a) { return a.dtype == GMK_F64 ? run<double>(a, recall) : run<float>(a, recall); }

}  // namespace GMK_ISA
}  // namespace gmk
