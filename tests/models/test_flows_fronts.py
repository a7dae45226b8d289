"""What comes before a flow: normal scores of images; and the Gaussian that flows are compared with."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from genmodels import data
from genmodels.cli import main
from genmodels.flows import MAF, Flow, Gaussian, RealNVP
from genmodels.flows.fronts import Equalise
from genmodels.flows.transforms import Chain, Flatten


def _digits(n: int = 1000) -> torch.Tensor:
    digits = data.digits()
    return digits.splits["train"].x[:n]


def _equalised(levels: int = 17) -> Equalise:
    step = Equalise((1, 8, 8), levels)
    step.initialise((_digits() + 0.5) / 17)
    return step


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_normal_scores_and_back(dtype: torch.dtype, bound: float) -> None:
    step = _equalised()
    x = ((_digits(200).double() + torch.rand(200, 1, 8, 8, dtype=torch.float64)) / 17).to(dtype)
    z, logdet = step(x)
    back, back_logdet = step.inverse(z)
    assert (z.shape, z.dtype, logdet.shape) == (x.shape, dtype, (200,))
    assert float((back - x).abs().max()) <= bound
    torch.testing.assert_close(back_logdet, -logdet, rtol=10 * bound, atol=100 * bound)


def test_normal_scores_are_normal_for_every_pixel() -> None:
    x = _digits()
    flow = Flow(Chain([_equalised(), Flatten((1, 8, 8))]), (1, 8, 8), 17)
    flow.register_parameter("unused", torch.nn.Parameter(torch.zeros(())))
    z = flow.encode(x, key=0)
    assert float(z.mean(0).abs().max()) < 0.2
    assert float((z.std(0) - 1).abs().max()) < 0.2
    assert torch.equal(flow.decode(z), x)


def test_the_logdet_is_that_of_the_slope() -> None:
    step = _equalised()
    x = ((_digits(3).double() + torch.rand(3, 1, 8, 8, dtype=torch.float64)) / 17).requires_grad_()
    z, logdet = step(x)
    (slope,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(logdet, slope.flatten(1).log().sum(1), rtol=1e-9, atol=1e-9)
    z = z.detach().requires_grad_()
    back, back_logdet = step.inverse(z)
    (slope,) = torch.autograd.grad(back.sum(), z)
    torch.testing.assert_close(back_logdet, slope.flatten(1).log().sum(1), rtol=1e-9, atol=1e-9)


def test_alone_it_is_the_model_of_independent_pixels() -> None:
    """Its bits are those of the histograms, whatever the noise."""
    step = _equalised()
    flow = Flow(Chain([step, Flatten((1, 8, 8))]), (1, 8, 8), 17)
    flow.register_parameter("unused", torch.nn.Parameter(torch.zeros(())))
    x = _digits(50)
    mass = step.mass.gather(1, x.flatten(1).long().t()).t()
    torch.testing.assert_close(flow.bits_per_dim(x, key=1), -mass.log2().mean(1), rtol=1e-4, atol=1e-4)


def test_values_outside_the_histogram_stay_finite() -> None:
    step = _equalised()
    z, logdet = step(torch.tensor([0.0, 1.0, -3.0, 4.0]).view(4, 1, 1, 1).expand(4, 1, 8, 8))
    assert z.isfinite().all()
    assert logdet.isfinite().all()
    x, _ = step.inverse(torch.tensor([-40.0, 40.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8))
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1


@pytest.mark.parametrize("make", [lambda: MAF((1, 8, 8), levels=17, equalise=True, layers=2, hidden=(32,)),
                                  lambda: RealNVP((1, 8, 8), levels=17, equalise=True, couplings=2, widths=(8,))])  # fmt: skip
def test_flows_take_it_in_place_of_the_logit(make: object) -> None:
    flow = make()
    x = _digits(300)
    before = flow.bits_per_dim(x, key=0).mean()
    flow.initialise(x)
    assert float(before - flow.bits_per_dim(x, key=0).mean()) > 1
    assert "transform.steps.0.mass" in flow.state_dict()
    assert torch.equal(flow.decode(flow.encode(x, key=0)), x)


def test_equalise_needs_levels() -> None:
    with pytest.raises(ValueError, match="equalise is for integer samples: give levels="):
        MAF(3, equalise=True)


def test_the_gaussian_is_the_maximum_of_the_likelihood() -> None:
    """Of real vectors: the density of torch's MultivariateNormal with the sample's mean and covariance, both ways."""
    x = torch.randn(500, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64) + 3
    flow = Gaussian(4).double()
    flow.initialise(x)
    exact = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.t()))
    torch.testing.assert_close(flow.log_prob(x), exact.log_prob(x), rtol=1e-9, atol=1e-9)
    z, logdet = flow(x)
    back, back_logdet = flow.inverse(z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-10)
    torch.testing.assert_close(back_logdet, -logdet, rtol=0, atol=1e-10)
    shrunk = Gaussian(4, shrink=1.0).double()
    shrunk.initialise(x)
    independent = torch.distributions.Normal(x.mean(0), x.std(0)).log_prob(x).sum(1)
    torch.testing.assert_close(shrunk.log_prob(x), independent, rtol=1e-9, atol=1e-9)


def test_the_baseline_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, record = tmp_path / "run", tmp_path / "models.jsonl"
    assert main(["train", "gaussian", "--data", "moons", "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--record", str(record)]) == 0
    found = json.loads(capsys.readouterr().out)
    x = data.DENSITIES["moons"]().held_out().double()
    entropy = 0.5 * float(torch.cov(x.t()).logdet()) + 1 + math.log(2 * math.pi)
    assert found["test_nats"] == pytest.approx(entropy, abs=0.02)
    assert json.loads(record.read_text())["model"] == "gaussian"


@pytest.mark.parametrize("make", [lambda: MAF((1, 8, 8), levels=17, equalise=True, whiten=True, layers=2, hidden=(32,)),
                                  lambda: RealNVP((1, 8, 8), levels=17, whiten=True, flat=True, couplings=2, hidden=16)])  # fmt: skip
def test_a_whitened_flow_starts_as_the_gaussian(make: object) -> None:
    """Of 1,000 images: white but for the hundredth by which covariances are shrunk, and for what no draw repeats."""
    flow = make()
    x = _digits()
    flow.initialise(x, key=5)
    z = flow.encode(x, key=5)
    assert float(z.mean(0).abs().max()) < 1e-3
    assert float((torch.cov(z.t()) - torch.eye(64)).abs().max()) < 0.2
    baseline = Gaussian((1, 8, 8), levels=17, equalise=not isinstance(flow, RealNVP), alpha=0.05, shrink=0.01, draws=4)
    baseline.initialise(x, key=5)
    test = data.digits().splits["test"].x
    found, expected = (float(model.bits_per_dim(test, key=1).mean()) for model in (flow, baseline))
    assert found == pytest.approx(expected, abs=0.05)
    (-flow.log_prob(x, key=7).mean()).backward()
    trained = [name for name, p in flow.named_parameters() if p.grad is not None]
    assert trained
    assert not any(name.endswith((".mean", ".factor")) for name in trained)


def test_whitening_an_image_needs_a_vector() -> None:
    with pytest.raises(ValueError, match="whiten needs vectors: give flat=True"):
        RealNVP((1, 4, 4), levels=4, whiten=True, widths=(4,))
