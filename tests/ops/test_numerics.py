"""Kernels against the float64 reference: error budgets, the ledger, float64 itself, and values at the edges."""

from __future__ import annotations

import pytest
import torch

from gmkernels.testing import ErrorBudget, OperatorRow, evaluate
from gmkernels.testing.budget import error

from . import ledger, support
from .support import cpu, on, params, wrong

LOW = (torch.float32, torch.float16, torch.bfloat16)


@params(reference=False, dtypes=LOW, interpreted=True)
def test_error_is_within_the_budget_and_the_ledger(row: OperatorRow, backend: str, dtype: torch.dtype) -> None:
    budget = ledger.measure(row, backend, dtype)
    assert not budget.excess(), "\n".join(budget.excess())
    assert not (grown := ledger.growth(row, backend, dtype, budget)), "\n".join(grown)


@params(reference=False, dtypes=(torch.float64,))
def test_float64_is_the_reference_to_twelve_digits(row: OperatorRow, backend: str, dtype: torch.dtype) -> None:
    for seed, sizes in enumerate(support.sizes(row, backend)):
        case = row.case(sizes, dtype, seed)
        found = wrong(row, case, cpu(evaluate(row, on(backend, case), backend)))
        assert not found, f"{sizes}: " + "; ".join(found)


@params(lambda row: row.exact, reference=False, dtypes=(*LOW, torch.float64), interpreted=True)
def test_exact_outputs_do_not_depend_on_the_backend(row: OperatorRow, backend: str, dtype: torch.dtype) -> None:
    for seed, sizes in enumerate(support.sizes(row, backend)):
        case = row.case(sizes, dtype, seed)
        result, expected = cpu(evaluate(row, on(backend, case), backend)), evaluate(row, case, "reference")
        for name in row.exact:
            if not torch.equal(result[name], expected[name]):
                # A choice so near its border that PyTorch's own float32, whose bits are the machine's, may err: then the
                # kernel has to be right, all along the sequence.
                exact = evaluate(row, case.to(torch.float64), "reference")[name]
                assert not torch.equal(expected[name], exact)
                assert torch.equal(result[name], exact)


@params(lambda row: row.extremes, reference=False, dtypes=(torch.float32, torch.float64), interpreted=True)
def test_extreme_values(row: OperatorRow, backend: str, dtype: torch.dtype) -> None:
    assert row.extremes is not None
    case = row.extremes(dtype)
    result, eager = (cpu(evaluate(row, on(b, case), b, order=0)) for b in (backend, "reference"))
    budget = ErrorBudget(relative=True)
    if dtype == torch.float64:
        # The reference is its own measure here: same digits, same infinities.
        assert {name: error(result[name], eager[name], relative=True) < 200 for name in result} == dict.fromkeys(
            result, True
        )
        return
    budget.add(result, eager, evaluate(row, case.to(torch.float64), "reference", order=0))
    assert not budget.excess(), "\n".join(budget.excess())


@params(lambda row: row.nonfinite, reference=False, interpreted=True)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_inputs_give_what_the_reference_gives(row: OperatorRow, backend: str, value: float) -> None:
    for name in row.nonfinite:
        case = row.case(row.sizes[-1] if backend != "triton" else support.sizes(row, backend)[-1])
        t = case.tensors[name]
        t.reshape(-1)[:: max(7, t.numel() // 5)] = value
        result = cpu(evaluate(row, on(backend, case), backend, order=0))
        expected = evaluate(row, case, "reference", order=0)
        for output in row.outputs:
            _same_kind(result[output], expected[output], f"{output} with {value} in {name}")


def _same_kind(result: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(result), kind(expected)), f"{what}: {kind.__name__} differs"
    finite = expected.isfinite()
    assert torch.allclose(result[finite], expected[finite], rtol=1e-4, atol=1e-4), what


@params(lambda row: row.name in ("affine_coupling[exp]", "affine_coupling[exp, inverse]"), interpreted=True)
def test_overflow_of_exp_is_infinity(row: OperatorRow, backend: str) -> None:
    sign = -1.0 if "inverse" in row.name else 1.0
    s = torch.tensor([[88.0], [89.0], [200.0], [1e30], [-104.5], [-1e30]]) * sign
    case = row.case((6, 1))
    case.tensors.update(x=torch.ones(6, 1), log_scale=s, shift=torch.zeros(6, 1))
    y, logdet = (t.cpu() for t in row.call(on(backend, case), backend))
    assert y[0].isfinite() and y[1:4].isposinf().all() and (y[4:] == 0).all()
    assert torch.equal(logdet, s[:, 0] * sign)
