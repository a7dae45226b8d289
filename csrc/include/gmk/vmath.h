// Elementary functions on sixteen lanes: exp, log, log1p, sigmoid, tanh, softplus, logsigmoid, atan, sin and cos of a
// whole turn, and a pair of normals.
//
// Without branches and out of fma, + - * /, selections and integer operations alone, in a fixed order: every
// instruction set, the CUDA core and gmkernels/core/triton_math.py (its twin, line by line) give the same bits.
// Subnormal arguments and results count like all others; NaN propagates. tools/check_vmath.py measures the error of the
// float32 functions over all 2^32 arguments.
//
// Methods: argument reduction after W. J. Cody and W. Waite, "Software Manual for the Elementary Functions" (1980),
// with constants split so that the first product is exact; polynomials fitted by tools/fit_vmath.py; lost low parts
// recovered with T. J. Dekker's two-sum (Numer. Math. 18, 1971). Double precision goes to the C library,
// but for the angles of normals.
#pragma once

#ifdef __CUDACC__
#include "simt.h"
#else
#include "simd.h"
#endif

// Where fma is software, a call costs nothing beside it, and inlined copies cost minutes of compiling.
#if defined(__x86_64__) && !defined(__FMA__) && !defined(__CUDACC__)
#define GMK_MATH GMK_OUTLINE
#else
#define GMK_MATH GMK_INLINE
#endif

namespace gmk {
namespace GMK_ISA {

// Adding and subtracting 1.5 * 2^23 rounds to an integer, which stays in the low bits of the sum.
constexpr float kRound = 12582912.0f;
constexpr int32_t kRoundBits = 0x4B400000;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kLn2High = 0x1.62e4p-1f;  // 15 bits: an exact multiple for every exponent
constexpr float kLn2Low = 1.42860677e-06f;

// ---- exp ----------------------------------------------------------------------------------------------------------

// 2^n for n in [-126, 127].
GMK_INLINE f32 power_of_two(const i32& n) { return bits<float>((n + 127) << 23); }

// p * 2^n, rounded once, where t = n + kRound and n is in [-150, 128].
GMK_INLINE f32 scale(f32 p, const f32& t) {
#if defined(__AVX512F__)
  const f32 n = t - kRound;
  for (int i = 0; i < p.count; ++i) p.v[i] = _mm512_maskz_scalef_ps(0xFFFF, p.v[i], n.v[i]);
  return p;
#else
  // Two factors, because 2^n itself may be out of range; the first product is exact.
  const i32 n = bits<int32_t>(t) - kRoundBits, half = n >> 1;
  return p * power_of_two(half) * power_of_two(n - half);
#endif
}

// The same where 2^n and the product are normal numbers.
GMK_INLINE f32 scale_normal(const f32& p, const f32& t) {
#if defined(__AVX512F__)
  return scale(p, t);  // one instruction, against three
#else
  return p * power_of_two(bits<int32_t>(t) - kRoundBits);
#endif
}

// x = n ln 2 + r with |r| <= ln(2) / 2; t = n + kRound.
GMK_INLINE void exp_reduce(const f32& x, f32& t, f32& r) {
  t = fma(x, 1.44269502f, kRound);
  const f32 n = t - kRound;
  r = fma(n, f32(-kLn2Low), fma(n, f32(-kLn2High), x));
}

// (exp(r) - 1 - r) / r^2
GMK_INLINE f32 exp_tail(const f32& r) {
  f32 q = fma(r, 0.00137453259f, 0.00836894661f);
  q = fma(q, r, 0.0416696481f);
  q = fma(q, r, 0.166665182f);
  return fma(q, r, 0.499999881f);
}
GMK_INLINE f32 exp_reduced(const f32& r) { return fma(fma(exp_tail(r), r, 1.0f), r, 1.0f); }

GMK_MATH f32 exp(const f32& x) {
  f32 t, r;
  exp_reduce(min(f32(89.0f), max(f32(-104.0f), x)), t, r);
  return scale(exp_reduced(r), t);
}

// exp(x) as an unevaluated sum, x <= 0.
GMK_MATH void exp_pair(const f32& x, f32& high, f32& low) {
  f32 t, r;
  exp_reduce(max(f32(-104.0f), x), t, r);
  const f32 e = fma(r * r, exp_tail(r), r), p = e + 1.0f;
  high = scale(p, t);
  low = scale(e - (p - 1.0f), t);
}

// ---- log ----------------------------------------------------------------------------------------------------------

// log(1 + f) - f for f in [-1/4, 1/2]
GMK_INLINE f32 log1p_tail(const f32& f) {
  f32 q = fma(f, -0.0444467776f, 0.104018509f);
  q = fma(q, f, -0.131546497f);
  q = fma(q, f, 0.144861832f);
  q = fma(q, f, -0.166485876f);
  q = fma(q, f, 0.199904874f);
  q = fma(q, f, -0.250000566f);
  q = fma(q, f, 0.333334565f);
  q = fma(q, f, -0.5f);
  return f * f * q;
}

// k ln 2 + log(1 + f) + low
GMK_MATH f32 log_assemble(const f32& k, const f32& f, const f32& low) {
  return fma(k, f32(kLn2High), f + fma(k, f32(kLn2Low), log1p_tail(f) + low));
}

// The exponent k that leaves u * 2^-k in [3/4, 3/2), u normal.
GMK_INLINE i32 log_exponent(const i32& u) { return (u - 0x3F400000) >> 23; }

// What log gives at the ends of its domain: u > 0 and finite passes r, inf gives inf, 0 gives -inf, the rest NaN.
GMK_INLINE f32 log_ends(const f32& u, const f32& r) {
  return select<float>(u > 0.0f, select<float>(u < kInf, r, u), select<float>(u == 0.0f, f32(-kInf), f32(kNaN)));
}

GMK_MATH f32 log(const f32& x) {
  const auto subnormal = x < 0x1p-126f;
  const i32 u = bits<int32_t>(select<float>(subnormal, x * 0x1p24f, x));
  const i32 k = log_exponent(u);
  const f32 f = bits<float>(u - (k << 23)) - 1.0f;
  return log_ends(x, log_assemble(convert<float>(k) - select<float>(subnormal, f32(24.0f), f32(0.0f)), f, f32(0.0f)));
}

GMK_MATH f32 log1p(const f32& x) {
  const f32 u = x + 1.0f;
  const i32 k = log_exponent(bits<int32_t>(u));
  // From x, not from the rounded sum: x 2^-k + (2^-k - 1) is rounded once. 2^-k leaves float32 only where u = x.
  const f32 s = power_of_two(-k);
  const f32 f = select<float>(x < 0x1p30f, fma(x, s, s - 1.0f), bits<float>(bits<int32_t>(u) - (k << 23)) - 1.0f);
  const f32 r = log_assemble(convert<float>(k), f, f32(0.0f));
  return select<float>(u == 1.0f, x, log_ends(u, r));
}

// log(1 + e + low) for e in [0, 1], low less than a rounding error of e
GMK_MATH f32 log1p_unit(const f32& e, const f32& low) {
  const auto upper = e >= 0.5f;
  const f32 f = select<float>(upper, fma(e, 0.5f, -0.5f), e);
  // 1 - e/2 stands for 1 / (1 + e), since low needs only its leading bits.
  return log_assemble(select<float>(upper, f32(1.0f), f32(0.0f)), f, low * fma(e, -0.5f, 1.0f));
}

// ---- sigmoid, softplus, tanh, atan --------------------------------------------------------------------------------

// sigmoid, given exp(-|x|) as an unevaluated sum: e / (1 + e) below zero and 1 / (1 + e) above; the quotient is
// corrected by what rounding left of e, of 1 + e and of the division.
GMK_INLINE f32 sigmoid_of(const f32& x, const f32& e, const f32& e_low) {
  const f32 d = e + 1.0f, d_low = (e - (d - 1.0f)) + e_low;
  const f32 q = f32(1.0f) / d;
  const f32 left = fma(-d_low, q, fma(-d, q, f32(1.0f)));
  const auto negative = x < 0.0f;
  const f32 top = select<float>(negative, e, f32(1.0f)), top_low = select<float>(negative, e_low, f32(0.0f));
  return fma(top, q, q * fma(top, left, top_low));
}

// 1 / (1 + exp(-x))
GMK_MATH f32 sigmoid(const f32& x) {
  f32 e, e_low;
  exp_pair(-abs(x), e, e_low);
  return sigmoid_of(x, e, e_low);
}

// log(1 + exp(x))
GMK_MATH f32 softplus(const f32& x) {
  f32 e, e_low;
  exp_pair(-abs(x), e, e_low);
  return max(x, f32(0.0f)) + log1p_unit(e, e_low);
}

// sigmoid(x), and softplus(-|x|), bit for bit, from one exponential
GMK_MATH f32 sigmoid_and_softplus(const f32& x, f32& softplus) {
  f32 e, e_low;
  exp_pair(-abs(x), e, e_low);
  softplus = log1p_unit(e, e_low);
  return sigmoid_of(x, e, e_low);
}

// log(sigmoid(x))
GMK_INLINE f32 logsigmoid(const f32& x) { return -softplus(-x); }

GMK_MATH f32 tanh(const f32& x) {
  const f32 a = abs(x), y = x * x;
  f32 p = fma(y, -0.000454540481f, 0.00258028996f);
  p = fma(p, y, -0.00826223288f);
  p = fma(p, y, 0.0216625221f);
  p = fma(p, y, -0.0539291166f);
  p = fma(p, y, 0.133329779f);
  p = fma(p, y, -0.333333224f);
  const f32 small = fma(a * y, p, a);
  f32 t, r;  // 1 - 2 / (exp(2 |x|) + 1), which is 1 from |x| = 10 on
  exp_reduce(min(f32(20.0f), a + a), t, r);
  const f32 e = scale_normal(exp_reduced(r), t);
  const f32 large = f32(1.0f) - f32(2.0f) / (e + 1.0f);
  return copysign(select<float>(a < 0.9f, small, large), x);
}

GMK_MATH f32 atan(const f32& x) {
  // atan(a) = pi/2 - atan(1 / a) for a > 1
  const f32 a = abs(x), t = min(f32(1.0f), a) / max(f32(1.0f), a), y = t * t;
  f32 p = fma(y, -0.00173897319f, 0.0106667401f);
  p = fma(p, y, -0.030709004f);
  p = fma(p, y, 0.057478942f);
  p = fma(p, y, -0.0837495103f);
  p = fma(p, y, 0.109422199f);
  p = fma(p, y, -0.142622903f);
  p = fma(p, y, 0.199983597f);
  p = fma(p, y, -0.333332926f);
  const f32 tail = t * y * p;
  const f32 large = (f32(1.57079637f) - t) - (tail + 4.37113883e-08f);
  return copysign(select<float>(a > 1.0f, large, t + tail), x);
}

// ---- random numbers -----------------------------------------------------------------------------------------------

// sin(2 pi u) and cos(2 pi u) for |u| < 2^20
GMK_MATH void sincos2pi(const f32& u, f32& sine, f32& cosine) {
  const f32 t = fma(u, 4.0f, kRound);
  const f32 r = fma(t - kRound, -0.25f, u), y = r * r;  // exact: the nearest quarter turn taken off
  f32 s = fma(y, 40.7955284f, -76.6761322f);
  s = fma(s, y, 81.6049881f);
  s = fma(s, y, -41.3417015f);
  s = fma(r, f32(6.28318548f), r * fma(s, y, -1.74845553e-07f));
  f32 c = fma(y, 58.8147736f, -85.4294968f);
  c = fma(c, y, 64.9391785f);
  c = fma(c, y, -19.7392082f);
  c = fma(c, y, 1.0f);
  // The low two bits of t are the quadrant: odd ones swap sine and cosine, the upper half turns the signs.
  const i32 quadrant = bits<int32_t>(t);
  const auto odd = (quadrant & 1) == 1;
  const i32 sine_sign = (quadrant & 2) << 30, cosine_sign = ((quadrant + 1) & 2) << 30;
  sine = bits<float>(bits<int32_t>(select<float>(odd, c, s)) ^ sine_sign);
  cosine = bits<float>(bits<int32_t>(select<float>(odd, s, c)) ^ cosine_sign);
}

// Two standard normals from two uniforms (Box and Muller, 1958): the radius from the first, the angle from the second.
GMK_INLINE void normal_pair(const f32& radius_uniform, const f32& angle_uniform, f32& z0, f32& z1) {
  const f32 radius = sqrt(-2.0f * log(radius_uniform));
  f32 s, c;
  sincos2pi(angle_uniform, s, c);
  z0 = radius * c;
  z1 = radius * s;
}

// ---- double precision ---------------------------------------------------------------------------------------------

template <class F> GMK_INLINE f64 each(const f64& a, F f) {
  double x[kLanes];
  store(x, a);
  for (int l = 0; l < kLanes; ++l) x[l] = f(x[l]);
  return load(x);
}
GMK_OUTLINE f64 exp(const f64& a) {
  return each(a, [](double x) { return ::exp(x); });
}
GMK_OUTLINE f64 log(const f64& a) {
  return each(a, [](double x) { return ::log(x); });
}
GMK_OUTLINE f64 log1p(const f64& a) {
  return each(a, [](double x) { return ::log1p(x); });
}
GMK_OUTLINE f64 tanh(const f64& a) {
  return each(a, [](double x) { return ::tanh(x); });
}
GMK_OUTLINE f64 atan(const f64& a) {
  return each(a, [](double x) { return ::atan(x); });
}
GMK_OUTLINE f64 sigmoid(const f64& x) {
  const f64 e = exp(-abs(x));
  return select<double>(x < 0.0, e, f64(1.0)) / (e + 1.0);
}
GMK_OUTLINE f64 softplus(const f64& x) { return max(x, f64(0.0)) + log1p(exp(-abs(x))); }
GMK_OUTLINE f64 logsigmoid(const f64& x) { return -softplus(-x); }
GMK_OUTLINE f64 sigmoid_and_softplus(const f64& x, f64& softplus) {
  softplus = GMK_ISA::softplus(-abs(x));
  return sigmoid(x);
}
// Our own here: the C library's reduction of large angles needs a stack on a GPU.
GMK_OUTLINE void sincos2pi(const f64& u, f64& sine, f64& cosine) {
  const f64 t = u * 4.0 + 0x1.8p52, r = u - (t - 0x1.8p52) * 0.25, y = r * r;
  f64 s = y * -0.71923652888051992 + 3.8202222263136107;
  s = s * y - 15.094650226003163;
  s = s * y + 42.058694040355881;
  s = s * y - 76.705859753654465;
  s = s * y + 81.60524927607679;
  s = s * y - 41.341702240399762;
  s = r * 6.283185307179586477 + r * (s * y);
  f64 c = y * -1.6928174904600115 + 7.9028606748228167;
  c = c * y - 26.426245664410029;
  c = c * y + 60.244641269216075;
  c = c * y - 85.456817206170328;
  c = c * y + 64.93939402266696;
  c = c * y - 19.739208802178716;
  c = c * y + 1.0;
  const pack<int64_t> quadrant = bits<int64_t>(t);
  const auto odd = (quadrant & 1) == 1;
  sine = bits<double>(bits<int64_t>(select<double>(odd, c, s)) ^ ((quadrant & 2) << 62));
  cosine = bits<double>(bits<int64_t>(select<double>(odd, s, c)) ^ (((quadrant + 1) & 2) << 62));
}
GMK_OUTLINE void normal_pair(const f64& radius_uniform, const f64& angle_uniform, f64& z0, f64& z1) {
  const f64 radius = sqrt(-2.0 * log(radius_uniform));
  f64 s, c;
  sincos2pi(angle_uniform, s, c);
  z0 = radius * c;
  z1 = radius * s;
}

}  // namespace GMK_ISA
}  // namespace gmk
