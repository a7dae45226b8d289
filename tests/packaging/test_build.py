"""The build when something is missing, stale or in place. On a core that compiles in seconds."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import zipfile
from pathlib import Path

import pybind11
import pytest

from .conftest import pip, python, run, shrink, unpack

pytestmark = pytest.mark.packaging
NO_COMPILER = {"CXX": "/nonexistent/c++", "GMKERNELS_CUDA": "0"}


def wheel(source: Path, to: Path, ok: bool = True, **env: str):
    """A wheel, built with the tools at hand. Returns pip's process and the wheel's path."""
    done = pip("wheel", "-v", "--no-deps", "--no-build-isolation", "-w", to, source, cwd=to.parent, env=env, ok=ok)
    return done, next(to.glob("*.whl"), None)


def test_without_a_compiler_the_package_installs_runs_and_says_why(source: Path, tmp_path: Path) -> None:
    done, built = wheel(source, tmp_path / "out", **NO_COMPILER)
    assert "no C++ compiler was found" in done.stdout
    site = unpack(built, tmp_path / "site")
    code = """
import torch
import gmkernels as gmk
m = torch.randn(4, 2, 3)
assert gmk.backend_for("minibatch_discrimination", m) == "reference"
print(gmk.minibatch_discrimination(m).shape)
try:
    gmk.minibatch_discrimination(m, backend="cpu")
except gmk.BackendError as error:
    print(error)
"""
    out = python(site, code)
    assert "torch.Size([4, 2])" in out
    assert "the C++ core is not built: no C++ compiler was found" in out
    report = run(sys.executable, "-m", "gmkernels", env={"PYTHONPATH": str(site)}, cwd=site).stdout
    assert "no C++ compiler was found: install g++ or clang++, or set CXX" in report


def test_a_core_that_is_asked_for_and_fails_is_an_error(source: Path, tmp_path: Path) -> None:
    done, built = wheel(source, tmp_path / "out", ok=False, GMKERNELS_REQUIRE_NATIVE="1", **NO_COMPILER)
    assert done.returncode != 0
    assert built is None
    assert "GMKERNELS_REQUIRE_NATIVE=1 asks for it" in done.stdout


def test_a_core_that_does_not_compile_leaves_the_compilers_words(source: Path, tmp_path: Path) -> None:
    shrink(source)
    (source / "csrc" / "family" / "cpu.cpp").write_text("this is not C++\n")
    _, built = wheel(source, tmp_path / "out", GMKERNELS_CUDA="0")
    files = zipfile.ZipFile(built)
    assert not [name for name in files.namelist() if name.endswith(".so")]
    note = files.read("gmkernels/_lib/BUILD_FAILED.txt").decode()
    assert note.startswith("compiling _cpu failed")
    assert "error" in note


def test_an_editable_install_builds_in_place_and_survives_a_stale_tree(source: Path, tmp_path: Path) -> None:
    shrink(source)
    stale = source / "build" / "cmake"
    stale.mkdir(parents=True)
    (stale / "CMakeCache.txt").write_text(
        "CMAKE_GENERATOR:INTERNAL=Unix Makefiles\nCMAKE_MAKE_PROGRAM:FILEPATH=/gone/make\n"
    )
    (stale / "made-with.txt").write_text("/tmp/a-build-environment-that-is-gone\n")
    (source / "gmkernels" / "_lib" / "BUILD_FAILED.txt").write_text("an old failure\n")

    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    interpreter = environment / "bin" / "python"
    site = Path(
        run(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).stdout.strip()
    )
    (site / "of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def install() -> None:
        options = ("--no-deps", "--no-build-isolation", "--quiet", "--editable")
        run(sys.executable, "-m", "pip", "--python", interpreter, "install", *options, source, cwd=tmp_path,
            env={"GMKERNELS_REQUIRE_NATIVE": "1", "GMKERNELS_CUDA": "0"})  # fmt: skip

    def answer() -> list[str]:
        code = "import gmkernels, genmodels\nfrom gmkernels.core import native\n"
        code += "print(native.cpu().answer(), gmkernels.__file__, genmodels.__file__)"
        return run(interpreter, "-c", code, cwd=tmp_path).stdout.split()

    install()
    value, *files = answer()
    assert value == "42"
    assert all(Path(file).is_relative_to(source) for file in files)
    assert not (source / "gmkernels" / "_lib" / "BUILD_FAILED.txt").exists()

    (source / "csrc" / "family" / "cpu.cpp").write_text(
        "namespace gmk { namespace GMK_ISA { int answer() { return 43; } } }\n"
    )
    install()
    assert answer()[0] == "43"


def test_plain_code_is_linked_before_wide_code(source: Path, tmp_path: Path) -> None:
    # An inline function of several objects is taken from the first; were that AVX-512, an older processor would crash.
    shrink(source)
    options = (f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}", "-DGMK_CUDA=OFF")
    cmake = shutil.which("cmake", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))
    run(cmake, "-G", "Unix Makefiles", "-S", source, "-B", tmp_path / "b", *options, cwd=tmp_path)
    link = (tmp_path / "b" / "CMakeFiles" / "_cpu.dir" / "link.txt").read_text()
    order = [link.index(part) for part in ("gmk_common", "gmk_baseline", "gmk_avx2", "gmk_avx512") if part in link]
    assert len(order) >= 2
    assert order == sorted(order)
