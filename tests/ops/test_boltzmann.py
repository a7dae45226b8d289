"""Sequential sweeps against enumeration of the machine, and Hopfield recall against what it promises.

Samples of a law that is known by enumeration are held to it by a G-test. All tests together raise a false alarm with a
probability of 1e-6 at most: there are fewer than LOOKS of them. How small a fault they see is tested too: the same
samples have to be refused as those of a machine whose temperature is off by two percent.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

import gmkernels as gmk
from gmkernels.core import backends
from gmkernels.ops.gibbs import boltzmann_reference, hopfield_recall
from gmkernels.testing import LAYOUTS, relayout
from gmkernels.testing.table import draw

from . import support

LOOKS = 100
BACKENDS = [
    pytest.param(name, marks=[pytest.mark.triton] if name == "triton" else [])
    for name in ("reference", "cpu", "triton")
    if backends.unavailable(name) is None
]
pytestmark = pytest.mark.parametrize("backend", BACKENDS)
# The interpreter takes a chain some ten milliseconds. What it computes has the bits of the C++ core (test_bitwise.py),
# whose law is known from here.
LAWS = pytest.mark.skipif(support.INTERPRETER, reason="the interpreter has no time for a million chains")


def _chance(counts: np.ndarray, law: np.ndarray) -> float:
    """The probability of counts this far from a law (both: start by end), where they come from it (G-test)."""
    statistic, freedom = 0.0, 0
    for row, chances in zip(counts, law * counts.sum(1, keepdims=True), strict=True):
        # Cells that expect fewer than ten are taken together.
        order = np.argsort(chances)
        cell = np.minimum(np.cumsum(chances[order]) // 10, (chances[order] < 10).sum())
        cell = np.unique(np.where(chances[order] < 10, cell, len(order) + np.arange(len(order))), return_inverse=True)[
            1
        ]
        seen, expected = np.bincount(cell, row[order]), np.bincount(cell, chances[order])
        if len(expected) > 1 and expected[0] < 5:
            seen, expected = np.r_[seen[0] + seen[1], seen[2:]], np.r_[expected[0] + expected[1], expected[2:]]
        some = seen > 0
        statistic += 2.0 * (seen[some] * np.log(seen[some] / expected[some])).sum()
        freedom += len(expected) - 1
    return float(chi2.sf(statistic, freedom))


class Machine:
    """A machine small enough to list its states."""

    def __init__(self, units: int, spin: bool, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        low = draw((units, units), torch.float32, generator, 0.5 if spin else 1.0).tril(-1)
        self.weight, self.bias = low + low.T, draw((units,), torch.float32, generator, 0.4)
        bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=units)))
        self.units, self.spin, self.states = units, spin, 2.0 * bits - 1.0 if spin else bits

    def law(self, beta: float) -> np.ndarray:
        x = self.states.double()
        log = beta * (0.5 * ((x @ self.weight.double()) * x).sum(1) + x @ self.bias.double())
        return torch.softmax(log, 0).numpy()

    def sweep(self, beta: float, order: list[int], held: list[int]) -> np.ndarray:
        """The probabilities of the states after a sweep, from each state before it."""
        x, count = self.states.double(), len(self.states)
        field = x @ self.weight.double() + self.bias.double()
        on = torch.sigmoid((2.0 if self.spin else 1.0) * beta * field).numpy()
        total = np.eye(count)
        for i in [i for i in order if i not in held]:
            bit = 1 << (self.units - 1 - i)
            step = np.zeros((count, count))
            index = np.arange(count)
            step[index, index | bit], step[index, index & ~bit] = on[:, i], 1.0 - on[:, i]
            total = total @ step
        return total

    def index(self, x: Tensor) -> Tensor:
        return ((x > 0) * 2 ** torch.arange(self.units - 1, -1, -1)).sum(1)

    def counts(self, start: Tensor, end: Tensor) -> np.ndarray:
        pairs = start * len(self.states) + self.index(end.cpu())
        return torch.bincount(pairs, minlength=len(self.states) ** 2).reshape(-1, len(self.states)).double().numpy()


VARIANTS = {
    "plain": {},
    "cold": {"beta": 1.7},
    "turned": {"order": [3, 1, 4, 0, 2]},
    "held": {"held": [1, 3]},
}


def _each(backend: str) -> int:
    """How many chains of a start state a backend can afford."""
    return 10_000 if backend == "reference" else 40_000


@LAWS
@pytest.mark.parametrize("spin", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_law_after_one_sweep_from_every_state(backend: str, spin: bool, variant: str) -> None:
    machine, options = Machine(5, spin, 1), dict(VARIANTS[variant])
    beta, order, held = options.get("beta", 1.0), options.get("order", list(range(5))), options.get("held", [])
    start = torch.arange(32).repeat(_each(backend))
    device = support.device(backend)
    found = gmk.boltzmann_gibbs(
        machine.states[start].to(device), machine.weight.to(device), machine.bias.to(device), sweeps=1, spin=spin,
        key=gmk.random.key(seed=17, device=device), beta=beta, backend=backend,
        order=torch.tensor(order, device=device) if "order" in options else None,
        clamp=torch.tensor([i in held for i in range(5)], device=device) if held else None,
    )  # fmt: skip
    counts = machine.counts(start, found)
    assert _chance(counts, machine.sweep(beta, order, held)) > 1e-6 / LOOKS
    seen = 1.05 if backend == "reference" else 1.02
    assert _chance(counts, machine.sweep(seen * beta, order, held)) < 1e-6 / LOOKS
    if "order" in options:
        assert _chance(counts, machine.sweep(beta, list(range(5)), held)) < 1e-6 / LOOKS


@LAWS
@pytest.mark.parametrize("spin", [True, False])
def test_the_machines_own_law_is_kept(backend: str, spin: bool) -> None:
    """Twelve units, every chain at its own temperature, through two fresh sums of the fields."""
    machine, generator = Machine(12, spin, 2), torch.Generator().manual_seed(5)
    each, sweeps = (20_000, 2) if backend == "reference" else (400_000, 66)
    device = support.device(backend)
    betas, laws = (1.0, 0.4), []
    starts = []
    for beta in betas:
        laws.append(machine.law(beta))
        starts.append(torch.multinomial(torch.from_numpy(laws[-1]), each, True, generator=generator))
    found = gmk.boltzmann_gibbs(
        machine.states[torch.cat(starts)].to(device), machine.weight.to(device), machine.bias.to(device),
        sweeps=sweeps, key=gmk.random.key(seed=3, device=device), spin=spin, backend=backend,
        beta=torch.tensor(betas, device=device).repeat_interleave(each),
    ).cpu()  # fmt: skip
    counts = torch.stack([torch.bincount(machine.index(x), minlength=4096) for x in found.split(each)]).double().numpy()
    assert _chance(counts, np.stack(laws)) > 1e-6 / LOOKS
    if backend != "reference":
        assert _chance(counts, np.stack([machine.law(1.02 * beta) for beta in betas])) < 1e-6 / LOOKS


def test_thresholds_keep_the_digits_of_both_ends(backend: str) -> None:
    if backend != "reference":
        return
    words = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1])
    for dtype in (torch.float32, torch.float64):
        found = boltzmann_reference.logits(words, dtype)
        expected = [math.log((w + 0.5) / (2**32 - w - 0.5)) for w in words.tolist()]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=dtype), rtol=1e-6, atol=1e-7)
        assert found[2] <= 0 <= found[3] and (found[1:] > found[:-1])[[0, 1, 3, 4]].all()


def _large(units: int = 70, chains: int = 9, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    low = draw((units, units), dtype, generator, 1.5 * units**-0.5).tril(-1)
    x = torch.randint(2, (chains, units), generator=generator).to(dtype) * 2 - 1
    return x, low + low.T, draw((units,), dtype, generator, 0.3)


def test_long_runs_follow_the_definition(backend: str) -> None:
    """Through several fresh sums: the order of all sums, and when they are made, is that of the definition."""
    if backend == "triton" and support.INTERPRETER:
        return  # sweeps take it minutes
    tensors = [t.to(support.device(backend)) for t in _large()]
    key = gmk.random.key(seed=8, device=support.device(backend))
    expected = gmk.boltzmann_gibbs(*tensors, sweeps=140, key=key, backend="reference")
    assert torch.equal(gmk.boltzmann_gibbs(*tensors, sweeps=140, key=key, backend=backend), expected)


def test_no_heat_and_all_heat(backend: str) -> None:
    x, weight, bias = (t.to(support.device(backend)) for t in _large(17, 5))
    key = gmk.random.key(seed=9, device=x.device)
    hot = gmk.boltzmann_gibbs(x, weight, bias, sweeps=1, key=key, beta=0.0, backend=backend)
    assert torch.equal(hot, gmk.boltzmann_gibbs(x, 0 * weight, 0 * bias, sweeps=1, key=key, backend=backend))
    cold = gmk.boltzmann_gibbs(x, weight, bias, sweeps=2, key=key, beta=1e30, backend=backend)
    assert torch.equal(cold, hopfield_recall(x, weight, bias, max_sweeps=2, backend=backend)[0])
    assert torch.equal(gmk.boltzmann_gibbs(x, weight, bias, sweeps=0, key=key, backend=backend), x)


def test_held_units_stay_and_others_listen_to_them(backend: str) -> None:
    x, weight, bias = (t.to(support.device(backend)) for t in _large(17, 6))
    weight = weight.abs() * 100
    clamp = torch.zeros(6, 17, dtype=torch.bool, device=x.device)
    clamp[:3, 0] = True
    for value in (1.0, -1.0):
        x = torch.full_like(x, value)
        found = gmk.boltzmann_gibbs(
            x, weight, bias, sweeps=2, key=gmk.random.key(seed=1, device=x.device), clamp=clamp, backend=backend
        )
        assert torch.equal(found, x)  # all agree, and couplings are strong


@pytest.mark.parametrize("layout", LAYOUTS[:5])
def test_weights_may_lie_in_any_way(backend: str, layout: str) -> None:
    if backend == "reference":
        return
    x, weight, bias = (t.to(support.device(backend)) for t in _large(17, 4))
    key = gmk.random.key(seed=2, device=x.device)
    there = relayout(weight, layout)
    for options in ({}, {"order": torch.arange(16, -1, -1, device=x.device)}):
        call = dict(sweeps=2, key=key, backend=backend, **options)
        assert torch.equal(gmk.boltzmann_gibbs(x, there, bias, **call), gmk.boltzmann_gibbs(x, weight, bias, **call))
    for a, b in zip(
        *(hopfield_recall(x, w, bias, max_sweeps=3, backend=backend) for w in (there, weight)), strict=True
    ):
        assert torch.equal(a, b)


def test_weights_that_changed_are_looked_at_again(backend: str) -> None:
    if support.device(backend) != "cpu":
        return
    x, weight, bias = _large(17, 2)
    call = dict(sweeps=1, key=gmk.random.key(seed=2), backend=backend)
    gmk.boltzmann_gibbs(x, weight, bias, **call)
    weight[3, 4] += 1.0
    with pytest.raises(ValueError, match=r"symmetric, got weight\[3, 4\]"):
        gmk.boltzmann_gibbs(x, weight, bias, **call)
    with torch.inference_mode():
        other = _large(17, 2)[1]
        gmk.boltzmann_gibbs(x, other, bias, **call)
        other[3, 4] += 1.0
        with pytest.raises(ValueError, match="symmetric"):
            gmk.boltzmann_gibbs(x, other, bias, **call)


# ---- recall ----------------------------------------------------------------------------------------------------------


def _memories(units: int, stored: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Patterns, the couplings that store them (sums of them are exact in float32), and patterns with noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randint(2, (stored, units), generator=generator).float() * 2 - 1
    weight = (patterns.T @ patterns).fill_diagonal_(0.0)
    flip = torch.rand(stored, units, generator=generator) < noise
    return patterns, weight, torch.where(flip, -patterns, patterns)


def _energy(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x, weight = x.double().cpu(), weight.double().cpu()
    return -0.5 * ((x @ weight) * x).sum(1) - x @ bias.double().cpu()


def test_energy_falls_until_nothing_changes(backend: str) -> None:
    """Overloaded, so that recall is long: sweep by sweep, and at once, with the sweeps counted."""
    units, stored, most = (37, 9, 5) if backend == "triton" and support.INTERPRETER else (150, 60, 100)
    _, weight, x = (t.to(support.device(backend)) for t in _memories(units, stored, 0.4))
    bias = torch.arange(units, device=x.device) % 5 - 2.0
    final, used = hopfield_recall(x, weight, bias, max_sweeps=most, backend=backend)
    assert used.max() > 2
    going, count = x, torch.zeros_like(used)
    for _ in range(int(used.max())):
        after, moved = hopfield_recall(going, weight, bias, max_sweeps=1, backend=backend)
        before, energy = _energy(going, weight, bias), _energy(after, weight, bias)
        assert torch.equal(moved == 1, (after != going).any(1)) and (energy <= before).all()
        assert (energy < before)[(moved == 1).cpu()].all()
        going, count = after, count + moved
    assert torch.equal(going, final) and torch.equal(count, used)
    field = final @ weight + bias
    fixed = ((field * final >= 0).all(1)).cpu()
    assert fixed[(used < most).cpu()].all()


def test_a_field_of_zero_keeps_the_state(backend: str) -> None:
    weight = torch.zeros(3, 3, device=support.device(backend))
    weight[0, 1] = weight[1, 0] = 1.0
    x = torch.tensor(list(itertools.product([1.0, -1.0], repeat=3)), device=weight.device)
    found, used = hopfield_recall(x, weight, torch.tensor([-1.0, 0.0, 0.0]).to(weight), max_sweeps=9, backend=backend)
    # Unit 0 ties if unit 1 is on and takes -1 otherwise; unit 1 follows unit 0; unit 2 hears nothing.
    expected = [[1, 1], [1, 1], [-1, -1], [-1, -1], [-1, -1], [-1, -1], [-1, -1], [-1, -1]]
    assert found[:, :2].tolist() == expected
    assert torch.equal(found[:, 2], x[:, 2])
    assert used.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(("load", "low", "high"), [(0.10, 0.99, 1.0), (0.16, 0.0, 0.75)])
def test_memory_holds_below_its_capacity_and_collapses_above(
    backend: str, load: float, low: float, high: float
) -> None:
    if backend != "cpu":
        return  # a thousand units take the others too long
    overlaps = []
    for seed in range(3):
        patterns, weight, x = _memories(1000, int(1000 * load), 0.1, seed)
        overlaps.append((hopfield_recall(x, weight, max_sweeps=20, backend=backend)[0] * patterns).mean().item())
    assert low <= sum(overlaps) / 3 <= high
