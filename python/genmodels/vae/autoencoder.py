"""What a variational autoencoder takes in, and what one does with it: from images to latents and back."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

import gmkernels as gmk

from ..model import Model
from .networks import Decoder, Encoder

Likelihood = Literal["bernoulli", "gaussian"]


def fork(key: Tensor, stream: int) -> Tensor:
    """Another key for another purpose of the same call."""
    return key + torch.tensor([0, stream], device=key.device)


# What the key of a call is forked for; its own stream is the latents' noise.
BINARISE, MASKS, REFINE = 1, 2, 16


class Autoencoder(Model):
    """Images in, latents, images out, of a model that has these; see :class:`VAE` for what they are."""

    shape: tuple[int, int, int]
    latents: int
    levels: int
    classes: int
    likelihood: Likelihood
    binarise: bool
    mask_rate: float
    encoder: Encoder
    decoder: Decoder

    # What goes in.

    def pixels(self, x: Tensor) -> Tensor:
        """Images as floating-point numbers, integers divided by ``levels - 1``.

        Raises:
            ValueError: another shape than the model's, or values outside [0, 1] under a Bernoulli likelihood.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"expected images (batch, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        x = x.to(self.dtype) if x.is_floating_point() else x.to(self.dtype).div_(self.levels - 1)
        if self.likelihood == "bernoulli" and len(x) and not torch.compiler.is_compiling():
            low, high = (float(end) for end in x.aminmax())
            if not (low >= 0 and high <= 1):
                raise ValueError(
                    f"a Bernoulli likelihood needs pixels in [0, 1], got values from {low:.4g} to {high:.4g}"
                    + (f" (integers are divided by levels - 1 = {self.levels - 1})" if low >= 0 else "")
                )
        return x

    def targets(self, x: Tensor, key: Tensor) -> Tensor:
        """What the likelihood is of: the pixels, or with ``binarise`` a draw of zeros and ones from them."""
        x = self.pixels(x)
        return gmk.random.bernoulli(x, fork(key, BINARISE)) if self.binarise else x

    def still(self, x: Tensor) -> Tensor:
        """The pixels, or with ``binarise`` the likelier of 0 and 1: what is encoded where nothing should be random."""
        return self.pixels(x).round() if self.binarise else self.pixels(x)

    def labels(self, y: Tensor | None, n: int) -> Tensor | None:
        """Labels as the networks take them.

        Raises:
            ValueError: they are missing, not wanted, not ``n`` integers, or outside ``0 .. classes - 1``.
        """
        if not self.classes:
            return None
        if y is None:
            raise ValueError(f"{type(self).__name__} needs labels y (batch,) in 0..{self.classes - 1}, got None")
        if y.is_floating_point() or tuple(y.shape) != (n,):
            raise ValueError(f"labels must be {n} integers of shape ({n},), got {y.dtype} of shape {tuple(y.shape)}")
        if len(y) and not torch.compiler.is_compiling():
            low, high = (int(end) for end in y.aminmax())
            if low < 0 or high >= self.classes:
                raise ValueError(f"labels must lie in 0..{self.classes - 1}, got values from {low} to {high}")
        return y.to(self.device)

    # The two networks.

    def posterior(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, latents) of q(z|x), of floating-point pixels, of which ``mask`` are visible."""
        if self.mask_rate > 0:
            seen = torch.ones_like(x[:, :1]) if mask is None else mask.to(x.dtype).expand_as(x[:, :1])
            x = torch.cat([x if mask is None else x * seen, seen], 1)
        mu, logvar = self.encoder(x, y).chunk(2, 1)
        return mu, logvar

    def mean(self, output: Tensor) -> Tensor:
        """The expected image of what the decoder made of ``z``."""
        return output.sigmoid() if self.likelihood == "bernoulli" else output

    # Pictures.

    @torch.no_grad()
    def encode(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The posterior means (B, latents) of images, of which ``mask`` (broadcastable to (B, 1, H, W)) are visible."""
        return self.posterior(self.still(x), self.labels(y, len(x)), self._mask(mask, len(x)))[0]

    @torch.no_grad()
    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """The expected images (B, *shape) of latents (B, latents)."""
        if tuple(z.shape[1:]) != (self.latents,):
            raise ValueError(f"expected latents of shape (batch, {self.latents}), got {tuple(z.shape)}")
        return self.mean(self.decoder(z, self.labels(y, len(z))))

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The expected images of the posterior means."""
        return self.decode(self.encode(x, y), y)

    def sample(
        self, n: int, y: Tensor | None = None, *, key: Tensor | int | None = None, temperature: float = 1.0
    ) -> Tensor:
        """``n`` expected images (n, *shape) of latents from the prior, its deviation times ``temperature``."""
        return self.decode(temperature * gmk.random.normal(self.key(key), (n, self.latents), dtype=self.dtype), y)

    def interpolate(self, corners: Tensor, steps: int = 8, y: Tensor | None = None) -> Tensor:
        """A grid of images (steps, steps, *shape) between four, their posterior means mixed linearly.

        ``corners`` (4, *shape) are top left, top right, bottom left, bottom right. With classes, all four have the one
        label ``y`` (a tensor of one element).
        """
        if tuple(corners.shape) != (4, *self.shape):
            raise ValueError(f"corners must have shape {(4, *self.shape)}, got {tuple(corners.shape)}")
        z = self.encode(corners, None if y is None else y.reshape(1).expand(4))
        share = torch.linspace(0, 1, steps, dtype=z.dtype, device=z.device)[:, None]
        top, bottom = torch.lerp(z[0], z[1], share), torch.lerp(z[2], z[3], share)
        grid = torch.lerp(top, bottom, share[:, :, None]).flatten(0, 1)
        images = self.decode(grid, None if y is None else y.reshape(1).expand(len(grid)))
        return images.unflatten(0, (steps, steps))

    @torch.no_grad()
    def manifold(
        self, side: int = 20, *, x: Tensor | None = None, y: Tensor | None = None, label: int | None = None
    ) -> Tensor:
        """Images (side, side, *shape) of a regular grid of quantiles of two directions of the latent space.

        With two latents these are the latents themselves, from the 2nd to the 98th percentile of the prior. With more,
        images ``x`` (and, with classes, their labels ``y``) are needed: the directions are the two along which their
        posterior means vary most, through the mean, from the 2nd to the 98th percentile of a normal distribution with
        their deviations. With classes, the images are of class ``label``.
        """
        share = torch.linspace(0.02, 0.98, side, dtype=self.dtype, device=self.device)
        across = torch.special.ndtri(share)
        if x is None:
            if self.latents != 2:
                raise ValueError(f"manifold needs images x for a model with {self.latents} latents; only 2 need none")
            centre, axes = across.new_zeros(2), torch.eye(2, dtype=self.dtype, device=self.device)
        else:
            z = self.encode(x, y)
            centre = z.mean(0)
            _, deviations, axes = torch.linalg.svd(z - centre, full_matrices=False)
            axes = axes * deviations[:, None] / math.sqrt(len(z))
            axes = torch.cat([axes, axes.new_zeros(2, axes.shape[1])])[
                :2
            ]  # one image, or latent, has no two directions
        down = -across
        z = centre + down[:, None, None] * axes[1] + across[None, :, None] * axes[0]
        z = z.flatten(0, 1)
        labels = None if label is None else torch.full((len(z),), label, device=self.device)
        return self.decode(z, labels).unflatten(0, (side, side))

    @torch.no_grad()
    def inpaint(
        self,
        x: Tensor,
        mask: Tensor,
        steps: int = 4,
        y: Tensor | None = None,
        *,
        draws: int = 1,
        key: Tensor | int | None = None,
    ) -> Tensor:
        """Images with their hidden pixels filled in.

        First z is drawn from the posterior given the visible pixels and decoded into the hidden ones; then, ``steps -
        1`` times, z is drawn given the completed image, and the hidden pixels are decoded again (pseudo-Gibbs; Rezende
        et al. 2014, appendix F). With ``binarise`` the hidden pixels are drawn in between, else they are expected
        values.

        Args:
            mask: bool, broadcastable to (B, 1, H, W); True marks what is visible. Hidden pixels of ``x`` are not read.
            draws: average so many independent fillings: 1 shows one way it may have been, many what is expected.

        Raises:
            ValueError: the model was made with ``mask_rate=0``: its encoder has never seen a hidden pixel.
        """
        if not self.mask_rate:
            raise ValueError("inpaint needs a model with mask_rate above 0: this encoder has never seen a hidden pixel")
        if steps < 1 or draws < 1:
            raise ValueError(f"inpaint: steps and draws must be at least 1, got {steps} and {draws}")
        shown = self._mask(mask, len(x))
        assert shown is not None
        x, y, key = self.still(torch.where(shown, x, 0)), self.labels(y, len(x)), self.key(key)
        visible, original = (t.repeat_interleave(draws, 0) for t in (shown, x))
        y = None if y is None else y.repeat_interleave(draws, 0)
        filled, seen, expected = original, visible, original
        for step in range(steps):
            mu, logvar = self.posterior(filled, y, seen)
            z, _ = gmk.reparameterize_kl(mu, logvar, fork(key, REFINE + 2 * step))
            expected = self.mean(self.decoder(z, y))
            hidden = gmk.random.bernoulli(expected, fork(key, REFINE + 2 * step + 1)) if self.binarise else expected
            filled, seen = torch.where(visible, original, hidden), torch.ones_like(visible)
        return torch.where(shown, x, expected.unflatten(0, (len(x), draws)).mean(1))

    def _mask(self, mask: Tensor | None, n: int) -> Tensor | None:
        if mask is None:
            return None
        if mask.dtype != torch.bool:
            raise TypeError(f"a mask must be bool, True where pixels are visible, got {mask.dtype}")
        return mask.to(self.device).expand(n, 1, *self.shape[1:])
