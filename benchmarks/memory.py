"""Peak extra memory of one run of a program: everything alive at the worst moment beyond what was there before, the
results included.

On a GPU it is the high-water mark of torch's allocator. On a CPU it is the high-water mark of the resident set, which
also sees what C++ kernels allocate for themselves. For that mark to mean something every block of 64 KiB or more must
come from the operating system and go back to it, which would disturb the timing: so the CPU is measured in a process of
its own (``python -m benchmarks.memory SPEC``), after one run that loads libraries and compiles. Resolution: 0.2 MB.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import check
from .case import Case, Missing, Program, Refused, Setting, cases

_M_MMAP_THRESHOLD = -3


def cuda(call: Callable[[], Any], records: bool) -> int:
    with torch.set_grad_enabled(records):
        call()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        results = call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        del results
    return peak - before


def cpu(case: Case, mode: str, setting: Setting, chosen: Sequence[tuple[str, str | None]]) -> dict[str, int]:
    """Bytes by provider key, for (key, variant) pairs; empty where the system has no such counter."""
    if sys.platform != "linux":
        return {}
    spec = {
        "case": case.id,
        "mode": mode,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "seed": setting.seed,
        "threads": torch.get_num_threads(),
        "chosen": list(chosen),
    }
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(spec)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        print(f"{case.id} {mode}: peak memory was not measured: {last}", file=sys.stderr)
        return {}
    return json.loads(done.stdout)


def _status(key: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def high_water(call: Callable[[], Any], records: bool) -> int:
    """Bytes of one call in this process, which must have fixed its mmap threshold."""
    libc = ctypes.CDLL(None)
    with torch.set_grad_enabled(records):
        call()
        gc.collect()
        libc.malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as marks:
            marks.write("5")  # start the high-water mark again from here
        before = _status("VmRSS")
        results = call()
        peak = _status("VmHWM")
        del results
    return max(0, peak - before)


def main(argument: str) -> None:
    spec = json.loads(argument)
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 64 << 10)
    torch.set_num_threads(spec["threads"])
    (case,) = cases([spec["case"]])
    inputs = case.inputs(Setting("cpu", getattr(torch, spec["dtype"]), spec["seed"]))
    found = {}
    for key, variant in spec["chosen"]:
        provider = next(p for p in case.providers if p.key == key)
        try:
            built = provider.build(inputs, spec["mode"])
            program = built if isinstance(built, Program) else built[variant]()
        except (Missing, Refused):
            continue
        found[key] = high_water(*check.runner(program, inputs, spec["mode"]))
        del built, program
    # What libraries print meanwhile is not the answer.
    os.write(_answer, json.dumps(found).encode())


if __name__ == "__main__":
    _answer = os.dup(1)
    os.dup2(2, 1)
    main(sys.argv[1])
