"""``pip install .`` with build isolation, from the sources as they are."""

from __future__ import annotations

import ctypes
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from .conftest import copy_source, pip, python, run, unpack

pytestmark = pytest.mark.packaging


class Built:
    """The wheel, the log of its build, and the folder it was installed into."""

    def __init__(self, folder: Path) -> None:
        tree = folder / "source"
        tree.mkdir()
        copy_source(tree)
        before = set(tree.rglob("*"))
        done = pip(
            "wheel", "-v", "--no-deps", "--wheel-dir", folder, tree, cwd=folder, env={"GMKERNELS_REQUIRE_NATIVE": "1"}
        )
        self.log = done.stdout
        self.left_behind = set(tree.rglob("*")) - before
        self.wheel = next(folder.glob("*.whl"))
        self.site = unpack(self.wheel, folder / "site")
        self.libraries = sorted((self.site / "gmkernels" / "_lib").glob("*.so"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("wheel"))


def test_the_build_environment_has_no_torch(built: Built) -> None:
    line = re.search(r"^\s*Successfully installed (.*)$", built.log, re.MULTILINE)
    assert line, built.log
    names = {item.rsplit("-", 1)[0] for item in line[1].split()}
    assert {"setuptools", "cmake", "ninja", "pybind11"} <= names
    assert "torch" not in names


def test_the_wheel_holds_both_packages_the_cores_and_nothing_else(built: Built) -> None:
    names = zipfile.ZipFile(built.wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"gmkernels", "genmodels"}
    kept = {".py", ".so", ".typed"}
    weights = {
        f"genmodels/metrics/weights/{name}" for name in ("SHA256SUMS", "fashion28.safetensors", "mnist28.safetensors")
    }
    assert {name for name in names if ".dist-info" not in name and Path(name).suffix not in kept} == weights
    assert {"gmkernels/py.typed", "genmodels/py.typed", "gmkernels/__main__.py", "genmodels/cli.py"} <= set(names)
    assert sum(name.startswith("gmkernels/_lib/_cpu.") for name in names) == 1
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with_nvcc = shutil.which("nvcc") is not None
    assert ("gmkernels/_lib/libgmkernels_cuda.so" in names) == with_nvcc


def test_a_build_leaves_the_source_tree_as_it_was(built: Built) -> None:
    assert {path.name for path in built.left_behind if path.parent.name != "gmkernels.egg-info"} <= {
        "gmkernels.egg-info"
    }


def test_the_cores_need_the_system_only(built: Built) -> None:
    allowed = re.compile(r"lib(c|m|dl|rt|pthread)\.so\.\d+|ld-linux.*\.so\.\d+")
    for library in built.libraries:
        text = run("readelf", "--dynamic", library, cwd=built.site).stdout
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", text)
        assert needed
        assert [name for name in needed if not allowed.fullmatch(name)] == []
        assert "RPATH" not in text
        assert "RUNPATH" not in text


def test_the_cores_export_their_own_names_only(built: Built) -> None:
    for library in built.libraries:
        text = run("nm", "--dynamic", "--defined-only", library, cwd=built.site).stdout
        names = [line.split()[-1] for line in text.splitlines() if len(line.split()) == 3]
        assert names
        assert [name for name in names if not name.startswith(("gmk_", "PyInit__cpu"))] == []


def test_the_installed_core_runs_and_says_so(built: Built) -> None:
    code = """
import torch
import gmkernels as gmk
x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
assert gmk.backend_for("affine_coupling", x) == "cpu"
y, logdet = gmk.affine_coupling(x, x / 3, x, backend="cpu")
z, other = gmk.affine_coupling(x.double(), x.double() / 3, x.double(), backend="reference")
torch.testing.assert_close(y.double(), z, rtol=1e-5, atol=1e-5)
torch.testing.assert_close(logdet.double(), other.double(), rtol=1e-5, atol=1e-5)
from gmkernels.core import native
print(native.cpu().isa(), *native.cpu().isas(), native.cpu().pool())
"""
    isa, *rest = python(built.site, code).split()
    assert isa in rest[:-1]
    assert rest[0] == "baseline"
    assert rest[-1] == "torch"


def test_the_installed_extractors_have_their_weights(built: Built) -> None:
    code = """
import torch
from genmodels import metrics
for make in (metrics.fashion28, metrics.mnist28):
    print(*make()(torch.zeros(2, 1, 28, 28)).shape)
"""
    assert python(built.site, code).split() == ["2", "128"] * 2


def test_the_instruction_sets_are_those_of_the_machine(built: Built) -> None:
    code = "from gmkernels.core import native\nprint(native.cpu().isa())"
    flags = Path("/proc/cpuinfo").read_text()
    best = "avx512" if "avx512dq" in flags else "avx2" if "avx2" in flags else "baseline"
    assert python(built.site, code).strip() == best
    assert python(built.site, code, GMKERNELS_ISA="baseline").strip() == "baseline"


def test_the_cuda_core_loads_without_a_driver_and_says_no_gpu(built: Built) -> None:
    path = built.site / "gmkernels" / "_lib" / "libgmkernels_cuda.so"
    if not path.exists():
        pytest.skip("no nvcc: the CUDA core was not built")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    library = ctypes.CDLL(str(path))
    library.gmk_last_error.restype = ctypes.c_char_p
    assert library.gmk_cuda_available() != 0
    assert library.gmk_last_error()
    code = "from gmkernels.core import native\nprint(native.cuda_error())"
    assert python(built.site, code).startswith("no GPU: ")
