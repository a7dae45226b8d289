"""Variational autoencoders of pythae and Pyro, given weights and noise.

Both get their noise ready-made, so that they compute on the numbers that everybody computes on; that spares them the
drawing. Both are driven by the optimizer of this benchmark, which for Pyro spares an optimizer for each parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..case import peer


def pythae_vae(
    encoder: nn.Module, decoder: nn.Module, x: Tensor, eps: Tensor
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A ``pythae.models.VAE`` around ``encoder(x) -> (mu, logvar)`` and ``decoder(z) -> logits``, and its loss."""
    models, base = peer("pythae", "pythae.models"), peer("pythae", "pythae.models.nn")
    output = peer("pythae", "pythae.models.base.base_utils").ModelOutput

    class Encoder(base.BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = encoder

        def forward(self, x: Tensor) -> Any:
            mu, logvar = self.net(x)
            return output(embedding=mu, log_covariance=logvar)

    class Decoder(base.BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = decoder

        def forward(self, z: Tensor) -> Any:
            # Its Bernoulli loss takes probabilities.
            return output(reconstruction=self.net(z).sigmoid())

    config = models.VAEConfig(input_dim=(x.shape[1],), latent_dim=eps.shape[1], reconstruction_loss="bce")
    model = models.VAE(config, Encoder(), Decoder())
    model._sample_gauss = lambda mu, std: (mu + eps * std, eps)
    batch = {"data": x}
    return model, lambda: model(batch).loss


def pyro_m2(
    classifier: nn.Module, encoder: nn.Module, decoder: nn.Module, x: Tensor, eps: Tensor
) -> Mapping[str, Callable[[], Tensor]]:
    """The unlabelled loss per image of Pyro's ss_vae_M2 example, its classes enumerated in parallel: with ``expand``
    and without.

    ``classifier(x)`` gives logits, ``encoder(x, y)`` mean and log-variance, ``decoder(z, y)`` logits; ``eps`` is
    (classes, batch, latents).
    """
    pyro = peer("pyro-ppl", "pyro")
    infer, dist, poutine = pyro.infer, pyro.distributions, pyro.poutine
    classes, batch, latents = eps.shape
    uniform, zeros, ones = x.new_zeros(batch, classes), x.new_zeros(batch, latents), x.new_ones(batch, latents)

    class Given(dist.Normal):
        def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
            return self.loc + self.scale * eps

    def model(x: Tensor) -> None:
        with pyro.plate("images", batch):
            z = pyro.sample("z", dist.Normal(zeros, ones).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=uniform))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z, y), validate_args=False).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", batch):
            y = pyro.sample("y", dist.OneHotCategorical(logits=classifier(x)))
            mu, logvar = encoder(x, y)
            pyro.sample("z", Given(mu, (0.5 * logvar).exp()).to_event(1))

    def loss(expand: bool) -> Callable[[], Tensor]:
        enumerated = infer.config_enumerate(guide, "parallel", expand=expand)
        scaled = [poutine.scale(function, scale=1 / batch) for function in (model, enumerated)]
        elbo = infer.TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
        return lambda: elbo.differentiable_loss(*scaled, x)

    return {"expand": loss(True), "no expand": loss(False)}
