"""Two doors, one result: eager, ``torch.ops``, AOT autograd and the compiler, and the operators' declarations."""

from __future__ import annotations

import contextlib
import copy
import itertools

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from gmkernels.core import checks, doors, native
from gmkernels.testing import Case, OperatorRow, evaluate, relayout
from gmkernels.testing.doors import dispatcher_door
from gmkernels.testing.evaluate import different

from . import support
from .support import on, params

DTYPES = (torch.float32, torch.float64, torch.float16)


@params(reference=False, dtypes=DTYPES)
def test_both_doors_give_the_same_bits(row: OperatorRow, backend: str, dtype: torch.dtype) -> None:
    for sizes in support.sizes(row, backend):
        case = on(backend, row.case(sizes, dtype))
        eager = evaluate(row, case, backend)
        with dispatcher_door() as door:
            dispatched = evaluate(row, case, backend)
        assert door.calls
        assert not different(eager, dispatched)


def _record(row: OperatorRow, case: Case, backend: str):
    """Each operator of the row's chain once, with the arguments it gets."""
    with dispatcher_door() as door:
        evaluate(row, case, backend)
    return {name: (func, args) for name, func, args in door.calls}.values()


@params(reference=False, one_of_each=True, interpreted=True)
def test_opcheck(row: OperatorRow, backend: str) -> None:
    """Schema, autograd registration, fake tensors and AOT dispatch of the operator and its derivatives, with
    gradients, on compact and on permuted dense inputs (a fake that uses ``empty_like`` fails on the latter).

    AOT dispatch traces with sizes for symbols: its graph, which takes most of the time, is the same for both."""
    dtype = torch.float32
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for sizes, layout, more in (
        (row.sizes[0], "transposed", ("test_aot_dispatch_dynamic",)),
        (row.sizes[1], "contiguous", ()),
    ):
        for func, args in _record(row, on(backend, row.case(sizes, dtype)), backend):
            differentiable = doors.OPERATORS[func._schema.name.split("::")[1]].vjp is not None
            arranged = [
                relayout(a, layout).requires_grad_(differentiable and a.is_floating_point())
                if isinstance(a, torch.Tensor)
                else a
                for a in args
            ]
            torch.library.opcheck(func, tuple(arranged), test_utils=(*checks, *more))


class _Outcomes(dispatcher_door):
    """Keeps what each operator of the chain returned, too."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, tuple] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func.namespace == "gmkernels":
            self.outcomes[func._schema.name] = func, args, out
        return out


@params(reference=False, dtypes=(torch.float32, torch.float64, torch.float16, torch.bfloat16))
def test_fakes_describe_what_runs(row: OperatorRow, backend: str, dtype: torch.dtype) -> None:
    """Shape, dtype and strides of every operator of the chain, for every dtype and strange inputs.

    On the meta device, where the same fake runs as under ``FakeTensorMode`` (which :func:`test_opcheck` is for)."""
    for sizes in support.sizes(row, backend):
        for layout in ("contiguous", "transposed", "expanded"):
            case = on(backend, row.case(sizes, dtype).map(lambda t, layout=layout: relayout(t, layout)))
            with _Outcomes() as door:
                evaluate(row, case, backend)
            assert door.outcomes
            for func, args, real in door.outcomes.values():
                with torch.no_grad():
                    fake = func(*[_meta(a) if isinstance(a, torch.Tensor) else a for a in args])
                for r, f in zip(_flat(real), _flat(fake), strict=True):
                    assert f.is_meta
                    assert (r.shape, r.dtype, r.stride()) == (f.shape, f.dtype, f.stride()), func


def _meta(t: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")


def _flat(out):
    return out if isinstance(out, tuple) else (out,)


def _compiled(row: OperatorRow, backend: str, compiler: str):
    """The public function, compiled without graph breaks; ``evaluate`` calls it like ``row.call``."""
    torch._dynamo.reset()
    constants = row.case(row.sizes[0]).constants
    sampled = "shape" in constants

    def function(tensors: dict, shape: tuple[int, ...] | None, fixed: dict) -> tuple[torch.Tensor, ...]:
        return row.call(Case(tensors, {**fixed, "shape": shape} if sampled else fixed), backend)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=compiler)

    def call(case: Case, _backend: str) -> tuple[torch.Tensor, ...]:
        fixed = {k: v for k, v in case.constants.items() if k != "shape"}
        return compiled(case.tensors, case.constants.get("shape"), fixed)

    return call


def _check_compiled(row: OperatorRow, backend: str, compiler: str) -> None:
    call = _compiled(row, backend, compiler)
    with torch._dynamo.config.patch(error_on_recompile=False):
        for sizes in row.dynamic:
            case = on(backend, row.case(sizes))
            order = min(row.order, 1)
            compiled, eager = (evaluate(row, case, backend, order=order, call=c) for c in (call, None))
            if backend == "reference":
                for name in eager:
                    torch.testing.assert_close(compiled[name], eager[name], rtol=1e-4, atol=1e-5)
            else:
                assert not (wrong := different(compiled, eager)), (sizes, wrong)


@pytest.mark.parametrize(
    "row", {row.operator: row for row in reversed(support.ROWS)}.values(), ids=lambda row: row.name
)
def test_graph_capture_of_the_reference_with_dynamic_sizes(row: OperatorRow) -> None:
    _check_compiled(row, "reference", "aot_eager")


@params(reference=False, one_per_operator=True, interpreted=True)
def test_inductor_with_dynamic_sizes(row: OperatorRow, backend: str) -> None:
    """Graph capture and AOT autograd on the way."""
    _check_compiled(row, backend, "inductor")


@params(lambda row: row.order, reference=False, one_of_each=True)
def test_one_graph_serves_both_dynamic_sizes(row: OperatorRow, backend: str) -> None:
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    call = _compiled(row, backend, counting)
    for sizes in row.dynamic:
        evaluate(row, on(backend, row.case(sizes)), backend, order=0, call=call)
    assert len(graphs) == 1


@params(one_of_each=True)
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(row: OperatorRow, backend: str, low: torch.dtype) -> None:
    case = on(backend, row.case(row.sizes[0]))
    plain = evaluate(row, case, backend)
    for door in (contextlib.nullcontext(), dispatcher_door()):
        with torch.autocast(support.device(backend), low), door:
            cast = evaluate(row, case, backend)
        assert not (wrong := different(plain, cast)), wrong


class _Tagged(torch.Tensor):
    """A subclass that leaves everything to its default ``__torch_function__``."""


@params(reference=False, one_of_each=True)
def test_subclasses_modes_and_transforms_take_the_dispatcher_door(row: OperatorRow, backend: str) -> None:
    case = on(backend, row.case(row.sizes[0]))
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        row.call(case, backend)
    assert f"gmkernels.{row.operator}.default" in seen

    if row.order:
        tagged = row.call(case.map(lambda t: t.as_subclass(_Tagged)), "auto")
        assert all(type(t) is _Tagged for t in tagged)
        if backend == "cpu":
            expected = row.call(case, backend)
            assert all(torch.equal(a.as_subclass(torch.Tensor), b) for a, b in zip(tagged, expected, strict=True))


def test_transforms_are_noticed() -> None:
    found = []

    def look(x):
        found.append(doors.transforming())
        return x.sum()

    x = torch.ones(2, 2)
    look(x)
    torch.func.vmap(look)(x)
    torch.func.grad(look)(x)
    torch.func.jvp(look, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        look(x)
    look(x)
    assert found == [False, True, True, True, True, False]


@params(lambda row: row.order, reference=False, one_of_each=True)
def test_forward_mode_through_torch_ops_raises(row: OperatorRow, backend: str) -> None:
    case = on(backend, row.case(row.sizes[0]))
    (func, args), *_ = _record(row, case, backend)
    n = doors.OPERATORS[row.operator].tensors

    def direct(first):
        out = func(first, *args[1:])
        return out[0] if isinstance(out, tuple) else out

    first = args[0].detach().contiguous()
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(direct, (first,), (torch.ones_like(first),))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        direct(torch.autograd.forward_ad.make_dual(first, torch.ones_like(first)))
    assert n >= 1


@params(lambda row: row.order, reference=False, one_of_each=True)
def test_vmap_through_torch_ops_is_right_or_raises(row: OperatorRow, backend: str) -> None:
    case = on(backend, row.case(row.sizes[0]))
    (func, args), *_ = _record(row, case, backend)
    stack = torch.stack((args[0].detach(), args[0].detach() * 2))
    try:
        mapped = _flat(torch.func.vmap(lambda first: func(first, *args[1:]))(stack))
    except (RuntimeError, NotImplementedError):
        return
    for i in range(2):
        assert all(torch.equal(a[i], b) for a, b in zip(mapped, _flat(func(stack[i], *args[1:])), strict=True))


def _recorded(row: OperatorRow, case: Case, backend: str):
    """The outputs of a call, those with a gradient, and the inputs to which it goes."""
    tensors = {n: t.detach() for n, t in case.tensors.items()}
    inputs = [tensors[n].requires_grad_() for n in row.differentiable if row.order and n in tensors]
    out = [t for t in row.call(Case(tensors, case.constants), backend) if t is not None]
    return out, [t for t in out if t.requires_grad], inputs


def _negated_twice(t: torch.Tensor) -> torch.Tensor:
    """The same numbers over memory that holds their opposites, as the imaginary part of a conjugate has them."""
    if not t.is_floating_point():
        return t
    found = torch.complex(torch.zeros_like(t), -t).conj().imag
    assert found.is_neg() and torch.equal(found, t)
    return found


@params(reference=False, one_of_each=True, interpreted=True)
def test_numbers_whose_sign_waits_to_be_changed(row: OperatorRow, backend: str) -> None:
    results = []
    for view in (torch.clone, _negated_twice):
        case = on(backend, row.case(row.sizes[0])).map(view)
        out, live, inputs = _recorded(row, case, backend)
        grads = (
            torch.autograd.grad(live, inputs, [view(t.detach() + 1) for t in live], allow_unused=True) if live else ()
        )
        results.append([t for t in (*out, *grads) if t is not None])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


class _Subclass(torch.Tensor):
    pass


def _kinds() -> dict[str, torch.Tensor | None]:
    x = torch.ones(2, 3)
    found: dict[str, torch.Tensor | None] = {
        "plain": x,
        "wants": x.clone().requires_grad_(),
        "parameter": torch.nn.Parameter(x),
        "frozen": torch.nn.Parameter(x, requires_grad=False),
        "none": None,
        "opposite": _negated_twice(x),
        "subclass": x.as_subclass(_Subclass),
        "meta": x.to("meta"),
        "transposed": torch.ones(3, 2).mT,
        "three": torch.ones(2, 3, 1),
        "other shape": torch.ones(2, 4),
        "no dimension": torch.tensor(1.0),
        "sparse": x.to_sparse(),
        "fake": FakeTensorMode().from_tensor(x),
    }
    floats = (torch.float16, torch.bfloat16, torch.float64)
    others = (torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)
    return found | {str(dtype): x.to(dtype) for dtype in (*floats, *others)}


def test_the_core_sees_in_tensors_what_python_sees() -> None:
    """What the core is asked about the tensors of a call (csrc/door.h), against the same in Python, for all pairs."""
    core, kinds = native.door(), _kinds()
    for a, b in itertools.product(kinds.values(), repeat=2):
        assert core.look((a, b, "ignored"), 2) is doors._look((a, b), 2)
    assert core.look((kinds["wants"],), 0) is False
    assert core.look((kinds["wants"],), 2) is None
    strided = {name: t for name, t in kinds.items() if t is not None and type(t) in (torch.Tensor, torch.nn.Parameter)}
    for (n, a), (m, b) in itertools.product(strided.items(), repeat=2):
        expected = a.dtype is b.dtype and a.dtype in checks.FLOATING and a.shape == b.shape
        assert checks.alike(a, b) is (expected and not {"sparse", "meta"} & {n, m}), (n, m)
    for other in (kinds["subclass"], kinds["fake"], None, 3, "tensor"):
        assert not checks.alike(kinds["plain"], other) and not checks.alike(other, kinds["plain"])
    assert torch.func.vmap(lambda t: torch.tensor(checks.alike(t, t)))(torch.ones(2, 3)).tolist() == [False, False]


@params(lambda row: row.order, reference=False, one_of_each=True, interpreted=True)
def test_many_cotangents_at_once(row: OperatorRow, backend: str) -> None:
    case = on(backend, row.case(row.sizes[0]))
    _, live, inputs = _recorded(row, case, backend)

    def gradients(cotangents: list[torch.Tensor], **how: bool) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(live, inputs, cotangents, retain_graph=True, materialize_grads=True, **how)

    each = [[scale * torch.ones_like(t) for t in live] for scale in (1.0, -0.5)]
    together = gradients([torch.stack(pair) for pair in zip(*each, strict=True)], is_grads_batched=True)
    for i, cotangents in enumerate(each):
        for batched, alone in zip(together, gradients(cotangents), strict=True):
            assert torch.equal(batched[i], alone)


@params(lambda row: row.order, reference=False, one_of_each=True)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_records_the_operator(row: OperatorRow, backend: str) -> None:
    case = on(backend, row.case(row.sizes[0]))
    names = list(case.tensors)

    def run(*tensors: torch.Tensor):
        return tuple(row.call(Case(dict(zip(names, tensors, strict=True)), case.constants), backend))

    given = tuple(case.tensors.values())
    with torch.no_grad():
        traced = torch.jit.trace(run, given, check_trace=False)
        for a, b in zip(traced(*given), run(*given), strict=True):
            assert torch.equal(a, b)


@params(one_of_each=True, reference=False)
def test_deepcopy_and_data_parallel_style_calls(row: OperatorRow, backend: str) -> None:
    """Parameters go through the eager door like tensors do."""
    case = on(backend, row.case(row.sizes[0]))
    wrapped = Case(
        {n: torch.nn.Parameter(t, t.is_floating_point() and n in row.differentiable) for n, t in case.tensors.items()},
        copy.deepcopy(case.constants),
    )
    for a, b in zip(row.call(case, backend), row.call(wrapped, backend), strict=True):
        assert torch.equal(a, b)
