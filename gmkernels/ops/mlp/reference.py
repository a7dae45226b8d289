"""The definition of the multilayer perceptron, by itself and as the conditioner of an affine coupling: plain PyTorch, any
floating dtype, differentiable any number of times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gmkernels.core import product
from gmkernels.ops.coupling.reference import affine_coupling
from gmkernels.ops.gaussian.reference import bernoulli_log_likelihood

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "silu": F.silu, "tanh": torch.tanh}


def layers(parameters: Sequence[Tensor | None]) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of the layers that there are."""
    pairs = zip(parameters[::2], parameters[1::2], strict=True)
    return [(weight, bias) for weight, bias in pairs if weight is not None]


def mlp(x: Tensor, *rest: Any) -> tuple[Tensor]:
    """The output; what kernels keep for backward besides is of no use to autograd."""
    *parameters, each, activation = rest
    if each is not None:
        x = paired(x, each, activation)
    for i, (weight, bias) in enumerate(layers(parameters)):
        x = product.linear(ACTIVATIONS[activation](x) if i else x, weight, bias)
    return (x,)


def paired(x: Tensor, each: Tensor, activation: str) -> Tensor:
    """What a perceptron reads of every sample with every row of ``each``."""
    # Contiguous, because its derivatives are sums that PyTorch takes in the order that elements have in memory.
    return ACTIVATIONS[activation]((x.contiguous().unsqueeze(1) + each.contiguous()).flatten(0, 1))


def affine_coupling_mlp(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """y and the log-determinant."""
    *parameters, norm_log_scale, norm_shift, split, activation, scale_map, clamp, inverse = rest
    left, right = x.tensor_split((split,), dim=1)
    kept, changed = (left, right) if split > 0 else (right, left)
    (params,) = mlp(kept, *parameters, None, activation)
    log_scale, shift = params.chunk(2, dim=1)
    y, logdet = affine_coupling(changed, log_scale, shift, None, scale_map, clamp, inverse)
    whole = torch.cat((kept, y) if split > 0 else (y, kept), dim=1)
    if norm_log_scale is not None:
        whole, logdet = normed(whole, logdet, norm_log_scale, norm_shift)
    return whole, logdet


def bernoulli_log_likelihood_mlp(z: Tensor, *rest: Any) -> tuple[Tensor]:
    """The log-likelihoods."""
    *parameters, x, activation = rest
    (logits,) = mlp(z, *parameters, None, activation)
    images = x.shape[0]
    several = logits.view(images, logits.shape[0] // max(images, 1), logits.shape[1])
    return (bernoulli_log_likelihood(several, x.unsqueeze(1), None, 2).flatten(),)


def normed(y: Tensor, logdet: Tensor, log_scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """What follows a coupling: each feature scaled and shifted."""
    wide = log_scale.to(logdet.dtype)
    return (y * wide.exp() + shift).to(y.dtype), logdet + wide.sum()
