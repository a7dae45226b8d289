"""Boltzmann machines and Hopfield networks against enumeration, and against what is known of their capacity.

Statistical tests fail by chance with probability ``ALPHA`` at most, together less than 1e-6.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from genmodels.data import Batch
from genmodels.energy import BoltzmannMachine, Hopfield, Learning, capacity_curve
from genmodels.energy.hopfield import flip, random_patterns
from genmodels.sampling import Noise
from tests.machines import states

ALPHA = 5e-8
SIGMAS = float(stats.norm.isf(ALPHA / 2))
SPIN = pytest.mark.parametrize("spin", [False, True])


def machine(visible: int = 4, hidden: int = 2, *, spin: bool = False, **options: object) -> BoltzmannMachine:
    generator = torch.Generator().manual_seed(3)
    model = BoltzmannMachine(visible, hidden, spin=spin, levels=2, **options)
    n = visible + hidden
    with torch.no_grad():
        w = (torch.randn(n, n, generator=generator) * (0.4 if spin else 1.2)).triu(1)
        model.weight.copy_(w + w.t())
        model.bias.copy_(torch.randn(n, generator=generator) * 0.5)
    return model


def joint(model: BoltzmannMachine) -> Tensor:
    """p (2^visible, 2^hidden) by definition."""
    on = states(model.units).double()
    s = 2 * on - 1 if model.spin else on
    w, b = model.weight.detach().double(), model.bias.detach().double()
    scores = torch.stack([0.5 * x @ w @ x + b @ x for x in s])
    return scores.softmax(0).view(2**model.visible, 2**model.hidden)


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether means over rows (n, ...) agree with what is expected, to within the noise of n rows."""
    error = SIGMAS * found.double().std(0) / math.sqrt(len(found))
    return bool(((found.double().mean(0) - expected).abs() < error + 1e-6).all())


# ---- Boltzmann machine -----------------------------------------------------------------------------------------------


@SPIN
def test_likelihoods_add_up_all_states(spin: bool) -> None:
    model = machine(spin=spin)
    assert torch.allclose(model.log_likelihood(states(4)).exp(), joint(model).sum(1), atol=1e-9)


@SPIN
def test_pseudo_likelihood_without_hidden_units_is_exact(spin: bool) -> None:
    model = machine(hidden=0, spin=spin)
    every, p = states(4), joint(model)[:, 0]
    expected = torch.zeros(16, dtype=torch.float64)
    for site in range(4):
        others = [i for i in range(4) if i != site]
        same = (every[:, None, others] == every[None, :, others]).all(-1)
        expected += (p / (same.double() @ p)).log()
    assert torch.allclose(model.pseudo_likelihood(every).double(), expected, atol=1e-5)


@SPIN
def test_completion_is_the_conditional_expectation(spin: bool) -> None:
    model = machine(spin=spin)
    every, p = states(4), joint(model).sum(1)
    mask = torch.tensor([True, False, False, True])
    fits = (every[:, mask] == every[9, mask]).all(1)
    expected = (p * fits) @ every.double() / p[fits].sum()
    found = model.inpaint(every[9].expand(4000, -1), mask, sweeps=40, average=10, key=1)
    assert torch.equal(found[:, mask], every[9, mask].expand(4000, -1))
    assert close(found[:, ~mask], expected[~mask])
    several = model.inpaint(every[9].expand(1000, -1), mask, sweeps=40, average=10, draws=4, key=1)
    assert torch.allclose(several, found.unflatten(0, (-1, 4)).mean(1), atol=1e-6)
    unread = torch.where(mask, every[9], 1 - every[9])
    assert torch.equal(model.inpaint(unread.expand(4000, -1), mask, sweeps=40, average=10, key=1), found)


@SPIN
def test_denoising_is_the_posterior_mean(spin: bool) -> None:
    model = machine(spin=spin)
    every, p = states(4), joint(model).sum(1)
    same = (every == every[6]).double()
    posterior = p * (same * 0.8 + (1 - same) * 0.2).prod(1)
    expected = posterior @ every.double() / posterior.sum()
    found = model.denoise(every[6].expand(4000, -1), 0.2, sweeps=40, average=10, key=1)
    assert close(found, expected)


@SPIN
def test_samples_have_the_machine_s_means(spin: bool) -> None:
    model = machine(spin=spin, learning=Learning(chains=200))
    expected = joint(model).sum(1) @ states(4).double()
    assert close(model.sample(6000, sweeps=60, key=1), expected)
    hot = model.sample(6000, sweeps=60, key=1, temperature=1e6)
    # So hot, all states are equally likely, and a sample shows each unit's chance at temperature 1 given such others.
    every = states(6)
    s = 2 * every - 1 if spin else every
    assert close(hot, model.field(s)[:, :4].sigmoid().mean(0).double())


@SPIN
@pytest.mark.parametrize("centred", [False, True])
def test_the_gradient_is_that_of_the_log_likelihood(spin: bool, centred: bool) -> None:
    """With many chains in the machine's law, the step is the exact gradient (centred: in other coordinates)."""
    n = 160_000
    model = machine(spin=spin, positive_sweeps=30, learning=Learning(chains=n, steps=30, centred=centred))
    x = states(4)[[1, 6, 6, 14]]
    expectation, data = joint(model).flatten(), torch.zeros(16, dtype=torch.float64)
    data.index_add_(0, torch.tensor([1, 6, 6, 14]), torch.full((4,), 0.25, dtype=torch.float64))
    clamped = (joint(model) / joint(model).sum(1, keepdim=True) * data[:, None]).flatten()
    on = states(6).double()
    s = 2 * on - 1 if spin else on
    pairs = lambda p: s.t() @ (p[:, None] * s)  # noqa: E731
    by_weight, by_bias = pairs(clamped) - pairs(expectation), (clamped - expectation) @ s
    if centred:
        mean = clamped @ s
        by_weight = by_weight - torch.outer(mean, by_bias) - torch.outer(by_bias, mean)
        by_weight.fill_diagonal_(0)
        by_bias = by_bias - by_weight @ mean
    by_weight.fill_diagonal_(0)
    loss = model.losses(Batch(x.repeat(n // 4, 1)))["loss"]
    loss.backward()
    assert model.weight.grad is not None
    assert model.bias.grad is not None
    # Two phases of means of n products, each of a deviation of at most 1; of centred spins, at most 2.
    limit = SIGMAS * math.sqrt(2 / n) * (2 if centred and spin else 1)
    reach = 1 + float((clamped @ s).abs().sum()) if centred else 1.0
    assert float((-model.weight.grad.double() - by_weight).abs().max()) < limit
    assert float((-model.bias.grad.double() - by_bias).abs().max()) < limit * reach
    assert torch.equal(model.weight.grad, model.weight.grad.t())
    assert float(by_weight.abs().max()) > 2 * limit, "an effect that would be seen"


@SPIN
def test_learning_with_hidden_units_approaches_the_entropy(spin: bool) -> None:
    """Even parity of four units: no pair depends on each other, so only hidden units can tell. The best is log 8."""
    x = states(4)[states(4).sum(1) % 2 == 0]
    torch.manual_seed(1)
    model = BoltzmannMachine(4, 4, spin=spin, levels=2, positive_sweeps=5, learning=Learning(chains=200, steps=2))
    model.initialise(x)
    assert float(model.log_likelihood(x).mean()) == pytest.approx(-4 * math.log(2), abs=0.01)
    with torch.no_grad():
        # From weights near 0, where no pair of parity's units says anything, the way up is hardly to be seen.
        model.weight *= 50 if spin else 300
        model.bias -= model.weight @ model.mean
    rate = 0.08 if spin else 0.6
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for i in range(2500):
        optimizer.param_groups[0]["lr"] = rate * (1 - i / 2500)
        optimizer.zero_grad()
        model.losses(Batch(x.repeat(8, 1)))["loss"].backward()
        optimizer.step()
    assert torch.equal(model.weight, model.weight.t())
    assert not bool(model.weight.diagonal().any())
    assert -math.log(8) - 0.25 < float(model.log_likelihood(x).mean()) <= -math.log(8)


@pytest.mark.parametrize(
    "act,message",
    [
        (lambda: BoltzmannMachine(0, 1), "shape must be positive"),
        (lambda: BoltzmannMachine(3, 1, learning=Learning(method="cd")), "learning.method must be 'pcd', got 'cd'"),
        (lambda: BoltzmannMachine(3, 1, positive_sweeps=0), "positive_sweeps must be at least 1"),
        (lambda: machine().log_likelihood(torch.zeros(1, 3)), r"expected data \(batch, 4\), got \(1, 3\)"),
        (lambda: machine().pseudo_likelihood(torch.full((1, 4), 2.0)), r"expected data in \[0, 1\]"),
        (lambda: BoltzmannMachine(30, 1).log_likelihood(torch.zeros(1, 30)), "at most 20 units, got 31"),
        (lambda: machine().inpaint(torch.zeros(1, 4), torch.zeros(4)), "a mask must be bool"),
        (
            lambda: machine().inpaint(torch.zeros(1, 4), torch.zeros(4) > 0, average=0),
            r"average must be in 1\.\.sweeps",
        ),
        (lambda: machine().denoise(torch.zeros(1, 4), 0.7), r"noise must be in \(0, 0.5\), got 0.7"),
        (lambda: machine().sample(2, temperature=-1.0), "temperature must be positive"),
    ],
)
def test_a_boltzmann_machine_refuses_what_makes_no_sense(act, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        act()


# ---- Hopfield --------------------------------------------------------------------------------------------------------


def test_hebb_s_weights_are_sums_of_outer_products_and_can_be_added_to() -> None:
    x = random_patterns(5, 40, Noise(1))
    network = Hopfield(40)
    network.store(x[:2])
    network.store(x[2:])
    expected = sum(torch.outer(p, p) for p in x) / 40
    assert isinstance(expected, Tensor)
    assert torch.allclose(network.weight, expected.fill_diagonal_(0), atol=1e-6)
    assert torch.equal(network.weight, network.weight.t())
    assert torch.equal(network.patterns, x)


def test_recall_goes_downhill_to_fixed_points() -> None:
    noise = Noise(2)
    x = random_patterns(30, 200, noise)
    network = Hopfield(200)
    network.store(x)
    start = random_patterns(50, 200, noise)
    energies = [network.energy(network.recall(start, k).states) for k in range(30)]
    for before, after in itertools.pairwise(energies):
        assert bool((after <= before + 1e-4).all())
    assert bool((energies[-1] < energies[0]).all())
    found = network.recall(start)
    assert bool(found.converged.all())
    again = network.recall(found.states)
    assert torch.equal(again.states, found.states)
    assert not bool(again.sweeps.any())
    s = found.states
    assert torch.allclose(network.energy(s), -0.5 * torch.einsum("bi,ij,bj->b", s, network.weight, s), atol=1e-3)
    assert not bool(network.recall(start, 1).converged.any())


def test_hebbian_memory_holds_below_its_capacity_and_collapses_above() -> None:
    """1,000 units, 10 % noise. A network that does not collapse would be wrong (Amit, Gutfreund, Sompolinsky 1985)."""
    below, above = capacity_curve(1000, (0.10, 0.16), noise=0.1, recalls=40).tolist()
    assert below >= 0.99
    assert above < 0.75


def test_the_pseudo_inverse_stores_what_hebb_s_rule_cannot() -> None:
    """100 patterns of 200 units with a common part: every one stable by the one rule, hardly any by the other."""
    noise = Noise(3)
    x = torch.where(noise.uniform((100, 200)) < 0.6, random_patterns(1, 200, noise), random_patterns(100, 200, noise))
    ours, theirs = Hopfield(200), Hopfield(200)
    ours.store(x[:60], "pseudo-inverse")
    ours.store(x[60:], "pseudo-inverse")
    theirs.store(x)
    assert torch.equal(ours.recall(x).states, x)
    assert float((theirs.recall(x).states == x).all(1).float().mean()) < 0.05
    assert torch.allclose(ours.overlap(x).diagonal(), torch.ones(100))


@pytest.mark.parametrize("beta", [1 / 16, 1 / 4])
def test_dense_recall_holds_far_more_than_there_are_units(beta: float) -> None:
    """1,000 random patterns of 256 units with 10 % noise: all exact in one step, where Hebb's rule holds 35."""
    noise = Noise(4)
    x = random_patterns(1000, 256, noise)
    network = Hopfield(256)
    network.store(x)
    assert torch.equal(network.recall_dense(flip(x, 0.1, noise), beta), x)
    assert float((network.recall(x[:50]).states == x[:50]).all(1).float().mean()) == 0
    q = flip(x[:7], 0.2, noise)
    expected = (beta * q @ x.t()).softmax(1) @ x
    assert torch.equal(network.recall_dense(q, beta, steps=1), expected.sign())


def test_a_network_loads_however_many_patterns_were_stored() -> None:
    network, other = Hopfield(30), Hopfield(30)
    network.store(random_patterns(4, 30, Noise(5)))
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.patterns, network.patterns)
    assert torch.equal(other.weight, network.weight)


@pytest.mark.parametrize(
    "act,message",
    [
        (lambda: Hopfield(0), "units must be positive"),
        (lambda: Hopfield(4).store(torch.zeros(2, 4)), "patterns must hold -1 and 1"),
        (lambda: Hopfield(4).store(torch.ones(2, 5)), "expected patterns of 4 units"),
        (lambda: Hopfield(4).store(torch.ones(2, 4), "oja"), "rule must be 'hebb' or 'pseudo-inverse', got 'oja'"),
        (lambda: Hopfield(4).recall_dense(torch.ones(2, 4)), "nothing has been stored"),
    ],
)
def test_a_hopfield_network_refuses_what_makes_no_sense(act, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()
