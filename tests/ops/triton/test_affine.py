"""Affine coupling: every block width, both ways to walk a sample, 64-bit columns, and the bits of the C++ core."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from gmkernels.core import native
from gmkernels.ops.coupling import reference, triton
from gmkernels.ops.coupling.library import MAPS_WITH_INNER
from gmkernels.testing.evaluate import different

from .support import DEVICE, Launchers, check, draw, launched


def launchers(keep: bool = False) -> Launchers:
    """With what forward keeps for backward handed from one to the other."""

    def forward(*call: Any) -> tuple[torch.Tensor, ...]:
        return triton.affine_coupling(*call, keep)[:2]

    def backward(*call: Any) -> tuple[torch.Tensor, ...]:
        *call, mask, scale_map, clamp, inverse = call
        how = scale_map, clamp, inverse
        inner = triton.affine_coupling(*call[2:], mask, *how, keep)[2]
        return triton.affine_coupling_backward(*call, mask, inner, *how)

    return forward, backward, triton.affine_coupling_double_backward


MAPS = [(name, clamp) for name, clamp in reference.SCALE_MAPS.items()]
MAPS += [("exp", 1.25), ("sigmoid", 1e-3), ("reciprocal_sigmoid", 1e-3), ("softplus", 3.0)]


def triple(*shape: int, dtype: torch.dtype = torch.float32, parameters: torch.dtype | None = None):
    kinds = (dtype, parameters or dtype, parameters or dtype)
    return [draw(*shape, seed=n, dtype=kind) for n, kind in enumerate(kinds)]


# Each power of two has a tile; 127, 128, 129 and 1025 are a block less one, full, and one more.
@pytest.mark.parametrize("columns", [1, 2, 3, 5, 11, 17, 33, 64, 65, 127, 128, 129, 257, 1025])
def test_block_widths(columns: int) -> None:
    x, s, t = triple(3, columns)
    mask = torch.arange(columns, device=DEVICE) % 3 == 1
    check(launchers(keep=True), lambda x, s, t: reference.affine_coupling(x, s, t, mask, "tanh", 2.0, True), (x, s, t), 2,
          (mask, "tanh", 2.0, True))  # fmt: skip


def test_more_samples_than_a_program_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few samples run one a program, many four; what they get is the same bits."""
    inputs = triple(7, 300)
    one = triton.affine_coupling(*inputs, None, "exp", math.inf, False, False)
    monkeypatch.setattr(triton, "_FEW", 0)
    four = triton.affine_coupling(*inputs, None, "exp", math.inf, False, False)
    assert all(torch.equal(a, b) for a, b in zip(one, four, strict=True))
    check(launchers(), lambda *a: reference.affine_coupling(*a), inputs, 2, (None, "exp", math.inf, False))


@pytest.mark.parametrize("layout", ["contiguous", "interleaved", "half of the channels", "expanded"])
def test_64_bit_columns_change_nothing(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = triple(2, 6, 5, 7)
    inputs = {
        "contiguous": wide,
        "interleaved": [t[:, 0::2] for t in wide],
        "half of the channels": [wide[0][:, :3], wide[1][:, 3:], wide[2][..., :3, :, :]],
        "expanded": [wide[0], wide[1][:1].expand(2, 6, 5, 7), wide[2][:, :, :, :1].expand(2, 6, 5, 7)],
    }[layout]
    grads = [draw(*inputs[0].shape, seed=8), draw(2, seed=9)]
    tops = [draw(*inputs[0].shape, seed=10), draw(*inputs[0].shape, seed=11)]
    constants = (None, "soft_clip", 3.0, True)
    narrow = launched(launchers(), inputs, grads, tops, *constants)
    dense = launched(launchers(), [t.contiguous() for t in inputs], grads, tops, *constants)
    monkeypatch.setattr(triton, "INT32_SAFE", 0)
    assert not different(narrow, launched(launchers(), inputs, grads, tops, *constants))
    assert not different(narrow, dense)


@pytest.mark.parametrize("dtype,parameters", [(torch.float16, torch.float16), (torch.float32, torch.float16)])
def test_half_precision_is_float32_inside(dtype: torch.dtype, parameters: torch.dtype) -> None:
    x, s, t = triple(3, 37, dtype=dtype, parameters=parameters)
    y, logdet, kept = triton.affine_coupling(x, s, t, None, "tanh", 2.0, False, True)
    wide, total, same = triton.affine_coupling(x.float(), s.float(), t.float(), None, "tanh", 2.0, False, True)
    assert y.dtype == dtype and logdet.dtype == torch.float32
    assert torch.equal(y, wide.to(dtype)) and torch.equal(logdet, total) and torch.equal(kept, same)


def _extremes() -> torch.Tensor:
    sizes = [0.0, 1e-45, 1e-38, 1e-6, 0.37, 1.0, 1.25, 2.0, 3.0, 9.7, 17.3, 31.0, 87.0, 88.73, 103.9, 104.1, 1e3, 3e38]
    values = [sign * value for value in sizes for sign in (1.0, -1.0)] + [math.inf, -math.inf, math.nan]
    pairs = torch.tensor(list(itertools.product(values, [0.0, -0.7, 1e3, 1e30, math.inf, math.nan])))
    return pairs.to(DEVICE).T


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale_map,clamp", MAPS)
def test_bits_of_the_cpp_core(scale_map: str, clamp: float, inverse: bool) -> None:
    """y, logdet, what is kept and the gradients, bit for bit, in awkward sizes and at extreme values."""
    assert native.cpu_error() is None, "the C++ core is what Triton is compared with"
    from gmkernels.ops.coupling import native as core

    s, x = _extremes()
    cases = [(x, s, torch.full_like(x, 0.25)), (x[:, None], s[:, None], torch.zeros_like(x)[:, None])]
    cases[0] = tuple(t[None] for t in cases[0])
    cases += [triple(2, 301)]
    how = (scale_map, clamp, inverse)
    for inputs, keep in itertools.product(cases, {False, scale_map in MAPS_WITH_INNER}):
        grads = [draw(*inputs[0].shape, seed=4), draw(len(inputs[0]), seed=5)]
        host = [[t.cpu() for t in group] for group in (inputs, grads)]
        found = []
        for module, inputs_, grads_ in ((triton, inputs, grads), (core, *host)):
            forward = module.affine_coupling(*inputs_, None, *how, keep)
            found.append((*forward, *module.affine_coupling_backward(*grads_, *inputs_, None, forward[2], *how)))
        for name, a, b in zip(("y", "logdet", "kept", "grad_x", "grad_s"), *found, strict=True):
            # One NaN is as good as another; everything else has to agree in every bit.
            same = (a.cpu().view(torch.int32) == b.view(torch.int32)) | a.cpu().isnan() & b.isnan()
            assert same.all(), f"{name} differs at {(~same).nonzero()[:5].tolist()} of {tuple(a.shape)}"
