"""RealNVP that restores its activations, and RealNVP with batch normalisation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import gmkernels as gmk
from genmodels.flows import RealNVP
from genmodels.flows.transforms import BatchNorm, Chain, Transform

FLOWS: dict[str, Callable[..., RealNVP]] = {
    "vector": lambda **how: RealNVP(7, couplings=5, hidden=16, **how),
    "linear, dropout": lambda **how: RealNVP(5, couplings=4, hidden=16, linear=True, dropout=0.3, **how),
    "image, two scales": lambda **how: RealNVP((1, 4, 4), levels=256, couplings=3, widths=(6, 8), tail=4, **how),
    "image, three scales, batch statistics": lambda **how: RealNVP(
        (3, 8, 8), levels=256, couplings=2, widths=(6, 6, 6), batch_norm=True, **how
    ),
    "vector, batch statistics": lambda **how: RealNVP(4, couplings=4, hidden=16, batch_norm=True, **how),
}


def _make(name: str, **how: bool) -> RealNVP:
    torch.manual_seed(0)
    flow = FLOWS[name](**how).double()
    for parameter in flow.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return flow


def _batch(flow: RealNVP, n: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(n, *flow.shape, dtype=torch.float64, generator=generator) * 0.96 + 0.02


@pytest.mark.parametrize("name", FLOWS)
def test_reversible_training_gives_the_same_loss_and_gradients(name: str) -> None:
    ordinary, flow = _make(name), _make(name, reversible=True)
    found = []
    for model in (ordinary, flow):
        torch.manual_seed(1)
        loss = -model.log_prob(_batch(model)).mean()
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters()), *model.buffers()])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)
    assert isinstance(flow.transform, Chain)
    runs = [step for step in flow.transform.runs if isinstance(step, gmk.nn.Reversible)]
    assert runs
    assert all(run.drift is not None and run.drift < 1e-9 for run in runs)
    assert ordinary.state_dict().keys() == flow.state_dict().keys()


@pytest.mark.parametrize("name", [name for name in FLOWS if "batch" in name])
def test_batch_normalised_flows_are_densities_in_evaluation(name: str) -> None:
    flow = _make(name)
    for _ in range(50):
        flow.log_prob(_batch(flow, 16))
    flow.eval()
    x = _batch(flow, 2)
    z, logdet = flow(x)
    back, back_logdet = flow.inverse(z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-10)
    torch.testing.assert_close(back_logdet, -logdet, rtol=0, atol=1e-9)
    if flow.levels is None:
        jacobian = torch.autograd.functional.jacobian(lambda one: flow(one[None])[0][0], x[0])
        torch.testing.assert_close(logdet[0], jacobian.slogdet().logabsdet, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(40, 3), (10, 3, 4, 5)])
def test_batch_normalisation_is_that_of_pytorch_with_its_logdet(shape: tuple[int, ...]) -> None:
    ours, theirs = BatchNorm(3).double(), torch.nn.functional.batch_norm
    with torch.no_grad():
        ours.log_gamma.normal_()
        ours.beta.normal_()
    mean, variance = ours.mean.clone(), ours.variance.clone()
    x = 3 * torch.randn(shape, dtype=torch.float64) + 5
    for training in (True, False):
        ours.train(training)
        z, logdet = ours(x)
        deviation = (x.transpose(0, 1).flatten(1).var(1, correction=0) if training else ours.variance).add(1e-5).sqrt()
        expected = theirs(x, mean, variance, ours.log_gamma.exp(), ours.beta, training, 0.1)
        torch.testing.assert_close(z, expected, rtol=1e-10, atol=1e-10)
        positions = x[0, 0].numel()
        torch.testing.assert_close(logdet[0], positions * (ours.log_gamma - deviation.log()).sum())
        variance = ours.variance.clone()
    torch.testing.assert_close(ours.mean, mean)
    torch.testing.assert_close(ours.variance, 0.9 + 0.1 * x.transpose(0, 1).flatten(1).var(1, correction=0))


def test_batch_normalisation_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="batch of 2 samples or more in training, got 1"):
        BatchNorm(3)(torch.randn(1, 3))
    with pytest.raises(ValueError, match="features and eps must be positive, momentum in"):
        BatchNorm(0)


class Stretch(Transform):
    """Cannot be undone in float32: most features vanish."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x * 1e-30 + 1, x.new_zeros(len(x))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (z - 1) * 1e30, z.new_zeros(len(z))


def test_a_step_that_cannot_be_undone_gets_its_gradient_all_the_same() -> None:
    chain = Chain([Stretch(), Stretch(), Stretch()], reversible=True)
    x = torch.randn(4, 3, requires_grad=True)
    with pytest.warns(RuntimeWarning, match="inverting 3 steps"):
        chain(x)[0].sum().backward()
    assert x.grad is not None
    assert (x.grad < 1e-30).all()
