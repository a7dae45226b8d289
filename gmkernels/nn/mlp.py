"""The multilayer perceptron as a module."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from gmkernels.ops.mlp import mlp, reference
from gmkernels.ops.mlp.library import LAYERS


class MLP(nn.Module):
    """Linear layers with one activation between them, fused: see :func:`gmkernels.mlp`.

    Args:
        inputs, outputs: widths of the first and the last layer.
        hidden: widths of the layers between.
        activation: ``relu``, ``silu`` or ``tanh``.
        dropout: probability for the inputs and every hidden layer, in training.
        bias: let the layers have biases.
        backend: passed to :func:`gmkernels.mlp`.

    Its parameters are those of the ``torch.nn.Linear`` layers in ``layers``, initialised as these are. As the conditioner
    of an :class:`AffineCoupling` with ``split``, and without a context, it becomes part of one operator with the coupling.
    With dropout in training, on a GPU, where the products are all that counts, under autocast, for ``x`` of other than two
    dimensions and where a layer has hooks it runs its ``torch.nn.Linear`` layers one by one.

    ``forward(x, context=None)`` takes ``x`` (..., inputs) to (..., outputs); it puts the context (batch, contexts), counted in ``inputs``, behind ``x``.
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        bias: bool = True,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if activation not in reference.ACTIVATIONS:
            raise ValueError(f"MLP: activation must be one of {', '.join(reference.ACTIVATIONS)}, got {activation!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"MLP: dropout must be 0 or more and less than 1, got {dropout!r}")
        widths = (inputs, *hidden, outputs)
        self.activation, self.dropout, self.backend = activation, dropout, backend
        self.layers = nn.ModuleList(
            nn.Linear(a, b, bias, device=device, dtype=dtype) for a, b in itertools.pairwise(widths)
        )

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, dropout={self.dropout}"

    def fused(self, x: Tensor, backend: str) -> bool:
        """Whether an operator of ``backend`` around all layers does on ``x`` what this module would."""
        plain = type(self).forward is MLP.forward and not _watched(self)
        return plain and self.backend == backend and len(self.layers) <= LAYERS and self._fast(x)

    def _fast(self, x: Tensor) -> bool:
        drops = self.dropout > 0 and self.training
        if not x.is_cpu or x.dim() != 2 or drops or torch.is_autocast_enabled("cpu") or _has_any_global_hook():
            return False
        return all(_plain(layer) for layer in self.layers._modules.values())

    def parts(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """Weights and biases, as :func:`gmkernels.mlp` takes them."""
        # Past nn.Module's look-up, which for six parameters costs as much as a small product.
        found: list[dict[str, Any]] = [layer._parameters for layer in self.layers._modules.values()]
        return [p["weight"] for p in found], [p["bias"] for p in found]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x if context is None else torch.cat([x, context], 1)
        if not self._fast(x):
            return self.plain_forward(x)
        weights, biases = self.parts()
        for begin in range(0, len(weights), LAYERS):
            part = slice(begin, begin + LAYERS)
            x = reference.ACTIVATIONS[self.activation](x) if begin else x
            x = mlp(x, weights[part], biases[part], activation=self.activation, backend=self.backend)
        return x

    def plain_forward(self, x: Tensor) -> Tensor:
        """The forward pass in operations of PyTorch."""
        for i, layer in enumerate(self.layers):
            x = reference.ACTIVATIONS[self.activation](x) if i else x
            x = layer(torch.nn.functional.dropout(x, self.dropout, self.training))
        return x


def _plain(layer: nn.Module | None) -> bool:
    """Whether a layer is what it was made as: not parametrised, pruned, quantised, wrapped or watched."""
    return type(layer) is nn.Linear and "weight" in layer._parameters and not _watched(layer)


def _watched(m: nn.Module) -> bool:
    """Whether calling a module does more than its class says: it has hooks, or a forward method of its own."""
    hooks = m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
    return bool(hooks) or "forward" in m.__dict__
