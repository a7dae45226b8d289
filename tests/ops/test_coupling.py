"""Affine coupling where its two dtypes differ: what no sample of the operator table mixes."""

from __future__ import annotations

import pytest
import torch

import gmkernels as gmk


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
