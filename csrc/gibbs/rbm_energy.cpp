// The hidden units' part of the free energy, sum_j softplus(field_j), and its derivatives: see rows.h for the order of
// the sums.
#include "gibbs.h"
#include "gmk/rows.h"

namespace gmk {
namespace GMK_ISA {
namespace {

gmk_rows operand(const gmk_rbm_softplus_args& a, const void* data) {
  return {const_cast<void*>(data), a.dtype, a.units, 0, 1};
}

// Calls row(worker, b) with the sample's blocks of field and, if there, v.
template <class T, class F> int blocks(const gmk_rbm_softplus_args& a, const F& row) {
  const gmk_sizes sizes{a.batch, 1, a.units};
  each_row(sizes, 16384, [&] {
    return [&, field = Input<T>(operand(a, a.field), sizes), v = Input<T>(operand(a, a.v), sizes),
            out = Output<T>(a.out_field, a.dtype)](int64_t b, int64_t units) mutable {
      RowSum<T> sum;
      const T grad = a.grad ? static_cast<const T*>(a.grad)[b] : T(0);
      for (int64_t i = 0; i < units; i += kBlock) {
        const int n = int(std::min<int64_t>(kBlock, units - i));
        const T *f = field.block(b, i, n), *across = a.v ? v.block(b, i, n) : nullptr;
        T* o = a.out_field ? out.block(b * units + i) : nullptr;
        each_pack(n, [&](int p, int m) { row(sum, grad, f, across, o, p, m); });
        if (o) out.commit(b * units + i, n);
      }
      if (a.out) static_cast<T*>(a.out)[b] = sum.total();
    };
  });
  return 0;
}

template <class T> int forward(const gmk_rbm_softplus_args& a) {
  return blocks<T>(
      a, [](RowSum<T>& sum, T, const T* f, const T*, T*, int p, int m) { sum.add(p, m, softplus(get(f, p, m))); });
}
template <class T> int backward(const gmk_rbm_softplus_args& a) {
  return blocks<T>(a, [](RowSum<T>&, T grad, const T* f, const T*, T* o, int p, int m) {
    put(o, p, m, grad * sigmoid(get(f, p, m)));
  });
}
template <class T> int double_backward(const gmk_rbm_softplus_args& a) {
  return blocks<T>(a, [](RowSum<T>& sum, T grad, const T* f, const T* v, T* o, int p, int m) {
    const pack<T> along = get(v, p, m), x = get(f, p, m);
    const pack<T> likely = sigmoid(x);
    sum.add(p, m, along * likely);
    put(o, p, m, grad * along * (likely * sigmoid(-x)));
  });
}

template <class F64, class F32> int by_dtype(const gmk_rbm_softplus_args& a, const F64& wide, const F32& narrow) {
  return a.dtype == GMK_F64 ? wide(a) : narrow(a);
}

}  // namespace

int rbm_softplus_sum(const gmk_rbm_softplus_args& a) { return by_dtype(a, forward<double>, forward<float>); }
int rbm_softplus_sum_backward(const gmk_rbm_softplus_args& a) { return by_dtype(a, backward<double>, backward<float>); }
int rbm_softplus_sum_double_backward(const gmk_rbm_softplus_args& a) {
  return by_dtype(a, double_backward<double>, double_backward<float>);
}

}  // namespace GMK_ISA
}  // namespace gmk
