"""Schema and fake of the autoregressive sampler, and what goes round the doors: a call that shows its rows, and one on a
device without a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gmkernels.core import backends
from gmkernels.core.doors import ALIASES, Operator

from . import cached, reference


def _fake(parameters, values, key, x_init, mask, condition, shape, network, temperature, first):
    return key.new_empty(shape)


pixelcnn_sample = Operator(
    "autoregressive",
    "pixelcnn_sample(Tensor parameters, Tensor values, Tensor key, Tensor? x_init, Tensor? mask, Tensor? condition,"
    " SymInt[] shape, int[] network, float temperature, SymInt first, str backend) -> Tensor",
    _fake,
    reference.pixelcnn_sample,
    ("cpu",),
)
ALIASES["gated_pixelcnn_sample"] = pixelcnn_sample.name


def _launcher(op: str, tensors: list[Tensor], backend: str) -> Callable[..., Tensor]:
    if _on_gpu(tensors, backend):
        return cached.pixelcnn_sample
    name = backends.resolve(op, backend, tensors, pixelcnn_sample.backends)
    return reference.pixelcnn_sample if name == "reference" else pixelcnn_sample.launcher(name)


def _on_gpu(tensors: list[Tensor], backend: str) -> bool:
    """Where only the definition would be left, but the user does not ask for it."""
    return backend == "auto" == backends.setting.name and tensors[0].is_cuda and not torch.compiler.is_compiling()


def sample(op: str, given: tuple[Any, ...], on_row: Callable[[int, Tensor], object] | None, backend: str) -> Tensor:
    """Through the doors, if they can take the call."""
    tensors = [t for t in given[: pixelcnn_sample.tensors] if t is not None]
    if on_row is None and not _on_gpu(tensors, backend):
        return pixelcnn_sample(*given, backend)
    return _launcher(op, tensors, backend)(*given, on_row)
