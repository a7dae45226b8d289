"""Mistakes in the gradient penalty: those of the field, and those that its four passes invite."""

from __future__ import annotations

from .patch import Fault

_PENALTY, _TABLE = "test_penalty", "norm_penalty or random_interpolate or test_penalty"
_OPS, _CORE = "gmkernels/ops/penalty/", "csrc/penalty/penalty.cpp"

PENALTY = [
    Fault("norm-over-the-whole-batch", _OPS + "routes.py", "(g,) = torch.autograd.grad(scores.sum(), x",
          "(g,) = torch.autograd.grad(scores.mean(), x", _PENALTY),
    Fault("penalty-without-its-weight", _OPS + "routes.py", "scale = weight * every / max(1, len(x))",
          "scale = weight / max(1, len(x))", _PENALTY),
    Fault("curvature-forgotten", _OPS + "program.py", "if any(step_sources is not None for step_sources in sources):",
          "if False:", _PENALTY),
    Fault("branches-overwrite-each-other", _OPS + "program.py",
          "into[index] = term if into[index] is None else into[index] + term", "into[index] = term", _PENALTY),
    Fault("layer-norm-with-a-constant-deviation", _OPS + "rules.py",
          "source = u * (w * pt).mean(1, keepdim=True) + ut * pw + uw * pt", "source = ut * pw + uw * pt", _PENALTY),
    Fault("tangent-moved-by-the-bias", _OPS + "rules.py",
          "return aten.convolution(t.to(saved[1].dtype), saved[1], None, *self.how)",
          "return aten.convolution(t.to(saved[1].dtype), saved[1], p[1], *self.how)", _PENALTY),
    Fault("silu-second-derivative", _OPS + "activations.py", "s * (1.0 - s) * (2.0 + h * (1.0 - 2.0 * s))",
          "s * (1.0 - s) * (1.0 + h * (1.0 - 2.0 * s))", _PENALTY),
    Fault("overwrites-what-a-branch-reads", _OPS + "trace.py",
          "return self.readers[value] == 1 and (", "return (", _PENALTY),
    Fault("structure-looked-at-once", _OPS + "routes.py", "if known is None or known.structure != structure:",
          "if known is None:", _PENALTY),
    Fault("batch-norm-takes-the-first-route", _OPS + "layers.py", "return m.training or m.running_mean is None",
          "return False", _PENALTY),
    Fault("weight-rounded-in-half-precision", _OPS + "routes.py", "(g.to(t.dtype) * scale).reshape(t.shape)",
          "(g * scale).to(t.dtype).reshape(t.shape)", _PENALTY),
    Fault("half-of-the-norm-s-bend", _OPS + "autograd.py", "2 * target * along * u", "target * along * u", _TABLE),
    Fault("nan-at-a-gradient-of-zero", _CORE, "norm == T(0) ? T(0) : T(2) * excess / norm", "T(2) * excess / norm", _TABLE),
    Fault("one-number-for-the-whole-batch", _CORE, "const int64_t element = a.first + b;",
          "const int64_t element = a.first;", _TABLE),
    Fault("real-and-fake-change-places", _CORE, "fma(eps, get(px, p, lanes) - from, from)",
          "fma(eps, from - get(px, p, lanes), get(px, p, lanes))", _TABLE),
    Fault("one-sided-the-other-way", _CORE, "if (one_sided && excess < T(0)) excess = T(0);",
          "if (one_sided && excess > T(0)) excess = T(0);", _TABLE),
]  # fmt: skip
