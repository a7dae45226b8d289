"""``python -m benchmarks``: list, run, report, compare."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from . import compare, harness, report
from .case import MODES, Missing, Setting, cases


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Time the operators beside their peers.")
    commands = parser.add_subparsers(dest="command", required=True)

    commands.add_parser("list", help="name all cases, their modes and providers")

    run = commands.add_parser("run", help="check and time cases")
    _running(run)
    run.add_argument("--json", metavar="FILE|-", help="append one JSON object a row to a file, or print them")
    run.add_argument("--revision", help=argparse.SUPPRESS)
    run.add_argument("--expect-package", type=Path, help=argparse.SUPPRESS)

    tables = commands.add_parser("report", help="turn recorded rows into Markdown tables and a plot")
    tables.add_argument("files", nargs="*", type=Path, help="default: all of benchmarks/results/*.jsonl")
    tables.add_argument("--readme", type=Path, help=f"replace what is between {report.BEGIN} and {report.END} here")
    tables.add_argument("--plot", type=Path, metavar="PNG", help="draw the speed-ups")

    other = commands.add_parser("compare", help="time the same cases on another git revision, built in a worktree")
    other.add_argument("rev", metavar="REV")
    _running(other)
    other.add_argument("--rounds", type=int, default=2, help="how often the two take turns (default 2)")
    return parser


def _running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cases", nargs="+", metavar="FAMILY[:CASE]", help="or all")
    parser.add_argument("--providers", metavar="A,B", help="default: all installed; NAME+graph: as a CUDA graph")
    parser.add_argument("--mode", metavar="A,B", help=f"of {', '.join(MODES)}; default: all modes of a case")
    parser.add_argument("--threads", type=int, help="torch.set_num_threads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "float16", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=10.0, help="time for one case in one mode (default 10)")
    parser.add_argument("--repeats", type=int, default=5, help="samples each provider has at least (default 5)")
    parser.add_argument("--cold", action="store_true", help="flush the GPU's L2 cache before every call")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")


def rows(arguments: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """The rows of each selected case and mode."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    options = harness.Options(
        setting=Setting(arguments.device, getattr(torch, arguments.dtype)),
        providers=arguments.providers.split(",") if arguments.providers else None,
        seconds=arguments.seconds,
        repeats=max(1, arguments.repeats),
        cold=arguments.cold,
        memory=not arguments.no_memory,
        revision=getattr(arguments, "revision", None),
    )
    selected = cases(arguments.cases)
    modes = arguments.mode.split(",") if arguments.mode else None
    work = [(case, mode) for case in selected for mode in modes or case.modes if mode in case.modes]
    if not work:
        raise ValueError(f"no selected case has the mode {arguments.mode}; see python -m benchmarks list")
    known = {provider.name for case in selected for provider in case.providers}
    for name in options.providers or ():
        if name.removesuffix(harness.GRAPH) not in known:
            raise ValueError(f"unknown provider {name!r}; the selected cases have {', '.join(sorted(known))}")
    for case, mode in work:
        yield harness.run(case, mode, options)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.expect_package is not None:
        compare.must_come_from(arguments.expect_package)
    wrong = 0
    for found in rows(arguments):
        if arguments.json == "-":
            print(*map(json.dumps, found), sep="\n", flush=True)
        else:
            print(report.text(found), flush=True)
        if arguments.json not in (None, "-"):
            path = Path(arguments.json)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in found)
        wrong += sum((row["reason"] or "").startswith(("wrong", "failed")) for row in found)
    return 1 if wrong else 0


def _list() -> int:
    for case in cases():
        print(f"{case.id:34} {case.shape:36} {', '.join(case.modes)}")
        print(f"{'':34} {', '.join(dict.fromkeys(p.name for p in case.providers))}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "list":
            return _list()
        if arguments.command == "report":
            return report.main(arguments.files, arguments.readme, arguments.plot)
        if arguments.command == "compare":
            return compare.main(arguments)
        return _run(arguments)
    except (Missing, ValueError, compare.BuildError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
