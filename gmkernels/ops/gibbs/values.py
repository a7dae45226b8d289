"""Checks of values, not of shapes: they read whole tensors, so only the CPU makes them.

The reference calls them first. The C++ core notices by itself, while it reads the tensors anyway, and its launcher
comes here for the sentence. On a GPU looking would wait for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gmkernels.core.doors import transforming


def visible_here(*tensors: Tensor | None) -> bool:
    """Whether there are values to look at: ordinary CPU tensors, and no compiler or transform at work."""
    if torch.compiler.is_compiling() or transforming():
        return False
    return all(t is None or (type(t) in (Tensor, torch.nn.Parameter) and t.is_cpu) for t in tensors)


def finite(op: str, **tensors: Tensor | None) -> None:
    for name, t in tensors.items():
        if t is not None and not bool((bad := ~t.isfinite()).any()):
            continue
        if t is not None:
            raise ValueError(f"{op}: {name} must be finite, got {t[bad][0].item()}")


def binary(op: str, name: str, value: Tensor) -> None:
    """States of binary units."""
    bad = (value != 0) & (value != 1)
    if bool(bad.any()):
        raise ValueError(f"{op}: {name} must hold 0 and 1 only, as binary units do, got {value[bad][0].item():g}")


def inverse_temperature(op: str, beta: Tensor | None, positive: bool) -> None:
    """``beta`` of every chain: finite, and 0 only where nothing is divided by it."""
    if beta is None:
        return
    bad = ~((beta > 0 if positive else beta >= 0) & beta.isfinite())
    if bool(bad.any()):
        least = "more than 0, for Gaussian units," if positive else "0 or more"
        raise ValueError(f"{op}: beta must be {least} and finite, got {beta[bad][0].item():g}")


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
