"""Mistakes in masked and causal convolutions and in the gate."""

from __future__ import annotations

from .patch import Fault

_MASKED, _CAUSAL, _GATE = "masked_conv", "causal_conv", "gated_activation"
_OPS, _CORE = "gmkernels/ops/masked_conv/", "csrc/masked_conv/"

CONVOLUTION = [
    Fault("mask-a-sees-itself", _CORE + "planes.h", "own = a.rule == GMK_MASK_B;", "own = true;", _MASKED),
    Fault("group-sees-itself-under-mask-a", _CORE + "planes.h", "return {0, (group + own) * size};",
          "return {0, (group + 1) * size};", _MASKED),
    Fault("dilation-ignored", _CORE + "planes.h", "(j + 1 - a.kernel_width) * a.dilation", "(j + 1 - a.kernel_width)",
          _CAUSAL),
    Fault("gradient-by-x-looks-ahead", _CORE + "conv.cpp", "transposed ? -tap.offset : tap.offset", "tap.offset", _MASKED),
    Fault("convolution-forgets-its-bias", _CORE + "conv.cpp", "if (!transposed && a.bias) read", "if (false) read", _MASKED),
    Fault("masked-weights-get-a-gradient", _CORE + "conv.cpp", "if (tap < taps - 1 || (from <= input && input < to))",
          "if (true)", _MASKED),
    Fault("convolution-double-forgets-the-weight", _OPS + "autograd.py",
          "along_weight = backward(grad, u, weight, *rule, False, True, False, backend)[1]", "along_weight = None", _MASKED),
    Fault("condition-gets-no-gradient", _OPS + "autograd.py", "return by_x, by_x if needs[1] else None", "return by_x, None",
          _GATE),
    Fault("gate-slope-of-sigmoid", _CORE + "gate.cpp", "out[1] = in[kGrad] * (t * fma(-s, s, s));",
          "out[1] = in[kGrad] * (t * s);", _GATE),
    Fault("gate-forgets-half-of-the-condition", _CORE + "gate.cpp", ", in[kB] += in[kCondB]", "", _GATE),
]  # fmt: skip
