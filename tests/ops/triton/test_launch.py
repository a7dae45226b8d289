"""What every launch has in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gmkernels.core import triton_launch
from gmkernels.ops.coupling import triton as coupling
from gmkernels.ops.minibatch import triton as minibatch

from .support import DEVICE, draw


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Launches are noted here and not made."""
    found: list[tuple[Any, ...]] = []
    monkeypatch.setattr(triton_launch, "start", lambda *launch: found.append(launch))
    return found


def _empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device=DEVICE)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 4)])
def test_empty_tensors_start_no_kernel(shape: tuple[int, ...], started: list[tuple[Any, ...]]) -> None:
    x, logdet = _empty(*shape), torch.ones(shape[0], device=DEVICE)
    how = ("exp", 1.0, False)
    y, total, kept = coupling.affine_coupling(x, x, x, None, *how, True)
    assert y.shape == kept.shape == shape and not total.any() and total.shape == shape[:1]
    assert [t.shape for t in coupling.affine_coupling_backward(x, logdet, x, x, x, None, kept, *how)] == [shape, shape]
    assert not coupling.affine_coupling_double_backward(x, x, x, logdet, x, x, x, None, *how)[1].any()
    if len(shape) == 2:
        u, b = _empty(2, shape[1]), torch.ones(2, device=DEVICE)
        assert not coupling.planar_flow(x, u, u, b)[1].any()
        assert not any(t.any() for t in coupling.planar_flow_backward(x, logdet, x, u, u, b))
        assert not any(t.any() for t in coupling.planar_flow_double_backward(x, u, u, b, x, logdet, x, u, u, b))
    else:
        assert minibatch.minibatch_discrimination(_empty(2, 0, 4)).shape == (2, 0)
    assert not started


def test_grids_of_more_than_65535_programs_use_the_first_axis(started: list[tuple[Any, ...]]) -> None:
    x = torch.empty(1, device=DEVICE).expand(70000 * 4, 129)
    coupling.affine_coupling(x, x, x, None, "exp", 1.0, False, False)
    _, programs, _, constants, options = started[0]
    assert programs == 70000 and constants["ROWS"] == 4
    assert (
        set(options) == {"num_warps", "num_stages", "enable_fp_fusion", "maxnreg"}
        and options["enable_fp_fusion"] is False
    )


def test_the_number_of_programs_that_sum_parameters_is_bounded(started: list[tuple[Any, ...]]) -> None:
    z = torch.empty(1, device=DEVICE).expand(10**6, 2)
    u, b = _empty(32, 2), _empty(32)
    coupling.planar_flow_backward(z, _empty(1).expand(10**6), z, u, u, b)
    gradient, parameters = started
    assert gradient[1] == 2048 and parameters[1] == 32


def test_a_constant_is_rounded_once() -> None:
    assert triton_launch.single(0.1) == torch.tensor(0.1, dtype=torch.float32).item()
    assert triton_launch.single(1e300) == float("inf")
    assert coupling._parameter("atan", 2.0) == torch.tensor(0.636 * 2.0, dtype=torch.float64).float().item()


def test_powers_of_two() -> None:
    assert [triton_launch.power_of_two(n) for n in (0, 1, 2, 3, 4, 5, 1023, 1024, 1025)] == [
        1,
        1,
        2,
        4,
        4,
        8,
        1024,
        1024,
        2048,
    ]


def test_results_follow_the_seeded_input() -> None:
    """The interpreter runs what is written here: an operator that ignored an input would not notice this change."""
    x, s, t = draw(2, 5), draw(2, 5, seed=1), draw(2, 5, seed=2)
    before = coupling.affine_coupling(x, s, t, None, "exp", 5.0, False, False)[0]
    for changed in ((x + 1, s, t), (x, s + 1, t), (x, s, t + 1)):
        assert (coupling.affine_coupling(*changed, None, "exp", 5.0, False, False)[0] != before).all()
