"""Annealed importance sampling against enumeration. Estimates are unbiased for any schedule, so short ones tell most.

An estimate is held to the exact value within SIGMAS of its standard error: a false alarm has a probability of 4e-8, all
of them together less than 1e-6.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

import gmkernels as gmk
from gmkernels.core import backends
from gmkernels.testing.table import draw

from . import support

SIGMAS = 5.5
BACKENDS = [
    pytest.param(name, marks=[pytest.mark.triton] if name == "triton" else [])
    for name in ("reference", "cpu", "triton")
    if backends.unavailable(name) is None
]
pytestmark = pytest.mark.parametrize("backend", BACKENDS)


class Small:
    """A machine of 7 visible and 5 hidden units, and a base that is not trivial."""

    def __init__(self, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(3)
        self.weight = draw((7, 5), torch.float32, generator, 0.9) * scale
        self.visible_bias = draw((7,), torch.float32, generator, 0.7)
        self.hidden_bias = draw((5,), torch.float32, generator, 0.7)
        self.base = draw((7,), torch.float32, generator, 0.5)
        self.states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=7)))

    def log_p(self) -> Tensor:
        v = self.states.double()
        hidden = softplus(self.hidden_bias.double() + v @ self.weight.double()).sum(1)
        return v @ self.visible_bias.double() + hidden

    def log_z(self) -> float:
        return torch.logsumexp(self.log_p(), 0).item()

    def samples(self, count: int) -> Tensor:
        law = torch.softmax(self.log_p(), 0)
        return self.states[torch.multinomial(law, count, True, generator=torch.Generator().manual_seed(7))]

    def run(self, backend: str, reverse: int = 0, **options) -> Tensor:
        device = support.device(backend)
        tensors = [t.to(device) for t in (self.weight, self.visible_bias, self.hidden_bias)]
        if reverse:
            options["reverse_from"] = self.samples(reverse).to(device)
        options.setdefault("base_visible_bias", self.base.to(device))
        key = gmk.random.key(seed=11, device=device)
        return gmk.ais_log_z(*tensors, key=key, backend=backend, **options).cpu().double()


def _deviation(log_weight: Tensor, log_z: float) -> float:
    """How many standard errors the mean of w / Z is away from 1."""
    ratio = torch.exp(log_weight - log_z)
    return abs(ratio.mean().item() - 1.0) / (ratio.std().item() / math.sqrt(len(ratio)))


def _chains(backend: str) -> int:
    return {"cpu": 200_000, "reference": 50_000}.get(backend, 64 if support.INTERPRETER else 200_000)


@pytest.mark.parametrize("betas", [2, 3, 9])
@pytest.mark.parametrize("based", [True, False])
def test_the_mean_weight_is_the_constant(backend: str, betas: int, based: bool) -> None:
    machine, options = Small(), {} if based else {"base_visible_bias": None}
    found = machine.run(backend, num_betas=betas, chains=_chains(backend), **options)
    assert _deviation(found, machine.log_z()) < SIGMAS
    if betas == 9 and _chains(backend) >= 200_000:  # three percent of Z are seen
        assert _deviation(found, machine.log_z() + 0.03) > SIGMAS


@pytest.mark.parametrize("betas", [2, 3, 9])
def test_backwards_the_mean_of_the_inverse_is_that_of_the_constant(backend: str, betas: int) -> None:
    machine = Small()
    found = machine.run(backend, reverse=_chains(backend), num_betas=betas)
    assert _deviation(-found, -machine.log_z()) < SIGMAS
    if betas == 9 and _chains(backend) >= 200_000:
        assert _deviation(-found, -machine.log_z() + 0.03) > SIGMAS


def test_a_schedule_may_have_any_steps(backend: str) -> None:
    machine = Small()
    betas = torch.tensor([0.0, 0.05, 0.05, 0.3, 0.9, 1.0], dtype=torch.float64, device=support.device(backend))
    found = machine.run(backend, betas=betas, chains=_chains(backend))
    assert _deviation(found, machine.log_z()) < SIGMAS
    even = torch.linspace(0.0, 1.0, 5, device=support.device(backend))
    same = [machine.run(backend, chains=20, **how) for how in ({"betas": even}, {"num_betas": 5})]
    assert torch.equal(*same)


@pytest.mark.skipif(support.INTERPRETER, reason="sixty steps of 200 chains take the interpreter a minute")
def test_more_steps_leave_less_variance(backend: str) -> None:
    few, many = (Small().run(backend, num_betas=n, chains=200).std().item() for n in (3, 60))
    assert many < 0.5 * few


def test_without_couplings_every_weight_is_exact(backend: str) -> None:
    """The base with the machine's own biases is the machine, in one step or many."""
    machine = Small(scale=0.0)
    machine.base, machine.hidden_bias = machine.visible_bias, 0 * machine.hidden_bias
    for reverse in (0, 40):
        options = {} if reverse else {"chains": 40}
        found = machine.run(backend, num_betas=4, reverse=reverse, **options)
        torch.testing.assert_close(found, torch.full_like(found, machine.log_z()), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_long_schedules_follow_the_definition(backend: str, reverse: bool) -> None:
    """Through several fresh sums of the fields, with many units: the same states, so the same weights but for rounding."""
    if backend == "reference" or (backend == "triton" and support.INTERPRETER):
        return
    generator, device = torch.Generator().manual_seed(6), support.device(backend)
    weight, v, h = (draw(shape, torch.float32, generator, 0.15) for shape in ((150, 70), (150,), (70,)))
    options = {"chains": 37}
    if reverse:
        options = {"reverse_from": torch.randint(2, (37, 150), generator=generator).float().to(device)}
    tensors = [t.to(device) for t in (weight, v, h)]
    key = gmk.random.key(seed=1, device=device)
    ours, expected = (
        gmk.ais_log_z(*tensors, key=key, num_betas=400, backend=name, **options) for name in (backend, "reference")
    )
    # One draw in a million comes within a rounding error of its threshold: of these 3 million, a few chains may leave.
    near = (ours - expected).abs() < 1e-3
    assert near.float().mean() > 0.8


def _trained(hidden: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A machine trained on digits for a second by persistent contrastive divergence, and its base."""
    from genmodels.data import load

    generator = torch.Generator().manual_seed(0)
    images = torch.cat([batch.x.flatten(1) for batch in load("mnist5k").batches("train", 500)]) / 255
    mean = images.mean(0).clamp(0.01, 0.99)
    base = torch.log(mean / (1 - mean))
    visible, hidden_bias = base.clone(), torch.zeros(hidden)
    weight = draw((784, hidden), torch.float32, generator, 0.01)
    v = (torch.rand(100, 784, generator=generator) < mean).float()
    for step in range(1200):
        chosen = torch.randint(len(images), (100,), generator=generator)
        x = (images[chosen] > torch.rand(100, 784, generator=generator)).float()
        p = torch.sigmoid(torch.addmm(hidden_bias, x, weight))
        v, h = gmk.rbm_gibbs(v, weight, visible, hidden_bias, steps=1, key=gmk.random.key(seed=step))
        q = torch.sigmoid(torch.addmm(hidden_bias, v, weight))
        by_weight, by_visible, by_hidden = gmk.cd_statistics(x, p, v, q)
        rate = 0.1 * (1 - step / 1200)
        weight, visible, hidden_bias = (
            weight + rate * by_weight,
            visible + rate * by_visible,
            hidden_bias + rate * by_hidden,
        )
    return weight, visible, hidden_bias, base


def test_a_trained_machine_is_bracketed_within_half_a_nat(backend: str) -> None:
    """784 x 16, whose constant is known from all 65,536 hidden states; the samples to go back from are exact, too."""
    if backend != "cpu":
        return
    weight, visible, hidden, base = _trained(16)
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=16)))
    log_p = torch.cat([h @ hidden + softplus(visible + h @ weight.T).sum(1) for h in states.split(8192)]).double()
    log_z = torch.logsumexp(log_p, 0).item()
    chains, key = 100, gmk.random.key(seed=4)
    generator = torch.Generator().manual_seed(2)
    h = states[torch.multinomial(torch.softmax(log_p, 0), chains, True, generator=generator)]
    v = (torch.rand(chains, 784, generator=generator) < torch.sigmoid(visible + h @ weight.T)).float()
    options = dict(key=key, num_betas=1000, base_visible_bias=base, backend=backend)
    forward = gmk.ais_log_z(weight, visible, hidden, chains=chains, **options).double()
    reverse = gmk.ais_log_z(weight, visible, hidden, reverse_from=v, **options).double()
    low = torch.logsumexp(forward, 0).item() - math.log(chains)
    high = math.log(chains) - torch.logsumexp(-reverse, 0).item()
    print(f"log Z {log_z:.3f}, from below {low:.3f}, from above {high:.3f}")
    assert abs(low - log_z) < 0.5
    assert abs(high - log_z) < 0.5
    assert weight.abs().max() > 0.5  # it has learnt
