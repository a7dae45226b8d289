"""Figures of trained models that stay: one JSON object a line, with all that is needed to make them again.

``model data seed`` say what was trained, ``recipe`` with which options, ``step seconds`` for how long, ``weights`` which
step's weights were judged, ``figures`` how good they are, ``judged_by`` with what, where that needs saying, and
``environment`` with which versions and on what.
"""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import gmkernels as gmk

from .training import read_log


def append(
    path: Path, run: Path, figures: Mapping[str, float], weights: int | None = None, judged_by: str = ""
) -> None:
    """Append the figures of a run to a JSON-lines file."""
    config = json.loads((run / "config.json").read_text())
    recipe = config["recipe"]
    trained = [line for line in read_log(run / "log.jsonl") if line["event"] in ("train", "evaluate")]
    row = {
        "model": config["model"],
        "data": recipe["data"],
        "seed": recipe["fit"]["seed"],
        "step": trained[-1]["step"],
        "seconds": trained[-1]["seconds"],
        **({} if weights is None else {"weights": weights}),
        "figures": {name: round(value, 5) for name, value in figures.items()},
        **({"judged_by": judged_by} if judged_by else {}),
        "recipe": recipe,
        "environment": environment(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def environment() -> dict[str, Any]:
    """Versions, the commit of the checkout if this is one, and the device."""
    sha, dirty = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {
        "gmkernels": gmk.__version__,
        "sha": sha,
        "dirty": None if dirty is None else bool(dirty),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _git(*args: str) -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
