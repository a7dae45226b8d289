"""Scratch copies of the source tree, the commands that build them, and Python processes that see only the result."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path, ok: bool = True, input: str = ""):
    """Run a command; its output is the failure message."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GMKERNELS_", "TRITON_", "PYTHONPATH", "MAKE"))}
    done = subprocess.run(
        [str(part) for part in command],
        env=clean | (env or {}),
        cwd=cwd,
        input=input,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )
    if ok:
        assert done.returncode == 0, done.stdout
    return done


def pip(*arguments: str | Path, **options) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, **options)


def copy_source(to: Path) -> Path:
    """What a checkout holds, and nothing that was built in it."""
    skip = shutil.ignore_patterns("__pycache__", "*.so", "*FAILED.txt", "*.egg-info")
    for name in ("gmkernels", "python", "csrc"):
        shutil.copytree(ROOT / name, to / name, ignore=skip)
    for name in ("pyproject.toml", "setup.py", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, to / name)
    for name in ("tests", "benchmarks"):  # present, as in a checkout, so that a wheel could pick them up by mistake
        (to / name).mkdir()
        (to / name / "__init__.py").touch()
    return to


# A core that compiles in seconds, for tests of the build itself: the real binding's name and three of its functions.
TINY = {
    "binding.cpp": """
        #include <pybind11/pybind11.h>
        namespace gmk { namespace baseline { int answer(); } }
        PYBIND11_MODULE(_cpu, m) {
          m.def("answer", [] { return gmk::baseline::answer(); });
          m.def("isa", [] { return "baseline"; });
          m.def("isas", [] { return pybind11::make_tuple("baseline"); });
          m.def("pool", [] { return "own"; });
        }
    """,
    "family/cpu.cpp": "namespace gmk { namespace GMK_ISA { int answer() { return 42; } } }\n",
}


def shrink(tree: Path) -> Path:
    """Replace csrc by a core that compiles in seconds."""
    shutil.rmtree(tree / "csrc")
    for name, text in TINY.items():
        path = tree / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tree


def unpack(wheel: Path, to: Path) -> Path:
    """Install a wheel into a folder of its own."""
    pip("install", "--quiet", "--no-deps", "--no-index", "--target", to, wheel, cwd=to.parent)
    return to


def python(site: Path, code: str, **env: str) -> str:
    """Run code that sees the package in ``site``, and torch and the rest from the environment of the tests."""
    prelude = f"import gmkernels, pathlib; assert pathlib.Path(gmkernels.__file__).is_relative_to({str(site)!r})\n"
    return run(sys.executable, "-", env={"PYTHONPATH": str(site), **env}, cwd=site, input=prelude + code).stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tree = tmp_path / "source"
    tree.mkdir()
    return copy_source(tree)
