"""The table is complete, and each operator keeps the contract that its row states."""

from __future__ import annotations

import pytest
import torch

import gmkernels
from gmkernels.core import doors
from gmkernels.testing import evaluate
from gmkernels.testing.doors import dispatcher_door
from gmkernels.testing.table import ErrorCase, OperatorRow, public_operators

from . import support
from .support import ROWS, device, on, params


def test_every_public_operator_has_a_row() -> None:
    missing = set(public_operators()) - {row.operator for row in ROWS}
    assert not missing, f"add rows to gmkernels/testing/families for {', '.join(sorted(missing))}"
    assert {row.operator for row in ROWS} <= set(doors.OPERATORS)


def test_every_derivative_belongs_to_a_public_operator() -> None:
    for name in doors.OPERATORS:
        assert name.removesuffix("_backward").removesuffix("_double") in public_operators()


@pytest.mark.parametrize("operator", public_operators())
def test_error_inputs_are_listed(operator: str) -> None:
    assert any(row.errors for row in ROWS if row.operator == operator)


@params(lambda row: row.order > 0, reference=False, one_of_each=True, interpreted=True)
def test_the_row_reaches_every_derivative(row: OperatorRow, backend: str) -> None:
    with dispatcher_door() as door:
        evaluate(row, on(backend, row.case(row.sizes[0])), backend)
    ran = {name for name, _, _ in door.calls}
    family = {
        name for name in doors.OPERATORS if name.removesuffix("_backward").removesuffix("_double") == row.operator
    }
    assert family <= ran  # an operator made of others reaches theirs as well


@params(dtypes=(torch.float32, torch.float64, torch.float16, torch.bfloat16))
def test_shapes_dtypes_and_strides_are_those_of_the_reference(
    row: OperatorRow, backend: str, dtype: torch.dtype
) -> None:
    for sizes in support.sizes(row, backend):
        case = on(backend, row.case(sizes, dtype))
        results = evaluate(row, case, backend)
        expected = results if backend == "reference" else evaluate(row, case, "reference")
        assert list(results) == list(expected)
        for name, t in results.items():
            assert (t.dtype, t.shape) == (expected[name].dtype, expected[name].shape), (name, sizes)
            assert t.device.type == device(backend)
        for name in row.outputs:
            assert results[name].is_contiguous(), f"{name} of {sizes} has strides {results[name].stride()}"


@params(lambda row: row.order == 0)
def test_undifferentiable_outputs_require_no_gradient(row: OperatorRow, backend: str) -> None:
    case = on(backend, row.case(row.sizes[0])).map(lambda t: t.requires_grad_(t.is_floating_point()))
    assert not any(t.requires_grad for t in row.call(case, backend))


@params(lambda row: row.order > 0)
def test_no_graph_under_no_grad(row: OperatorRow, backend: str) -> None:
    case = on(backend, row.case(row.sizes[0])).map(lambda t: t.requires_grad_(t.is_floating_point()))
    with torch.no_grad():
        assert not any(t.requires_grad for t in row.call(case, backend))
    assert all(t.requires_grad for t in row.call(case, backend))


@params()
def test_inputs_are_left_alone(row: OperatorRow, backend: str) -> None:
    case = on(backend, row.case(row.sizes[-1]))
    before = case.map(torch.clone)
    outputs = row.call(case, backend)
    for name, t in case.tensors.items():
        assert torch.equal(t, before.tensors[name])
        assert not any(out.untyped_storage().data_ptr() == t.untyped_storage().data_ptr() for out in outputs)


# The checks run before a backend is chosen: the interpreter adds nothing.
_ERRORS = [
    pytest.param(row, error, backend, id=f"{row.name}-{error.name}-{backend}",
                 marks=[pytest.mark.triton] if backend == "triton" else [])
    for row in ROWS for error in row.errors for backend in support.available(row) if not support.INTERPRETER
]  # fmt: skip


@pytest.mark.parametrize("row,case,backend", _ERRORS)
def test_error_inputs_raise_the_documented_error(row: OperatorRow, case: ErrorCase, backend: str) -> None:
    good = on(backend, row.case(row.sizes[0]))
    arguments = {**good.tensors, **good.constants, "backend": backend}
    row.function(**arguments)
    case.change(arguments)
    arguments = {
        name: value.to(device(backend)) if isinstance(value, torch.Tensor) and value.device.type == "cpu" else value
        for name, value in arguments.items()
    }
    with pytest.raises(case.error, match=case.match) as caught:
        row.function(**arguments)
    assert type(caught.value) is case.error
    assert "\n" not in str(caught.value), "one sentence"


def test_an_explicit_backend_that_cannot_run_says_why() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(gmkernels.BackendError, match="'cuda' cannot run this call: this operator has no 'cuda'"):
        gmkernels.affine_coupling(x, x, x, backend="cuda")
    with pytest.raises(ValueError, match="use_backend: unknown backend 'fastest'"), gmkernels.use_backend("fastest"):
        pass
    with pytest.raises(ValueError, match="backend_for: unknown operator 'sine'; known are affine_coupling"):
        gmkernels.backend_for("sine", x)


@params(one_of_each=True, interpreted=True)
def test_use_backend_and_backend_for_agree_with_the_argument(row: OperatorRow, backend: str) -> None:
    case = on(backend, row.case(row.sizes[0]))
    explicit = evaluate(row, case, backend)
    with gmkernels.use_backend(backend):
        assert gmkernels.backend_for(row.operator, *case.tensors.values()) == backend
        chosen = evaluate(row, case)
    assert {n: t.tolist() for n, t in explicit.items()} == {n: t.tolist() for n, t in chosen.items()}
