"""Triton kernels of planar flows: a program keeps the z of a few samples in registers through all K flows.

With a = w.u, v = w / s and n = |v|^2, a flow adds h u' to z, where h = tanh(z.w + b), u' = u + shift v,
shift = (softplus(-a) - 1) / (s n), and gain = softplus(a) = 1 + w.u'; its log-determinant is
log J, J = h^2 + (1 - h^2) gain, a sum of two terms that are never negative. s is a power of two near |w|: the square of a
short or a long w would leave the range of float32. Programs keep v and s; multiplying by s rounds nothing.

The gradients by u, w and b are sums over the batch. A program adds up its samples in memory of its own; a second kernel
adds up the programs. Their number, and with it the order of the sum, depends on the sizes of the problem alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gmkernels.core.triton_launch import architecture, ceil_div, launch, power_of_two
from gmkernels.core.triton_math import log, sigmoid, softplus, tanh


@triton.jit
def _sum(x):
    """The sum of a vector, as a vector of one."""
    return tl.sum(x, axis=0, keep_dims=True)


@triton.jit
def _split(w):
    """v, s and 1 / s: s is the largest power of two up to the largest ``|w|``, from 2^-126 to 2^126; of a zero w, 1."""
    largest = tl.max(tl.abs(w), axis=0, keep_dims=True)
    bits = tl.where(largest == 0.0, 1.0, largest).to(tl.int32, bitcast=True) & 0x7F800000
    bits = tl.minimum(tl.maximum(bits, 0x00800000), 0x7E800000)
    inverse = (0x7F000000 - bits).to(tl.float32, bitcast=True)
    return inverse * w, bits.to(tl.float32, bitcast=True), inverse


@triton.jit
def _direction(u, v, s, inverse):
    """norm (1 where w is zero), whether w is not zero, a, gain, shift and u' of one flow."""
    a = s * _sum(v * u)
    norm = _sum(v * v)
    moving = norm > 0.0
    norm = tl.where(moving, norm, 1.0)
    gain = tl.where(moving, softplus(a), 1.0)
    shift = tl.where(moving, inverse * tl.div_rn(softplus(-a) - 1.0, norm), 0.0)
    return norm, moving, a, gain, shift, tl.fma(shift, v, u)


@triton.jit
def _direction_tangent(u, v, s, inverse, du, dv, norm, moving, a, shift):
    """The derivatives of norm, a, gain, shift and u' along (du, s dv)."""
    dnorm = 2.0 * _sum(v * dv)
    da = s * _sum(dv * u + v * du)
    dgain = tl.where(moving, sigmoid(a) * da, 0.0)
    dshift = tl.where(moving, tl.div_rn(-inverse * sigmoid(-a) * da - shift * dnorm, norm), 0.0)
    return dnorm, da, dgain, dshift, du + tl.fma(dshift, v, shift * dv)


@triton.jit
def _row(data, k, dim, col):
    """Row k of a (K, D) parameter."""
    return tl.load(data + (tl.zeros([1], tl.int64) + k) * dim + col, mask=col < dim, other=0.0).to(tl.float32)


@triton.jit
def _samples(data, row, col, keep, stride_b, stride_d):
    return tl.load(data + (row * stride_b)[:, None] + (col * stride_d)[None, :], mask=keep, other=0.0).to(tl.float32)


@triton.jit
def _dot(a, b):
    """The scalar product of each row of ``a`` with the vector ``b``."""
    return tl.sum(a * b[None, :], axis=1)


@triton.jit
def _outer(weight, row, base):
    """``base`` plus ``row`` times a weight for each sample."""
    return tl.fma(weight[:, None], row[None, :], base)


@triton.jit
def _planar_flow_kernel(
    z, u, w, b, out, logdet, z_b, z_d, batch, dim, flows, ROWS: tl.constexpr, DIMS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, DIMS).to(tl.int64)
    keep = (row < batch)[:, None] & (col < dim)[None, :]
    z_ = _samples(z, row, col, keep, z_b, z_d)
    total = tl.zeros([ROWS], tl.float32)
    for k in tl.range(0, flows, num_stages=1):
        v, s, inverse = _split(_row(w, k, dim, col))
        norm, moving, a, gain, shift, u_hat = _direction(_row(u, k, dim, col), v, s, inverse)
        h = tanh(s * _dot(z_, v) + tl.load(b + k).to(tl.float32))
        z_ = _outer(h, u_hat, z_)
        total += log(tl.fma(tl.fma(-h, h, 1.0), gain, h * h))
    tl.store(out + row[:, None] * dim + col[None, :], z_, mask=keep)
    tl.store(logdet + row, total, mask=row < batch)


@triton.jit
def _add(data, value, later):
    """Add to what this program has stored there, unless it is the first time."""
    tl.store(data, value + tl.load(data, mask=later, other=0.0))


@triton.jit
def _planar_gradient_kernel(
    z, u, w, b, g, l, v_z, v_u, v_w, v_b, grad_z, grad_g, grad_l, sums, states,
    z_b, z_d, g_b, g_d, l_b, vz_b, vz_d, batch, dim, flows, tiles, programs,
    DOUBLE: tl.constexpr, ROWS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """The first derivative, or its tangent along v (in names: d). A sweep through the flows keeps z and h; one goes back.

    For each program and flow, ``states`` holds z, its tangent, h and its tangent before the flow, and ``sums`` the
    gradients by u', w, gain and b. In the double kernel the gradients by w and b are tangents, and those by u' and gain
    are followed by theirs.
    """
    STATE: tl.constexpr = 2 * ROWS * (DIMS + 1)
    SUM: tl.constexpr = 3 * DIMS + 3
    lane, col = tl.arange(0, ROWS), tl.arange(0, DIMS).to(tl.int64)
    cell = lane[:, None] * DIMS + col[None, :]
    own = (tl.zeros([1], tl.int64) + tl.program_id(0)) * flows
    for tile in tl.range(tl.program_id(0), tiles, programs, num_stages=1):
        later = tl.zeros([1], tl.int32) + tile != tl.program_id(0)
        row = (tl.zeros([1], tl.int64) + tile) * ROWS + lane
        here = row < batch
        keep = here[:, None] & (col < dim)[None, :]
        z_ = _samples(z, row, col, keep, z_b, z_d)
        if DOUBLE:
            dz = _samples(v_z, row, col, keep, vz_b, vz_d)
            dtotal = tl.zeros([ROWS], tl.float32)
        for k in tl.range(0, flows, num_stages=1):
            state = states + (own + k) * STATE
            u_, (v, s, inverse) = _row(u, k, dim, col), _split(_row(w, k, dim, col))
            norm, moving, a, gain, shift, u_hat = _direction(u_, v, s, inverse)
            h = tanh(s * _dot(z_, v) + tl.load(b + k).to(tl.float32))
            tl.store(state[:, None] + cell, z_)
            tl.store(state + 2 * ROWS * DIMS + lane, h)
            if DOUBLE:
                dv = inverse * _row(v_w, k, dim, col)
                dnorm, da, dgain, dshift, du_hat = _direction_tangent(
                    u_, v, s, inverse, _row(v_u, k, dim, col), dv, norm, moving, a, shift
                )
                q = tl.fma(-h, h, 1.0)
                dh = q * (s * (_dot(dz, v) + _dot(z_, dv)) + tl.load(v_b + k).to(tl.float32))
                tl.store(state[:, None] + ROWS * DIMS + cell, dz)
                tl.store(state + 2 * ROWS * DIMS + ROWS + lane, dh)
                dz = _outer(dh, u_hat, _outer(h, du_hat, dz))
                dtotal += tl.div_rn(tl.fma(2.0 * h * (1.0 - gain), dh, q * dgain), tl.fma(q, gain, h * h))
            z_ = _outer(h, u_hat, z_)
        if DOUBLE:
            tl.store(grad_g + row[:, None] * dim + col[None, :], dz, mask=keep)
            tl.store(grad_l + row, dtotal, mask=here)
        # One thread may read what another has written.
        tl.debug_barrier()
        g_ = _samples(g, row, col, keep, g_b, g_d)
        l_ = tl.load(l + row * l_b, mask=here, other=0.0)
        dg = tl.zeros([ROWS, DIMS], tl.float32)
        for back in tl.range(0, flows, num_stages=1):
            k = flows - 1 - back
            state = states + (own + k) * STATE
            total = sums + (own + k) * SUM
            one = total + 3 * DIMS
            u_, (v, s, inverse) = _row(u, k, dim, col), _split(_row(w, k, dim, col))
            norm, moving, a, gain, shift, u_hat = _direction(u_, v, s, inverse)
            h = tl.load(state + 2 * ROWS * DIMS + lane)
            q = tl.fma(-h, h, 1.0)
            jacobian = tl.fma(q, gain, h * h)
            bend = tl.div_rn(2.0 * h * (1.0 - gain), jacobian)  # d log J / dh
            gh = tl.fma(l_, bend, _dot(g_, u_hat))
            gp = tl.where(here, gh * q, 0.0)
            grown = tl.where(here, tl.div_rn(l_ * q, jacobian), 0.0)  # the gradient by gain
            _add(total + col, tl.sum(h[:, None] * g_, axis=0), later)
            _add(one, _sum(grown), later)
            if DOUBLE:
                dv = inverse * _row(v_w, k, dim, col)
                dnorm, da, dgain, dshift, du_hat = _direction_tangent(
                    u_, v, s, inverse, _row(v_u, k, dim, col), dv, norm, moving, a, shift
                )
                dh = tl.load(state + 2 * ROWS * DIMS + ROWS + lane)
                dq = -2.0 * h * dh
                djacobian = tl.fma(2.0 * h * (1.0 - gain), dh, q * dgain)
                dbend = tl.div_rn(2.0 * dh * (1.0 - gain) - 2.0 * h * dgain - bend * djacobian, jacobian)
                dgh = tl.fma(l_, dbend, _dot(dg, u_hat) + _dot(g_, du_hat))
                dgp = tl.where(here, tl.fma(dgh, q, gh * dq), 0.0)
                dgrown = tl.where(here, tl.div_rn(tl.fma(l_, dq, -grown * djacobian), jacobian), 0.0)
                z_ = tl.load(state[:, None] + cell)
                dz = tl.load(state[:, None] + ROWS * DIMS + cell)
                _add(total + DIMS + col, tl.sum(tl.fma(dgp[:, None], z_, gp[:, None] * dz), axis=0), later)
                _add(total + 2 * DIMS + col, tl.sum(tl.fma(dh[:, None], g_, h[:, None] * dg), axis=0), later)
                _add(one + 1, _sum(dgp), later)
                _add(one + 2, _sum(dgrown), later)
                # Read again rather than kept in registers, of which there are too few for wide samples.
                dg = _outer(dgp, _row(w, k, dim, col), _outer(gp, _row(v_w, k, dim, col), dg))
            else:
                z_ = tl.load(state[:, None] + cell)
                _add(total + DIMS + col, tl.sum(gp[:, None] * z_, axis=0), later)
                _add(one + 1, _sum(gp), later)
            g_ = _outer(gp, _row(w, k, dim, col), g_)
        tl.store(grad_z + row[:, None] * dim + col[None, :], dg if DOUBLE else g_, mask=keep)
        tl.debug_barrier()


@triton.jit
def _total(sums, col, flows, programs, SUM: tl.constexpr, STEP: tl.constexpr):
    """What all programs have at ``sums + col``, added up STEP programs at a time."""
    total = tl.zeros([STEP, col.shape[0]], tl.float32)
    for start in tl.range(0, programs, STEP, num_stages=1):
        program = start + tl.arange(0, STEP).to(tl.int64)
        at = sums + (program * flows * SUM)[:, None] + col[None, :]
        total += tl.load(at, mask=(program < programs)[:, None], other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def _planar_parameters_kernel(
    sums, u, w, v_u, v_w, grad_u, grad_w, grad_b, dim, flows, programs,
    DOUBLE: tl.constexpr, DIMS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Adds up the sums of all programs for one flow, and goes back through its u' and gain to u and w."""
    SUM: tl.constexpr = 3 * DIMS + 3
    k, col = tl.program_id(0), tl.arange(0, DIMS).to(tl.int64)
    one = tl.zeros([1], tl.int64)
    sums += (one + k) * SUM
    u_, (v, s, inverse) = _row(u, k, dim, col), _split(_row(w, k, dim, col))
    norm, moving, a, gain, shift, u_hat = _direction(u_, v, s, inverse)
    g_hat = _total(sums, col, flows, programs, SUM, STEP)
    g_w = _total(sums + DIMS, col, flows, programs, SUM, STEP)
    g_gain = _total(sums + 3 * DIMS, one, flows, programs, SUM, 128)
    g_b = _total(sums + 3 * DIMS + 1, one, flows, programs, SUM, 128)
    up, down = sigmoid(a), sigmoid(-a)
    pull = tl.div_rn(_sum(g_hat * v), norm)
    g_a = tl.where(moving, g_gain * up - inverse * pull * down, 0.0)
    g_norm = tl.where(moving, -pull * shift, 0.0)
    if DOUBLE:
        du, dv = _row(v_u, k, dim, col), inverse * _row(v_w, k, dim, col)
        dnorm, da, dgain, dshift, du_hat = _direction_tangent(u_, v, s, inverse, du, dv, norm, moving, a, shift)
        dg_hat = _total(sums + 2 * DIMS, col, flows, programs, SUM, STEP)
        dg_gain = _total(sums + 3 * DIMS + 2, one, flows, programs, SUM, 128)
        dpull = tl.div_rn(_sum(dg_hat * v) + _sum(g_hat * dv) - pull * dnorm, norm)
        dup = up * down * da
        dg_a = tl.where(moving, dg_gain * up + g_gain * dup - inverse * (dpull * down - pull * dup), 0.0)
        dg_norm = tl.where(moving, -dpull * shift - pull * dshift, 0.0)
        g_u = dg_hat + s * tl.fma(dg_a, v, g_a * dv)
        g_w += inverse * tl.fma(shift, dg_hat, dshift * g_hat) + tl.fma(dg_a, u_, g_a * du)
        g_w += inverse * (2.0 * tl.fma(dg_norm, v, g_norm * dv))
    else:
        g_u = tl.fma(s * g_a, v, g_hat)
        g_w += tl.fma(inverse * shift, g_hat, tl.fma(g_a, u_, inverse * (2.0 * g_norm * v)))
    at = (one + k) * dim + col
    tl.store(grad_u + at, g_u, mask=col < dim)
    tl.store(grad_w + at, g_w, mask=col < dim)
    tl.store(grad_b + k + one, g_b)


# Columns (dim rounded up): (samples of a program, warps), forward and gradient.
_FORWARD = {
    **dict.fromkeys((1, 2, 4, 8), (32, 1)), 16: (32, 2), 32: (32, 4), 64: (16, 4), 128: (8, 4),
    256: (4, 4), 512: (2, 4), 1024: (1, 4), 2048: (1, 8), 4096: (1, 16),
}  # fmt: skip
_GRADIENT = {
    **dict.fromkeys((1, 2, 4, 8), (32, 1)), 16: (16, 1), 32: (16, 2), 64: (8, 2), 128: (8, 4),
    256: (4, 4), 512: (2, 4), 1024: (1, 4), 2048: (1, 8), 4096: (1, 16),
}  # fmt: skip
_TILES = {80: (_FORWARD, _GRADIENT), 90: (_FORWARD, _GRADIENT)}
# Wider samples run with as many warps as there can be, and spill.
_WIDER = (1, 32)
# Floats of memory for the gradient's programs, and the least and most of them.
_MEMORY, _LEAST, _MOST = 2**24, 64, 2048


def _tile(z: Tensor, gradient: bool) -> dict[str, int]:
    dims = power_of_two(z.shape[1])
    samples, warps = _TILES[architecture(z)][gradient].get(dims, _WIDER)
    return {"ROWS": samples, "DIMS": dims, "warps": warps}


def planar_flow(z: Tensor, u: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    out, logdet = z.new_empty(z.shape), z.new_empty(z.shape[0], dtype=torch.float32)
    if z.numel() == 0:
        return out, logdet.zero_()
    tile = _tile(z, False)
    launch(
        _planar_flow_kernel, ceil_div(z.shape[0], tile["ROWS"]),
        z, u.contiguous(), w.contiguous(), b.contiguous(), out, logdet, *z.stride(), *z.shape, u.shape[0], **tile,
    )  # fmt: skip
    return out, logdet


def planar_flow_backward(
    grad_z: Tensor, grad_logdet: Tensor, z: Tensor, u: Tensor, w: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = z.new_empty(z.shape), u.new_empty(u.shape), w.new_empty(w.shape), b.new_empty(b.shape)
    _gradient(None, grad_z, grad_logdet, z, u, w, b, out[0], None, None, *out[1:])
    return out


def planar_flow_double_backward(
    v_z: Tensor, v_u: Tensor, v_w: Tensor, v_b: Tensor, grad_z: Tensor, grad_logdet: Tensor,
    z: Tensor, u: Tensor, w: Tensor, b: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    out_g, out_l = z.new_empty(z.shape), z.new_empty(z.shape[0], dtype=torch.float32)
    out = z.new_empty(z.shape), u.new_empty(u.shape), w.new_empty(w.shape), b.new_empty(b.shape)
    _gradient((v_z, v_u, v_w, v_b), grad_z, grad_logdet, z, u, w, b, out[0], out_g, out_l, *out[1:])
    return out_g, out_l, *out


def _gradient(v, g, l, z, u, w, b, grad_z, grad_g, grad_l, grad_u, grad_w, grad_b):
    if z.numel() == 0:
        for t in (grad_l, grad_u, grad_w, grad_b):
            if t is not None:
                t.zero_()
        return
    (batch, dim), flows = z.shape, u.shape[0]
    u, w, b = u.contiguous(), w.contiguous(), b.contiguous()
    v_z, v_u, v_w, v_b = (None,) * 4 if v is None else (v[0], *(t.contiguous() for t in v[1:]))
    tile = _tile(z, True)
    state, total = 2 * tile["ROWS"] * (tile["DIMS"] + 1), 3 * tile["DIMS"] + 3
    tiles = ceil_div(batch, tile["ROWS"])
    programs = min(tiles, max(_LEAST, min(_MOST, _MEMORY // (max(1, flows) * (state + total)))))
    states = z.new_empty(programs * flows * state, dtype=torch.float32)
    sums = z.new_empty(programs * flows * total, dtype=torch.float32)
    launch(
        _planar_gradient_kernel, programs,
        z, u, w, b, g, l, v_z, v_u, v_w, v_b, grad_z, grad_g, grad_l, sums, states,
        *z.stride(), *g.stride(), l.stride(0), *((0, 0) if v_z is None else v_z.stride()),
        batch, dim, flows, tiles, programs, DOUBLE=v is not None, registers=255, **tile,
    )  # fmt: skip
    launch(
        _planar_parameters_kernel, flows,
        sums, u, w, v_u, v_w, grad_u, grad_w, grad_b, dim, flows, programs,
        DOUBLE=v is not None, DIMS=tile["DIMS"], STEP=max(1, 1024 // tile["DIMS"]),
        warps=4 if tile["DIMS"] <= 1024 else 16, registers=255,
    )  # fmt: skip
