"""Elementary functions, Philox and a fixed-order sum for Triton kernels: the twin of csrc/include/gmk/vmath.h.

Every function takes the same steps in the same order as the C++ one, with explicit ``tl.fma`` and correctly rounded
divisions and roots, so that both give the same bits (methods and sources are named there; the numbers come from
``tools/fit_vmath.py``). Compile kernels that use them with ``enable_fp_fusion=False``: what is written is what runs.

Arguments are float32 tensors; integers are int32, and Philox words are uint32.
"""

from __future__ import annotations

import triton
import triton.language as tl

_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23
_ROUND_BITS = tl.constexpr(0x4B400000)
_LN2_HIGH = tl.constexpr(0.693145751953125)
_LN2_LOW = tl.constexpr(1.42860677e-06)
_THREE_QUARTERS = tl.constexpr(0x3F400000)
_SIGN = tl.constexpr(-0x80000000)
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _bits(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def _float(x):
    return x.to(tl.float32, bitcast=True)


@triton.jit
def _abs(x):
    return _float(_bits(x) & _MAGNITUDE)


@triton.jit
def _copysign(x, sign):
    return _float((_bits(x) & _MAGNITUDE) | (_bits(sign) & _SIGN))


@triton.jit
def _power_of_two(n):
    return _float((n + 127) << 23)


@triton.jit
def _scale(p, t):
    n = _bits(t) - _ROUND_BITS
    half = n >> 1
    return p * _power_of_two(half) * _power_of_two(n - half)


@triton.jit
def _exp_reduce(x):
    t = tl.fma(x, 1.44269502, _ROUND)
    n = t - _ROUND
    return t, tl.fma(n, -_LN2_LOW, tl.fma(n, -_LN2_HIGH, x))


@triton.jit
def _exp_tail(r):
    q = tl.fma(r, 0.00137453259, 0.00836894661)
    q = tl.fma(q, r, 0.0416696481)
    q = tl.fma(q, r, 0.166665182)
    return tl.fma(q, r, 0.499999881)


@triton.jit
def _exp_reduced(r):
    return tl.fma(tl.fma(_exp_tail(r), r, 1.0), r, 1.0)


@triton.jit
def exp(x):
    x = tl.where(x < -104.0, -104.0, x)
    t, r = _exp_reduce(tl.where(x > 89.0, 89.0, x))
    return _scale(_exp_reduced(r), t)


@triton.jit
def _exp_pair(x):
    t, r = _exp_reduce(tl.where(x < -104.0, -104.0, x))
    e = tl.fma(r * r, _exp_tail(r), r)
    p = e + 1.0
    return _scale(p, t), _scale(e - (p - 1.0), t)


@triton.jit
def _log1p_tail(f):
    q = tl.fma(f, -0.0444467776, 0.104018509)
    q = tl.fma(q, f, -0.131546497)
    q = tl.fma(q, f, 0.144861832)
    q = tl.fma(q, f, -0.166485876)
    q = tl.fma(q, f, 0.199904874)
    q = tl.fma(q, f, -0.250000566)
    q = tl.fma(q, f, 0.333334565)
    q = tl.fma(q, f, -0.5)
    return f * f * q


@triton.jit
def _log_assemble(k, f, low):
    return tl.fma(k, _LN2_HIGH, f + tl.fma(k, _LN2_LOW, _log1p_tail(f) + low))


@triton.jit
def _log_ends(u, r):
    return tl.where(u > 0.0, tl.where(u < float("inf"), r, u), tl.where(u == 0.0, float("-inf"), float("nan")))


@triton.jit
def log(x):
    subnormal = x < 1.1754943508222875e-38
    u = _bits(tl.where(subnormal, x * 16777216.0, x))
    k = (u - _THREE_QUARTERS) >> 23
    f = _float(u - (k << 23)) - 1.0
    return _log_ends(x, _log_assemble(k.to(tl.float32) - tl.where(subnormal, 24.0, 0.0), f, 0.0))


@triton.jit
def log1p(x):
    u = x + 1.0
    word = _bits(u)
    k = (word - _THREE_QUARTERS) >> 23
    s = _power_of_two(-k)
    f = tl.where(x < 1073741824.0, tl.fma(x, s, s - 1.0), _float(word - (k << 23)) - 1.0)
    return tl.where(u == 1.0, x, _log_ends(u, _log_assemble(k.to(tl.float32), f, 0.0)))


@triton.jit
def _log1p_unit(e, low):
    upper = e >= 0.5
    f = tl.where(upper, tl.fma(e, 0.5, -0.5), e)
    return _log_assemble(tl.where(upper, 1.0, 0.0), f, low * tl.fma(e, -0.5, 1.0))


@triton.jit
def sigmoid(x):
    e, e_low = _exp_pair(-_abs(x))
    d = e + 1.0
    d_low = (e - (d - 1.0)) + e_low
    q = tl.div_rn(1.0, d)
    left = tl.fma(-d_low, q, tl.fma(-d, q, 1.0))
    negative = x < 0.0
    top = tl.where(negative, e, 1.0)
    return tl.fma(top, q, q * tl.fma(top, left, tl.where(negative, e_low, 0.0)))


@triton.jit
def softplus(x):
    e, e_low = _exp_pair(-_abs(x))
    return tl.where(x > 0.0, x, 0.0) + _log1p_unit(e, e_low)


@triton.jit
def logsigmoid(x):
    return -softplus(-x)


@triton.jit
def tanh(x):
    a = _abs(x)
    y = x * x
    p = tl.fma(y, -0.000454540481, 0.00258028996)
    p = tl.fma(p, y, -0.00826223288)
    p = tl.fma(p, y, 0.0216625221)
    p = tl.fma(p, y, -0.0539291166)
    p = tl.fma(p, y, 0.133329779)
    p = tl.fma(p, y, -0.333333224)
    small = tl.fma(a * y, p, a)
    b = a + a
    t, r = _exp_reduce(tl.where(b > 20.0, 20.0, b))
    e = _exp_reduced(r) * _power_of_two(_bits(t) - _ROUND_BITS)
    large = 1.0 - tl.div_rn(2.0, e + 1.0)
    return _copysign(tl.where(a < 0.9, small, large), x)


@triton.jit
def atan(x):
    a = _abs(x)
    t = tl.div_rn(tl.where(a > 1.0, 1.0, a), tl.where(a < 1.0, 1.0, a))
    y = t * t
    p = tl.fma(y, -0.00173897319, 0.0106667401)
    p = tl.fma(p, y, -0.030709004)
    p = tl.fma(p, y, 0.057478942)
    p = tl.fma(p, y, -0.0837495103)
    p = tl.fma(p, y, 0.109422199)
    p = tl.fma(p, y, -0.142622903)
    p = tl.fma(p, y, 0.199983597)
    p = tl.fma(p, y, -0.333332926)
    tail = t * y * p
    large = (1.57079637 - t) - (tail + 4.37113883e-08)
    return _copysign(tl.where(a > 1.0, large, t + tail), x)


@triton.jit
def sincos2pi(u):
    """sin(2 pi u) and cos(2 pi u)."""
    t = tl.fma(u, 4.0, _ROUND)
    r = tl.fma(t - _ROUND, -0.25, u)
    y = r * r
    s = tl.fma(y, 40.7955284, -76.6761322)
    s = tl.fma(s, y, 81.6049881)
    s = tl.fma(s, y, -41.3417015)
    s = tl.fma(r, 6.28318548, r * tl.fma(s, y, -1.74845553e-07))
    c = tl.fma(y, 58.8147736, -85.4294968)
    c = tl.fma(c, y, 64.9391785)
    c = tl.fma(c, y, -19.7392082)
    c = tl.fma(c, y, 1.0)
    quadrant = _bits(t)
    odd = (quadrant & 1) == 1
    sine = _float(_bits(tl.where(odd, c, s)) ^ ((quadrant & 2) << 30))
    cosine = _float(_bits(tl.where(odd, s, c)) ^ (((quadrant + 1) & 2) << 30))
    return sine, cosine


@triton.jit
def normal_pair(radius_uniform, angle_uniform):
    """Two standard normals from two uniforms (Box and Muller, 1958)."""
    radius = tl.sqrt_rn(-2.0 * log(radius_uniform))
    s, c = sincos2pi(angle_uniform)
    return radius * c, radius * s


@triton.jit
def sincos2pi_wide(u):
    """sin(2 pi u) and cos(2 pi u) in float64."""
    t = u * 4.0 + 6755399441055744.0  # 1.5 * 2^52
    r = u - (t - 6755399441055744.0) * 0.25
    y = r * r
    s = y * -0.71923652888051992 + 3.8202222263136107
    s = s * y - 15.094650226003163
    s = s * y + 42.058694040355881
    s = s * y - 76.705859753654465
    s = s * y + 81.60524927607679
    s = s * y - 41.341702240399762
    s = r * 6.283185307179586477 + r * (s * y)
    c = y * -1.6928174904600115 + 7.9028606748228167
    c = c * y - 26.426245664410029
    c = c * y + 60.244641269216075
    c = c * y - 85.456817206170328
    c = c * y + 64.93939402266696
    c = c * y - 19.739208802178716
    c = c * y + 1.0
    quadrant = t.to(tl.int64, bitcast=True)
    odd = (quadrant & 1) == 1
    sine = tl.where(odd, c, s)
    cosine = tl.where(odd, s, c)
    return tl.where((quadrant & 2) == 2, -sine, sine), tl.where(((quadrant + 1) & 2) == 2, -cosine, cosine)


@triton.jit
def philox4x32(index, seed, offset):
    """The four uint32 words of counter ``(index, offset)`` under ``seed``: int64 tensors, one of them full-sized."""
    c0 = index.to(tl.uint32)
    c1 = (index >> 32).to(tl.uint32)
    c2 = offset.to(tl.uint32) + tl.zeros_like(c0)
    c3 = (offset >> 32).to(tl.uint32) + tl.zeros_like(c0)
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, 0xD2511F53)
        high1 = tl.umulhi(c2, 0xCD9E8D57)
        low0 = c0 * 0xD2511F53
        low1 = c2 * 0xCD9E8D57
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def uniform(word):
    """A uint32 word to the open interval (0, 1)."""
    return ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def fold_lanes(x):
    """Sums the last dimension, a power of two up to 2^16, by halves: lane l takes l + L/2, then l + L/4, ..."""
    for level in tl.static_range(15):
        if x.shape[-1] == (65536 >> level):
            low, high = tl.split(tl.trans(tl.reshape(x, x.shape[:-1] + [2, 32768 >> level])))
            x = low + high
    if x.shape[-1] == 2:
        low, high = tl.split(x)
        total = low + high
    else:
        total = tl.sum(x, axis=len(x.shape) - 1)
    return total
