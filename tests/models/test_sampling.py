"""Samplers against exact enumeration and known densities.

Every statistical test fails by chance with probability ``ALPHA`` at most: 1e-6 for the whole file. None assumes that a
chain has mixed: laws after ``t`` sweeps are computed exactly, or the chains start in the target itself.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from genmodels import sampling
from genmodels.sampling import Noise

ALPHA = 5e-8
N = 100_000


def chi_square(found: Tensor, law: Tensor) -> float:
    """p-value of counts (states,) under probabilities (states,), states expected less than ten times taken together."""
    expected = law.double() * found.sum()
    assert not found[law == 0].any(), "a state of probability zero was visited"
    rare = expected < 10
    observed, wanted = found[~rare].double(), expected[~rare]
    if expected[rare].sum() >= 10:
        observed = torch.cat([observed, found[rare].sum()[None].double()])
        wanted = torch.cat([wanted, expected[rare].sum()[None]])
    wanted = wanted * observed.sum() / wanted.sum()
    return float(stats.chi2.sf(float(((observed - wanted).square() / wanted).sum()), len(wanted) - 1))


def states(sites: int, values: list[int]) -> Tensor:
    return torch.tensor(list(itertools.product(values, repeat=sites)), dtype=torch.float32)


def index(x: Tensor, values: list[int]) -> Tensor:
    """The row of ``states`` that each state is."""
    digits = (x[..., None] == torch.tensor(values)).float().argmax(-1)
    return (digits * len(values) ** torch.arange(x.shape[-1] - 1, -1, -1)).sum(-1)


def sweep_matrix(energy: Tensor, sites: int, values: list[int], blocks: list[list[int]]) -> Tensor:
    """The exact transition matrix of one sweep that draws the blocks one after the other from ``exp(-energy)``."""
    every, p = states(sites, values), (-energy.double()).softmax(0)
    whole = torch.eye(len(every), dtype=torch.float64)
    for block in blocks:
        kept = [site for site in range(sites) if site not in block]
        reachable = (every[:, None, kept] == every[None, :, kept]).all(-1)
        step = torch.where(reachable, p, 0.0)
        whole = whole @ (step / step.sum(1, keepdim=True))
    return whole


def test_the_measure_sees_one_percent_of_total_variation() -> None:
    law = torch.rand(81, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(0)
    other = law.clone()
    other[:40] += 0.01 / 40
    other[41:] -= 0.01 / 40
    drawn = Noise(0).categorical(other.log().expand(N, -1)).bincount(minlength=81)
    assert chi_square(drawn, other) > ALPHA
    drawn = Noise(0).categorical(other.log().expand(8 * N, -1)).bincount(minlength=81)
    assert chi_square(drawn, law) < ALPHA


def test_uniform_integers_are_uniform() -> None:
    drawn = Noise(20).integers(7, (N,))
    assert chi_square(drawn.bincount(minlength=7), torch.full((7,), 1 / 7)) > ALPHA


# ---- Gibbs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sweeps", [1, 3])
def test_gibbs_on_an_energy_has_the_exact_law_after_each_sweep(sweeps: int) -> None:
    values = [-1, 0, 2]
    table = torch.randn(81, generator=torch.Generator().manual_seed(2)) * 1.5
    matrix = sweep_matrix(table, 4, values, [[0], [1], [2], [3]])
    start = states(4, values)[17]
    run = sampling.gibbs(
        start.expand(N, -1), energy=lambda x: table[index(x, values)], values=values, draws=1, thin=sweeps, key=5
    )
    found = index(run.samples[:, 0], values)
    law = torch.linalg.matrix_power(matrix, sweeps)[17]
    assert chi_square(found.bincount(minlength=81), law) > ALPHA
    assert run.log_densities is not None
    assert torch.equal(run.log_densities[:, 0], -table[found].double())


def _grid(height: int, width: int) -> Tensor:
    site = torch.arange(height * width).view(height, width)
    across = torch.stack([site[:, :-1].flatten(), site[:, 1:].flatten()], 1)
    down = torch.stack([site[:-1].flatten(), site[1:].flatten()], 1)
    return torch.cat([across, down])


def _ising(edges: Tensor, sites: int):
    generator = torch.Generator().manual_seed(3)
    coupling, field = torch.randn(len(edges), generator=generator), torch.randn(sites, generator=generator)
    return lambda x: -(x[:, edges[:, 0]] * x[:, edges[:, 1]]) @ coupling - x @ field


@pytest.mark.parametrize("sweeps", [1, 4])
def test_coloured_gibbs_has_the_exact_law_of_block_sweeps(sweeps: int) -> None:
    edges = _grid(3, 3)
    energy, every = _ising(edges, 9), states(9, [-1, 1])
    blocks = [block.tolist() for block in sampling.colour(edges, 9)]
    assert sorted(map(len, blocks)) == [4, 5]
    matrix = sweep_matrix(energy(every), 9, [-1, 1], blocks)
    calls = []

    def counted(x: Tensor) -> Tensor:
        calls.append(len(x))
        return energy(x)

    run = sampling.gibbs(
        every[100].expand(N, -1), energy=counted, values=(-1, 1), graph=edges, draws=1, burn_in=sweeps - 1, key=6
    )
    law = torch.linalg.matrix_power(matrix, sweeps)[100]
    assert chi_square(index(run.samples[:, 0], [-1, 1]).bincount(minlength=512), law) > ALPHA
    # The stationary law is a fixed point of what is run, so long chains have it.
    target = (-energy(every).double()).softmax(0)
    assert torch.allclose(target @ matrix, target, atol=1e-12)


def test_a_graph_that_lacks_an_interaction_is_refused() -> None:
    triangle = torch.tensor([[0, 1], [1, 2], [0, 2]])
    options = dict(energy=_ising(triangle, 3), values=(-1, 1), draws=1)
    sampling.gibbs(torch.ones(1, 3), graph=triangle, **options)
    with pytest.raises(ValueError, match="sites 0 and 2 interact in the energy but have no edge"):
        sampling.gibbs(torch.ones(1, 3), graph=triangle[:2], **options)


@pytest.mark.parametrize("sweeps", [1, 3])
def test_gibbs_with_continuous_conditionals_has_the_exact_law(sweeps: int) -> None:
    """Two normals with correlation r: after t sweeps from (_, y) the first is N(r^(2t-1) y, 1 - r^(4t-2))."""
    r, y = 0.8, 2.5

    def conditional(x: Tensor, sites: Tensor, noise: Noise) -> Tensor:
        return r * x[:, 1 - sites] + math.sqrt(1 - r * r) * noise.normal((len(x), len(sites)))

    start = torch.tensor([[9.0, y]]).expand(N, -1)
    run = sampling.gibbs(start, conditional=conditional, draws=sweeps, key=7)
    assert run.log_densities is None
    for site, power in ((0, 2 * sweeps - 1), (1, 2 * sweeps)):
        law = stats.norm(r**power * y, math.sqrt(1 - r ** (2 * power)))
        assert stats.kstest(run.samples[:, -1, site].numpy(), law.cdf).pvalue > ALPHA
    both = torch.corrcoef(run.samples[:, -1].t())[0, 1]
    spread = (1 - r ** (4 * sweeps - 2)) / (1 - r ** (4 * sweeps))
    assert float(both) == pytest.approx(r * math.sqrt(spread), abs=5.5 / math.sqrt(N))


def test_block_gibbs_of_a_small_boltzmann_machine_is_exact() -> None:
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(4))

    def conditional(x: Tensor, sites: Tensor, noise: Noise) -> Tensor:
        fields = x[:, 3:] @ weight.t() if int(sites[0]) == 0 else x[:, :3] @ weight
        return noise.bernoulli(fields.sigmoid())

    every = states(7, [0, 1])
    energy = -torch.einsum("ni,ij,nj->n", every[:, :3], weight, every[:, 3:])
    blocks = [[3, 4, 5, 6], [0, 1, 2]]
    run = sampling.gibbs(every[77].expand(N, -1), conditional=conditional, blocks=blocks, draws=1, thin=2, key=8)
    law = torch.linalg.matrix_power(sweep_matrix(energy, 7, [0, 1], blocks), 2)[77]
    assert chi_square(index(run.samples[:, 0], [0, 1]).bincount(minlength=128), law) > ALPHA


def test_sites_in_no_block_stay() -> None:
    run = sampling.gibbs(torch.ones(50, 3), energy=lambda x: x.sum(1), blocks=[[0], [2]], draws=20, key=0)
    assert bool((run.samples[..., 1] == 1).all())
    assert bool((run.samples[..., 0] == 0).any())


def test_colours_are_a_partition_without_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    for sites in (1, 2, 7, 40):
        matrix = torch.rand(sites, sites, generator=generator) < 0.2
        matrix = (matrix | matrix.t()) & ~torch.eye(sites, dtype=torch.bool)
        blocks = sampling.colour(matrix)
        assert torch.equal(torch.cat(blocks).sort().values, torch.arange(sites))
        assert len(blocks) <= int(matrix.sum(1).max()) + 1
        for block in blocks:
            assert not bool(matrix[block][:, block].any())
    assert len(sampling.colour(_grid(20, 30), 600)) == 2
    assert [block.tolist() for block in sampling.colour(torch.empty(0, 2, dtype=torch.int64), 3)] == [[0, 1, 2]]


# ---- Metropolis-Hastings ---------------------------------------------------------------------------------------------


def _walk_on_states(correct: bool):
    """On 0..5 with probabilities p: a proposal that leans to the right, and the exact law of the chain."""
    p = torch.tensor([1.0, 4.0, 2.0, 0.5, 3.0, 1.5]).double()
    q = torch.zeros(6, 6, dtype=torch.float64)
    for i in range(6):
        q[i, (i + 1) % 6], q[i, (i - 1) % 6], q[i, (i + 3) % 6] = 0.6, 0.3, 0.1
    ratio = p[None] * q.t() / (p[:, None] * q)
    matrix = torch.where(q > 0, q * ratio.clamp_max(1.0), 0.0)
    matrix += torch.diag(1 - matrix.sum(1))

    def proposal(x: Tensor, noise: Noise, scale: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        new = noise.categorical(q[x].log())
        return (new, (q[new, x] / q[x, new]).log()) if correct else new

    return p, matrix, proposal


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_metropolis_hastings_has_the_exact_law_after_each_step(steps: int) -> None:
    p, matrix, proposal = _walk_on_states(True)
    start = torch.full((N,), 3)
    run = sampling.metropolis_hastings(lambda x: p.log()[x], start, proposal, draws=steps, key=9)
    law = torch.linalg.matrix_power(matrix, steps)[3]
    assert chi_square(run.samples[:, -1].bincount(minlength=6), law) > ALPHA
    assert run.log_densities is not None
    assert torch.equal(run.log_densities, p.log()[run.samples])
    assert run.acceptance is not None
    first = matrix[3].clone()
    first[3] = 0
    if steps == 1:
        assert float(run.acceptance.mean()) == pytest.approx(float(first.sum()), abs=5.5 * 0.5 / math.sqrt(N))


def test_an_asymmetric_proposal_without_its_correction_would_be_noticed() -> None:
    p, matrix, proposal = _walk_on_states(False)
    run = sampling.metropolis_hastings(lambda x: p.log()[x], torch.full((N,), 3), proposal, draws=1, thin=30, key=9)
    law = torch.linalg.matrix_power(matrix, 30)[3]
    assert chi_square(run.samples[:, -1].bincount(minlength=6), law) < ALPHA


def test_single_flips_have_the_exact_law() -> None:
    energy = torch.randn(8, generator=torch.Generator().manual_seed(5)).double()
    every = states(3, [0, 1])
    near = (every[:, None] != every[None]).sum(-1) == 1
    matrix = torch.where(near, (energy[:, None] - energy[None]).exp().clamp_max(1.0) / 3, 0.0)
    matrix += torch.diag(1 - matrix.sum(1))
    run = sampling.metropolis_hastings(
        lambda x: -energy[index(x, [0, 1])], every[2].expand(N, -1), sampling.single_flip, draws=1, thin=4, key=10
    )
    law = torch.linalg.matrix_power(matrix, 4)[2]
    assert chi_square(index(run.samples[:, 0], [0, 1]).bincount(minlength=8), law) > ALPHA


def _mixture(x: Tensor) -> Tensor:
    """0.3 N(-2, 0.5^2) + 0.7 N(1, 1), up to a constant."""
    return torch.logaddexp(
        math.log(0.6) - 2 * (x[:, 0] + 2).square(), math.log(0.7) - 0.5 * (x[:, 0] - 1).square()
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["random walk", "langevin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chains_that_start_in_the_target_stay_in_it(kind: str, dtype: torch.dtype) -> None:
    proposal = sampling.random_walk if kind == "random walk" else sampling.langevin(_mixture)
    left, normal = Noise(11).uniform((N, 1), dtype) < 0.3, Noise(12).normal((N, 1), dtype)
    start = torch.where(left, -2 + 0.5 * normal, 1 + normal)
    run = sampling.metropolis_hastings(_mixture, start, proposal, scale=1.3, draws=1, thin=15, key=13)
    assert run.acceptance is not None
    assert 0.3 < float(run.acceptance.mean()) < 0.9
    assert float((run.samples[:, 0] != start).float().mean()) > 0.95
    cdf = lambda x: 0.3 * stats.norm.cdf(x, -2, 0.5) + 0.7 * stats.norm.cdf(x, 1, 1)  # noqa: E731
    assert stats.kstest(run.samples[:, 0, 0].numpy(), cdf).pvalue > ALPHA


@pytest.mark.parametrize("kind,rate", [("random walk", 0.234), ("langevin", 0.574)])
def test_adaptation_reaches_the_rate_and_then_stops(kind: str, rate: float) -> None:
    density = lambda x: -0.5 * (x / 30).square().sum(1)  # noqa: E731
    proposal = sampling.random_walk if kind == "random walk" else sampling.langevin(density)
    run = sampling.metropolis_hastings(
        density, torch.zeros(64, 8), proposal, adapt=rate, burn_in=1500, draws=600, key=14
    )
    assert run.acceptance is not None
    assert run.scale is not None
    assert float(run.acceptance.mean()) == pytest.approx(rate, abs=0.05)
    # The best step of a random walk in d dimensions is about 2.38 / sqrt(d) deviations (Gelman, Roberts, Gilks 1996).
    if kind == "random walk":
        assert float(run.scale.mean()) == pytest.approx(30 * 2.38 / math.sqrt(8), rel=0.2)
    # More draws after the burn-in change the scale no more.
    short = sampling.metropolis_hastings(
        density, torch.zeros(64, 8), proposal, adapt=rate, burn_in=1500, draws=1, key=14
    )
    assert short.scale is not None
    assert torch.equal(short.scale, run.scale)


def test_a_density_of_zero_is_never_entered_and_a_nan_is_reported() -> None:
    def density(x: Tensor) -> Tensor:
        inside = torch.where(x[:, 0] > 0, -x[:, 0], -math.inf)
        return torch.where(x[:, 0] > 6, math.nan, inside)

    with pytest.warns(UserWarning, match=r"was NaN for \d+ candidates, all refused"):
        run = sampling.metropolis_hastings(density, torch.ones(500, 1), scale=2.0, draws=100, key=15)
    assert 0 < float(run.samples.min())
    assert float(run.samples.max()) <= 6


# ---- importance sampling ---------------------------------------------------------------------------------------------


def _table() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    target = torch.randn(12, generator=generator).double() * 1.2
    target[3] = -math.inf
    return target, torch.randn(12, generator=generator).double().log_softmax(0)


def test_importance_sampling_matches_enumeration() -> None:
    target, proposal = _table()
    n = 400_000
    run = sampling.importance_sampling(
        lambda x: target[x], lambda n, noise: noise.categorical(proposal.expand(n, -1)), lambda x: proposal[x],
        draws=n, batch=70_000, key=16,
    )  # fmt: skip
    z, p, q = target.exp().sum(), target.softmax(0), proposal.exp()
    limit = float(stats.norm.isf(ALPHA / 2))
    value = torch.arange(12.0).double().square()
    # Delta method: the variance of the self-normalised mean is sum p^2 (f - mean)^2 / q / n.
    mean = (p * value).sum()
    error = ((p.square() * (value - mean).square() / q).sum() / n).sqrt()
    assert abs(float(run.expectation(lambda x: x.double().square()) - mean)) < limit * float(error)
    logs, stated = run.log_normaliser()
    exact = math.sqrt((float((p.square() / q).sum()) - 1) / n)
    assert stated == pytest.approx(exact, rel=0.05)
    assert abs(logs - float(z.log())) < limit * exact
    ess = float(run.diagnostics().ess)
    assert ess == pytest.approx(n / float((p.square() / q).sum()), rel=0.02)
    assert run.log_weights is not None
    weight = run.log_weights[0].exp()
    assert ess == pytest.approx(float(weight.sum() ** 2 / weight.square().sum()))
    drawn = run.resample(50_000, key=1).bincount(minlength=12)
    assert drawn[3] == 0
    assert torch.allclose(drawn.double() / 50_000, p, atol=5e-3)


def test_importance_batches_do_not_matter() -> None:
    target, proposal = _table()
    runs = [
        sampling.importance_sampling(
            lambda x: target[x], lambda n, noise: noise.categorical(proposal.expand(n, -1)), lambda x: proposal[x],
            draws=1000, batch=batch, key=3,
        )
        for batch in (None, 7, 1000)
    ]  # fmt: skip
    assert all(torch.equal(run.samples, runs[0].samples) for run in runs)


def test_collapsed_weights_are_reported() -> None:
    normal = lambda scale: lambda x: -0.5 * (x / scale).square().sum(1) - x.shape[1] * math.log(scale)  # noqa: E731
    wide = dict(sample=lambda n, noise: noise.normal((n, 40)), log_proposal=normal(1.0), draws=2000, key=17)
    with pytest.warns(sampling.WeightCollapse, match="2000 draws are worth"):
        sampling.importance_sampling(normal(0.3), **wide)
    sampling.importance_sampling(normal(0.98), **wide)
    with pytest.raises(ValueError, match="no draw has weight"):
        sampling.importance_sampling(lambda x: torch.full((len(x),), -math.inf), **wide)
    with pytest.raises(ValueError, match="draw 0 has log-density nan"):
        sampling.importance_sampling(lambda x: torch.full((len(x),), math.nan), **wide)
