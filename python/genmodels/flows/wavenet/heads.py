"""The law of a sample: how the outputs of a WaveNet are read, and what samples it is a law of."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...autoregressive.heads import LEAST_LOG_SCALE, discretised_logistic

Kind = Literal["categorical", "mixture", "gaussian"]
KINDS = ("categorical", "mixture", "gaussian")


class Head(NamedTuple):
    """What the outputs of a time mean, in the layout of :func:`gmkernels.wavenet_sample`.

    Args:
        kind: ``categorical`` (a logit a level), ``mixture`` of discretised logistics, or ``gaussian`` (mean and log-scale).
        levels: values of a sample; a Gaussian's are real.
        components: of a mixture.
        mu_law: whether levels are spread by the mu-law (ITU-T G.711), finer near zero, and not evenly.
    """

    kind: Kind
    levels: int
    components: int
    mu_law: bool

    @property
    def real(self) -> bool:
        return self.kind == "gaussian"

    @property
    def outputs(self) -> int:
        """Channels that the network must put out."""
        return {"categorical": self.levels, "mixture": 3 * self.components, "gaussian": 2}[self.kind]

    def quantise(self, x: Tensor) -> Tensor:
        """Sound within [-1, 1] to levels (int64), or as it is for a Gaussian."""
        if self.real:
            return x
        x = x.clamp(-1, 1)
        mu = self.levels - 1
        if self.mu_law:
            x = x.sign() * torch.log1p(mu * x.abs()) / math.log1p(mu)
        return ((x + 1) * (0.5 * mu)).round().long()

    def dequantise(self, x: Tensor) -> Tensor:
        """Levels to sound, the middle of each level's interval; or real samples as they are."""
        if self.real:
            return x
        mu = self.levels - 1
        shown = x.double() * (2 / mu) - 1
        if self.mu_law:
            shown = shown.sign() * torch.expm1(shown.abs() * math.log1p(mu)) / mu
        return shown.float()

    def log_prob(self, found: Tensor, x: Tensor) -> Tensor:
        """Nats (B, T) of samples ``x`` (B, T) under outputs ``found`` (B, outputs, T).

        Real ``x`` under a mixture are places between levels, in units where these spread over [-1, 1].
        """
        if self.kind == "categorical":
            return -F.cross_entropy(found, x, reduction="none")
        found = found.to(torch.promote_types(found.dtype, torch.float32))
        if self.kind == "gaussian":
            mean, log_scale = self.gaussian(found)
            return -0.5 * ((x - mean) * torch.exp(-log_scale)).square() - log_scale - 0.5 * math.log(2 * math.pi)
        logits, mean, log_scale = found.unflatten(1, (3, self.components)).unbind(1)
        if x.is_floating_point():
            x = (x + 1) * (0.5 * (self.levels - 1))
        inside = discretised_logistic(x[:, None], mean, log_scale.clamp(min=LEAST_LOG_SCALE), self.levels)
        return torch.logsumexp(F.log_softmax(logits, 1) + inside, 1)

    @staticmethod
    def gaussian(found: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-scale (B, T) out of (B, 2, T)."""
        mean, log_scale = found.unbind(1)
        return mean, log_scale.clamp(min=LEAST_LOG_SCALE)
