"""The law of a pixel: how the outputs of a network are read, and the log-probability of the levels seen."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import gmkernels as gmk

Kind = Literal["bernoulli", "categorical", "mixture"]
KINDS = ("bernoulli", "categorical", "mixture")
LEAST_LOG_SCALE = -7.0
"""Scales of logistics are no smaller than its exponential, as :func:`gmkernels.pixelcnn_sample` has it."""


class Head(NamedTuple):
    """What the outputs of a pixel mean, in the layout of :func:`gmkernels.pixelcnn_sample`.

    Args:
        kind: ``bernoulli`` (two levels, a logit a channel), ``categorical`` (a logit a level), or ``mixture`` of
            discretised logistics (Salimans et al., "PixelCNN++", 2017).
        channels: of the image.
        groups: 1, or the number of channels, which are then drawn one after another.
        levels: values of a channel.
        components: of the mixture.
    """

    kind: Kind
    channels: int
    groups: int
    levels: int
    components: int

    @property
    def outputs(self) -> int:
        """Channels that the network must put out."""
        if self.kind == "bernoulli":
            return self.channels
        if self.kind == "categorical":
            return self.channels * self.levels
        linked = self.channels // self.groups > 1
        return self.components * (1 + 3 * self.channels if linked else 3 * self.channels)

    def log_prob(self, found: Tensor, x: Tensor) -> Tensor:
        """Nats (B,) of levels ``x`` (B, C, H, W), int64, under outputs ``found`` (B, outputs, H, W)."""
        if self.kind == "bernoulli":
            return gmk.bernoulli_log_likelihood(found, x.to(found.dtype))
        if self.kind == "categorical":
            logits = found.unflatten(1, (self.channels, self.levels)).movedim(2, 1)
            return -F.cross_entropy(logits, x, reduction="none").flatten(1).sum(1)
        return self._mixture(found.to(torch.promote_types(found.dtype, torch.float32)), x).flatten(1).sum(1)

    def _mixture(self, found: Tensor, x: Tensor) -> Tensor:
        """Nats of each pixel, or of each channel of it where they are drawn one after another."""
        k, linked = self.components, self.channels // self.groups > 1
        if linked:
            # One choice of a component for the pixel; means of green and blue move with the channels before.
            logits, rest = found[:, None, :k], found[:, k:].unflatten(1, (self.channels, 3, k))
        else:
            found = found.unflatten(1, (self.channels, 3, k))
            logits, rest = found[:, :, 0], found[:, :, 1:]
        mean, log_scale = rest[:, :, 0], rest[:, :, 1].clamp(min=LEAST_LOG_SCALE)
        if linked:
            value = (x.to(found.dtype) * (2 / (self.levels - 1)) - 1)[:, :, None]
            slope = torch.tanh(rest[:, :, 2])
            red, green, blue = mean.unbind(1)
            green = green + slope[:, 0] * value[:, 0]
            blue = blue + slope[:, 1] * value[:, 0] + slope[:, 2] * value[:, 1]
            mean = torch.stack((red, green, blue), 1)
        inside = discretised_logistic(x[:, :, None], mean, log_scale, self.levels)
        if linked:
            inside = inside.sum(1, keepdim=True)
        return torch.logsumexp(F.log_softmax(logits, 2) + inside, 2)


def discretised_logistic(x: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """The log-probability of levels under a logistic law cut into intervals; all broadcast together.

    Level l stands for the interval of width 2 / (levels - 1) round ``2 l / (levels - 1) - 1``; the first and the last
    go on to infinity (PixelCNN++, equation 2). With a and b its two ends in units of the scale,
    ``log(sigmoid(a) - sigmoid(b)) = log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a))``, in which nothing cancels.
    """
    half, inverse = 1 / (levels - 1), torch.exp(-log_scale)
    centred = x.to(mean.dtype) * (2 * half) - 1 - mean
    upper, lower = F.logsigmoid(inverse * (centred + half)), F.logsigmoid(-inverse * (centred - half))
    width = (2 * half * inverse).clamp(min=torch.finfo(mean.dtype).tiny)
    between = upper + lower + torch.log(-torch.expm1(-width))
    return torch.where(x == 0, upper, torch.where(x == levels - 1, lower, between))
