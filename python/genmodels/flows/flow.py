"""What every flow can do once it has an invertible transform: density, samples, codes, interpolation, bits/dim."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import gmkernels as gmk

from ..data import Batch
from ..model import Model
from .adapters import FlowDistribution
from .finite import finite_forward, finite_inverse
from .fronts import Equalise, Whiten
from .transforms import Chain, Flatten, Inverted, Logit, Standardise, Transform

_LN_2PI = math.log(2 * math.pi)


class Flow(Model):
    """A density built from a bijection to a standard normal.

    :meth:`forward` and :meth:`inverse` are the bijection, with its log-determinant. With ``levels``, samples are images
    of integers ``0 .. levels - 1``: they become reals in (0, 1) by adding uniform noise and dividing by ``levels``
    (uniform dequantisation; Theis et al., "A note on the evaluation of generative models", 2016, section 3.1), and
    their log-probability is the lower bound that this gives.

    Args:
        transform: a :class:`Transform` from (B, *shape) to (B, features).
        shape: of one sample.
        levels: number of integer levels, or None for real-valued samples.
        contexts: length of the context vectors (batch, contexts) that condition it; 0 for none, None if it is not known
            and not checked.

    Randomness: everything takes ``key`` (an int64 tensor from ``gmkernels.random.key``, or an int seed); without it a
    key is drawn from the default torch generator.
    """

    updates: Tensor

    def __init__(
        self, transform: Transform, shape: Sequence[int], levels: int | None = None, *, contexts: int | None = None
    ) -> None:
        super().__init__()
        self.transform, self.shape, self.levels, self.contexts = transform, tuple(shape), levels, contexts
        self.features = math.prod(shape)
        self._target: Callable[[Tensor], Tensor] | None = None
        self._warmup = 0

    @torch.no_grad()
    def initialise(self, x: Tensor, *, key: Tensor | int | None = 0) -> None:
        """Set the first steps' scale and shift (histograms, covariances) so that ``x``, a sample of the data, leaves them
        with mean 0 and deviation 1."""
        x = x.to(self.device)
        x = x if x.is_floating_point() else self.dequantise(x, key)
        steps = self.transform.steps if isinstance(self.transform, Chain) else [self.transform]
        for step in steps:
            if isinstance(step, (Standardise, Equalise, Whiten)):
                step.initialise(x)
            elif not isinstance(step, (Logit, Flatten)):
                return
            x = step(x)[0]

    def invert(self) -> Flow:
        """The flow whose bijection is this one's inverse, sharing its weights: its cheap direction is the other one."""
        if self.levels is not None or len(self.shape) != 1:
            raise ValueError(
                f"{type(self).__name__}: only a flow of real-valued vectors can be turned round, got shape {self.shape}"
                f" with {'no' if self.levels is None else self.levels} levels"
            )
        return Flow(Inverted(self.transform), self.shape, contexts=self.contexts)

    def check_context(self, rows: int, context: Tensor | None) -> None:
        """Raise ``ValueError`` unless ``context`` is what this flow takes for ``rows`` samples."""
        if self.contexts is None:
            return
        got = "none" if context is None else f"shape {tuple(context.shape)}"
        if not self.contexts and context is not None:
            raise ValueError(f"{type(self).__name__}: this flow takes no context, got {got}")
        if self.contexts and (context is None or tuple(context.shape) != (rows, self.contexts)):
            raise ValueError(f"{type(self).__name__}: expected a context of shape ({rows}, {self.contexts}), got {got}")

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Real-valued ``x`` (B, *shape) to latents (B, features) and ``log |det dz/dx|`` (B,)."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"expected samples of shape (batch, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}"
            )
        self.check_context(len(x), context)
        return finite_forward(self, x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latents (B, features) to ``x`` (B, *shape) and ``log |det dx/dz|`` (B,)."""
        if tuple(z.shape[1:]) != (self.features,):
            raise ValueError(f"expected latents of shape (batch, {self.features}), got {tuple(z.shape)}")
        self.check_context(len(z), context)
        return self.transform.inverse(z, context)

    def dequantise(self, x: Tensor, key: Tensor | int | None = None) -> Tensor:
        """Integers to reals in (0, 1): ``(x + u) / levels`` with ``u`` uniform.

        Raises:
            TypeError: this flow is of real numbers.
            ValueError: values that are no levels.
        """
        if self.levels is None:
            raise TypeError(f"this flow takes real-valued samples, got {x.dtype}; give it levels= for integers")
        if x.numel() and not torch.compiler.is_compiling():
            low, high = (int(end) for end in x.aminmax())
            if low < 0 or high >= self.levels:
                raise ValueError(f"samples must be levels 0..{self.levels - 1}, got values from {low} to {high}")
        u = gmk.random.uniform(self.key(key), x.shape, dtype=torch.promote_types(self.dtype, torch.float32))
        return (x + u) / self.levels

    def quantise(self, x: Tensor) -> Tensor:
        """Reals to the integers whose bins they lie in (uint8 up to 256 levels)."""
        assert self.levels is not None
        whole = (x * self.levels).floor().clamp(0, self.levels - 1)
        return whole.to(torch.uint8 if self.levels <= 256 else torch.int64)

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, key: Tensor | int | None = None) -> Tensor:
        """Log-density in nats (B,) of real-valued samples; of integers, a lower bound of the log-probability.

        The bound is unbiased for ``E_u log p((x + u) / levels) - features log(levels)``, with one draw of ``u``.
        """
        if x.is_floating_point():
            z, logdet = self(x, context)
            return self._prior(z) + logdet
        z, logdet = self(self.dequantise(x, key), context)
        return self._prior(z) + logdet - self.features * math.log(self.levels or 1)

    def _prior(self, z: Tensor) -> Tensor:
        wide = z.to(torch.promote_types(z.dtype, torch.float32))
        return -0.5 * (wide.square() + _LN_2PI).sum(1)

    def rsample_and_log_prob(
        self, sample_shape: int | Sequence[int] = (), context: Tensor | None = None, *, key: Tensor | int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Real-valued samples (*sample_shape, *shape), differentiable in the parameters, and their log-density.

        One pass: the log-determinant comes with the sample. ``context`` has one row for each sample.

        Raises:
            NonFiniteError: a sample is NaN or infinite; it names the layer that made it so.
        """
        lead = (sample_shape,) if isinstance(sample_shape, int) else tuple(sample_shape)
        z = gmk.random.normal(self.key(key), (math.prod(lead), self.features), dtype=self.dtype)
        x, logdet = finite_inverse(self, z, context)
        return x.reshape(*lead, *self.shape), (self._prior(z) - logdet).reshape(lead)

    @torch.no_grad()
    def sample(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Tensor | None = None,
        *,
        key: Tensor | int | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Samples (*sample_shape, *shape): integers if the flow has levels, else reals.

        ``temperature`` scales the latent's deviation: below 1 the samples are likelier and less varied.
        """
        lead = (sample_shape,) if isinstance(sample_shape, int) else tuple(sample_shape)
        z = gmk.random.normal(self.key(key), (math.prod(lead), self.features), dtype=self.dtype)
        return self.decode(temperature * z, context).reshape(*lead, *self.shape)

    @torch.no_grad()
    def encode(self, x: Tensor, context: Tensor | None = None, *, key: Tensor | int | None = None) -> Tensor:
        """Latents (B, features) of samples, real-valued or integer."""
        return self(x if x.is_floating_point() else self.dequantise(x, key), context)[0]

    @torch.no_grad()
    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Samples (B, *shape) of latents: integers if the flow has levels. Raises as :meth:`rsample_and_log_prob`."""
        x = finite_inverse(self, z, context)[0]
        return x if self.levels is None else self.quantise(x)

    @torch.no_grad()
    def bits_per_dim(
        self, x: Tensor, context: Tensor | None = None, *, key: Tensor | int | None = None, draws: int = 1
    ) -> Tensor:
        """``-log2 P(x) / features`` (B,) of integer samples: an upper bound, in bits per integer.

        With several ``draws`` of the noise the bound is tighter: ``log mean_k exp(log p_k)``, the importance-weighted
        bound of Burda et al. 2016, section 3. For real-valued samples, bits per dimension of the density.
        """
        seeds = self.key(key)
        each = [self.log_prob(x, context, key=seeds + torch.tensor([0, k], device=seeds.device)) for k in range(draws)]
        return -(torch.stack(each).logsumexp(0) - math.log(draws)) / (self.features * math.log(2))

    def rsample(
        self, sample_shape: int | Sequence[int] = (), context: Tensor | None = None, *, key: Tensor | int | None = None
    ) -> Tensor:
        """Real-valued samples (*sample_shape, *shape), differentiable in the parameters."""
        return self.rsample_and_log_prob(sample_shape, context, key=key)[0]

    def distribution(self, context: Tensor | None = None) -> FlowDistribution:
        """The density of real-valued samples as a ``torch.distributions.Distribution``; see :class:`FlowDistribution`."""
        return FlowDistribution(self, context)

    def fit_to(self, log_density: Callable[[Tensor], Tensor], warmup: int = 0) -> None:
        """Let :meth:`losses` measure the distance to an unnormalised density, instead of the likelihood of samples.

        The loss is ``KL(flow || density)`` in nats up to the density's normaliser, ``E_z[log q(x) - beta
        log_density(x)]`` with ``x`` the sample of the latent ``z``: batches then are standard normal latents
        (B, features). ``beta`` rises linearly to 1 over the first ``warmup`` updates, so that the flow finds all modes
        before it settles in one (Rezende and Mohamed 2015, equation 20).
        """
        self._target, self._warmup = log_density, warmup
        if not hasattr(self, "updates"):
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=self.device))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``loss``: mean bits/dim of integer samples, mean negative log-density in nats of real-valued ones.

        After :meth:`fit_to`, the divergence that it describes.
        """
        if self._target is not None:
            x, logdet = self.inverse(batch.x)
            beta = ((self.updates + 1) / (self._warmup + 1)).clamp(max=1.0).to(logdet.dtype)
            if self.training:
                self.updates += 1
            return {"loss": (self._prior(batch.x) - logdet - beta * self._target(x)).mean()}
        nats = -self.log_prob(batch.x).mean()
        return {"loss": nats if self.levels is None else nats / (self.features * math.log(2))}

    def interpolate(self, corners: Tensor, steps: int = 8, *, key: Tensor | int | None = None) -> Tensor:
        """A grid of samples (steps, steps, *shape) between four: see :func:`four_corners`."""
        if tuple(corners.shape) != (4, *self.shape):
            raise ValueError(f"corners must have shape {(4, *self.shape)}, got {tuple(corners.shape)}")
        z = four_corners(self.encode(corners, key=key), steps)
        return self.decode(z.flatten(0, 1)).unflatten(0, (steps, steps))


def four_corners(z: Tensor, steps: int) -> Tensor:
    """``z = cos a (cos b z0 + sin b z1) + sin a (cos b z2 + sin b z3)`` on a grid (steps, steps, features).

    Rows are ``a``, columns ``b``, both evenly from 0 to pi/2 (Dinh et al. 2017, equation 19). ``z``: (4, features).
    The squares of the four weights add up to one, so that normal latents stay normal.
    """
    angle = torch.linspace(0, math.pi / 2, steps, dtype=z.dtype, device=z.device)
    a, b = angle[:, None, None], angle[None, :, None]
    z0, z1, z2, z3 = z
    return a.cos() * (b.cos() * z0 + b.sin() * z1) + a.sin() * (b.cos() * z2 + b.sin() * z3)
