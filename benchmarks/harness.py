"""Runs one case: build all providers, refuse the wrong ones, time the others interleaved, and make rows.

A row is a flat JSON object:

* ``run`` names the interleaved run: rows that share it may be compared.
* ``family case shape dtype device cold mode`` say what was computed.
* ``provider variant maths version backend``: by whom; the variant that won where several were tried, the function where
  providers differ in it, a peer's version, our backend.
* ``p20_ms p50_ms p80_ms repeats calls``: quantiles over ``repeats`` samples, each the mean of ``calls`` calls; null for
  a wrong or refused provider, and ``reason`` says why.
* ``error tolerance``: the largest error of any output (in ``fwd+bwd`` any gradient too) relative to the largest number
  of its float64 truth, and what is allowed.
* ``ratios``: p50 of every other provider of the same maths divided by this one's; above 1, this one is faster.
* ``extra_us``: p50 less that of the case's baseline, in microseconds (overhead cases).
* ``input_bytes peak_extra_bytes``: see ``memory.py``.
* ``counted_bytes copy_gbps copy_share`` (memory-bound cases): bytes by the case's accounting; the speed of
  ``dst.copy_(src)`` over the same number of bytes, half read and half written, timed in the same interleaved run; the
  part of it that the provider reaches.
* ``counted_flops gemm_gflops gemm_share`` (compute-bound cases): likewise against a square matrix product, which does
  two operations per multiply-add, so that code which only adds can reach a half.
* ``accounting`` says how bytes or operations were counted; ``environment``: see ``environment.py``.
"""

from __future__ import annotations

import math
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import check, clock, environment, memory
from .case import Built, Case, Inputs, Missing, Program, Provider, Refused, Setting, version_of

Row = dict[str, Any]
GRAPH = "+graph"


@dataclass(frozen=True)
class Options:
    setting: Setting = field(default_factory=Setting)
    providers: Sequence[str] | None = None
    seconds: float = 10.0
    repeats: int = 5
    cold: bool = False
    memory: bool = True
    revision: str | None = None


@dataclass
class Entry:
    """One provider on its way to a row."""

    provider: Provider
    name: str
    program: Program | None = None
    contestant: clock.Contestant | None = None
    variant: str | None = None
    error: float | None = None
    reason: str | None = None


def run(case: Case, mode: str, options: Options) -> list[Row]:
    """The rows of one case in one mode.

    Raises:
        Missing: a provider asked for by name is not installed.
        ValueError: the case has no such mode or provider.
    """
    if mode not in case.modes:
        raise ValueError(f"{case.id} has no mode {mode!r}; it has {', '.join(case.modes)}")
    # The cache of torch.compile belongs to the code of a function, not to the function, and overflows after 8 shapes.
    torch._dynamo.reset()
    stopwatch = clock.Clock(options.setting.device, options.cold)
    inputs = case.inputs(options.setting)
    truths: dict[str, Sequence[Tensor]] = {}
    entries = []
    for provider, name in wanted(case, mode, options):
        entry = Entry(provider, name)
        try:
            if provider.maths not in truths:
                truths[provider.maths] = case.truth(inputs, provider.maths, mode)
            _prepare(entry, case, inputs, mode, truths[provider.maths], stopwatch)
        except Missing as missing:
            if options.providers is not None:
                raise
            print(f"{case.id}: no {name}: {missing}", file=sys.stderr)
            continue
        entries.append(entry)
    if not entries:
        return []
    racing = [e.contestant for e in entries if e.contestant is not None]
    yardsticks = _yardsticks(case, mode, options.setting)
    clock.race(stopwatch, [*racing, *yardsticks.values()], options.seconds, options.repeats, options.setting.seed)
    peaks = _peaks(case, mode, options, entries, inputs) if options.memory else {}
    rows = [_row(case, mode, options, entry, inputs, peaks.get(entry.provider.key)) for entry in entries]
    _compare(rows, case, yardsticks)
    identity = uuid.uuid4().hex[:12]
    surroundings = environment.describe(options.revision)
    return [{"run": identity, **row, "environment": surroundings} for row in rows]


def wanted(case: Case, mode: str, options: Options) -> list[tuple[Provider, str]]:
    """Providers with the names of their rows; ``NAME+graph`` replays a provider as a CUDA graph."""
    gpu = options.setting.device.startswith("cuda")
    taking, names = [p for p in case.providers if mode in p.modes], options.providers
    if names is None:
        names = list(dict.fromkeys(p.name for p in taking))
        names += [name + GRAPH for name in ("gmkernels", "eager") if gpu and name in names]
    found = [(p, name) for name in names for p in taking if p.name == name.removesuffix(GRAPH)]
    if any(name.endswith(GRAPH) for name in names) and not gpu:
        raise ValueError("a CUDA graph (+graph) needs --device cuda")
    return found


def _prepare(
    entry: Entry, case: Case, inputs: Inputs, mode: str, truth: Sequence[Tensor], stopwatch: clock.Clock
) -> None:
    """Build the provider, check it, and of several variants keep the fastest that is right."""
    provider = entry.provider
    needed, there = provider.needs(mode) if provider.needs else 0, environment.available_memory()
    if not stopwatch.gpu and there is not None and needed > 0.9 * there:
        entry.reason = f"not run: needs about {needed / 1e9:.1f} GB, {there / 1e9:.1f} GB are free"
        return
    variants: Mapping[str | None, Callable[[], Program]] = {}
    best, failures = math.inf, []
    try:
        variants = _variants(provider.build(inputs, mode))
    except Refused as refused:
        failures.append(f"not run: {refused}")
    except Missing:
        raise
    except Exception as failure:  # foreign code may fail in any way, here and below; the row says how
        failures.append(_failed(failure))
    for variant, build in variants.items():
        try:
            program, call, records, found = _checked(entry, build, inputs, mode, truth)
        except Missing:
            raise
        except Exception as failure:
            failures.append(_failed(failure))
            continue
        if wrong := check.reason_if_wrong(found, case_dtype(inputs)):
            failures.append(wrong)
            entry.error = found if entry.program is None else entry.error
            continue
        contestant = clock.Contestant(call, records, program.times)
        seconds = stopwatch.calibrate(contestant) * program.times if len(variants) > 1 else 0.0
        if seconds < best:
            best, entry.program, entry.variant, entry.error = seconds, program, variant, found
            entry.contestant = contestant
    if entry.program is None:
        entry.reason = failures[0]
    elif failures:
        print(f"{case.id} {mode}: a variant of {entry.name} was left out: {failures[0]}", file=sys.stderr)


def _variants(built: Built) -> Mapping[str | None, Callable[[], Program]]:
    return {None: lambda: built} if isinstance(built, Program) else dict(built.items())


def _failed(failure: Exception) -> str:
    first = (str(failure).strip().splitlines() or [""])[0]
    return f"failed: {type(failure).__name__}: {first:.200}"


def _checked(
    entry: Entry, build: Callable[[], Program], inputs: Inputs, mode: str, truth: Sequence[Tensor]
) -> tuple[Program, Callable[[], Any], bool, float]:
    program = build()
    call, records = check.runner(program, inputs, mode)
    if entry.name.endswith(GRAPH):
        call = clock.graphed(call, records)
    with torch.set_grad_enabled(records):
        results = call()
    return program, call, records, check.error(check.canonical(program, results, mode), truth)


def case_dtype(inputs: Inputs) -> torch.dtype:
    return next(iter(inputs.tensors.values())).dtype


def _yardsticks(case: Case, mode: str, setting: Setting) -> dict[str, clock.Contestant]:
    found = {}
    if mode in case.elements:
        size = case.elements[mode] * setting.dtype.itemsize // 2
        source = torch.ones(size, dtype=torch.uint8, device=setting.device)
        target = torch.zeros_like(source)
        found["copy"] = clock.Contestant(lambda: target.copy_(source))
    if mode in case.flops:
        side = gemm_side(setting.device)
        normal = setting.stream()
        a, b = normal(side, side), normal(side, side)
        out = torch.empty_like(a)
        found["gemm"] = clock.Contestant(lambda: torch.mm(a, b, out=out))
    return found


def gemm_side(device: str) -> int:
    return 4096 if device.startswith("cuda") else 1024


def _peaks(case: Case, mode: str, options: Options, entries: Sequence[Entry], inputs: Inputs) -> dict[str, int]:
    ready = [e for e in entries if e.contestant is not None and not e.name.endswith(GRAPH)]
    if options.setting.device.startswith("cuda"):
        return {e.provider.key: memory.cuda(e.contestant.call, e.contestant.records) for e in ready if e.contestant}
    return memory.cpu(case, mode, options.setting, [(e.provider.key, e.variant) for e in ready])


def _row(case: Case, mode: str, options: Options, entry: Entry, inputs: Inputs, peak: int | None) -> Row:
    contestant = entry.contestant
    quantiles = {
        f"p{q}_ms": contestant.quantile(q / 100) * 1e3 if contestant is not None else None for q in (20, 50, 80)
    }
    return {
        "family": case.family,
        "case": case.name,
        "shape": case.shape,
        "dtype": str(options.setting.dtype).removeprefix("torch."),
        "device": options.setting.device,
        "cold": options.cold,
        "mode": mode,
        "provider": entry.name,
        "variant": entry.variant,
        "maths": entry.provider.maths,
        "version": version_of(entry.provider.package),
        "backend": entry.program.backend if entry.program else None,
        **quantiles,
        "repeats": len(contestant.seconds) if contestant else 0,
        "calls": contestant.calls if contestant else 0,
        "reason": entry.reason,
        "error": entry.error if entry.error is None or math.isfinite(entry.error) else str(entry.error),
        "tolerance": check.TOLERANCE[options.setting.dtype],
        "input_bytes": inputs.bytes,
        "peak_extra_bytes": None if entry.name.endswith(GRAPH) else peak,
        "accounting": case.accounting or None,
    }


def _compare(rows: Sequence[Row], case: Case, yardsticks: Mapping[str, clock.Contestant]) -> None:
    """Fill in what a row says about others: ratios, extra microseconds, shares of the yardsticks."""
    timed = [row for row in rows if row["p50_ms"] is not None]
    for row in rows:
        seconds = row["p50_ms"] / 1e3 if row["p50_ms"] is not None else None
        row["ratios"] = {
            other["provider"]: other["p50_ms"] / row["p50_ms"]
            for other in timed
            if seconds and other is not row and other["maths"] == row["maths"]
        }
        base = next((other["p50_ms"] for other in timed if other["provider"] == case.relative_to), None)
        row["extra_us"] = (row["p50_ms"] - base) * 1e3 if seconds and base is not None else None
        itemsize = getattr(torch, row["dtype"]).itemsize
        counted, rate = case.elements.get(row["mode"]), None
        row["counted_bytes"] = counted * itemsize if counted else None
        if counted and "copy" in yardsticks:
            rate = counted * itemsize / yardsticks["copy"].quantile(0.5)
        row["copy_gbps"] = rate / 1e9 if rate else None
        row["copy_share"] = counted * itemsize / seconds / rate if counted and rate and seconds else None
        flops, rate = case.flops.get(row["mode"]), None
        row["counted_flops"] = flops
        if flops and "gemm" in yardsticks:
            rate = 2 * gemm_side(row["device"]) ** 3 / yardsticks["gemm"].quantile(0.5)
        row["gemm_gflops"] = rate / 1e9 if rate else None
        row["gemm_share"] = flops / seconds / rate if flops and rate and seconds else None
