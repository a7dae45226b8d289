"""Schemas and fakes of the coupling operators and their derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from gmkernels.core.doors import Operator

from . import reference

_HOW = "str scale_map, float clamp, bool inverse"

# Whose log-scale is a constant times an elementary function of its argument, which forward can keep for backward.
MAPS_WITH_INNER = ("tanh", "atan")


def wide(a: Tensor, b: Tensor | None = None) -> torch.dtype:
    """The dtype that sums are kept in: float64 if anything is, else float32."""
    return torch.float64 if torch.float64 in (a.dtype, b.dtype if b is not None else None) else torch.float32


def inner_like(x: Tensor, dtype: torch.dtype, keep: bool) -> Tensor:
    """Room for what forward keeps of a scale map; empty if it is to keep nothing."""
    return (
        torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format) if keep else x.new_empty(0, dtype=dtype)
    )


def _fake(x, log_scale, shift, mask, scale_map, clamp, inverse, keep):
    dtype = wide(x, log_scale)
    return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=dtype), inner_like(x, dtype, keep)


def _fake_backward(grad_y, grad_logdet, x, log_scale, shift, mask, inner, scale_map, clamp, inverse):
    return x.new_empty(x.shape), log_scale.new_empty(x.shape)


def _fake_double_backward(
    grad_grad_x, grad_grad_s, grad_y, grad_logdet, x, log_scale, shift, mask, scale_map, clamp, inverse
):
    return x.new_empty(x.shape), torch.empty_like(grad_logdet), x.new_empty(x.shape), log_scale.new_empty(x.shape)


affine_coupling = Operator(
    "coupling",
    f"affine_coupling(Tensor x, Tensor log_scale, Tensor shift, Tensor? mask, {_HOW}, bool keep, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    _fake,
    reference.affine_coupling,
    internal=1,
)
affine_coupling_backward = Operator(
    "coupling",
    "affine_coupling_backward(Tensor grad_y, Tensor grad_logdet, Tensor x, Tensor log_scale, Tensor shift,"
    f" Tensor? mask, Tensor inner, {_HOW}, str backend) -> (Tensor, Tensor)",
    _fake_backward,
)
affine_coupling_double_backward = Operator(
    "coupling",
    "affine_coupling_double_backward(Tensor grad_grad_x, Tensor grad_grad_s, Tensor grad_y, Tensor grad_logdet,"
    f" Tensor x, Tensor log_scale, Tensor shift, Tensor? mask, {_HOW}, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_double_backward,
)


def _fake_planar(z, u, w, b):
    return z.new_empty(z.shape), z.new_empty(z.shape[0], dtype=wide(z))


def _fake_planar_backward(grad_z, grad_logdet, z, u, w, b):
    return z.new_empty(z.shape), u.new_empty(u.shape), w.new_empty(w.shape), b.new_empty(b.shape)


def _fake_planar_double_backward(v_z, v_u, v_w, v_b, grad_z, grad_logdet, z, u, w, b):
    return (
        z.new_empty(z.shape),
        torch.empty_like(grad_logdet),
        *_fake_planar_backward(grad_z, grad_logdet, z, u, w, b),
    )


planar_flow = Operator(
    "coupling",
    "planar_flow(Tensor z, Tensor u, Tensor w, Tensor b, str backend) -> (Tensor, Tensor)",
    _fake_planar,
    reference.planar_flow,
)
planar_flow_backward = Operator(
    "coupling",
    "planar_flow_backward(Tensor grad_z, Tensor grad_logdet, Tensor z, Tensor u, Tensor w, Tensor b, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_planar_backward,
)
planar_flow_double_backward = Operator(
    "coupling",
    "planar_flow_double_backward(Tensor v_z, Tensor v_u, Tensor v_w, Tensor v_b, Tensor grad_z, Tensor grad_logdet,"
    " Tensor z, Tensor u, Tensor w, Tensor b, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_planar_double_backward,
)
