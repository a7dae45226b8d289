"""Small PixelCNNs, far from the uniform law, and all images of their size."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from genmodels.autoregressive import GatedPixelCNN, PixelCNN, PixelModel

HEADS: dict[str, dict[str, Any]] = {
    "bernoulli": {},
    "categorical": {"head": "categorical", "levels": 3},
    "mixture": {"head": "mixture", "levels": 4, "components": 2},
}


def small(kind: str, shape: tuple[int, int, int], seed: int = 0, stir: float = 0.4, **options: Any) -> PixelModel:
    """A small model that is far from the uniform law."""
    torch.manual_seed(seed)
    small = {"width": 6, "first_kernel": 3, **({"blocks": 2} if kind == "plain" else {"layers": 2})}
    model = (PixelCNN if kind == "plain" else GatedPixelCNN)(shape, **(small | options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += stir * torch.randn_like(parameter)
    return model.eval()


def every_image(levels: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.tensor(list(itertools.product(range(levels), repeat=math.prod(shape)))).view(-1, *shape)
