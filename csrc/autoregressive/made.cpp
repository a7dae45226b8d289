// The inverse of a masked affine autoregressive layer, and its gradient: every unmasked weight meets every sample once.
//
// A strip of samples lies in lanes. The inverse takes the steps in ascending order; the gradient solves the transposed
// triangular system in descending order, in which a unit's gradient is complete once all units of higher degree have
// theirs. Steps go in panels: before its first step, sums over all that came before are made for all units of the
// panel, in tiles.
#include "made.h"

#include "gmk/scale_map.h"

namespace gmk {
namespace GMK_ISA {
namespace made {
namespace {

template <class T> struct Affine {
  // x = (z - t) / exp(a), and a is taken from logdet
  void (*undo)(int packs, T c, const T* z, const T* s, const T* t, T* x, T* logdet);
  // u = (g + pulled) / exp(a); s, t become the cotangents -(u x exp(a) + g_logdet) da/ds and -u
  void (*pull)(int packs, T c, const T* g, const T* pulled, const T* g_logdet, const T* x, T* u, T* s, T* t);
};

template <class T, int Map> struct Mapped {
  static void undo(int packs, T c, const T* z, const T* s, const T* t, T* x, T* logdet) {
    for (int i = 0; i < packs * kLanes; i += kLanes) {
      const Scale<pack<T>> k = scale<Map>(load(s + i), c, true);
      store(x + i, (load(z + i) - load(t + i)) * k.factor);
      store(logdet + i, load(logdet + i) - k.a);
    }
  }
  static void pull(int packs, T c, const T* g, const T* pulled, const T* g_logdet, const T* x, T* u, T* s, T* t) {
    for (int i = 0; i < packs * kLanes; i += kLanes) {
      const Scale<pack<T>> k = scale<Map>(load(s + i), c, true);
      const pack<T> whole = load(g + i) + load(pulled + i);  // u exp(a)
      const pack<T> own = whole * k.factor;
      store(u + i, own);
      store(s + i, -(fma(whole, load(x + i), load(g_logdet + i)) * k.slope));
      store(t + i, -own);
    }
  }
};

template <class T> Affine<T> affine(int32_t map) {
#define GMK_MAPPED(MAP) \
  case MAP: return {Mapped<T, MAP>::undo, Mapped<T, MAP>::pull};
  switch (map) {
    GMK_MAPPED(GMK_EXP)
    GMK_MAPPED(GMK_TANH)
    GMK_MAPPED(GMK_ATAN)
    GMK_MAPPED(GMK_SIGMOID)
    GMK_MAPPED(GMK_RECIPROCAL_SIGMOID)
    GMK_MAPPED(GMK_SOFTPLUS)
    default: GMK_MAPPED(GMK_SOFT_CLIP)
  }
#undef GMK_MAPPED
}

// to = act(from) over so many packs
template <class T> void activate(const Args& a, T* to, const T* from, int64_t packs) {
  for (T* end = to + packs * kLanes; to < end; to += kLanes, from += kLanes)
    store(to, a.activation == GMK_MADE_TANH ? tanh(load(from)) : max(pack<T>(T(0)), load(from)));
}

// One strip of V packs.
template <class T, int V> struct Strip {
  static constexpr int64_t kWidth = V * kLanes;
  const Network<T>& net;
  const Args& a;
  const Affine<T> map;
  const T c;
  std::vector<T> memory;
  T *x, *output;             // features; log-scales and shifts
  std::vector<T*> sum, out;  // of each link but the last: sums, and what the next link takes

  explicit Strip(const Network<T>& n)
      : net(n), a(n.a), map(affine<T>(a.scale_map)), c(scale_constant<T>(a.scale_map, a.clamp)) {
    const int64_t D = a.features, hidden = n.hidden();
    memory.resize((3 * D + hidden * (a.residual ? 2 : 1)) * kWidth);
    x = memory.data();
    output = x + D * kWidth;
    T* next = output + 2 * D * kWidth;
    for (int m = 0; m + 1 < net.count(); ++m, next += (a.residual ? 2 : 1) * net.links[m - 1].rows * kWidth) {
      sum.push_back(next);
      out.push_back(next + (a.residual ? net.links[m].rows * kWidth : 0));
    }
    sum.push_back(output);
  }

  T* source(int m) const { return m ? out[m - 1] : x; }

  void begin(const T* condition) {
    for (int m = 0; m < net.count(); ++m) {
      const Link<T>& link = net.links[m];
      for (int64_t r = 0; r < link.rows; ++r) {
        T* to = sum[m] + r * kWidth;
        std::fill_n(to, kWidth, link.bias[r]);
        if (m == 0 && condition)
          for (int64_t b = 0; b < kWidth; ++b) to[b] += condition[r * kWidth + b];
      }
    }
  }

  // Adds columns [from, to) to the sums of `rows` rows from `first`.
  void add(int m, int64_t first, int64_t rows, int64_t from, int64_t to) const {
    const Link<T>& link = net.links[m];
    product<T, V>(sum[m] + first * kWidth, rows, View<T>{link.weight, link.columns, 1}.from(first, from),
                  source(m) + from * kWidth, kWidth, to - from);
  }

  // Rows whose sums are complete.
  void finish(int m, int64_t first, int64_t rows) const {
    const Link<T>& link = net.links[m];
    if (link.over >= 0)
      for (T *to = sum[m] + first * kWidth, *end = to + rows * kWidth, *base = sum[link.over] + first * kWidth;
           to < end; to += kLanes, base += kLanes)
        store(to, load(base) + load(to));
    if (link.active)
      activate(a, out[m] + first * kWidth, sum[m] + first * kWidth, rows * V);
    else if (out[m] != sum[m])
      std::copy_n(sum[m] + first * kWidth, rows * kWidth, out[m] + first * kWidth);
  }

  // z -> x, all steps; logdet is added to.
  void invert(const T* z, T* logdet) const {
    const int64_t D = a.features;
    for (int64_t p0 = 0; p0 < D; p0 += net.panel) {
      const int64_t p1 = std::min(D, p0 + net.panel);
      for (int m = 0; m < net.count(); ++m) {
        const Link<T>& link = net.links[m];
        const int64_t known = net.start(link.from, p0);
        if (link.output) {
          add(m, p0, p1 - p0, 0, known);
          add(m, D + p0, p1 - p0, 0, known);
        } else {
          const int64_t first = net.start(link.to, p0);
          add(m, first, net.start(link.to, p1) - first, 0, known);
        }
      }
      for (int64_t p = p0; p < p1; ++p) {
        for (int m = 0; m < net.count(); ++m) {
          const Link<T>& link = net.links[m];
          const int64_t known = net.start(link.from, p0), now = net.start(link.from, p + 1);
          if (link.output) {
            add(m, p, 1, known, now);
            add(m, D + p, 1, known, now);
            const int64_t at = p * kWidth;
            map.undo(V, c, z + at, output + at, output + D * kWidth + at, x + at, logdet);
          } else {
            const int64_t first = net.start(link.to, p), rows = net.start(link.to, p + 1) - first;
            add(m, first, rows, known, now);
            finish(m, first, rows);
          }
        }
      }
    }
  }

  // The network at x.
  void evaluate() const {
    for (int m = 0; m < net.count(); ++m) {
      const Link<T>& link = net.links[m];
      for (int64_t r = 0; r < link.rows; r += kRows) {
        const int64_t rows = std::min<int64_t>(kRows, link.rows - r);
        const int64_t all = *std::min_element(&link.seen[r], &link.seen[r] + rows);
        add(m, r, rows, 0, all);
        for (int64_t i = r; i < r + rows; ++i) add(m, i, 1, all, link.seen[i]);
      }
      if (!link.output) finish(m, 0, link.rows);
    }
  }
};

// The gradient of a strip: `by` holds the gradient of what each link makes, and `pulled` that of what it takes.
template <class T, int V> struct Pull {
  static constexpr int64_t kWidth = V * kLanes;
  const Strip<T, V>& at;
  const Network<T>& net;
  std::vector<T> memory;
  std::vector<T*> by, pulled;

  explicit Pull(const Strip<T, V>& strip) : at(strip), net(strip.net) {
    int64_t total = 0;
    for (const Link<T>& link : net.links) total += (link.rows + link.columns) * kWidth;
    memory.assign(total, T(0));
    T* next = memory.data();
    for (const Link<T>& link : net.links) {
      by.push_back(next);
      pulled.push_back(next += link.rows * kWidth);
      next += link.columns * kWidth;
    }
  }

  // Adds what rows [from, to) pull from `count` columns from `first` on.
  void add(int m, int64_t first, int64_t count, int64_t from, int64_t to) const {
    const Link<T>& link = net.links[m];
    product<T, V>(pulled[m] + first * kWidth, count, View<T>{link.weight, 1, link.columns}.from(first, from),
                  by[m] + from * kWidth, kWidth, to - from);
  }

  void finish(int m, int64_t first, int64_t rows) const {
    const Link<T>& link = net.links[m];
    const bool tanh = net.a.activation == GMK_MADE_TANH;
    const int block = m + 2 < net.count() && net.links[m + 2].over == m ? m + 2 : -1;
    for (int64_t i = first * kWidth; i < (first + rows) * kWidth; i += kLanes) {
      pack<T> grad = load(pulled[m + 1] + i);
      if (link.active) {
        const pack<T> y = load(at.out[m] + i), zero(T(0));
        grad = tanh ? grad * (pack<T>(T(1)) - y * y) : select<T>(y > zero, grad, zero);
      }
      if (block >= 0) grad = grad + load(by[block] + i);
      store(by[m] + i, grad);
    }
  }

  void solve(const T* g, const T* g_logdet, T* u) const {
    const int64_t D = net.a.features, last = net.count() - 1;
    for (int64_t p1 = D; p1 > 0; p1 -= net.panel) {
      const int64_t p0 = std::max<int64_t>(0, p1 - net.panel);
      for (int m = int(last); m >= 0; --m) {
        const Link<T>& link = net.links[m];
        const int64_t first = m ? net.start(link.from, p0) : p0, end = m ? net.start(link.from, p1) : p1;
        if (link.output) {
          add(m, first, end - first, p1, D);
          add(m, first, end - first, D + p1, 2 * D);
        } else {
          add(m, first, end - first, net.start(link.to, p1), link.rows);
        }
      }
      for (int64_t p = p1 - 1; p >= p0; --p) {
        const Link<T>& input = net.links[0];
        add(0, p, 1, net.start(input.to, p + 1), net.start(input.to, p1));
        T *s = by[last] + p * kWidth, *t = by[last] + (D + p) * kWidth;
        std::copy_n(at.output + p * kWidth, kWidth, s);
        at.map.pull(V, at.c, g + p * kWidth, pulled[0] + p * kWidth, g_logdet, at.x + p * kWidth, u + p * kWidth, s, t);
        for (int m = int(last); m > 0; --m) {
          const Link<T>& link = net.links[m];
          const int64_t first = net.start(link.from, p), count = net.start(link.from, p + 1) - first;
          if (link.output) {
            add(m, first, count, p, p1);
            add(m, first, count, D + p, D + p1);
          } else {
            add(m, first, count, net.start(link.to, p), net.start(link.to, p1));
          }
          finish(m - 1, first, count);
        }
      }
    }
  }
};

// body(strip's number of packs as a constant, first sample, samples)
template <class T, class Body> void strips(const Args& a, const Body& body) {
  const Strips all(a.batch, kPacks<T>);
  parallel_for(all.count(), [&](int64_t s) {
    with_packs<T>(all.width(s), [&](auto packs) { body(packs, all.first(s), all.samples(s)); });
  });
}

template <class T> const T* input(const void* data, int64_t first, int64_t features) {
  return data ? static_cast<const T*>(data) + first * features : nullptr;
}

template <class T> void inverse(const Args& a) {
  const Network<T> net(a);
  const int64_t D = a.features;
  strips<T>(a, [&](auto packs, int64_t first, int64_t samples) {
    constexpr int V = decltype(packs)::value;
    constexpr int64_t width = V * kLanes;
    Strip<T, V> strip(net);
    std::vector<T> z(D * width), condition(a.condition ? a.widths[0] * width : 0), logdet(width, T(0));
    to_lanes(z.data(), width, input<T>(a.x, first, D), D, 1, samples, D);
    if (a.condition)
      to_lanes(condition.data(), width, input<T>(a.condition, first, a.widths[0]), a.widths[0], 1, samples,
               a.widths[0]);
    strip.begin(a.condition ? condition.data() : nullptr);
    strip.invert(z.data(), logdet.data());
    from_lanes(static_cast<T*>(a.out_x) + first * D, D, strip.x, width, samples, D);
    std::copy_n(logdet.data(), samples, static_cast<T*>(a.out_logdet) + first);
  });
}

inline int64_t pitch(int64_t features) { return ceil_div(features, kLanes) * kLanes; }

template <class T> void gradient(const Args& a) {
  const Network<T> net(a);
  const int64_t D = a.features;
  // For the products over the batch: what each link took, and the gradient of what it made, sample after sample.
  std::vector<std::vector<T>> taken, made;
  for (const Link<T>& link : net.links) {
    taken.emplace_back(a.batch * pitch(link.columns), T(0));
    made.emplace_back(a.batch * link.rows);
  }
  strips<T>(a, [&](auto packs, int64_t first, int64_t samples) {
    constexpr int V = decltype(packs)::value;
    constexpr int64_t width = V * kLanes;
    Strip<T, V> strip(net);
    std::vector<T> g(D * width), u(D * width), condition(a.condition ? a.widths[0] * width : 0), g_logdet(width, T(0));
    to_lanes(strip.x, width, input<T>(a.x, first, D), D, 1, samples, D);
    to_lanes(g.data(), width, input<T>(a.grad_x, first, D), D, 1, samples, D);
    std::copy_n(input<T>(a.grad_logdet, first, 1), samples, g_logdet.data());
    if (a.condition)
      to_lanes(condition.data(), width, input<T>(a.condition, first, a.widths[0]), a.widths[0], 1, samples,
               a.widths[0]);
    strip.begin(a.condition ? condition.data() : nullptr);
    strip.evaluate();
    Pull<T, V> pull(strip);
    pull.solve(g.data(), g_logdet.data(), u.data());
    from_lanes(static_cast<T*>(a.out_x) + first * D, D, u.data(), width, samples, D);
    for (int m = 0; m < net.count(); ++m) {
      const Link<T>& link = net.links[m];
      const int64_t step = pitch(link.columns);
      from_lanes(taken[m].data() + first * step, step, strip.source(m), width, samples, link.columns);
      from_lanes(made[m].data() + first * link.rows, link.rows, pull.by[m], width, samples, link.rows);
    }
  });
  for (int m = 0; m < net.count(); ++m) {
    const Link<T>& link = net.links[m];
    T* weight = static_cast<T*>(a.out_parameters) + link.offset;
    weight_gradient(weight, link.rows, link.columns, made[m].data(), link.rows, taken[m].data(), pitch(link.columns),
                    a.batch, link.seen.data());
    bias_gradient(weight + link.rows * link.columns, link.rows, made[m].data(), link.rows, a.batch);
  }
  std::copy(made[0].begin(), made[0].end(), static_cast<T*>(a.out_condition));
}

}  // namespace
}  // namespace made

int made_inverse(const gmk_made_args& a) {
  a.dtype == GMK_F64 ? made::inverse<double>(a) : made::inverse<float>(a);
  return 0;
}

int made_inverse_backward(const gmk_made_args& a) {
  a.dtype == GMK_F64 ? made::gradient<double>(a) : made::gradient<float>(a);
  return 0;
}

}  // namespace GMK_ISA
}  // namespace gmk
