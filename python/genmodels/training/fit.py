"""One training loop for every model, in plain PyTorch."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..data import BatchStream
from ..errors import CheckpointError, GenmodelsError
from . import checkpoint
from .distributed import Group, local_device
from .log import Log


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How to train. The run ends at the first budget that is used up, counting what earlier, stopped runs used."""

    max_seconds: float | None = None
    """Time budget of the training loop."""
    max_steps: int | None = None
    """Step budget."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.0
    warmup_steps: int = 50
    """Steps of linear warm-up. Then the rate falls as half a cosine over the budget, to zero."""
    clip: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    accumulate: int = 1
    """Batches per step."""
    ema: float = 0.0
    """Decay of the moving average of the weights that is evaluated and sampled from; 0 for none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs the forward pass under autocast."""
    evaluations: int = 10
    """How often to evaluate along the way."""
    log_every: int = 10
    """Steps between lines of the log."""
    checkpoint_seconds: float = 30.0
    """Seconds between checkpoints. There is always one at the end."""
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.max_seconds is None and self.max_steps is None:
            raise ValueError("Fit: give max_seconds or max_steps, or both")
        for name in ("accumulate", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"Fit: {name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"Fit: ema must be in [0, 1), got {self.ema}")


@dataclass
class Part:
    """An optimizer of some of a model's parameters, and how many updates (each on fresh batches) it makes a step."""

    optimizer: torch.optim.Optimizer
    updates: int = 1

    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


@dataclass
class Result:
    """How a run ended: ``stopped`` is None when its budget is used up, else the name of the signal."""

    step: int
    seconds: float
    stopped: str | None
    history: list[dict[str, float]] = field(default_factory=list)


def fit(
    model: nn.Module,
    stream: BatchStream,
    out: Path,
    config: Fit,
    *,
    parts: Mapping[str, Part] | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    fingerprint: Mapping[str, Any] | None = None,
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

    SIGINT and SIGTERM finish the step, save, and return with ``stopped`` set; a second SIGINT interrupts at once.

    Raises:
        CheckpointError: the checkpoints in ``out`` are damaged or belong to a different run.
        GenmodelsError: the loss stayed NaN or infinite for 20 steps.
    """
    return _Run(model, stream, Path(out), config, parts, evaluate, dict(fingerprint or {})).go()


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
    ) -> None:
        self.config, self.stream, self.out, self.evaluate = config, stream, out, evaluate
        # As it comes back from JSON: tuples as lists.
        self.fingerprint = json.loads(json.dumps(fingerprint))
        self.device = local_device(config.device)
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
        theirs = state["fingerprint"] | {"processes": state["world"]}
        ours = self.fingerprint | {"processes": self.group.world}
        differ = [f"{k}={theirs.get(k)!r}" for k in theirs | ours if theirs.get(k) != ours.get(k)]
        if differ:
            wanted = [f"{k}={ours.get(k)!r}" for k in theirs | ours if theirs.get(k) != ours.get(k)]
            raise CheckpointError(
                f"{path} belongs to another run, with {', '.join(differ)} where {', '.join(wanted)} was asked for: "
                "choose another folder"
            )
        weights = _strip(tensors, "model.")
        try:
            self.model.load_state_dict(weights)
            for name, part in self.parts.items():
                packed = checkpoint.unpack_optimizer(f"optimizer.{name}", tensors, state["optimizers"][name])
                part.optimizer.load_state_dict(packed)
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckpointError(f"{path} does not fit this model: {str(error).splitlines()[0]}") from None
        if self.ema:
            self.ema = {k: v.to(self.device) for k, v in (_strip(tensors, "ema.") or weights).items()}
        torch.set_rng_state(tensors[f"rng.{self.group.rank}.cpu"])
        if self.device.type == "cuda" and (cuda := tensors.get(f"rng.{self.group.rank}.cuda")) is not None:
            torch.cuda.set_rng_state(cuda, self.device)
        self.stream.load_state_dict(state["stream"])
        self.step, self.seconds = state["step"], state["seconds"]
        return True

    def go(self) -> Result:
        config, group = self.config, self.group
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed + group.rank)
        resumed = self.load()
        if len(steps := set(group.gather(self.step))) > 1:
            raise CheckpointError(f"the processes see different checkpoints in {self.out}, of steps {sorted(steps)}")
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
        by_steps = self.step / self.config.max_steps if self.config.max_steps else 0.0
        by_time = self.seconds / self.config.max_seconds if self.config.max_seconds else 0.0
        return max(by_steps, by_time)

    def update(self) -> dict[str, Tensor]:
        """One step: every part's updates, then the moving average."""
        config = self.config
        warm = min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        factor = warm * 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress())))
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
        # A step along a gradient that is not a number would destroy the weights: leave it out, and give up after 20.
        if bool(norm.isfinite()):
            optimizer.step()
            self.bad_steps = 0
        else:
            self.bad_steps += 1
            if self.bad_steps == 20:
                raise GenmodelsError(
                    f"the gradient has not been finite for 20 updates (step {self.step}, loss {float(total['loss'])}); "
                    f"the last good checkpoint stays in {self.out}: try a smaller lr"
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
        history.append({"step": self.step, "seconds": self.seconds, **found})
        if log:
            log.write("evaluate", self.step, {"seconds": self.seconds, **found})

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


def load_weights(model: nn.Module, out: Path) -> int:
    """Load the weights to use (the average, if there is one) of the newest intact checkpoint; returns its step."""
    found = checkpoint.load_newest(Path(out))
    if found is None:
        raise CheckpointError(f"there is no checkpoint in {out}")
    tensors, state, path = found
    try:
        model.load_state_dict(_strip(tensors, "ema.") or _strip(tensors, "model."))
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit this model: {str(error).splitlines()[0]}") from None
    return int(state["step"])


def _strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
