"""Trained flows of nflows, zuko and normflows as flows of ours: the same density, to rounding.

Each function copies the weights, so that the result stands alone. What cannot be taken over exactly raises
``ValueError``, saying what it is. Dropout is left out and batch statistics become running averages: compare with the
other library's model in evaluation mode.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk

from ..errors import need
from .flow import Flow
from .imported import (
    Masked,
    Network,
    Pair,
    Residuals,
    Unsupported,
    activation_name,
    affine,
    coupling,
    merged,
    pick_rows,
    sequential,
)
from .transforms import BatchNorm, Chain, Inverted, Permute


def from_nflows(model: Any) -> Flow:
    """An ``nflows.flows.Flow`` of vectors over a standard normal.

    Supported: affine and additive couplings with a ``ResidualNet``, ``MaskedAffineAutoregressiveTransform``
    without a context, permutations, ``BatchNorm`` between layers, and compositions and inverses of these: all that
    ``SimpleRealNVP`` and ``MaskedAutoregressiveFlow`` build, without batch normalisation inside the networks.
    """
    need("nflows", "taking over a model of nflows", "peers")
    _expect(model, importlib.import_module("nflows.flows").Flow, "nflows.flows.Flow")
    _is(model._distribution, "StandardNormal")
    _is(model._embedding_net, "Identity")
    return _flow(_nflows_steps(model._transform), _only(model._distribution._shape), None)


def from_zuko(model: Any) -> Flow:
    """A ``zuko.flows.Flow`` of vectors over a diagonal normal: ``MAF``, ``NICE``, ``RealNVP``, with or without a context.

    Supported: ``MaskedAutoregressiveTransform`` and ``GeneralCouplingTransform`` with their default, affine univariate
    transform, plain networks, and inverses and compositions of these.
    """
    need("zuko", "taking over a model of zuko", "peers")
    _expect(model, importlib.import_module("zuko.lazy").Flow, "zuko.flows.Flow")
    base = model.base()
    _is(base, "DiagNormal")
    steps = _zuko_steps(model.transform, base.event_shape[0])
    loc, scale = base.base_dist.loc, base.base_dist.scale
    if bool((loc != 0).any()) or bool((scale != 1).any()):
        steps.append(affine(-scale.log(), -loc / scale))
    return _flow(steps, base.event_shape[0], _contexts(model.transform))


def from_normflows(model: Any) -> Flow:
    """A ``normflows.NormalizingFlow`` of vectors over a ``DiagGaussian``.

    Supported: ``AffineCouplingBlock`` (channel splits), ``MaskedAffineFlow``, ``MaskedAffineAutoregressive``, ``Permute``,
    ``AffineConstFlow`` and an initialised ``ActNorm``. That library counts from latents to samples, so that its
    ``MaskedAffineAutoregressive`` becomes an IAF.
    """
    normflows = need("normflows", "taking over a model of normflows", "peers")
    _expect(model, normflows.NormalizingFlow, "normflows.NormalizingFlow")
    _is(model.q0, "DiagGaussian")
    features = _only(model.q0.shape)
    # From samples to latents: the last flow comes first, each turned round.
    steps: list[nn.Module] = []
    for flow in reversed(model.flows):
        steps.append(Inverted(Chain(_normflows_steps(flow, features))))
    loc, log_scale = model.q0.loc[0], model.q0.log_scale[0]
    return _flow([*steps, affine(-log_scale, -loc * torch.exp(-log_scale))], features, 0)


def _expect(model: Any, kind: type, name: str) -> None:
    if not isinstance(model, kind):
        raise TypeError(f"expected a {name}, got {type(model).__name__}")


def _is(part: Any, *names: str) -> None:
    if type(part).__name__ not in names:
        raise Unsupported(f"a {type(part).__name__} is not supported here, only {' or '.join(names)}")


def _only(shape: Sequence[int]) -> int:
    if len(shape) != 1:
        raise Unsupported(f"only flows of vectors are supported, this one's samples have shape {tuple(shape)}")
    return int(shape[0])


def _flow(steps: Sequence[nn.Module], features: int, contexts: int | None) -> Flow:
    flow = Flow(Chain(merged(steps)), (features,), contexts=contexts)
    if not any(True for _ in flow.parameters()):
        raise Unsupported("the model has no parameters: there is nothing to take over")
    return flow.eval()


# nflows


def _nflows_steps(transform: Any) -> list[nn.Module]:
    kind = type(transform).__name__
    if kind == "CompositeTransform":
        return [step for part in transform._transforms for step in _nflows_steps(part)]
    if kind == "InverseTransform":
        return [Inverted(Chain(_nflows_steps(transform._transform)))]
    if kind in ("Permutation", "RandomPermutation", "ReversePermutation") and transform._dim == 1:
        return [Permute(len(transform._permutation), order=transform._permutation)]
    if kind == "BatchNorm":
        return [_nflows_norm(transform)]
    if kind in ("AffineCouplingTransform", "AdditiveCouplingTransform"):
        if transform.unconditional_transform is not None:
            raise Unsupported("a coupling with an unconditional transform is not supported")
        kept, changed = transform.identity_features, transform.transform_features
        n = len(changed)
        scale = torch.arange(n, 2 * n) if kind[1] == "f" else None
        network = pick_rows(_residuals(transform.transform_net), scale, torch.arange(n))
        return coupling(network, kept, changed, *(("exp", None) if scale is None else ("sigmoid", 1e-3)))
    if kind == "MaskedAffineAutoregressiveTransform":
        return [_tiled_made(transform.autoregressive_net, False).build("softplus", None)]
    raise Unsupported(f"nflows' {kind} is not supported")


def _nflows_norm(norm: Any) -> BatchNorm:
    new = BatchNorm(len(norm.bias), momentum=norm.momentum, eps=norm.eps).to(norm.bias)
    with torch.no_grad():
        new.log_gamma.copy_(norm.weight.log())
        new.beta.copy_(norm.bias)
        new.mean.copy_(norm.running_mean)
        new.variance.copy_(norm.running_var)
    return new


def _residuals(net: Any) -> Residuals:
    """The ``ResidualNet`` that nflows and normflows share."""
    _is(net, "ResidualNet")
    if getattr(net, "preprocessing", None) is not None or any(block.use_batch_norm for block in net.blocks):
        raise Unsupported("a ResidualNet with batch normalisation or preprocessing is not supported")
    gates = [block.context_layer for block in net.blocks if hasattr(block, "context_layer")]
    activation = net.blocks[0].activation if len(net.blocks) else F.relu
    pairs = [block.linear_layers for block in net.blocks]
    return Residuals(net.initial_layer, pairs, net.final_layer, activation, gates)


def _tiled_made(net: Any, folded: bool) -> Masked:
    """The MADE of nflows and normflows: the last layer gives log-scale and shift of one feature after another.

    normflows' (``folded``) has no activation between its first two layers if it is feedforward: they are one layer.
    """
    final = net.final_layer
    order = final.degrees[::2].clone()
    residual = type(net.blocks[0]).__name__ == "MaskedResidualBlock" if len(net.blocks) else False
    if hasattr(net, "context_layer"):
        raise Unsupported(
            "an autoregressive network with a context is not supported: its layers use it each their own way"
        )
    if not isinstance(getattr(net, "preprocessing", nn.Identity()), nn.Identity):
        raise Unsupported("an autoregressive network with preprocessing is not supported")
    if any(getattr(block, "use_batch_norm", False) or getattr(block, "batch_norm", None) for block in net.blocks):
        raise Unsupported("batch normalisation inside an autoregressive network is not supported")
    if not len(net.blocks):
        raise Unsupported("an autoregressive network without hidden layers is not supported")
    first = net.initial_layer
    if residual:
        middle = [layer for block in net.blocks for layer in block.linear_layers]
        hidden = [first.degrees, *(block.linear_layers[0].degrees for block in net.blocks)]
    else:
        middle = [block.linear for block in net.blocks]
        hidden = [first.degrees, *(layer.degrees for layer in middle)]
    layers = [(layer.weight * layer.mask, layer.bias) for layer in (first, *middle)]
    if folded and not residual:
        (w0, b0), (w1, b1), *rest = layers
        layers, hidden = (
            [((w1.double() @ w0.double()).to(w0), (w1.double() @ b0.double() + b1).to(b0)), *rest],
            hidden[1:],
        )
    rows = torch.cat([torch.arange(0, 2 * len(order), 2), torch.arange(1, 2 * len(order), 2)])
    layers.append((final.weight[rows], final.bias[rows]))
    name = activation_name(net.blocks[0].activation)
    return Masked(order, [d.clone() for d in hidden], layers, residual, name)


# zuko


def _zuko_steps(transform: Any, features: int) -> list[nn.Module]:
    kind = type(transform).__name__
    if kind == "LazyComposedTransform":
        return [step for part in transform.transforms for step in _zuko_steps(part, features)]
    if kind == "LazyInverse":
        return [Inverted(Chain(_zuko_steps(transform.transform, features)))]
    _is(transform, "GeneralCouplingTransform", "MaskedAutoregressiveTransform")
    if getattr(transform.univariate, "__name__", "") != "MonotonicAffineTransform":
        raise Unsupported(f"zuko's {transform.univariate!r} is not supported, only MonotonicAffineTransform")
    shift, scale = torch.arange(0, 2 * features, 2), torch.arange(1, 2 * features, 2)
    if kind == "GeneralCouplingTransform":
        kept, changed = transform.mask.nonzero()[:, 0], (~transform.mask).nonzero()[:, 0]
        network = pick_rows(sequential(list(transform.hyper)), scale[: len(changed)], shift[: len(changed)])
        return coupling(network, kept, changed, "soft_clip", math.log(1e3))
    return [_zuko_made(transform, features, torch.cat([scale, shift])).build("soft_clip", math.log(1e3))]


def _zuko_made(transform: Any, features: int, rows: Tensor) -> Masked:
    if transform.order is None:
        raise Unsupported("zuko's autoregressive transforms of a given adjacency are not supported, only of an order")
    linears = [layer for layer in transform.hyper if type(layer).__name__ == "MaskedLinear"]
    activations = {activation_name(layer) for layer in transform.hyper if type(layer).__name__ != "MaskedLinear"}
    if len(activations) != 1:
        raise Unsupported(f"an autoregressive network with {len(activations)} kinds of activation is not supported")
    order = transform.order.argsort(stable=True).argsort() + 1
    # A unit's degree is the number of features it depends on: these sets are nested.
    first, *_ = linears
    seen = first.mask[:, :features]
    hidden = [seen.sum(1)]
    for layer in linears[1:-1]:
        seen = (layer.mask.double() @ seen.double()) > 0
        hidden.append(seen.sum(1))
    contexts = first.weight.shape[1] - features
    weights = [first.weight[:, :features], *(layer.weight for layer in linears[1:-1]), linears[-1].weight[rows]]
    biases = [*(layer.bias for layer in linears[:-1]), linears[-1].bias[rows]]
    masks = [first.mask[:, :features], *(layer.mask for layer in linears[1:-1]), linears[-1].mask[rows]]
    layers = [(w * m, b) for w, m, b in zip(weights, masks, biases, strict=True)]
    context = first.weight[:, features:] * first.mask[:, features:] if contexts else None
    return Masked(order, hidden, layers, False, activations.pop(), context)


def _contexts(transform: Any) -> int | None:
    """The length of the context that zuko's transforms take."""
    for part in transform.modules():
        if type(part).__name__ == "MaskedAutoregressiveTransform":
            return int(part.hyper.in_features) - int(part.hyper.out_features) // 2
        if type(part).__name__ == "GeneralCouplingTransform":
            return int(part.hyper.in_features) - int(part.mask.sum())
    return None


# normflows: each list goes from latents to samples


def _normflows_steps(flow: Any, features: int) -> list[nn.Module]:
    kind = type(flow).__name__
    if kind == "Permute":
        if flow.mode == "shuffle":
            return [Permute(features, order=flow.perm)]
        return [Permute(features, order=torch.arange(features).roll(-(features // 2)))]
    if kind in ("AffineConstFlow", "ActNorm"):
        if kind == "ActNorm" and not flow.data_dep_init_done > 0:
            raise Unsupported("an ActNorm that has not seen a batch is not supported: it has no scale yet")
        return [affine(flow.s[0].detach().clone(), flow.t[0].detach().clone())]
    if kind == "MaskedAffineFlow":
        if flow.b.dim() != 2:
            raise Unsupported("a MaskedAffineFlow of images is not supported")
        nets = [_normflows_network(getattr(flow, n)) if n in flow._modules else None for n in ("s", "t")]
        return [gmk.nn.AffineCoupling(Pair(*nets), mask=flow.b[0] > 0.5, scale_map="exp")]
    if kind == "AffineCouplingBlock":
        return _normflows_coupling(flow, features)
    if kind == "MaskedAffineAutoregressive":
        return [_tiled_made(flow.autoregressive_net, True).build("sigmoid", 1e-3)]
    raise Unsupported(f"normflows' {kind} is not supported")


def _normflows_coupling(block: Any, features: int) -> list[nn.Module]:
    split, layer, _ = block.flows
    if split.mode not in ("channel", "channel_inv"):
        raise Unsupported(f"a coupling with the split {split.mode!r} is not supported")
    parts = torch.arange(features).chunk(2)
    kept, changed = parts if split.mode == "channel" else parts[::-1]
    n = len(changed)
    scale, shift = (torch.arange(1, 2 * n, 2), torch.arange(0, 2 * n, 2)) if layer.scale else (None, torch.arange(n))
    network = pick_rows(_normflows_network(layer.param_map), scale, shift)
    names = {"exp": "exp", "sigmoid": "reciprocal_sigmoid", "sigmoid_inv": "sigmoid"}
    return coupling(network, kept, changed, names[layer.scale_map] if layer.scale else "exp", None)


def _normflows_network(net: Any) -> Residuals | Network:
    return sequential(list(net.net)) if type(net).__name__ == "MLP" else _residuals(net)
