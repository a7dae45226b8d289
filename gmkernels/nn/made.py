"""Masked linear layers, MADE, and the affine autoregressive layer of MAF and IAF."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from gmkernels.core import checks
from gmkernels.ops.autoregressive import made
from gmkernels.ops.autoregressive.made_network import ACTIVATIONS, Made
from gmkernels.ops.coupling import affine_coupling, clamp_of
from gmkernels.ops.masked_linear import library, staircase

from .masked_conv import _lowered


@torch.fx.wrap
def _visible(weight: Tensor, seen: Tensor, columns: Tensor | None) -> Tensor:
    """The weights of a masked layer with zeros where the mask is."""
    place = torch.arange(weight.shape[1], device=weight.device)
    rank = place if columns is None else torch.empty_like(place).scatter_(0, columns, place)
    return weight.masked_fill(rank >= seen[:, None], 0.0)


class _Fixed(nn.Module):
    """Buffers that follow from a module's arguments, so that they are right after a time on the meta device too, from
    where ``to_empty`` brings what happened to be in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._fixed: dict[str, Tensor] = {}

    def _fix(self, name: str, value: Tensor | None, device: Any, persistent: bool = False) -> None:
        if value is None:
            return self.register_buffer(name, None)
        self._fixed[name] = value
        held = torch.empty(value.shape, dtype=value.dtype, device=device).copy_(value)
        self.register_buffer(name, held, persistent=persistent)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        for name, value in self._fixed.items():
            held = self.get_buffer(name)
            if type(held) is Tensor and not held.is_meta:
                held.copy_(value)
        return self


class MaskedLinear(_Fixed):
    """A linear layer in which output o sees input i only if ``in_degree[i] <= out_degree[o]``.

    The same as :func:`gmkernels.masked_linear`, but that the degrees are looked at once.

    Args:
        in_degree, out_degree: integers, one for each input and output.
        strict: demand ``in_degree[i] < out_degree[o]``.
        relu: take ``relu(x)`` in place of ``x``.
        bias: whether to learn one.
        backend: passed to :func:`gmkernels.masked_linear`.

    ``forward(x)``: (batch, inputs) to (batch, outputs). Parameters ``weight`` (outputs, inputs), masked ones included, which are
    never read, and ``bias`` (outputs). Each row starts uniform within 1 / sqrt(inputs that it sees).
    """

    seen: Tensor
    columns: Tensor | None

    def __init__(
        self,
        in_degree: Sequence[int] | Tensor,
        out_degree: Sequence[int] | Tensor,
        strict: bool = False,
        relu: bool = False,
        bias: bool = True,
        *,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        before, after = (torch.as_tensor(d, dtype=torch.int64, device="cpu") for d in (in_degree, out_degree))
        self.strict, self.relu, self.backend = strict, relu, backend
        columns, seen = staircase(before, after, strict)
        ascending = torch.equal(columns, torch.arange(len(columns), device="cpu"))
        self._fix("seen", seen, device)
        self._fix("columns", None if ascending else columns, device)
        self.weight = nn.Parameter(torch.empty(len(after), len(before), device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(len(after), device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.seen.clamp_min(1).to(self.weight.dtype).rsqrt()
        with torch.no_grad():
            self.weight.uniform_(-1.0, 1.0).mul_(bound[:, None])
            if self.bias is not None:
                self.bias.uniform_(-1.0, 1.0).mul_(bound)

    def extra_repr(self) -> str:
        outputs, inputs = self.weight.shape
        return f"{inputs}, {outputs}, {int(self._fixed['seen'].sum())} of {inputs * outputs} weights"

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[1] != self.weight.shape[1]:
            raise ValueError(f"MaskedLinear: x must have shape (batch, {self.weight.shape[1]}), got {tuple(x.shape)}")
        x, weight, bias = _lowered(x, self.weight, self.bias)
        if x.dtype is not weight.dtype or x.dtype not in checks.FLOATING:
            checks.floating("MaskedLinear", "x", x)
            checks.same_dtype("MaskedLinear", x=x, weight=weight)
        if self.columns is not None:
            x, weight = x[:, self.columns], weight[:, self.columns]
        return library.masked_linear(x, weight, bias, self.seen, self.relu, self.backend)

    def plain_forward(self, x: Tensor) -> Tensor:
        """The forward pass in operations of PyTorch."""
        x = torch.relu(x) if self.relu else x
        return F.linear(x, _visible(self.weight, self.seen, self.columns), self.bias)


class MADE(_Fixed):
    """A masked autoencoder (M. Germain et al., "MADE: masked autoencoder for distribution estimation", 2015).

    Output d is a function of the features of lower degree than d's (and of the context). Features have the degrees 1 to D;
    hidden units 0 to D - 1, and see what has their degree or less; an output sees hidden units of less than its own.

    Args:
        features: D.
        hidden: widths of the hidden layers; with ``residual``, of the stream and then of the inside of each block.
        contexts: how many numbers a context has; it enters the first layer through ``context_weight`` (hidden[0], contexts).
        residual: blocks ``h + W2 act(W1 act(h))``, and an output that is linear in the stream, as in nflows.
        activation: ``relu`` or ``tanh``.
        order: the degree of each feature: a permutation of 1 to D; ``"reversed"``; ``"random"``, drawn with ``seed``. None:
            1, 2, ..., D.
        hidden_degrees: for each hidden layer the degrees of its units, any of 0 to D - 1 in any order, or ``"random"``:
            uniform from the lowest degree of the layer before, drawn with ``seed``. None: spread evenly from 1, with
            contexts from 0: the first feature's output depends on the context through units of degree 0.
        seed: of what is drawn here.
        outputs: how many numbers each feature gets; for an affine layer two, log-scale and shift.
        backend: passed to :func:`gmkernels.masked_linear`.

    ``forward(x, context=None)``: (batch, D) to (batch, outputs, D).

    Inside, everything comes in ascending order of degree, which makes unmasked weights a staircase: columns of the first
    weight, units of hidden layers, and rows of the last (all features' first output, then the second, ...).
    ``places`` (D) says which feature comes at each place; :meth:`linears` are the layers from first to last; ``degrees`` are
    the ascending degrees of the hidden layers. Weights of another library are brought into this order once, when
    they are loaded: a stable ``argsort`` of that library's degrees.
    """

    places: Tensor | None
    ranks: Tensor | None
    feature_degrees: Tensor
    hidden_degrees: Tensor

    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (512, 512),
        *,
        contexts: int = 0,
        residual: bool = False,
        activation: str = "relu",
        order: Sequence[int] | Tensor | str | None = None,
        hidden_degrees: Sequence[Sequence[int] | Tensor] | str | None = None,
        seed: int = 0,
        outputs: int = 2,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(features, outputs, *hidden, 1) < 1 or contexts < 0 or not hidden:
            raise ValueError(
                "MADE: features, outputs and one or more hidden widths must be positive and contexts 0 or more, "
                f"got {features}, {outputs}, {tuple(hidden)}, {contexts}"
            )
        if activation not in ACTIVATIONS:
            raise ValueError(f"MADE: activation must be one of {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}")
        self.features, self.outputs, self.contexts, self.activation = features, outputs, contexts, activation
        self.network = Made(features, tuple(hidden), residual)
        generator = torch.Generator().manual_seed(seed)
        ranked = _order(features, order, generator)
        ascending = torch.equal(ranked, torch.arange(1, features + 1, device="cpu"))
        self._fix("places", None if ascending else torch.argsort(ranked), device)
        self._fix("ranks", None if ascending else ranked - 1, device)
        self.order = tuple(ranked.tolist())
        self._fix("feature_degrees", ranked, device, persistent=True)
        layers = _degrees(features, hidden, hidden_degrees, generator, 0 if contexts else min(1, features - 1))
        self.degrees = tuple(tuple(d.tolist()) for d in layers)
        self._fix("hidden_degrees", torch.cat(layers), device, persistent=True)

        inputs, last = torch.arange(1, features + 1, device="cpu"), len(hidden)
        self.layers = nn.ModuleList(
            MaskedLinear(
                inputs if start < 0 else layers[start],
                inputs.repeat(outputs) if to == last else layers[to],
                strict=to == last,
                relu=activation == "relu" and start >= 0 and not (residual and to == last),
                backend=backend,
                device=device,
                dtype=dtype,
            )
            for start, to in self.network.links()
        )
        self.context_weight = None
        if contexts:
            self.context_weight = nn.Parameter(torch.empty(hidden[0], contexts, device=device, dtype=dtype))
            nn.init.uniform_(self.context_weight, -(contexts**-0.5), contexts**-0.5)

    def extra_repr(self) -> str:
        return f"features={self.features}, contexts={self.contexts}, residual={self.network.residual}"

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Weights mean something with their own degrees only, so that these are in the state and have to agree."""
        errors = rest[-1]
        for name in ("feature_degrees", "hidden_degrees"):
            given, own = state_dict.get(prefix + name), getattr(self, name)
            if given is not None and (given.shape != own.shape or not torch.equal(given.to(own), own)):
                errors.append(f"MADE: {prefix}{name} are not this network's: build it with the same order and degrees")
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def linears(self) -> list[MaskedLinear]:
        """The layers from first to last; with ``residual``, first, two for each block, last."""
        return [layer for layer in self.layers if isinstance(layer, MaskedLinear)]

    def condition(self, batch: int, context: Tensor | None) -> Tensor | None:
        """What the context adds to the first layer."""
        if (context is None) != (self.context_weight is None):
            raise ValueError(f"MADE: contexts={self.contexts}, got {'no' if context is None else 'a'} context")
        if context is None or self.context_weight is None:
            return None
        if tuple(context.shape) != (batch, self.contexts):
            raise ValueError(
                f"MADE: context must have shape (batch, contexts) = {(batch, self.contexts)}, got {tuple(context.shape)}"
            )
        return nn.functional.linear(context, self.context_weight)

    def ascending(self, x: Tensor, context: Tensor | None) -> Tensor:
        """(batch, D) to (batch, outputs * D), both in order of degree."""
        first, *middle, last = self.layers
        condition = self.condition(x.shape[0], context)
        h = first(x)
        if condition is not None:
            h = h + condition
        # A layer takes the relu of its input itself.
        act = torch.tanh if self.activation == "tanh" else _same
        if self.network.residual:
            for into, out in zip(middle[::2], middle[1::2], strict=True):
                h = h + out(act(into(act(h))))
            return last(h)
        for layer in (*middle, last):
            h = layer(act(h))
        return h

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        out = self.ascending(self.sort(x), context).unflatten(1, (self.outputs, self.features))
        return self.unsort(out)

    def sort(self, x: Tensor) -> Tensor:
        """Features in order of degree."""
        if x.dim() != 2 or x.shape[1] != self.features:
            raise ValueError(f"MADE: x must have shape (batch, {self.features}), got {tuple(x.shape)}")
        return x if self.places is None else x[:, self.places]

    def unsort(self, x: Tensor) -> Tensor:
        """Features, in the last dimension, as they were."""
        return x if self.ranks is None else x[..., self.ranks]


class MaskedAffineAutoregressive(nn.Module):
    """``z = x * exp(map(s(x))) + t(x)`` with s and t of a MADE: the layer of a MAF and, the other way round, of an IAF
    (G. Papamakarios, T. Pavlakou and I. Murray, 2017; D. Kingma et al., 2016).

    Args:
        made: a :class:`MADE` of two outputs, the log-scale s and the shift t.
        scale_map, clamp: see :func:`gmkernels.affine_coupling`.
        backend: passed to it and to :func:`gmkernels.made_inverse`.

    ``forward(x, context=None)`` returns ``(z, logdet)`` after one evaluation of the network; ``inverse(z, context=None)``
    returns ``(x, logdet)`` of the inverse, by :func:`gmkernels.made_inverse`: exact, of about half the arithmetic of that
    evaluation, with a gradient of its own. Twice differentiable.
    """

    def __init__(
        self, made: MADE, scale_map: str = "soft_clip", clamp: float | None = None, *, backend: str = "auto"
    ) -> None:
        super().__init__()
        if made.outputs != 2:
            raise ValueError(f"MaskedAffineAutoregressive: made must have outputs=2, got {made.outputs}")
        clamp_of("MaskedAffineAutoregressive", scale_map, clamp)
        self.made, self.scale_map, self.clamp, self.backend = made, scale_map, clamp, backend

    def extra_repr(self) -> str:
        return f"scale_map={self.scale_map!r}, clamp={self.clamp}"

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        net = self.made
        x = net.sort(x)
        s, t = net.ascending(x, context).chunk(2, dim=1)
        z, logdet = affine_coupling(x, s, t, scale_map=self.scale_map, clamp=self.clamp, backend=self.backend)
        return net.unsort(z), logdet

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        net = self.made
        z = net.sort(z)
        x, logdet = made.made_inverse_ascending(
            z,
            [p for layer in net.linears() for p in (layer.weight, layer.bias) if p is not None],
            net.condition(z.shape[0], context),
            net.hidden_degrees,
            net.network,
            net.places,
            activation=net.activation,
            scale_map=self.scale_map,
            clamp=self.clamp,
            backend=self.backend,
        )
        return net.unsort(x), logdet


def _same(x: Tensor) -> Tensor:
    return x


def _order(features: int, order: Sequence[int] | Tensor | str | None, generator: torch.Generator) -> Tensor:
    natural = torch.arange(1, features + 1, device="cpu")
    if order is None:
        return natural
    if isinstance(order, str):
        if order not in ("reversed", "random"):
            raise ValueError(f"MADE: order must be degrees, 'reversed' or 'random', got {order!r}")
        return (
            natural.flip(0) if order == "reversed" else torch.randperm(features, generator=generator, device="cpu") + 1
        )
    found = torch.as_tensor(order, dtype=torch.int64, device="cpu")
    if found.shape != (features,):
        raise ValueError(f"MADE: order must have {features} degrees, got shape {tuple(found.shape)}")
    made.check_order("MADE", found)
    return found


def _degrees(
    features: int,
    hidden: Sequence[int],
    given: Sequence[Sequence[int] | Tensor] | str | None,
    generator: torch.Generator,
    least: int,
) -> list[Tensor]:
    """Of each hidden layer, ascending, from ``least`` on."""
    if given is None:
        return [least + torch.arange(width, device="cpu") * (features - least) // width for width in hidden]
    if isinstance(given, str):
        if given != "random":
            raise ValueError(f"MADE: hidden_degrees must be degrees for each layer or 'random', got {given!r}")
        found = []
        for width in hidden:
            found.append(torch.randint(least, features, (width,), generator=generator, device="cpu").sort().values)
            least = int(found[-1][0])
        return found
    if len(given) != len(hidden):
        raise ValueError(f"MADE: hidden_degrees must be given for {len(hidden)} layers, got {len(given)}")
    found = []
    for i, (width, degrees) in enumerate(zip(hidden, given, strict=True)):
        layer = torch.as_tensor(degrees, dtype=torch.int64, device="cpu")
        if layer.shape != (width,):
            raise ValueError(f"MADE: hidden_degrees[{i}] must be {width} degrees, got shape {tuple(layer.shape)}")
        made.check_degrees("MADE", f"hidden_degrees[{i}]", layer, features)
        found.append(layer.sort().values)
    return found
