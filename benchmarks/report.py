"""Rows to words: a table on the terminal, the README's tables, and the plot. Every figure is a row's figure."""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .case import MODES, cases, declared_in

Row = dict[str, Any]
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
RESULTS = Path(__file__).resolve().parent / "results"
OURS = "gmkernels"
_DRAWN = ("fwd", "fwd+bwd", "sample", "step")  # the last of them that a case has
_LABELS = {"compile": "torch.compile", "eager": "eager PyTorch"}


def text(rows: Sequence[Row]) -> str:
    """The rows of one run for the terminal."""
    first = rows[0] if rows else None
    if first is None:
        return "no provider is installed for this case"
    lines = ["{family}:{case}  {mode}  {shape}  {dtype} on {device}".format(**first)]
    heads = ("provider", "p50 ms", "p20", "p80", "error", "memory MB", "share", f"time / {OURS}")
    lines.append("  {:34}{:>10}{:>10}{:>10}{:>10}{:>11}{:>10}  {}".format(*heads))
    for row in rows:
        tags = [tag for tag in (row["maths"], row["variant"], row["backend"]) if tag]
        name = row["provider"] + (f" [{'; '.join(tags)}]" if tags else "")
        if row["p50_ms"] is None:
            lines.append(f"  {name:34} {row['reason']}")
            continue
        share = next((f"{row[k]:.0%} {k[:4]}" for k in ("copy_share", "gemm_share") if row[k] is not None), "")
        memory = "" if row["peak_extra_bytes"] is None else f"{row['peak_extra_bytes'] / 1e6:.1f}"
        against = f"{1 / row['ratios'][OURS]:.2f}" if OURS in row["ratios"] else ""
        if row["extra_us"] is not None:
            against = f"{row['extra_us']:+.2f} us"
        times = "".join(f"{row[key]:>10.4g}" for key in ("p50_ms", "p20_ms", "p80_ms"))
        lines.append(f"  {name:34}{times}{row['error']:>10.1e}{memory:>11}{share:>10}  {against}")
    return "\n".join(lines)


def load(files: Iterable[Path]) -> list[Row]:
    """Rows of JSON-lines files.

    Raises:
        ValueError: a line is not a row.
    """
    rows = []
    for file in files:
        if not file.exists():
            raise ValueError(f"{file} does not exist; python -m benchmarks run all --json {file} makes it")
        for number, line in enumerate(file.read_text().splitlines(), 1):
            try:
                row = json.loads(line)
                row["run"], row["p50_ms"], row["environment"]["time"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f"{file}:{number} is not a row of a benchmark: {error!r}") from error
            rows.append(row)
    return rows


def latest(rows: Iterable[Row]) -> dict[str, list[list[Row]]]:
    """The last complete run of every case and mode, by machine and setting."""
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row["run"], []).append(row)
    last: dict[tuple[str, ...], list[Row]] = {}
    for run in sorted(runs.values(), key=lambda run: run[0]["environment"]["time"]):
        if any(row["provider"] == OURS or row["family"] == "overhead" for row in run) and len(run) > 1:
            key = (_machine(run[0]), run[0]["family"], run[0]["case"], run[0]["mode"])
            last.pop(key, None)
            last[key] = run
    machines: dict[str, list[list[Row]]] = {}
    for (machine, *_), run in last.items():
        machines.setdefault(machine, []).append(run)
    return machines


def _machine(row: Row) -> str:
    env, cold = row["environment"], ", cold L2 cache" if row.get("cold") else ""
    if row["device"] != "cpu":
        return f"{env['gpu']}, {row['dtype']}{cold}"
    return f"{env['cpu']} ({env['isa']}), {env['threads']} thread{'s' * (env['threads'] != 1)}, {row['dtype']}"


def _short(processor: str) -> str:
    return " ".join(re.sub(r"\((R|TM)\)|Processor|CPU", "", processor).split())


def markdown(rows: Iterable[Row]) -> str:
    """All tables, a machine a section."""
    parts = []
    for machine, runs in latest(rows).items():
        parts.append(f"**{machine}**")
        runs.sort(key=_order)
        for file in dict.fromkeys(_file(run[0]) for run in runs):
            chosen = [run for run in runs if _file(run[0]) == file]
            parts.append(_title(file, chosen[0][0]["family"]))
            parts.append((_overhead if file == "overhead" else _family)(chosen))
        parts.append(_caption([row for run in runs for row in run]))
    return "\n\n".join(parts)


def _file(row: Row) -> str:
    """The file that declares a case; a family may have several."""
    return declared_in().get(f"{row['family']}:{row['case']}", row["family"])


def _title(file: str, family: str) -> str:
    """What a file says it measures, up to the details."""
    first = (importlib.import_module(f"benchmarks.{file}").__doc__ or file).splitlines()[0]
    return f"`{family}`: {re.split('[:.](?: |$)', first)[0]}"


def _order(run: Sequence[Row]) -> tuple[int, int]:
    """As declared; what is no longer declared comes last."""
    declared, row = [case.id for case in cases()], run[0]
    name = f"{row['family']}:{row['case']}"
    return declared.index(name) if name in declared else len(declared), MODES.index(row["mode"])


def _family(runs: Sequence[Sequence[Row]]) -> str:
    names = list(dict.fromkeys(row["provider"] for run in runs for row in run if row["provider"] != OURS))
    share = {"copy_share": "of copy speed", "gemm_share": "of GEMM speed"}
    measured = [key for key in share if any(row[key] is not None for run in runs for row in run)]
    labels = [_LABELS.get(name, name) for name in names]
    heads = ["case", "mode", OURS, *labels, "memory (eager)", *map(share.get, measured)]
    lines, notes = [_line(heads), _line(["---"] * len(heads))], []
    for run in runs:
        ours = next((row for row in run if row["provider"] == OURS), run[0])
        cells = [ours["case"], ours["mode"], _milliseconds(ours)]
        for name in names:
            row = next((row for row in run if row["provider"] == name), None)
            cells.append(_factor(row))
            if row is not None and row["reason"]:
                notes.append(f"{ours['case']}, {ours['mode']}, {name}: {row['reason']}.")
        eager = next((row for row in run if row["provider"] in ("eager", "kept")), None)
        cells.append(f"{_memory(ours)} ({_memory(eager)})")
        cells += ["–" if ours[key] is None else f"{ours[key]:.0%}" for key in measured]
        lines.append(_line(cells))
    return "\n".join([*lines, "", *notes] if notes else lines)


def _overhead(runs: Sequence[Sequence[Row]]) -> str:
    modes = [run[0]["mode"] for run in runs]
    heads = ["call on 8 elements", *(f"{mode}, µs{extra}" for mode in modes for extra in ("", " beyond bare"))]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for name in dict.fromkeys(row["provider"] for run in runs for row in run):
        cells = [name]
        for run in runs:
            row = next((row for row in run if row["provider"] == name), None)
            if row is None or row["p50_ms"] is None:
                cells += ["–" if row is None else row["reason"].split(":")[0], "–"]
            else:
                cells += [f"{row['p50_ms'] * 1e3:.2f}", "–" if row["extra_us"] is None else f"{row['extra_us']:+.2f}"]
        lines.append(_line(cells))
    return "\n".join(lines)


def _caption(rows: Sequence[Row]) -> str:
    env = rows[-1]["environment"]
    commits = dict.fromkeys(
        f"{(row['environment']['sha'] or 'unknown')[:10]}{' with changes' if row['environment']['dirty'] else ''}"
        for row in rows
    )
    counts = [row["repeats"] for row in rows if row["repeats"]]
    repeats = f"{min(counts)} to {max(counts)}" if counts else "no"
    versions = dict.fromkeys(f"{row['provider']} {row['version']}" for row in rows if row["version"])
    others = "".join(f", {name}" for name in versions)
    return (
        f"Medians of {repeats} repeats, all columns of a line interleaved in one process. A factor says how many times "
        f"longer the column takes than {OURS}, a peer being compared with our operator in the peer's own scale map and "
        "parameter layout. Memory is what a call allocates at its peak, results included, in multiples of the inputs. "
        "The share of GEMM speed counts the operations of the dense formulation and is of PyTorch's product of large "
        "matrices: above 100 % means that some were not needed, or that the kernel runs nearer to the peak than that. "
        f"torch {env['torch']}{others}; gmkernels {env['gmkernels']} at {', '.join(commits)}."
    )


def _line(cells: Sequence[str | None]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _milliseconds(row: Row) -> str:
    if row["p50_ms"] is None:
        return row["reason"].split(":")[0]
    return f"{row['p50_ms']:.3g} ms" + (" (reference)" if row["backend"] == "reference" else "")


def _factor(row: Row | None) -> str:
    if row is None:
        return "–"
    if row["p50_ms"] is None:
        return row["reason"].split(":")[0]
    # This row's ratios say how much longer the others take; ours over this one is the inverse of what is asked.
    return f"{1 / row['ratios'][OURS]:.1f}x" if OURS in row["ratios"] else f"{row['p50_ms']:.3g} ms"


def _memory(row: Row | None) -> str:
    # A whole step also allocates the model's gradients and its optimizer's state, which are no multiple of its batch.
    if row is None or row["peak_extra_bytes"] is None or row["mode"] == "step":
        return "–"
    multiple = row["peak_extra_bytes"] / row["input_bytes"]
    return f"{multiple:.1f}" if multiple < 10 else f"{multiple:.0f}"


def splice(document: str, block: str) -> str:
    """The document with the block between its two markers.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    if document.count(BEGIN) != 1 or document.count(END) != 1 or document.index(BEGIN) > document.index(END):
        raise ValueError(f"expected the lines {BEGIN} and {END} once each, in this order")
    head, rest = document.split(BEGIN)
    return f"{head}{BEGIN}\n\n{block}\n\n{END}{rest.split(END)[1]}"


def draw(rows: Iterable[Row], path: Path) -> None:
    """How many times longer every provider takes than ours, a dot each, for the heaviest mode of every case.

    Raises:
        ValueError: no row has a factor, or matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import NullLocator
    except ImportError as error:
        raise ValueError("the plot needs matplotlib: pip install '.[bench]'") from error

    lines = []
    for runs in latest(rows).values():
        runs.sort(key=_order)
        for run in {(run[0]["family"], run[0]["case"]): run for run in runs if run[0]["mode"] in _DRAWN}.values():
            found = {r["provider"]: 1 / r["ratios"][OURS] for r in run if r["p50_ms"] and OURS in r["ratios"]}
            found.pop(OURS, None)
            if found:
                device = run[0]["environment"]["gpu" if run[0]["device"] != "cpu" else "cpu"]
                lines.append((f"{run[0]['case']}, {run[0]['mode']}\n{run[0]['family']}, {_short(device)}", found))
    if not lines:
        raise ValueError("no row to draw: none has a factor to gmkernels")
    names = list(dict.fromkeys(_drawn_as(name) for _, found in lines for name in found))
    figure = Figure(figsize=(8.5, 1.4 + 0.52 * len(lines)), layout="constrained")
    axes = figure.subplots()
    markers = "osD^vP*Xh<>"
    for i, name in enumerate(names):
        points = [(x, -y) for y, (_, found) in enumerate(lines) for who, x in found.items() if _drawn_as(who) == name]
        axes.plot(*zip(*points), markers[i % len(markers)], label=name, markersize=8, alpha=0.85)  # noqa: B905
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    lowest, highest = (f(value for _, found in lines for value in found.values()) for f in (min, max))
    ticks = [v for v in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if lowest / 2 < v < highest * 2]
    axes.set_xticks(ticks, [f"{v:g}x" for v in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks([-y for y in range(len(lines))], [label for label, _ in lines], fontsize=8)
    axes.grid(axis="x", which="both", alpha=0.25)
    axes.set_xlabel(f"time / time of {OURS} (right of the line: {OURS} is faster)")
    figure.legend(loc="outside upper center", ncols=min(5, len(names)), frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _drawn_as(name: str) -> str:
    """The label of a provider: compiled peers have one together."""
    compiled = name.startswith("compile ") or name.endswith(", compiled")
    return "a peer, compiled" if compiled else _LABELS.get(name, name)


def main(files: Sequence[Path], readme: Path | None, plot: Path | None) -> int:
    # models.jsonl holds what trained models reach, not speeds (see genmodels.record).
    rows = load(files or sorted(path for path in RESULTS.glob("*.jsonl") if path.name != "models.jsonl"))
    if not rows:
        raise ValueError(f"no rows in {RESULTS}; python -m benchmarks run all --json benchmarks/results/NAME.jsonl")
    block = markdown(rows)
    if plot is not None:
        where = Path(os.path.relpath(plot, readme.parent if readme else Path.cwd()))
        if readme is not None and where.parts[0] == os.pardir:
            raise ValueError(f"{readme} can only show a picture below {readme.resolve().parent}, not {plot}")
        draw(rows, plot)
        block += f"\n\n![time of each provider relative to {OURS}]({where.as_posix()})"
    if readme is None:
        print(block)
    else:
        readme.write_text(splice(readme.read_text(), block))
    return 0
