"""Minibatch discrimination: what its definition says of batches that can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import gmkernels as gmk
from gmkernels.core import native

BACKENDS = [
    "reference",
    pytest.param("cpu", marks=pytest.mark.skipif(native.cpu_error() is not None, reason="no core")),
]
on = pytest.mark.parametrize("backend", BACKENDS)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@on
def test_the_loops_of_the_paper(backend: str) -> None:
    """Salimans et al. 2016, section 3.2, one number at a time."""
    m = numbers(7, 3, 4)
    expected = torch.zeros(7, 3, dtype=torch.float64)
    for i in range(7):
        for k in range(3):
            for j in range(7):
                if j != i:
                    expected[i, k] += math.exp(-sum(abs(float(m[i, k, d] - m[j, k, d])) for d in range(4)))
    torch.testing.assert_close(gmk.minibatch_discrimination(m, backend=backend), expected, rtol=1e-13, atol=0.0)


@on
@pytest.mark.parametrize("batch", [1, 2, 37])
def test_equal_samples_count_each_other_fully(batch: int, backend: str) -> None:
    m = numbers(1, 5, 3).expand(batch, 5, 3)
    assert torch.equal(gmk.minibatch_discrimination(m, backend=backend), m.new_full((batch, 5), batch - 1.0))


@on
def test_samples_far_apart_do_not_count(backend: str) -> None:
    m = torch.arange(33.0).mul(1e4).reshape(33, 1, 1).expand(33, 2, 3).clone().requires_grad_()
    out = gmk.minibatch_discrimination(m, backend=backend)
    (grad,) = torch.autograd.grad(out.sum(), m)
    assert not out.any() and not grad.any()


@on
def test_two_clusters(backend: str) -> None:
    """Within a cluster of n equal samples n - 1; between clusters at distance log 4 a quarter for each."""
    here, there = torch.zeros(5, 1, 2), torch.full((8, 1, 2), math.log(2.0))
    out = gmk.minibatch_discrimination(torch.cat([here, there]), backend=backend)
    expected = torch.tensor([4 + 8 / 4] * 5 + [7 + 5 / 4] * 8)[:, None]
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=0.0)


@on
def test_the_order_of_samples_does_not_matter(backend: str) -> None:
    m, order = numbers(29, 4, 3), torch.randperm(29, generator=torch.Generator().manual_seed(1))
    out = gmk.minibatch_discrimination(m, backend=backend)
    torch.testing.assert_close(
        gmk.minibatch_discrimination(m[order], backend=backend), out[order], rtol=1e-13, atol=0.0
    )


@on
def test_moving_all_samples_together_changes_nothing(backend: str) -> None:
    """So the gradients of any function of the result add up to nothing over the batch."""
    m = numbers(31, 4, 3).requires_grad_()
    out = gmk.minibatch_discrimination(m, backend=backend)
    (grad,) = torch.autograd.grad(out, m, numbers(31, 4, seed=1))
    assert grad.abs().amax() > 0.01
    torch.testing.assert_close(grad.sum(0), torch.zeros(4, 3, dtype=torch.float64), rtol=0.0, atol=1e-13)


def test_the_layer_appends_its_similarities_to_its_input() -> None:
    layer, x = gmk.nn.MinibatchDiscrimination(6, 4, 3).double(), numbers(9, 6)
    out = layer(x)
    assert out.shape == (9, 10) and torch.equal(out[:, :6], x)
    # Equal inputs have equal features, whatever the weights are.
    assert torch.equal(layer(x[:1].expand(9, 6))[:, 6:], torch.full((9, 4), 8.0, dtype=torch.float64))


def test_the_original_code_s_initialisation_makes_distances_one_and_centres_the_features() -> None:
    torch.manual_seed(0)
    layer = gmk.nn.MinibatchDiscrimination(6, 4, 3, weight_scale=True, bias=True).double()
    x = 7 * numbers(9, 6)
    layer.init_from_batch(x)
    m = layer._project(x)
    pairs = (m[:, None] - m).abs().sum(3).sum((0, 1)) / (9 * 8)
    torch.testing.assert_close(pairs, torch.ones(4, dtype=torch.float64), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(layer(x)[:, 6:].mean(0), torch.zeros(4, dtype=torch.float64), rtol=0.0, atol=1e-12)
    with pytest.raises(ValueError, match="two samples at least, got 1"):
        layer.init_from_batch(x[:1])
