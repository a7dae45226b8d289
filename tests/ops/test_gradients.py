"""First and second derivatives are right, a third one raises, and every transform of autograd is right or raises."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import gmkernels
from gmkernels.testing import Case, OperatorRow, evaluate
from gmkernels.testing.evaluate import different
from gmkernels.testing.table import draw

from .support import on, params, wrong

DIFFERENTIABLE = dict(keep=lambda row: row.order == 2 and torch.float64 in row.dtypes, dtypes=(torch.float64,))
EACH = dict(keep=lambda row: row.order == 2, one_of_each=True)


def _function(row: OperatorRow, case: Case, backend: str):
    """A function of the differentiable tensors alone, and their values."""

    def function(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return row.call(
            Case({**case.tensors, **dict(zip(row.differentiable, inputs, strict=True))}, case.constants), backend
        )

    return function, tuple(case.tensors[name].detach().requires_grad_() for name in row.differentiable)


@params(**DIFFERENTIABLE)
def test_gradcheck(row: OperatorRow, backend: str, dtype: torch.dtype) -> None:
    function, inputs = _function(row, row.case(row.sizes[0], dtype, 3), backend)
    assert gradcheck(function, inputs, atol=1e-7, rtol=1e-5)


@params(**DIFFERENTIABLE)
def test_gradgradcheck(row: OperatorRow, backend: str, dtype: torch.dtype) -> None:
    function, inputs = _function(row, row.case(row.sizes[0], dtype, 4), backend)
    assert gradgradcheck(function, inputs, atol=1e-6, rtol=1e-5)


@params(**EACH, interpreted=True)
def test_third_derivative_is_right_or_raises(row: OperatorRow, backend: str) -> None:
    case = row.case(row.sizes[0], torch.float64 if backend != "triton" else torch.float32)

    def second_order(backend: str) -> tuple[torch.Tensor, torch.Tensor]:
        function, inputs = _function(row, on(backend, case), backend)

        def higher(value: torch.Tensor) -> torch.Tensor:
            return torch.autograd.grad(value, inputs[0], create_graph=True)[0].square().sum()

        return higher(higher(sum(out.square().sum() for out in function(*inputs)))), inputs[0]

    if backend == "reference" or row.endless:
        third, expected = (torch.autograd.grad(*second_order(b))[0].cpu() for b in (backend, "reference"))
        width = 1e-10 if case.tensors[row.differentiable[0]].dtype == torch.float64 else 1e-4
        torch.testing.assert_close(third, expected, rtol=width, atol=width * expected.abs().max().item())
    else:
        second, x = second_order(backend)
        with pytest.raises(NotImplementedError, match="cannot be differentiated again"):
            torch.autograd.grad(second, x)


@params(lambda row: row.order == 2)
def test_a_subset_of_gradients_is_the_same_as_all_of_them(row: OperatorRow, backend: str) -> None:
    case = on(backend, row.case(row.sizes[0]))
    full = evaluate(row, case, backend, order=1)
    for name in row.differentiable:
        for needs in ([name], [other for other in row.differentiable if other != name]):
            part = evaluate(row, case, backend, order=1, needs=needs)
            assert set(part) - set(row.outputs) == {f"grad_{n}" for n in needs}
            assert not different(part, full, part)


@params(**EACH, interpreted=True)
def test_one_output_without_the_other(row: OperatorRow, backend: str) -> None:
    """A loss that uses one output gets what zero cotangents for the others give."""
    function, inputs = _function(row, on(backend, row.case(row.sizes[0])), backend)
    for chosen in range(len(row.outputs)):
        out = function(*inputs)
        alone = torch.autograd.grad(out[chosen].sum(), inputs, materialize_grads=True)
        out = function(*inputs)
        weights = [torch.full_like(t, float(i == chosen)) for i, t in enumerate(out)]
        both = torch.autograd.grad(out, inputs, weights)
        assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))


@params(**DIFFERENTIABLE)
def test_a_penalty_on_the_gradient_of_one_input(row: OperatorRow, backend: str, dtype: torch.dtype) -> None:
    """The double backward of a gradient penalty, which asks for some of its results only."""
    case = row.case(row.sizes[0], dtype)
    for name in row.differentiable:
        found = wrong(row, case, evaluate(row, case, backend, needs=[name]), needs=[name])
        assert not found, found


@params(**EACH)
def test_backward_twice_through_one_graph(row: OperatorRow, backend: str) -> None:
    function, inputs = _function(row, on(backend, row.case(row.sizes[0])), backend)
    loss = sum(out.sum() for out in function(*inputs))
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(loss, inputs), strict=True))


@params(**EACH)
def test_an_input_changed_in_place_is_noticed(row: OperatorRow, backend: str) -> None:
    if backend == "reference":
        return
    function, inputs = _function(row, on(backend, row.case(row.sizes[0])), backend)
    copies = [t.clone() for t in inputs]
    out = function(*copies)
    with torch.no_grad():
        copies[0].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad([t.sum() for t in out], inputs)


@params(**EACH)
def test_jvp_is_right_or_raises(row: OperatorRow, backend: str) -> None:
    case = row.case(row.sizes[0], row.dtypes[0]).to(torch.float64)
    function, inputs = _function(row, case, "auto")
    plain = tuple(t.detach() for t in inputs)
    tangents = tuple(draw(t.shape, t.dtype, torch.Generator().manual_seed(8)) for t in inputs)
    _, pushed = torch.func.jvp(function, plain, tangents)

    # <cotangent, J tangent> both ways round.
    out = function(*inputs)
    weights = [torch.full_like(t, 0.3) for t in out]
    grads = torch.autograd.grad(out, inputs, weights)
    forward = sum((w * p).sum() for w, p in zip(weights, pushed, strict=True))
    backward = sum((g * t).sum() for g, t in zip(grads, tangents, strict=True))
    torch.testing.assert_close(forward, backward, rtol=1e-10, atol=1e-12)

    if backend != "reference":
        explicit, _ = _function(row, on(backend, row.case(row.sizes[0])), backend)
        small = tuple(t.float().to(case_device(row, backend)) for t in plain)
        with pytest.raises(gmkernels.BackendError, match=r"cannot run under a torch\.func transform"):
            torch.func.jvp(explicit, small, small)


@params(**EACH)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_forward_mode_is_right_or_raises(row: OperatorRow, backend: str, requires_grad: bool) -> None:
    case = row.case(row.sizes[0], row.dtypes[0]).to(torch.float64)
    function, inputs = _function(row, case, "auto")
    tangents = [draw(t.shape, t.dtype, torch.Generator().manual_seed(8)) for t in inputs]
    _, expected = torch.func.jvp(function, tuple(t.detach() for t in inputs), tuple(tangents))
    with forward_ad.dual_level():
        duals = [
            forward_ad.make_dual(t.detach().requires_grad_(requires_grad), v)
            for t, v in zip(inputs, tangents, strict=True)
        ]
        for out, right in zip(function(*duals), expected, strict=True):
            torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, right)
        if backend != "reference":
            case32 = on(backend, row.case(row.sizes[0]))
            explicit, values = _function(row, case32, backend)
            with pytest.raises(gmkernels.BackendError):
                explicit(*[forward_ad.make_dual(t.detach(), t.detach()) for t in values])


@params(**EACH)
def test_vmap_is_right_or_raises(row: OperatorRow, backend: str) -> None:
    case = row.case(row.sizes[0], row.dtypes[0]).to(torch.float64)
    function, inputs = _function(row, case, "auto")
    stacks = tuple(torch.stack((t.detach(), t.detach() * 0.5, -t.detach())) for t in inputs)
    mapped = torch.func.vmap(function)(*stacks)
    for i, slices in enumerate(zip(*stacks, strict=True)):
        for out, expected in zip(mapped, function(*slices), strict=True):
            torch.testing.assert_close(out[i], expected, rtol=1e-12, atol=1e-12)
    if backend != "reference":
        explicit, _ = _function(row, on(backend, row.case(row.sizes[0])), backend)
        with pytest.raises(gmkernels.BackendError, match=r"cannot run under a torch\.func transform"):
            torch.func.vmap(explicit)(*[s.float().to(case_device(row, backend)) for s in stacks])


@params(**EACH)
def test_func_grad_and_hessian(row: OperatorRow, backend: str) -> None:
    function, inputs = _function(row, row.case(row.sizes[0], row.dtypes[0]).to(torch.float64), "auto")

    def loss(first: torch.Tensor) -> torch.Tensor:
        return sum(out.square().sum() for out in function(first, *[t.detach() for t in inputs[1:]]))

    plain = inputs[0].detach()
    gradient = torch.autograd.grad(loss(inputs[0]), inputs[0])[0]
    torch.testing.assert_close(torch.func.grad(loss)(plain), gradient, rtol=1e-10, atol=1e-12)
    outer = torch.autograd.functional.hessian(loss, plain)
    torch.testing.assert_close(torch.func.hessian(loss)(plain), outer, rtol=1e-9, atol=1e-11)


def case_device(row: OperatorRow, backend: str) -> torch.device:
    return next(iter(on(backend, row.case(row.sizes[0])).tensors.values())).device
