"""Every operator test runs on poisoned memory: what a kernel leaves unset is NaN."""

from __future__ import annotations

import pytest
import torch

from gmkernels.testing import poison

# What a default device applies to is looked up once, by identity: before the allocating functions are wrapped.
with torch.device("cpu"):
    torch.empty(0)


@pytest.fixture(autouse=True)
def _poison():
    with poison():
        yield
