"""Random numbers: 4,194,304 of them from the counter-based stream, against torch's generator.

Draws differ, so laws are compared: the first four moments of each provider's numbers must lie within seven standard
errors of the distribution's. ``eager`` is what torch calls them, ``compile`` its compiled form, which on a CPU calls the
same generator or one of its own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import gmkernels as gmk

from .case import Built, Case, Inputs, Program, Provider, Setting, backend_of

_COUNT = 1 << 22
_ERRORS = 7.0  # standard errors: one false alarm in 1e11

# Expectations of x, x^2, ... x^8.
_MOMENTS: dict[str, list[float]] = {
    "uniform": [1 / (k + 1) for k in range(1, 9)],
    "normal": [0.0, 1.0, 0.0, 3.0, 0.0, 15.0, 0.0, 105.0],
    "bernoulli": [0.3] * 8,
}


def _inputs(setting: Setting) -> Inputs:
    key = gmk.random.key(seed=setting.seed, device=setting.device)
    p = torch.full((_COUNT,), 0.3, dtype=setting.dtype, device=setting.device)
    return Inputs({"p": p, "key": key}, ())


def _lawful(kind: str, results: Sequence[Tensor]) -> list[Tensor]:
    """Of each of the first four moments, whether it is where it should be."""
    x = results[0].detach().double()
    moments = _MOMENTS[kind]
    found = []
    for k in range(1, 5):
        error = math.sqrt((moments[2 * k - 1] - moments[k - 1] ** 2) / x.numel())
        found.append((x.pow(k).mean() - moments[k - 1]).abs() <= _ERRORS * error)
    return [torch.stack(found).double()]


def _truth(inputs: Inputs, maths: str, mode: str) -> list[Tensor]:
    return [inputs["p"].new_ones(4, dtype=torch.float64)]


def _program(kind: str, call: Callable[[], Tensor], backend: str | None = None) -> Program:
    return Program(lambda: (call(),), results=functools.partial(_lawful, kind), backend=backend)


def _ours(kind: str, inputs: Inputs, mode: str) -> Program:
    key, p = inputs["key"], inputs["p"]
    if kind == "bernoulli":
        return _program(kind, lambda: gmk.random.bernoulli(p, key), backend_of(gmk.random.bernoulli, p, key))
    draw = getattr(gmk.random, kind)
    return _program(kind, lambda: draw(key, (_COUNT,), dtype=p.dtype), backend_of(draw, key))


def _stock(kind: str, p: Tensor) -> Tensor:
    return {"uniform": torch.rand_like, "normal": torch.randn_like, "bernoulli": torch.bernoulli}[kind](p)


def _eager(kind: str, inputs: Inputs, mode: str) -> Program:
    return _program(kind, lambda: _stock(kind, inputs["p"]))


def _compile(kind: str, inputs: Inputs, mode: str) -> Built:
    run = torch.compile(lambda p: _stock(kind, p), fullgraph=True, dynamic=False)
    return _program(kind, lambda: run(inputs["p"]))


def _case(kind: str) -> Case:
    return Case(
        family="random",
        name=f"{kind}-4m",
        shape=f"{_COUNT} numbers",
        inputs=_inputs,
        truth=_truth,
        providers=[
            Provider("gmkernels", functools.partial(_ours, kind)),
            Provider("eager", functools.partial(_eager, kind)),
            Provider("compile", functools.partial(_compile, kind)),
        ],
        modes=("fwd",),
        elements={"fwd": _COUNT * (2 if kind == "bernoulli" else 1)},
    )


CASES = tuple(_case(kind) for kind in _MOMENTS)
