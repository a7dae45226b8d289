"""Mistakes in sampling a WaveNet."""

from __future__ import annotations

from .patch import Fault

_KERNEL, _PACKING, _SELECT = "csrc/autoregressive/wavenet.cpp", "csrc/autoregressive/wavenet.h", "wavenet"
_REFERENCE = "gmkernels/ops/autoregressive/wavenet_reference.py"

WAVENET = [
    Fault("wavenet-dilation-ignored", _KERNEL, "t + layer.length - k * layer.dilation", "t + layer.length - k", _SELECT),
    Fault("wavenet-residual-forgotten", _KERNEL, "next.at(from, t), next.step, layer.at(from, t), layer.step",
          "next.at(from, t), next.step", _SELECT),
    Fault("wavenet-halves-of-the-gate-swapped", _KERNEL, "tanh(load_n(at, n)) * sigmoid(load_n(at + a.gate, n))",
          "sigmoid(load_n(at, n)) * tanh(load_n(at + a.gate, n))", _SELECT),
    Fault("wavenet-skip-bias-of-one-layer-only", _PACKING, "skip.bias[o] += biases[l][o]", "skip.bias[o] = biases[l][o]",
          _SELECT),
    Fault("wavenet-local-condition-lost-between-chunks", _KERNEL, "(t == a.begin || t % kAhead == 0)",
          "t % kAhead == 0", _SELECT),
    Fault("wavenet-rows-not-numbered-from-first", _KERNEL, "draw_words(a.key, t, 0, a.first + from + s)",
          "draw_words(a.key, t, 0, a.first + s)", _SELECT),
    Fault("wavenet-scale-without-floor", _KERNEL, "std::exp(std::max(double(at[1]), -7.0))", "std::exp(double(at[1]))",
          _SELECT),
    Fault("wavenet-temperature-ignored", _KERNEL, "a.temperature * std::exp(", "std::exp(", _SELECT),
    Fault("wavenet-given-beginning-drawn-anew", _KERNEL, "if (t >= a.held) sample(t);", "sample(t);", _SELECT),
    Fault("wavenet-sees-the-sample-itself", _REFERENCE, "return pad(shown, (1, 0))", "return pad(shown, (0, 1))", _SELECT),
    Fault("wavenet-activations-see-their-future", _REFERENCE, "pad(h, ((net.kernel - 1) * d, 0))",
          "pad(h, ((net.kernel - 2) * d, d))", _SELECT),
]  # fmt: skip
