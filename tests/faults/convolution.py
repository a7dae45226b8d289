"""Mistakes in masked and causal convolutions, in the gate, and in both at once."""

from __future__ import annotations

from .patch import Fault

_MASKED, _CAUSAL, _GATE, _BOTH = "masked_conv", "causal_conv", "gated_activation", "gated_masked"
_OPS, _CORE = "gmkernels/ops/masked_conv/", "csrc/masked_conv/"

CONVOLUTION = [
    Fault("mask-a-sees-itself", _CORE + "planes.h", "own = a.rule == GMK_MASK_B;", "own = true;", _MASKED),
    Fault("group-sees-itself-under-mask-a", _CORE + "planes.h", "return {0, (group + own) * size};",
          "return {0, (group + 1) * size};", _MASKED),
    Fault("dilation-ignored", _CORE + "planes.h", "(j + 1 - a.kernel_width) * a.dilation", "(j + 1 - a.kernel_width)",
          _CAUSAL),
    Fault("gradient-by-x-looks-ahead", _CORE + "weights.h", "transposed ? -tap.offset : tap.offset", "tap.offset", _MASKED),
    Fault("convolution-forgets-its-bias", _CORE + "weights.h", "if (!transposed && a.bias) read", "if (false) read", _MASKED),
    Fault("masked-weights-get-a-gradient", _CORE + "conv.h", "if (tap < taps - 1 || (from <= input && input < to))",
          "if (true)", _MASKED),
    Fault("convolution-double-forgets-the-weight", _OPS + "autograd.py",
          "along_weight = backward(grad, u, weight, *rule, False, True, False, backend)[1]", "along_weight = None", _MASKED),
    Fault("condition-gets-no-gradient", _OPS + "autograd.py", "return by_x, by_x if needs[1] else None", "return by_x, None",
          _GATE),
    Fault("gate-slope-of-sigmoid", _CORE + "gate.cpp", "out[1] = in[kGrad] * (t * fma(-s, s, s));",
          "out[1] = in[kGrad] * (t * s);", _GATE),
    Fault("gate-forgets-half-of-the-condition", _CORE + "gate.cpp", ", in[kB] += in[kCondB]", "", _GATE),
    Fault("gradients-end-with-a-strip", _CORE + "conv.h", "return u.end + strips.lead + Strips::kTail;",
          "return u.end + Strips::kTail;", _MASKED),
    Fault("taps-run-over-row-ends", _CORE + "margins.h", "x < (right < 0 ? -right : g.width)", "x < (right < 0 ? -right : 0)",
          _MASKED),
    Fault("margins-on-the-wrong-side-of-gradients", _CORE + "margins.h", "* (transposed ? -1 : 1)", "* (transposed ? 1 : 1)",
          _MASKED),
    Fault("gated-convolution-swaps-the-halves-of-its-condition", _CORE + "gated.cpp",
          "read(more + 1, cond.data, a.dtype, sums.n * cond.n + other * cond.c",
          "read(more + 1, cond.data, a.dtype, sums.n * cond.n + first * cond.c", _BOTH),
    Fault("gated-convolution-slope-of-tanh", _CORE + "gated.cpp", "g * (s * fma(-t, t, T(1)))", "g * s", _BOTH),
    Fault("gated-convolution-ignores-groups", _CORE + "gated.cpp", "c / half * size + c % half", "c", _BOTH),
    Fault("gated-convolution-double-forgets-the-bias", _OPS + "autograd.py", "terms += [spread(s[None])] if by_bias else []",
          "terms += [0 * spread(s[None])] if by_bias else []", _BOTH),
]  # fmt: skip
