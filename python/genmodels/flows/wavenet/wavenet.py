"""WaveNet: a law of sound whose every sample is drawn given the samples before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

import gmkernels as gmk

from ...data import Batch
from ...errors import GenmodelsError
from ...model import Model
from .bands import BandEnergies
from .heads import KINDS, Head, Kind
from .network import DOUBLING, Stack

Method = Literal["cached", "naive"]
OnChunk = Callable[[int, Tensor], object]


class WaveNet(Model):
    """``p(x) = product over t of p(x_t | x_1 .. x_(t-1))`` (van den Oord et al., "WaveNet", 2016, equation 1).

    Args:
        dilations: one for each layer; 1, 2, 4 .. 512, twice, in the paper's manner.
        head: law of a sample: ``categorical`` over ``levels``, a ``mixture`` of ``components`` discretised logistics
            (van den Oord et al., "Parallel WaveNet", 2017, section 3.1), or ``gaussian``, of real samples (Ping et al.,
            "ClariNet", 2018, section 3.1).
        levels: how many values a sample can take; 256 and 65536 are usual. Not for a Gaussian.
        mu_law: spread levels by the mu-law; by default, those of a categorical head of 256.
        one_hot: show the network one-hot vectors in place of values; not for a Gaussian.
        bands: what :meth:`losses` makes a local condition of, out of the sound itself; ``local`` is then its channels.
        residual, gate, skip, hidden, kernel, first_kernel, classes, local: see :class:`Stack`.

    Samples are (B, T): levels in int64, or real numbers for a Gaussian. Sound within [-1, 1] in floating point is taken
    too, and brought to levels.

    Randomness: sampling takes ``key`` (an int64 tensor from ``gmkernels.random.key``, or an int seed); without it a key
    is drawn from torch's default generator. With one key, a row does not depend on how many are drawn with it.
    """

    def __init__(
        self,
        dilations: Sequence[int] = DOUBLING * 2,
        *,
        head: Kind = "categorical",
        levels: int = 256,
        components: int = 10,
        mu_law: bool | None = None,
        one_hot: bool = False,
        bands: BandEnergies | None = None,
        **channels: Any,
    ) -> None:
        super().__init__()
        if head not in KINDS:
            raise ValueError(f"WaveNet: head must be one of {', '.join(KINDS)}, got {head!r}")
        if head != "gaussian" and not 2 <= levels <= 65536:
            raise ValueError(f"WaveNet: levels must be from 2 to 65536, got {levels}")
        if components < 1 or (one_hot and head == "gaussian"):
            raise ValueError(f"WaveNet: a {head} head takes no {components} components with one_hot={one_hot}")
        mu_law = (head == "categorical" and levels == 256) if mu_law is None else mu_law
        self.head, self.one_hot, self.bands = Head(head, levels, components, mu_law), one_hot, bands
        if bands is not None:
            channels["local"] = bands.count
        self.network = Stack(levels if one_hot else 1, self.head.outputs, dilations, **channels)

    def samples(self, x: Tensor) -> Tensor:
        """Samples as the law has them: levels, or real numbers.

        Raises:
            ValueError: the shape is not (B, T), or a value is no level.
        """
        if x.dim() != 2:
            raise ValueError(f"WaveNet: samples must have shape (batch, time), got {tuple(x.shape)}")
        x = x.to(self.device)
        if self.head.real:
            return x.to(self.dtype)
        if x.is_floating_point():
            if x.numel() and not torch.compiler.is_compiling() and not bool(x.isfinite().all()):
                raise ValueError("WaveNet: sound must be finite, got samples that are not")
            return self.head.quantise(x)
        if x.numel() and not torch.compiler.is_compiling():
            low, high = (int(end) for end in x.aminmax())
            if low < 0 or high >= self.head.levels:
                raise ValueError(f"WaveNet: samples must be levels 0..{self.head.levels - 1}, got {low} to {high}")
        return x.long()

    def forward(self, x: Tensor, y: Tensor | None = None, local: Tensor | None = None) -> Tensor:
        """The outputs (B, outputs, T) for samples (B, T): those of time t see the samples before t. See :class:`Head`."""
        x = self.samples(x)
        self.network.checked("WaveNet", x.shape[0], x.shape[1], y, local)
        return self._outputs(x, y, local)

    def _outputs(self, x: Tensor, y: Tensor | None, local: Tensor | None) -> Tensor:
        before = F.pad(self._shown(x[:, :-1]), (1, 0)) if x.shape[1] else self._shown(x)
        return self.network(before, None if y is None else y.to(self.device), local)

    def _shown(self, x: Tensor) -> Tensor:
        """What the network sees of samples: (B, inputs, T)."""
        if self.head.real:
            return x[:, None]
        if self.one_hot:
            return F.one_hot(x, self.head.levels).mT.to(self.dtype)
        # As the sampler has them.
        values = torch.linspace(-1, 1, self.head.levels, dtype=torch.float64, device=self.device).to(self.dtype)
        return values[x][:, None]

    def log_prob(self, x: Tensor, y: Tensor | None = None, local: Tensor | None = None) -> Tensor:
        """Nats (B,) of samples (B, T): of levels, or for a Gaussian a log-density. Differentiable in the parameters, and
        by real samples.

        Raises:
            ValueError: see :meth:`samples` and :meth:`Stack.checked`.
        """
        x = self.samples(x)
        return self.head.log_prob(self(x, y, local), x).sum(1)

    @torch.no_grad()
    def bits_per_sample(self, x: Tensor, y: Tensor | None = None, local: Tensor | None = None) -> Tensor:
        """``-log2 p(x) / T`` (B,)."""
        return self.log_prob(x, y, local) / (-math.log(2) * max(x.shape[1], 1))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``loss``: nats per sample of a batch of sound and, with classes, its labels."""
        y = batch.y if self.network.classes is not None else None
        local = None if self.bands is None else self.bands(batch.x)
        return {"loss": -self.log_prob(batch.x, y, local).mean() / batch.x.shape[1]}

    @torch.no_grad()
    def sample(
        self,
        n: int,
        length: int,
        y: Tensor | None = None,
        local: Tensor | None = None,
        *,
        key: Tensor | int | None = None,
        temperature: float = 1.0,
        x_init: Tensor | None = None,
        method: Method = "cached",
        first: int = 0,
        on_chunk: OnChunk | None = None,
        chunk: int = 1024,
    ) -> Tensor:
        """``n`` rows (n, length) of the model: levels, or real samples; :meth:`sound` makes sound of them.

        Args:
            y, local: conditions, as for :meth:`log_prob`.
            temperature: logits are divided by it, scales multiplied: below 1, likelier samples.
            x_init: (n, up to length): the beginning, given; drawn is what follows it.
            method: ``cached`` computes every activation once; ``naive`` runs the whole network for every sample, which is
                the definition, and some hundred times slower. Both draw the same, up to rounding.
            first: the number of the first row: ``n`` rows from ``first`` on are a part of any larger draw.
            on_chunk, chunk: called as ``on_chunk(time, samples)`` for every ``chunk`` new samples.

        Raises:
            GenmodelsError: the model has drawn a number that is not finite.
        """
        if method not in ("cached", "naive"):
            raise ValueError(f"method must be 'cached' or 'naive', got {method!r}")
        self.network.checked("WaveNet", n, length, y, local)
        x = gmk.wavenet_sample(
            self.network.parameters_in_order(),
            (n, length),
            self.network.dilations,
            key=self.key(key),
            head=self.head.kind,
            levels=self.head.levels,
            x_init=None if x_init is None else self.samples(x_init),
            condition=self.network.condition(y),
            local=local,
            local_weight=self.network.local,
            temperature=temperature,
            first=first,
            on_chunk=on_chunk,
            chunk=chunk,
            backend="reference" if method == "naive" else "auto",
        )
        if self.head.real and not bool(x.isfinite().all()):
            row, time = (~x.isfinite()).nonzero()[0].tolist()
            raise GenmodelsError(
                f"WaveNet has drawn {x[row, time]} at time {time} of row {row}: it has not been trained"
            )
        return x

    def sound(self, x: Tensor) -> Tensor:
        """Samples as sound, float32 within [-1, 1]."""
        return self.head.dequantise(x).float().clamp(-1, 1)

    def extra_repr(self) -> str:
        return f"head={self.head.kind!r}, levels={self.head.levels}, receptive_field={self.network.receptive_field}"
