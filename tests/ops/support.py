"""Which rows run on which backends, and the comparisons that several test files share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from gmkernels.core import backends
from gmkernels.testing import Case, OperatorRow, evaluate, rows
from gmkernels.testing.budget import error
from gmkernels.testing.evaluate import Results, mode_of

ROWS = list(rows().values())
INTERPRETER = backends.interpreting()

# Largest error in float64, in halves of an ULP at the median magnitude. Both sides round in float64, so this measures
# a kernel and the reference together: a factor of a few thousand would still be 12 digits.
TIGHT = {"forward": 200.0, "backward": 500.0, "double": 1000.0}


def available(row: OperatorRow) -> list[str]:
    return [name for name in row.backends if backends.unavailable(name) is None]


def device(backend: str) -> str:
    on_gpu = backend == "cuda" or backend == "triton" and not INTERPRETER
    return "cuda" if on_gpu else "cpu"


def runs(backend: str, dtype: torch.dtype) -> bool:
    """Whether a backend takes a dtype here. Triton has no float64, and its interpreter computes bfloat16 wrongly."""
    if backend != "triton":
        return True
    return dtype in (torch.float32, torch.float16) or dtype == torch.bfloat16 and not INTERPRETER


def params(
    keep: Callable[[OperatorRow], object] = lambda row: True,
    dtypes: Iterable[torch.dtype] | None = None,
    reference: bool = True,
    one_of_each: bool = False,
    one_per_operator: bool = False,
    interpreted: bool = False,
):
    """Parametrise over (row, backend), or (row, backend, dtype) if ``dtypes`` are given.

    ``one_of_each`` keeps one row of those that call their operator with the same kinds of tensors, and
    ``one_per_operator`` one row of an operator: for tests in which the values do not matter, and that take seconds.
    Triton's interpreter takes a hundred times longer than anything else, so it runs only tests that ask for it with
    ``interpreted``: those that see a kernel's own mistakes. On a GPU Triton runs them all.
    """
    found, seen = [], set()
    for row in ROWS:
        kind = signature(row) if one_of_each else row.operator if one_per_operator else row.name
        if not keep(row) or kind in seen:
            continue
        seen.add(kind)
        for backend in available(row):
            if backend == "reference" and not reference or backend == "triton" and INTERPRETER and not interpreted:
                continue
            marks = [pytest.mark.triton] if backend == "triton" else []
            if dtypes is None:
                found.append(pytest.param(row, backend, marks=marks, id=f"{row.name}-{backend}"))
                continue
            for dtype in dtypes:
                if dtype in row.dtypes and runs(backend, dtype):
                    name = f"{row.name}-{backend}-{str(dtype).removeprefix('torch.')}"
                    found.append(pytest.param(row, backend, dtype, marks=marks, id=name))
    return pytest.mark.parametrize("row,backend" if dtypes is None else "row,backend,dtype", found)


def signature(row: OperatorRow) -> tuple[object, ...]:
    """What distinguishes the calls of two rows other than values."""
    case = row.case(row.sizes[0], row.dtypes[0])
    shapes = sorted((name, t.dtype == row.dtypes[0], t.dim()) for name, t in case.tensors.items())
    return (row.operator, *shapes)


def sizes(row: OperatorRow, backend: str) -> tuple[tuple[int, ...], ...]:
    """The sizes of a row; the interpreter is slow and gets the smaller half of them."""
    if not INTERPRETER or backend != "triton":
        return row.sizes
    return tuple(s for s in row.sizes if math.prod(s) <= row.limit // 7)


@functools.lru_cache(maxsize=2048 if INTERPRETER else 8)
def kernel_results(row: OperatorRow, backend: str, dtype: torch.dtype, sizes: tuple[int, ...], seed: int) -> Results:
    """What a backend computes for a case, on the CPU; kept for the next test, for the interpreter's sake."""
    return cpu(evaluate(row, on(backend, row.case(sizes, dtype, seed)), backend))


def wrong(row: OperatorRow, case: Case, result: Results, **options: object) -> list[str]:
    """The float64 results that are not the reference's to about twelve digits.

    A long stack of flows may be ill-conditioned: it then amplifies the last bit of its input. What scaling each input
    by 1 + 64 eps does to the reference is allowed on top. (Scaling, because it keeps equal numbers equal.)
    """
    exact = evaluate(row, case, "reference", **options)
    assert set(result) == set(exact)
    over = {n: e for n in result if not (e := error(result[n], exact[n])) <= TIGHT[mode_of(n)]}
    if not over:
        return []
    eps = 64 * torch.finfo(torch.float64).eps
    moved = {
        name: t * (1 + eps * (-1) ** i) if t.is_floating_point() else t
        for i, (name, t) in enumerate(case.tensors.items())
    }
    shaken = evaluate(row, Case(moved, case.constants), "reference", **options)
    limits = {name: TIGHT[mode_of(name)] + error(shaken[name], exact[name]) for name in over}
    return [f"{name}: error {e:.3g} > {limits[name]:.3g}" for name, e in over.items() if not e <= limits[name]]


def on(backend: str, case: Case) -> Case:
    return case.to(device(backend))


def cpu(results: Results) -> dict[str, Tensor]:
    return {name: t.cpu() for name, t in results.items()}
