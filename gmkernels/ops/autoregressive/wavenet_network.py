"""What a WaveNet is, as the sampler takes it, and the checks of what the sampler is given."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gmkernels.core import checks

from .validation import visible_here

HEADS = ("categorical", "mixture", "gaussian")
_DTYPES = (torch.float32, torch.float64)
_LEVELS = (torch.uint8, torch.int16, torch.int32, torch.int64)


class Stack(NamedTuple):
    """A stack of dilated causal layers.

    Args:
        inputs: 1 where the network sees a sample's value, or ``levels`` where it sees one-hot vectors.
        residual: channels between layers, R.
        gate: channels out of a gate, G.
        skip: channels of the sum that the head reads, S.
        hidden: channels between the last two 1x1 convolutions.
        outputs: channels of the last one.
        head: place of the output's kind in ``HEADS``.
        levels: values a sample can have; 0 for the reals.
        first: kernel of the first convolution.
        kernel: that of the layers.
        local: channels of the local condition, 0 for none.
        dilations: one for each layer.
    """

    inputs: int
    residual: int
    gate: int
    skip: int
    hidden: int
    outputs: int
    head: int
    levels: int
    first: int
    kernel: int
    local: int
    dilations: tuple[int, ...]

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Stack:
        (inputs, residual, gate, skip, hidden, outputs, head, levels, first, kernel, local, *dilations) = numbers
        return cls(inputs, residual, gate, skip, hidden, outputs, head, levels, first, kernel, local, tuple(dilations))

    @property
    def numbers(self) -> list[int]:
        return [*self[:11], *self.dilations]

    @property
    def layers(self) -> int:
        return len(self.dilations)

    @property
    def real(self) -> bool:
        """Whether samples are real numbers, not levels."""
        return HEADS[self.head] == "gaussian"

    def parameters(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the parameters in order."""
        for name, shape in self._weights():
            yield f"{name}.weight", shape
            yield f"{name}.bias", shape[:1]

    def _weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "first", (self.residual, self.inputs, self.first)
        for i in range(self.layers):
            last = i + 1 == self.layers
            yield f"layers[{i}].dilated", (2 * self.gate, self.residual, self.kernel)
            yield f"layers[{i}].mix", (self.skip + (0 if last else self.residual), self.gate, 1)
        yield "head", (self.hidden, self.skip, 1)
        yield "output", (self.outputs, self.hidden, 1)


def stack(op: str, given: Sequence[Tensor], dilations: Sequence[int], head: str, levels: int,
          local: Tensor | None) -> Stack:  # fmt: skip
    """The network that the parameters make."""
    checks.choice(op, "head", head, HEADS)
    real = head == "gaussian"
    if not real and (not isinstance(levels, int) or isinstance(levels, bool) or not 2 <= levels <= 65536):
        raise ValueError(f"{op}: levels must be an int from 2 to 65536, got {levels!r}")
    if not dilations or any(not isinstance(d, int) or d < 1 for d in dilations):
        raise ValueError(f"{op}: dilations must be positive ints, one for each layer, got {tuple(dilations)}")
    layers = len(dilations)
    if len(given) != 4 * layers + 6:
        raise ValueError(
            f"{op}: parameters must be 6 and 4 for each of the {layers} layers, {4 * layers + 6}, weight and bias in "
            f"turn, got {len(given)}"
        )
    for position, t in enumerate(given):
        checks.tensor(op, f"parameters[{position}]", t)
        if t.dtype not in _DTYPES:
            raise TypeError(f"{op}: parameters must be float32 or float64, got parameters[{position}] {t.dtype}")
        if t.dtype != given[0].dtype:
            raise TypeError(f"{op}: parameters must share one dtype, got {given[0].dtype} and {t.dtype}")
        if t.device != given[0].device:
            raise ValueError(f"{op}: parameters must be on one device, got {given[0].device} and {t.device}")
        if t.dim() != (wanted := 3 - 2 * (position % 2)):
            raise ValueError(f"{op}: parameters[{position}] must have {wanted} dimension(s), got {t.dim()}")
    if local is not None:
        checks.tensor(op, "local", local)
        checks.dims(op, "local", local, 3, "(batch, channels, time)")
    net = Stack(
        given[0].shape[1], given[0].shape[0], given[2].shape[0] // 2, given[4 * layers].shape[0], given[-4].shape[0],
        given[-2].shape[0], HEADS.index(head), 0 if real else levels, given[0].shape[2], given[2].shape[2],
        0 if local is None else local.shape[1], tuple(dilations),
    )  # fmt: skip
    for position, (t, (name, expected)) in enumerate(zip(given, net.parameters(), strict=True)):
        if tuple(t.shape) != expected:
            raise ValueError(f"{op}: parameters[{position}], {name}, must have shape {expected}, got {tuple(t.shape)}")
    if 0 in net[:6] or 0 in (net.first, net.kernel):
        raise ValueError(f"{op}: every layer must have channels and taps, got {net}")
    if net.inputs not in (1, net.levels or 1):
        known = "1" if real else f"1 or the number of levels, {levels}"
        raise ValueError(f"{op}: the first convolution must have {known} input channel(s), got {net.inputs}")
    if head == "mixture" and net.outputs % 3:
        raise ValueError(f"{op}: a mixture has 3 outputs a component, got {net.outputs} outputs")
    if head != "mixture" and net.outputs != (expected_outputs := 2 if real else levels):
        raise ValueError(f"{op}: a {head} head has {expected_outputs} outputs, got {net.outputs}")
    return net


def sampling(op: str, parameters: Sequence[Tensor], net: Stack, shape: Sequence[int], key: Tensor, first: int,
             temperature: float, condition: Tensor | None, local: Tensor | None,
             local_weight: Tensor | None) -> None:  # fmt: skip
    if len(shape) != 2 or any(not isinstance(n, checks.INTEGERS) or n < 0 for n in shape):
        raise ValueError(f"{op}: shape must be (batch, time), got {tuple(shape)}")
    checks.key(op, key, first)
    if first + shape[0] > 2**32 or shape[1] > 2**32:
        raise ValueError(f"{op}: samples and times are numbered in 32 bits, got first={first} and shape {tuple(shape)}")
    if not isinstance(temperature, (float, int)) or not 0.0 < temperature < math.inf:
        raise ValueError(f"{op}: temperature must be more than 0 and finite, got {temperature!r}")
    if (local is None) != (local_weight is None):
        raise ValueError(
            f"{op}: local and local_weight go together, got {'local' if local is not None else 'local_weight'} alone"
        )
    wide = 2 * net.gate
    expected = {
        "condition": (condition, (shape[0], net.layers, wide)),
        "local": (local, (shape[0], net.local, shape[1])),
        "local_weight": (local_weight, (net.layers, wide, net.local)),
    }
    given = {name: t for name, (t, _) in expected.items() if t is not None}
    for name, t in given.items():
        checks.tensor(op, name, t)
        checks.shape(op, name, t, expected[name][1])
        checks.same_dtype(op, parameters=parameters[0], **{name: t})
    checks.same_device(op, parameters=parameters[0], key=key, **given)
    for name, t in {**{f"parameters[{i}]": t for i, t in enumerate(parameters)}, **given}.items():
        # A sum is a hundred times quicker than asking each number; it is finite only if they all are.
        if visible_here(t) and not t.detach().sum().isfinite() and not (fine := t.detach().isfinite()).all():
            raise ValueError(f"{op}: {name} must be finite, got {t.detach()[~fine][0].item()}")


def start(op: str, net: Stack, x_init: Tensor | None, shape: Sequence[int], parameters: Sequence[Tensor]) -> None:
    """The beginning that is given."""
    if x_init is None:
        return
    checks.tensor(op, "x_init", x_init)
    checks.dims(op, "x_init", x_init, 2, "(batch, time)")
    if x_init.shape[0] != shape[0] or x_init.shape[1] > shape[1]:
        raise ValueError(
            f"{op}: x_init must be the first samples of {tuple(shape)}, (batch, time), got {tuple(x_init.shape)}"
        )
    checks.same_device(op, parameters=parameters[0], x_init=x_init)
    if net.real:
        checks.same_dtype(op, parameters=parameters[0], x_init=x_init)
    elif x_init.dtype not in _LEVELS:
        raise TypeError(f"{op}: x_init must hold levels as integers, got {x_init.dtype}")
    if not visible_here(x_init):
        return
    bad = ~x_init.isfinite() if net.real else (x_init < 0) | (x_init >= net.levels)
    if bool(bad.any()):
        wanted = "finite numbers" if net.real else f"levels from 0 to {net.levels - 1}"
        raise ValueError(f"{op}: x_init must hold {wanted}, got {x_init[bad][0].item()}")
