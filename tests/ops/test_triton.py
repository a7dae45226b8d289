"""The Triton tests of the whole suite, in a process of their own: Triton is interpreted or compiled, never both."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import REQUIRED

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_suite_passes_in_the_interpreter() -> None:
    """``TRITON_INTERPRET=1 pytest tests/ops -m triton``, as a part of every run, so that nothing can skip it."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return  # this is that process
    if importlib.util.find_spec("triton") is None:
        assert "triton" not in REQUIRED
        pytest.skip("Triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("Triton's tests run on the GPU, in this process")
    required = ",".join(sorted({*REQUIRED, "triton"}))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "GMKERNELS_REQUIRE": required}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    command = [sys.executable, "-m", "pytest", "tests/ops", "-m", "triton", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
    tail = "\n".join(done.stdout.splitlines()[-60:])
    assert done.returncode == 0, tail + done.stderr[-2000:]
    passed = [word for word in tail.splitlines()[-1].split() if word.isdigit()]
    assert int(passed[0]) > 100, tail
