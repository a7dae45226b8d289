"""Virtual batch normalisation, and what takes a whole network's reference batch through it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gmkernels.ops.virtual_batch_norm import virtual_batch_norm


class VirtualBatchNorm(nn.Module):
    """Normalises each example by the statistics of a reference batch and of the example itself.

    :func:`gmkernels.virtual_batch_norm` with a learned weight and bias per channel (Salimans et al., "Improved techniques
    for training GANs", 2016, section 3.5). In place of batch normalisation where examples must not depend on each other:
    in a critic under a gradient penalty, or in a generator whose samples come out alike within a batch.

    The statistics belong to the present parameters of all layers before this one, so the reference batch has to pass
    through the network again whenever they change. :func:`virtual_batch` and :class:`VirtualBatch` see to that; gradients
    flow through the statistics to those parameters. There are no running averages, and ``eval()`` changes nothing.

    Args:
        num_features: the number of channels, dimension 1 of the input (batch, channels, ...).
        eps: added to the variance.
        backend: as for :func:`gmkernels.virtual_batch_norm`.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, *, backend: str = "auto") -> None:
        super().__init__()
        if num_features < 1 or not eps >= 0:
            raise ValueError(
                f"VirtualBatchNorm: num_features must be positive and eps 0 or more, got {num_features} and {eps}"
            )
        self.num_features, self.eps, self.backend = num_features, eps, backend
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.reference: tuple[Tensor, Tensor, int] | None = None
        self.listening = False

    def set_reference(self, reference: Tensor) -> Tensor:
        """Keep the statistics of a reference batch (n, channels, ...), and return it normalised by them alone.

        They stay in autograd's graph, so they serve until the next backward that frees it.
        """
        if reference.dim() < 2 or reference.shape[1] != self.num_features or not reference.numel():
            raise ValueError(
                f"VirtualBatchNorm: a reference batch must have shape (n, {self.num_features}, ...) and not be empty, "
                f"got {tuple(reference.shape)}"
            )
        values = reference.to(torch.promote_types(reference.dtype, torch.float32))
        var, mean = torch.var_mean(values, dim=(0, *range(2, values.dim())), correction=0)
        self.reference = mean, var, reference.shape[0]
        return self._normalise(reference, mean, var, math.inf)

    def clear_reference(self) -> None:
        """Forget the statistics, so that stale ones are never used."""
        self.reference = None

    def forward(self, x: Tensor) -> Tensor:
        if self.listening:
            return self.set_reference(x)
        if self.reference is None:
            raise RuntimeError(
                "VirtualBatchNorm has no reference batch: call the network inside gmkernels.nn.virtual_batch(network, "
                "reference), or wrap it in gmkernels.nn.VirtualBatch"
            )
        return self._normalise(x, *self.reference)

    def _normalise(self, x: Tensor, mean: Tensor, var: Tensor, examples: float) -> Tensor:
        return virtual_batch_norm(
            x, mean, var, self.weight, self.bias, examples=examples, eps=self.eps, backend=self.backend
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


@contextlib.contextmanager
def virtual_batch(network: nn.Module, *reference: Tensor) -> Iterator[nn.Module]:
    """Run the reference batch through a network once; inside the ``with`` block its layers use those statistics.

        with virtual_batch(critic, reference):
            loss = critic(fake).mean() - critic(real).mean()
        loss.backward()

    Several calls share one pass of the reference, if one backward follows them all (or all but the last keep the
    graph). Outside the block the layers have no statistics and say so.

    Args:
        network: a module with :class:`VirtualBatchNorm` layers, itself or inside.
        reference: what ``network`` takes, of a batch that stays the same during training.

    Raises:
        ValueError: the network has no such layer, or one that the reference batch did not reach.
        RuntimeError: the network is inside such a block already.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, VirtualBatchNorm)]
    if not layers:
        raise ValueError("virtual_batch: the network has no VirtualBatchNorm layer")
    if any(layer.reference is not None or layer.listening for layer in layers):
        raise RuntimeError("virtual_batch: a layer of this network has a reference batch already")
    try:
        for layer in layers:
            layer.listening = True
        try:
            network(*reference)
        finally:
            for layer in layers:
                layer.listening = False
        missed = sum(layer.reference is None for layer in layers)
        if missed:
            raise ValueError(f"virtual_batch: the reference batch did not reach {missed} of {len(layers)} layers")
        yield network
    finally:
        for layer in layers:
            layer.clear_reference()


class VirtualBatch(nn.Module):
    """A network together with its reference batch: every call runs the reference through it first.

    Costs one pass of the reference a call; :func:`virtual_batch` shares it among calls. The reference is a buffer and
    belongs to the state_dict, since the network means nothing without it.

    Args:
        network: a module with :class:`VirtualBatchNorm` layers that takes one tensor.
        reference: its reference batch, chosen once; some tens of examples will do.
    """

    reference: Tensor

    def __init__(self, network: nn.Module, reference: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("reference", reference.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        with virtual_batch(self.network, self.reference):
            return self.network(x)
