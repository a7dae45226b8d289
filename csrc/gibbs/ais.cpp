// Annealed importance sampling of restricted Boltzmann machines.
//
// A few chains pass through the schedule together. The fields of one side are brought up to date from the states of the
// other: with the rows of the units that changed, or summed anew from the rows of the units that are on, whichever are
// fewer; anew in any case every 128 steps, so that rounding errors cannot pile up. This is decided for each chain by
// its own states, and the order of additions is one for all, so how chains are grouped changes no bit. The weights lie
// in tiles that fit the first-level cache, and all chains of a group pass over a tile before the next.
#include "places.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using Args = gmk_ais_args;
constexpr int64_t kRefresh = 128;
constexpr int kProduct = 64;  // factors between 1 and 2 that float32 holds the product of, with room to spare

using rbm::exp_minus;
using rbm::kTilePacks;
using rbm::Matrix;

// The weights into one side's units: for strips of a few packs, the rows of the other side's units one after the other.
template <class T> struct Weights {
  static constexpr int kStrip = rbm::kStripPacks<T>;
  const int64_t units, others, packs = (units + kLanes - 1) / kLanes, strips = (packs + kStrip - 1) / kStrip;
  Matrix<T> rows, bias;

  Weights(int64_t n, int64_t m) : units(n), others(m), rows(m, n), bias(1, n) {}
  int64_t start(int64_t strip) const { return packs * strip / strips; }
  const T* tile(int64_t strip, int64_t row) const {
    return rows[0] + (others * start(strip) + row * (start(strip + 1) - start(strip))) * kLanes;
  }
  // weight(other, unit)
  template <class F> void fill(const F& weight) {
    for (int64_t s = 0; s < strips; ++s) {
      T* out = const_cast<T*>(tile(s, 0));
      for (int64_t row = 0; row < others; ++row)
        for (int64_t u = start(s) * kLanes; u < start(s + 1) * kLanes; ++u) *out++ = u < units ? weight(row, u) : T(0);
    }
  }
  uint32_t live(int64_t pack) const {
    return pack + 1 < packs || units % kLanes == 0 ? 0xFFFF : (1u << units % kLanes) - 1;
  }
};

// One side's fields and states, for the chains of a group.
template <class T> struct Side {
  const Weights<T>& in;
  const int64_t packs = in.packs;
  Matrix<T> fields;
  std::vector<uint16_t> on, before;

  Side(const Weights<T>& weights, int64_t chains)
      : in(weights), fields(chains, weights.units), on(chains * packs), before(chains * packs) {}
};

// The fields of `to` follow the states of `from`.
template <class T> class Follow {
  const Side<T>& from;
  Side<T>& to;
  const int64_t chains,
      tiles = std::max<int64_t>(1, (from.packs + kTilePacks - 1) / kTilePacks);  // without units, biases remain
  // For each chain and tile, the rows to add and those to take off, as places in the tile.
  std::vector<uint32_t> list;
  std::vector<int64_t> start;
  std::vector<char> anew;

  template <int Packs> GMK_OUTLINE void strip(int64_t s) const {
    const int64_t offset = to.in.start(s) * kLanes;
    for (int64_t t = 0; t < tiles; ++t) {
      const T* tile = to.in.tile(s, t * kTilePacks * kLanes);
      for (int64_t c = 0; c < chains; ++c) {
        T* field = to.fields[c] + offset;
        const T* origin = anew[c] && t == 0 ? to.in.bias[0] + offset : field;
        const int64_t* at = &start[2 * (c * tiles + t)];
        pack<T> total[Packs];
        for (int p = 0; p < Packs; ++p) total[p] = load(origin + p * kLanes);
        rbm::add_places<false>(total, tile, &list[at[0]], &list[at[1]]);
        rbm::add_places<true>(total, tile, &list[at[1]], &list[at[2]]);
        for (int p = 0; p < Packs; ++p) store(field + p * kLanes, total[p]);
      }
    }
  }

  void look(bool refresh) {
    uint32_t* out = list.data();
    int64_t* at = start.data();
    for (int64_t c = 0; c < chains; ++c) {
      const uint16_t *now = &from.on[c * from.packs], *old = &from.before[c * from.packs];
      int set = 0, changed = 0;
      for (int64_t p = 0; p < from.packs; ++p)
        set += __builtin_popcount(now[p]), changed += __builtin_popcount(now[p] ^ old[p]);
      anew[c] = refresh || changed >= set;
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t low = t * kTilePacks, high = std::min(from.packs, low + kTilePacks);
        *at++ = out - list.data();
        for (int64_t p = low; p < high; ++p)
          out = rbm::append_places(out, anew[c] ? now[p] : now[p] & ~old[p], uint32_t(p - low) * kLanes);
        *at++ = out - list.data();
        for (int64_t p = low; p < high && !anew[c]; ++p)
          out = rbm::append_places(out, old[p] & ~now[p], uint32_t(p - low) * kLanes);
      }
    }
    *at = out - list.data();
  }

 public:
  Follow(const Side<T>& a, Side<T>& b, int64_t count)
      : from(a),
        to(b),
        chains(count),
        list(count * from.packs * kLanes + kLanes),
        start(2 * count * tiles + 1),
        anew(count) {}

  void operator()(bool refresh) {
    look(refresh);
    for (int64_t s = 0; s < to.in.strips; ++s) switch (to.in.start(s + 1) - to.in.start(s)) {
        case 1: strip<1>(s); break;
        case 2: strip<2>(s); break;
        case 3: strip<3>(s); break;
        case 4: strip<4>(s); break;
      }
  }
};

template <class T> struct Machine {
  Weights<T> visible, hidden;
  Matrix<T> base;

  explicit Machine(const Args& a) : visible(a.visible, a.hidden), hidden(a.hidden, a.visible), base(1, a.visible) {
    const T *w = static_cast<const T*>(a.weight), *b = static_cast<const T*>(a.visible_bias);
    hidden.fill([&](int64_t i, int64_t j) { return w[i * a.hidden + j]; });
    visible.fill([&](int64_t j, int64_t i) { return w[i * a.hidden + j]; });
    std::copy_n(static_cast<const T*>(a.base_bias), a.visible, base[0]);
    for (int64_t i = 0; i < a.visible; ++i) visible.bias[0][i] = b[i] - base[0][i];
    std::copy_n(static_cast<const T*>(a.hidden_bias), a.hidden, hidden.bias[0]);
  }
};

template <class T> struct Anneal {
  using P = pack<T>;
  const Args& a;
  const int64_t chain, chains;  // of the group: the first, and how many
  const rbm::Stream stream;
  const Matrix<T>& base;
  Side<T> visible, hidden;
  std::vector<double> log_weight;
  std::vector<T> along;  // v . (vb - a)

  Anneal(const Args& args, const Machine<T>& m, int64_t from, int64_t to)
      : a(args),
        chain(from),
        chains(to - from),
        stream(a.key),
        base(m.base),
        visible(m.visible, chains),
        hidden(m.hidden, chains),
        log_weight(chains),
        along(chains) {}

  // Calls take(pack, words) for each pack of a side, with the words of its sixteen units.
  template <class F> GMK_INLINE void each_pack(const Side<T>& side, int64_t c, int64_t half_step, const F& take) const {
    for (int64_t p = 0; p < side.packs; p += 4) {
      uint32_t word[rbm::kWord];
      stream.draw(uint64_t(a.first + chain + c), uint64_t(half_step), p / 4, word);
      for (int64_t q = p; q < std::min(side.packs, p + 4); ++q) take(q, load(word + (q - p) * kLanes));
    }
  }

  void draw_visible(int64_t c, T beta, int64_t half_step) {
    uint16_t* on = &visible.on[c * visible.packs];
    std::copy_n(on, visible.packs, &visible.before[c * visible.packs]);
    const T* field = visible.fields[c];
    each_pack(visible, c, half_step, [&](int64_t p, const u32& word) {
      const P x = fma(P(beta), load(field + p * kLanes), load(base[0] + p * kLanes));
      on[p] = uint16_t(rbm::on(x, word) & visible.in.live(p));
    });
  }
  void sum_along() {
    for (int64_t c = 0; c < chains; ++c) {
      const uint16_t* on = &visible.on[c * visible.packs];
      P total(T(0));
      for (int64_t p = 0; p < visible.packs; ++p) {
        T x[kLanes];
        for (int l = 0; l < kLanes; ++l) x[l] = on[p] >> l & 1 ? visible.in.bias[0][p * kLanes + l] : T(0);
        total += load(x);
      }
      along[c] = fold(total);
    }
  }

  // The logarithm of p*_now / p*_old at the visible states, and hidden states drawn at `now` unless it is the end.
  double draw_hidden(int64_t c, T old, T now, int64_t half_step, bool end) {
    uint16_t* on = &hidden.on[c * hidden.packs];
    std::copy_n(on, hidden.packs, &hidden.before[c * hidden.packs]);
    const T* field = hidden.fields[c];
    // softplus(x) = max(x, 0) + log(1 + exp(-|x|)); of the logarithms, only that of a product is taken.
    P positive(T(0)), above(T(1)), below(T(1)), logs(T(0));
    int factors = 0;
    const auto compare = [&](int64_t p) {
      const P f = load(field + p * kLanes);
      positive += max(f, P(T(0)));
      above = above * (exp_minus(P(now) * f) + T(1));
      below = below * (exp_minus(P(old) * f) + T(1));
      if (++factors == kProduct) logs += log(above / below), above = below = P(T(1)), factors = 0;
      return P(now) * f;
    };
    if (end)
      for (int64_t p = 0; p < hidden.packs; ++p) compare(p);
    else
      each_pack(hidden, c, half_step,
                [&](int64_t p, const u32& word) { on[p] = uint16_t(rbm::on(compare(p), word) & hidden.in.live(p)); });
    logs += log(above / below);
    return double(now - old) * (double(along[c]) + double(fold(positive))) + double(fold(logs));
  }

  void run() {
    const T* betas = static_cast<const T*>(a.betas);
    const auto beta = [&](int64_t k) { return betas[a.start ? a.steps - 1 - k : k]; };
    for (int64_t c = 0; c < chains; ++c) {
      if (!a.start) draw_visible(c, T(0), 0);
      for (int64_t i = 0; a.start && i < a.visible; ++i)
        if (static_cast<const T*>(a.start)[(chain + c) * a.visible + i] > 0)
          visible.on[c * visible.packs + i / kLanes] |= uint16_t(1u << i % kLanes);
    }
    Follow<T> up(visible, hidden, chains), down(hidden, visible, chains);
    for (int64_t step = 1; step < a.steps; ++step) {
      const bool end = step + 1 == a.steps, refresh = step % kRefresh == 1;
      const T old = beta(step - 1), now = beta(step);
      sum_along();
      up(refresh);
      for (int64_t c = 0; c < chains; ++c) log_weight[c] += draw_hidden(c, old, now, 2 * step - 1, end);
      if (end) break;
      down(refresh);
      for (int64_t c = 0; c < chains; ++c) draw_visible(c, now, 2 * step);
    }
    for (int64_t c = 0; c < chains; ++c)
      static_cast<T*>(a.out)[chain + c] = T(a.log_base + (a.start ? -log_weight[c] : log_weight[c]));
  }
};

template <class T> int run(const Args& a) {
  const Machine<T> machine(a);
  const int64_t size = std::clamp<int64_t>((a.chains + 1) / 2, 8, 64);
  parallel_for((a.chains + size - 1) / size,
               [&](int64_t t) { Anneal<T>(a, machine, t * size, std::min(a.chains, (t + 1) * size)).run(); });
  return 0;
}

}  // namespace

int ais_log_z(const Args& a) { return a.dtype == GMK_F64 ? run<double>(a) : run<float>(a); }

}  // namespace GMK_ISA
}  // namespace gmk
