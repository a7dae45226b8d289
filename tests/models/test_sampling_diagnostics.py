"""What all samplers share: a key and a cut of the chains are laws, diagnostics know known processes, misuse is explained."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor

import gmkernels as gmk
from genmodels import sampling
from genmodels.sampling import Noise, Samples

# ---- keys, cuts and bars ---------------------------------------------------------------------------------------------


def _run(sampler: str, chains: int = 6, **options: object) -> Samples:
    start = torch.tensor([[0.0, 1.0, 1.0]]).expand(chains, -1)
    energy = lambda x: (x @ torch.tensor([0.3, -0.2, 0.1])) + 0.5 * x.prod(1)  # noqa: E731
    options = dict(draws=9, key=18) | options
    if sampler == "gibbs":
        return sampling.gibbs(start, energy=energy, **options)
    density = lambda x: -energy(x) - x.square().sum(1)  # noqa: E731
    return sampling.metropolis_hastings(density, start, **options)


@pytest.mark.parametrize("sampler", ["gibbs", "metropolis"])
def test_a_seed_a_batch_split_thinning_and_burn_in_are_laws(sampler: str) -> None:
    whole = _run(sampler)
    assert whole.samples.shape == (6, 9, 3)
    assert torch.equal(_run(sampler, key=gmk.random.key(seed=18)).samples, whole.samples)
    assert not torch.equal(_run(sampler, key=19).samples, whole.samples)
    parts = [_run(sampler, 2), _run(sampler, 4, first=2)]
    assert torch.equal(torch.cat([part.samples for part in parts]), whole.samples)
    thinned = _run(sampler, draws=2, thin=3, burn_in=2)
    assert torch.equal(thinned.samples, whole.samples[:, [4, 7]])
    assert whole.log_densities is not None
    assert thinned.log_densities is not None
    assert torch.equal(thinned.log_densities, whole.log_densities[:, [4, 7]])
    assert whole.final is not None
    assert torch.equal(whole.final, whole.samples[:, -1])
    torch.manual_seed(3)
    drawn = _run(sampler, key=None)
    torch.manual_seed(3)
    assert torch.equal(_run(sampler, key=None).samples, drawn.samples)


def test_neighbouring_keys_share_no_stream() -> None:
    key = gmk.random.key(seed=0)
    one, two = Noise(key), Noise(key + torch.tensor([0, 1]))
    ours = torch.stack([one.uniform(50) for _ in range(4)])
    theirs = torch.stack([two.uniform(50) for _ in range(4)])
    assert not bool((ours[:, None] == theirs[None]).all(-1).any())
    assert not bool((ours[1:] == ours[:-1]).all(-1).any())


def test_a_bar_is_shown_when_asked_for_or_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _run("gibbs")
    assert capsys.readouterr().err == ""
    _run("gibbs", progress=True)
    assert "gibbs" in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _run("gibbs")
    assert capsys.readouterr().err == "", "a short run needs no bar"
    monkeypatch.setattr(sampling.chain, "_LONG", 0.0)
    _run("metropolis")
    assert "metropolis-hastings" in capsys.readouterr().err
    _run("metropolis", progress=False)
    assert capsys.readouterr().err == ""


# ---- diagnostics -----------------------------------------------------------------------------------------------------


def _autoregressive(r: float, chains: int, draws: int, seed: int) -> Tensor:
    """x_t = r x_(t-1) + sqrt(1 - r^2) e_t, stationary from the start: autocorrelation r^t, unit variance."""
    noise = Noise(seed).normal((chains, draws), torch.float64)
    x = torch.empty_like(noise)
    x[:, 0] = noise[:, 0]
    for t in range(1, draws):
        x[:, t] = r * x[:, t - 1] + math.sqrt(1 - r * r) * noise[:, t]
    return x


@pytest.mark.parametrize("r", [-0.4, 0.0, 0.5, 0.9])
def test_diagnostics_know_an_autoregressive_process(r: float) -> None:
    x = _autoregressive(r, 8, 20_000, 21)
    lags = sampling.autocorrelation(x, 6)
    # Bartlett: the standard error of an autocorrelation is at most sqrt((1 + r^2) / (1 - r^2) / n).
    error = math.sqrt((1 + r * r) / (1 - r * r) / x.numel())
    assert torch.allclose(lags, torch.tensor([r**t for t in range(7)]).double(), atol=6 * error)
    direct = torch.stack([(x[:, t:] * x[:, : 20_000 - t]).mean() for t in range(7)])
    assert torch.allclose(lags, direct, atol=0.02)
    ess = float(sampling.effective_sample_size(x))
    assert ess == pytest.approx(x.numel() * (1 - r) / (1 + r), rel=0.1)
    assert float(sampling.split_rhat(x)) == pytest.approx(1.0, abs=0.01)


def test_diagnostics_notice_chains_that_disagree_or_drift() -> None:
    x = _autoregressive(0.5, 4, 1000, 22)
    apart = x + torch.tensor([0.0, 0.0, 0.0, 1.0])[:, None]
    drift = x + torch.linspace(0, 2, 1000)
    assert float(sampling.split_rhat(x)) < 1.01
    assert float(sampling.split_rhat(apart)) > 1.05
    assert float(sampling.split_rhat(drift)) > 1.05
    assert float(sampling.effective_sample_size(apart)) < 0.1 * float(sampling.effective_sample_size(x))
    # By hand: two chains of four draws, so four halves of two.
    small = torch.tensor([[1.0, 2.0, 3.0, 6.0], [0.0, 2.0, 2.0, 3.0]])
    within = (0.5 + 4.5 + 2.0 + 0.5) / 4
    between = torch.tensor([1.5, 4.5, 1.0, 2.5]).var()
    assert float(sampling.split_rhat(small)) == pytest.approx(math.sqrt((within / 2 + float(between)) / within))


def test_diagnostics_of_what_never_moves() -> None:
    stuck = torch.zeros(3, 50, 3)
    stuck[..., 1] = torch.tensor([0.1, 0.2, 0.3])[:, None]
    stuck[..., 2] = Noise(0).normal((3, 50))
    found = Samples(stuck).diagnostics(lags=4)
    assert found.rhat is not None
    assert found.autocorrelation is not None
    assert math.isnan(float(found.ess[0]))
    assert math.isnan(float(found.rhat[0]))
    assert math.isinf(float(found.rhat[1]))
    assert float(found.ess[1]) < 10
    assert found.autocorrelation.shape == (5, 3)
    assert bool(found.autocorrelation[:, 2].isfinite().all())
    assert str(found).startswith("ESS at least")
    assert "R-hat at most inf" in str(found)
    assert str(Samples(torch.zeros(2, 8)).diagnostics()) == "no coordinate ever changed"


def test_diagnostics_of_a_function_and_of_many_coordinates() -> None:
    x = _autoregressive(0.5, 4, 600, 23)
    many = Samples(torch.stack([x, 3 - 2 * x], -1))
    found = many.diagnostics()
    assert found.ess.shape == (2,)
    assert float(found.ess[0]) == pytest.approx(float(found.ess[1]))
    ours = many.diagnostics(lambda x: x[:, 0].square())
    assert float(ours.ess) == pytest.approx(float(sampling.effective_sample_size(x.square())))
    assert torch.allclose(many.expectation(), many.flat().mean(0))


# ---- what is refused -------------------------------------------------------------------------------------------------

_X = torch.zeros(2, 3)
_ENERGY = {"energy": lambda x: x.sum(1), "draws": 1}


@pytest.mark.parametrize(
    "initial,options,message",
    [
        (_X, {"draws": 1}, "either energy or conditional"),
        (_X, _ENERGY | {"draws": 0}, "draws must be an int of at least 1, got 0"),
        (_X, _ENERGY | {"thin": 0}, "thin must be an int of at least 1"),
        (_X, _ENERGY | {"burn_in": -1}, "burn_in must be an int of at least 0"),
        (torch.zeros(3), _ENERGY, r"shape \(chains, sites\), got \(3,\)"),
        (torch.zeros(0, 3), _ENERGY, "at least one chain"),
        (_X + 0.5, _ENERGY, r"only the values \[0.0, 1.0\]"),
        (_X, _ENERGY | {"blocks": [[0, 1], [1]]}, "each site in one of them at most"),
        (_X, _ENERGY | {"blocks": [[3]]}, r"sites 0\.\.2, got 3\.\.3"),
        (_X, _ENERGY | {"blocks": [[0]], "graph": torch.zeros(3, 3)}, "graph or blocks, not both"),
        (_X, _ENERGY | {"graph": torch.zeros(4, 4)}, r"adjacency matrix of shape \(3, 3\)"),
        (_X, _ENERGY | {"graph": torch.tensor([[0, 5]])}, r"edges must join sites 0\.\.2"),
        (_X, _ENERGY | {"graph": torch.ones(3, 3).triu()}, "must be symmetric"),
        (_X, {"energy": lambda x: x, "draws": 1}, r"energy must map \(4, 3\) to \(4,\), got \(4, 3\)"),
        (_X, {"energy": lambda x: x.sum(1) * math.nan, "draws": 1}, "energy must be finite"),
        (_X, {"conditional": lambda x, sites, noise: x, "draws": 1}, r"conditional must return \(2, 1\)"),
    ],
)
def test_gibbs_refuses(initial: Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampling.gibbs(initial, **options)


_DENSITY = lambda x: -x.square().sum(1)  # noqa: E731


@pytest.mark.parametrize(
    "density,options,message",
    [
        (_DENSITY, {"adapt": 0.3}, "burn-in only, which is 0"),
        (_DENSITY, {"adapt": 1.5, "burn_in": 3}, r"rate in \(0, 1\), got 1.5"),
        (_DENSITY, {"scale": 0.0}, "scale must be positive"),
        (_DENSITY, {"scale": torch.ones(5)}, r"a number or \(2,\)"),
        (lambda x: x, {}, r"log_density must map \(2, 3\) to \(2,\)"),
        (lambda x: x.sum(1) - math.inf, {}, "chain 0 starts where the log-density is -inf"),
        (_DENSITY, {"proposal": lambda x, noise, scale: x[:1]}, r"the proposal must return \(2, 3\)"),
        (_DENSITY, {"key": "seed"}, "key must be a key of gmkernels.random.key"),
    ],
)
def test_metropolis_hastings_refuses(density, options: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        sampling.metropolis_hastings(density, _X, **({"draws": 1} | options))


def test_results_without_weights_have_no_normaliser() -> None:
    with pytest.raises(ValueError, match="needs the weights of importance_sampling"):
        _run("gibbs").log_normaliser()
    with pytest.raises(ValueError, match="at least 4"):
        _run("gibbs", draws=3).diagnostics()
