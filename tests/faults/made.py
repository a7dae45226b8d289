"""Mistakes in masked linear layers and in the inverse of masked autoregressive layers."""

from __future__ import annotations

from .patch import Fault

_LINEAR, _INVERSE = "masked_linear", "made_inverse"
_CORE, _STAIRCASE = "csrc/autoregressive/made.cpp", "csrc/include/gmk/staircase.h"

MADE = [
    Fault("staircase-of-what-was-in-memory", "gmkernels/nn/made.py", "held.copy_(value)\n        return self", "pass\n        return self",
          _LINEAR),
    Fault("staircase-cut-at-its-lowest-row", "csrc/masked_linear/linear.cpp",
          "lanes, seen[i] - all);", "lanes, 0);", _LINEAR),
    Fault("masked-weight-gets-a-gradient", _STAIRCASE, "std::clamp<int64_t>(seen[o + r] - i, 0, std::min(width, inputs - i))",
          "std::min(width, inputs - i)", _LINEAR),
    Fault("masked-relu-slope-forgotten", "csrc/masked_linear/linear.cpp", "to[i] = from[i] > T(0) ? to[i] : T(0);\n        else",
          "to[i] = to[i];\n        else", _LINEAR),
    Fault("masked-double-forgets-the-weight", "gmkernels/ops/masked_linear/autograd.py",
          "if needs[2] and by_x:", "if False:", _LINEAR),
    Fault("inverse-forgets-what-the-panel-knows", _CORE,
          "known = net.start(link.from, p0), now = net.start(link.from, p + 1);",
          "known = net.start(link.from, p), now = net.start(link.from, p + 1);", _INVERSE),
    Fault("inverse-logdet-with-the-wrong-sign", _CORE, "store(logdet + i, load(logdet + i) - k.a);",
          "store(logdet + i, load(logdet + i) + k.a);", _INVERSE),
    Fault("inverse-gradient-forgets-the-logdet", _CORE, "-(fma(whole, load(x + i), load(g_logdet + i)) * k.slope)",
          "-(whole * load(x + i) * k.slope)", _INVERSE),
    Fault("inverse-gradient-forgets-the-residual", _CORE, "if (block >= 0) grad = grad + load(by[block] + i);", "", _INVERSE),
    Fault("inverse-forgets-the-condition", _CORE, "if (m == 0 && condition)", "if (false)", _INVERSE),
]  # fmt: skip
