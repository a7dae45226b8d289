"""Launcher of the C++ core: one call for all rows, or one a row where somebody watches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gmkernels.core.layout import address
from gmkernels.core.native import DTYPES, cpu

from .made_native import made_inverse as made_inverse
from .made_native import made_inverse_backward as made_inverse_backward
from .network import Network
from .wavenet_native import wavenet_sample as wavenet_sample

_core = cpu()


def pixelcnn_sample(
    parameters: Tensor,
    values: Tensor,
    key: Tensor,
    x_init: Tensor | None,
    mask: Tensor | None,
    condition: Tensor | None,
    shape: Sequence[int],
    network: Sequence[int],
    temperature: float,
    first: int,
    on_row: Callable[[int, Tensor], object] | None = None,
) -> Tensor:
    net = Network.of(network)
    batch, channels, height, width = shape
    image = torch.zeros(tuple(shape), dtype=torch.int64)
    if mask is not None and x_init is not None:
        mask = mask.expand(batch, height, width).contiguous()
        image.copy_(torch.where(mask[:, None], x_init, image))
    alive = [None if t is None else t.contiguous() for t in (parameters, values, condition, key, mask)]

    def rows(begin: int, end: int, state: Tensor | None) -> int:
        return _core.pixelcnn_sample(
            list(shape), [net.width, net.hidden, net.outputs], list(net.kernels), first, DTYPES[parameters.dtype],
            net.gated, net.groups, net.head, net.levels, temperature, [*map(address, alive), address(state)], begin,
            end, 0 if state is None else state.numel(), image.data_ptr(),
        )  # fmt: skip

    if image.numel():
        state = torch.empty(rows(0, 0, None), dtype=torch.uint8)
        if on_row is None:
            rows(0, height, state)
            return image
        for row in range(height):
            rows(row, row + 1, state)
            on_row(row, image.clone())
    return image
