"""Launchers of the C++ core: allocate the outputs, hand over addresses and strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gmkernels.core.layout import address
from gmkernels.core.native import DTYPES, cpu

from .library import coupling_outputs, gradients, likelihood_outputs, outputs

_core = cpu()
_ACTIVATIONS = {"relu": 0, "silu": 1, "tanh": 2}
_MAPS = {
    name: i for i, name in enumerate(("exp", "tanh", "atan", "sigmoid", "reciprocal_sigmoid", "softplus", "soft_clip"))
}
Parameters = Sequence[Tensor | None]


def _rows(t: Tensor) -> Tensor:
    """Rows of numbers one after another, however far apart the rows are."""
    return t if t.stride(1) == 1 or t.shape[1] < 2 else t.contiguous()


def _half(t: Tensor) -> bool:
    return t.dtype in (torch.float16, torch.bfloat16)


def _lift(arguments: Sequence[Any]) -> list[Any]:
    return [t.float() if isinstance(t, Tensor) else t for t in arguments]


def _forward(
    x: Tensor,
    first: int,
    parameters: Parameters,
    activation: str,
    y: Tensor,
    hidden: Tensor,
    coupling: Any = None,
    each: Any = None,
    judge: Any = None,
) -> None:
    """``first`` is the width that the first layer reads."""
    if not y.numel() and not hidden.numel():
        return
    x, flat = _rows(x), [None if t is None else t.contiguous() for t in parameters]
    widths = [first, *(w.shape[0] for w in flat[::2] if w is not None)]
    _core.mlp(
        y.shape[0], widths, DTYPES[x.dtype], _ACTIVATIONS[activation], x.data_ptr(), x.stride(0), 0, 0,
        list(map(address, flat)), y.data_ptr(), hidden.data_ptr(), 0, [], coupling, each, judge,
    )  # fmt: skip


def _backward(
    grad: Tensor,
    hidden: Tensor,
    x: Tensor,
    first: int,
    parameters: Parameters,
    activation: str,
    found: Sequence[Tensor],
    needs: int,
    coupling: Any = None,
    each: Any = None,
    judge: Any = None,
) -> None:
    grad, hidden, x = _rows(grad), hidden.contiguous(), _rows(x)
    flat = [None if t is None else t.contiguous() for t in parameters]
    widths = [first, *(w.shape[0] for w in flat[::2] if w is not None)]
    by_x, *by_parameters = _places(found, needs)
    _core.mlp_backward(
        grad.shape[0], widths, DTYPES[x.dtype], _ACTIVATIONS[activation], x.data_ptr(), x.stride(0), grad.data_ptr(),
        grad.stride(0), list(map(address, flat)), 0, hidden.data_ptr(), by_x, by_parameters, coupling, each, judge,
    )  # fmt: skip


def _places(found: Sequence[Tensor], needs: int) -> list[int]:
    """Addresses of the gradients whose bit of ``needs`` is set."""
    return [t.data_ptr() if needs >> i & 1 and t.numel() else 0 for i, t in enumerate(found)]


def mlp(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    if _half(x):
        y, hidden = mlp(*_lift((x, *rest)))
        return y.to(x.dtype), hidden
    *parameters, each, activation = rest
    y, hidden = outputs(x, parameters, each)
    rows = None if each is None else each.contiguous()
    pairs = None if rows is None else (len(rows), rows.data_ptr(), 0)
    _forward(x, x.shape[1], parameters, activation, y, hidden, each=pairs)
    return y, hidden


def mlp_backward(grad: Tensor, hidden: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    if _half(x):
        return tuple(t.to(x.dtype) for t in mlp_backward(*_lift((grad, hidden, x, *rest))))
    *parameters, each, activation, needs = rest
    found = gradients(x, (*parameters, each), needs)
    if each is not None and not len(grad):
        return tuple(t.zero_() for t in found)
    rows = None if each is None else each.contiguous()
    pairs = None if rows is None else (len(rows), rows.data_ptr(), *_places(found[-1:], needs >> len(found) - 1))
    _backward(grad, hidden, x, x.shape[1], parameters, activation, found[:-1], needs, each=pairs)
    return found


def bernoulli_log_likelihood_mlp(z: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    if _half(z):
        return bernoulli_log_likelihood_mlp(*_lift((z, *rest)))
    *parameters, x, activation = rest
    found, slopes, hidden = likelihood_outputs(z, parameters)
    if not slopes.numel():
        found.zero_()
    if len(z):
        x = _rows(x)
        judge = (x.data_ptr(), x.stride(0), len(z) // len(x), found.data_ptr(), 0)
        _forward(z, z.shape[1], parameters, activation, slopes, hidden, judge=judge)
    return found, slopes, hidden


def bernoulli_log_likelihood_mlp_backward(
    grad: Tensor, slopes: Tensor, hidden: Tensor, z: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    if _half(z):
        found = bernoulli_log_likelihood_mlp_backward(*_lift((grad, slopes, hidden, z, *rest)))
        return tuple(t.to(z.dtype) for t in found)
    *parameters, _, activation, needs = rest
    found, grad = gradients(z, parameters, needs), grad.contiguous()
    judge = (0, 0, 0, 0, grad.data_ptr())
    _backward(slopes, hidden, z, z.shape[1], parameters, activation, found, needs, judge=judge)
    return found


def affine_coupling_mlp(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    if _half(x):
        y, logdet, hidden = affine_coupling_mlp(*_lift((x, *rest)))
        return y.to(x.dtype), logdet, hidden
    *parameters, log_scale, shift, split, activation, scale_map, clamp, inverse = rest
    y, logdet, hidden = coupling_outputs(x, parameters)
    if len(x):
        norm = [None if t is None else t.contiguous() for t in (log_scale, shift)]
        coupling = (
            x.shape[1], split, _MAPS[scale_map], inverse, clamp, 0, logdet.data_ptr(), *map(address, norm), 0, 0
        )  # fmt: skip
        _forward(x, abs(split), parameters, activation, y, hidden, coupling)
    return y, logdet, hidden


def affine_coupling_mlp_backward(
    grad: Tensor, grad_logdet: Tensor, hidden: Tensor, x: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    if _half(x):
        return tuple(t.to(x.dtype) for t in affine_coupling_mlp_backward(*_lift((grad, grad_logdet, hidden, x, *rest))))
    *parameters, log_scale, shift, split, activation, scale_map, clamp, inverse, needs = rest
    found = gradients(x, (*parameters, log_scale, shift), needs)
    norm = [None if t is None else t.contiguous() for t in (log_scale, shift)]
    grad_logdet = grad_logdet.contiguous()
    coupling = (
        x.shape[1], split, _MAPS[scale_map], inverse, clamp, grad_logdet.data_ptr(), 0, *map(address, norm),
        *_places(found[-2:], needs >> len(found) - 2),
    )  # fmt: skip
    _backward(grad, hidden, x, abs(split), parameters, activation, found[:-2], needs, coupling)
    return found
