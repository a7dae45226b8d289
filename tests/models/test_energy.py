"""Restricted Boltzmann machines against enumeration: normalising constants, laws, completion, denoising.

Statistical tests fail by chance with probability ``ALPHA`` at most, together less than 1e-6.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from genmodels.energy import RBM, learning, partition
from genmodels.sampling import Noise
from tests.machines import DISCRETE, every_visible, joint_energy, law, machine, states

ALPHA = 2e-8
SIGMAS = float(stats.norm.isf(ALPHA / 2))


def place(model: RBM, v: Tensor) -> Tensor:
    """The row of ``every_visible`` that each is."""
    base = 2 if model.visible == "binary" else model.categories
    digits = v if model.visible == "binary" else v.unflatten(1, (-1, base)).argmax(2)
    return (digits.long() * base ** torch.arange(model.sites - 1, -1, -1)).sum(1)


def p_value(drawn: Tensor, p: Tensor) -> float:
    counts, expected = drawn.bincount(minlength=len(p)).double(), p.double() * len(drawn)
    keep = expected >= 8
    counts = torch.cat([counts[keep], counts[~keep].sum()[None]])
    expected = torch.cat([expected[keep], expected[~keep].sum()[None]])
    if expected[-1] < 8:
        counts, expected = counts[:-1], expected[:-1]
    return float(stats.chi2.sf(float(((counts - expected).square() / expected).sum()), len(counts) - 1))


# ---- normalising constants -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("visible,options", DISCRETE)
@pytest.mark.parametrize("hidden", [3, 7])
def test_log_z_is_the_sum_of_all_states(visible: str, options: dict, hidden: int) -> None:
    model = machine(visible, hidden=hidden, **options)
    exact = float((-joint_energy(model, every_visible(model), states(hidden))).flatten().logsumexp(0))
    found = model.log_z()
    assert found.exact
    assert found.low == found.high == pytest.approx(exact, abs=1e-9)
    log_p = model.log_likelihood(every_visible(model), found.low)
    assert float(log_p.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(log_p.exp(), law(model), atol=1e-6)


def test_log_z_of_more_hidden_units_than_fit_one_table() -> None:
    """13 units: two tables of the enumeration; and its sum over 6 visible ones is the same."""
    model = machine(sites=14, hidden=13)
    by_hidden = model.log_z(exact=True).low
    w, vb, hb = (p.detach().double() for p in (model.weight, model.visible_bias, model.hidden_bias))
    by_visible = partition.enumerate_log_z(w, vb, lambda f: torch.nn.functional.softplus(f).sum(-1), hb)
    assert by_hidden == pytest.approx(by_visible, abs=1e-9)


def test_gaussian_densities_integrate_to_one_on_the_scale_of_the_data() -> None:
    model = machine("gaussian", sites=2, hidden=3)
    model.shift.copy_(torch.tensor([1.0, -2.0]))
    model.scale.copy_(torch.tensor([0.5, 3.0]))
    axis = torch.linspace(-14, 14, 701)
    v = torch.cartesian_prod(axis, axis)
    x = v * model.scale + model.shift
    area = float((axis[1] - axis[0]) ** 2 * model.scale.prod())
    log_p = model.log_likelihood(model.probabilities(x), model.log_z().low)
    assert float(log_p.exp().sum()) * area == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("visible,options", [*DISCRETE, ("gaussian", {})])
def test_annealing_from_both_ends_meets_the_exact_log_z(visible: str, options: dict) -> None:
    model = machine(visible, sites=8, hidden=6, **options)
    if visible == "gaussian":
        with torch.no_grad():
            model.weight *= 0.5
    exact = model.log_z().low
    found = model.log_z(exact=False, chains=400, betas=300, burn_in=200, key=1)
    assert not found.exact
    assert 40 < found.ess <= 400
    # The spread of 400 weights worth found.ess chains: six of its deviations on either side.
    limit = 6 / math.sqrt(found.ess)
    assert abs(found.low - exact) < limit
    assert abs(found.high - exact) < limit
    assert found == model.log_z(exact=False, chains=400, betas=300, burn_in=200, key=1)


def test_the_plain_annealing_of_binary_units_agrees_with_the_operator() -> None:
    model = machine(sites=8, hidden=6)
    machine_of = [p.detach() for p in (model.weight, model.visible_bias, model.hidden_bias, model.base)]
    exact = model.log_z().low
    for start in (None, model.gibbs(torch.zeros(400, 8), 200, key=3)[0]):
        logs = partition.anneal(
            "binary", 1, *machine_of, torch.linspace(0, 1, 300), Noise(4), chains=400, start=start
        )  # fmt: skip
        sign = 1 if start is None else -1
        assert sign * float((sign * logs).logsumexp(0) - math.log(400)) == pytest.approx(exact, abs=0.3)


def test_a_bracket_says_what_its_chains_are_worth() -> None:
    weights = torch.tensor([0.0, 0.0, 0.0, 50.0])
    found = partition.bracket(weights, weights)
    assert found.ess == pytest.approx(1.0)
    assert found.low == pytest.approx(50 - math.log(4))
    assert found.high == pytest.approx(math.log(4) - math.log(3), abs=1e-6)


def test_exact_log_z_refuses_large_machines() -> None:
    with pytest.raises(ValueError, match="exact needs a side of at most 25 units, got 30"):
        RBM(40, 30).log_z(exact=True)


# ---- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("visible,options", DISCRETE)
def test_a_gibbs_step_has_the_exact_law(visible: str, options: dict) -> None:
    model = machine(visible, sites=4, **options)
    every, h = every_visible(model), states(3)
    start = every[5]
    given_v = (-joint_energy(model, start[None], h))[0].softmax(0)
    given_h = (-joint_energy(model, every, h)).softmax(0)
    v, _ = model.gibbs(start.expand(100_000, -1).contiguous(), 1, key=1)
    assert p_value(place(model, v), given_h @ given_v) > ALPHA
    hot = model.gibbs(start.expand(100_000, -1).contiguous(), 1, key=2, beta=torch.full((100_000,), 0.4))[0]
    hot_v = (-0.4 * joint_energy(model, start[None], h))[0].softmax(0)
    assert p_value(place(model, hot), (-0.4 * joint_energy(model, every, h)).softmax(0) @ hot_v) > ALPHA


@pytest.mark.parametrize("visible,options", DISCRETE)
def test_samples_have_the_machine_s_law(visible: str, options: dict) -> None:
    model = machine(visible, sites=4, **options)
    v = model.sample_states(60_000, steps=60, key=3)
    assert p_value(place(model, v), law(model)) > ALPHA
    cold = model.sample_states(60_000, steps=60, key=4, temperature=2.0)
    tempered = -0.5 * joint_energy(model, every_visible(model), states(3))
    assert p_value(place(model, cold), tempered.flatten().softmax(0).view_as(tempered).sum(1)) > ALPHA


def test_swaps_leave_every_temperature_its_law() -> None:
    """Replicas drawn from their exact laws, exchanged: each temperature's law must not change, at the exact rate."""
    model = machine(sites=4)
    every, betas = states(4), torch.tensor([0.2, 0.6, 1.0])
    field = (model.hidden_bias + every @ model.weight).detach().double()
    energy = -(every @ model.visible_bias).detach().double()
    log_p = torch.stack([torch.nn.functional.softplus(b * field).sum(1) - b * energy for b in betas.double()])
    p = log_p.softmax(1)
    n = 100_000
    drawn = Noise(5).categorical(log_p.expand(n, 3, 16))
    uniform = Noise(6).uniform((n, 3), torch.float64)
    for odd in (0, 1):
        v, tried, rate = learning.swap(every.double()[drawn], field[drawn], energy[drawn], betas.double(), uniform, odd)
        assert tried.tolist() == [odd == 0, odd == 1]
        held = place(model, v.float().flatten(0, 1)).view(n, 3)
        assert torch.equal(held.sort(1).values, drawn.sort(1).values), "states change places, none is lost"
        for replica in range(3):
            assert p_value(place(model, v[:, replica].float()), p[replica]) > ALPHA
        a, b = (0, 1) if odd == 0 else (1, 2)
        ratio = log_p[a][None, :] + log_p[b][:, None] - log_p[a][:, None] - log_p[b][None, :]
        exact = float((p[a][:, None] * p[b][None, :] * ratio.clamp_max(0).exp()).sum())
        assert abs(float(rate[a]) - exact) < SIGMAS * math.sqrt(exact * (1 - exact) / n)
        assert 0.2 < exact < 0.98, "a rate that could be wrong"
        assert float(rate[1 - a]) == 0


@pytest.mark.parametrize("visible,options", DISCRETE)
def test_pseudo_likelihood_is_the_sum_of_the_conditionals(visible: str, options: dict) -> None:
    model = machine(visible, sites=4, **options)
    every, p = every_visible(model), law(model)
    sites = every.view(len(every), 4, -1)
    expected = torch.zeros(len(every), dtype=torch.float64)
    for site in range(4):
        others = [i for i in range(4) if i != site]
        same = (sites[:, None, others] == sites[None, :, others]).all(-1).all(-1)
        expected += (p / (same.double() @ p)).log()
    assert torch.allclose(model.pseudo_likelihood(every, exact=True).double(), expected, atol=1e-4)
    many = model.pseudo_likelihood(every[7].expand(40_000, -1), key=1).double()
    assert abs(float(many.mean() - expected[7])) < SIGMAS * float(many.std()) / 200
    assert float(many.std()) > 0


@pytest.mark.parametrize("visible,options", DISCRETE)
def test_completion_is_the_conditional_expectation(visible: str, options: dict) -> None:
    model = machine(visible, sites=4, **options)
    every, p = every_visible(model), law(model)
    images = model.images(every)
    x = (images * (model.categories - 1 if visible == "softmax" else 1)).long()[9]
    model.levels = max(2, model.categories)
    mask = torch.tensor([True, False, True, False])
    fits = (images[:, mask] == images[9, mask]).all(1)
    expected = (p * fits) @ images.double() / p[fits].sum()
    n = 4000
    found = model.inpaint(x.expand(n, -1), mask, steps=40, average=10, key=1)
    assert torch.equal(found[:, mask], images[9, mask].expand(n, -1))
    error = SIGMAS * found[:, ~mask].double().std(0) / math.sqrt(n)
    assert bool(((found[:, ~mask].double().mean(0) - expected[~mask]).abs() < error + 1e-6).all())
    drawn = model.inpaint(x.expand(n, -1), mask, steps=40, average=0, key=2)
    assert bool(torch.isin(drawn, images.unique()).all())
    error = SIGMAS * drawn[:, ~mask].double().std(0) / math.sqrt(n)
    assert bool(((drawn[:, ~mask].double().mean(0) - expected[~mask]).abs() < error + 1e-6).all())
    several = model.inpaint(x.expand(n // 4, -1), mask, steps=40, average=10, draws=4, key=1)
    assert torch.allclose(several, found.unflatten(0, (-1, 4)).mean(1), atol=1e-6)
    # What is hidden is not read.
    other = torch.where(mask, x, 1 - x.clamp_max(1))
    assert torch.equal(model.inpaint(other.expand(n, -1), mask, steps=40, average=10, key=1), found)


@pytest.mark.parametrize("visible,options", DISCRETE)
def test_denoising_is_the_posterior_mean(visible: str, options: dict) -> None:
    model = machine(visible, sites=4, **options)
    p, images = law(model), model.images(every_visible(model))
    model.levels = max(2, model.categories)
    noise, k = 0.2, max(2, model.categories)
    x = (images * (k - 1)).round().long()[9]
    same = (images == images[9]).double()
    right, wrong = (1 - noise, noise) if visible == "binary" else (1 - noise + noise / k, noise / k)
    posterior = p * (same * right + (1 - same) * wrong).prod(1)
    expected = posterior @ images.double() / posterior.sum()
    found = model.denoise(x.expand(4000, -1), noise, steps=40, average=10, key=1).double()
    assert bool(((found.mean(0) - expected).abs() < SIGMAS * found.std(0) / math.sqrt(4000) + 1e-6).all())


def test_gaussian_denoising_is_the_posterior_mean() -> None:
    model = machine("gaussian", sites=2, hidden=3)
    model.scale.copy_(torch.tensor([2.0, 0.5]))
    model.shift.copy_(torch.tensor([-1.0, 3.0]))
    x, noise = torch.tensor([0.5, 2.9]), 0.8
    seen = ((x - model.shift) / model.scale).double()
    w, vb, hb = (p.detach().double() for p in (model.weight, model.visible_bias, model.hidden_bias))
    h = states(3).double()
    # Given h, v is N(vb + W h, 1) and the observation N(vb + W h, 1 + noise^2); completing the square of E(v, h).
    centre = vb + h @ w.t()
    log_h = h @ hb + 0.5 * (centre.square() - vb.square()).sum(1)
    log_h = log_h - 0.5 * (seen - centre).square().sum(1) / (1 + noise**2)
    mean = (centre * noise**2 + seen) / (1 + noise**2)
    expected = (log_h.softmax(0) @ mean) * model.scale + model.shift
    found = model.denoise(x.expand(6000, -1), noise, steps=40, average=10, key=1).double()
    assert bool(((found.mean(0) - expected).abs() < SIGMAS * found.std(0) / math.sqrt(6000)).all())
