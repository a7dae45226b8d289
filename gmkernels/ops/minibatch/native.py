"""Launchers of the C++ core: allocate the outputs, hand over addresses and strides."""

from __future__ import annotations

from torch import Tensor

from gmkernels.core.layout import contiguous_like
from gmkernels.core.native import DTYPES, cpu

_core = cpu()


def _input(m: Tensor) -> tuple[int, ...]:
    return (*m.shape, DTYPES[m.dtype], m.data_ptr(), *m.stride())


def minibatch_discrimination(m: Tensor) -> Tensor:
    out = m.new_empty(m.shape[0], m.shape[1])
    _core.minibatch_discrimination(*_input(m), 0, 0, out.data_ptr(), 0)
    return out


def minibatch_discrimination_backward(grad: Tensor, m: Tensor) -> Tensor:
    grad, out = grad.contiguous(), contiguous_like(m)
    _core.minibatch_discrimination_backward(*_input(m), grad.data_ptr(), 0, 0, out.data_ptr())
    return out


def minibatch_discrimination_double_backward(grad_grad_m: Tensor, grad: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    v, grad = grad_grad_m.contiguous(), grad.contiguous()
    out, out_m = m.new_empty(m.shape[0], m.shape[1]), contiguous_like(m)
    _core.minibatch_discrimination_double_backward(
        *_input(m), grad.data_ptr(), v.data_ptr(), out.data_ptr(), out_m.data_ptr()
    )
    return out, out_m
