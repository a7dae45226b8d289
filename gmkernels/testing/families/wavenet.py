"""Rows for samplers of WaveNets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gmkernels.ops.autoregressive import wavenet_sample
from gmkernels.ops.autoregressive.wavenet_network import HEADS, Stack

from ..table import Case, ErrorCase, OperatorRow, Sizes, draw

FLOATS = (torch.float32, torch.float64)


def stack(head: str = "categorical", levels: int = 5, inputs: int = 1, residual: int = 6, gate: int = 5, skip: int = 7,
          hidden: int = 9, components: int = 2, first: int = 2, kernel: int = 2, local: int = 0,
          dilations: tuple[int, ...] = (1, 2, 3)) -> Stack:  # fmt: skip
    """A small network with a head that fits."""
    outputs = {"categorical": levels, "mixture": 3 * components, "gaussian": 2}[head]
    levels = 0 if head == "gaussian" else levels
    return Stack(
        inputs, residual, gate, skip, hidden, outputs, HEADS.index(head), levels, first, kernel, local, dilations
    )


def parameters(net: Stack, dtype: torch.dtype, generator: torch.Generator, scale: float = 1.5) -> list[Tensor]:
    """Random ones that keep activations near 1, so that draws are open."""
    return [
        draw(shape, dtype, generator, scale / torch.Size(shape[1:]).numel() ** 0.5 if len(shape) > 1 else 0.3)
        for _, shape in net.parameters()
    ]


def _sample(*, size: tuple[int, int], dilations: tuple[int, ...], **given: Any) -> Tensor:
    names = sorted(name for name in given if name.startswith("p_"))
    loose = [given.pop(name) for name in names]
    return wavenet_sample(given.pop("parameters", loose), given.pop("shape", size), dilations, **given)


def _samples(
    condition: bool = False, held: bool = False, constants: dict[str, Any] | None = None, **options: Any
) -> Callable[[Sizes, torch.dtype, torch.Generator], Case]:
    net = stack(**options)

    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        batch, time = sizes
        tensors = {f"p_{i:02}": t for i, t in enumerate(parameters(net, dtype, generator))}
        tensors["key"] = torch.randint(0, 2**63 - 1, (2,), generator=generator)
        if condition:
            tensors["condition"] = draw((batch, net.layers, 2 * net.gate), dtype, generator, 0.5)
        if net.local:
            tensors["local"] = draw((batch, net.local, time), dtype, generator)
            tensors["local_weight"] = draw((net.layers, 2 * net.gate, net.local), dtype, generator, 0.5)
        if held:
            given = (batch, time // 2)
            tensors["x_init"] = (
                draw(given, dtype, generator) if net.real else torch.randint(net.levels, given, generator=generator)
            )
        fixed = {
            "size": (batch, time), "dilations": net.dilations, "first": 5, "head": HEADS[net.head],
            "levels": net.levels or 256,
        }  # fmt: skip
        return Case(tensors, fixed | (constants or {}))

    return make


def _part(case: Case, start: int, stop: int) -> Case:
    rows = ("x_init", "condition", "local")
    constants = dict(
        case.constants, first=case.constants["first"] + start, size=(stop - start, case.constants["size"][1])
    )
    return Case({name: t[start:stop] if name in rows else t for name, t in case.tensors.items()}, constants)


def _spoil(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arguments: arguments.update(changes)


def _replace(place: int, change: Callable[[Tensor], object]) -> Callable[[dict[str, Any]], None]:
    def spoil(arguments: dict[str, Any]) -> None:
        arguments[f"p_{place:02}"] = change(arguments[f"p_{place:02}"])

    return spoil


def _without_last(arguments: dict[str, Any]) -> None:
    arguments["parameters"] = [arguments[name] for name in sorted(arguments) if name.startswith("p_")][:-1]


def _nan(t: Tensor) -> Tensor:
    t = t.clone()
    t.view(-1)[0] = float("nan")
    return t


_ERRORS = (
    ErrorCase("no tensor", _replace(3, lambda t: [1.0]), TypeError, r"parameters\[3\] must be a torch.Tensor, got list"),
    ErrorCase("half", _replace(2, lambda t: t.half()), TypeError, r"must be float32 or float64, got parameters\[2\].*16"),
    ErrorCase("other dtype", _replace(2, lambda t: t.double()), TypeError, "share one dtype, got torch.float32 and"),
    ErrorCase("elsewhere", _replace(2, lambda t: t.to("meta")), ValueError, "parameters must be on one device, got"),
    ErrorCase("a few", _without_last, ValueError, "6 and 4 for each of the 3 layers, 18, .*, got 17"),
    ErrorCase("flat", _replace(0, lambda t: t[0]), ValueError, r"parameters\[0\] must have 3 dimension.*, got 2"),
    ErrorCase(
        "narrow", _replace(2, lambda t: t[:, :5]), ValueError, r"\[2\], layers\[0\].dilated.weight, must have shape .*got"
    ),
    ErrorCase("long bias", _replace(3, lambda t: t.repeat(2)), ValueError, r"layers\[0\].dilated.bias, must have shape"),
    ErrorCase("no taps", _replace(0, lambda t: t[:, :, :0]), ValueError, "every layer must have channels and taps"),
    ErrorCase(
        "inputs", _replace(0, lambda t: t.repeat(1, 2, 1)), ValueError, "must have 1 or the number of levels, 5 input.*got 2"
    ),
    ErrorCase("NaN", _replace(4, _nan), ValueError, r"parameters\[4\] must be finite, got nan"),
    ErrorCase("head", _spoil(head="bernoulli"), ValueError, "head must be one of 'categorical', .* got 'bernoulli'"),
    ErrorCase("one level", _spoil(levels=1), ValueError, "levels must be an int from 2 to 65536, got 1"),
    ErrorCase("few outputs", _spoil(levels=6), ValueError, "a categorical head has 6 outputs, got 5"),
    ErrorCase("a fraction", _spoil(head="mixture"), ValueError, "a mixture has 3 outputs a component, got 5 outputs"),
    ErrorCase("real", _spoil(head="gaussian"), ValueError, "a gaussian head has 2 outputs, got 5"),
    ErrorCase("dilation 0", _spoil(dilations=(1, 0, 1)), ValueError, r"dilations must be positive ints.*\(1, 0, 1\)"),
    ErrorCase("no layers", _spoil(dilations=()), ValueError, r"dilations must be positive ints.*\(\)"),
    ErrorCase("an image", _spoil(shape=(2, 3, 4)), ValueError, r"shape must be \(batch, time\), got \(2, 3, 4\)"),
    ErrorCase("cold", _spoil(temperature=0.0), ValueError, "temperature must be more than 0 and finite, got 0.0"),
    ErrorCase("key of floats", _spoil(key=torch.zeros(2)), ValueError, "key must be an int64.*float32"),
    ErrorCase("first < 0", _spoil(first=-1), ValueError, "first must be a non-negative int, got -1"),
    ErrorCase("first 2^32", _spoil(first=2**32 - 1), ValueError, "numbered in 32 bits, got first=4294967295"),
    ErrorCase("chunk", _spoil(chunk=0), ValueError, "chunk must be a positive int, got 0"),
    ErrorCase("condition", _spoil(condition=torch.zeros(2, 6)), ValueError, r"condition must have shape \(2, 3, 10\)"),
    ErrorCase("local alone", _spoil(local=torch.zeros(2, 1, 5)), ValueError, "go together, got local alone"),
    ErrorCase("local weight alone", _spoil(local_weight=torch.zeros(3, 10, 1)), ValueError, "got local_weight alone"),
    ErrorCase(
        "short local",
        _spoil(local=torch.zeros(2, 1, 4), local_weight=torch.zeros(3, 10, 1)),
        ValueError,
        r"local must have shape \(2, 1, 5\), got \(2, 1, 4\)",
    ),
    ErrorCase(
        "local of another dtype",
        _spoil(local=torch.zeros(2, 1, 5).double(), local_weight=torch.zeros(3, 10, 1)),
        TypeError,
        "share one dtype, got parameters torch.float32, local torch.float64",
    ),
    ErrorCase("x_init of floats", _spoil(x_init=torch.zeros(2, 1)), TypeError, "must hold levels as integers, got.*32"),
    ErrorCase("long x_init", _spoil(x_init=torch.zeros(2, 6).long()), ValueError, r"first samples of \(2, 5\).*\(2, 6\)"),
    ErrorCase("a level too far", _spoil(x_init=torch.full((2, 1), 5)), ValueError, "levels from 0 to 4, got 5"),
    ErrorCase("backend", _spoil(backend="fast"), ValueError, "unknown backend 'fast'"),
)  # fmt: skip


def _row(variant: str, errors: tuple[ErrorCase, ...] = (), **options: Any) -> OperatorRow:
    real = options.get("head") == "gaussian"
    return OperatorRow(
        name=f"wavenet_sample[{variant}]",
        operator="wavenet_sample",
        function=_sample,
        outputs=("x",),
        make=_samples(**options),
        # (batch, time)
        sizes=((2, 5), (1, 1), (0, 2), (2, 0), (7, 3), (18, 6), (1, 23)),
        ranks=(2,),
        dynamic=((3, 1), (5, 1)),
        limit=60,
        dtypes=FLOATS,
        errors=errors,
        part=_part,
        exact=() if real else ("x",),
        same_bits=("x",),
    )


ROWS = (
    _row("categorical", _ERRORS),
    _row("one-hot", inputs=5, condition=True, held=True, constants={"temperature": 0.75}, kernel=3, dilations=(2, 1)),
    _row("mixture", head="mixture", levels=65536, local=3, held=True, first=1),
    _row("gaussian", head="gaussian", condition=True, local=2, held=True, constants={"temperature": 0.9}),
)
