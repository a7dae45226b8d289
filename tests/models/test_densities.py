"""The densities are what they say: sampler, log-density and entropy agree with each other, each found its own way."""

from __future__ import annotations

import itertools

import pytest
import torch

import gmkernels as gmk
from genmodels.data import DENSITIES

N = 40_000


@pytest.mark.parametrize("name", DENSITIES)
def test_mass_is_one_and_entropy_is_the_samplers(name: str) -> None:
    """The Monte-Carlo estimate of the entropy comes from the sampler, the stated one from a formula or quadrature.

    Five standard errors: a false alarm has probability 6e-7; a bias of 0.03 nats is found.
    """
    density = DENSITIES[name]()
    assert abs(density.quadrature(torch.ones_like) - 1) < 1e-7
    x = density.sample(N, gmk.random.key(seed=11)).double()
    surprise = -torch.cat([density.log_prob(part) for part in x.split(20_000)])
    error = float(surprise.std()) / N**0.5
    assert abs(float(surprise.mean()) - density.entropy) < 5 * error + 1e-6
    assert error < 0.006


@pytest.mark.parametrize("name", ["banana", "moons", "ring", "potential2", "potential4"])
def test_quadrature_has_converged(name: str) -> None:
    density = DENSITIES[name]()
    coarse, fine = (density.quadrature(torch.neg, nodes) for nodes in (120, 180))
    assert abs(coarse - fine) < 1e-4
    assert abs(fine - density.entropy) < 1e-5


@pytest.mark.parametrize("name", DENSITIES)
def test_the_sampler_fills_the_plane_as_the_density_says(name: str) -> None:
    """Counts in the cells of a grid against the integral of the density over them: a chi-squared test at 1e-6."""
    density = DENSITIES[name]()
    x = density.sample(N, gmk.random.key(seed=5)).double()
    side = 8
    low, high = x.quantile(0.002, 0), x.quantile(0.998, 0)
    edges = [torch.linspace(float(a), float(b), side + 1, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    inner = 24
    centres = [
        torch.cat([(a + (b - a) * (torch.arange(inner) + 0.5) / inner) for a, b in itertools.pairwise(e)])
        for e in edges
    ]
    p = torch.cat([density.log_prob(part) for part in torch.cartesian_prod(*centres).split(20_000)]).exp()
    cell = float((edges[0][1] - edges[0][0]) * (edges[1][1] - edges[1][0])) / inner**2
    expected = N * cell * p.view(side, inner, side, inner).sum((1, 3)).flatten()
    column = [torch.bucketize(x[:, i].contiguous(), edges[i]) - 1 for i in (0, 1)]
    inside = (column[0] >= 0) & (column[0] < side) & (column[1] >= 0) & (column[1] < side)
    counts = torch.bincount((column[0] * side + column[1])[inside], minlength=side * side).double()
    usable = expected > 50
    # The midpoint rule in a cell is good to about 1 %, more where the density jumps; allow for it beside the noise.
    slack = 0.05 if name == "checkerboard" else 0.01
    z = (counts - expected).abs()[usable] / (expected[usable].sqrt() + slack * expected[usable])
    assert float(z.max()) < 5.5
    assert usable.sum() >= 15


@pytest.mark.parametrize("name", ["banana", "potential1", "potential3"])
def test_a_batch_cut_in_two_is_the_same_sample(name: str) -> None:
    density, key = DENSITIES[name](), gmk.random.key(seed=2)
    whole = density.sample(50, key)
    parts = torch.cat([density.sample(20, key), density.sample(30, key, first=20)])
    assert torch.equal(whole, parts)


def test_a_density_stream_resumes_and_splits_by_process() -> None:
    density = DENSITIES["ring"]()
    stream = density.stream(16, seed=4)
    first = next(stream).x
    state = stream.state_dict()
    second = next(stream).x
    assert not torch.equal(first, second)
    again = density.stream(16, seed=0)
    again.load_state_dict(state)
    assert torch.equal(next(again).x, second)
    halves = [next(density.stream(8, seed=4, rank=rank, world=2)).x for rank in range(2)]
    assert torch.equal(torch.cat(halves), first)
