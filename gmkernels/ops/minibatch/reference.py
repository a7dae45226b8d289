"""The definition of minibatch discrimination: plain PyTorch, every pair written out."""

from __future__ import annotations

import torch
from torch import Tensor


def minibatch_discrimination(m: Tensor) -> Tensor:
    distance = (m.unsqueeze(0) - m.unsqueeze(1)).abs().sum(dim=3)
    others = ~torch.eye(m.shape[0], dtype=torch.bool, device=m.device).unsqueeze(2)
    return torch.where(others, torch.exp(-distance), 0.0).sum(dim=1)
