"""The elementary functions: their error, and the same bits from every instruction set, CUDA's formulas and Triton.

All 2^32 arguments are the business of ``tools/check_vmath.py``; here every 1021st, and both sides of the places where
a formula changes.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from tools import check_vmath

from . import support

needs_compiler = pytest.mark.skipif(check_vmath.compiler() is None, reason="no C++ compiler to build tests/cpp with")
needs_triton = pytest.mark.skipif(
    not (support.INTERPRETER or torch.cuda.is_available()), reason="Triton runs in tests/ops/test_triton.py"
)

FUNCTIONS = check_vmath.FUNCTIONS
EDGES = (
    0.0, 2.0**-149, 2.0**-126, 2.0**-24, 0.125, 0.25, 0.375, 0.5, 0.75, 0.9, 1.0, 1.5, 2.0, 10.0, 20.0, 87.34, 88.72,
    89.0, 103.97, 104.0, 2.0**24, 2.0**30, 2.0**127, 3.4028235e38, float("inf"), float("nan"),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vmath")


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict]:
    return check_vmath.check(check_vmath.SAMPLE, folder)


@needs_compiler
def test_the_error_is_within_the_limits_and_every_instruction_set_agrees(rows: list[dict]) -> None:
    assert {(row["function"], row["isa"]) for row in rows} == {(f, i) for f in FUNCTIONS for i in check_vmath.usable()}
    assert min(row["count"] for row in rows) > 1_000_000
    assert len({row["hash"] for row in rows}) == len(FUNCTIONS)
    assert not check_vmath.faults(rows)


@needs_compiler
def test_the_recorded_run_over_all_arguments_is_of_these_formulas(rows: list[dict]) -> None:
    recorded = [json.loads(line) for line in check_vmath.RESULTS.read_text().splitlines()]
    assert not check_vmath.faults(recorded)
    samples = {row["function"]: row["hash"] for row in rows}
    assert {row["function"]: row["sample"] for row in recorded} == samples, "run tools/check_vmath.py again"
    exhaustive = {row["function"]: row["count"] for row in recorded if row["stride"] == 1}
    # Sine and cosine are measured over one turn: the floats from 0 to 1, and -0.
    assert exhaustive == {name: 0x3F800002 if name.endswith("2pi") else 2**32 for name in FUNCTIONS}


def _arguments() -> np.ndarray:
    words = np.arange(0, 2**32, 130_003, dtype=np.uint64).astype(np.uint32)
    edges = np.array(EDGES, np.float32).view(np.uint32)[:, None] + np.arange(-2, 3, dtype=np.int64)
    edges = edges.astype(np.uint32).reshape(-1)
    return np.concatenate([words, edges, edges ^ np.uint32(0x80000000)]).view(np.float32)


@needs_compiler
@needs_triton
@pytest.mark.triton
@pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")
def test_triton_gives_the_bits_of_the_cpp_core(folder: Path) -> None:
    from gmkernels.core.triton_launch import ceil_div, launch

    from .triton_kernels import functions

    x = _arguments()
    device = support.device("triton")
    out = torch.empty(len(FUNCTIONS), len(x), device=device)
    launch(functions, ceil_div(len(x), 2048), torch.from_numpy(x.copy()).to(device), out, len(x), warps=4, BLOCK=2048)

    path = folder / "arguments.bin"
    x.tofile(path)
    program = check_vmath.build("vmath_ulp.cpp", check_vmath.usable()[0], folder)
    raw = subprocess.run([program, "raw", path], check=True, capture_output=True).stdout
    expected = np.frombuffer(raw, np.float32).reshape(len(FUNCTIONS), len(x))
    for name, ours, theirs in zip(FUNCTIONS, out.cpu().numpy(), expected, strict=True):
        same = (ours.view(np.uint32) == theirs.view(np.uint32)) | (np.isnan(ours) & np.isnan(theirs))
        if name.endswith("2pi"):
            same |= ~(np.abs(x) < 2**20)
        assert same.all(), f"{name}({x[~same][0]!r}): {ours[~same][0]!r} in Triton, {theirs[~same][0]!r} in C++"


@needs_triton
@pytest.mark.triton
@pytest.mark.parametrize("lanes", [1, 2, 16, 128])
def test_fold_lanes_adds_halves_onto_each_other(lanes: int) -> None:
    from gmkernels.core.triton_launch import launch

    from .triton_kernels import folds

    x = torch.randn(4, lanes)
    device = support.device("triton")
    out = torch.empty(5, device=device)
    launch(folds, 1, x.to(device), out, warps=1, ROWS=4, LANES=lanes)
    while x.shape[1] > 1:
        x = x[:, : x.shape[1] // 2] + x[:, x.shape[1] // 2 :]
    assert torch.equal(out.cpu(), torch.cat([x[:, 0], x[:1, 0]]))
