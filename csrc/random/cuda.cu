// The random stream on a GPU: a thread takes whole counters, four elements each, and strides over the grid.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "gmk/abi.h"
#include "gmk/cuda.h"
#include "gmk/philox.h"
#include "gmk/vmath.h"

namespace gmk {
namespace cuda {
namespace {

template <class T> struct alignas(sizeof(T) * 4 < 16 ? sizeof(T) * 4 : 16) Quad {
  T x[4];
};

template <class T> GMK_INLINE float widen(T x) { return float(x); }
template <> GMK_INLINE float widen(__half x) { return __half2float(x); }
template <> GMK_INLINE float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
GMK_INLINE double widen(double x) { return x; }

template <class T> GMK_INLINE T narrow(float x) { return T(x); }
template <> GMK_INLINE __half narrow(float x) { return __float2half_rn(x); }
template <> GMK_INLINE __nv_bfloat16 narrow(float x) { return __float2bfloat16_rn(x); }

template <class C> GMK_INLINE C to_uniform(uint64_t word) {
  return (C(uint32_t(word) >> 9) + C(0.5)) * C(kUniformStep);
}

struct Bits {
  using Out = int64_t;
  GMK_INLINE void operator()(const uint64_t (&w)[4], int64_t, int64_t, Quad<int64_t>& out) const {
    for (int k = 0; k < 4; ++k) out.x[k] = int64_t(uint32_t(w[k]));
  }
};

template <class T> struct Uniform {
  using Out = T;
  GMK_INLINE void operator()(const uint64_t (&w)[4], int64_t, int64_t, Quad<T>& out) const {
    for (int k = 0; k < 4; ++k) out.x[k] = to_uniform<T>(w[k]);
  }
};

template <class T, class C> struct Normal {
  using Out = T;
  GMK_INLINE void operator()(const uint64_t (&w)[4], int64_t, int64_t, Quad<T>& out) const {
    for (int k = 0; k < 4; k += 2) {
      pack<C> z0, z1;
      normal_pair(pack<C>(to_uniform<C>(w[k])), pack<C>(to_uniform<C>(w[k + 1])), z0, z1);
      out.x[k] = narrow<T>(z0.v);
      out.x[k + 1] = narrow<T>(z1.v);
    }
  }
};
template <> struct Normal<double, double> {
  using Out = double;
  GMK_INLINE void operator()(const uint64_t (&w)[4], int64_t, int64_t, Quad<double>& out) const {
    for (int k = 0; k < 4; k += 2) {
      f64 z0, z1;
      normal_pair(f64(to_uniform<double>(w[k])), f64(to_uniform<double>(w[k + 1])), z0, z1);
      out.x[k] = z0.v;
      out.x[k + 1] = z1.v;
    }
  }
};

template <class T> struct Bernoulli {
  using Out = T;
  const T* p;
  // Elements first .. first + 3 of p belong to the counter; those outside [0, count) do not exist.
  GMK_INLINE void operator()(const uint64_t (&w)[4], int64_t first, int64_t count, Quad<T>& out) const {
    for (int k = 0; k < 4; ++k) {
      if (first + k < 0 || first + k >= count) continue;
      const T p_k = p[first + k];
      const auto value = widen(p_k);
      // word < floor(p 2^32) between integers; the product is exact.
      const auto clipped = value > 0 ? (value < 1 ? value : decltype(value)(1)) : decltype(value)(0);
      const uint64_t threshold = uint64_t(clipped * decltype(value)(4294967296.0));
      out.x[k] = value != value ? p_k : narrow<T>(uint64_t(uint32_t(w[k])) < threshold ? 1.0f : 0.0f);
    }
  }
};

template <class F>
__global__ void __launch_bounds__(kThreads)
    fill(typename F::Out* out, int64_t count, int64_t start, const int64_t* key, F f) {
  using T = typename F::Out;
  const uint64_t seed = uint64_t(key[0]), offset = uint64_t(key[1]);
  const int64_t low = start >> 2, high = (start + count + 3) >> 2, stride = int64_t(gridDim.x) * kThreads;
  const bool aligned = (reinterpret_cast<uintptr_t>(out) - uintptr_t(start) * sizeof(T)) % alignof(Quad<T>) == 0;
  for (int64_t counter = low + int64_t(blockIdx.x) * kThreads + threadIdx.x; counter < high; counter += stride) {
    uint64_t words[4];
    philox_words(uint64_t(counter), offset, seed, words);
    const int64_t first = 4 * counter - start;
    Quad<T> values;
    f(words, first, count, values);
    if (aligned && first >= 0 && first + 4 <= count) {
      *reinterpret_cast<Quad<T>*>(out + first) = values;
    } else {
      for (int k = 0; k < 4; ++k)
        if (first + k >= 0 && first + k < count) out[first + k] = values.x[k];
    }
  }
}

template <class F> int run(const gmk_random_args* a, const int64_t* key, void* stream, const char* what, F f) {
  if (a->count <= 0) return 0;
  const int64_t counters = ((a->start + a->count + 3) >> 2) - (a->start >> 2);
  fill<<<blocks_for(counters), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(static_cast<typename F::Out*>(a->out),
                                                                                 a->count, a->start, key, f);
  return cuda_status(cudaGetLastError(), what);
}

template <class T> int bernoulli(const gmk_random_args* a, const int64_t* key, void* stream) {
  return run(a, key, stream, "random_bernoulli", Bernoulli<T>{static_cast<const T*>(a->p)});
}

}  // namespace
}  // namespace cuda
}  // namespace gmk

using namespace gmk::cuda;

extern "C" int gmk_random_bits_cuda(const gmk_random_args* a, const int64_t* key, void* stream) {
  return run(a, key, stream, "random_bits", Bits{});
}

extern "C" int gmk_random_uniform_cuda(const gmk_random_args* a, const int64_t* key, void* stream) {
  if (a->dtype == GMK_F64) return run(a, key, stream, "random_uniform", Uniform<double>{});
  return run(a, key, stream, "random_uniform", Uniform<float>{});
}

extern "C" int gmk_random_normal_cuda(const gmk_random_args* a, const int64_t* key, void* stream) {
  switch (a->dtype) {
    case GMK_F32: return run(a, key, stream, "random_normal", Normal<float, float>{});
    case GMK_F64: return run(a, key, stream, "random_normal", Normal<double, double>{});
    case GMK_F16: return run(a, key, stream, "random_normal", Normal<__half, float>{});
    default: return run(a, key, stream, "random_normal", Normal<__nv_bfloat16, float>{});
  }
}

extern "C" int gmk_random_bernoulli_cuda(const gmk_random_args* a, const int64_t* key, void* stream) {
  switch (a->dtype) {
    case GMK_F32: return bernoulli<float>(a, key, stream);
    case GMK_F64: return bernoulli<double>(a, key, stream);
    case GMK_F16: return bernoulli<__half>(a, key, stream);
    default: return bernoulli<__nv_bfloat16>(a, key, stream);
  }
}
