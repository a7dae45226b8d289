// The gate tanh(a) sigmoid(b) of the two halves of the channels, and its derivatives.
#include <vector>

#include "gmk/rows.h"
#include "gmk/vmath.h"

namespace gmk {
namespace GMK_ISA {
namespace {

using Args = gmk_gate_args;
constexpr int64_t kTask = 4096;  // elements

// An operand's place in the blocks of a worker.
enum { kA, kB, kCondA, kCondB, kGrad, kAlongA, kAlongB, kOperands };

template <class T> struct Gate {
  using P = pack<T>;

  // Calls element(operands, results) for every pack; results go to the first outputs of the call.
  template <int Results, class F>
  static void each(const Args& a, const gmk_rows* const (&outputs)[Results], const F& element) {
    const gmk_rows* operands[kOperands] = {&a.a, &a.b, &a.cond_a, &a.cond_b, &a.grad, &a.v_a, &a.v_b};
    each_row(a.sizes, kTask, [&] {
      std::vector<Input<T>> inputs;
      for (const gmk_rows* rows : operands) inputs.emplace_back(*rows, a.sizes);
      std::vector<Output<T>> results;
      for (const gmk_rows* rows : outputs) results.emplace_back(rows->data, rows->dtype);
      return [&, inputs, results](int64_t b, int64_t features) mutable {
        // Outputs step evenly over whole samples, or only within a piece of them.
        const int64_t length = outputs[0]->outer == a.sizes.inner ? features : a.sizes.inner;
        for (int64_t begin = 0, o = 0; begin < features; begin += length, ++o)
          for (int64_t i = 0; i < length; i += kBlock) {
            const int n = int(std::min<int64_t>(kBlock, length - i));
            const T* from[kOperands];
            for (int k = 0; k < kOperands; ++k)
              from[k] = operands[k]->data ? inputs[size_t(k)].block(b, begin + i, n) : nullptr;
            T* to[Results];
            int64_t place[Results];
            for (int r = 0; r < Results; ++r) {
              place[r] = b * outputs[r]->batch + o * outputs[r]->outer + i;
              to[r] = results[size_t(r)].block(place[r]);
            }
            each_pack(n, [&](int p, int lanes) {
              P in[kOperands];
              for (int k = 0; k < kOperands; ++k)
                if (from[k]) in[k] = get(from[k], p, lanes);
              if (from[kCondA]) in[kA] += in[kCondA], in[kB] += in[kCondB];
              P out[Results];
              element(in, out);
              for (int r = 0; r < Results; ++r) put(to[r], p, lanes, out[r]);
            });
            for (int r = 0; r < Results; ++r) results[size_t(r)].commit(place[r], n);
          }
      };
    });
  }

  static void forward(const Args& a) {
    each<1>(a, {&a.out}, [](const P* in, P* out) { out[0] = tanh(in[kA]) * sigmoid(in[kB]); });
  }

  static void backward(const Args& a) {
    each<2>(a, {&a.out_a, &a.out_b}, [](const P* in, P* out) {
      const P t = tanh(in[kA]), s = sigmoid(in[kB]);
      out[0] = in[kGrad] * (s * fma(-t, t, T(1)));
      out[1] = in[kGrad] * (t * fma(-s, s, s));
    });
  }

  // Of <v_a, da> + <v_b, db>: by a, by b and by the cotangent.
  static void double_backward(const Args& a) {
    each<3>(a, {&a.out_a, &a.out_b, &a.out}, [](const P* in, P* out) {
      const P t = tanh(in[kA]), s = sigmoid(in[kB]), g = in[kGrad], va = in[kAlongA], vb = in[kAlongB];
      const P dt = fma(-t, t, T(1)), ds = fma(-s, s, s);
      out[0] = g * dt * fma(T(-2) * t * s, va, ds * vb);
      out[1] = g * ds * fma(t * fma(s, T(-2), T(1)), vb, dt * va);
      out[2] = fma(s * dt, va, t * ds * vb);
    });
  }
};

template <class F> int typed(const Args& a, const F& f) {
  a.a.dtype == GMK_F64 ? f(Gate<double>()) : f(Gate<float>());
  return 0;
}

}  // namespace

int gated_activation(const Args& a) {
  return typed(a, [&](auto gate) { gate.forward(a); });
}
int gated_activation_backward(const Args& a) {
  return typed(a, [&](auto gate) { gate.backward(a); });
}
int gated_activation_double_backward(const Args& a) {
  return typed(a, [&](auto gate) { gate.double_backward(a); });
}

}  // namespace GMK_ISA
}  // namespace gmk
