"""``python -m tests.faults [--only NAME ...] [--list]``: plant every fault in turn and see whether the suite turns red.

Works in a copy of the sources, whose C++ core it builds and, for faults in C++, rebuilds. The tests that have to see a
fault must pass without it, else its colour would mean nothing. A fault whose text is gone from the sources, that does
not compile, or whose tests do not exist is an error of the catalogue and ends the run.

Every fault is appended to benchmarks/results/faults.jsonl: name, whether it was seen, by which test, in how many seconds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .catalogue import FAULTS
from .patch import Fault

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "faults.jsonl"
# Files in the order in which they find faults; everything under tests/ops is run before a fault counts as missed.
FIRST = ("test_numerics", "test_laws", "test_gradients", "test_random", "test_bitwise", "test_memory", "test_layouts")
HANGS = 1800


class Workshop:
    """A copy of the sources in which faults are planted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (
            "gmkernels",
            "python",
            "csrc",
            "tests",
            "tools",
            "benchmarks",
            "CMakeLists.txt",
            "setup.py",
            "pyproject.toml",
            "README.md",
            "LICENSE",
        ):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.txt"))
            elif source.exists():
                shutil.copyfile(source, folder / name)
        self.proven: set[tuple[str, bool, tuple[str, ...]]] = set()

    def run(self, command: list[str], timeout: float | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{self.folder}{os.pathsep}{self.folder / 'python'}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        }
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        return subprocess.run(
            command,
            cwd=self.folder,
            env=environment | more,
            timeout=timeout,
            capture_output=True,
            text=True,
            errors="replace",
        )

    def build(self) -> None:
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        done = self.run(command, GMKERNELS_REQUIRE_NATIVE="1", GMKERNELS_CUDA="0")
        if done.returncode:
            raise SystemExit(f"the core does not compile:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        where = self.run([sys.executable, "-c", "from gmkernels._lib import _cpu; print(_cpu.__file__)"]).stdout
        assert where.startswith(str(self.folder)), f"the tests would run another build: {where}"

    def test(self, select: str, triton: bool, only: tuple[str, ...]) -> tuple[int, str]:
        """Exit status of pytest, and the first test that failed."""
        folder = self.folder / "tests" / "ops"
        files = [f"tests/ops/{name}.py" for name in FIRST]
        files += sorted(
            f"tests/ops/{f.name}" for f in folder.glob("test_*.py") if f.stem not in (*FIRST, "test_triton")
        )
        files = list(only) or files
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", "-k", select]
        more = {"GMKERNELS_REQUIRE": "cpu"}
        command += ["-m", "triton and not slow" if triton else "not slow"]
        if triton:
            more |= {"TRITON_INTERPRET": "1", "GMKERNELS_REQUIRE": "cpu,triton"}
        try:
            done = self.run([*command, *files], timeout=HANGS, **more)
        except subprocess.TimeoutExpired:
            return 1, f"(no answer in {HANGS} s)"
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        if done.returncode < 0 or done.returncode > 5:
            return 1, f"(the process died with status {done.returncode})"
        if done.returncode not in (0, 1, 2) or done.returncode == 2 and not failed:
            raise SystemExit(f"pytest -k {select!r} could not run:\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
        return done.returncode, failed.group(1) if failed else ""

    def prove(self, fault: Fault) -> None:
        """The tests of a fault pass as long as it is not there."""
        key = (fault.select, fault.triton, fault.tests)
        if key not in self.proven:
            status, where = self.test(*key)
            if status:
                raise SystemExit(f"{where} fails without any fault: no fault can be judged by it")
            self.proven.add(key)

    def judge(self, fault: Fault) -> tuple[bool, str]:
        before = fault.plant(self.folder)
        try:
            if fault.compiled:
                self.build()
            status, where = self.test(fault.select, fault.triton, fault.tests)
        finally:
            (self.folder / fault.file).write_text(before)
        return status != 0, where


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these faults, instead of all")
    parser.add_argument("--list", action="store_true", help="print the catalogue and stop")
    options = parser.parse_args()
    if options.list:
        for fault in FAULTS:
            print(f"{fault.name:40} {fault.file}")
        return
    names = [fault.name for fault in FAULTS]
    if unknown := sorted(set(options.only or ()) - set(names)):
        raise SystemExit(f"no faults called {', '.join(unknown)}; see --list")
    chosen = [fault for fault in FAULTS if options.only is None or fault.name in options.only]

    # Faults in C++ last, and side by side with those of the same file: each build then starts from the one before.
    chosen.sort(key=lambda fault: (fault.compiled, fault.file))
    with tempfile.TemporaryDirectory(prefix="gmkernels-faults-") as folder:
        workshop = Workshop(Path(folder))
        for fault in FAULTS:  # all of them, before the long part
            (Path(folder) / fault.file).write_text(fault.plant(Path(folder)))
        workshop.build()
        seen = _run(workshop, chosen)
    score = f"{seen} of {len(chosen)} faults seen, {100 * seen / len(chosen):.1f} %"
    print(score)
    raise SystemExit(0 if seen >= 0.9 * len(chosen) else 1)


def _run(workshop: Workshop, chosen: list[Fault]) -> int:
    seen, commit = 0, _commit()
    for i, fault in enumerate(chosen):
        if i and chosen[i - 1].compiled and (not fault.compiled or fault.select != chosen[i - 1].select):
            workshop.build()  # the last fault is gone from the sources, not yet from the core
        workshop.prove(fault)
        start = time.monotonic()
        caught, where = workshop.judge(fault)
        seconds = round(time.monotonic() - start, 1)
        seen += caught
        print(f"{'seen  ' if caught else 'MISSED'} {fault.name:40} {seconds:6.1f} s  {where}", flush=True)
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with RESULTS.open("a") as file:
            when = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            line = {"when": when, "commit": commit, "fault": fault.name, "file": fault.file, "seen": caught}
            file.write(json.dumps(line | {"by": where, "seconds": seconds}) + "\n")
    return seen


if __name__ == "__main__":
    main()
