"""Rows for samplers of PixelCNN and Gated PixelCNN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gmkernels.ops.autoregressive import gated_pixelcnn_sample, pixelcnn_sample
from gmkernels.ops.autoregressive.network import HEADS, Network

from ..table import Case, ErrorCase, OperatorRow, Sizes, draw

FLOATS = (torch.float32, torch.float64)
_Make = Callable[[Sizes, torch.dtype, torch.Generator], Case]


def network(gated: bool = False, head: str = "bernoulli", channels: int = 1, groups: int = 1, levels: int = 2,
            width: int = 6, hidden: int = 9, kernels: tuple[int, ...] = (5, 3), components: int = 2) -> Network:  # fmt: skip
    """A small network with a head that fits."""
    each = {"bernoulli": 1, "categorical": levels, "mixture": 3 * components}[head]
    outputs = channels * each if groups == channels else components * (1 + 3 * channels)
    return Network(gated, channels, groups, width, hidden, outputs, HEADS.index(head), levels, kernels)


def parameters(net: Network, dtype: torch.dtype, generator: torch.Generator, scale: float = 2.0) -> list[Tensor]:
    """Random ones that keep activations near 1, so that draws are open."""
    return [
        draw(shape, dtype, generator, scale / torch.Size(shape[1:]).numel() ** 0.5 if len(shape) > 1 else 0.3)
        for _, shape in net.parameters()
    ]


def _sample(*, gated: bool, batch: int, size: tuple[int, int], channels: int, **given: Any) -> Tensor:
    names = sorted(name for name in given if name.startswith("p_"))
    loose = [given.pop(name) for name in names]
    function = gated_pixelcnn_sample if gated else pixelcnn_sample
    if "held" in given:  # layouts of tests would leave no mask causal
        places = torch.arange(size[0] * size[1], device=given["held"].device)
        given["mask"] = (places < given.pop("held")[..., None]).unflatten(-1, size)
    return function(given.pop("parameters", loose), given.pop("shape", (batch, channels, *size)), **given)


def _images(condition: bool = False, held: str = "", constants: dict[str, Any] | None = None, **options: Any) -> _Make:
    net = network(**options)

    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        batch, height, width = sizes
        tensors = {f"p_{i:02}": t for i, t in enumerate(parameters(net, dtype, generator))}
        tensors["key"] = torch.randint(0, 2**63 - 1, (2,), generator=generator)
        if condition:
            tensors["condition"] = draw((batch, net.layers, net.condition_width), dtype, generator, 0.5)
        if held:
            each = (batch,) if held == "each" else ()
            tensors["held"] = torch.randint(height * width + 1, each, generator=generator)
            tensors["x_init"] = torch.randint(net.levels, (batch, net.channels, height, width), generator=generator)
        fixed = {
            "gated": net.gated, "batch": batch, "size": (height, width), "channels": net.channels, "first": 5,
            "head": HEADS[net.head], "levels": net.levels, "channel_groups": net.groups,
        }  # fmt: skip
        return Case(tensors, fixed | (constants or {}))

    return make


def _part(case: Case, start: int, stop: int) -> Case:
    def cut(name: str, t: Tensor) -> Tensor:
        return t[start:stop] if name in ("x_init", "condition") or (name == "held" and t.dim() == 1) else t

    constants = dict(case.constants, first=case.constants["first"] + start, batch=stop - start)
    return Case({name: cut(name, t) for name, t in case.tensors.items()}, constants)


def _spoil(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arguments: arguments.update(changes)


def _replace(place: int, change: Callable[[Tensor], object]) -> Callable[[dict[str, Any]], None]:
    def spoil(arguments: dict[str, Any]) -> None:
        arguments[f"p_{place:02}"] = change(arguments[f"p_{place:02}"])

    return spoil


def _without_last(arguments: dict[str, Any]) -> None:
    arguments["parameters"] = [arguments[name] for name in sorted(arguments) if name.startswith("p_")][:-1]


def _even(arguments: dict[str, Any]) -> None:
    for place in (0, 4):
        arguments[f"p_{place:02}"] = arguments[f"p_{place:02}"][:, :, :2, :2]


def _nan(t: Tensor) -> Tensor:
    t = t.clone()
    t.view(-1)[0] = float("nan")
    return t


_HALF = torch.zeros(2, 3, dtype=torch.bool)
_HALF[1, 1] = True
_ERRORS = (
    ErrorCase("no tensor", _replace(3, lambda t: [1.0]), TypeError, r"parameters\[3\] must be a torch.Tensor, got list"),
    ErrorCase("half", _replace(2, lambda t: t.half()), TypeError, r"must be float32 or float64, got parameters\[2\].*16"),
    ErrorCase("other dtype", _replace(2, lambda t: t.double()), TypeError, "share one dtype, got torch.float32 and"),
    ErrorCase("elsewhere", _replace(2, lambda t: t.to("meta")), ValueError, "parameters must be on one device, got"),
    ErrorCase("a few", _without_last, ValueError, "parameters must be 6 and 6 for each block, .*, got 11"),
    ErrorCase("flat", _replace(0, lambda t: t[0]), ValueError, r"parameters\[0\] must have 4 dimensions, got 3"),
    ErrorCase(
        "narrow", _replace(2, lambda t: t[:, :5]), ValueError, r"\[2\], blocks\[0\].reduce.weight, must have shape .*got"
    ),
    ErrorCase("long bias", _replace(3, lambda t: t.repeat(2)), ValueError, r"blocks\[0\].reduce.bias, must have shape"),
    ErrorCase("even kernels", _even, ValueError, "kernels must have odd sizes, got 2"),
    ErrorCase("NaN", _replace(4, _nan), ValueError, r"parameters\[4\] must be finite, got nan"),
    ErrorCase("head", _spoil(head="gaussian"), ValueError, "head must be one of 'bernoulli', .* got 'gaussian'"),
    ErrorCase("grey Bernoulli", _spoil(levels=4), ValueError, "Bernoulli head has 2 levels, got levels=4"),
    ErrorCase("one level", _spoil(levels=1), ValueError, "levels must be an int from 2 to 65536, got 1"),
    ErrorCase("few outputs", _spoil(head="categorical"), ValueError, r"categorical head has 2 output\(s\).*, got 1"),
    ErrorCase("few numbers", _spoil(head="mixture"), ValueError, "has 3 outputs a component, got 1"),
    ErrorCase("groups", _spoil(channel_groups=3), ValueError, "channel_groups must be 1 or the number of.*1, got 3"),
    ErrorCase("colours", _spoil(channels=3), ValueError, "bernoulli head draws 3 channels .* got 1"),
    ErrorCase("a plane", _spoil(shape=(2, 3)), ValueError, r"shape must be \(batch, channels, height, width\).*\(2, 3\)"),
    ErrorCase("cold", _spoil(temperature=0.0), ValueError, "temperature must be more than 0 and finite, got 0.0"),
    ErrorCase("key of floats", _spoil(key=torch.zeros(2)), ValueError, "key must be an int64.*float32"),
    ErrorCase("first < 0", _spoil(first=-1), ValueError, "first must be a non-negative int, got -1"),
    ErrorCase("first 2^32", _spoil(first=2**32 - 1), ValueError, "numbered in 32 bits, got first=4294967295"),
    ErrorCase("condition", _spoil(condition=torch.zeros(2, 6)), ValueError, r"condition must have shape \(2, 1, 6\)"),
    ErrorCase(
        "mask alone", _spoil(mask=_HALF), ValueError, "x_init and mask go together, got mask alone"
    ),
    ErrorCase(
        "x_init of floats", _spoil(mask=_HALF, x_init=torch.zeros(2, 1, 2, 3)), TypeError, "levels as integers, got.*32"
    ),
    ErrorCase(
        "mask of floats", _spoil(mask=_HALF.float(), x_init=torch.zeros(2, 1, 2, 3).long()), TypeError, "mask must be bool"
    ),
    ErrorCase(
        "mask of a row",
        _spoil(mask=_HALF[0], x_init=torch.zeros(2, 1, 2, 3).long()),
        ValueError,
        r"mask must have shape \(2, 3\) or \(2, 2, 3\), got \(3,\)",
    ),
    ErrorCase(
        "a level too far",
        _spoil(mask=_HALF, x_init=torch.full((2, 1, 2, 3), 2)),
        ValueError,
        "x_init must hold levels from 0 to 1, got 2",
    ),
    ErrorCase(
        "a hole",
        _spoil(mask=_HALF, x_init=torch.zeros(2, 1, 2, 3).long()),
        ValueError,
        r"mask must be causal, .* got pixel \(1, 1\) held and the one before it drawn",
    ),
    ErrorCase("backend", _spoil(backend="fast"), ValueError, "unknown backend 'fast'"),
)  # fmt: skip


def _row(variant: str, errors: tuple[ErrorCase, ...] = (), **options: Any) -> OperatorRow:
    return OperatorRow(
        name=f"pixelcnn_sample[{variant}]",
        operator="pixelcnn_sample",
        function=_sample,
        outputs=("x",),
        make=_images(**options),
        # (batch, height, width)
        sizes=((2, 2, 3), (1, 1, 1), (0, 2, 2), (2, 0, 3), (7, 3, 2), (18, 2, 4), (1, 5, 7)),
        ranks=(3,),
        dynamic=((3, 1, 1), (5, 1, 1)),
        limit=60,
        dtypes=FLOATS,
        errors=errors,
        part=_part,
        exact=("x",),
        same_bits=("x",),
    )


ROWS = (
    _row("bernoulli", _ERRORS),
    _row("conditional", condition=True, held="all", constants={"temperature": 0.75}, kernels=(7, 3, 5)),
    _row("categorical", head="categorical", levels=5, held="each"),
    _row("mixture", head="mixture", levels=16, constants={"value_range": (-1.0, 1.0)}),
    _row("colours", head="categorical", levels=4, channels=3, groups=3, width=9),
    _row("mixture of colours", head="mixture", levels=256, channels=3, constants={"temperature": 1.5}),
    _row("gated", gated=True, kernels=(5, 3, 3)),
    _row("gated, conditional", gated=True, condition=True, held="each", kernels=(3, 5)),
    _row("gated, colours", gated=True, channels=3, groups=3, condition=True, kernels=(3, 3)),
)
