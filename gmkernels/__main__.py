"""``python -m gmkernels``: what is installed, which backend runs where, and why another does not."""

from __future__ import annotations

import argparse
import platform
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

import torch

from . import __version__, backend_for
from .core import backends, native
from .core.doors import OPERATORS


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _versions() -> Iterable[tuple[str, str]]:
    yield "gmkernels", __version__
    yield "torch", f"{torch.__version__} (CUDA {torch.version.cuda or 'not built in'})"
    yield "triton", _installed("triton")
    yield "numpy", _installed("numpy")
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _cores() -> Iterable[tuple[str, str]]:
    """The C++ core as it runs here, and the devices the others would run on."""
    if backends.unavailable("cpu") is None:
        core = native.cpu()
        yield "instruction set", f"{core.isa()} (built: {', '.join(core.isas())})"
        yield "threads", f"{torch.get_num_threads()} (pool: {core.pool()})"
    else:
        yield "threads", f"{torch.get_num_threads()} (pool: torch)"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            yield f"cuda:{index}", f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})"
    chosen = backends.setting.name
    yield "chosen", chosen + (" (the fastest that can run each call)" if chosen == "auto" else "")


def _reasons() -> Iterable[tuple[str, str]]:
    for name in backends.BACKENDS:
        reason = backends.unavailable(name)
        first, *rest = (reason or "runs").splitlines()
        yield name, "\n".join([first if reason is None else f"does not run: {first}", *rest])


def _auto(name: str, device: str) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        return "-"
    try:
        return backend_for(name, torch.empty(0, device=device))
    except backends.BackendError:
        return "raises"


def _operators() -> Iterable[tuple[str, ...]]:
    """One row per operator; a derivative has its own only where its backends differ."""
    yield "operator", "backends", "auto on cpu", "auto on cuda"
    for name, op in sorted(OPERATORS.items()):
        base = OPERATORS.get(re.sub(r"(_double)?_backward$", "", name), op)
        if base is not op and base.backends == op.backends:
            continue
        yield name, ", ".join(("reference", *op.backends)), _auto(name, "cpu"), _auto(name, "cuda")


def _table(title: str, rows: Iterable[tuple[str, ...]]) -> str:
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        head = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        lines.append(f"  {head}  {row[-1]}".replace("\n", "\n    "))
    return "\n".join([title, *lines])


def report() -> str:
    """The text that ``python -m gmkernels`` prints."""
    tables = {"Versions": _versions(), "Machine": _cores(), "Backends": _reasons(), "Operators": _operators()}
    return "\n\n".join(_table(title, rows) for title, rows in tables.items())


def main() -> None:
    argparse.ArgumentParser(prog="python -m gmkernels", description=__doc__).parse_args()
    print(report())


if __name__ == "__main__":
    main()
