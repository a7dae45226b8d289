"""Checks of values, not of shapes: they read whole tensors, so only the CPU makes them.

The reference calls them first. The C++ core notices by itself, while it reads the tensors anyway, and its launcher
comes here for the sentence. On a GPU looking would wait for the device. It is NumPy that looks: torch's own loops share
large tensors out to threads, for which a forked child would wait for ever.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gmkernels.core.doors import transforming


def visible_here(*tensors: Tensor | None) -> bool:
    """Whether there are values to look at: ordinary CPU tensors, and no compiler or transform at work."""
    if torch.compiler.is_compiling() or transforming():
        return False
    return all(t is None or (type(t) in (Tensor, torch.nn.Parameter) and t.is_cpu) for t in tensors)


def array(t: Tensor) -> np.ndarray[Any, Any]:
    """The same numbers as an array, without a copy where NumPy has the dtype."""
    t = t.detach()
    return (t.double() if t.dtype is torch.bfloat16 else t).resolve_neg().numpy()


def refuse(op: str, name: str, wanted: str, value: Any) -> None:
    raise ValueError(f"{op}: {name} must {wanted}, got {float(value):g}")


def finite(op: str, **tensors: Tensor | None) -> None:
    for name, t in tensors.items():
        if t is None:
            continue
        x = array(t)
        # A sum is quicker than asking each number; it is finite only if they all are.
        with np.errstate(invalid="ignore", over="ignore"):
            if np.isfinite(x.sum()):
                continue
        bad = ~np.isfinite(x)
        if bad.any():
            refuse(op, name, "be finite", x[bad][0])


def binary(op: str, name: str, value: Tensor) -> None:
    """States of binary units."""
    x = array(value)
    right = x * x == x
    if not right.all():
        refuse(op, name, "hold 0 and 1 only, as binary units do", x[~right][0])


def spins(op: str, name: str, value: Tensor) -> None:
    """States of units that are -1 or 1."""
    x = array(value)
    right = np.abs(x) == 1.0
    if not right.all():
        refuse(op, name, "hold -1 and 1 only, as spins do", x[~right][0])


def symmetric(op: str, name: str, value: Tensor) -> None:
    """Weights of a fully connected machine."""
    x = array(value)
    diagonal = x.diagonal()
    if diagonal.any():
        i = diagonal.nonzero()[0][0]
        raise ValueError(f"{op}: {name} must have a zero diagonal, got {name}[{i}, {i}] = {x[i, i]}")
    unlike = x != x.T
    if unlike.any():
        i, j = np.argwhere(unlike)[0]
        raise ValueError(
            f"{op}: {name} must be symmetric, got {name}[{i}, {j}] = {x[i, j]} and {name}[{j}, {i}] = {x[j, i]}"
        )


def inverse_temperature(op: str, beta: Tensor | None, positive: bool) -> None:
    """``beta`` of every chain: finite, and 0 only where nothing is divided by it."""
    if beta is None:
        return
    x = array(beta)
    right = ((x > 0) if positive else (x >= 0)) & np.isfinite(x)
    if not right.all():
        least = "more than 0, for Gaussian units," if positive else "0 or more"
        refuse(op, "beta", f"be {least} and finite", x[~right][0])


def gibbs(
    op: str,
    v: Tensor,
    weight: Tensor,
    visible_bias: Tensor | None,
    hidden_bias: Tensor | None,
    beta: Tensor | None,
    gaussian: bool,
) -> None:
    """What ``rbm_gibbs`` asks of the values."""
    finite(op, weight=weight, visible_bias=visible_bias, hidden_bias=hidden_bias)
    inverse_temperature(op, beta, gaussian)
    if gaussian:
        finite(op, v=v)
    else:
        binary(op, "v", v)


def conditional(op: str, given: Tensor, weight: Tensor, bias: Tensor, beta: Tensor | None, gaussian: bool) -> None:
    """What ``rbm_sample_hidden`` and ``rbm_sample_visible`` ask of the values."""
    finite(op, weight=weight, bias=bias)
    inverse_temperature(op, beta, gaussian)
    finite(op, states=given)
