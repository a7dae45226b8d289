"""What a row says about the machine and the software it was measured on."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import gmkernels as gmk
from gmkernels.core import native

ROOT = Path(__file__).resolve().parent.parent


def _first_line(path: str, key: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)


def cpu_name() -> str:
    return _first_line("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def available_memory() -> int | None:
    """Bytes that can be allocated before the machine swaps or kills; None where the system does not say."""
    line = _first_line("/proc/meminfo", "MemAvailable")
    return int(line.split()[0]) * 1024 if line else None


def git_state() -> tuple[str | None, bool | None]:
    """The commit of the checkout and whether it was changed since; recorded results do not count as a change."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", ".", ":!benchmarks/results"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _constant() -> dict[str, Any]:
    sha, dirty = git_state()
    gpu = torch.cuda.is_available()
    return {
        "cpu": cpu_name(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _installed("triton"),
        "cuda": torch.version.cuda if gpu else None,
        "gmkernels": gmk.__version__,
        "core": native.cpu_error() is None,
        "sha": sha,
        "dirty": dirty,
    }


def describe(revision: str | None = None) -> dict[str, Any]:
    """The environment of one row; ``revision`` replaces the state of the checkout (for ``compare``)."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    state = {"sha": revision, "dirty": False} if revision else {}
    return {**_constant(), "threads": torch.get_num_threads(), "time": now, **state}
