"""Minibatch discrimination of torchgan."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..case import Missing, Program


def _layer() -> Any:
    # Importing the package imports torchvision, which has no build beside a CPU-only torch; the layer needs neither.
    name = "torchgan_minibatch_discrimination"
    if name not in sys.modules:
        package = importlib.util.find_spec("torchgan")
        if package is None or package.origin is None:
            raise Missing("torchgan is not installed; pip install '.[peers]', then pip install --no-deps torchgan")
        file = Path(package.origin).parent / "layers" / "minibatchdiscrimination.py"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name].MinibatchDiscrimination1d


def torchgan_layer(m: Tensor) -> Program:
    """The layer multiplies its input with a learned tensor first. An identity as input and ``m`` as that tensor make it
    compute on ``m`` itself, at the price of one small matrix product (a hundredth of the time or less)."""
    batch, kernels, dims = m.shape
    layer = _layer()(1, kernels, dims)
    layer.in_features, layer.T = batch, nn.Parameter(m.detach().clone())
    identity = torch.eye(batch, dtype=m.dtype, device=m.device)
    return Program(lambda: (layer(identity)[:, batch:],), [layer.T])
