"""Couplings where two dtypes differ, what they keep for backward, and lengths near the ends of float32: what no sample of
the table shows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import gmkernels as gmk
from gmkernels.ops import coupling
from gmkernels.testing import OperatorRow

from .support import device, params


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("wide", ["x", "parameters"])
def test_affine_coupling_computes_in_the_wider_of_two_dtypes(wide: str, inverse: bool) -> None:
    """y keeps the dtype of x, the log-determinant and each gradient that of the definition, to float64's precision."""
    torch.manual_seed(0)
    x, s, t = (torch.randn(7, 37, dtype=torch.float64) for _ in range(3))
    if wide == "x":
        s, t = s.float(), t.float()
    else:
        x = x.float()
    results = []
    for backend in ("auto", "reference"):
        leaves = [v.clone().requires_grad_() for v in (x, s, t)]
        y, logdet = gmk.affine_coupling(*leaves, scale_map="tanh", inverse=inverse, backend=backend)
        assert logdet.dtype == torch.float64
        assert y.dtype == x.dtype
        (y.double().square().sum() + logdet.square().sum()).backward()
        results.append([y.detach(), logdet.detach(), *[v.grad for v in leaves]])
    for ours, reference in zip(*results, strict=True):
        assert ours.dtype == reference.dtype
        torch.testing.assert_close(ours, reference, rtol=1e-6 if ours.dtype == torch.float32 else 1e-12, atol=1e-9)


def _kept(y: Tensor) -> int:
    """Elements kept for backward beside the arguments: x, log-scale, shift and mask come first."""
    return sum(t.numel() for t in y.grad_fn.saved_tensors[4:])


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale_map", ["tanh", "atan"])
def test_bits_do_not_depend_on_what_is_kept(
    scale_map: str, dtype: torch.dtype, inverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(23, 2 * 301, generator=generator).to(dtype)[:, ::2] for _ in range(3)]
    mask = torch.rand(301, generator=generator) < 0.3
    grads = (torch.randn(23, 301, generator=generator).to(dtype), torch.randn(23, generator=generator))
    results = []
    for kept in (coupling.KEPT, 0):
        monkeypatch.setattr(coupling, "KEPT", kept)
        leaves = [t.detach().requires_grad_() for t in inputs]
        y, logdet = gmk.affine_coupling(*leaves, scale_map=scale_map, inverse=inverse, mask=mask, backend="cpu")
        assert _kept(y) == (y.numel() if kept else 0)
        cotangents = [grads[0].clone().requires_grad_(), grads[1].to(logdet).requires_grad_()]
        first = torch.autograd.grad((y, logdet), leaves, cotangents, create_graph=True)
        every = [*cotangents, *leaves[: 3 if inverse else 2]]  # the shift of forward enters none of them
        second = torch.autograd.grad(first, every, [torch.ones_like(t) for t in first])
        results.append((y, logdet, *first, *second))
    for with_it, without in zip(*results, strict=True):
        assert torch.equal(with_it, without)


def test_tanh_is_kept_only_for_a_gradient_of_a_batch_that_fits_into_the_caches() -> None:
    x, s, t = torch.randn(3, 4, 5)
    s.requires_grad_()
    assert _kept(gmk.affine_coupling(x, s, t, scale_map="tanh", backend="cpu")[0]) == 20
    assert _kept(gmk.affine_coupling(x, s, t, scale_map="softplus", backend="cpu")[0]) == 0
    large = torch.zeros(1, 1).expand(1025, 1024)
    assert _kept(gmk.affine_coupling(large, s[:1, :1].expand_as(large), large, scale_map="tanh", backend="cpu")[0]) == 0
    # A shift alone asks for dy, which is there already.
    assert _kept(gmk.affine_coupling(x, s.detach(), t.requires_grad_(), scale_map="tanh", backend="cpu")[0]) == 0


@params(lambda row: row.operator == "planar_flow", one_per_operator=True, interpreted=True)
@pytest.mark.parametrize("size", [1e-37, 1e-20, 1e-18, 1.0, 1e18, 1e20, 1e37])
def test_planar_flows_along_short_and_long_directions(size: float, row: OperatorRow, backend: str) -> None:
    """The square of w leaves the range of float32; what is asked for does not, but for derivatives by a very short w."""
    torch.manual_seed(0)
    wide = [torch.randn(5, 3), torch.randn(2, 3) / size**0.5, torch.randn(2, 3) * size, torch.randn(2)]
    results = []
    for dtype, name in ((torch.float32, backend), (torch.float64, "reference")):
        leaves = [t.to(device(name), dtype).requires_grad_() for t in wide]
        out = gmk.planar_flow(*leaves, backend=name)
        first: tuple[Tensor, ...] = ()
        if size > 1e-19:
            first = torch.autograd.grad(out, leaves, [torch.ones_like(t) for t in out])
        results.append([t.detach().cpu().double() for t in (*out, *first)])
    for ours, true in zip(*results, strict=True):
        assert ours.isfinite().all()
        assert (ours - true).abs().max() <= 2e-6 * true.abs().max() + torch.finfo(torch.float32).tiny
