"""The helpers can fail: each sees the fault it exists for."""

from __future__ import annotations

import pytest
import torch

from gmkernels.core.doors import OPERATORS
from gmkernels.testing import ErrorBudget, boundary_band, digest, error, evaluate, poison, redzones, rows
from gmkernels.testing.evaluate import different, same_bits

# Functions of a module that calls itself part of the package, as far as the allocators are concerned.
_PACKAGE: dict = {"__name__": "gmkernels.ops.pretend", "torch": torch}
exec(
    """
def unset(x):
    out = x.new_empty(x.shape)
    out[:-1] = x[:-1]
    return out

def beyond(x):
    out = torch.empty(x.shape)
    out.copy_(x)
    torch.as_strided(out, (x.numel() + 3,), (1,), out.storage_offset())[-1] = 7.0
    return out

def before(x):
    out = torch.empty_like(x).copy_(x)
    torch.as_strided(out, (1,), (1,), out.storage_offset() - 1)[0] = 7.0
    return out

def fine(x):
    return torch.empty_strided(x.shape, x.stride()).copy_(x)
""",
    _PACKAGE,
)


def test_poison_shows_what_was_left_unset() -> None:
    x = torch.ones(5)
    before = torch.empty, torch.Tensor.new_empty
    with poison():
        assert _PACKAGE["unset"](x).isnan().tolist() == [False] * 4 + [True]
        assert torch.equal(_PACKAGE["fine"](x), x)
    assert (torch.empty, torch.Tensor.new_empty) == before


def test_redzones_catch_writes_on_both_sides() -> None:
    x = torch.ones(5)
    with redzones(guard=16):
        assert torch.equal(_PACKAGE["fine"](x), x)
    with (
        pytest.raises(AssertionError, match="4 bytes were written after a buffer of 20 bytes, the first at offset 28"),
        redzones(),
    ):
        _PACKAGE["beyond"](x)
    with (
        pytest.raises(AssertionError, match="4 bytes were written before a buffer of 20 bytes, the first at offset -4"),
        redzones(),
    ):
        _PACKAGE["before"](x)


def test_redzones_catch_a_write_to_an_input() -> None:
    x = torch.ones(2, 3)[:, ::2]
    with pytest.raises(AssertionError, match="written after"), redzones() as zones:  # noqa: PT012 (the exit raises)
        guarded = zones.copy(x)
        assert torch.equal(guarded, x) and guarded.stride() == x.stride()
        torch.as_strided(guarded, (1,), (1,), guarded.storage_offset() + 6)[0] = 1.0
    expanded = torch.arange(3.0).expand(4, 3)
    with redzones() as zones:
        assert torch.equal(zones.copy(expanded), expanded)


def test_error_is_in_halves_of_an_ulp() -> None:
    exact = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    result = torch.tensor([1.0, 1.0 + 2.0**-23, 1.0])
    assert error(result, exact) == 2.0
    # 0.1 in float32 is rounded correctly: at most one half.
    assert 0 < error(torch.tensor([0.1]), torch.tensor([0.1], dtype=torch.float64)) <= 1.0
    # A small element is measured at the median unless asked otherwise.
    exact = torch.tensor([1e-6, 1.0, 1.0], dtype=torch.float64)
    result = torch.tensor([2e-6, 1.0, 1.0])
    assert error(result, exact) < 20 < 1e6 < error(result, exact, relative=True)


def test_error_of_what_is_not_finite() -> None:
    nan, inf = float("nan"), float("inf")
    exact = torch.tensor([nan, inf, -inf, 1e300, 1.0], dtype=torch.float64)
    assert error(torch.tensor([nan, inf, -inf, inf, 1.0]), exact) == 0
    for wrong in (
        [1.0, inf, -inf, inf, 1.0],
        [nan, -inf, -inf, inf, 1.0],
        [nan, inf, -inf, 1e38, 1.0],
        [nan, inf, -inf, inf, nan],
    ):
        assert error(torch.tensor(wrong), exact) == inf
    # Next to overflow both infinity and the largest number are right.
    edge = torch.tensor([65519.0], dtype=torch.float64)
    assert error(torch.tensor([inf]).half(), edge) == 0 and error(torch.tensor([65504.0]).half(), edge) < 1


def test_the_budget_sees_a_kernel_that_is_twice_as_wrong() -> None:
    generator = torch.Generator().manual_seed(0)
    good, bad, lucky, tail = ErrorBudget(), ErrorBudget(), ErrorBudget(), ErrorBudget()
    for _ in range(9):
        exact = torch.randn(100, generator=generator, dtype=torch.float64)
        noise = torch.randn(100, generator=generator, dtype=torch.float64) * 2.0**-22
        eager, other = (exact + noise).float(), (exact - noise).float()
        off = (exact + 2.1 * noise).float()
        good.add({"y": other}, {"y": eager}, {"y": exact})
        bad.add({"y": off}, {"y": eager}, {"y": exact})
        rounded = exact.float()
        lucky.add({"y": rounded}, {"y": rounded}, {"y": rounded.double()})
        one = eager.clone()
        one[-1] += 1e-5
        tail.add({"y": one if _ == 4 else eager}, {"y": eager}, {"y": exact})
    assert not good.excess() and not lucky.excess()
    assert "times PyTorch's" in bad.excess()[0]
    assert "PyTorch's largest" in tail.excess()[0] and len(tail.excess()) == 1


def test_the_band_holds_every_decision_that_may_flip() -> None:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 2**32, (200_000,), generator=generator)
    p = torch.rand(200_000, generator=generator, dtype=torch.float64)
    width = 1e-3
    band = boundary_band(words, p, width)
    for shift in (width, -width, width / 2):
        decision, moved = (words < (q * 2.0**32).clamp(0, 2.0**32).floor().long() for q in (p, p + shift))
        flipped = decision != moved
        assert flipped.any() and not (flipped & ~band).any()
    assert abs(band.double().mean().item() - 2 * width) < 5e-4


def test_bits_are_compared_to_the_last_one() -> None:
    a = torch.tensor([0.0, float("nan"), 1.0])
    assert same_bits(a, a.clone())
    assert not same_bits(a, torch.tensor([-0.0, float("nan"), 1.0]))
    assert not same_bits(a, a.double()) and not same_bits(a, a[None])
    assert different({"x": a}, {"x": a.nextafter(torch.tensor(2.0))}) == ["x"]
    assert different({"x": a}, {}) == ["x"]
    assert digest({"x": a}) != digest({"x": a.nextafter(torch.tensor(2.0))})


def test_names_of_results() -> None:
    row = rows()["affine_coupling[tanh]"]
    names = list(evaluate(row, row.case((2, 3)), "reference", needs=["x", "shift"]))
    assert names[:4] == ["y", "logdet", "grad_x", "grad_shift"]
    assert set(names[4:]) == {"double_x", "double_shift", "double_grad_y", "double_grad_logdet"}
    assert list(evaluate(row, row.case((2, 3)), "reference", order=0)) == ["y", "logdet"]
    assert row.operator in OPERATORS
