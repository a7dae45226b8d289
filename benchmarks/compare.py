"""The same cases on two revisions: the checkout, and another commit built in a throw-away worktree.

Each revision runs in processes of its own, taking turns. The cases and the harness are those of the checkout in both,
so only the library differs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gmkernels

from .case import cases
from .environment import ROOT

# What `run` takes and `compare` passes on.
_PASSED = ("providers", "mode", "threads", "device", "dtype", "seconds", "repeats")


class BuildError(RuntimeError):
    """The other revision does not exist or does not build."""


def _git(*args: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"git {' '.join(args[:2])}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def built(revision: str) -> Iterator[tuple[str, Path]]:
    """A folder from which ``gmkernels`` of a revision can be imported, and its commit; both vanish afterwards."""
    sha = _git("rev-parse", "--verify", f"{revision}^{{commit}}")
    with tempfile.TemporaryDirectory(prefix="gmkernels-compare-") as folder:
        tree, site = Path(folder, "tree"), Path(folder, "site")
        _git("worktree", "add", "--detach", str(tree), sha)
        try:
            if not (tree / "pyproject.toml").exists():
                # From before there was anything to build: the package is its sources.
                shutil.copytree(tree / "gmkernels", site / "gmkernels")
            else:
                _install(tree, site, sha)
            yield sha, site
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _install(tree: Path, site: Path, sha: str) -> None:
    tools = ("pybind11", "setuptools", "cmake", "ninja")
    isolation = [] if not all(map(importlib.util.find_spec, tools)) else ["--no-build-isolation"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *isolation]
    command = [*pip, "--target", str(site), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{sha[:10]} does not build:\n{done.stdout}{done.stderr}")


def must_come_from(folder: Path) -> None:
    """Refuse to measure another library than the one that was asked for."""
    found = Path(gmkernels.__file__).resolve()
    if not found.is_relative_to(folder.resolve()):
        raise ValueError(f"expected gmkernels from {folder}, got {found}")


def _ours(selection: Sequence[str]) -> list[str]:
    """What differs between revisions: our operators, and every door in the overhead family."""
    names = [p.name for case in cases(selection) for p in case.providers if p.ours]
    return list(dict.fromkeys(names))


def _arguments(arguments: argparse.Namespace) -> list[str]:
    passed = [("--" + name, getattr(arguments, name)) for name in _PASSED]
    words = [word for name, value in passed if value is not None for word in (name, str(value))]
    flags = [flag for flag, given in (("--cold", arguments.cold), ("--no-memory", arguments.no_memory)) if given]
    return ["run", *arguments.cases, *words, *flags, "--json", "-"]


def _measure(arguments: Sequence[str], start: Path, site: Path | None, sha: str | None) -> list[dict[str, Any]]:
    """Rows of one process, started in ``start`` with ``site`` before everything else."""
    command = [sys.executable, "-m", "benchmarks", *arguments]
    environment = dict(os.environ)
    if site is not None and sha is not None:
        command += ["--revision", sha, "--expect-package", str(site)]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(site), environment.get("PYTHONPATH"))))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=start, env=environment, check=False)
    if done.returncode == 2:
        raise BuildError(f"measuring {sha[:10] if sha else 'the checkout'} failed; see above")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main(arguments: argparse.Namespace) -> int:
    arguments.providers = arguments.providers or ",".join(_ours(arguments.cases))
    passed = _arguments(arguments)
    with built(arguments.rev) as (sha, site), tempfile.TemporaryDirectory(prefix="gmkernels-bench-") as folder:
        # Started elsewhere, so that the current folder does not offer the checkout's gmkernels first.
        shutil.copytree(ROOT / "benchmarks", Path(folder, "benchmarks"), ignore=shutil.ignore_patterns("results"))
        here, there = [], []
        for _ in range(arguments.rounds):
            there += _measure(passed, Path(folder), site, sha)
            here += _measure(passed, ROOT, None, None)
    print(table(here, there, sha))
    return 0


def table(here: Sequence[dict[str, Any]], there: Sequence[dict[str, Any]], sha: str) -> str:
    """Markdown: the median over rounds of both, and how many times faster the checkout is."""

    def medians(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, ...], float]:
        found: dict[tuple[str, ...], list[float]] = {}
        for row in rows:
            key = tuple(row[name] for name in ("family", "case", "mode", "provider", "maths"))
            if row["p50_ms"] is not None:
                found.setdefault(key, []).append(row["p50_ms"])
        return {key: statistics.median(values) for key, values in found.items()}

    mine, other = medians(here), medians(there)
    lines = [f"| case | mode | provider | {sha[:10]}, ms | checkout, ms | ratio |", "| --- " * 6 + "|"]
    for key in dict.fromkeys((*mine, *other)):
        family, case, mode, provider, maths = key
        name = f"{provider} [{maths}]" if maths else provider
        old, new = other.get(key), mine.get(key)
        figures = [f"{value:.4g}" if value else "–" for value in (old, new, old / new if old and new else None)]
        lines.append(f"| {family}:{case} | {mode} | {name} | {' | '.join(figures)} |")
    return "\n".join(lines)
