"""Every operator test runs on poisoned memory: what a kernel leaves unset is NaN."""

from __future__ import annotations

import pytest

from gmkernels.testing import poison


@pytest.fixture(autouse=True)
def _poison():
    with poison():
        yield
