// Stacks of planar flows. Sixteen samples ride in the lanes of a pack; a task is a fixed number of such groups, so sums
// over the batch run in one order. See planar.h for the mathematics.
#include "planar.h"

#include <vector>

#include "gmk/convert.h"
#include "gmk/parallel.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using Args = gmk_planar_args;
constexpr int64_t kGroups = 16;  // of 16 samples in a task
// Groups that go through a flow together. One group alone waits for each tanh, flow after flow; four in a row keep the
// processor busy.
constexpr int64_t kTogether = 4;

template <class T> std::vector<T> values(const void* p, int32_t dtype, int64_t n) {
  std::vector<T> v(n);
  if (p) read(v.data(), p, dtype, 0, 1, n);
  return v;
}

GMK_INLINE double make(double v, double, double*) { return v; }
GMK_INLINE Tangent make(double v, double d, Tangent*) { return {v, d}; }
template <class T> GMK_INLINE pack<T> spread(double s, pack<T>*) { return pack<T>(T(s)); }
template <class T> GMK_INLINE dual<pack<T>> spread(Tangent s, dual<pack<T>>*) {
  return {pack<T>(T(s.v)), pack<T>(T(s.d))};
}
template <class T> GMK_INLINE double gather(const pack<T>& a, double*) { return double(fold(a)); }
template <class T> GMK_INLINE Tangent gather(const dual<pack<T>>& a, Tangent*) {
  return {double(fold(a.v)), double(fold(a.d))};
}

// N is what samples are made of, S what parameters are made of.
template <class T, class N, class S> struct Planar {
  const Args& a;
  const int64_t dim, flows;
  std::vector<S> u, w, b;
  std::vector<Direction<S>> directions;
  std::vector<N> lanes;  // u_hat and w of every flow, in all lanes
  std::vector<Flow<N>> stack;

  explicit Planar(const Args& args) : a(args), dim(args.dim), flows(args.flows) {
    const auto load = [&](const void* p, const void* v, int64_t n) {
      const auto x = values<double>(p, a.dtype, n), dx = values<double>(v, a.dtype, n);
      std::vector<S> out(n);
      for (int64_t i = 0; i < n; ++i) out[i] = make(x[i], dx[i], static_cast<S*>(nullptr));
      return out;
    };
    u = load(a.u, a.v_u, flows * dim);
    w = load(a.w, a.v_w, flows * dim);
    b = load(a.b, a.v_b, flows);
    lanes.resize(2 * flows * dim);
    for (int64_t k = 0; k < flows; ++k) {
      directions.emplace_back(&u[k * dim], &w[k * dim], dim);
      const Direction<S>& direction = directions.back();
      N *hat = &lanes[2 * k * dim], *normal = hat + dim;
      const auto wide = [](const S& s) { return spread(s, static_cast<N*>(nullptr)); };
      for (int64_t d = 0; d < dim; ++d) {
        hat[d] = wide(u[k * dim + d] + direction.shift * w[k * dim + d]);
        normal[d] = wide(w[k * dim + d]);
      }
      stack.push_back({hat, normal, wide(b[k]), wide(direction.gain)});
    }
  }

  int64_t tasks() const { return (a.batch + kGroups * kLanes - 1) / (kGroups * kLanes); }

  // Calls f(first, groups) for each bundle of groups of a task, whose samples begin at first.
  template <class F> void each_bundle(int64_t task, const F& f) const {
    constexpr int64_t bundle = kTogether * kLanes;
    for (int64_t first = task * kGroups * kLanes; first < std::min(a.batch, (task + 1) * kGroups * kLanes);
         first += bundle)
      f(first, std::min<int64_t>(kTogether, (a.batch - first + kLanes - 1) / kLanes));
  }
  // How many of the sixteen samples from `first` on exist.
  int live(int64_t first) const { return int(std::min<int64_t>(kLanes, a.batch - first)); }

  // Samples to lanes and back: column d of the rows first .. first + 16. Lanes beyond the batch are zero.
  pack<T> column(const void* p, int64_t first, int64_t d) const {
    T x[kLanes] = {};
    if (p) read(x, p, a.dtype, first * dim + d, dim, live(first));
    return load(x);
  }
  void set_column(void* p, int64_t first, int64_t d, const pack<T>& value) const {
    T x[kLanes];
    store(x, value);
    for (int l = 0; l < live(first); ++l) write(p, a.dtype, (first + l) * dim + d, x + l, 1);
  }
};

// D is the dimension, or 0 where it is not known before.
template <class T, int D> void forward(const Args& a) {
  using P = pack<T>;
  const Planar<T, P, double> planar(a);
  const int64_t dim = D ? D : a.dim;
  parallel_for(planar.tasks(), [&](int64_t task) {
    std::vector<P> z(kTogether * dim);
    planar.each_bundle(task, [&](int64_t first, int64_t groups) {
      P logdet[kTogether], h;
      for (int64_t j = 0; j < groups; ++j) {
        logdet[j] = P(T(0));
        for (int64_t d = 0; d < dim; ++d) z[j * dim + d] = planar.column(a.z, first + j * kLanes, d);
      }
      for (const auto& flow : planar.stack)
        for (int64_t j = 0; j < groups; ++j) logdet[j] += log(planar_forward(&z[j * dim], flow, dim, h));
      for (int64_t j = 0; j < groups; ++j) {
        const int64_t at = first + j * kLanes;
        for (int64_t d = 0; d < dim; ++d) planar.set_column(a.out_z, at, d, z[j * dim + d]);
        store_n(static_cast<T*>(a.out_logdet) + at, logdet[j], planar.live(at));
      }
    });
  });
}

GMK_INLINE double first_order(double s) { return s; }
GMK_INLINE double first_order(Tangent s) { return s.d; }
template <class T> GMK_INLINE pack<T> first_order(const pack<T>& a) { return a; }
template <class T> GMK_INLINE pack<T> first_order(const dual<pack<T>>& a) { return a.d; }

template <class T> GMK_INLINE void sample(pack<T>& out, const pack<T>& v, const pack<T>&) { out = v; }
template <class T> GMK_INLINE void sample(dual<pack<T>>& out, const pack<T>& v, const pack<T>& d) { out = {v, d}; }

// The gradient of <grad_z, z_K> + <grad_logdet, logdet>; on dual numbers its tangent along the cotangents, together
// with the tangents of z_K and logdet.
template <class T, class N, class S, int D> void backward(const Args& a) {
  using P = pack<T>;
  // Only the tangent wants z_K and logdet once more.
  constexpr bool tangent = std::is_same_v<S, Tangent>;
  const Planar<T, N, S> planar(a);
  const int64_t dim = D ? D : a.dim, flows = a.flows, width = 2 * dim + 2;  // gradients by u_hat, w, b, gain
  std::vector<S> partial(planar.tasks() * flows * width);
  parallel_for(planar.tasks(), [&](int64_t task) {
    const int64_t path = (flows + 1) * dim;  // of one group: z before each flow, and after the last
    std::vector<N> z(kTogether * path), h(kTogether * flows), g(kTogether * dim), one(width);
    std::vector<N> sums(flows * width, N(P(T(0))));
    planar.each_bundle(task, [&](int64_t first, int64_t groups) {
      N logdet[kTogether], l[kTogether];
      for (int64_t j = 0; j < groups; ++j) {
        const int64_t at = first + j * kLanes;
        logdet[j] = N(P(T(0)));
        l[j] = N(load_n(static_cast<const T*>(a.grad_logdet) + at, planar.live(at)));
        for (int64_t d = 0; d < dim; ++d) {
          sample(z[j * path + d], planar.column(a.z, at, d), planar.column(a.v_z, at, d));
          g[j * dim + d] = N(planar.column(a.grad_z, at, d));
        }
      }
      for (int64_t k = 0; k < flows; ++k)
        for (int64_t j = 0; j < groups; ++j) {
          N* next = &z[j * path + (k + 1) * dim];
          std::copy(next - dim, next, next);
          const N det = planar_forward(next, planar.stack[k], dim, h[j * flows + k]);
          if constexpr (tangent) logdet[j] += log(det);
        }
      for (int64_t k = flows; k-- > 0;)
        for (int64_t j = 0; j < groups; ++j) {
          N* s = &sums[k * width];
          const int n = planar.live(first + j * kLanes);
          // Lanes beyond the batch hold z = 0 and zero cotangents: they add nothing, but must not add NaN either.
          if (n < kLanes) std::fill(one.begin(), one.end(), N(P(T(0))));
          N* to = n < kLanes ? one.data() : s;
          planar_backward(&z[j * path + k * dim], h[j * flows + k], &g[j * dim], l[j], planar.stack[k],
                          FlowGradient<N>{to, to + dim, to + 2 * dim, to + 2 * dim + 1}, dim);
          if (n < kLanes) {
            const auto live = iota<typename native<T>::mask>() < n;
            for (int64_t i = 0; i < width; ++i) s[i] += pick(live, one[i], N(P(T(0))));
          }
        }
      for (int64_t j = 0; j < groups; ++j) {
        const int64_t at = first + j * kLanes;
        for (int64_t d = 0; d < dim; ++d) planar.set_column(a.out_z, at, d, first_order(g[j * dim + d]));
        if constexpr (tangent) {
          for (int64_t d = 0; d < dim; ++d)
            planar.set_column(a.out_grad_z, at, d, first_order(z[j * path + flows * dim + d]));
          store_n(static_cast<T*>(a.out_logdet) + at, first_order(logdet[j]), planar.live(at));
        }
      }
    });
    for (int64_t i = 0; i < flows * width; ++i)
      partial[task * flows * width + i] = gather(sums[i], static_cast<S*>(nullptr));
  });
  std::vector<S> total(flows * width), grad_u(dim), grad_w(dim);
  for (int64_t task = 0; task < planar.tasks(); ++task)
    for (int64_t i = 0; i < flows * width; ++i) total[i] += partial[task * flows * width + i];
  for (int64_t k = 0; k < flows; ++k) {
    const S* s = &total[k * width];
    std::copy(s + dim, s + 2 * dim, grad_w.begin());
    planar.directions[k].pull_back(&planar.u[k * dim], &planar.w[k * dim], s, s[2 * dim + 1], grad_u.data(),
                                   grad_w.data(), dim);
    for (int64_t d = 0; d < dim; ++d) {
      const double du = first_order(grad_u[d]), dw = first_order(grad_w[d]);
      write(a.out_u, a.dtype, k * dim + d, &du, 1);
      write(a.out_w, a.dtype, k * dim + d, &dw, 1);
    }
    const double db = first_order(s[2 * dim]);
    write(a.out_b, a.dtype, k, &db, 1);
  }
}

// Densities in the plane are what planar flows are drawn for: known, their two columns stay in registers.
constexpr int kPlane = 2;

}  // namespace

int planar_flow(const Args& a) {
  a.dtype == GMK_F64 ? forward<double, 0>(a) : a.dim == kPlane ? forward<float, kPlane>(a) : forward<float, 0>(a);
  return 0;
}
int planar_flow_backward(const Args& a) {
  a.dtype == GMK_F64 ? backward<double, f64, double, 0>(a)
  : a.dim == kPlane  ? backward<float, f32, double, kPlane>(a)
                     : backward<float, f32, double, 0>(a);
  return 0;
}
int planar_flow_double_backward(const Args& a) {
  a.dtype == GMK_F64 ? backward<double, dual<f64>, Tangent, 0>(a) : backward<float, dual<f32>, Tangent, 0>(a);
  return 0;
}

}  // namespace GMK_ISA
}  // namespace gmk
