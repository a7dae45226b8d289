"""Settings of every test: hypothesis profiles, one thread, and backends that may not go missing.

``GMKERNELS_REQUIRE=cpu,triton`` (set by the Makefile) makes the absence of a backend an error instead of fewer tests.
``GMKERNELS_HYPOTHESIS=nightly`` draws many more examples, with fresh seeds.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Any

import hypothesis
import pytest
import torch

from gmkernels.core import backends, native

_COMMON = dict(deadline=None, print_blob=True, suppress_health_check=list(hypothesis.HealthCheck))
hypothesis.settings.register_profile("ci", max_examples=12, derandomize=True, database=None, **_COMMON)
# The interpreter is slow, and its own process.
hypothesis.settings.register_profile("interpreter", max_examples=3, derandomize=True, database=None, **_COMMON)
hypothesis.settings.register_profile("nightly", max_examples=400, **_COMMON)
PROFILE = os.environ.get("GMKERNELS_HYPOTHESIS", "interpreter" if backends.interpreting() else "ci")
hypothesis.settings.load_profile(PROFILE)

REQUIRED = tuple(filter(None, os.environ.get("GMKERNELS_REQUIRE", "").split(",")))


def _missing(name: str) -> str | None:
    if name == "triton" and not backends.interpreting():
        # Its tests run in a process of their own (tests/ops/test_triton.py).
        return None if importlib.util.find_spec("triton") else "Triton is not installed"
    return backends.unavailable(name)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "triton: runs on the Triton backend (on a CPU: in the interpreter)")
    config.addinivalue_line("markers", "slow: takes more than ten seconds")
    if unknown := sorted(set(REQUIRED) - set(backends.BACKENDS)):
        pytest.exit(f"GMKERNELS_REQUIRE names unknown backends: {', '.join(unknown)}", returncode=4)
    for name in REQUIRED:
        if (reason := _missing(name)) is not None:
            pytest.exit(f"GMKERNELS_REQUIRE asks for backend {name!r}, which cannot run: {reason}", returncode=4)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests go to workers one by one, but for those of a file that makes something once (a wheel, a trained model): one
    worker makes it, and gets them all. The largest files come first. (xdist's own groups need an older pytest.)"""
    from xdist.scheduler import LoadScopeScheduling

    @functools.cache
    def together(path: str) -> bool:
        return 'scope="module"' in (config.rootpath / path).read_text()

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.split("::")[0]
            return path if together(path) else nodeid

    return Scheduling(config, log)


def pytest_report_header() -> list[str]:
    states = {name: backends.unavailable(name) for name in backends.BACKENDS}
    here = [name for name, reason in states.items() if reason is None]
    lines = [f"gmkernels: {', '.join(here)} (torch {torch.__version__}, hypothesis profile {PROFILE!r})"]
    lines += [f"gmkernels: no {name}: {reason}" for name, reason in states.items() if reason is not None]
    if native.cpu_error() is None:
        lines.append(f"gmkernels: instruction set {os.environ.get('GMKERNELS_ISA', 'best available')}")
    return lines


@pytest.fixture(autouse=True)
def _one_thread():
    """One intra-op thread, so that xdist workers do not fight; the thread tests set their own number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """Seeds torch with a number that depends on the test alone, and prints it if the test fails."""
    value = sum(ord(c) * 31**i for i, c in enumerate(request.node.nodeid)) % 2**31
    torch.manual_seed(value)
    print(f"torch.manual_seed({value})")
    return value
