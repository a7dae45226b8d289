"""What a stranger does to a flow: other dtypes, replaced steps, other degrees, modes that change, contexts, infinities."""

from __future__ import annotations

import copy
from typing import TypeVar

import pytest
import torch
from torch import nn

import gmkernels as gmk
from genmodels.errors import GenmodelsError
from genmodels.flows import IAF, MADE, MAF, ParallelWaveNet, RealNVP, WaveNet
from genmodels.flows.transforms import Chain, Linear, Standardise

F = TypeVar("F", bound=nn.Module)


def _disturbed(flow: F) -> F:
    torch.manual_seed(0)
    for parameter in flow.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return flow


def test_another_dtype_is_an_error_and_no_other_number() -> None:
    flow = _disturbed(MAF(4, hidden=(8,)))
    with pytest.raises(TypeError, match=r"share one dtype.*float64"):
        flow.log_prob(torch.zeros(2, 4, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"float32 or float64, got torch\.bfloat16"):
        copy.deepcopy(flow).bfloat16().sample(3)
    with pytest.raises(TypeError, match=r"must be float32, float64, float16 or bfloat16, got torch\.int32"):
        gmk.nn.MADE(3, [4])(torch.ones(2, 3, dtype=torch.int32))


def test_sampling_under_autocast_is_what_it_is_without_but_for_the_context() -> None:
    flow, context = _disturbed(MAF(4, contexts=2, hidden=(8,))), torch.randn(3, 2)
    plain = flow.sample(3, context, key=0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = flow.sample(3, context, key=0)
    torch.testing.assert_close(rounded, plain, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", [MADE, MAF, IAF])
def test_a_context_reaches_every_feature(kind: type[MAF]) -> None:
    flow = _disturbed(kind(4, contexts=2, hidden=(16, 16)))
    z = torch.zeros(2, 4)
    x = flow.decode(z, torch.tensor([[0.0, 0.0], [3.0, -3.0]]))
    assert (x[0] - x[1]).abs().min() > 1e-4


def test_weights_of_other_degrees_are_refused() -> None:
    flow = _disturbed(MAF(4, layers=3, hidden=(16,), permutation="random", seed=0))
    same = MAF(4, layers=3, hidden=(16,), permutation="random", seed=0)
    same.load_state_dict(flow.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(same.log_prob(x), flow.log_prob(x))
    for other in (MAF(4, layers=3, hidden=(16,), permutation="random", seed=7), MAF(4, layers=3, hidden=(16,))):
        with pytest.raises(RuntimeError, match="feature_degrees are not this network's"):
            other.load_state_dict(flow.state_dict())


@pytest.mark.parametrize("reversible", [False, True])
def test_a_replaced_step_is_replaced_in_both_directions(reversible: bool) -> None:
    chain = Chain([Linear(4, seed=i) for i in range(3)], reversible=reversible)
    x = torch.randn(5, 4)
    chain(x)
    chain.steps.append(Linear(4, seed=9))
    step = Standardise((4,))
    nn.init.constant_(step.shift, 5.0)
    chain.steps[0] = step
    torch.testing.assert_close(chain.inverse(chain(x)[0])[0], x, rtol=0, atol=1e-4)
    twin = copy.deepcopy(chain)
    nn.init.constant_(twin.steps[0].shift, 0.0)
    assert not torch.equal(twin(x)[0], chain(x)[0])


def test_a_mode_that_changes_before_backward_changes_no_gradient() -> None:
    flows = [_disturbed(RealNVP(6, couplings=4, hidden=8, batch_norm=True, reversible=r)) for r in (True, False)]
    flows[1].load_state_dict(flows[0].state_dict())
    x = torch.randn(20, 6) * 3 + 1
    gradients = []
    for flow in flows:
        loss = -flow.log_prob(x).mean()
        flow.eval()
        loss.backward()
        gradients.append([p.grad for p in flow.parameters()])
        assert not any(module.training for module in flow.modules())
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_batch_normalisation_cannot_be_trained_backwards() -> None:
    flow = IAF(3, layers=3, hidden=(8,), batch_norm=True)
    with pytest.raises(RuntimeError, match="knows no statistics of a batch"):
        flow.log_prob(torch.randn(20, 3))
    flow.rsample(20).sum().backward()
    assert torch.isfinite(flow.eval().log_prob(torch.randn(20, 3))).all()


def test_a_distribution_of_one_context() -> None:
    flow = _disturbed(MAF(4, contexts=3, hidden=(8,)))
    context, x = torch.randn(3), torch.randn(5, 4)
    one = flow.distribution(context)
    assert one.batch_shape == ()
    torch.testing.assert_close(one.log_prob(x), flow.log_prob(x, context.expand(5, 3)))
    assert one.sample((2,)).shape == (2, 4)
    with pytest.raises(ValueError, match=r"context must have shape \(\*batch_shape, contexts\)"):
        flow.distribution(torch.tensor(1.0))


def test_infinite_samples_are_told_from_infinite_results() -> None:
    x = torch.zeros(3, 4)
    x[1, 2] = torch.inf
    with pytest.raises(GenmodelsError, match="IAF: 1 of 3 of the given samples are not finite"):
        IAF(4, hidden=(8,)).log_prob(x)
    flow = IAF(4, hidden=(8,), scale_map="exp")
    assert isinstance(flow.transform, Chain)
    for p in flow.transform.steps[-1].inner.steps[2].made.linears()[-1].parameters():
        nn.init.constant_(p, -1e4)
    with pytest.raises(GenmodelsError, match=r"transform\.steps\.\d\.inner\.steps\.2"):
        flow.log_prob(torch.randn(3, 4))


def test_sound_that_is_not_finite_is_reported() -> None:
    student = ParallelWaveNet(((1,),), residual=8, skip=8)
    nn.init.constant_(student.flows[0].output.bias, torch.nan)
    with pytest.raises(GenmodelsError, match="1 of 1 sounds are not finite"):
        student.sample(1, 3)
    with pytest.raises(ValueError, match="sound must be finite"):
        WaveNet((1,), levels=16).log_prob(torch.full((1, 5), torch.nan))


def test_labels_of_any_integer_type() -> None:
    model = _disturbed(WaveNet((1,), levels=4, classes=2, residual=8, skip=8))
    x, y = torch.randint(0, 4, (3, 6)), torch.tensor([1, 0, 1])
    for dtype in (torch.uint8, torch.int32, torch.bool):
        assert torch.equal(model.log_prob(x, y.to(dtype)), model.log_prob(x, y))


def test_scale_maps_are_looked_at_when_a_flow_is_made() -> None:
    with pytest.raises(ValueError, match="scale_map must be one of"):
        MAF(4, scale_map="cube")
    with pytest.raises(ValueError, match="scale_map must be one of"):
        gmk.nn.AffineCoupling(nn.Linear(2, 4), split=2, scale_map="cube")


def test_a_constant_feature_has_no_gaussian() -> None:
    flow = MAF(3, whiten=True)
    with pytest.raises(ValueError, match="a feature is constant"):
        flow.initialise(torch.ones(50, 3))
