"""The variational autoencoder, plain and conditional: its bound and its importance-weighted bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import gmkernels as gmk

from ..data import Batch
from ..errors import GenmodelsError
from ..masks import random_masks
from .autoencoder import MASKS, Autoencoder, Likelihood, fork
from .beta import Beta
from .networks import Decoder, Encoder, Network


class NonFiniteLoss(GenmodelsError):
    """The loss is NaN or infinite; the message names the cause. No parameter has been changed by then."""


class Terms(NamedTuple):
    """The parts of a bound, in nats for each image (batch,): ``elbo = -(reconstruction + kl)``.

    ``reconstruction`` is ``-log p(x|z)`` at one draw of z. ``penalty`` is the KL divergence as it is trained on: with
    free bits it differs from ``kl``, which has no gradient then.
    """

    reconstruction: Tensor
    kl: Tensor
    penalty: Tensor


def finite(*terms: Tensor) -> bool:
    """Whether terms of a loss are finite, outside autograd: this stands between forward and backward of every step."""
    first, *rest = (term.detach().sum() for term in terms)
    return math.isfinite(float(sum(rest, first)))


class VAE(Autoencoder):
    """Variational autoencoder (Kingma and Welling, "Auto-encoding variational Bayes", 2014).

    Latents have a standard normal prior and a diagonal normal posterior, so that with one draw of ``z``
    ``log p(x) >= log p(x|z) - KL(q(z|x) || p(z))`` in expectation (their equation 10). All figures are in nats per
    image, summed over pixels and latents and averaged over images; nothing is rescaled.

    Args:
        shape: (C, H, W) of an image.
        latents: number of latents.
        hidden, depth: units and number of hidden layers of both networks; ``depth=0`` makes them linear.
        network: ``mlp`` or ``conv``, which starts with two convolutions of stride 2.
        likelihood: of a pixel. ``bernoulli``: pixels in [0, 1] (grey ones count as probabilities: the term is a
            cross-entropy). ``gaussian``: one variance for all pixels, learned; its log-density may be positive.
        levels: integer images are divided by ``levels - 1``.
        beta: weight of the KL term in the loss, a number or a :class:`Beta`; the reported terms are unweighted.
        free_bits: nats below which the KL of a latent costs nothing less: ``max(free_bits, KL_j)`` for each latent and
            image (after Kingma et al. 2016, equation 15).
        mask_rate: share of the training images of which a random region is hidden. The encoder then sees
            ``image * mask`` and the mask, and is trained on the bound of the visible pixels alone, whose best posterior
            is that of the latents given what is visible. Needed for :meth:`inpaint`.
        binarise: draw every training pixel anew as 0 or 1 with its grey value as probability ("dynamic binarisation");
            then the bounds are bounds of a log-probability.
        classes: number of classes that both networks are told; 0 for none. See :class:`ConditionalVAE`.

    ``x`` may be an integer or a floating-point image wherever one is taken. Randomness: everything random takes ``key``
    (an int64 tensor from ``gmkernels.random.key``, or an int seed); without it a key is drawn from torch's default
    generator.
    """

    updates: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        *,
        latents: int = 20,
        hidden: int = 400,
        depth: int = 1,
        network: Network = "mlp",
        likelihood: Likelihood = "bernoulli",
        levels: int = 256,
        beta: float | Beta = 1.0,
        free_bits: float | None = None,
        mask_rate: float = 0.0,
        binarise: bool = False,
        classes: int = 0,
    ) -> None:
        super().__init__()
        if len(shape) != 3:
            raise ValueError(f"{type(self).__name__}: shape must be (C, H, W), got {tuple(shape)}")
        if likelihood not in ("bernoulli", "gaussian"):
            raise ValueError(f"{type(self).__name__}: likelihood must be 'bernoulli' or 'gaussian', got {likelihood!r}")
        if network not in ("mlp", "conv"):
            raise ValueError(f"{type(self).__name__}: network must be 'mlp' or 'conv', got {network!r}")
        if latents < 1 or hidden < 1 or depth < 0:
            raise ValueError(
                f"{type(self).__name__}: latents and hidden must be positive and depth 0 or more, "
                f"got {latents}, {hidden}, {depth}"
            )
        if not 0 <= mask_rate <= 1:
            raise ValueError(f"{type(self).__name__}: mask_rate must be in [0, 1], got {mask_rate}")
        if binarise and likelihood != "bernoulli":
            raise ValueError(f"{type(self).__name__}: binarise needs the Bernoulli likelihood, got {likelihood!r}")
        channels, height, width = shape
        self.shape, self.latents, self.levels, self.classes = (channels, height, width), latents, levels, classes
        self.likelihood, self.binarise, self.mask_rate = likelihood, binarise, mask_rate
        self.beta = beta if isinstance(beta, Beta) else Beta(value=beta)
        self.free_bits = free_bits
        seen = (channels + (mask_rate > 0), height, width)
        self.encoder = Encoder(seen, 2 * latents, hidden, depth, network, classes)
        self.decoder = Decoder(self.shape, latents, hidden, depth, network, classes)
        if likelihood == "gaussian":
            self.pixel_logvar = nn.Parameter(torch.tensor(-2.0))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def log_likelihood(self, output: Tensor, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """``log p(x|z)`` (B,) of what the decoder made of ``z``; ``weight`` multiplies each pixel's term.

        An output (B, n, *shape) holds several for each image, and the result is (B, n).
        """
        batch_dims = output.dim() - len(self.shape)
        if batch_dims == 2:
            x = x.unsqueeze(1).expand_as(output)
        if self.likelihood == "bernoulli":
            return gmk.bernoulli_log_likelihood(output, x, weight, batch_dims=batch_dims)
        return gmk.gaussian_log_likelihood(output, self.pixel_logvar, x, weight, batch_dims=batch_dims)

    def judge(self, z: Tensor, y: Tensor | None, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """``log p(x|z)`` (n,) of latents (n, latents), of which so many in turn belong to one image as there are more.

        Or of latents (B, classes, latents), one for each class (and no ``y``), (B, classes).
        """
        if self.likelihood == "bernoulli" and weight is None:
            found = self.decoder.log_likelihood(z, y, x)
            if found is not None:
                return found
        output = self.decoder.every(z) if z.dim() == 3 else self.decoder(z, y)
        if len(output) != len(x):
            output = output.unflatten(0, (len(x), -1))
        return self.log_likelihood(output, x, weight).view(z.shape[:-1])

    # Bounds.

    def terms(self, x: Tensor, y: Tensor | None, mask: Tensor | None, key: Tensor, first: int = 0) -> Terms:
        """The parts of the bound, of floating-point pixels and checked labels; with a mask, of the visible pixels."""
        mu, logvar = self.posterior(x, y, mask)
        z, penalty = gmk.reparameterize_kl(mu, logvar, key, free_bits=self.free_bits, first=first)
        kl = penalty if self.free_bits is None else kl_divergence(mu, logvar).sum(1)
        reconstruction = -self.judge(z, y, x, mask)
        if not torch.compiler.is_compiling() and not finite(reconstruction, penalty):
            raise NonFiniteLoss(f"the loss is not finite: {self.cause(x, mu, logvar, decoder=self.decoder(z, y))}")
        return Terms(reconstruction, kl, penalty)

    def cause(self, x: Tensor, mu: Tensor, logvar: Tensor, **outputs: Tensor) -> str:
        """Why a loss is not finite, in words; ``outputs`` are those of the other networks."""
        limit = math.log(torch.finfo(logvar.dtype).max)
        for name, value in self.named_parameters():
            if not bool(value.isfinite().all()):
                return f"the parameter {name} holds NaN or infinity already; go back to an earlier checkpoint"
        if not bool(x.isfinite().all()):
            return "the images hold NaN or infinity"
        if not bool(mu.isfinite().all() and logvar.isfinite().all()):
            return "the encoder's output overflows; try a smaller lr, or scale the images"
        if (worst := float(logvar.max())) > limit:
            return (
                f"the encoder's log-variance reached {worst:.1f} and exp overflows {str(logvar.dtype)[6:]} above "
                f"{limit:.1f}; try a smaller lr or gradient clipping"
            )
        for name, output in outputs.items():
            if not bool(output.isfinite().all()):
                return f"the {name}'s output overflows; try a smaller lr or gradient clipping"
        return f"the sum over an image overflows (means up to {float(mu.abs().max()):.3g}); try a smaller lr"

    def losses(self, batch: Batch, key: Tensor | int | None = None) -> dict[str, Tensor]:
        """``loss = reconstruction + beta * kl``, and its parts, in nats per image.

        With ``mask_rate`` the reconstruction is that of the visible pixels. Counts the updates that ``beta`` depends on
        while in training mode.

        Raises:
            ValueError: see :meth:`pixels` and :meth:`labels`.
            NonFiniteLoss: the loss is NaN or infinite.
        """
        key = self.key(key)
        x, y = self.targets(batch.x, key), self.labels(batch.y, len(batch.x))
        mask = random_masks(len(x), self.shape, fork(key, MASKS), self.mask_rate) if self.mask_rate else None
        terms = self.terms(x, y, mask, key)
        kl = terms.kl.mean()
        return self.weighted(terms.reconstruction.mean(), kl, kl if self.free_bits is None else terms.penalty.mean())

    def weighted(self, reconstruction: Tensor, kl: Tensor, penalty: Tensor) -> dict[str, Tensor]:
        beta = self.beta.at(self.updates)
        if self.training:
            self.updates += 1
        found = {"loss": reconstruction + beta * penalty, "reconstruction": reconstruction, "kl": kl}
        return found | {"beta": beta} if isinstance(beta, Tensor) else found

    def elbo(self, x: Tensor, y: Tensor | None = None, key: Tensor | int | None = None) -> Terms:
        """The evidence lower bound of whole images, in parts (B,), whatever ``beta``, free bits and masks training has.

        Differentiable. ``-(terms.reconstruction + terms.kl)`` is the bound of ``log p(x)``.
        """
        key = self.key(key)
        x, y = self.targets(x, key), self.labels(y, len(x))
        mu, logvar = self.posterior(x, y)
        z, kl = gmk.reparameterize_kl(mu, logvar, key)
        return Terms(-self.judge(z, y, x), kl, kl)

    def iwae(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        samples: int = 50,
        rows: int = 4096,
        key: Tensor | int | None = None,
    ) -> Tensor:
        """``log 1/k sum_i p(x, z_i) / q(z_i|x)`` (B,) with k = ``samples``: a lower bound of ``log p(x)``.

        In expectation it lies above the ELBO, grows with k and tends to ``log p(x)`` (Burda et al., "Importance
        weighted autoencoders", 2016, theorem 1). Differentiable. All samples of an image go through the decoder at
        once, as many images at a time as make ``rows`` decoded images; the result does not depend on ``rows`` but for
        rounding.
        """
        if samples < 1:
            raise ValueError(f"iwae: samples must be at least 1, got {samples}")
        key = self.key(key)
        x, y = self.targets(x, key), self.labels(y, len(x))
        step = max(1, rows // samples)
        parts = []
        for i in range(0, len(x), step):
            part, label = x[i : i + step], None if y is None else y[i : i + step]
            mu, logvar = (t.repeat_interleave(samples, 0) for t in self.posterior(part, label))
            z, _ = gmk.reparameterize_kl(mu, logvar, key, first=i * samples)
            likelihood = self.judge(z, None if label is None else label.repeat_interleave(samples, 0), part)
            weight = likelihood + gmk.gaussian_log_prob(z) - gmk.gaussian_log_prob(z, mu, logvar)
            parts.append(weight.view(-1, samples).logsumexp(1) - math.log(samples))
        return torch.cat(parts) if parts else x.new_zeros(0)

    @torch.no_grad()
    def kl_per_latent(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """``KL(q(z_j|x) || p(z_j))`` in nats (latents,), averaged over the images."""
        mu, logvar = self.posterior(self.still(x), self.labels(y, len(x)))
        return kl_divergence(mu, logvar).mean(0)

    def extra_repr(self) -> str:
        return f"{self.shape}, latents={self.latents}, likelihood={self.likelihood!r}, beta={self.beta}"


class ConditionalVAE(VAE):
    """A VAE of images given their class: both networks are told the label (Sohn et al. 2015; Kingma et al. 2014).

    As :class:`VAE`, with ``classes`` required. Everything takes labels ``y`` (B,), int64, in ``0 .. classes - 1``; the
    bounds are of ``log p(x|y)``.
    """

    def __init__(self, shape: Sequence[int], classes: int, **options: Any) -> None:
        if classes < 2:
            raise ValueError(f"{type(self).__name__}: classes must be at least 2, got {classes}")
        super().__init__(shape, classes=classes, **options)


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """``KL(N(mu, exp(logvar)) || N(0, 1))`` of each latent and image, without a gradient: for reports."""
    mu, logvar = mu.detach(), logvar.detach()
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)
