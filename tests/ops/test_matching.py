"""Feature matching and historical averaging: known answers, gradients, checkpoints, errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gmkernels as gmk
from gmkernels.nn import HistoricalAverage


def test_it_is_the_distance_of_means_not_of_pairs() -> None:
    real = torch.tensor([[0.0, 2.0], [4.0, 0.0]])
    fake = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 4.0]])
    assert float(gmk.feature_matching_loss(real, fake)) == pytest.approx(1.0 + 1.0)
    assert float(gmk.feature_matching_loss(real, real.flip(0))) == 0.0
    layers = [real, torch.ones(5, 2, 2)], [fake, torch.zeros(3, 2, 2)]
    assert float(gmk.feature_matching_loss(*layers)) == pytest.approx(2.0 + 4.0)


def test_only_the_fake_side_has_a_gradient_unless_asked() -> None:
    real, fake = (torch.randn(n, 3, 2, dtype=torch.float64, requires_grad=True) for n in (4, 5))
    gmk.feature_matching_loss(real, fake).backward()
    assert real.grad is None
    expected = -2 * (real.mean(0) - fake.mean(0)) / 5
    torch.testing.assert_close(fake.grad, expected.expand(5, 3, 2).detach())
    gmk.feature_matching_loss(real, fake, detach_real=False).backward()
    torch.testing.assert_close(real.grad, -(expected * 5 / 4).expand(4, 3, 2).detach())
    assert torch.autograd.gradgradcheck(lambda f: gmk.feature_matching_loss(real.detach(), f), fake)


def test_half_precision_features_are_summed_in_float32() -> None:
    real, fake = torch.full((5000, 2), 3.0).half(), torch.full((5000, 2), 1.0).half()
    loss = gmk.feature_matching_loss(real, fake)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(8.0)


def test_features_that_do_not_fit_are_refused() -> None:
    x = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="lists of one length, at least 1, got 2 and 1"):
        gmk.feature_matching_loss([x, x], x)
    with pytest.raises(ValueError, match=r"got real \(4, 3\) and fake \(4, 2\)"):
        gmk.feature_matching_loss(x, x[:, :2])
    with pytest.raises(ValueError, match=r"got real \(4, 3\) and fake \(0, 3\)"):
        gmk.feature_matching_loss(x, x[:0])
    with pytest.raises(TypeError, match=r"fake_features must be float.*int64"):
        gmk.feature_matching_loss(x, x.long())


def _walk(steps: int) -> tuple[nn.Module, HistoricalAverage, list[list[torch.Tensor]]]:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)).double()
    history, seen = HistoricalAverage(module), []
    for _ in range(steps):
        with torch.no_grad():
            for p in module.parameters():
                p += torch.randn_like(p)
        seen.append([p.detach().clone() for p in module.parameters()])
        history.update()
    return module, history, seen


def test_the_average_is_that_of_all_steps() -> None:
    module, history, seen = _walk(7)
    for found, values in zip(history.averages(), zip(*seen, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(values).mean(0), rtol=1e-13, atol=1e-13)
    history.penalty().backward()
    gaps = [p - a for p, a in zip(module.parameters(), history.averages(), strict=True)]
    expected = sum(gap.square().sum() for gap in gaps)
    torch.testing.assert_close(history.penalty(), expected)
    for p, gap in zip(module.parameters(), gaps, strict=True):
        torch.testing.assert_close(p.grad, 2 * gap.detach())


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten  # none of these touches an element
        self.n += func not in (aten.detach.default, aten.promote_types.default, aten.view.default)
        return func(*args, **(kwargs or {}))


def test_as_many_operations_for_few_parameters_as_for_many() -> None:
    found = []
    for layers in (1, 20):
        history = HistoricalAverage(nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers))))
        with _Count() as penalty:
            history.penalty()
        with _Count() as update:
            history.update()
        found.append((penalty.n, update.n))
    assert found[0] == found[1]


def test_before_the_first_update_the_penalty_is_zero_and_so_is_its_gradient() -> None:
    module = nn.Linear(2, 2)
    history = HistoricalAverage(module.parameters())
    assert history.penalty().item() == 0.0
    history.penalty().backward()
    assert not any(p.grad.any() for p in module.parameters())
    history.update()
    assert history.penalty().item() == 0.0
    assert int(history.steps) == 1


@pytest.mark.parametrize("away", [0.0, 1.5])
def test_the_penalty_has_a_second_derivative_at_the_average_too(away: float) -> None:
    p, q = (torch.zeros(2, dtype=torch.float64).requires_grad_() for _ in range(2))
    history = HistoricalAverage([p, q])
    with torch.no_grad():
        p += away
    (slope,) = torch.autograd.grad(history.penalty(), p, create_graph=True)
    assert slope.tolist() == [2 * away] * 2
    assert torch.autograd.grad(slope, p, torch.tensor([1.0, -3.0]).double())[0].tolist() == [2.0, -6.0]


def test_a_checkpoint_holds_the_history_and_no_parameter_twice() -> None:
    module, history, _ = _walk(3)
    state = history.state_dict()
    assert not list(history.parameters())
    assert len(state) == 4 + 1
    other = HistoricalAverage(module)
    other.load_state_dict(state)
    for h in (history, other):
        h.update()
    assert all(torch.equal(a, b) for a, b in zip(history.averages(), other.averages(), strict=True))
    assert int(other.steps) == 4


def test_half_precision_parameters_have_a_float32_average() -> None:
    p = nn.Parameter(torch.ones(2).half())
    history = HistoricalAverage([p])
    for _ in range(3):
        history.update()
    assert history.averages()[0].dtype == torch.float32
    with torch.no_grad():
        p += 1
    history.penalty().backward()
    assert p.grad.tolist() == [2.0, 2.0]


def test_nothing_to_average_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameters"):
        HistoricalAverage(nn.ReLU())
    with pytest.raises(TypeError, match=r"got torch.int64 at place 0"):
        HistoricalAverage([torch.zeros(2, dtype=torch.int64)])
