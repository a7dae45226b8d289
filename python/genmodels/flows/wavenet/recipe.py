"""How to train, judge and draw WaveNets and their students."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from ... import data, pictures
from ...data import AudioDataset, BatchStream, Dataset, Process, Shuffled, Varied
from ...errors import CheckpointError, DataError, GenmodelsError
from ...recipe import Recipe, restore
from ...training import Fit, load_weights
from .bands import BandEnergies
from .heads import Kind
from .parallel import ParallelWaveNet
from .pictures import sounds
from .wavenet import WaveNet

Sound = AudioDataset | Process
Conditions = tuple[Tensor | None, Tensor | None]
_LONGEST = 12_000


@dataclass(frozen=True, kw_only=True)
class _SoundRecipe(Recipe):
    """What both models share."""

    data: str = "alsa"
    """alsa (spoken words of Debian's alsa-utils), a process of known entropy rate, or a folder of WAV files."""
    rate: int = 8000
    """Samples a second that recordings are brought to."""
    length: int = 2000
    """Samples of a training window."""
    batch_size: int = 8
    layers: int = 8
    """Layers of a stack; dilations are 1, 2, 4, ..."""
    residual: int = 32
    skip: int = 64
    kernel: int = 2
    conditional: bool = False
    """Tell the network the class of a sound: the sub-folder it is from."""
    bands: int = 0
    """Tell the network the energies of so many bands of the sound itself, as a vocoder is told: it then says again what
    was said in a recording that it has not been trained on. 0 for none."""
    fit: Fit = field(default_factory=lambda: Fit(max_seconds=600.0, lr=3e-3, ema=0.995))

    def dataset(self) -> Sound:
        return data.sound(self.data, rate=self.rate, length=self.length)

    def batch(self, dataset: Dataset) -> int:
        return self.batch_size

    @property
    def dilations(self) -> tuple[int, ...]:
        return tuple(2**i for i in range(self.layers))

    def channels(self, dataset: Dataset) -> dict[str, Any]:
        sound = cast(Sound, dataset)
        if self.conditional and not sound.classes:
            raise DataError(f"{sound.name} has no sub-folders to tell apart, which --conditional needs")
        return {
            "residual": self.residual,
            "skip": self.skip,
            "kernel": self.kernel,
            "classes": len(sound.classes) if self.conditional else 0,
            "bands": BandEnergies(sound.rate, self.bands) if self.bands else None,
        }

    def conditions(self, model: WaveNet | ParallelWaveNet, sound: Sound, source: Tensor, n: int) -> Conditions:
        """Labels and local conditions of ``n`` samples: classes take turns, band energies are those of the source (T,)."""
        y = torch.arange(n, device=model.device) % len(sound.classes) if self.conditional else None
        local = None if model.bands is None else model.bands(_as_sound(sound, source).to(model.device)[None])
        return y, None if local is None else local.expand(n, -1, -1)

    def draw_samples(
        self, model: nn.Module, dataset: Dataset, path: Path, *, n: int, seed: int, temperature: float
    ) -> None:
        """A picture of up to three samples beside the source, and up to eight one after another in a WAV file by its side,
        which is not written over."""
        if path.with_suffix(".wav").exists():
            raise GenmodelsError(f"{path.with_suffix('.wav')} exists; give another --out")
        self._draw(model, cast(Sound, dataset), path, n, seed, temperature)

    def _draw(self, model: nn.Module, sound: Sound, path: Path, n: int, seed: int, temperature: float) -> None:
        assert isinstance(model, WaveNet | ParallelWaveNet)
        model.eval()
        excerpt, n = sound.excerpt(_LONGEST), min(n, 8)
        given = self.conditions(model, sound, excerpt, n)
        drawn = model.sound(model.sample(n, len(excerpt), *given, key=seed, temperature=temperature)).cpu()
        note = "" if temperature == 1 else f", temperature {temperature:g}"
        titles = {f"sample {i + 1}{note}": x for i, x in enumerate(drawn[:3])}
        sounds(path, {f"{sound.name}, {sound.rate} Hz": _as_sound(sound, excerpt), **titles}, sound.rate)
        data.write_wav(path.with_suffix(".wav"), drawn.flatten(), sound.rate)

    def report(
        self, model: nn.Module, dataset: Dataset, out: Path, log: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, float], list[Path]]:
        figures = self.evaluate(model, dataset, "test")
        files = [out / name for name in ("samples.png", "samples.wav", "loss.png")]
        self._draw(model, cast(Sound, dataset), files[0], n=4, seed=1, temperature=1.0)
        entropy = cast(Sound, dataset).entropy
        floor = ("entropy rate", entropy) if entropy is not None and isinstance(model, WaveNet) else None
        pictures.curves(files[2], log, label="nats per sample", floor=floor)
        return figures, files


@dataclass(frozen=True, kw_only=True)
class WaveNetRecipe(_SoundRecipe):
    """WaveNet (van den Oord et al. 2016) of sound: exact log-probabilities, cached sampling."""

    summary: ClassVar[str] = "WaveNet (van den Oord et al. 2016) of sound: sample after sample, every activation once"

    head: Kind | Literal["auto"] = "auto"
    """Law of a sample: categorical (256 mu-law levels of recordings), mixture (of logistics) or gaussian (of real
    samples). auto is gaussian for a real-valued process and categorical for all else."""
    levels: int | None = None
    """Of a sample; by default 256 for categorical and 65536 for mixture."""
    components: int = 5
    """Logistics of a mixture."""
    cycles: int = 2
    """How often the dilations start again."""
    one_hot: bool = False
    """Show the network one-hot vectors in place of values."""

    def build(self, dataset: Dataset) -> WaveNet:
        sound = cast(Sound, dataset)
        real = isinstance(sound, Process) and sound.levels is None
        head = self.head if self.head != "auto" else "gaussian" if real else "categorical"
        if sound.levels is not None and head == "gaussian":
            raise DataError(f"{sound.name} has {sound.levels} levels, which a Gaussian has no probabilities of")
        levels = self.levels or sound.levels or (65536 if head == "mixture" else 256)
        return WaveNet(
            self.dilations * self.cycles, head=head, levels=levels, components=self.components, one_hot=self.one_hot,
            hidden=self.skip, **self.channels(sound),
        )  # fmt: skip

    @torch.no_grad()
    def evaluate(self, model: nn.Module, dataset: Dataset, split: str) -> dict[str, float]:
        """Nats per sample; bits too where samples are levels; how far above the entropy rate where that is known."""
        assert isinstance(model, WaveNet)
        model.eval()
        sound, nats, truth, count = cast(Sound, dataset), 0.0, 0.0, 0
        for x, y in sound.batches(split):
            labels = y.to(model.device) if y is not None and self.conditional else None
            local = None if model.bands is None else model.bands(x.to(model.device))
            nats -= float(model.log_prob(x.to(model.device), labels, local).double().sum())
            count += x.numel()
            if isinstance(sound, Process):
                truth -= float(sound.log_prob(x).sum())
        figures = {f"{split}_nats": nats / count}
        if split != "test":
            return figures
        if not model.head.real:
            figures["test_bits"] = nats / count / math.log(2)
        if isinstance(sound, Process) and (sound.levels is not None or model.head.real):
            # On the same samples, so that their luck is in neither.
            figures |= {"entropy_nats": sound.entropy, "gap_nats": (nats - truth) / count}
        return figures


@dataclass(frozen=True, kw_only=True)
class ParallelWaveNetRecipe(_SoundRecipe):
    """Parallel WaveNet (van den Oord et al. 2017): a student of a trained WaveNet, which draws all samples at once."""

    summary: ClassVar[str] = "Parallel WaveNet (van den Oord et al. 2017): a WaveNet's student, all samples in one pass"

    teacher: str = ""
    """Folder of the teacher's run, a WaveNet with a gaussian or mixture head."""
    flows: int = 4
    """Inverse autoregressive flows, one after another: what a sample owes to those before it, a flow knows of the sound that
    the flow before has made."""
    skip: int = 32
    power: float = 1.0
    """Weight of the power loss. A student on its own is too soft: the divergence forgives what is left out."""
    spread: float = 4.0
    """Weight of the penalty on distances of log-scales."""
    fade: int = 0
    """Updates over which both these weights fall to a tenth; 0 keeps them."""
    scale: float = 0.1
    """Loudness to begin with."""
    vary: float = 0.0
    """Play recordings up to this share slower, softer or louder, and half of them backwards: a student's lesson is what its
    teacher would say, of which a few recordings alone would show too little. 0 leaves them alone."""

    def build(self, dataset: Dataset) -> ParallelWaveNet:
        if self.vary and isinstance(dataset, Process):
            raise DataError(f"--vary is of recordings, and {dataset.name} is a process, which there is no end of")
        teacher = self._load_teacher(dataset)
        model = ParallelWaveNet(
            [self.dilations] * self.flows, noise="gaussian" if teacher.head.kind == "gaussian" else "logistic",
            scale=self.scale, power=self.power, spread=self.spread, fade=self.fade, **self.channels(dataset),
        )  # fmt: skip
        model.learn_from(teacher)
        return model

    def stream(self, dataset: Dataset, *, rank: int = 0, world: int = 1) -> BatchStream:
        stream = super().stream(dataset, rank=rank, world=world)
        return Varied(cast(Shuffled, stream), self.vary, seed=self.fit.seed, rank=rank) if self.vary else stream

    def _load_teacher(self, dataset: Dataset) -> WaveNet:
        if not self.teacher:
            raise GenmodelsError("a student needs a teacher: give the folder of a WaveNet's run, --teacher RUN")
        path = Path(self.teacher) / "config.json"
        try:
            config = json.loads(path.read_text())
            if config["model"] != "wavenet":
                raise GenmodelsError(f"the teacher must be a WaveNet, {self.teacher} is a run of {config['model']}")
            recipe = cast(WaveNetRecipe, restore(WaveNetRecipe, config["recipe"]))
        except FileNotFoundError:
            raise CheckpointError(f"{self.teacher} is not a run: it has no config.json") from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from None
        shared = ("data", "rate", "conditional", "bands")
        theirs, ours = ({name: getattr(r, name) for name in shared} for r in (recipe, self))
        if theirs != ours:
            raise GenmodelsError(f"teacher and student must share their data and conditions, got {theirs} and {ours}")
        teacher = recipe.build(dataset)
        load_weights(teacher, Path(self.teacher))
        return teacher

    @torch.no_grad()
    def evaluate(self, model: nn.Module, dataset: Dataset, split: str) -> dict[str, float]:
        """The divergence from the teacher, and what the teacher thinks of the student's samples and of its own, all in
        nats per sample; with the test split, of more of them."""
        assert isinstance(model, ParallelWaveNet)
        model.eval()
        sound, teacher = cast(Sound, dataset), model.teacher.to(model.device)
        n, source = (32 if split == "test" else 8), sound.excerpt(2 * self.length, split)
        given = self.conditions(model, sound, source, n)
        kl, _, x = model.divergence(model.draw_noise((n, len(source)), 1 if split == "test" else 2), *given, key=3)
        figures = {f"{split}_kl_nats": float(kl.mean())}
        if split != "test":
            return figures
        own = teacher.sample(n, len(source), *given, key=1)
        nats = [-float(teacher.log_prob(s, *given).double().mean()) / len(source) for s in (x, own)]
        return figures | {
            "student_nats": nats[0],
            "teacher_nats": nats[1],
            "relative_difference": abs(nats[0] / nats[1] - 1),
        }


def _as_sound(sound: Sound, x: Tensor) -> Tensor:
    return x.float() if sound.levels is None else x.float() * (2 / (sound.levels - 1)) - 1
