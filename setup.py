"""Builds the compiled cores with CMake. Everything else about the package is in pyproject.toml.

A build that fails leaves a working pure-Python package and its reason (``gmkernels/_lib/BUILD_FAILED.txt``), because
``Extension(optional=True)`` does not catch a failing ``cmake``. Environment variables:

* ``GMKERNELS_REQUIRE_NATIVE=1`` makes a failed build an error, for those who count on the compiled cores.
* ``GMKERNELS_CUDA=0`` leaves out the CUDA core although ``nvcc`` is there.
* ``GMKERNELS_JOBS=n`` compiles n files at a time (default: one per core).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CPU_CORE = "_cpu" + sysconfig.get_config_var("EXT_SUFFIX")
CUDA_CORE = "libgmkernels_cuda.so"
CPU_NOTE, CUDA_NOTE = "BUILD_FAILED.txt", "CUDA_BUILD_FAILED.txt"


# What a first line can say better than the last lines of cmake's output.
CAUSES = {
    "CMAKE_CXX_COMPILER": "no C++ compiler was found: install g++ or clang++, or set CXX",
    "Development.Module": "the C headers of this Python were not found: install python3-dev (Debian) or python3-devel",
}


class BuildFailed(Exception):
    """A step of the native build failed; the text says which and why."""


def find(program: str) -> str | None:
    """A program of this Python's environment, even one that is not activated, or else of the PATH."""
    return shutil.which(program, path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))


def call(step: str, command: Sequence[str | Path]) -> None:
    """Run one command of the build; its output is shown, and the end of it goes into the reason."""
    command = [str(part) for part in command]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        raise BuildFailed(f"{step} failed: {error}") from None
    print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        tail = "\n".join(done.stdout.splitlines()[-25:])
        cause = next((text for word, text in CAUSES.items() if step == "cmake" and word in tail), None)
        raise BuildFailed(f"{cause or f'{step} failed with exit status {done.returncode}'}\n{tail}")


class Build(build):
    """Builds a wheel in a fresh folder, so that no file of an earlier build, since deleted, gets into it."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.scratch = tempfile.TemporaryDirectory(prefix="gmkernels-build-")
        self.build_base = self.scratch.name


class BuildCores(build_ext):
    """The extension modules of this distribution: what CMake makes."""

    def run(self) -> None:
        in_source = self.inplace or self.editable_mode
        target = ROOT / "gmkernels" / "_lib" if in_source else Path(self.build_lib).resolve() / "gmkernels" / "_lib"
        target.mkdir(parents=True, exist_ok=True)
        for name in (CPU_CORE, CUDA_CORE, CPU_NOTE, CUDA_NOTE):
            (target / name).unlink(missing_ok=True)
        if in_source:
            self.build_cores(ROOT / "build" / "cmake", target)
        else:
            with tempfile.TemporaryDirectory(prefix="gmkernels-cmake-") as scratch:
                self.build_cores(Path(scratch), target)

    def build_cores(self, tree: Path, target: Path) -> None:
        try:
            cmake = self.configure(tree)
            self.compile(cmake, tree, "_cpu", CPU_CORE, target)
        except BuildFailed as reason:
            self.give_up(target / CPU_NOTE, "the C++ core was not built: gmkernels runs on plain PyTorch", reason)
            return
        if os.environ.get("GMKERNELS_CUDA") == "0":
            (target / CUDA_NOTE).write_text("GMKERNELS_CUDA=0 was set when gmkernels was installed\n")
        elif "GMK_CUDA_TARGET:INTERNAL=ON" in (tree / "CMakeCache.txt").read_text():
            try:
                self.compile(cmake, tree, "gmkernels_cuda", CUDA_CORE, target)
            except BuildFailed as reason:
                self.give_up(target / CUDA_NOTE, "the CUDA core was not built", reason)

    def configure(self, tree: Path) -> str:
        try:
            import pybind11
        except ImportError as error:
            raise BuildFailed(f"pybind11 is needed to build the C++ core: {error}") from None
        cmake, ninja = find("cmake"), find("ninja")
        if cmake is None:
            raise BuildFailed("cmake was not found: install it with pip or the system's packages")
        # A kept tree belongs to the tools it was made with: the paths of a vanished isolated environment stay in its
        # cache and would fail every later build.
        tools = f"{sys.executable}\n{cmake}\n{ninja}\n{pybind11.get_cmake_dir()}\n{os.environ.get('CXX')}\n{ROOT}\n"
        marker = tree / "made-with.txt"
        if not marker.exists() or marker.read_text() != tools:
            shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir(parents=True, exist_ok=True)
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "GMK_CUDA": "OFF" if os.environ.get("GMKERNELS_CUDA") == "0" else "ON",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        call("cmake", [cmake, "-S", ROOT, "-B", tree, *generator, *(f"-D{k}={v}" for k, v in options.items())])
        marker.write_text(tools)
        return cmake

    def compile(self, cmake: str, tree: Path, name: str, product: str, target: Path) -> None:
        jobs = os.environ.get("GMKERNELS_JOBS") or str(os.cpu_count() or 1)
        call(f"compiling {name}", [cmake, "--build", tree, "--target", name, "--parallel", jobs])
        # Written beside and renamed: a process that runs from the source tree keeps the file it has mapped.
        shutil.copyfile(tree / "lib" / product, target / f"{product}.tmp")
        (target / f"{product}.tmp").replace(target / product)

    def give_up(self, note: Path, what: str, reason: BuildFailed) -> None:
        if os.environ.get("GMKERNELS_REQUIRE_NATIVE") == "1":
            raise SystemExit(f"gmkernels: {what}, and GMKERNELS_REQUIRE_NATIVE=1 asks for it.\n{reason}")
        note.write_text(f"{reason}\n")
        line = "!" * 100
        print(f"{line}\n{what}\n{reason}\n{line}", file=sys.stderr, flush=True)

    def get_outputs(self) -> list[str]:
        """What there is to install; a fallback build has no module, so the list is read off the folder."""
        folder = Path(self.build_lib) / "gmkernels" / "_lib"
        return [str(folder / n) for n in (CPU_CORE, CUDA_CORE, CPU_NOTE, CUDA_NOTE) if (folder / n).exists()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


setup(
    ext_modules=[Extension("gmkernels._lib._cpu", sources=[])],
    cmdclass={"build": Build, "build_ext": BuildCores},
)
