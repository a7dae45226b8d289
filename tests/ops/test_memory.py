"""No stray writes, no stray reads, nothing left unset, and offsets beyond 2**31 elements."""

from __future__ import annotations

import os

import pytest
import torch

import gmkernels
from gmkernels.testing import OperatorRow, evaluate, redzones, relayout
from gmkernels.testing.evaluate import different

from . import support
from .support import on, params


@params(reference=False, dtypes=(torch.float32, torch.float64, torch.float16, torch.bfloat16), interpreted=True)
def test_guards_stay_whole_and_guarded_results_are_the_same(row: OperatorRow, backend: str, dtype: torch.dtype) -> None:
    """Outputs and inputs between guards of NaN: a stray write is caught, a stray read poisons the result."""
    for seed, sizes in enumerate(support.sizes(row, backend)):
        case = on(backend, row.case(sizes, dtype, seed))
        expected = support.kernel_results(row, backend, dtype, sizes, seed)
        for layout in ("contiguous", "half") if backend == "cpu" else ("half",):
            arranged = case.map(lambda t: relayout(t, layout))  # noqa: B023
            with redzones() as zones:
                guarded = support.cpu(evaluate(row, zones.case(arranged), backend))
            assert not (wrong := different(guarded, expected)), (sizes, layout, wrong)
            for name, t in guarded.items():
                assert not t.isnan().any(), f"{name} of {sizes} was not written everywhere"


@params(lambda row: not row.exact, reference=False, dtypes=(torch.float32,))
def test_rows_more_than_2_31_elements_apart(row: OperatorRow, backend: str, dtype: torch.dtype) -> None:
    """Tensors of two rows with a stride beyond 32 bits; the memory between them is reserved, not used."""
    if backend == "triton" and support.INTERPRETER:
        return  # the interpreter computes addresses with Python's integers
    sizes = next(s for s in row.sizes if min(s) > 0)
    sizes = (2, *sizes[1:])
    case = on(backend, row.case(sizes, dtype))
    far = case.map(lambda t: relayout(t, "far"))
    assert not different(evaluate(row, far, backend), evaluate(row, case, backend))


@pytest.mark.parametrize(
    "backend", [b for b in ("reference", "cpu", "cuda") if not gmkernels.core.backends.unavailable(b)]
)
@pytest.mark.parametrize("first", [2**31 - 2, 2**32 - 2, 2**34 - 3, 2**40 + 1])
def test_random_counters_are_64_bits_wide(backend: str, first: int) -> None:
    key = torch.tensor([5, 2**40 + 3], device=support.device(backend))
    words = gmkernels.random.bits(key, (8,), first=first, backend=backend).cpu()
    expected = gmkernels.random.bits(key.cpu(), (8,), first=first, backend="reference")
    assert torch.equal(words, expected)
    wrapped = gmkernels.random.bits(key.cpu(), (8,), first=first % 2**31, backend="reference")
    assert first < 2**31 or not torch.equal(words, wrapped)


def _free_gigabytes() -> float:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


@pytest.mark.slow
@params(lambda row: row.name == "affine_coupling[exp]", reference=False)
def test_an_output_of_more_than_2_31_elements(row: OperatorRow, backend: str) -> None:
    """4.3 GB of float16, from inputs of stride 0. Its last row must be its first."""
    if backend != "cpu":
        return
    if _free_gigabytes() < 6:
        pytest.skip(f"needs 6 GB of free memory, found {_free_gigabytes():.1f}")
    features = 2**15
    one = torch.linspace(-1, 1, features).half()[None]
    batch = 2**31 // features + 1
    x, shift = one.expand(batch, features), (one * 0.5).expand(batch, features)
    # Through torch.ops: poison would touch the whole output once more.
    torch.set_num_threads(2)
    y, logdet, _ = torch.ops.gmkernels.affine_coupling(x, x, shift, None, "exp", float("inf"), False, False, backend)
    expected, logdet_one = gmkernels.affine_coupling(one, one, one * 0.5, backend=backend)
    assert y.numel() > 2**31
    for i in (0, 1, batch // 2, batch - 2, batch - 1):
        assert torch.equal(y[i], expected[0])
    assert (logdet == logdet_one).all()
