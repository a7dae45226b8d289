"""One training loop for every model, in plain PyTorch."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from ..data import BatchStream
from ..errors import CheckpointError, GenmodelsError
from . import checkpoint, weights
from .config import Best, Fit, Part, Result
from .distributed import Group, local_device
from .log import Log


def fit(
    model: nn.Module,
    stream: BatchStream,
    out: Path,
    config: Fit,
    *,
    parts: Mapping[str, Part] | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    best: Best | None = None,
) -> Result:
    """Train ``model`` on ``stream``, continuing the run in ``out`` if there is one.

    A run that was stopped and resumed gives the same weights, bit for bit, as one that was not, as long as its learning
    rate depends on steps (no ``max_seconds``) and it is on the same machine.

    Args:
        model: has ``losses(batch) -> dict`` whose entry ``loss`` is minimised; the others are logged. With several
            ``parts``, ``losses(batch, part)`` is called for each in turn, the parameters of the others frozen.
        stream: batches; one :class:`genmodels.data.BatchStream` (its position is saved and restored).
        out: the run's folder, made if need be: ``checkpoint-*.safetensors`` and ``log.jsonl``.
        config: see :class:`Fit`.
        parts: optimizers by name; one AdamW for everything if None. Their learning rates follow ``config``'s schedule.
        evaluate: called now and then, and at the end, with the weights to judge (the average, if there is one).
        fingerprint: what makes this run itself; a checkpoint with another one is refused.
        best: a figure of ``evaluate`` by which to keep the best weights judged so far, in ``best.safetensors``;
            :func:`load_weights` prefers them.

    SIGINT and SIGTERM finish the step, save, and return with ``stopped`` set; a second SIGINT interrupts at once.

    Raises:
        CheckpointError: the checkpoints in ``out`` are damaged or belong to a different run.
        GenmodelsError: the loss or its gradient stayed NaN or infinite for 20 updates.
    """
    return _Run(model, stream, Path(out), config, parts, evaluate, dict(fingerprint or {}), best).go()


def write_down(
    model: nn.Module, out: Path, figures: Mapping[str, float], *, fingerprint: Mapping[str, Any], processes: int = 1
) -> Result:
    """Leave in ``out`` what :func:`fit` leaves, of a model that needed no training.

    Raises:
        CheckpointError: the checkpoints in ``out`` are damaged or belong to a different run.
    """
    out.mkdir(parents=True, exist_ok=True)
    if found := checkpoint.load_newest(out):
        checkpoint.refuse_another_run(found[2], found[1], fingerprint, processes)
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    state = {"step": 1, "seconds": 0.0, "fingerprint": dict(fingerprint), "world": processes}
    checkpoint.save_step(out, 1, tensors, state)
    log = Log(out, bar=False)
    log.write("evaluate", 1, {"seconds": 0.0, **figures})
    log.close()
    return Result(1, 0.0, None)


def _keep_freed_memory() -> None:
    """Let the process keep the memory that a step frees, for the next step.

    glibc gives large blocks back to the system, and takes them page by page again, until a process has freed one of up
    to 32 MiB.
    """
    torch.empty(31 << 20, dtype=torch.int8)


class _Run:
    def __init__(
        self,
        model: nn.Module,
        stream: BatchStream,
        out: Path,
        config: Fit,
        parts: Mapping[str, Part] | None,
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None,
        fingerprint: dict[str, Any],
        best: Best | None,
    ) -> None:
        self.config, self.stream, self.out, self.evaluate = config, stream, out, evaluate
        self.fingerprint = fingerprint
        self.device = local_device(config.device)
        if self.device.type == "cpu":
            _keep_freed_memory()
        self.group = Group(self.device)
        self.model = model.to(self.device)
        default = torch.optim.AdamW(model.parameters(), config.lr, (0.9, 0.99), weight_decay=config.weight_decay)
        self.parts = dict(parts) if parts else {"all": Part(default)}
        self.rates = {name: [g["lr"] for g in part.optimizer.param_groups] for name, part in self.parts.items()}
        # state_dict() refers to the live tensors, which every later load fills in place.
        self.live = model.state_dict()
        self.ema = {k: v.detach().clone() for k, v in self.live.items()} if config.ema else {}
        self.losses = self.group.wrap(model, len(self.parts) > 1)
        self.step, self.seconds, self.bad_steps = 0, 0.0, 0
        self.signal: str | None = None
        self.best, self.record = best, math.nan

    # The state of a run, and nothing else, decides how it goes on.

    def save(self) -> None:
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        everyone = self.group.gather(rng)
        if self.group.rank == 0:
            self.write(everyone)
        # Nobody goes on, or away, before the file is there.
        self.group.agree(0.0)

    def write(self, rng: list[dict[str, Tensor]]) -> None:
        tensors = {f"model.{k}": v for k, v in self.live.items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.items()}
        tensors |= {f"rng.{rank}.{k}": v for rank, states in enumerate(rng) for k, v in states.items()}
        optimizers = {}
        for name, part in self.parts.items():
            packed, optimizers[name] = checkpoint.pack_optimizer(f"optimizer.{name}", part.optimizer.state_dict())
            tensors |= packed
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "stream": self.stream.state_dict(),
            "optimizers": optimizers,
            "fingerprint": self.fingerprint,
            "world": self.group.world,
            "config": asdict(self.config),
        }
        checkpoint.save_step(self.out, self.step, tensors, state)

    def load(self) -> bool:
        found = checkpoint.load_newest(self.out)
        if found is None:
            return False
        tensors, state, path = found
        checkpoint.refuse_another_run(path, state, self.fingerprint, self.group.world)
        trained = weights.strip(tensors, "model.")
        try:
            self.model.load_state_dict(trained)
            for name, part in self.parts.items():
                packed = checkpoint.unpack_optimizer(f"optimizer.{name}", tensors, state["optimizers"][name])
                part.optimizer.load_state_dict(packed)
                checkpoint.lay_out(part.optimizer)
            self.stream.load_state_dict(state["stream"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise checkpoint.misfit(path, error) from None
        if self.ema:
            self.ema = {k: v.to(self.device) for k, v in (weights.strip(tensors, "ema.") or trained).items()}
        torch.set_rng_state(tensors[f"rng.{self.group.rank}.cpu"])
        if self.device.type == "cuda" and (cuda := tensors.get(f"rng.{self.group.rank}.cuda")) is not None:
            torch.cuda.set_rng_state(cuda, self.device)
        self.step, self.seconds = state["step"], state["seconds"]
        return True

    def go(self) -> Result:
        config, group = self.config, self.group
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed + group.rank)
        resumed = self.load()
        if len(steps := set(group.gather(self.step))) > 1:
            raise CheckpointError(f"the processes see different checkpoints in {self.out}, of steps {sorted(steps)}")
        if resumed and self.best:
            self.record = weights.best_value(self.out, self.best)
        elif not resumed and group.rank == 0:
            (self.out / weights.BEST).unlink(missing_ok=True)
        log = Log(self.out) if group.rank == 0 else None
        if log:
            log.write("resume" if resumed else "start", self.step, {"seconds": self.seconds})
        history: list[dict[str, float]] = []
        began = last_saved = time.monotonic()
        earlier = self.seconds
        saved_step = self.step if resumed else -1
        evaluated = math.floor(self.progress() * config.evaluations)
        with self.signals():
            try:
                while self.progress() < 1 and self.signal is None:
                    values = self.update()
                    self.step += 1
                    now = time.monotonic()
                    self.seconds, stop, save = group.agree(
                        earlier + now - began, self.signal is not None, now - last_saved >= config.checkpoint_seconds
                    )
                    if stop and self.signal is None:
                        self.signal = "a signal to another process"
                    progress = self.progress()
                    due = progress < 1 and math.floor(progress * config.evaluations) > evaluated
                    if log and (self.step % config.log_every == 0 or progress >= 1):
                        shown = {name: float(value) for name, value in values.items()}
                        log.write("train", self.step, {"seconds": self.seconds, **shown})
                        log.progress(progress, self.step, {"loss": shown["loss"]})
                    if due:
                        evaluated = math.floor(progress * config.evaluations)
                        self.judge(log, history)
                    if save:
                        self.save()
                        saved_step, last_saved = self.step, time.monotonic()
                if self.step != saved_step:
                    self.save()
                if self.signal is None:
                    self.judge(log, history)
                elif log:
                    log.write("stop", self.step, {"seconds": self.seconds, "signal": self.signal})
            finally:
                if log:
                    log.close()
        return Result(self.step, self.seconds, self.signal, history)

    def progress(self) -> float:
        """The share of the budget that is used up."""
        by_steps = self.step / self.config.max_steps if self.config.max_steps is not None else 0.0
        by_time = self.seconds / self.config.max_seconds if self.config.max_seconds is not None else 0.0
        return max(by_steps, by_time)

    def update(self) -> dict[str, Tensor]:
        """One step: every part's updates, then the moving average."""
        config = self.config
        warm = min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress())))
        factor = warm * (cosine if config.schedule == "cosine" else 1.0)
        self.model.train()
        values: dict[str, Tensor] = {"lr": torch.tensor(config.lr * factor)}
        several = len(self.parts) > 1
        for name, part in self.parts.items():
            parameters = part.parameters()
            for group, rate in zip(part.optimizer.param_groups, self.rates[name], strict=True):
                group["lr"] = rate * factor
            with self.only(parameters) if several else contextlib.nullcontext():
                for _ in range(part.updates):
                    found = self.descend(part.optimizer, parameters, (name,) if several else ())
                    if part.after_update:
                        part.after_update()
                    values |= {f"{name}.{k}": v for k, v in found.items()} if several else found
        values.setdefault("loss", values.get(f"{next(iter(self.parts))}.loss", torch.tensor(math.nan)))
        if self.ema:
            decay = min(config.ema, (1 + self.step) / (10 + self.step))
            for key, value in self.live.items():
                if value.is_floating_point():
                    self.ema[key].lerp_(value, 1 - decay)
                else:
                    self.ema[key].copy_(value)
        return values

    def descend(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], part: tuple[str, ...]
    ) -> dict[str, Tensor]:
        config = self.config
        optimizer.zero_grad(set_to_none=True)
        total: dict[str, Tensor] = {}
        for i in range(config.accumulate):
            batch = next(self.stream).to(self.device)
            last = i == config.accumulate - 1
            quiet = contextlib.nullcontext() if last or self.group.world == 1 else self.losses.no_sync()  # type: ignore[operator]
            with quiet:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                    found = self.losses(batch, *part)
                (found["loss"] / config.accumulate).backward()
            for name, value in found.items():
                total[name] = total.get(name, 0.0) + value.detach() / config.accumulate
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip or math.inf)
        # A step along a gradient that is not a number would destroy the weights, and one from a loss that is none means
        # nothing: leave them out, and give up after 20. The losses of several processes differ.
        bad = not bool(norm.isfinite() & total["loss"].isfinite())
        if not self.group.agree(bad)[0]:
            optimizer.step()
            self.bad_steps = 0
        else:
            self.bad_steps += 1
            if self.bad_steps == 20:
                kept = f"; the last good checkpoint stays in {self.out}" if checkpoint.checkpoints(self.out) else ""
                raise GenmodelsError(
                    f"the loss or its gradient has not been finite for 20 updates (step {self.step}, loss "
                    f"{float(total['loss'])}): try a smaller lr{kept}"
                )
        total["gradient_norm"] = norm.detach()
        return total

    @contextlib.contextmanager
    def only(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Everything but these parameters frozen."""
        mine = set(parameters)
        others = [p for p in self.model.parameters() if p.requires_grad and p not in mine]
        for p in others:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in others:
                p.requires_grad_(True)

    def judge(self, log: Log | None, history: list[dict[str, float]]) -> None:
        """Evaluate the averaged weights without touching the training's random numbers."""
        if self.evaluate is None or self.group.rank:
            return
        devices = [self.device] if self.device.type == "cuda" else []
        trained = {k: v.clone() for k, v in self.live.items()} if self.ema else {}
        with torch.random.fork_rng(devices), torch.no_grad():
            if self.ema:
                self.model.load_state_dict(self.ema)
            self.model.eval()
            try:
                found = dict(self.evaluate(self.model))
            finally:
                if self.ema:
                    self.model.load_state_dict(trained)
        if self.best:
            self.keep(self.best, found)
        history.append({"step": self.step, "seconds": self.seconds, **found})
        if log:
            log.write("evaluate", self.step, {"seconds": self.seconds, **found})

    def keep(self, best: Best, found: Mapping[str, float]) -> None:
        """Write the weights just judged if none were better."""
        if best.metric not in found:
            raise GenmodelsError(f"the best weights are those of {best.metric!r}, evaluated were {', '.join(found)}")
        value = found[best.metric]
        if best.better(value, self.record):
            tensors = {f"model.{k}": v for k, v in (self.ema or self.live).items()}
            state = {"step": self.step, "seconds": self.seconds, "value": value, **asdict(best)}
            checkpoint.save(self.out / weights.BEST, tensors, state | {"fingerprint": self.fingerprint})
            self.record = value

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM only asks to stop; the second does what it did before."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, frame: FrameType | None) -> None:
            self.signal = signal.Signals(number).name
            signal.signal(number, before[signal.Signals(number)])

        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
