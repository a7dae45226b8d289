// Measures the error of gmk/vmath.h against the C library in double precision, in units in the last place.
//
//   vmath_ulp STRIDE [FUNCTION ...]
//   vmath_ulp hash STRIDE [FUNCTION ...]
//   vmath_ulp raw FILE
//
// The first runs over every STRIDE-th float32 bit pattern and the neighbours of special values, and prints one line a
// function: name, instruction set, largest error, the argument that has it, how many were tried, and a hash of all
// results. The second leaves out the comparison. The third prints the results for the float32 numbers in FILE, as they
// are in memory, function by function.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#ifdef GMK_CUDA_ON_HOST
#include "cuda_on_host.h"
#endif
#include "gmk/vmath.h"

#define GMK_TEXT2(x) #x
#define GMK_TEXT(x)  GMK_TEXT2(x)

using namespace gmk::GMK_ISA;

namespace {

constexpr double kTau = 6.283185307179586477;

// Folded onto at most a quarter turn first, where the C library keeps relative accuracy at the zeros.
double sine(double u) {
  u -= std::rint(u);
  return std::sin(kTau * (std::abs(u) <= 0.25 ? u : std::copysign(0.5, u) - u));
}
double cosine(double u) { return sine(0.25 - std::abs(u - std::rint(u))); }
double sigmoid_reference(double x) { return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x)); }
double softplus_reference(double x) { return std::fmax(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

f32 sine_pack(const f32& u) {
  f32 s, c;
  sincos2pi(u, s, c);
  return s;
}
f32 cosine_pack(const f32& u) {
  f32 s, c;
  sincos2pi(u, s, c);
  return c;
}

struct Function {
  const char* name;
  f32 (*ours)(const f32&);
  double (*reference)(double);
  float low, high;  // the domain that is measured
};
const float kAll = std::numeric_limits<float>::infinity();
const Function kFunctions[] = {
    {"exp", [](const f32& x) { return exp(x); }, [](double x) { return std::exp(x); }, -kAll, kAll},
    {"log", [](const f32& x) { return log(x); }, [](double x) { return std::log(x); }, -kAll, kAll},
    {"log1p", [](const f32& x) { return log1p(x); }, [](double x) { return std::log1p(x); }, -kAll, kAll},
    {"sigmoid", [](const f32& x) { return sigmoid(x); }, sigmoid_reference, -kAll, kAll},
    {"softplus", [](const f32& x) { return softplus(x); }, softplus_reference, -kAll, kAll},
    {"logsigmoid", [](const f32& x) { return logsigmoid(x); }, [](double x) { return -softplus_reference(-x); }, -kAll,
     kAll},
    {"tanh", [](const f32& x) { return tanh(x); }, [](double x) { return std::tanh(x); }, -kAll, kAll},
    {"atan", [](const f32& x) { return atan(x); }, [](double x) { return std::atan(x); }, -kAll, kAll},
    {"sin2pi", sine_pack, sine, 0.0f, 1.0f},
    {"cos2pi", cosine_pack, cosine, 0.0f, 1.0f},
};

// |got - exact| in units of float32's spacing at exact; infinite where one is NaN or infinite and the other is not.
double ulps(float got, double exact) {
  if (std::isnan(exact)) return std::isnan(got) ? 0 : kAll;
  const float rounded = float(exact);
  if (std::isinf(rounded) || std::isinf(got) || std::isnan(got)) return got == rounded ? 0 : kAll;
  const double spacing = std::ldexp(1.0, std::max(std::ilogb(exact), -126) - 23);
  return exact == 0 ? std::abs(double(got)) / 0x1p-149 : std::abs(double(got) - exact) / spacing;
}

void measure(const Function& f, uint64_t stride, bool compare) {
  double worst = 0;
  float argument = 0;
  uint64_t count = 0, hash = 14695981039346656037ull;
  float x[kLanes], y[kLanes];
  int filled = 0;
  auto flush = [&] {
    for (int l = filled; l < kLanes; ++l) x[l] = 0.25f;
    store(y, f.ours(load(x)));
    for (int l = 0; l < filled; ++l) {
      if (compare) {
        const double error = ulps(y[l], f.reference(double(x[l])));
        if (!(error <= worst)) worst = error, argument = x[l];
      }
      uint32_t word;
      std::memcpy(&word, &y[l], 4);
      hash = (hash ^ (std::isnan(y[l]) ? 0x7FC00000u : word)) * 1099511628211ull;
    }
    count += uint64_t(filled);
    filled = 0;
  };
  auto visit = [&](uint32_t word) {
    float value;
    std::memcpy(&value, &word, 4);
    if (value < f.low || value > f.high || (f.low == 0 && value != value)) return;
    x[filled++] = value;
    if (filled == kLanes) flush();
  };
  for (uint64_t word = 0; word < (1ull << 32); word += stride) visit(uint32_t(word));
  if (stride > 1) {
    // Both sides of the places where a formula or an exponent changes.
    const float centres[] = {0,       0x1p-149f, 0x1p-126f, 0x1p-24f, 0x1p-23f, 0.125f,   0.25f,      0.375f,
                             0.5f,    0.625f,    0.75f,     0.875f,   0.9f,     1.0f,     1.5f,       2.0f,
                             9.0f,    10.0f,     16.7f,     20.0f,    87.34f,   88.0f,    88.72f,     89.0f,
                             103.28f, 103.98f,   104.0f,    0x1p24f,  0x1p30f,  0x1p127f, 0x1.8p127f, kAll};
    for (float centre : centres)
      for (uint32_t sign : {0u, 0x80000000u})
        for (int32_t d = -300; d <= 300; ++d) {
          uint32_t word;
          std::memcpy(&word, &centre, 4);
          visit((word + uint32_t(d)) ^ sign);
        }
  }
  flush();
  std::printf("%s %s %.4f %.9g %llu %016llx\n", f.name, GMK_TEXT(GMK_ISA), worst, double(argument),
              (unsigned long long)count, (unsigned long long)hash);
  std::fflush(stdout);
}

int raw(const char* path) {
  std::vector<float> x;
  std::FILE* file = std::fopen(path, "rb");
  if (!file) {
    std::fprintf(stderr, "vmath_ulp: cannot read %s\n", path);
    return 1;
  }
  for (float value; std::fread(&value, sizeof value, 1, file) == 1;) x.push_back(value);
  std::fclose(file);
  const size_t count = x.size();
  x.resize(count + kLanes, 0.25f);
  std::vector<float> y(x.size());
  for (const Function& f : kFunctions) {
    for (size_t i = 0; i < count; i += kLanes) store(&y[i], f.ours(load(&x[i])));
    std::fwrite(y.data(), sizeof(float), count, stdout);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && !std::strcmp(argv[1], "raw")) return raw(argv[2]);
  std::vector<std::string> arguments(argv + 1, argv + argc);
  const bool compare = arguments.empty() || arguments[0] != "hash";
  if (!compare) arguments.erase(arguments.begin());
  const uint64_t stride = arguments.empty() ? 0 : std::strtoull(arguments[0].c_str(), nullptr, 10);
  if (stride == 0) {
    std::fprintf(stderr, "usage: vmath_ulp [hash] STRIDE [FUNCTION ...] | raw FILE, STRIDE at least 1\n");
    return 2;
  }
  for (const Function& f : kFunctions) {
    bool wanted = arguments.size() == 1;
    for (size_t i = 1; i < arguments.size(); ++i) wanted = wanted || arguments[i] == f.name;
    if (wanted) measure(f, stride, compare);
  }
}
