"""Affine coupling (RealNVP, Glow, MAF steps) and stacks of planar flows, each with its log-determinant."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from gmkernels.core import checks

from . import (
    autograd,  # noqa: F401  (registers the derivatives)
    library,
    reference,
)

__all__ = ["affine_coupling", "clamp_of", "planar_flow", "SCALE_MAPS"]

SCALE_MAPS = tuple(reference.SCALE_MAPS)
_compiling, _grad_enabled = torch.compiler.is_compiling, torch.is_grad_enabled

# Elements up to which tanh or atan is kept for backward: what leaves the caches comes back later than it is computed.
KEPT = 1 << 20


def affine_coupling(
    x: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    *,
    scale_map: str = "exp",
    clamp: float | None = None,
    inverse: bool = False,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Scale and shift every element, and add up the log-determinant of each sample.

    ``y = x * exp(a) + shift`` with ``a = map(log_scale)`` and ``logdet = sum(a)``; with ``inverse=True``
    ``y = (x - shift) * exp(-a)`` and ``logdet = -sum(a)`` (Dinh et al., "Density estimation using Real NVP", 2017,
    equations 4 to 9).

    The maps, with ``s = log_scale``, ``c = clamp`` and the default of ``clamp`` in brackets:

    =====================  ==================================  =========================================
    ``exp``                a = clip(s, -c, c)           [inf]  RealNVP; normflows
    ``tanh``               a = c tanh(s)                  [2]  FrEIA (``TANH``)
    ``atan``               a = 0.636 c atan(s)            [2]  FrEIA (``ATAN``)
    ``sigmoid``            a = ln(sigmoid(s + 2) + c)     [0]  normflows ``sigmoid_inv``; nflows (c = 1e-3)
    ``reciprocal_sigmoid``  a = -ln(sigmoid(s + 2) + c)    [0]  normflows ``sigmoid``
    ``softplus``           a = ln(min(softplus(s) + 1e-3, c))  [inf]  nflows (c = 3 in its coupling)
    ``soft_clip``          a = s / (1 + |s| / c)    [ln 1000]  zuko
    =====================  ==================================  =========================================

    Args:
        x: floating tensor (batch, ...), two dimensions or more, any strides.
        log_scale, shift: one floating dtype (which may differ from that of ``x``), the shape of ``x`` or
            broadcastable to it, any strides: slices such as ``params[:, 0::2]`` are read where they are.
        scale_map: one of the names above.
        clamp: the constant c.
        inverse: undo the transformation.
        mask: bool, broadcastable to ``x.shape[1:]``; where True (the b of Dinh et al., equation 9) the element
            passes through unchanged and adds nothing to the log-determinant.
        backend: ``auto``, ``reference``, ``cpu`` or ``triton``.

    Returns:
        ``y`` in the shape and dtype of ``x``, contiguous, and ``logdet`` (batch,) in float32, or float64 if an
        input is float64. Computation is in that wider dtype.

    Twice differentiable in ``x``, ``log_scale`` and ``shift``. Consumes no randomness. Row-wise and bitwise
    reproducible: a sample's result does not depend on the rest of the batch, on threads, strides or vector width.
    Non-finite values propagate as in PyTorch; an overflow of exp is infinity, not an error. Up to 2^20 elements, the C++
    core keeps tanh(s) or atan(s) for backward beside the inputs; the numbers are the same with or without.

    Raises:
        TypeError: an argument is not a tensor or has an unsupported dtype.
        ValueError: shapes or devices do not fit, or the scale map or clamp is unknown or out of range.
        BackendError: an explicitly requested backend cannot run.
    """
    usual = not _compiling() and checks.alike(x, log_scale, shift) and x.dim() > 1
    if not usual:
        log_scale, shift = _fitted(x, log_scale, shift)
    limit = clamp_of("affine_coupling", scale_map, clamp)
    if inverse is not False and inverse is not True:
        checks.flag("affine_coupling", "inverse", inverse)
    if mask is not None:
        mask = _mask(mask, x)
    keep = (
        scale_map in library.MAPS_WITH_INNER
        and x.is_cpu
        and (usual or not _compiling())  # a graph must not depend on sizes
        and _grad_enabled()
        and (x.requires_grad or log_scale.requires_grad)
        and x.numel() <= KEPT
    )
    return library.affine_coupling(x, log_scale, shift, mask, scale_map, limit, inverse, keep, backend)


def _fitted(x: Tensor, log_scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Log-scale and shift in the shape of x, or the error that says why they cannot be."""
    op = "affine_coupling"
    for name, value in (("x", x), ("log_scale", log_scale), ("shift", shift)):
        checks.floating(op, name, value)
    checks.same_dtype(op, log_scale=log_scale, shift=shift)
    checks.same_device(op, x=x, log_scale=log_scale, shift=shift)
    if x.dim() < 2:
        raise ValueError(f"{op}: x must have shape (batch, ...) of two dimensions or more, got {tuple(x.shape)}")
    return _expand("log_scale", log_scale, x), _expand("shift", shift, x)


def _expand(name: str, value: Tensor, x: Tensor) -> Tensor:
    try:
        return value if value.shape == x.shape else value.expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f"affine_coupling: {name} must have the shape of x, {tuple(x.shape)}, or broadcast to it, "
            f"got {tuple(value.shape)}"
        ) from None


def clamp_of(op: str, scale_map: str, clamp: float | None) -> float:
    """The constant of a scale map: the one given, or its default."""
    if not isinstance(scale_map, str) or scale_map not in reference.SCALE_MAPS:
        checks.choice(op, "scale_map", scale_map, SCALE_MAPS)
    if clamp is None:
        return reference.SCALE_MAPS[scale_map]
    if not isinstance(clamp, numbers.Real | Tensor):
        raise TypeError(f"{op}: clamp must be a number or None, got {clamp!r}")
    zero_allowed = scale_map in ("sigmoid", "reciprocal_sigmoid")
    if not (clamp > 0 or zero_allowed and clamp == 0):
        bound = "0 or more" if zero_allowed else "positive"
        raise ValueError(f"{op}: clamp of {scale_map!r} must be {bound}, got {clamp!r}")
    return float(clamp)


def _mask(mask: Tensor, x: Tensor) -> Tensor:
    checks.tensor("affine_coupling", "mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"affine_coupling: mask must be bool, got {mask.dtype}")
    checks.same_device("affine_coupling", x=x, mask=mask)
    try:
        return mask.expand(x.shape[1:]).contiguous()
    except RuntimeError:
        raise ValueError(
            f"affine_coupling: mask must broadcast to the shape of one sample, {tuple(x.shape[1:])}, "
            f"got {tuple(mask.shape)}"
        ) from None


def planar_flow(z: Tensor, u: Tensor, w: Tensor, b: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """A stack of K planar flows in one call, with the summed log-determinant.

    Each flow is ``z <- z + u' tanh(w.z + b)`` with log-determinant ``ln(1 + (1 - tanh^2) w.u')`` (Rezende and
    Mohamed, "Variational inference with normalizing flows", 2015, equations 10 to 13). It is made invertible as in their
    appendix A.1: ``u' = u + (m(w.u) - w.u) w / |w|^2`` with ``m(a) = softplus(a) - 1``, evaluated without cancellation
    or overflow for any ``w.u``; where ``w`` is zero, ``u' = u``.

    Args:
        z: floating tensor (batch, D).
        u, w: (K, D), and b: (K,), in the dtype of ``z``; flow 0 is applied first. K may be 0.
        backend: ``auto``, ``reference``, ``cpu`` or ``triton``.

    Returns:
        ``z_K`` (batch, D) in the dtype of ``z``, and ``logdet`` (batch,) in float32, or float64 for float64 inputs.

    Twice differentiable in all four. Consumes no randomness. Row-wise: a sample's result does not depend on the batch.

    Raises:
        TypeError: an argument is not a floating tensor, or the dtypes differ.
        ValueError: shapes or devices do not fit.
        BackendError: an explicitly requested backend cannot run.
    """
    for name, value in (("z", z), ("u", u), ("w", w), ("b", b)):
        checks.floating("planar_flow", name, value)
    checks.dims("planar_flow", "z", z, 2, "(batch, D)")
    checks.dims("planar_flow", "u", u, 2, "(K, D)")
    checks.shape("planar_flow", "u", u, (u.shape[0], z.shape[1]))
    checks.shape("planar_flow", "w", w, u.shape)
    checks.shape("planar_flow", "b", b, u.shape[:1])
    checks.same_dtype("planar_flow", z=z, u=u, w=w, b=b)
    checks.same_device("planar_flow", z=z, u=u, w=w, b=b)
    return library.planar_flow(z, u, w, b, backend)
