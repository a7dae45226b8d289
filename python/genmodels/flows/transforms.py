"""The steps of a flow. Each maps ``x`` to ``(z, logabsdet)`` with ``logabsdet`` (batch,), and back by ``inverse``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk


class Transform(nn.Module):
    """A bijection of samples: ``forward(x, context) -> (z, logabsdet)``; ``inverse`` undoes it, logabsdet included."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def no_change(x: Tensor) -> Tensor:
    """The log-determinant of a step that keeps volume."""
    return x.new_zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32))


class Chain(Transform):
    """Steps one after another; their log-determinants add up.

    With ``reversible`` runs of steps restore their activations in backward (:class:`gmkernels.nn.Reversible`): memory in
    training hardly grows with their number, and a training step takes about a third longer.
    """

    def __init__(self, steps: Sequence[nn.Module], *, reversible: bool = False) -> None:
        super().__init__()
        self.steps, self.reversible = nn.ModuleList(steps), reversible
        self._cut: tuple[tuple[nn.Module, ...], tuple[nn.Module, ...]] = ((), ())

    @property
    def runs(self) -> Iterable[nn.Module]:
        """What forward goes through: the steps, or runs of them."""
        if not self.reversible:
            return self.steps
        steps = tuple(self.steps)
        if steps != self._cut[0]:  # at first, or because somebody has replaced one
            self._cut = steps, tuple(_runs(steps))
        return self._cut[1]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = no_change(x)
        for step in self.runs:
            x, logdet = step(x, context)
            total = total + logdet
        return x, total

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = no_change(z)
        for step in reversed(self.steps):
            z, logdet = step.inverse(z, context)  # type: ignore[operator]
            total = total + logdet
        return z, total


def _runs(steps: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """Steps between those that have a chain of their own inside, which takes care of itself."""
    for nested, run in itertools.groupby(steps, lambda step: isinstance(step, FactorOut)):
        if nested:
            yield from run
        else:
            yield gmk.nn.Reversible(run)


class Logit(Transform):
    """``y = logit(alpha + (1 - 2 alpha) x)`` from (0, 1) to the line (Dinh et al. 2017, section 4.1).

    ``log |dy/dx| = log(1 - 2 alpha) - log p - log(1 - p)`` with ``p = alpha + (1 - 2 alpha) x``, summed over a sample.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        if not 0 < alpha < 0.5:
            raise ValueError(f"Logit: alpha must be between 0 and 0.5, got {alpha!r}")
        self.alpha = alpha

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        p = self.alpha + (1 - 2 * self.alpha) * x
        log_p, log_q = p.log(), (-p).log1p()
        return log_p - log_q, (math.log(1 - 2 * self.alpha) - log_p - log_q).flatten(1).sum(1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        slope = F.logsigmoid(z) + F.logsigmoid(-z) - math.log(1 - 2 * self.alpha)
        return (z.sigmoid() - self.alpha) / (1 - 2 * self.alpha), slope.flatten(1).sum(1)


class Standardise(Transform):
    """``z = x * exp(log_scale) + shift`` with a learned scale and shift of each element of a sample.

    :meth:`initialise` sets both from data so that every element starts with mean 0 and deviation 1 (as the activation
    normalisation of Kingma and Dhariwal, "Glow", 2018, section 3.1, but for each element).
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(*shape))
        self.shift = nn.Parameter(torch.zeros(*shape))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        deviation, mean = torch.std_mean(x, dim=0)
        self.log_scale.copy_(-deviation.clamp(min=1e-6).log())
        self.shift.copy_(-mean * self.log_scale.exp())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return gmk.affine_coupling(x, self.log_scale, self.shift)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return gmk.affine_coupling(z, self.log_scale, self.shift, inverse=True)


class BatchNorm(Transform):
    """``z = (x - m) / sqrt(v + eps) * exp(log_gamma) + beta`` with the statistics of each feature, for images of each channel.

    ``log |det| = n sum(log_gamma - log(v + eps) / 2)`` over the features, ``n`` positions each (Dinh et al. 2017,
    section 3.7; Papamakarios et al. 2017, section 3.4). In training ``m`` and ``v`` are mean and variance of the batch, and
    running averages follow them by ``momentum``; in evaluation ``m`` and ``v`` are these averages. :meth:`inverse` uses
    the averages: what a batch in training did cannot be undone without it, nor can that direction be trained.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, features: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        if features < 1 or not 0 < momentum <= 1 or eps <= 0:
            raise ValueError(
                f"BatchNorm: features and eps must be positive, momentum in (0, 1], got {features}, {eps!r}, {momentum!r}"
            )
        self.momentum, self.eps = momentum, eps
        self.log_gamma = nn.Parameter(torch.zeros(features))
        self.beta = nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))
        self.used: tuple[Tensor, ...] = ()

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if len(x) < 2:
            raise ValueError(f"BatchNorm: statistics need a batch of 2 samples or more in training, got {len(x)}")
        variance, mean = torch.var_mean(x, dim=[0, *range(2, x.dim())], correction=0)
        return mean, variance

    def _affine(self, x: Tensor, moments: tuple[Tensor, ...], inverse: bool = False) -> tuple[Tensor, Tensor]:
        features = (-1, *[1] * (x.dim() - 2))
        mean, variance = moments
        centre, shift = mean.view(features), self.beta.view(features)
        log_scale = (self.log_gamma - 0.5 * (variance + self.eps).log()).view(features)
        if inverse:
            y, logdet = gmk.affine_coupling(x, log_scale, shift, inverse=True)
            return y + centre, logdet
        return gmk.affine_coupling(x - centre, log_scale, shift)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not self.training:
            self.used = ()
            return self._affine(x, (self.mean, self.variance))
        mean, variance = self._moments(x)
        with torch.no_grad():
            self.mean.lerp_(mean.to(self.mean), self.momentum)
            self.variance.lerp_(variance.to(self.variance), self.momentum)
        self.used = (mean.detach(), variance.detach())
        return self._affine(x, (mean, variance))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.training and torch.is_grad_enabled():
            raise RuntimeError(
                "BatchNorm: this direction knows no statistics of a batch, so that it cannot be trained; "
                "train the other one, or leave batch normalisation out"
            )
        return self._affine(z, (self.mean, self.variance), inverse=True)

    def replay(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """:meth:`forward`, once more for the same batch: the running averages have seen it."""
        return self._affine(x, self._moments(x) if self.training else (self.mean, self.variance))

    def undo(self, z: Tensor, used: tuple[Tensor, ...], context: Tensor | None = None) -> Tensor:
        """The batch that :meth:`forward` has normalised with the statistics ``used``."""
        return self._affine(z, used or (self.mean, self.variance), inverse=True)[0]


class Inverted(Transform):
    """Another transform the other way round, sharing its weights."""

    def __init__(self, inner: Transform) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.inner.inverse(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.inner(z, context)


class Permute(Transform):
    """``z_i = x_order[i]``: a fixed permutation of the features, kept with the weights.

    Args:
        features: how many.
        seed: under which the permutation is drawn, if ``order`` is not given.
        order: int64 (features,), each of ``0 .. features - 1`` once.
    """

    order: Tensor
    back: Tensor

    def __init__(self, features: int, seed: int = 0, order: Tensor | None = None) -> None:
        super().__init__()
        if order is None:
            order = gmk.random.bits(gmk.random.key(seed=seed), features).argsort(stable=True)
        elif order.dtype != torch.int64 or sorted(order.tolist()) != list(range(features)):
            raise ValueError(f"Permute: order must be a permutation of 0 .. {features - 1} in int64, got {order}")
        self.register_buffer("order", order.clone())
        self.register_buffer("back", order.argsort())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x[:, self.order], no_change(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z[:, self.back], no_change(z)


class Linear(Transform):
    """``z = W x`` with a learned square matrix, the invertible linear map of Kingma and Dhariwal ("Glow", 2018, section
    3.2) on vectors; ``log |det W|``.

    It starts as a rotation: of the plane by 45 degrees, else a random one drawn under ``seed``. Under autocast it keeps
    its precision: a product in half precision could not be undone.
    """

    def __init__(self, features: int, seed: int = 0) -> None:
        super().__init__()
        if features == 2:
            start = torch.tensor([[1.0, -1.0], [1.0, 1.0]]) * math.sqrt(0.5)
        else:
            start = torch.linalg.qr(gmk.random.normal(gmk.random.key(seed=seed), (features, features))).Q
        self.weight = nn.Parameter(start.to(torch.get_default_dtype()))

    def _logdet(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return torch.linalg.slogdet(self.weight.to(wide)).logabsdet.expand(len(x))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            return x @ self.weight.t().to(x), self._logdet(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return torch.linalg.solve(self.weight.t().to(z), z, left=False), -self._logdet(z)


class Squeeze(Transform):
    """Space to depth: (B, C, H, W) to (B, 4 C, H / 2, W / 2) (Dinh et al. 2017, section 3.6)."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        n, channels, height, width = x.shape
        # Of an empty batch PyTorch's functions leave the shape as it is.
        y = F.pixel_unshuffle(x, 2) if n else x.reshape(0, 4 * channels, height // 2, width // 2)
        return y, no_change(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        n, channels, height, width = z.shape
        x = F.pixel_shuffle(z, 2) if n else z.reshape(0, channels // 4, 2 * height, 2 * width)
        return x, no_change(z)


class Flatten(Transform):
    """(B, *shape) to (B, features)."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.flatten(1), no_change(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z.unflatten(1, self.shape), no_change(z)


class FactorOut(Transform):
    """Half of the channels become latents as they are; ``inner`` goes on with the rest (Dinh et al. 2017, section 3.6).

    From ``shape`` (C, H, W) to a flat vector: first the kept half, then the result of ``inner``, itself flat.
    """

    def __init__(self, shape: Sequence[int], inner: Transform) -> None:
        super().__init__()
        channels, *size = shape
        self.kept = (channels // 2, *size)
        self.inner = inner

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, rest = x.tensor_split([self.kept[0]], 1)
        z, logdet = self.inner(rest, context)
        return torch.cat([kept.flatten(1), z], 1), logdet

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, inner = z.tensor_split([math.prod(self.kept)], 1)
        rest, logdet = self.inner.inverse(inner, context)
        return torch.cat([kept.unflatten(1, self.kept), rest], 1), logdet
