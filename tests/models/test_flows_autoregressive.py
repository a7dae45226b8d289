"""MADE, MAF, IAF and planar flows are densities: invertible both ways, their log-determinants exact, at any size."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import gmkernels as gmk
from genmodels.data import Batch
from genmodels.errors import NonFiniteError
from genmodels.flows import IAF, MADE, MAF, Flow, PlanarFlow, RealNVP
from genmodels.flows.transforms import BatchNorm, Inverted

FLOWS: dict[str, Callable[[], Flow]] = {
    "made-7": lambda: MADE(7, hidden=(16, 16)),
    "maf-2 linear": lambda: MAF(2, layers=3, hidden=(16, 16), permutation="linear"),
    "maf-5 residual": lambda: MAF(5, layers=3, hidden=(16, 12), residual=True, activation="tanh"),
    "maf-7 random, batch norm": lambda: MAF(7, layers=4, hidden=(24,), permutation="random", batch_norm=True),
    "maf-64": lambda: MAF(64, layers=5, hidden=(96, 96)),
    "maf-5 context": lambda: MAF(5, layers=2, hidden=(16, 16), contexts=3),
    "iaf-5 context": lambda: IAF(5, layers=2, hidden=(16, 16), contexts=3),
    "iaf-7 softplus": lambda: IAF(7, layers=3, hidden=(16, 16), scale_map="softplus"),
    "iaf-64 random": lambda: IAF(64, layers=4, hidden=(96, 96), permutation="random"),
    "planar-2": lambda: PlanarFlow(2, 16),
    "planar-64": lambda: PlanarFlow(64, 16),
    "realnvp-64": lambda: RealNVP(64, couplings=6, hidden=48),
    "inverted planar-5": lambda: PlanarFlow(5, 8).invert(),
    "image": lambda: MAF((1, 3, 4), layers=2, hidden=(24,), levels=16),
}


def disturbed(flow: Flow, dtype: torch.dtype = torch.float64) -> Flow:
    """A flow starts at the identity, or close to it; tests want one that does something."""
    torch.manual_seed(2)
    for parameter in flow.parameters():
        parameter.data += (
            0.1 * torch.randn_like(parameter) * (1 if parameter.dim() < 2 else parameter[0].numel() ** -0.3)
        )
    for module in flow.modules():
        if isinstance(module, BatchNorm):
            module.mean.normal_()
            module.variance.uniform_(0.5, 2.0)
    return flow.to(dtype).eval()


def inputs(flow: Flow, name: str, n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor | None]:
    torch.manual_seed(3)
    x = torch.randn(n, *flow.shape, dtype=dtype) if flow.levels is None else torch.rand(n, *flow.shape, dtype=dtype)
    return x, torch.randn(n, 3, dtype=dtype) if "context" in name else None


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("name", FLOWS)
def test_round_trips(name: str, dtype: torch.dtype, bound: float) -> None:
    flow = disturbed(FLOWS[name](), dtype)
    x, context = inputs(flow, name, 50, dtype)
    with torch.no_grad():
        z, logdet = flow(x, context)
        back, back_logdet = flow.inverse(z, context)
        again, _ = flow(back, context)
    assert z.shape == (50, flow.features)
    assert float((z - x.flatten(1)).abs().mean()) > 0.05, "it must do something, else coming back is cheap"
    assert float((back - x).abs().max()) <= bound
    assert float((again - z).abs().max()) <= bound * max(1.0, float(z.abs().max()))
    torch.testing.assert_close(back_logdet, -logdet, rtol=bound, atol=10 * bound)


@pytest.mark.parametrize("name", FLOWS)
def test_logdet_is_that_of_the_jacobian(name: str) -> None:
    flow = disturbed(FLOWS[name]())
    x, context = inputs(flow, name, 2)
    z, logdet = flow(x, context)
    _, back_logdet = flow.inverse(z, context)
    for i in range(2):
        row = None if context is None else context[i : i + 1]
        for step, at, found in ((flow, x, logdet), (flow.inverse, z.detach(), back_logdet)):
            jacobian = torch.autograd.functional.jacobian(lambda v, row=row, step=step: step(v[None], row)[0][0], at[i])
            exact = jacobian.reshape(flow.features, flow.features).slogdet().logabsdet
            torch.testing.assert_close(found[i], exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", FLOWS)
def test_every_parameter_and_every_feature_matters_in_both_directions(name: str) -> None:
    flow = disturbed(FLOWS[name]())
    x, context = inputs(flow, name, 20)
    for loss in (
        lambda: flow.log_prob(x, context).sum(),
        lambda: flow.inverse(x.flatten(1), context)[0].square().sum(),
    ):
        flow.zero_grad()
        loss().backward()
        for key, parameter in flow.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", ["maf-5 context", "iaf-5 context", "planar-2", "maf-2 linear"])
def test_the_gradient_of_the_sequential_direction_is_right(name: str) -> None:
    """Of log_prob and of a sample, by finite differences along a random direction of all parameters."""
    flow = disturbed(FLOWS[name]())
    x, context = inputs(flow, name, 4)
    parameters = list(flow.parameters())
    weights = torch.randn(4, flow.features, dtype=x.dtype)
    for value in (
        lambda: flow.log_prob(x, context).sum(),
        lambda: (flow.inverse(x, context)[0] * weights).sum(),
    ):
        direction = [torch.randn_like(p) for p in parameters]
        slope = sum((g * d).sum() for g, d in zip(torch.autograd.grad(value(), parameters), direction, strict=True))
        ends = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                for p, d in zip(parameters, direction, strict=True):
                    p += step * d
                ends.append(value())
        torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [MAF, IAF])
def test_invert_is_the_same_layers_the_other_way_round(kind: type[MAF] | type[IAF]) -> None:
    flow = kind(5, layers=3, hidden=(16, 16), contexts=2)
    disturbed(flow)
    other = flow.invert()
    assert isinstance(other, IAF if kind is MAF else MAF)
    assert isinstance(other.invert(), kind)
    assert {id(p) for p in other.parameters()} == {id(p) for p in flow.parameters()}
    x, c = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    torch.testing.assert_close(other.invert().log_prob(x, c), flow.log_prob(x, c), rtol=0, atol=0)
    # Behind the scale and shift at the front, which stay.
    front, core, turned = flow.transform.steps[0], flow.transform.steps[-1], other.transform.steps[-1]
    assert front is other.transform.steps[0]
    there, logdet = core(x, c)
    back, back_logdet = turned(there, c)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(back_logdet, -logdet, rtol=0, atol=1e-12)
    with torch.no_grad():
        flow.transform.steps[-1].get_parameter(next(n for n, _ in core.named_parameters())).add_(0.1)
    assert not torch.equal(turned(there, c)[0], back)


def test_any_flow_of_vectors_can_be_turned_round() -> None:
    flow = disturbed(RealNVP(4, couplings=3, hidden=16))
    other = flow.invert()
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(other(flow(x)[0])[0], x, rtol=0, atol=1e-12)
    with pytest.raises(
        ValueError, match=r"only a flow of real-valued vectors can be turned round, got shape \(1, 4, 4\)"
    ):
        RealNVP((1, 4, 4), levels=256, widths=(4,)).invert()


def test_autoregression_reads_features_in_order_only() -> None:
    """Of a MADE, z_i depends on x_1 .. x_i and on nothing after."""
    flow = disturbed(MADE(6, hidden=(16, 16), activation="tanh"))
    jacobian = torch.autograd.functional.jacobian(lambda x: flow(x[None])[0][0], torch.randn(6, dtype=torch.float64))
    assert torch.equal(jacobian.triu(1), torch.zeros_like(jacobian))
    assert (jacobian.tril() != 0).sum() == 21


@pytest.mark.parametrize("name", ["maf-5 context", "iaf-5 context"])
def test_a_context_changes_the_density(name: str) -> None:
    flow = disturbed(FLOWS[name]())
    x = torch.randn(4, 5, dtype=torch.float64)
    a, b = (flow.log_prob(x, torch.full((4, 3), c, dtype=torch.float64)) for c in (0.0, 1.0))
    assert (a - b).abs().min() > 1e-4


def test_batch_statistics_are_learnt_in_training_and_fixed_in_evaluation() -> None:
    flow = MAF(3, layers=3, hidden=(8,), batch_norm=True)
    x = 5 + 3 * torch.randn(4000, 3)
    flow.train()
    for _ in range(60):
        flow(x)
    z, _ = flow(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=0.05, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(3), atol=0.05, rtol=0)
    flow.eval()
    torch.testing.assert_close(flow(x)[0], z, atol=0.05, rtol=0)
    torch.testing.assert_close(flow(x[:1])[0], flow(x)[0][:1], atol=1e-5, rtol=0)


def test_planar_log_prob_is_the_density_of_the_samples() -> None:
    flow = disturbed(PlanarFlow(2, 8))
    with torch.no_grad():
        x, log_p = flow.rsample_and_log_prob(500, key=0)
        torch.testing.assert_close(flow.log_prob(x), log_p, rtol=1e-9, atol=1e-9)
        axis = torch.linspace(-14, 14, 600, dtype=torch.float64)
        mass = flow.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(float(mass) - 1) < 1e-3


def test_planar_equations_are_solved_where_they_are_flattest_and_steepest() -> None:
    """Round trips of single steps whose slope 1 + w.u at the bend goes from 1e-4 to 1e4."""
    for overlap in (-9.2, -3.0, 0.0, 3.0, 1e4):
        flow = PlanarFlow(3, 1).double()
        steps = next(m for m in flow.modules() if isinstance(m, gmk.nn.PlanarFlow))
        with torch.no_grad():
            steps.w.copy_(torch.tensor([[1.0, 2.0, -2.0]]))
            steps.u.copy_(overlap / 9 * steps.w)
            steps.b.fill_(0.3)
        z = torch.randn(200, 3, dtype=torch.float64) * torch.logspace(-6, 1.5, 200, dtype=torch.float64)[:, None]
        x, logdet = flow.inverse(z)
        back, back_logdet = flow(x)
        torch.testing.assert_close(back, z, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(back_logdet, -logdet, rtol=1e-8, atol=1e-8)


def test_planar_second_derivatives_of_log_prob_are_right() -> None:
    flow = disturbed(PlanarFlow(3, 4))
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(flow.log_prob, (x,))
    assert torch.autograd.gradgradcheck(flow.log_prob, (x,))


def test_reverse_kl_is_the_divergence_to_a_normalised_density() -> None:
    """For a Gaussian target and an affine flow it is known in closed form."""
    flow = MADE(2, hidden=(8,)).double()
    flow.transform.steps[0].shift.data.fill_(0.5)
    flow.fit_to(lambda x: -0.5 * x.square().sum(1) - math.log(2 * math.pi), warmup=0)
    z = torch.randn(200_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert abs(float(flow.losses(Batch(z))["loss"].detach()) - 0.25) < 0.01


def test_reverse_kl_turns_the_potential_up() -> None:
    flow = PlanarFlow(2, 2)
    flow.fit_to(lambda x: torch.full((len(x),), 8.0), warmup=3)
    z = Batch(torch.randn(64, 2))
    base = float(flow.eval().losses(z)["loss"].detach()) + 2.0
    found = [float(flow.train().losses(z)["loss"].detach()) - base for _ in range(5)]
    assert found == pytest.approx([-2.0, -4.0, -6.0, -8.0, -8.0], abs=1e-4)
    assert int(flow.state_dict()["updates"]) == 5


def _explosive(kind: type[MAF] | type[IAF], layer: int) -> Flow:
    """A flow of three layers whose given one has a shift of 1e38 and a scale of e^5 or e^-5."""
    flow = kind(3, layers=3, hidden=(8,), clamp=5.0, scale_map="exp")
    core = flow.transform.steps[-1]
    chain = core.inner if isinstance(core, Inverted) else core
    last = chain.steps[layer].made.linears()[-1]
    with torch.no_grad():
        last.bias[:3] = 5.0 if kind is IAF else -5.0
        last.bias[3:] = 3e38 if kind is IAF else -3e38
    return flow


@pytest.mark.parametrize("layer", [0, 2])
def test_samples_that_are_not_finite_name_their_layer(layer: int) -> None:
    place = rf"{layer} \(MaskedAffineAutoregressive\) made \d+ of 10 samples that are not finite"
    with pytest.raises(NonFiniteError, match=rf"MAF: transform.steps.2.steps.{place}"):
        _explosive(MAF, layer).sample(10, key=0)
    flow = _explosive(IAF, layer)
    with torch.no_grad():
        flow.transform.steps[-1].inner.steps[layer].made.linears()[-1].bias[3:] = math.inf
    with pytest.raises(NonFiniteError, match=rf"IAF: transform.steps.2.inner.steps.{place}"):
        flow.rsample(10, key=0)
    with pytest.raises(NonFiniteError, match="1 of 2 of the given latents are not finite"):
        MAF(2).decode(torch.tensor([[0.0, 1.0], [math.nan, 0.0]]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: MAF(3, contexts=2).log_prob(torch.zeros(4, 3)),
            r"MAF: expected a context of shape \(4, 2\), got none",
        ),
        (
            lambda: IAF(3, contexts=2).sample(4, torch.zeros(4, 3)),
            r"IAF: expected a context of shape \(4, 2\), got shape \(4, 3\)",
        ),
        (
            lambda: MADE(3).log_prob(torch.zeros(4, 3), torch.zeros(4, 1)),
            r"MADE: this flow takes no context, got shape",
        ),
        (lambda: RealNVP(3, contexts=2).log_prob(torch.zeros(4, 3)), r"RealNVP: expected a context of shape \(4, 2\)"),
        (lambda: PlanarFlow(3).sample(4, torch.zeros(4, 2)), r"PlanarFlow: this flow takes no context"),
        (lambda: MAF(3, permutation="none"), r"MAF: permutation must be 'reverse', 'random' or 'linear', got 'none'"),
        (lambda: MAF(3, layers=0), "MAF: layers must be 1 or more, got 0"),
        (lambda: MAF(3, hidden=()), "one or more hidden widths must be positive"),
        (lambda: MADE(3)(torch.zeros(2, 4)), r"expected samples of shape \(batch, 3\), got \(2, 4\)"),
        (lambda: PlanarFlow(0), "features must be positive"),
    ],
)
def test_bad_arguments_are_explained(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_degrees_that_break_autoregression_are_refused_at_construction() -> None:
    with pytest.raises(ValueError, match=r"hidden_degrees\[0\]"):
        gmk.nn.MADE(3, (4,), hidden_degrees=[[0, 1, 2, 3]])
    with pytest.raises(ValueError, match="order"):
        gmk.nn.MADE(3, (4,), order=[1, 1, 2])
