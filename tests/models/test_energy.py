"""Restricted Boltzmann machines against enumeration: normalising constants, laws, gradients, completion, denoising.

Statistical tests fail by chance with probability ``ALPHA`` at most, together less than 1e-6.
"""

from __future__ import annotations

import itertools
import math
import warnings
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

from genmodels.data import Batch
from genmodels.energy import RBM, IdleUnits, Learning, learning, partition
from genmodels.errors import CheckpointError
from genmodels.sampling import Noise

ALPHA = 2e-8
SIGMAS = float(stats.norm.isf(ALPHA / 2))


def states(n: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)))


def machine(visible: str = "binary", sites: int = 5, hidden: int = 3, *, seed: int = 0, **options: object) -> RBM:
    """A small machine with weights large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    model = RBM(sites, hidden, visible=visible, levels=2, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for p, size in ((model.weight, 1.0), (model.visible_bias, 0.7), (model.hidden_bias, 0.5)):
            p.copy_(size * torch.randn(p.shape, generator=generator))
    return model


def joint_energy(model: RBM, v: Tensor, h: Tensor) -> Tensor:
    """E(v, h) (n, m) of all pairs, by definition."""
    w, vb, hb = (p.detach().double() for p in (model.weight, model.visible_bias, model.hidden_bias))
    v, h = v.double(), h.double()
    apart = 0.5 * (v - vb).square().sum(1) if model.visible == "gaussian" else -(v @ vb)
    return apart[:, None] - (h @ hb)[None] - v @ w @ h.t()


def every_visible(model: RBM) -> Tensor:
    if model.visible == "binary":
        return states(model.sites)
    one_hot = torch.eye(model.categories)
    rows = itertools.product(range(model.categories), repeat=model.sites)
    return torch.stack([one_hot[list(row)].flatten() for row in rows])


def law(model: RBM) -> Tensor:
    """p(v) of ``every_visible``, by definition."""
    scores = -joint_energy(model, every_visible(model), states(model.hidden))
    return scores.flatten().softmax(0).view_as(scores).sum(1)


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


DISCRETE = [("binary", {}), ("softmax", {"categories": 3})]


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


# ---- gradients -------------------------------------------------------------------------------------------------------


def test_the_deviations_of_gaussian_units_follow_the_likelihood() -> None:
    model = machine("gaussian", sites=3, learning=Learning(centred=False))
    model.shift.copy_(torch.tensor([1.0, 0.0, -2.0]))
    model.scale.copy_(torch.tensor([0.5, 1.0, 3.0]))
    x = Noise(1).normal((40, 3)) * 2
    model.double()
    model.losses(Batch(x.double()))["loss"].backward()
    assert model.log_scale.grad is not None
    log_z = model.log_z().low
    for site in range(3):
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                model.log_scale[site] += step
                values.append(float(model.log_likelihood(model.probabilities(x.double()), log_z).mean()))
                model.log_scale[site] -= step
        slope = (values[0] - values[1]) / 2e-4
        assert -float(model.log_scale.grad[site]) == pytest.approx(slope, rel=1e-5)


def _loss_and_steps(model: RBM, x: Tensor) -> tuple[float, list[Tensor]]:
    model.zero_grad()
    loss = model.losses(Batch(x))["loss"]
    loss.backward()
    return float(loss.detach()), [-p.grad for p in (model.weight, model.visible_bias, model.hidden_bias)]  # type: ignore


def test_the_loss_descends_along_the_statistics_of_both_phases() -> None:
    x = states(5)[::3]
    model = machine(learning=Learning(chains=7, centred=False, steps=2))
    value, steps = _loss_and_steps(model, x)
    assert int(model.updates) == 1
    v_neg = model.chains[:, 0].float()
    p, p_neg = model.hidden_given(x).detach(), model.hidden_given(v_neg).detach()
    expected = [x.t() @ p / len(x) - v_neg.t() @ p_neg / 7, x.mean(0) - v_neg.mean(0), p.mean(0) - p_neg.mean(0)]
    for ours, theirs in zip(steps, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert value == pytest.approx(float((x.mean(0) - v_neg.mean(0)).square().mean()), abs=1e-6)
    # The free energies' own gradient, by autograd, is the same thing.
    model.zero_grad()
    (model.free_energy(v_neg).mean() - model.free_energy(x).mean()).backward()
    assert model.weight.grad is not None
    assert torch.allclose(model.weight.grad, steps[0], atol=1e-6)


def test_a_sparsity_target_pulls_the_activities() -> None:
    x = states(5)[::3]
    plain, sparse = (
        _loss_and_steps(machine(learning=Learning(chains=7, centred=False, sparsity=s, target=0.2)), x)[1]
        for s in (0, 3)
    )
    p = machine().hidden_given(x).mean(0)
    assert torch.allclose(sparse[2] - plain[2], 3 * (0.2 - p), atol=1e-5)
    assert torch.allclose(sparse[0] - plain[0], torch.outer(x.mean(0), 3 * (0.2 - p)), atol=1e-5)
    assert torch.allclose(sparse[1], plain[1])


def test_the_centred_gradient_does_not_care_what_is_called_zero() -> None:
    """With units 0 and 1 exchanged (v' = 1 - v, W' = -W, vb' = -vb, hb' = hb + sum W), so are the steps."""
    generator = torch.Generator().manual_seed(1)
    dw, dv, dh = (torch.randn(s, generator=generator).double() for s in ((5, 3), (5,), (3,)))
    mu, nu = torch.rand(5, generator=generator).double(), torch.rand(3, generator=generator).double()
    steps = learning.centre(dw, dv, dh, mu, nu)
    # <(1 - v) h> = <h> - <v h>, so the difference of the phases is dh - dw.
    flipped = learning.centre(dh[None] - dw, -dv, dh, 1 - mu, nu)
    assert torch.allclose(flipped[0], -steps[0])
    assert torch.allclose(flipped[1], -steps[1])
    assert torch.allclose(flipped[2], steps[2] + steps[0].sum(0))
    plain = (dh[None] - dw, -dv, dh)
    assert not torch.allclose(plain[0], -dw), "the plain gradient does care"
    assert all(
        torch.equal(a, b) for a, b in zip(learning.centre(dw, dv, dh, 0 * mu, 0 * nu), (dw, dv, dh), strict=True)
    )


def test_the_centred_gradient_is_a_step_of_the_centred_machine() -> None:
    """(v - mu) W (h - lambda) + b v + c h has the ordinary biases b - W lambda and c - mu W."""
    generator = torch.Generator().manual_seed(2)
    w, dw, b, db, c, dc, mu, nu = (
        torch.randn(s, generator=generator) for s in ((5, 3), (5, 3), (5,), (5,), (3,), (3,), (5,), (3,))
    )
    centred = dw - torch.outer(mu, dc) - torch.outer(db, nu)
    ordinary = lambda w, b, c: (w, b - w @ nu, c - mu @ w)  # noqa: E731
    moved = zip(ordinary(w + centred, b + db, c + dc), ordinary(w, b, c), strict=True)
    for ours, (after, before) in zip(learning.centre(dw, db, dc, mu, nu), moved, strict=True):
        assert torch.allclose(ours, after - before, atol=1e-5)


def test_centring_is_used_with_the_data_s_means() -> None:
    x = states(5)[::3]
    model = machine(learning=Learning(chains=7, centred=True))
    plain = _loss_and_steps(machine(learning=Learning(chains=7, centred=False)), x)[1]
    steps = _loss_and_steps(model, x)[1]
    expected = learning.centre(*plain, x.mean(0), machine().hidden_given(x).mean(0).detach())  # type: ignore[arg-type]
    for ours, theirs in zip(steps, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_zero_sum_gauge_changes_no_probability() -> None:
    model = machine("softmax", sites=4, categories=3)
    before = law(model)
    model.zero_sum_gauge()
    assert torch.allclose(law(model), before, atol=1e-6)
    assert float(model.weight.detach().view(4, 3, -1).sum(1).abs().max()) < 1e-5
    assert float(model.visible_bias.detach().view(4, 3).sum(1).abs().max()) < 1e-5


def _bars() -> Tensor:
    """Bars and stripes of 3x3: 14 images, the classic test of a machine that must find modes far apart."""
    lines = states(3)[:, :, None].expand(-1, 3, 3)
    return torch.cat([lines, lines.transpose(1, 2)]).flatten(1).unique(dim=0)


@pytest.mark.parametrize("method,options", [("cd", {"steps": 10}), ("pcd", {}), ("pt", {"replicas": 4})])
def test_learning_bars_and_stripes_approaches_the_entropy(method: str, options: dict) -> None:
    """log 14 = 2.64 nats is the best that can be; independent pixels take 6.2."""
    x = _bars()
    torch.manual_seed(0)
    model = RBM(9, 10, levels=2, learning=Learning(method=method, chains=100, **options))  # type: ignore[arg-type]
    model.initialise(x)
    start = float(model.log_likelihood(x, model.log_z().low).mean())
    assert start == pytest.approx(-9 * math.log(2), abs=0.1)
    optimizer = torch.optim.SGD(model.parameters(), 0.2)
    for i in range(3000):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - i / 3000)
        optimizer.zero_grad()
        model.losses(Batch(x))["loss"].backward()
        optimizer.step()
    found = float(model.log_likelihood(x, model.log_z().low).mean())
    assert -math.log(14) - 0.35 < found <= -math.log(14)
    if method == "pt":
        rates = model.swap_rates.tolist()
        assert all(0.05 < rate < 1 for rate in rates)


def test_initial_biases_are_the_data_s_frequencies() -> None:
    x = torch.cat([torch.ones(30, 2), torch.zeros(10, 2)])
    model = RBM(2, 3, levels=2)
    model.initialise(x)
    assert torch.allclose(model.visible_bias.sigmoid(), torch.full((2,), 30.5 / 41))
    gaussian = RBM(2, 3, visible="gaussian")
    data = 5 + 3 * Noise(1).normal((500, 2))
    gaussian.initialise(data)
    v = gaussian.probabilities(data)
    assert torch.allclose(v.mean(0), torch.zeros(2), atol=1e-4)
    assert torch.allclose(v.std(0), torch.ones(2), atol=0.02)
    assert torch.allclose(gaussian.images(v), data, atol=1e-4)
    softmax = RBM(1, 2, visible="softmax", categories=4, levels=8)
    softmax.initialise(torch.tensor([[0], [1], [2], [3], [3], [7]]))
    counts = torch.tensor([2.5, 3.5, 0.5, 1.5]) / 8
    assert torch.allclose(softmax.visible_given(torch.zeros(1, 2))[0], counts, atol=1e-6)


def test_idle_units_are_counted_and_reported() -> None:
    model = machine(sites=5, hidden=4)
    x = states(5)
    assert model.warn_if_idle(x) == (0, 0)
    with torch.no_grad():
        model.hidden_bias[0], model.hidden_bias[1] = -30.0, 30.0
    with pytest.warns(IdleUnits, match="of 4 hidden units 1 are dead and 1 saturated"):
        assert model.warn_if_idle(x) == (1, 1)


# ---- files and refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("visible,options", [*DISCRETE, ("gaussian", {})])
def test_a_saved_machine_goes_on_as_if_nothing_had_happened(visible: str, options: dict, tmp_path: Path) -> None:
    x = (states(5) if visible != "gaussian" else Noise(0).normal((32, 5))).to(
        torch.int64 if visible == "softmax" else torch.float32
    )
    torch.manual_seed(0)
    model = RBM(5, 3, visible=visible, levels=2, learning=Learning(method="pt", chains=4, replicas=3), **options)
    model.initialise(x)
    for _ in range(3):
        model.losses(Batch(x))
    path = tmp_path / "machine.safetensors"
    model.save(path)
    again = RBM.load(path)
    assert again.learning == model.learning
    losses = [m.losses(Batch(x))["loss"] for m in (model, again)]
    assert torch.equal(*losses)
    assert torch.equal(model.chains, again.chains)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="damaged"):
        RBM.load(path)


def test_gaussian_chains_survive_as_bits() -> None:
    model = RBM(3, 2, visible="gaussian", learning=Learning(chains=5))
    v = Noise(1).normal((5, 1, 3))
    model._keep(v)
    assert torch.equal(model._current(), v)


@pytest.mark.parametrize(
    "act,message",
    [
        (lambda: RBM(0, 3), "shape and hidden must be positive"),
        (lambda: RBM(3, 3, visible="relu"), "visible must be one of binary, gaussian, softmax, got 'relu'"),
        (lambda: RBM(3, 3, visible="softmax", categories=1), "categories must be at least 2"),
        (lambda: Learning(method="sgd"), "method must be 'cd', 'pcd' or 'pt', got 'sgd'"),
        (lambda: Learning(steps=0), "steps and chains must be at least 1"),
        (lambda: Learning(beta_min=0.0), r"beta_min must be in \(0, 1\)"),
        (lambda: Learning(replicas=1), "replicas must be at least 2"),
        (lambda: machine().encode(torch.zeros(2, 4)), r"expected data \(batch, 5\), got \(2, 4\)"),
        (lambda: machine().encode(torch.full((2, 5), 1.5)), r"binary units need data in \[0, 1\]"),
        (lambda: machine("softmax", categories=3).encode(torch.zeros(2, 5)), "softmax units need integer data"),
        (lambda: machine("gaussian").pseudo_likelihood(torch.zeros(2, 5)), "have no closed form"),
        (lambda: machine().sample(2, temperature=0.0), "temperature must be positive"),
        (lambda: machine().inpaint(torch.zeros(2, 5), torch.ones(5)), "a mask must be bool"),
        (lambda: machine().inpaint(torch.zeros(2, 5), torch.ones(5) > 0, steps=5), "average in 0..steps"),
        (lambda: machine().denoise(torch.zeros(2, 5), 0.5), "noise of binary units cannot be 0.5"),
        (lambda: machine().denoise(torch.zeros(2, 5), 0.1, steps=5), r"average must be in 1\.\.steps"),
    ],
)
def test_what_makes_no_sense_is_refused(act, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message), warnings.catch_warnings():
        act()
