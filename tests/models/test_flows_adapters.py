"""Flows as torch.distributions: shapes, densities, gradients, and the utilities of torch that take them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    TransformedDistribution,
    constraints,
)

from genmodels.flows import IAF, MAF, Flow, FlowDistribution, PlanarFlow, RealNVP, as_torch_transform
from tests.models.test_flows_autoregressive import disturbed


@pytest.fixture
def flow() -> Flow:
    return disturbed(MAF(3, layers=3, hidden=(16, 16)))


@pytest.fixture
def conditional() -> Flow:
    return disturbed(RealNVP(3, couplings=4, hidden=16, contexts=2))


def _x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_it_is_a_distribution_of_the_flow(flow: Flow) -> None:
    d = flow.distribution()
    assert isinstance(d, Distribution)
    assert (d.batch_shape, d.event_shape) == ((), (3,))
    x = _x(4, 5, 3)
    log_p = d.log_prob(x)
    assert log_p.shape == (4, 5)
    torch.testing.assert_close(log_p.flatten(), flow.log_prob(x.flatten(0, 1)), rtol=0, atol=0)
    assert d.log_prob(x[0, 0]).shape == ()
    assert d.support.check(x).all()


def test_samples_have_torch_s_shapes_and_the_flow_s_density(flow: Flow) -> None:
    d = flow.distribution()
    for shape in ((), (7,), (2, 3)):
        assert d.sample(torch.Size(shape)).shape == (*shape, 3)
    torch.manual_seed(5)
    x = d.rsample(torch.Size([6]))
    torch.manual_seed(5)
    assert torch.equal(x, flow.rsample(6))
    assert x.requires_grad
    assert not d.sample().requires_grad
    x.sum().backward()
    assert all(p.grad is not None for p in flow.parameters())


def test_samples_follow_log_prob(flow: Flow) -> None:
    """E_p[q / p] = 1 for any density q narrower than p."""
    torch.manual_seed(0)
    d = flow.distribution()
    x = d.sample(torch.Size([40_000]))
    q = Independent(Normal(x.mean(0), 0.5 * x.std(0)), 1)
    with torch.no_grad():
        weights = (q.log_prob(x) - d.log_prob(x)).exp()
    assert abs(float(weights.mean()) - 1) < 5 * float(weights.std()) / 200 < 0.1


def test_a_context_gives_the_batch_shape(conditional: Flow) -> None:
    c = _x(4, 5, 2)
    d = conditional.distribution(c)
    assert (d.batch_shape, d.event_shape) == ((4, 5), (3,))
    assert d.sample(torch.Size([6])).shape == (6, 4, 5, 3)
    x = _x(6, 4, 5, 3)
    rows = c.expand(6, 4, 5, 2).reshape(-1, 2)
    expected = conditional.log_prob(x.reshape(-1, 3), rows).view(6, 4, 5)
    torch.testing.assert_close(d.log_prob(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(d.log_prob(x[0, 0, 0]), d.log_prob(x[0, 0, 0].expand(4, 5, 3)), rtol=0, atol=0)
    torch.manual_seed(1)
    x = d.rsample(torch.Size([2]))
    torch.manual_seed(1)
    assert torch.equal(x.flatten(0, 2), conditional.rsample(40, c.expand(2, 4, 5, 2).reshape(-1, 2)))


def test_expand_and_independent(conditional: Flow) -> None:
    d = conditional.distribution(_x(1, 2)).expand((4,))
    assert isinstance(d, FlowDistribution)
    assert d.batch_shape == (4,)
    x = _x(4, 3)
    torch.testing.assert_close(Independent(d, 1).log_prob(x), d.log_prob(x).sum(), rtol=1e-12, atol=0)
    assert Independent(d, 1).event_shape == (4, 3)
    plain = disturbed(PlanarFlow(3, 4)).distribution().expand((5,))
    assert plain.sample().shape == (5, 3)
    assert plain.log_prob(_x(5, 3)).shape == (5,)


def test_it_can_be_a_component_of_a_mixture(conditional: Flow) -> None:
    c = _x(6, 2)
    mixture = MixtureSameFamily(Categorical(logits=_x(6)), conditional.distribution(c))
    x = _x(9, 3)
    each = torch.stack([conditional.log_prob(x, row.expand(9, 2)) for row in c], 1)
    expected = (each + mixture.mixture_distribution.logits).logsumexp(1)
    torch.testing.assert_close(mixture.log_prob(x), expected, rtol=1e-12, atol=1e-12)
    assert mixture.sample(torch.Size([11])).shape == (11, 3)


def test_it_can_be_transformed_further(flow: Flow) -> None:
    moved = TransformedDistribution(flow.distribution(), [AffineTransform(1.0, 2.0)])
    x = _x(5, 3)
    expected = flow.log_prob((x - 1) / 2) - 3 * math.log(2.0)
    torch.testing.assert_close(moved.log_prob(x), expected, rtol=1e-10, atol=1e-10)
    assert moved.rsample(torch.Size([2])).shape == (2, 3)


@pytest.mark.parametrize("inverse", [False, True])
def test_a_transform_of_torch_made_of_a_flow(flow: Flow, inverse: bool) -> None:
    transform = as_torch_transform(flow)
    transform = transform.inv if inverse else transform
    x = _x(4, 5, 3)
    y = transform(x)
    torch.testing.assert_close(transform.inv(y), x, rtol=0, atol=1e-10)
    ladj = transform.log_abs_det_jacobian(x, y)
    assert ladj.shape == (4, 5)
    step = flow.inverse if inverse else flow
    torch.testing.assert_close(ladj.flatten(), step(x.flatten(0, 1))[1], rtol=0, atol=1e-10)
    # Of values that were not the last ones, too.
    torch.testing.assert_close(transform.log_abs_det_jacobian(x + 0, y + 0), ladj, rtol=0, atol=1e-10)


@pytest.mark.parametrize("cache", [0, 1])
def test_a_transformed_normal_is_the_flow(flow: Flow, cache: int) -> None:
    base = Independent(Normal(torch.zeros(3, dtype=torch.float64), 1.0), 1)
    d = TransformedDistribution(base, [as_torch_transform(flow).with_cache(cache).inv])
    x = _x(6, 3)
    torch.testing.assert_close(d.log_prob(x), flow.log_prob(x), rtol=0, atol=1e-10)
    y = d.rsample(torch.Size([4]))
    torch.testing.assert_close(d.log_prob(y), flow.log_prob(y), rtol=0, atol=1e-10)
    assert y.requires_grad


def test_transforms_of_images_and_with_a_context(conditional: Flow) -> None:
    image = disturbed(IAF((1, 2, 3), layers=2, hidden=(12,)))
    transform = as_torch_transform(image)
    assert transform.forward_shape(torch.Size([4, 1, 2, 3])) == (4, 6)
    assert transform.inverse_shape(torch.Size([4, 6])) == (4, 1, 2, 3)
    assert transform(_x(4, 5, 1, 2, 3)).shape == (4, 5, 6)
    assert transform.inv(_x(4, 6)).shape == (4, 1, 2, 3)
    c = _x(4, 2)
    part = as_torch_transform(conditional.transform, c)
    x = _x(7, 4, 3)
    expected = conditional.transform(x.flatten(0, 1), c.expand(7, 4, 2).reshape(28, 2))[0].view(7, 4, 3)
    torch.testing.assert_close(part(x), expected, rtol=0, atol=1e-12)
    assert part.bijective
    assert part.domain.event_dim == 1


def test_wrong_use_is_explained(flow: Flow, conditional: Flow) -> None:
    with pytest.raises(ValueError, match="MAF: this flow takes no context"):
        flow.distribution(_x(4, 2))
    with pytest.raises(ValueError, match=r"RealNVP: expected a context of shape \(4, 2\), got shape \(4, 3\)"):
        conditional.distribution(_x(4, 3))
    with pytest.raises(ValueError, match="RealNVP: expected a context of shape"):
        conditional.distribution()
    with pytest.raises(ValueError, match="within the support"):
        # Asked for here: importing zuko turns torch's checks off.
        FlowDistribution(flow, validate_args=True).log_prob(torch.full((2, 3), torch.nan, dtype=torch.float64))
    assert isinstance(flow.distribution().support, type(constraints.independent(constraints.real, 1)))
