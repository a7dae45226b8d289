"""Launchers of the C++ core for the inverse of a masked autoregressive layer."""

from __future__ import annotations

from torch import Tensor

from gmkernels.core.layout import address, contiguous_like
from gmkernels.core.native import DTYPES, cpu
from gmkernels.ops.coupling import SCALE_MAPS

from .made_library import room
from .made_network import ACTIVATIONS

_core = cpu()


def made_inverse(
    z: Tensor,
    parameters: Tensor,
    condition: Tensor | None,
    degrees: Tensor,
    widths: list[int],
    residual: bool,
    activation: str,
    scale_map: str,
    clamp: float,
) -> tuple[Tensor, Tensor]:
    x, logdet = contiguous_like(z), z.new_empty(z.shape[0])
    alive = [None if t is None else t.contiguous() for t in (degrees, parameters, condition, z)]
    _core.made_inverse(
        *z.shape, widths, DTYPES[z.dtype], residual, ACTIVATIONS.index(activation), SCALE_MAPS.index(scale_map), clamp,
        *map(address, alive), 0, 0, x.data_ptr(), logdet.data_ptr(), 0, 0,
    )  # fmt: skip
    return x, logdet


def made_inverse_backward(
    grad_x: Tensor,
    grad_logdet: Tensor,
    x: Tensor,
    parameters: Tensor,
    condition: Tensor | None,
    degrees: Tensor,
    widths: list[int],
    residual: bool,
    activation: str,
    scale_map: str,
    clamp: float,
) -> tuple[Tensor, Tensor, Tensor]:
    by_z, by_parameters, by_condition = room(x, parameters, widths[0])
    alive = [None if t is None else t.contiguous() for t in (degrees, parameters, condition, x, grad_x, grad_logdet)]
    _core.made_inverse_backward(
        *x.shape, widths, DTYPES[x.dtype], residual, ACTIVATIONS.index(activation), SCALE_MAPS.index(scale_map), clamp,
        *map(address, alive), by_z.data_ptr(), 0, by_parameters.data_ptr(), by_condition.data_ptr(),
    )  # fmt: skip
    return by_z, by_parameters, by_condition
