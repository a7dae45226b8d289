"""Checks of what the samplers are given. Values are looked at on the CPU only: on a GPU that would wait for the device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gmkernels.core import checks
from gmkernels.core.doors import transforming

from .network import HEADS, Network, infer

_DTYPES = (torch.float32, torch.float64)
_LEVELS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def visible_here(*tensors: Tensor | None) -> bool:
    """Whether there are values to look at: ordinary CPU tensors, and no compiler or transform at work."""
    if torch.compiler.is_compiling() or transforming():
        return False
    return all(t is None or (type(t) in (Tensor, torch.nn.Parameter) and t.is_cpu) for t in tensors)


def network(op: str, gated: bool, given: Sequence[Tensor], shape: Sequence[int], head: str, levels: int,
            groups: int) -> Network:  # fmt: skip
    """The network that the parameters make."""
    checks.choice(op, "head", head, HEADS)
    if not isinstance(levels, int) or isinstance(levels, bool) or not 2 <= levels <= 65536:
        raise ValueError(f"{op}: levels must be an int from 2 to 65536, got {levels!r}")
    if head == "bernoulli" and levels != 2:
        raise ValueError(f"{op}: a Bernoulli head has 2 levels, got levels={levels}")
    if len(shape) != 4 or any(not isinstance(n, checks.INTEGERS) or n < 0 for n in shape) or shape[1] == 0:
        raise ValueError(f"{op}: shape must be (batch, channels, height, width) with a channel, got {tuple(shape)}")
    channels = int(shape[1])
    if groups not in (1, channels):
        raise ValueError(f"{op}: channel_groups must be 1 or the number of channels, {channels}, got {groups!r}")
    if groups == 1 and channels > 1 and (head != "mixture" or channels != 3):
        raise ValueError(
            f"{op}: a {head} head draws {channels} channels one after another, which takes channel_groups={channels}, "
            f"got {groups}"
        )
    _parameters(op, gated, given)
    net = infer(gated, given, channels, groups, HEADS.index(head), levels)
    for position, (t, (name, expected)) in enumerate(zip(given, net.parameters(), strict=True)):
        if tuple(t.shape) != expected:
            raise ValueError(f"{op}: parameters[{position}], {name}, must have shape {expected}, got {tuple(t.shape)}")
    for k in net.kernels:
        if k % 2 == 0:
            raise ValueError(f"{op}: kernels must have odd sizes, got {k}")
    for name, width in (("width", net.width), ("hidden channels", net.hidden), ("outputs", net.outputs)):
        if width == 0 or width % groups:
            raise ValueError(f"{op}: {name} must be a multiple of channel_groups={groups}, got {width}")
    _outputs(op, net)
    return net


def _parameters(op: str, gated: bool, given: Sequence[Tensor]) -> None:
    per_layer, ends = (8, 4) if gated else (6, 6)
    if (len(given) - ends) % per_layer or len(given) < ends + (per_layer if gated else 0):
        form = f"{ends} and {per_layer} for each {'layer' if gated else 'block'}"
        raise ValueError(f"{op}: parameters must be {form}, weight and bias in turn, got {len(given)}")
    for position, t in enumerate(given):
        checks.tensor(op, f"parameters[{position}]", t)
        if t.dtype not in _DTYPES:
            raise TypeError(f"{op}: parameters must be float32 or float64, got parameters[{position}] {t.dtype}")
        if t.dtype != given[0].dtype:
            raise TypeError(f"{op}: parameters must share one dtype, got {given[0].dtype} and {t.dtype}")
        if t.device != given[0].device:
            raise ValueError(f"{op}: parameters must be on one device, got {given[0].device} and {t.device}")
        if t.dim() == 0 or (position % 2 == 0 and t.dim() != 4):
            raise ValueError(
                f"{op}: parameters[{position}] must have {4 - 3 * (position % 2)} dimensions, got {t.dim()}"
            )


def _outputs(op: str, net: Network) -> None:
    """That the last convolution has the channels its head reads."""
    per_pass = net.channels // net.groups
    head, wanted = HEADS[net.head], net.outputs // net.groups
    if head == "mixture":
        unit = 3 if per_pass == 1 else 1 + 3 * per_pass
        if wanted % unit:
            raise ValueError(
                f"{op}: a mixture of {per_pass} channel(s) has {unit} outputs a component, got {wanted} outputs"
            )
    elif wanted != (expected := 1 if head == "bernoulli" else net.levels):
        raise ValueError(f"{op}: a {head} head has {expected} output(s) a channel, got {wanted}")


def sampling(op: str, parameters: Sequence[Tensor], net: Network, shape: Sequence[int], key: Tensor, first: int,
             temperature: float, condition: Tensor | None) -> None:  # fmt: skip
    checks.key(op, key, first)
    if first + shape[0] > 2**32 or shape[2] * shape[3] > 2**32:
        raise ValueError(
            f"{op}: samples and pixels are numbered in 32 bits, got first={first} and shape {tuple(shape)}"
        )
    if not isinstance(temperature, (float, int)) or not 0.0 < temperature < math.inf:
        raise ValueError(f"{op}: temperature must be more than 0 and finite, got {temperature!r}")
    if condition is not None:
        checks.tensor(op, "condition", condition)
        checks.shape(op, "condition", condition, (shape[0], net.layers, net.condition_width))
        checks.same_dtype(op, parameters=parameters[0], condition=condition)
    checks.same_device(op, parameters=parameters[0], key=key, condition=condition)
    given = {f"parameters[{i}]": t for i, t in enumerate(parameters)}
    for name, t in (given if condition is None else {**given, "condition": condition}).items():
        # A sum is a hundred times quicker than asking each number; it is finite only if they all are.
        if visible_here(t) and not t.detach().sum().isfinite() and not (fine := t.detach().isfinite()).all():
            raise ValueError(f"{op}: {name} must be finite, got {t.detach()[~fine][0].item()}")


def start(op: str, x_init: Tensor | None, mask: Tensor | None, shape: Sequence[int], levels: int, key: Tensor) -> None:
    """What is held, and where."""
    if x_init is None and mask is None:
        return
    if x_init is None or mask is None:
        raise ValueError(f"{op}: x_init and mask go together, got {'x_init' if mask is None else 'mask'} alone")
    checks.tensor(op, "x_init", x_init)
    checks.tensor(op, "mask", mask)
    if x_init.dtype not in _LEVELS:
        raise TypeError(f"{op}: x_init must hold levels as integers, got {x_init.dtype}")
    if mask.dtype != torch.bool:
        raise TypeError(f"{op}: mask must be bool, got {mask.dtype}")
    batch, _, height, width = shape
    checks.shape(op, "x_init", x_init, tuple(shape))
    if tuple(mask.shape) not in ((height, width), (batch, height, width)):
        raise ValueError(
            f"{op}: mask must have shape {(height, width)} or {(batch, height, width)}, got {tuple(mask.shape)}"
        )
    checks.same_device(op, key=key, x_init=x_init, mask=mask)
    if not visible_here(x_init, mask):
        return
    outside = (x_init < 0) | (x_init >= levels)
    if bool(outside.any()):
        raise ValueError(f"{op}: x_init must hold levels from 0 to {levels - 1}, got {x_init[outside][0].item()}")
    order = mask.flatten(-2)
    late = order[..., 1:] & ~order[..., :-1]
    if bool(late.any()):
        pixel = int(late.nonzero()[0][-1]) + 1
        raise ValueError(
            f"{op}: mask must be causal, every held pixel before every drawn one in raster order, got pixel "
            f"({pixel // width}, {pixel % width}) held and the one before it drawn"
        )
