"""Flows and their transforms in the language of ``torch.distributions``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints
from torch.distributions import Transform as TorchTransform

if TYPE_CHECKING:
    from .flow import Flow
    from .transforms import Transform


class FlowDistribution(Distribution):
    """A flow's density of real-valued samples, as :meth:`Flow.distribution` gives it.

    ``event_shape`` is that of a sample, ``batch_shape`` that of the context without its last dimension (empty without a
    context). :meth:`log_prob` broadcasts as in torch; :meth:`rsample` is differentiable in the flow's parameters, and
    draws its noise from the default torch generator. Of a flow with ``levels`` it is the density of dequantised images:
    take ``flow.log_prob`` and ``flow.sample`` for integers.

    Args:
        flow: evaluated as it is, so that a later change of its weights changes the distribution.
        context: (*batch_shape, contexts), or None for a flow without context.
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = True

    def __init__(self, flow: Flow, context: Tensor | None = None, validate_args: bool | None = None) -> None:
        self.flow, self.context = flow, context
        if context is not None and context.dim() == 0:
            raise ValueError("context must have shape (*batch_shape, contexts), got a single number")
        batch_shape = Size() if context is None else context.shape[:-1]
        # A wrong context is to be found out here, not at the first use.
        flow.check_context(
            math.prod(batch_shape),
            None if context is None else context.reshape(math.prod(batch_shape), context.shape[-1]),
        )
        super().__init__(batch_shape, Size(flow.shape), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowDistribution:
        new = self._get_checked_instance(FlowDistribution, _instance)
        shape = Size(batch_shape)
        new.flow = self.flow
        new.context = None if self.context is None else self.context.expand(*shape, self.context.shape[-1])
        super(FlowDistribution, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _rows(self, lead: Size) -> Tensor | None:
        """The context of samples of shape (*lead, *event_shape), one row each."""
        return None if self.context is None else self.context.expand(*lead, -1).reshape(math.prod(lead), -1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        events = len(self.event_shape)
        lead = torch.broadcast_shapes(value.shape[: value.dim() - events], self.batch_shape)
        x = value.expand(*lead, *self.event_shape).reshape(-1, *self.event_shape)
        return self.flow.log_prob(x, self._rows(lead)).reshape(lead)

    def rsample(self, sample_shape: Size | Sequence[int] = ()) -> Tensor:
        lead = Size(sample_shape) + self.batch_shape
        x = self.flow.rsample(math.prod(lead), self._rows(lead))
        return x.reshape(*lead, *self.event_shape)

    def sample(self, sample_shape: Size | Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)


def as_torch_transform(transform: Flow | Transform, context: Tensor | None = None) -> FlowTransform:
    """A flow, or one of the transforms it is made of, as a ``torch.distributions.transforms.Transform``.

    It maps samples to latents as ``transform.forward`` does; ``.inv`` is the other direction, so that
    ``TransformedDistribution(base, [as_torch_transform(flow).inv])`` is the flow's density. Leading dimensions are
    batch. A transform that is not a flow is taken to map vectors to vectors.

    Args:
        context: (*batch, contexts), broadcast against the leading dimensions of what is transformed.
    """
    return FlowTransform(transform, context)


class FlowTransform(TorchTransform):
    """What :func:`as_torch_transform` makes. The log-determinant of the last call is kept: asking for it is free."""

    bijective = True

    def __init__(self, transform: Flow | Transform, context: Tensor | None = None, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        self.transform, self.context = transform, context
        self.shape: tuple[int, ...] | None = getattr(transform, "shape", None) if hasattr(transform, "levels") else None
        self.domain = constraints.independent(constraints.real, 1 if self.shape is None else len(self.shape))
        self.codomain = constraints.independent(constraints.real, 1)
        self._last: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)

    def with_cache(self, cache_size: int = 1) -> FlowTransform:
        return self if cache_size == self._cache_size else FlowTransform(self.transform, self.context, cache_size)

    def _apply(self, x: Tensor, events: int, inverse: bool) -> tuple[Tensor, Tensor]:
        lead = x.shape[: x.dim() - events]
        rows = None if self.context is None else self.context.expand(*lead, -1).reshape(math.prod(lead), -1)
        step = self.transform.inverse if inverse else self.transform
        y, logdet = step(x.reshape(math.prod(lead), *x.shape[x.dim() - events :]), rows)
        return y.reshape(*lead, *y.shape[1:]), logdet.reshape(lead)

    def _call(self, x: Tensor) -> Tensor:
        y, logdet = self._apply(x, self.domain.event_dim, False)
        self._last = x, y, logdet
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, logdet = self._apply(y, 1, True)
        self._last = x, y, -logdet
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        last_x, last_y, logdet = self._last
        if logdet is not None and x is last_x and y is last_y:
            return logdet
        return self._apply(x, self.domain.event_dim, False)[1]

    def forward_shape(self, shape: Sequence[int]) -> Size:
        if self.shape is None:
            return Size(shape)
        return Size(shape[: len(shape) - len(self.shape)]) + Size([math.prod(self.shape)])

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        return Size(shape) if self.shape is None else Size(shape[:-1]) + Size(self.shape)
