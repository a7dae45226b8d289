"""Every Triton kernel compiles without a GPU, spills nothing and fits into shared memory.

The few kernels below are compiled now; ``python tools/triton_resources.py --json
benchmarks/results/triton_resources.jsonl`` compiles all tiles, maps and dtypes for sm_80 and sm_90, and its record has
to be complete.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REQUIRED

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "benchmarks/results/triton_resources.jsonl"
SHARED = {80: 163 * 1024, 90: 227 * 1024}


@pytest.fixture(scope="module", autouse=True)
def _triton() -> None:
    if importlib.util.find_spec("triton") is None:
        assert "triton" not in REQUIRED
        pytest.skip("Triton is not installed")


def kernels() -> set[str]:
    """The names of all kernels in the package, from its source."""
    sources = [path.read_text() for path in (ROOT / "gmkernels/ops").glob("*/*triton.py")]
    return {name for text in sources for name in re.findall(r"@triton\.jit\ndef (\w+_kernel)\(", text)}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    # A process of its own: this one may have the interpreter.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "tools/triton_resources.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def check(rows: list[dict[str, int]]) -> None:
    assert {row["kernel"] for row in rows} == kernels()
    for row in rows:
        assert row["spilled"] == 0, row
        assert row["shared"] <= SHARED[row["arch"]], row
        assert 0 < row["registers"] <= 255, row


@pytest.mark.slow
def test_kernels_compile_without_spilling(tmp_path: Path) -> None:
    done = run("--quick", "--jobs", "1", "--json", str(tmp_path / "rows.jsonl"))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    check([json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()])


def test_the_record_is_complete() -> None:
    """No case may be missing from it, so that a new kernel or tile has been through the tool for both architectures."""
    rows = [json.loads(line) for line in RECORD.read_text().splitlines()]
    check(rows)
    done = run("--list")
    assert done.returncode == 0, done.stderr
    assert {f"{row['family']} {row['case']} sm_{row['arch']}" for row in rows} == set(done.stdout.splitlines())


def test_a_spilling_kernel_is_reported() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import triton_resources
    finally:
        sys.path.remove(str(ROOT / "tools"))
    row = {"kernel": "k", "case": "c", "arch": 80, "registers": 255, "spilled": 0, "shared": 163 * 1024}
    assert not triton_resources.faults([row])
    assert "spills 8 bytes" in triton_resources.faults([row | {"spilled": 8}])[0]
    assert "shared memory" in triton_resources.faults([row | {"shared": 163 * 1024 + 1}])[0]
    assert not triton_resources.faults([row | {"shared": 227 * 1024, "arch": 90}])
