"""Launchers against the reference: every output of an operator and of its two derivatives, from guarded memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gmkernels.core import backends
from gmkernels.testing import redzones
from gmkernels.testing.budget import error

DEVICE = "cpu" if backends.interpreting() else "cuda"
Launchers = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]


def draw(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype)


def tuples(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def launched(
    launchers: Launchers, inputs: Sequence[Tensor], grads: Sequence[Tensor], tops: Sequence[Tensor], *constants: Any
) -> dict[str, Tensor]:
    """Outputs, gradients, and gradients of gradients, with everything in guarded memory."""
    forward, backward, double = launchers
    with redzones() as zones:
        inputs, grads, tops = ([zones.copy(t) for t in group] for group in (inputs, grads, tops))
        found = tuples(forward(*inputs, *constants))
        first = tuples(backward(*grads, *inputs, *constants))
        second = tuples(double(*tops, *grads, *inputs, *constants))
    named = {f"out{n}": t for n, t in enumerate(found)}
    named |= {f"grad_{n}": t for n, t in enumerate(first)}
    return named | {f"double_{n}": t for n, t in enumerate(second)}


def defined(
    reference: Callable[..., Any], inputs: Sequence[Tensor], grads: Sequence[Tensor], tops: Sequence[Tensor], wide: bool
) -> dict[str, Tensor]:
    """The same by autograd through the reference, in float64 if ``wide``.

    The derivatives are those by as many leading inputs as ``tops`` has; a gradient by another one is left to autograd.
    """

    def leaf(t: Tensor) -> Tensor:
        return (t.double() if wide else t).detach().requires_grad_()

    inputs, grads = [leaf(t) for t in inputs], [leaf(t) for t in grads]
    wanted = inputs[: len(tops)]
    found = tuples(reference(*inputs))
    first = torch.autograd.grad(found, wanted, grads, create_graph=True)
    second = torch.autograd.grad(first, [*grads, *wanted], [t.to(f.dtype) for t, f in zip(tops, first, strict=True)])
    named = {f"out{n}": t for n, t in enumerate(found)}
    named |= {f"grad_{n}": t for n, t in enumerate(first)}
    return {name: t.detach() for name, t in (named | {f"double_{n}": t for n, t in enumerate(second)}).items()}


def check(
    launchers: Launchers,
    reference: Callable[..., Any],
    inputs: Sequence[Tensor],
    wanted: int,
    constants: Sequence[Any] = (),
) -> None:
    """No result is further from float64 than ten times PyTorch's autograd in the same dtype, or 64 half-ULPs.

    A wrong tile, stride or term is off by thousands. Budgets proper need many draws: tests/ops/test_numerics.py has them.
    """
    outputs = tuples(reference(*inputs))
    grads = [draw(*t.shape, seed=50 + n, dtype=t.dtype) for n, t in enumerate(outputs)]
    tops = [draw(*t.shape, seed=70 + n, dtype=t.dtype) for n, t in enumerate(inputs[:wanted])]
    ours = launched(launchers, inputs, grads, tops, *constants)
    eager, exact = (defined(reference, inputs, grads, tops, wide) for wide in (False, True))
    assert set(ours) == set(exact)
    for name in exact:
        found, limit = error(ours[name], exact[name]), max(64.0, 10.0 * error(eager[name], exact[name]))
        assert found <= limit, f"{name}: error {found:.3g} > {limit:.3g}"
