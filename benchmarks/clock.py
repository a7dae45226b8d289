"""Time and order: one sample of a call, and many samples of many calls interleaved.

Every repeat visits the contestants once, in random order, so that a slow minute of the machine falls on all alike. A
contestant that has had more than its share of the time sits repeats out, so that one slow formulation does not leave
the fast ones with three samples.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

SAMPLE_SECONDS = 2e-3
"""Calls that are shorter are repeated until a sample lasts this long, and divided."""
WARM_SECONDS = 50e-3
"""Calls that are shorter run once before the sample, so that none pays for the caches that another left behind."""


@dataclass
class Contestant:
    """One call to be timed; ``seconds`` collects its samples, each the mean of ``calls`` calls and ``times`` as long."""

    call: Callable[[], Any]
    records: bool = False
    times: float = 1.0
    calls: int = 1
    warm: bool = False
    once: float | None = None
    seconds: list[float] = field(default_factory=list)
    spent: float = 0.0

    def quantile(self, q: float) -> float:
        """Linear interpolation between order statistics."""
        ordered = sorted(self.seconds)
        position = q * (len(ordered) - 1)
        low = math.floor(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


class Clock:
    """Measures seconds per call on a device.

    ``cold`` empties a GPU's L2 cache before every call; the time is then that of the kernels alone, because their
    launches hide behind the emptying.
    """

    def __init__(self, device: str, cold: bool = False) -> None:
        self.gpu = device.startswith("cuda")
        if cold and not self.gpu:
            raise ValueError("--cold flushes the L2 cache of a GPU; it needs --device cuda")
        if not self.gpu:
            # glibc hands freed memory back to the system, and takes page faults for it again, until a process has freed
            # one block of up to 32 MiB. Any longer run has; here it is done for all contestants before the first.
            torch.empty(31 << 20, dtype=torch.int8)
        self.flush = torch.empty(256 << 20, dtype=torch.int8, device=device) if cold else None

    def sample(self, contestant: Contestant) -> float:
        with torch.set_grad_enabled(contestant.records):
            if contestant.warm:
                contestant.call()
            if self.flush is not None:
                return self._cold(contestant)
            return self._gpu(contestant) if self.gpu else self._cpu(contestant)

    def _cpu(self, contestant: Contestant) -> float:
        call = contestant.call
        start = time.perf_counter()
        for _ in range(contestant.calls):
            call()
        return (time.perf_counter() - start) / contestant.calls

    def _gpu(self, contestant: Contestant) -> float:
        call, (start, end) = contestant.call, _events()
        torch.cuda.synchronize()
        start.record()
        for _ in range(contestant.calls):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / contestant.calls

    def _cold(self, contestant: Contestant) -> float:
        assert self.flush is not None
        pairs = [_events() for _ in range(contestant.calls)]
        for start, end in pairs:
            self.flush.zero_()
            start.record()
            contestant.call()
            end.record()
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs) / 1e3 / contestant.calls

    def calibrate(self, contestant: Contestant) -> float:
        """Choose how many calls make a sample, once; returns the seconds of one call. The first call may be cold."""
        if contestant.once is None:
            once = self.sample(contestant)
            if once < WARM_SECONDS:
                contestant.warm = True
                once = self.sample(contestant)
            if once < SAMPLE_SECONDS:
                # A single short call measures the clock too: a second estimate from many calls.
                contestant.calls = math.ceil(SAMPLE_SECONDS / max(once, 1e-7))
                once = self.sample(contestant)
                contestant.calls = max(1, math.ceil(SAMPLE_SECONDS / max(once, 1e-7)))
            contestant.once = once
        return contestant.once


def race(clock: Clock, contestants: Sequence[Contestant], seconds: float, repeats: int, seed: int = 0) -> None:
    """Sample all contestants interleaved for ``seconds``, and then on until each has ``repeats`` samples."""
    order, shuffle = list(contestants), random.Random(seed).shuffle
    for contestant in order:
        clock.calibrate(contestant)
    # Collections happen between repeats, not inside a sample; what exists already is left out of them.
    collecting = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    start = time.perf_counter()
    try:
        while order:
            elapsed = time.perf_counter() - start
            if elapsed >= seconds and min(len(c.seconds) for c in order) >= repeats:
                break
            gc.collect()
            shuffle(order)
            for contestant in order:
                if elapsed < seconds and contestant.spent * len(order) > elapsed:
                    continue
                before = time.perf_counter()
                contestant.seconds.append(clock.sample(contestant) * contestant.times)
                contestant.spent += time.perf_counter() - before
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def graphed(call: Callable[[], Any], records: bool) -> Callable[[], Any]:
    """The call captured once as a CUDA graph; each later call replays it and returns the same tensors."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.set_grad_enabled(records):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.set_grad_enabled(records), torch.cuda.graph(graph):
        results = call()

    def replay() -> Any:
        graph.replay()
        return results

    return replay
