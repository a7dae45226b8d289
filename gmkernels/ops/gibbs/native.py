"""Launchers of the C++ core: allocate the outputs, hand over addresses, and say what was wrong with the values."""

from __future__ import annotations

from torch import Tensor

from gmkernels.core.layout import address
from gmkernels.core.native import DTYPES, cpu

from . import values
from .boltzmann_native import ais_log_z, boltzmann_gibbs, hopfield_recall
from .library import conditional_name, wide

__all__ = [
    "ais_log_z",
    "boltzmann_gibbs",
    "hopfield_recall",
    "rbm_conditional",
    "rbm_gibbs",
    "rbm_softplus_sum",
    "rbm_softplus_sum_backward",
    "rbm_softplus_sum_double_backward",
]

_core = cpu()


def rbm_gibbs(
    v: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    key: Tensor,
    beta: Tensor | None,
    clamp: Tensor | None,
    steps: int,
    first: int,
    gaussian: bool,
    fixed: bool,
) -> tuple[Tensor, Tensor]:
    (chains, visible), hidden = v.shape, weight.shape[1]
    out_v, out_h = v.new_empty(v.shape), v.new_empty(chains, hidden)
    given = [t.contiguous() for t in (v, weight, visible_bias, hidden_bias)]
    beta, clamp = (None if t is None else t.contiguous() for t in (beta, clamp))
    key = key.contiguous()
    run = _core.rbm_gibbs_fixed if fixed else _core.rbm_gibbs
    refused = run(
        chains, visible, hidden, steps, first, DTYPES[v.dtype], gaussian, *map(address, given), address(beta),
        address(clamp), 0 if clamp is None or clamp.dim() == 1 else visible, address(key),
        out_v.data_ptr(), out_h.data_ptr(),
    )  # fmt: skip
    if refused:
        values.gibbs("rbm_gibbs", v, weight, visible_bias, hidden_bias, beta, gaussian)
    return out_v, out_h


def rbm_conditional(
    given: Tensor,
    weight: Tensor,
    bias: Tensor,
    key: Tensor,
    beta: Tensor | None,
    first: int,
    to_visible: bool,
    gaussian: bool,
) -> tuple[Tensor, Tensor]:
    visible, hidden = weight.shape
    sample = given.new_empty(given.shape[0], visible if to_visible else hidden)
    mean = given.new_empty(sample.shape)
    alive = [t.contiguous() for t in (given, weight, bias)]
    beta, key = None if beta is None else beta.contiguous(), key.contiguous()
    refused = _core.rbm_conditional(
        given.shape[0], visible, hidden, first, DTYPES[given.dtype], to_visible, gaussian, *map(address, alive),
        address(beta), address(key), sample.data_ptr(), mean.data_ptr(),
    )  # fmt: skip
    if refused:
        values.conditional(conditional_name(to_visible), given, weight, bias, beta, gaussian)
    return sample, mean


def rbm_softplus_sum(field: Tensor) -> Tensor:
    field, out = field.contiguous(), field.new_empty(field.shape[0], dtype=wide(field))
    _core.rbm_softplus_sum(*field.shape, DTYPES[field.dtype], field.data_ptr(), 0, 0, out.data_ptr(), 0)
    return out


def rbm_softplus_sum_backward(grad: Tensor, field: Tensor) -> Tensor:
    grad, field, out = grad.contiguous(), field.contiguous(), field.new_empty(field.shape)
    _core.rbm_softplus_sum_backward(
        *field.shape, DTYPES[field.dtype], field.data_ptr(), grad.data_ptr(), 0, 0, out.data_ptr()
    )
    return out


def rbm_softplus_sum_double_backward(grad_grad: Tensor, grad: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
    grad_grad, grad, field = grad_grad.contiguous(), grad.contiguous(), field.contiguous()
    out, out_field = field.new_empty(field.shape[0], dtype=wide(field)), field.new_empty(field.shape)
    _core.rbm_softplus_sum_double_backward(
        *field.shape, DTYPES[field.dtype], field.data_ptr(), grad.data_ptr(), grad_grad.data_ptr(), out.data_ptr(),
        out_field.data_ptr(),
    )  # fmt: skip
    return out, out_field
