"""What ``import gmkernels`` and ``python -m gmkernels`` do in a process of their own."""

from __future__ import annotations

import re
import sys

import torch

import gmkernels
from gmkernels.core import doors

from .conftest import ROOT, run


def isolated(code: str, **env: str) -> str:
    return run(sys.executable, "-c", code, cwd=ROOT, env=env).stdout


def test_import_brings_no_compiler_and_no_model() -> None:
    # torch._dynamo alone, which a decorator of torch.compiler pulls in, would cost more than a second.
    code = """
import sys, torch
before = set(sys.modules)
import gmkernels
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)))
print(*sorted(name for name in sys.modules if name in ("torch._dynamo", "torch._inductor", "triton", "sympy")))
"""
    new, heavy = isolated(code).splitlines()
    assert set(new.split()) <= {"gmkernels", "torch", "numpy"}
    assert heavy.split() == []


def test_import_takes_little_beside_torch() -> None:
    code = """
import time, torch
start = time.process_time()
import gmkernels
print(time.process_time() - start)
"""
    assert min(float(isolated(code)) for _ in range(3)) < 0.5


def test_import_without_triton() -> None:
    code = """
import sys
sys.modules["triton"] = None
import torch, gmkernels as gmk
from gmkernels.core import backends
print(gmk.affine_coupling(torch.ones(1, 2), torch.zeros(1, 2), torch.ones(1, 2))[0].tolist())
print(backends.unavailable("triton"))
"""
    out = isolated(code, TRITON_INTERPRET="0")
    assert "[[2.0, 2.0]]" in out
    assert "Triton is not installed (pip install 'gmkernels[triton]')" in out


def test_the_report_names_versions_backends_and_every_operator() -> None:
    out = run(sys.executable, "-m", "gmkernels", cwd=ROOT).stdout
    for name, version in {"gmkernels": gmkernels.__version__, "torch": torch.__version__}.items():
        assert re.search(rf"^  {name} +{re.escape(version)}", out, re.MULTILINE)
    for name in ("reference", "cpu", "triton", "cuda"):
        assert re.search(rf"^  {name} +(runs|does not run: .+)$", out, re.MULTILINE)
    for name in doors.OPERATORS:
        if not name.endswith("_backward"):
            assert re.search(rf"^  {name} +reference", out, re.MULTILINE)
    assert re.search(r"^  threads +\d+ \(pool: \w+\)$", out, re.MULTILINE)


def test_an_unknown_backend_in_the_environment_is_one_clear_error() -> None:
    done = run(sys.executable, "-c", "import gmkernels", cwd=ROOT, env={"GMKERNELS_BACKEND": "fast"}, ok=False)
    assert done.returncode != 0
    assert "GMKERNELS_BACKEND: unknown backend 'fast'; expected 'auto', 'reference'" in done.stdout


def test_an_unknown_instruction_set_in_the_environment_is_one_clear_error() -> None:
    done = run(sys.executable, "-c", "import gmkernels", cwd=ROOT, env={"GMKERNELS_ISA": "avx3"}, ok=False)
    assert done.returncode != 0
    assert "GMKERNELS_ISA: 'avx3' does not run here; expected one of 'baseline'" in done.stdout
