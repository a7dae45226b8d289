"""Compile every Triton kernel ahead of time, without a GPU, and print the registers, spills and shared memory of each.

    python tools/triton_resources.py [--quick] [--only WORD] [--jobs N] [--json FILE]

The launchers run on tensors without data, so that what is compiled is what they would launch: same tiles, same
specialisation of the arguments. Fails if a kernel spills or asks for more shared memory than the device has.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton_cases import FAMILIES, QUICK

from gmkernels.core import triton_launch

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
_TYPES = {
    torch.float64: "*fp64", torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64",
    torch.int32: "*i32", torch.uint8: "*u8",
}  # fmt: skip


@dataclass
class Launch:
    """One launch as the JIT would see it."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: list[int]
    options: dict[str, Any] = field(default_factory=dict)


def record(
    kernel: Any, programs: int, args: tuple[Any, ...], constants: dict[str, Any], options: dict[str, Any]
) -> Launch:
    """What the JIT makes of the arguments: the types, the constants, and which are divisible by 16."""
    names, types, fixed, aligned = kernel.arg_names, {}, dict(constants), []
    for n, (name, value) in enumerate(zip(names, args, strict=False)):
        if isinstance(value, torch.Tensor):
            types[name] = _TYPES[value.dtype]
            if value.storage_offset() * value.element_size() % 16 == 0:
                aligned.append(n)
        elif value is None or (type(value) is int and value == 1):
            types[name], fixed[name] = "constexpr", value
        elif type(value) is int:
            types[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                aligned.append(n)
        else:
            types[name] = "fp32"
    types.update(dict.fromkeys(constants, "constexpr"))
    return Launch(kernel, {name: types[name] for name in names}, fixed, aligned, options)


def launches(call: Callable[[], Any], arch: int) -> list[Launch]:
    """The launches that a call of a launcher makes on a device of this architecture."""
    found: list[Launch] = []
    before = triton_launch.start, triton_launch.architecture_of
    triton_launch.start = lambda *args: found.append(record(*args))
    triton_launch.architecture_of = lambda device: arch
    try:
        call()
    finally:
        triton_launch.start, triton_launch.architecture_of = before
    return found


def resources(launch: Launch, arch: int) -> dict[str, int]:
    source = ASTSource(
        launch.kernel, launch.signature, launch.constants, {(n,): [["tt.divisibility", 16]] for n in launch.aligned}
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=launch.options)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    used = {key: int(n) for key, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return {
        "registers": used["REG"],
        "spilled": used["STACK"] + used["LOCAL"],
        "shared": compiled.metadata.shared,
    }


def measure(job: tuple[str, str, int]) -> list[dict[str, Any]]:
    family, name, arch = job
    call = dict(FAMILIES[family]())[name]
    return [
        {"family": family, "case": name, "kernel": launch.kernel.__name__, "arch": arch}
        | {"warps": launch.options["num_warps"], "stages": launch.options["num_stages"]}
        | resources(launch, arch)
        | {"triton": triton.__version__}
        for launch in launches(call, arch)
    ]


def jobs(quick: bool, only: str, archs: tuple[int, ...] = (80, 90)) -> list[tuple[str, str, int]]:
    named = [(family, name) for family, cases in FAMILIES.items() for name, _ in cases() if only in f"{family} {name}"]
    if quick:
        archs, named = (90,), [(family, name) for family, name in named if f"{family} {name}" in QUICK]
    return [(family, name, arch) for family, name in named for arch in archs]


def faults(rows: list[dict[str, Any]]) -> list[str]:
    """What is wrong with the kernels measured; empty if nothing is."""
    found = []
    for row in rows:
        where = f"{row['kernel']} ({row['case']}, sm_{row['arch']})"
        if row["spilled"]:
            found.append(f"{where} spills {row['spilled']} bytes")
        if row["shared"] > SHARED_LIMIT[row["arch"]]:
            found.append(f"{where} needs {row['shared']} bytes of shared memory, there are {SHARED_LIMIT[row['arch']]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every kernel once or twice, for sm_90")
    parser.add_argument("--only", default="", help="cases whose family and name contain this")
    parser.add_argument("--arch", type=int, nargs="*", default=(80, 90), choices=(80, 90))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument(
        "--json", type=Path, help="write one JSON object a line, such as benchmarks/results/triton_resources.jsonl"
    )
    parser.add_argument("--list", action="store_true", help="print the cases, compile nothing")
    args = parser.parse_args()
    if args.list:
        print(
            "\n".join(
                f"{family} {name} sm_{arch}" for family, name, arch in jobs(args.quick, args.only, tuple(args.arch))
            )
        )
        return 0
    rows = []
    with ProcessPoolExecutor(args.jobs) as pool:
        for measured in pool.map(measure, jobs(args.quick, args.only, tuple(args.arch))):
            for row in measured:
                rows.append(row)
                print(
                    "{kernel:42} sm_{arch} {registers:4} registers {spilled:5} spilled {shared:7} shared  {case}".format(
                        **row
                    ),
                    flush=True,
                )
    if args.json:
        args.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wrong = faults(rows)
    print("\n".join(wrong) or f"{len(rows)} kernels, none spills")
    return bool(wrong)


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("triton_resources: a process either interprets or compiles; unset TRITON_INTERPRET")
    sys.exit(main())
