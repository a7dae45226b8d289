"""Launcher of the C++ core: one call for all samples, or one a chunk where somebody watches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gmkernels.core.layout import address
from gmkernels.core.native import DTYPES, cpu

from .wavenet_network import Stack

_core = cpu()


def wavenet_sample(
    parameters: Tensor,
    values: Tensor,
    key: Tensor,
    x_init: Tensor | None,
    condition: Tensor | None,
    local: Tensor | None,
    local_weight: Tensor | None,
    shape: Sequence[int],
    network: Sequence[int],
    temperature: float,
    first: int,
    on_chunk: Callable[[int, Tensor], object] | None = None,
    chunk: int = 1024,
) -> Tensor:
    net = Stack.of(network)
    batch, time = shape
    x = torch.zeros(tuple(shape), dtype=parameters.dtype if net.real else torch.int64)
    held = 0 if x_init is None else x_init.shape[1]
    if x_init is not None:
        x[:, :held] = x_init
    if not x.numel():
        return x
    by_time = None if local is None else local.transpose(1, 2)
    tensors = (parameters, values, condition, by_time, local_weight, key)
    alive = [None if t is None else t.contiguous() for t in tensors]
    sizes = [batch, time, *net[:6], net.first, net.kernel, net.local]

    def go(begin: int, end: int, state: Tensor | None) -> int:
        return _core.wavenet_sample(
            sizes, list(net.dilations), first, DTYPES[parameters.dtype], net.head, net.levels, temperature,
            [*map(address, alive), address(state)], [held, begin, end], 0 if state is None else state.numel(),
            x.data_ptr(),
        )  # fmt: skip

    state = torch.empty(go(0, 0, None), dtype=torch.uint8)
    if on_chunk is None:
        go(0, time, state)
        return x
    for begin in range(0, time, chunk):
        end = min(begin + chunk, time)
        go(begin, end, state)
        on_chunk(begin, x[:, begin:end].clone())
    return x
