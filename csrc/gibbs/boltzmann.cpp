// Sequential Gibbs sweeps of fully connected machines, and Hopfield recall, their limit at zero temperature.
//
// A few chains walk through the units together, 64 units at a time, so that a row of the weights that one of them needs
// is near for the others. Every draw comes down to a threshold that is known before the sweep; so the units that change
// are found sixteen at once, and only those cost anything: the fields of the 64 are brought up to date after each, all
// others when the 64 are done. The order of sums is that of the definition: what a field receives, it
// receives unit by unit. Chains do not see each other, so how they are grouped changes no bit.
#include "places.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using Args = gmk_boltzmann_args;
using rbm::kWord;
using rbm::mask_bits;
using rbm::Matrix;
constexpr int64_t kSmall = 16;  // chains whose states one thread reads and writes
constexpr int kGroup = 4;       // packs of units that are looked at together
constexpr int kRefresh = 64;    // sweeps between fresh sums of the fields; part of the definition

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
  Matrix<T> off;  // the fields with all units off, summed from the bias up through the units

  explicit Machine(const Args& args) : a(args), off(1, args.units) {
    std::copy_n(bias, units, off[0]);
    if (a.spin)
      each_strip([&](int64_t block, auto packs) {
        constexpr int kPacks = decltype(packs)::value;
        P total[kPacks];
        for (int p = 0; p < kPacks; ++p) total[p] = load(off[0] + (block + p) * kLanes);
        for (int64_t j = 0; j < units; ++j)
          for (int p = 0; p < kPacks; ++p) total[p] -= row(weight + j * units, block + p);
        for (int p = 0; p < kPacks; ++p) store(off[0] + (block + p) * kLanes, total[p]);
      });
  }

  // Calls f(first, width) for the strips that the packs of units fall into, in parallel.
  template <class F> void each_strip(const F& f) const {
    constexpr int kStrip = rbm::kStripPacks<T>;
    parallel_for((blocks + kStrip - 1) / kStrip, [&](int64_t s) {
      int64_t block = s * kStrip;
      if (block + kStrip <= blocks) return f(block, std::integral_constant<int, kStrip>());
      for (; block < blocks; ++block) f(block, std::integral_constant<int, 1>());
    });
  }

  GMK_INLINE P row(const T* from, int64_t block) const {
    return block < whole ? load(from + block * kLanes) : load_n(from + block * kLanes, rest);
  }

  // ---- changes ----

  template <int Count> GMK_OUTLINE void add(T* field, const T* const* rows, const T* by) const {
    P change[Count];
    for (int k = 0; k < Count; ++k) change[k] = P(by[k]);
    for (int64_t u = 0; u < whole * kLanes; u += kLanes) {
      P total = load(field + u);
      for (int k = 0; k < Count; ++k) total = fma(change[k], load(rows[k] + u), total);
      store(field + u, total);
    }
    if (rest == 0) return;
    P total = load(field + whole * kLanes);
    for (int k = 0; k < Count; ++k) total = fma(change[k], row(rows[k], whole), total);
    store(field + whole * kLanes, total);
  }

  // Looks at kGroup packs of units in order; `wanted(pack, field, on)` gives the lanes that ought to be on. Changes the
  // states and the fields, and tells whether anything changed. Fields of units that are still to be looked at are
  // brought up to date after each change, in registers; then all of them together.
  template <class F>
  GMK_INLINE bool visit(int64_t first, T* field, uint16_t* state, const uint16_t* free, const F& wanted) const {
    const T* rows[kGroup * kLanes];
    T by[kGroup * kLanes];
    int count = 0;
    const int packs = int(std::min<int64_t>(kGroup, blocks - first));
    P here[kGroup];
    for (int p = 0; p < packs; ++p) here[p] = load(field + (first + p) * kLanes);
    for (int p = 0; p < packs; ++p) {
      uint32_t on = state[p], left = free[p], differ;
      while ((differ = (wanted(p, here[p], on) ^ on) & left)) {
        const int lane = __builtin_ctz(differ);
        const T* w = rows[count] = weight + ((first + p) * kLanes + lane) * units;
        const T d = by[count++] = on >> lane & 1 ? -change : change;
        on ^= 1u << lane;
        left &= ~((2u << lane) - 1);
        for (int q = p; q < packs; ++q) here[q] = fma(P(d), row(w, first + q), here[q]);
      }
      state[p] = uint16_t(on);
    }
    int k = 0;
    for (; k + 4 <= count; k += 4) add<4>(field, rows + k, by + k);
    if (count - k == 3) add<3>(field, rows + k, by + k);
    if (count - k == 2) add<2>(field, rows + k, by + k);
    if (count - k == 1) add<1>(field, rows + k, by + k);
    return count > 0;
  }
};

// Chains that go through their sweeps together: their states and the units that are free, as bits, sixteen a number.
template <class T> struct Chains {
  using P = pack<T>;
  const Machine<T>& m;
  const int64_t first, count;
  Matrix<T> fields;
  std::vector<uint16_t> on, free;
  std::vector<int64_t> used;  // recall: sweeps that changed the chain
  std::vector<char> going;    // and whether the last one did

  Chains(const Machine<T>& machine, int64_t from, int64_t to)
      : m(machine),
        first(from),
        count(to - from),
        fields(count, m.units),
        on(count * m.blocks),
        free(count * m.blocks),
        used(count, 0),
        going(count, 1) {
    parallel_for(
        count,
        [&](int64_t c) {
          for (int64_t b = 0; b < m.blocks; ++b) {
            const int64_t at = (first + c) * m.units + b * kLanes;
            const int lanes = int(std::min<int64_t>(kLanes, m.units - b * kLanes));
            on[c * m.blocks + b] = uint16_t(mask_bits(m.row(m.x + (first + c) * m.units, b) > T(0)));
            uint32_t held = 0;
            for (int l = 0; m.a.clamp && l < lanes; ++l) held |= uint32_t(m.a.clamp[at + l] != 0) << l;
            free[c * m.blocks + b] = uint16_t(((1u << lanes) - 1) & ~held);
          }
        },
        kSmall);
  }
  void write() const {
    parallel_for(
        count,
        [&](int64_t c) {
          for (int64_t b = 0; b < m.blocks; ++b) {
            T x[kLanes];
            const uint32_t bits = on[c * m.blocks + b];
            for (int l = 0; l < kLanes; ++l) x[l] = bits >> l & 1 ? T(1) : m.low;
            std::copy_n(x, std::min<int64_t>(kLanes, m.units - b * kLanes),
                        static_cast<T*>(m.a.out) + (first + c) * m.units + b * kLanes);
          }
        },
        kSmall);
  }

  // The fields from nothing: what they are with all units off, and the rows of the units that are on, four at a time.
  void refresh() {
    m.each_strip([&](int64_t block, auto packs) {
      constexpr int kPacks = decltype(packs)::value;
      rbm::Quads<T, kPacks> quads;
      for (int64_t low = 0; low < m.units; low += quads.kUnits) {
        quads.build([&](int unit, int p) {
          const int64_t j = low + unit;
          return j < m.units ? P(m.change) * m.row(m.weight + j * m.units, block + p) : P(T(0));
        });
        for (int64_t c = 0; c < count; ++c) {
          if (!going[c]) continue;
          T* field = fields[c] + block * kLanes;
          const T* origin = low == 0 ? m.off[0] + block * kLanes : field;
          P total[kPacks];
          for (int p = 0; p < kPacks; ++p) total[p] = load(origin + p * kLanes);
          quads.add(total, &on[c * m.blocks], m.blocks, low);
          for (int p = 0; p < kPacks; ++p) store(field + p * kLanes, total[p]);
        }
      }
    });
  }

  // Sweeps `begin` to `end` of chains `from` to `to`.
  void gibbs(int64_t from, int64_t to, int64_t begin, int64_t end) {
    const Args& a = m.a;
    Matrix<T> limits(to - from, (m.units + kWord - 1) / kWord * kWord);
    std::vector<T> in_order(a.order ? size_t(limits.step) : 0);
    const rbm::Stream stream(a.key);
    for (int64_t sweep = begin; sweep < end; ++sweep) {
      for (int64_t c = from; c < to; ++c) {
        T* limit = limits[c - from];
        thresholds(stream, uint64_t(a.first + first + c), uint64_t(sweep), m.units, a.order ? in_order.data() : limit);
        if (a.order)
          for (int64_t i = 0; i < m.units; ++i) limit[i] = in_order[a.order[i]];
      }
      for (int64_t block = 0; block < m.blocks; block += kGroup)
        for (int64_t c = from; c < to; ++c) {
          const T beta = static_cast<const T*>(a.beta)[first + c], *limit = limits[c - from] + block * kLanes;
          const P slope(a.spin ? beta + beta : beta);
          const int64_t at = c * m.blocks + block;
          m.visit(block, fields[c], &on[at], &free[at],
                  [&](int p, const P& field, uint32_t) { return mask_bits(slope * field > load(limit + p * kLanes)); });
        }
    }
  }

  void recall(int64_t from, int64_t to, int64_t begin, int64_t end) {
    std::vector<char> moved(to - from);
    for (int64_t sweep = begin; sweep < end; ++sweep) {
      std::fill(moved.begin(), moved.end(), 0);
      for (int64_t block = 0; block < m.blocks; block += kGroup)
        for (int64_t c = from; c < to; ++c) {
          const int64_t at = c * m.blocks + block;
          if (going[c])
            moved[c - from] |= m.visit(block, fields[c], &on[at], &free[at], [&](int, const P& field, uint32_t bits) {
              return mask_bits(field > T(0)) | (bits & ~mask_bits(field < T(0)));
            });
        }
      for (int64_t c = from; c < to; ++c) {
        going[c] = moved[c - from];
        if (going[c]) used[c] = sweep + 1;
      }
      if (std::find(moved.begin(), moved.end(), 1) == moved.end()) return;
    }
  }
};

template <class T> int run(const Args& a, bool recall) {
  const Machine<T> machine(a);
  // As many chains at a time as their fields have room in 16 MiB.
  const int64_t most = std::max<int64_t>(64, (int64_t(16) << 20) / int64_t(sizeof(T)) / std::max<int64_t>(1, a.units));
  for (int64_t from = 0; from < a.batch; from += most) {
    Chains<T> chains(machine, from, std::min(a.batch, from + most));
    // Groups that are few enough for several processors, and enough to share what they read.
    const int64_t size = std::clamp<int64_t>((chains.count + 3) / 4, 8, 64);
    for (int64_t begin = 0; begin < a.sweeps; begin += kRefresh) {
      if (recall && std::find(chains.going.begin(), chains.going.end(), 1) == chains.going.end()) break;
      chains.refresh();
      parallel_for((chains.count + size - 1) / size, [&](int64_t g) {
        const int64_t low = g * size, high = std::min(chains.count, low + size);
        const int64_t end = std::min(a.sweeps, begin + kRefresh);
        recall ? chains.recall(low, high, begin, end) : chains.gibbs(low, high, begin, end);
      });
    }
    chains.write();
    if (recall) std::copy(chains.used.begin(), chains.used.end(), a.used + from);
  }
  return 0;
}

}  // namespace

int boltzmann_gibbs(const Args& a) { return a.dtype == GMK_F64 ? run<double>(a, false) : run<float>(a, false); }
int hopfield_recall(const Args& a) { return a.dtype == GMK_F64 ? run<double>(a, true) : run<float>(a, true); }

}  // namespace GMK_ISA
}  // namespace gmk
