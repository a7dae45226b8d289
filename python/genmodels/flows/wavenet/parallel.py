"""Parallel WaveNet: a stack of inverse autoregressive flows that draws all samples in one pass, taught by a WaveNet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk

from ...data import Batch
from ...errors import GenmodelsError
from ...model import Model
from .bands import BandEnergies
from .network import DOUBLING, Stack
from .wavenet import WaveNet

Noise = Literal["gaussian", "logistic"]
_LEAST_LOG_SCALE = -7.0


class ParallelWaveNet(Model):
    """Sound out of noise, all samples at once (van den Oord et al., "Parallel WaveNet", 2017, section 4).

    A flow is ``x_t = z_t exp(s_t) + m_t``, where ``s_t`` and ``m_t`` see ``z`` before t. All flows together are of that form,
    so that given the noise before t, x_t is Gaussian (or logistic) with a mean and a scale that come out of the pass.
    Scoring samples that are not its own would take a pass for each of them: that is the price of drawing in one.

    Args:
        flows: the dilations of each flow's layers.
        noise: ``gaussian`` for a teacher with a Gaussian head, ``logistic`` for one with a mixture of logistics.
        scale: what the noise is multiplied by before training; about the loudness of the sound.
        power: weight of the power loss beside the divergence.
        spread: weight of the penalty on the distance of teacher's and student's log-scales (Ping et al., "ClariNet", 2018,
            equation 7).
        bands: as for :class:`WaveNet`, and the same as the teacher's.
        fade: updates over which power loss and penalty fall linearly to a tenth of their weights, and stay there: they show a
            student where to begin, and what counts in the end is the divergence. 0 keeps them whole.
        draws: of each sample, to estimate the divergence from a mixture of logistics.
        channels: residual, gate, skip, hidden, kernel, first_kernel, classes, local: see :class:`Stack`.

    Randomness: as for :class:`WaveNet`.
    """

    updates: Tensor

    def __init__(
        self,
        flows: Sequence[Sequence[int]] = (DOUBLING, DOUBLING),
        *,
        noise: Noise = "gaussian",
        scale: float = 0.1,
        power: float = 0.0,
        spread: float = 4.0,
        fade: int = 0,
        draws: int = 4,
        bands: BandEnergies | None = None,
        **channels: Any,
    ) -> None:
        super().__init__()
        if noise not in ("gaussian", "logistic"):
            raise ValueError(f"ParallelWaveNet: noise must be 'gaussian' or 'logistic', got {noise!r}")
        if not flows or not scale > 0 or min(power, spread, fade) < 0 or draws < 1:
            raise ValueError(
                "ParallelWaveNet: there must be a flow, a positive scale, weights and a fade of at least 0 and a draw, "
                f"got {len(flows)}, {scale}, {power}, {spread}, {fade}, {draws}"
            )
        self.noise, self.power, self.spread, self.draws, self.bands = noise, power, spread, draws, bands
        self.fade = fade
        if fade:
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        if bands is not None:
            channels["local"] = bands.count
        self.flows = nn.ModuleList(Stack(1, 2, dilations, **channels) for dilations in flows)
        for flow in self.flows:
            # Each flow begins as a multiplication, so that the teacher sees something like sound from the first step on.
            nn.init.zeros_(flow.output.weight)  # type: ignore[arg-type,union-attr]
            flow.output.bias.data = torch.tensor([0.0, math.log(scale) / len(flows)])  # type: ignore[union-attr]
        # In a list: the teacher is no part of this model, its weights stay out of checkpoints and optimizers.
        self._teacher: list[WaveNet] = []

    # Samples.

    def draw_noise(self, shape: Sequence[int], key: Tensor | int | None = None, *, first: int = 0) -> Tensor:
        """Standard normal, or standard logistic, numbers."""
        key = self.key(key)
        if self.noise == "gaussian":
            return gmk.random.normal(key, tuple(shape), first=first, dtype=self.dtype)
        return torch.logit(gmk.random.uniform(key, tuple(shape), first=first, dtype=torch.float64)).to(self.dtype)

    def forward(self, z: Tensor, y: Tensor | None = None, local: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Noise (B, T) to samples, and the mean and log-scale of each given the noise before it, all (B, T)."""
        if z.dim() != 2:
            raise ValueError(f"ParallelWaveNet: noise must have shape (batch, time), got {tuple(z.shape)}")
        x, mean, log_scale = z, torch.zeros_like(z), torch.zeros_like(z)
        for flow in self.flows:
            flow.checked("ParallelWaveNet", *z.shape, y, local)  # type: ignore[operator]
            before = F.pad(x[:, :-1], (1, 0))[:, None] if x.shape[1] else x[:, None]
            m, s = flow(before, y, local).unbind(1)
            s = s.clamp(min=_LEAST_LOG_SCALE)
            x, mean, log_scale = x * s.exp() + m, mean * s.exp() + m, log_scale + s
        return x, mean, log_scale

    def rsample_and_log_prob(
        self,
        n: int,
        length: int,
        y: Tensor | None = None,
        local: Tensor | None = None,
        *,
        key: Tensor | int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples (n, length), differentiable in the parameters, and their log-density in nats (n,); one pass."""
        z = self.draw_noise((n, length), key)
        x, _, log_scale = self(z, y, local)
        if self.noise == "gaussian":
            base = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
        else:
            base = F.logsigmoid(z) + F.logsigmoid(-z)
        return x, (base - log_scale).sum(1)

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
        first: int = 0,
    ) -> Tensor:
        """``n`` rows (n, length) of sound, in one pass; ``temperature`` scales the noise."""
        x = self(temperature * self.draw_noise((n, length), key, first=first), y, local)[0]
        if not bool(x.isfinite().all()):
            rows = int((~x.isfinite().all(1)).sum())
            raise GenmodelsError(f"ParallelWaveNet: {rows} of {n} sounds are not finite; a lower temperature may help")
        return x

    @staticmethod
    def sound(x: Tensor) -> Tensor:
        """Samples as sound, within [-1, 1]."""
        return x.float().clamp(-1, 1)

    # Learning.

    def learn_from(self, teacher: WaveNet) -> None:
        """Take a trained teacher, whose weights stay as they are.

        Raises:
            GenmodelsError: its law is not one that this student's can be compared with.
        """
        wanted = {"gaussian": "gaussian", "logistic": "mixture"}[self.noise]
        if teacher.head.kind != wanted or teacher.one_hot:
            raise GenmodelsError(
                f"a student with {self.noise} noise needs a teacher with a {wanted} head that sees values, got a "
                f"{teacher.head.kind} head{' that sees one-hot vectors' if teacher.one_hot else ''}"
            )
        self._teacher = [teacher.eval().requires_grad_(False)]

    @property
    def teacher(self) -> WaveNet:
        if not self._teacher:
            raise GenmodelsError("this student has no teacher: call learn_from(teacher) first")
        return self._teacher[0]

    def divergence(
        self, z: Tensor, y: Tensor | None = None, local: Tensor | None = None, *, key: Tensor | int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """How far the student's law of each sample is from the teacher's, given what came before.

        For a Gaussian teacher in closed form, ``KL(q || p) = log p - log q + (q^2 - p^2 + (m_p - m_q)^2) / (2 p^2)`` of the
        scales p and q (ClariNet, equation 6); for a mixture of logistics the cross-entropy is estimated from ``draws``
        samples for every time, and the student's entropy is ``log q + 2`` (Parallel WaveNet, equation 8). Summed over the
        times and averaged over noise it is the divergence of the laws of whole sounds.

        Returns:
            Nats (B, T), the squared distance of log-scales (B, T; zeros for a mixture), and the samples (B, T).
        """
        teacher = self.teacher.to(self.device)
        x, mean, log_scale = self(z, y, local)
        before = F.pad(x[:, :-1], (1, 0))[:, None]
        found = teacher.network(before, y, local)
        if self.noise == "gaussian":
            mean_p, log_scale_p = teacher.head.gaussian(found)
            ratio, shift = torch.exp(2 * (log_scale - log_scale_p)), (mean_p - mean) * torch.exp(-log_scale_p)
            kl = log_scale_p - log_scale + 0.5 * (ratio - 1 + shift.square())
            return kl, (log_scale_p - log_scale).square(), x
        noise = self.draw_noise((self.draws * len(z), z.shape[1]), key).view(self.draws, *z.shape)
        drawn = mean + log_scale.exp() * noise
        # A level is 2 / (levels - 1) wide, and a probability that times a density.
        width = math.log(2 / (teacher.head.levels - 1))
        likely = torch.stack([teacher.head.log_prob(found, each) - width for each in drawn]).mean(0)
        return -likely - (log_scale + 2), torch.zeros_like(x), x

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``loss``, in nats per sample, of a draw as large as the batch of sound, whose loudness of each frequency the
        power loss compares; ``kl`` and ``power`` alone."""
        y = batch.y if self.flows[0].classes is not None else None
        local = None if self.bands is None else self.bands(batch.x)
        kl, distance, x = self.divergence(self.draw_noise(batch.x.shape), y, local)
        found, aid = {"kl": kl.mean()}, self.spread * distance.mean()
        if self.power:
            found["power"] = power_loss(x, batch.x.to(x))
            aid = aid + self.power * found["power"]
        if self.fade:
            aid = aid * (1 - 0.9 * self.updates / self.fade).clamp(min=0.1).to(aid.dtype)
            if self.training:
                self.updates += 1
        loss = found["kl"] + aid
        return {"loss": loss, **{name: value.detach() for name, value in found.items()}}


def power_loss(x: Tensor, y: Tensor, windows: Sequence[int] = (64, 256, 1024)) -> Tensor:
    """How far apart the mean power spectra of two sets of sounds (B, T) are, at several resolutions.

    With ``P`` the squared magnitude of the short-time Fourier transform, averaged over times and sounds (Parallel WaveNet,
    section 5.1): the mean over windows of ``|P(x) - P(y)|^2 / |P(y)|^2``. Windows longer than the sounds are left out.
    """
    fitting = [n for n in windows if n <= min(x.shape[1], y.shape[1])]
    if not fitting:
        raise ValueError(f"power_loss: sounds must have {min(windows)} samples, got {x.shape[1]} and {y.shape[1]}")
    total = x.new_zeros(())
    for n in fitting:
        p, q = (_power(sounds, n) for sounds in (x, y))
        total = total + (p - q).square().sum() / q.square().sum()
    return total / len(fitting)


def _power(x: Tensor, n: int) -> Tensor:
    window = torch.hann_window(n, dtype=x.dtype, device=x.device)
    spectrum = torch.stft(x, n, n // 4, window=window, center=False, return_complex=True)
    return torch.view_as_real(spectrum).square().sum(-1).mean((0, 2))
