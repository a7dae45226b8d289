"""Autoregressive flows: MADE as a density, MAF and IAF.

All three stack the same layer, ``z_i = x_i exp(a_i) + t_i`` with ``a_i`` and ``t_i`` of the features before i, which a
network with masked weights gives for all features at once. From x to z it takes one evaluation of the network. From z
to x one feature follows another: :func:`gmkernels.made_inverse` does that exactly in one call, with every hidden
unit computed once, about half the arithmetic of an evaluation but less of it at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import nn

import gmkernels as gmk

from .flow import Flow
from .fronts import front
from .transforms import BatchNorm, Chain, Flatten, Inverted, Linear, Transform

Permutation = Literal["reverse", "random", "linear"]


class AutoregressiveFlow(Flow):
    """What MAF and IAF share: see :class:`MAF`."""

    _turned = False

    def __init__(
        self,
        shape: int | Sequence[int],
        *,
        layers: int = 5,
        hidden: Sequence[int] = (128, 128),
        contexts: int = 0,
        permutation: Permutation = "reverse",
        residual: bool = False,
        activation: str = "relu",
        batch_norm: bool = False,
        scale_map: str = "soft_clip",
        clamp: float | None = None,
        levels: int | None = None,
        alpha: float = 0.05,
        equalise: bool = False,
        whiten: bool = False,
        seed: int = 0,
    ) -> None:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if permutation not in ("reverse", "random", "linear"):
            raise ValueError(
                f"{type(self).__name__}: permutation must be 'reverse', 'random' or 'linear', got {permutation!r}"
            )
        if layers < 1:
            raise ValueError(f"{type(self).__name__}: layers must be 1 or more, got {layers}")
        features = math.prod(shape)
        steps: list[nn.Module] = []
        for i in range(layers):
            if i and batch_norm:
                steps.append(BatchNorm(features))
            if i and permutation == "linear":
                steps.append(Linear(features, seed=seed + i))
            order = {"reverse": (None, "reversed")[i % 2], "random": "random" if i else None}.get(permutation)
            made = gmk.nn.MADE(
                features,
                hidden,
                contexts=contexts,
                residual=residual,
                activation=activation,
                order=order,
                seed=seed + i,
            )
            _start_as_identity(made)
            steps.append(gmk.nn.MaskedAffineAutoregressive(made, scale_map, clamp))
        first = front(shape, levels, alpha, equalise, whiten)
        if not whiten:
            first.append(Flatten(shape))
        core = Chain(steps)
        super().__init__(Chain([*first, Inverted(core) if self._turned else core]), shape, levels, contexts=contexts)

    def _round(self, kind: type[Flow]) -> Flow:
        """A flow of the other kind around the same layers."""
        assert isinstance(self.transform, Chain)
        *first, core = self.transform.steps
        assert isinstance(core, Transform)
        other = kind.__new__(kind)
        turned = core.inner if isinstance(core, Inverted) else Inverted(core)
        Flow.__init__(other, Chain([*first, turned]), self.shape, self.levels, contexts=self.contexts)
        return other


def _start_as_identity(made: gmk.nn.MADE) -> None:
    """As the couplings' networks: deep stacks train from the first step."""
    last = made.linears()[-1]
    nn.init.zeros_(last.weight)
    if last.bias is not None:
        nn.init.zeros_(last.bias)


class MAF(AutoregressiveFlow):
    """Masked autoregressive flow (G. Papamakarios, T. Pavlakou and I. Murray, 2017): cheap :meth:`log_prob`.

    The layers go from samples to latents, so the density of given samples takes one evaluation of each network.
    :meth:`sample` runs the sequential direction, exactly and differentiably, in one call a layer: some times slower, not
    ``features`` times.

    Args:
        shape: of one sample: (D,) or D; images (C, H, W) are read row by row as vectors.
        layers: how many autoregressive layers.
        hidden: widths of the hidden layers of each network; with ``residual`` of the stream and of the inside of
            each block.
        contexts: length of a context vector that conditions every layer; 0 for none.
        permutation: between layers: ``reverse`` turns the order of the features round, ``random`` draws a new one,
            ``linear`` goes through a learned matrix.
        residual, activation: see :class:`gmkernels.nn.MADE`.
        batch_norm: normalise between layers, by the batch's statistics in training (section 3.4 of the paper).
        scale_map, clamp: of :func:`gmkernels.affine_coupling`.
        levels: the integer levels of the samples (256 for 8-bit images), or None for real values.
        alpha: of the logit transform that takes (0, 1) to the line; used with ``levels`` only.
        equalise: :class:`Equalise` integer samples in place of the logit.
        whiten: start from the Gaussian of the data's covariance (:class:`Whiten`), so that only the rest is learnt.
        seed: of permutations.
    """

    def invert(self) -> IAF:
        """The :class:`IAF` of the same layers the other way round, sharing the weights; scale and shift at the front stay."""
        return self._round(IAF)  # type: ignore[return-value]


class MADE(MAF):
    """One autoregressive layer as a density (Germain et al. 2015; Papamakarios et al. 2017, section 3.1).

    Every feature is Gaussian given those before it: ``z`` of the layer is standard normal. Options as for :class:`MAF`.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        *,
        hidden: Sequence[int] = (128, 128),
        contexts: int = 0,
        residual: bool = False,
        activation: str = "relu",
        scale_map: str = "soft_clip",
        clamp: float | None = None,
        levels: int | None = None,
        alpha: float = 0.05,
        equalise: bool = False,
        whiten: bool = False,
    ) -> None:
        super().__init__(
            shape,
            layers=1,
            hidden=hidden,
            contexts=contexts,
            residual=residual,
            activation=activation,
            scale_map=scale_map,
            clamp=clamp,
            levels=levels,
            alpha=alpha,
            equalise=equalise,
            whiten=whiten,
        )


class IAF(AutoregressiveFlow):
    """Inverse autoregressive flow (Kingma et al. 2016): cheap :meth:`sample` and :meth:`rsample_and_log_prob`.

    The layers of a :class:`MAF` the other way round: from latents to samples each takes one evaluation of its network,
    and the density of its own samples comes with them, which suits reverse KL (:meth:`fit_to`). :meth:`log_prob` of
    given samples runs the sequential direction, exactly and differentiably, so that training by likelihood works
    too. Arguments as for :class:`MAF`.
    """

    _turned = True

    def invert(self) -> MAF:
        """The :class:`MAF` of the same layers the other way round, sharing the weights; scale and shift at the front stay."""
        return self._round(MAF)  # type: ignore[return-value]
