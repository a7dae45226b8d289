"""``python -m tests.ops.ledger --write [--only WORD]``: record the error of every kernel, which may not grow afterwards.

The ledger holds the kernels' own errors against float64, in halves of an ULP: the kernels give the same bits on every
machine, so a recorded error is no property of the machine that recorded it. (The ratio to PyTorch, which does differ from
one machine to the next, stands beside it for the reader.) Without ``--write`` the command prints what it would record.
Under ``TRITON_INTERPRET=1`` it records Triton, otherwise the C++ core; each leaves the other's entries alone.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from pathlib import Path

import torch

from gmkernels.core import doors
from gmkernels.testing import ErrorBudget, OperatorRow, evaluate

from . import support

PATH = Path(__file__).with_name("ledger.json")
GROWTH, SLACK = 1.1, 0.01
Ledger = dict[str, dict[str, dict[str, float]]]


def measure(row: OperatorRow, backend: str, dtype: torch.dtype) -> ErrorBudget:
    """The pooled errors of a row, over three draws of all of its sizes."""
    budget = ErrorBudget()
    for seed, sizes in enumerate(support.sizes(row, backend) * (3 if backend == "cpu" else 1)):
        case = row.case(sizes, dtype, seed)
        kernel = support.kernel_results(row, backend, dtype, sizes, seed)
        budget.add(kernel, evaluate(row, case, "reference"), evaluate(row, case.to(torch.float64), "reference"))
    return budget


def entry(row: OperatorRow, backend: str, dtype: torch.dtype) -> str:
    where = "triton interpreter" if backend == "triton" and support.INTERPRETER else backend
    return f"{row.name} / {where} / {str(dtype).removeprefix('torch.')}"


def read() -> Ledger:
    return json.loads(PATH.read_text()) if PATH.exists() else {}


def growth(row: OperatorRow, backend: str, dtype: torch.dtype, budget: ErrorBudget) -> list[str]:
    """One line for every mode whose error is over its entry; a missing entry is a line, too."""
    if support.device(backend) == "cuda":
        return []  # recorded by the GPU runs, in benchmarks/results
    known = read().get(entry(row, backend, dtype))
    if known is None:
        return [f"{entry(row, backend, dtype)} is not in {PATH.name}: run python -m tests.ops.ledger --write"]
    if backend == "triton" and _multiplies_matrices(row):
        return []  # the interpreter does so with NumPy, whose bits are the machine's; the budget holds
    return [
        f"{entry(row, backend, dtype)}, {mode}: error {budget.error(mode):.4g} half-ULPs was {known[mode]['error']:.4g}"
        for mode in budget.modes()
        if not budget.error(mode) <= GROWTH * known[mode]["error"] + SLACK
    ]


def _multiplies_matrices(row: OperatorRow) -> bool:
    """Whether Triton's kernels of the operator do so, unless they are held to the bits of the C++ core."""
    launcher = doors.OPERATORS[doors.ALIASES.get(row.operator, row.operator)].launcher("triton")
    return not row.same_bits and "tl.dot(" in inspect.getsource(sys.modules[launcher.__module__])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"replace the entries in {PATH.name}")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    here = ["triton"] if support.INTERPRETER else ["cpu"]
    table: Ledger = {}
    for row in (row for row in support.ROWS if options.only in row.name):
        for backend in set(support.available(row)) & set(here):
            for dtype in row.dtypes:
                if dtype == torch.float64 or not support.runs(backend, dtype):
                    continue
                budget = measure(row, backend, dtype)
                table[entry(row, backend, dtype)] = {
                    mode: {"error": float(f"{budget.error(mode):.4g}"), "ratio": float(f"{budget.ratio(mode):.3g}")}
                    for mode in budget.modes()
                }
                for line in budget.excess():
                    print(f"OVER BUDGET {entry(row, backend, dtype)}: {line}")
    if not table:
        raise SystemExit(f"nothing to record: backend {here[0]!r} is not available")
    if not options.write:
        print(json.dumps(table, indent=1))
        return
    ours = "triton interpreter" if support.INTERPRETER else "cpu"
    old = {name: name.split(" / ")[:2] for name in read()}
    kept = {name: modes for name, modes in read().items() if old[name][1] != ours or options.only not in old[name][0]}
    PATH.write_text(json.dumps(dict(sorted((kept | table).items())), indent=1) + "\n")
    print(f"{len(table)} entries of backend {here[0]!r} written to {PATH}")


if __name__ == "__main__":
    main()
