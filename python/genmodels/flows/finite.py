"""Samples that are not finite, and the layer that made them so."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError
from .transforms import Chain, FactorOut, Inverted

if TYPE_CHECKING:
    from .flow import Flow


# What the operators say of an argument or a result that is not.
_FINITE = "must be finite"


def finite_inverse(flow: Flow, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """``flow.inverse``, or an error that names the first layer whose output is NaN or infinite."""
    try:
        x, logdet = flow.inverse(z, context)
    except ValueError as error:
        # An autoregressive layer notices by itself, but does not know where in the flow it stands.
        if _FINITE not in str(error):
            raise
        _blame(flow, z, context)
        raise NonFiniteError(f"{type(flow).__name__}: {error}") from None
    if not bool(x.isfinite().all()):
        _blame(flow, z, context)
        raise NonFiniteError(f"{type(flow).__name__}: {_count(x)} samples are not finite")
    return x, logdet


def finite_forward(flow: Flow, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """``flow.transform``, whose sequential layers say which of them it was that made something that is not finite."""
    try:
        return flow.transform(x, context)
    except ValueError as error:
        if _FINITE not in str(error):
            raise
        with torch.no_grad():
            if not bool(x.isfinite().all()):
                raise NonFiniteError(
                    f"{type(flow).__name__}: {_count(x)} of the given samples are not finite"
                ) from None
            _walk(flow.transform, x, context, False, f"{type(flow).__name__}: transform")
        raise NonFiniteError(f"{type(flow).__name__}: {error}") from None


@torch.no_grad()
def _blame(flow: Flow, z: Tensor, context: Tensor | None) -> None:
    if not bool(z.isfinite().all()):
        raise NonFiniteError(f"{type(flow).__name__}: {_count(z)} of the given latents are not finite")
    _walk(flow.transform, z, context, True, f"{type(flow).__name__}: transform")


def _walk(layer: nn.Module, x: Tensor, context: Tensor | None, backwards: bool, path: str) -> Tensor:
    """The layer's output, its parts run one by one; raises at the first part whose output is not finite."""
    if isinstance(layer, Chain):
        steps = list(enumerate(layer.steps))
        for i, step in reversed(steps) if backwards else steps:
            x = _walk(step, x, context, backwards, f"{path}.steps.{i}")
        return x
    if isinstance(layer, Inverted):
        return _walk(layer.inner, x, context, not backwards, f"{path}.inner")
    if isinstance(layer, FactorOut) and backwards:
        _walk(layer.inner, x[:, math.prod(layer.kept) :], context, True, f"{path}.inner")
    detail = ""
    y = torch.full_like(x, math.nan)
    try:
        y = (layer.inverse if backwards else layer)(x, context)[0]  # type: ignore[operator]
    except ValueError as error:
        if _FINITE not in str(error):
            raise
        detail = f" ({error})"
    if bool(y.isfinite().all()):
        return y
    raise NonFiniteError(
        f"{path} ({type(layer).__name__}) made {_count(y)} samples that are not finite, of values up to "
        f"{float(x.abs().max()):.3g}{detail}; a lower temperature or a smaller clamp of the scales keeps them finite"
    )


def _count(x: Tensor) -> str:
    return f"{int((~x.flatten(1).isfinite().all(1)).sum())} of {len(x)}"
