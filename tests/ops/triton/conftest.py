"""These tests call the Triton launchers themselves: in the interpreter, or on a GPU. Elsewhere there is nothing to run,
and ``tests/ops/test_triton.py`` starts a process with the interpreter."""

from __future__ import annotations

import pytest

from gmkernels.core import backends

if backends.unavailable("triton") is not None:
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/ops/triton/" in item.nodeid:
            item.add_marker(pytest.mark.triton)
            # The interpreter is numpy, which warns of infinities that a GPU makes in silence.
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))
