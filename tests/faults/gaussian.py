"""Mistakes in the parts of a variational autoencoder."""

from __future__ import annotations

from .patch import Fault

_DRAW, _LIKELIHOOD, _ANY = (
    "reparameterize or test_gaussian",
    "likelihood or log_prob or test_gaussian",
    "gaussian or repara",
)
_OPS, _CORE = "gmkernels/ops/gaussian/", "csrc/gaussian/"

GAUSSIAN = [
    Fault("kl-sign-in-reference", _OPS + "reference.py", "torch.exp(v) - 1.0 - v", "torch.exp(v) - 1.0 + v", _DRAW),
    Fault("kl-without-free-bits-in-reference", _OPS + "reference.py", "kl.clamp(min=free_bits)", "kl", _DRAW),
    Fault("gradient-by-x-sign", _OPS + "autograd.py", "-by_mean.to(x.dtype) if needs[0]", "by_mean.to(x.dtype) if needs[0]",
          _LIKELIHOOD),
    Fault("bernoulli-double-forgets-x", _OPS + "autograd.py", "_times(grad, weight, grads[0]).to(x.dtype) if needs[2] else None",
          "None", _LIKELIHOOD),
    Fault("gradient-reaches-the-mask", _OPS + "__init__.py", "weight.detach()", "weight", _LIKELIHOOD),
    Fault("broadcast-gradient-summed-in-16-bits", _OPS + "__init__.py",
          "value.to(torch.promote_types(value.dtype, torch.float32))", "value", _LIKELIHOOD),
    Fault("broadcast-gradient-summed-by-threads", _OPS + "__init__.py", "value = value.expand(like.shape[1:])", "pass",
          _LIKELIHOOD),
    Fault("free-bits-keep-their-gradient", _CORE + "gaussian.h",
          "pick(value(kl_of(mu, logvar, variance)) < free_bits, N(T(0)), l)", "l", _DRAW),
    Fault("bernoulli-cancels", "csrc/include/gmk/bernoulli.h",
          "-fma(abs(l), select<T>(l > P(T(0)), P(T(1)) - x, x), softplus)", "fma(x, l, -(max(l, P(T(0))) + softplus))",
          _LIKELIHOOD),
    Fault("gaussian-double-forgets-the-precision", _CORE + "likelihood.cpp", "D(q, -along_v * q)", "D(q)", _LIKELIHOOD),
    Fault("empty-doubles-summed-as-floats", _CORE + "likelihood.cpp", "rows->dtype == GMK_F64",
          "(rows->data && rows->dtype == GMK_F64)", _LIKELIHOOD),
    Fault("noise-kept-in-the-wrong-place", "csrc/include/gmk/stream.h", "low = first;", "", _ANY),
    Fault("triton-draws-a-pair-twice", _OPS + "triton.py", "second = (element & 2) != 0", "second = (element & 4) != 0", _DRAW,
          triton=True),
    Fault("triton-normals-out-of-order", _OPS + "triton.py", "tl.join(tl.join(z0, z2), tl.join(z1, z3))",
          "tl.join(tl.join(z0, z1), tl.join(z2, z3))", _DRAW, triton=True),
    Fault("triton-missing-weight-is-zero", _OPS + "likelihood_triton.py",
          "w = _read_or(1.0, weight, _shared(row, w_samples, SHARED), outer, place, w_b, w_o, w_i, keep, FLAT)\n    gw = tl.load",
          "w = _read_or(0.0, weight, row, outer, place, w_b, w_o, w_i, keep, FLAT)\n    gw = tl.load", _LIKELIHOOD, triton=True),
    Fault("draws-judged-by-the-next-image", _CORE + "likelihood.cpp", "samples > 1 ? b / samples : b", "b", _LIKELIHOOD),
    Fault("triton-draws-judged-by-the-next-image", _OPS + "likelihood_triton.py", "row = row // samples", "pass", _LIKELIHOOD,
          triton=True),
]  # fmt: skip
