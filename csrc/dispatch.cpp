#include "gmk/dispatch.h"

#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

#define GMK_DECLARE_IN(ISA) \
  namespace gmk {           \
  namespace ISA {           \
  GMK_KERNELS(GMK_DECLARE)  \
  }                         \
  }
#define GMK_DECLARE(NAME, ARGS) int NAME(const ARGS& args);
GMK_DECLARE_IN(baseline)
GMK_DECLARE_IN(avx2)
GMK_DECLARE_IN(avx512)

namespace gmk {
namespace {
thread_local std::string last_error;

Isa choose() {
  const char* asked = std::getenv("GMKERNELS_ISA");
  for (Isa candidate : {Isa::avx512, Isa::avx2, Isa::baseline})
    if (isa_usable(candidate) && (!asked || !*asked || !std::strcmp(asked, isa_name(candidate)))) return candidate;
  return Isa::baseline;
}

template <class F> int guarded(const F& f) {
  try {
    return f();
  } catch (const std::exception& error) {
    last_error = error.what();
    return 1;
  }
}
}  // namespace

const char* isa_name(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline"; }

bool isa_usable(Isa isa) {
#if defined(GMK_HAVE_AVX2)
  if (isa == Isa::avx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
#if defined(GMK_HAVE_AVX512)
  if (isa == Isa::avx512)
    return isa_usable(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return isa == Isa::baseline;
}

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace gmk

#if defined(GMK_HAVE_AVX2)
#define GMK_AVX2(NAME) \
  if (gmk::isa() == gmk::Isa::avx2) return gmk::avx2::NAME(*args);
#else
#define GMK_AVX2(NAME)
#endif
#if defined(GMK_HAVE_AVX512)
#define GMK_AVX512(NAME) \
  if (gmk::isa() == gmk::Isa::avx512) return gmk::avx512::NAME(*args);
#else
#define GMK_AVX512(NAME)
#endif

#define GMK_ENTRY(NAME, ARGS)                   \
  extern "C" int gmk_##NAME(const ARGS* args) { \
    return gmk::guarded([&] {                   \
      GMK_AVX512(NAME)                          \
      GMK_AVX2(NAME)                            \
      return gmk::baseline::NAME(*args);        \
    });                                         \
  }
GMK_KERNELS(GMK_ENTRY)

extern "C" const char* gmk_last_error(void) { return gmk::last_error.c_str(); }
