"""Restricted Boltzmann machines learn: their gradients, what is counted on the way, and files to go on from."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genmodels.data import Batch
from genmodels.energy import RBM, IdleUnits, Learning, learning
from genmodels.errors import CheckpointError
from genmodels.sampling import Noise
from tests.machines import DISCRETE, law, machine, states

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
    return float(loss.detach()), [-p.grad for p in (model.weight, model.visible_bias, model.hidden_bias)]


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
    expected = learning.centre(*plain, x.mean(0), machine().hidden_given(x).mean(0).detach())
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
    model = RBM(9, 10, levels=2, learning=Learning(method=method, chains=100, **options))
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
