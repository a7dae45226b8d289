"""Critics that estimate a Wasserstein distance: weight clipping, and the gradient penalty."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..training import Part
from .gan import GAN


class Wasserstein(GAN):
    """The critic's score is a number without a scale, and it maximises ``mean(real) - mean(fake)``, which is the
    Wasserstein-1 distance times the critic's largest slope (Arjovsky et al., "Wasserstein GAN", 2017, equation 2); the
    generator maximises ``mean(fake)``. Options as for :class:`GAN`; there is nothing to smooth or to saturate.
    """

    bounded = False

    def __init__(self, shape: Any, **options: Any) -> None:
        super().__init__(shape, **options)
        if self.techniques.label_smoothing or self.saturating:
            raise ValueError(f"{type(self).__name__} has no labels to smooth and no sigmoid to saturate")

    def judge(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        loss = fake.mean() - real.mean()
        return {"loss": loss, "distance": -loss.detach()}

    def fool(self, fake: Tensor) -> Tensor:
        return -fake.mean()


class WGAN(Wasserstein):
    """Weight clipping (Arjovsky et al. 2017, algorithm 1): after every update of the critic each of its weights is
    brought into ``[-clip, clip]``. RMSProp at 5e-5, five updates of the critic for one of the generator.

    Args:
        shape: of a sample.
        clip: the bound.
        options: see :class:`GAN`.
    """

    def __init__(self, shape: Any, *, clip: float = 0.01, **options: Any) -> None:
        super().__init__(shape, **options)
        if not clip > 0:
            raise ValueError(f"WGAN: clip must be positive, got {clip}")
        self.clip = clip

    @torch.no_grad()
    def updated(self, part: str) -> None:
        super().updated(part)
        if part == "critic":
            weights: list[Tensor] = list(self.discriminator.parameters())
            torch._foreach_clamp_max_(weights, self.clip)
            torch._foreach_clamp_min_(weights, -self.clip)

    def parts(self, *, lr: float = 5e-5, n_critic: int = 5, **options: Any) -> dict[str, Part]:
        return super().parts(lr=lr, n_critic=n_critic, **options)

    def optimizer(self, network: nn.Module, lr: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(network.parameters(), lr, foreach=True)


class WGANGP(Wasserstein):
    """The gradient penalty (Gulrajani et al., "Improved training of Wasserstein GANs", 2017, algorithm 1): the critic
    pays ``10 (|grad| - 1)^2`` at random points between real and fake samples. Adam at 1e-4 with betas (0, 0.9), five
    updates of the critic for one of the generator. The critic may have layer norm, not batch norm.

    Options as for :class:`GAN`, the penalty being ``gradient`` unless told otherwise.
    """

    def __init__(self, shape: Any, **options: Any) -> None:
        super().__init__(shape, **{"penalty": "gradient", **options})

    def parts(
        self, *, lr: float = 1e-4, betas: tuple[float, float] = (0.0, 0.9), n_critic: int = 5, **options: Any
    ) -> dict[str, Part]:
        return super().parts(lr=lr, betas=betas, n_critic=n_critic, **options)
