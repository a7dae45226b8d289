"""Launchers of the C++ core: allocate the outputs, hand over addresses and strides."""

from __future__ import annotations

import torch
from torch import Tensor

from gmkernels.core.layout import address, contiguous_like, operands
from gmkernels.core.native import DTYPES, cpu

from .library import inner_like, wide
from .reference import SCALE_MAPS

_MAPS = {name: number for number, name in enumerate(SCALE_MAPS)}
_core = cpu()
_NOTHING = {dtype: torch.empty(0, dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64)}


def affine_coupling(
    x: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    mask: Tensor | None,
    scale_map: str,
    clamp: float,
    inverse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = wide(x, log_scale)
    y, logdet = contiguous_like(x), x.new_empty(x.shape[0], dtype=dtype)
    inner = inner_like(x, dtype, keep) if keep else _NOTHING[dtype]  # a tensor of its own takes a microsecond
    sizes, (x_, s_, t_), _alive = operands(x, log_scale, shift)
    _core.affine_coupling(
        sizes, x_, s_, t_, None, None, None, 0, address(mask), 0,
        0, 0, y.data_ptr(), logdet.data_ptr(), inner.data_ptr(), _MAPS[scale_map], clamp, inverse,
    )  # fmt: skip
    return y, logdet, inner


def affine_coupling_backward(
    grad_y: Tensor,
    grad_logdet: Tensor,
    x: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    mask: Tensor | None,
    inner: Tensor,
    scale_map: str,
    clamp: float,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    grad_x, grad_s = contiguous_like(x), contiguous_like(log_scale)
    grad_logdet, inner = grad_logdet.contiguous(), inner.contiguous()
    sizes, (g_, x_, s_, t_), _alive = operands(grad_y, x, log_scale, shift)
    _core.affine_coupling_backward(
        sizes, x_, s_, t_, g_, None, None, grad_logdet.data_ptr(), address(mask), inner.data_ptr(),
        grad_x.data_ptr(), grad_s.data_ptr(), 0, 0, 0, _MAPS[scale_map], clamp, inverse,
    )  # fmt: skip
    return grad_x, grad_s


def affine_coupling_double_backward(
    grad_grad_x: Tensor,
    grad_grad_s: Tensor,
    grad_y: Tensor,
    grad_logdet: Tensor,
    x: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    mask: Tensor | None,
    scale_map: str,
    clamp: float,
    inverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_grad_y, grad_x, grad_s = contiguous_like(x), contiguous_like(x), contiguous_like(log_scale)
    grad_logdet = grad_logdet.contiguous()
    grad_grad_logdet = torch.empty_like(grad_logdet)
    sizes, (vx_, vs_, g_, x_, s_, t_), _alive = operands(grad_grad_x, grad_grad_s, grad_y, x, log_scale, shift)
    _core.affine_coupling_double_backward(
        sizes, x_, s_, t_, g_, vx_, vs_, grad_logdet.data_ptr(), address(mask), 0,
        grad_x.data_ptr(), grad_s.data_ptr(), grad_grad_y.data_ptr(), grad_grad_logdet.data_ptr(), 0,
        _MAPS[scale_map], clamp, inverse,
    )  # fmt: skip
    return grad_grad_y, grad_grad_logdet, grad_x, grad_s


def planar_flow(z: Tensor, u: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    z, u, w, b = z.contiguous(), u.contiguous(), w.contiguous(), b.contiguous()
    out, logdet = contiguous_like(z), z.new_empty(z.shape[0], dtype=wide(z))
    _core.planar_flow(
        *z.shape, u.shape[0], DTYPES[z.dtype], z.data_ptr(), u.data_ptr(), w.data_ptr(), b.data_ptr(),
        0, 0, 0, 0, 0, 0, out.data_ptr(), 0, 0, 0, 0, logdet.data_ptr(),
    )  # fmt: skip
    return out, logdet


def planar_flow_backward(
    grad_z: Tensor, grad_logdet: Tensor, z: Tensor, u: Tensor, w: Tensor, b: Tensor
) -> tuple[Tensor, ...]:
    ins = [t.contiguous() for t in (z, u, w, b, grad_z, grad_logdet)]
    outs = [contiguous_like(t) for t in ins[:4]]
    _core.planar_flow_backward(
        *z.shape, u.shape[0], DTYPES[z.dtype], *(t.data_ptr() for t in ins), 0, 0, 0, 0,
        *(t.data_ptr() for t in outs), 0, 0,
    )  # fmt: skip
    return tuple(outs)


def planar_flow_double_backward(
    v_z: Tensor,
    v_u: Tensor,
    v_w: Tensor,
    v_b: Tensor,
    grad_z: Tensor,
    grad_logdet: Tensor,
    z: Tensor,
    u: Tensor,
    w: Tensor,
    b: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    ins = [t.contiguous() for t in (z, u, w, b, grad_z, grad_logdet, v_z, v_u, v_w, v_b)]
    outs = [contiguous_like(t) for t in ins[:6]]
    _core.planar_flow_double_backward(
        *z.shape, u.shape[0], DTYPES[z.dtype], *(t.data_ptr() for t in ins), *(t.data_ptr() for t in outs)
    )
    grad_z_, grad_u, grad_w, grad_b, grad_grad_z, grad_grad_logdet = outs
    return grad_grad_z, grad_grad_logdet, grad_z_, grad_u, grad_w, grad_b
