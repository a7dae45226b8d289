"""Schema and fake of the autoregressive sampler, and the way round the doors for a call that shows its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from gmkernels.core import backends
from gmkernels.core.doors import ALIASES, Operator

from . import reference


def _fake(parameters, values, key, x_init, mask, condition, shape, network, temperature, first):  # type: ignore[no-untyped-def]
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


def by_row(op: str, given: tuple[Any, ...], on_row: Callable[[int, Tensor], object], backend: str) -> Tensor:
    """The same launchers; a schema has no place for a callback."""
    tensors = [t for t in given[: pixelcnn_sample.tensors] if t is not None]
    name = backends.resolve(op, backend, tensors, pixelcnn_sample.backends)
    launch = reference.pixelcnn_sample if name == "reference" else pixelcnn_sample.launcher(name)
    return launch(*given, on_row=on_row)
