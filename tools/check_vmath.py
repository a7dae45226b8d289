"""Measures the elementary functions of csrc/include/gmk/vmath.h over all 2^32 float32 arguments.

    python tools/check_vmath.py [--stride N] [--jobs N] [--json FILE]

Builds tests/cpp/vmath_ulp.cpp for each instruction set of this machine, and once with the one-lane formulas of the CUDA
core compiled for the host. The best set is compared with the C library in double precision, in units in the last place;
the others must give the same bits (those whose fma is a library call, and slow, at every 101st argument). Fails over
1 ULP (exp) or 1.5 ULP (the rest). The full run takes a quarter of an hour of one core and is recorded in
benchmarks/results/vmath.jsonl, with the hash of a sample by which the tests know whether the record still belongs to the
formulas.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "vmath.jsonl"
FUNCTIONS = ("exp", "log", "log1p", "sigmoid", "softplus", "logsigmoid", "tanh", "atan", "sin2pi", "cos2pi")
SAMPLE = 1021  # the stride of the sample that continuous integration takes
SLOW_STRIDE = 101  # the least for an instruction set without fma
LIMITS = {"exp": 1.0}
LIMIT = 1.5

COMMON = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
# The flags of CMakeLists.txt, and the names that /proc/cpuinfo has for what they need; best first.
ISAS: dict[str, tuple[list[str], set[str]]] = {
    "avx512": (
        ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c", "-mprefer-vector-width=512"],
        {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "f16c"},
    ),
    "avx2": (["-mavx2", "-mfma", "-mf16c"], {"avx2", "fma", "f16c"}),
    "baseline": ([], set()),
    "cuda": (["-DGMK_CUDA_ON_HOST"], set()),
}


def compiler() -> str | None:
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")))), None)


def usable() -> list[str]:
    """The instruction sets that this machine runs, best first."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ["baseline", "cuda"]
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    return [name for name, (_, needs) in ISAS.items() if needs <= set(flags.split())]


def build(source: str, isa: str, folder: Path) -> Path:
    """The program of tests/cpp/<source> for an instruction set."""
    found = compiler()
    if found is None:
        raise SystemExit("check_vmath: no C++ compiler found (c++, g++, clang++, or the one that CXX names)")
    program = folder / f"{Path(source).stem}-{isa}"
    name = [] if isa == "cuda" else [f"-DGMK_ISA={isa}"]
    include = f"-I{ROOT / 'csrc' / 'include'}"
    subprocess.run(
        [found, *COMMON, *ISAS[isa][0], *name, include, str(ROOT / "tests" / "cpp" / source), "-o", str(program)],
        check=True,
    )
    return program


def run(program: Path, *arguments: str) -> dict[str, Any]:
    text = subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout
    keys = ("function", "isa", "max_ulp", "worst_input", "count", "hash")
    kinds = (str, str, float, float, int, str)
    (line,) = text.splitlines()
    return {key: kind(word) for key, kind, word in zip(keys, kinds, line.split(), strict=True)}


def check(stride: int, folder: Path, jobs: int = 1) -> list[dict[str, Any]]:
    """One row a function and instruction set. A set with the bits of the best one has its error."""
    sets = usable()
    programs = {isa: build("vmath_ulp.cpp", isa, folder) for isa in sets}
    strides = {isa: stride if "fma" in ISAS[isa][1] else max(stride, SLOW_STRIDE) for isa in sets}
    strides[sets[0]] = stride

    def rows(function: str) -> list[dict[str, Any]]:
        best = run(programs[sets[0]], str(stride), function)
        sample = run(programs[sets[0]], "hash", str(SAMPLE), function)["hash"]
        bits = {n: run(programs[sets[0]], "hash", str(n), function)["hash"] for n in {*strides.values()} - {stride}}
        bits[stride] = best["hash"]
        found = []
        for isa in sets:
            row = best if isa == sets[0] else run(programs[isa], "hash", str(strides[isa]), function)
            same = row["hash"] == bits[strides[isa]]
            error = {key: best[key] if same else None for key in ("max_ulp", "worst_input")}
            found.append(row | error | {"stride": strides[isa], "sample": sample})
        return found

    with ThreadPoolExecutor(jobs) as pool:
        return [row for found in pool.map(rows, FUNCTIONS) for row in found]


def faults(rows: list[dict[str, Any]]) -> list[str]:
    """What is wrong with the rows; empty if nothing is."""
    found = []
    for row in rows:
        limit = LIMITS.get(row["function"], LIMIT)
        if row["max_ulp"] is None:
            found.append(f"{row['function']} on {row['isa']} differs from {usable()[0]}")
        elif not row["max_ulp"] <= limit:
            found.append(f"{row['function']} on {row['isa']}: {row['max_ulp']} ULP at {row['worst_input']!r} > {limit}")
    return found


def environment() -> dict[str, str]:
    def first_line(*command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.splitlines()[0]

    return {
        "compiler": first_line(compiler() or "c++", "--version"),
        "libc": " ".join(platform.libc_ver()),
        "machine": platform.machine(),
        "git": first_line("git", "rev-parse", "HEAD"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stride", type=int, default=1, help="try every N-th float32; 1 tries all")
    parser.add_argument(
        "--sets", nargs="+", choices=list(ISAS), help="these instruction sets only, the reference first"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="functions measured at a time")
    parser.add_argument("--json", type=Path, help="where to write the rows; a full run defaults to benchmarks/results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = check(args.stride, Path(folder), args.sets)
    for row in rows:
        print("{function:11} {isa:9} {count:11} of 2^32  max {max_ulp} ULP at {worst_input}".format(**row))
    target = args.json or (RESULTS if args.stride == 1 else None)
    if target is not None:
        shared = environment()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(json.dumps(row | shared) + "\n" for row in rows))
    wrong = faults(rows)
    print("\n".join(wrong) or f"{len(rows)} rows, all within the limits, all instruction sets equal")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
