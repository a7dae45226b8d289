"""Learning to classify from few labels with a discriminator: Salimans et al. 2016, section 5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import DataError
from .gan import GAN, wide
from .networks import Discriminator, mlp_trunk
from .techniques import Techniques


class SemiSupervisedGAN(GAN):
    """A classifier of K classes and a (K + 1)-th, "generated". With logits ``l`` (B, K), that of "generated" fixed to 0,
    and ``s = logsumexp(l)``, ``p(generated | x) = 1 / (1 + exp(s))``. The discriminator's loss is

    - labelled: ``-log p(y | x, y <= K) = s - l_y``,
    - unlabelled: ``-log(1 - p(generated | x)) = softplus(-s)``,
    - generated: ``-log p(generated | x) = softplus(s)``.

    The generator matches features unless ``techniques`` say otherwise; then it minimises ``softplus(-s)``.

    Args:
        shape: of a sample.
        classes: K.
        discriminator: a network of K outputs.
        options: see :class:`GAN`.

    ``losses`` takes batches with labelled ``x``, ``y`` and unlabelled ``u``: :class:`genmodels.vae.SemiBatch`.
    """

    def __init__(
        self,
        shape: Any,
        classes: int,
        *,
        hidden: Any = (256, 256),
        discriminator: nn.Module | None = None,
        techniques: Techniques | None = None,
        **options: Any,
    ) -> None:
        if classes < 2:
            raise ValueError(f"SemiSupervisedGAN: classes must be 2 or more, got {classes}")
        size = (shape,) if isinstance(shape, int) else tuple(shape)
        super().__init__(
            size,
            hidden=hidden,
            discriminator=discriminator or Discriminator(*mlp_trunk(size, hidden), classes),
            techniques=techniques or Techniques(feature_matching=True),
            **options,
        )
        self.classes = classes

    def real(self, batch: Any) -> Tensor:
        unlabelled = getattr(batch, "u", None)
        if unlabelled is None:
            raise DataError("a semi-supervised GAN needs batches with labelled x, y and unlabelled u")
        return unlabelled

    def critic(self) -> Callable[[Tensor], Tensor]:
        return lambda x: self.discriminator(x).logsumexp(1)

    def critic_losses(self, batch: Any, real: Tensor) -> dict[str, Tensor]:
        found = super().critic_losses(batch, real)
        logits = wide(self.discriminator(self.inside(batch.x)))
        found["labelled"] = F.cross_entropy(logits, batch.y)
        found["accuracy"] = (logits.detach().argmax(1) == batch.y).float().mean()
        found["loss"] = found["loss"] + found["labelled"]
        return found

    def judge(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        return super().judge(real.logsumexp(1), fake.logsumexp(1))

    def fool(self, fake: Tensor) -> Tensor:
        return super().fool(fake.logsumexp(1))

    def classify(self, x: Tensor) -> Tensor:
        """Class probabilities (B, K) of samples, given that they are real."""
        with torch.no_grad():
            return self.discriminator(self.inside(x)).softmax(1)
