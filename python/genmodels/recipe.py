"""What the command line needs to know about a model: one dataclass of options that can build, feed and judge it."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from . import data
from .data import BatchStream, Dataset
from .errors import GenmodelsError, at_least
from .training import Best, Fit, Part, Result, fit

# What may change between two starts of one run.
_FREE = ("max_seconds", "max_steps", "evaluations", "log_every", "checkpoint_seconds", "device")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The options of a model and its training. A model's own recipe adds fields and fills in the methods."""

    summary: ClassVar[str]
    """One line for ``genmodels list``."""
    may_be_zero: ClassVar[frozenset[str]] = frozenset()
    """Whole numbers for which 0 means something, beside those that are 0 unless told otherwise."""

    data: str = "mnist5k"
    """A data set of `genmodels list`, a folder of pictures, or a table (a .npy file, a folder of
    three, or a file of POWER, GAS, HEPMASS, MINIBOONE or BSDS300 as it is handed out)."""
    image_size: int = 32
    """Edge of the images made from a folder, of emoji and of crops of photos."""
    image_channels: int = 3
    """1 or 3: grey or colour images from a folder."""
    batch_size: int | None = None
    """Left at None, 64 images or 512 points of a density or rows of a table."""
    fit: Fit = field(default_factory=lambda: Fit(max_seconds=150.0))

    def check(self) -> None:
        """Refuse at once what would stop a run at its end: whole numbers are at least 1, others at least 0 and finite."""
        for option in dataclasses.fields(self):
            value, whole = getattr(self, option.name), "int" in str(option.type)  # a string, such as "int | None"
            least = int(whole and option.default != 0 and option.name not in self.may_be_zero)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int | float) and not isinstance(number, bool):
                    at_least(option.name, number, least)

    def dataset(self) -> Dataset:
        return data.load(self.data, size=self.image_size, channels=self.image_channels)

    def build(self, dataset: Dataset) -> nn.Module:
        """A new model; the default torch generator has been seeded."""
        raise NotImplementedError

    def stream(self, dataset: Dataset, *, rank: int = 0, world: int = 1) -> BatchStream:
        return dataset.stream(self.batch(dataset), seed=self.fit.seed, rank=rank, world=world)

    def batch(self, dataset: Dataset) -> int:
        if self.batch_size is not None:
            return self.batch_size
        return 64 if isinstance(dataset, data.ImageDataset) else 512

    def parts(self, model: nn.Module) -> Mapping[str, Part] | None:
        """Optimizers by name; None for one AdamW of everything."""
        return None

    def best(self, dataset: Dataset) -> Best | None:
        """The figure of :meth:`evaluate` on ``valid`` by which to keep a run's best weights; None to use its last."""
        return None

    def judged_by(self, model: nn.Module, dataset: Dataset, split: str) -> str:
        """What figures were measured with, in words, where their names do not say it."""
        return ""

    def train(
        self, model: nn.Module, dataset: Dataset, out: Path, *, rank: int, world: int, fingerprint: Mapping[str, Any]
    ) -> Result:
        """Train the model, continuing the run in ``out`` if there is one: see :func:`genmodels.training.fit`."""
        return fit(
            model,
            self.stream(dataset, rank=rank, world=world),
            out,
            self.fit,
            parts=self.parts(model),
            evaluate=lambda m: self.evaluate(m, dataset, "valid"),
            fingerprint=fingerprint,
            best=self.best(dataset),
        )

    def evaluate(self, model: nn.Module, dataset: Dataset, split: str) -> dict[str, float]:
        """Figures of merit on ``valid`` or ``test``."""
        raise NotImplementedError

    def draw_samples(
        self, model: nn.Module, dataset: Dataset, path: Path, *, n: int, seed: int, temperature: float
    ) -> None:
        """Write a picture of ``n`` samples."""
        raise NotImplementedError

    def report(
        self, model: nn.Module, dataset: Dataset, out: Path, log: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, float], list[Path]]:
        """Figures on the test split, and the pictures written to ``out``."""
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        """The options that make a run itself: all but its budgets and how often it reports."""
        options = dataclasses.asdict(self)
        fit = {name: value for name, value in options.pop("fit").items() if name not in _FREE}
        return options | fit


def restore(kind: type[Recipe], options: Mapping[str, Any]) -> Recipe:
    """The recipe that ``dataclasses.asdict`` was taken of, after a trip through JSON."""
    return typing.cast(Recipe, _restore(kind, options))


def _restore(kind: type, options: Mapping[str, Any]) -> Any:
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(options) - known):
        raise GenmodelsError(f"config.json has options this version does not know: {', '.join(unknown)}")
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in options.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            value = _restore(typing.cast(type, hint), value)
        elif isinstance(value, list) and _is_tuple(hint):
            value = tuple(value)
        values[name] = value
    return kind(**values)


def _is_tuple(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_tuple(part) for part in typing.get_args(hint))
    return origin is tuple
