"""Planar flows: dimensions that need padding, no flows, several tiles to a program, zero w."""

from __future__ import annotations

import pytest
import torch

from gmkernels.ops.coupling import planar_triton as triton
from gmkernels.ops.coupling import reference

from .support import check, draw, launched

LAUNCHERS = (triton.planar_flow, triton.planar_flow_backward, triton.planar_flow_double_backward)


def arguments(batch: int, dim: int, flows: int) -> list[torch.Tensor]:
    scale = min(1.0, 1.5 / dim**0.5)
    return [
        draw(batch, dim), draw(flows, dim, seed=1, scale=scale), draw(flows, dim, seed=2, scale=scale), draw(flows, seed=3)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "batch,dim,flows", [(5, 1, 3), (33, 2, 2), (9, 37, 1), (3, 129, 2), (2, 1000, 1), (1, 4096, 1)]
)
def test_sizes(batch: int, dim: int, flows: int) -> None:
    check(LAUNCHERS, reference.planar_flow, arguments(batch, dim, flows), 4)


def test_more_than_4096_dimensions() -> None:
    check(LAUNCHERS, reference.planar_flow, arguments(2, 5001, 1), 4)


def test_no_flows_pass_z_through() -> None:
    z, u, w, b = arguments(5, 3, 0)
    out, logdet = triton.planar_flow(z, u, w, b)
    assert torch.equal(out, z) and not logdet.any()
    grads, tops = [draw(5, 3, seed=5), draw(5, seed=6)], [draw(5, 3, seed=7), u, w, b]
    found = launched(LAUNCHERS, [z, u, w, b], grads, tops)
    assert torch.equal(found["grad_0"], grads[0])
    assert torch.equal(found["double_0"], tops[0]) and not found["double_1"].any() and not found["double_2"].any()


def test_a_program_takes_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sums over the batch go on where the tile before ended."""
    monkeypatch.setattr(triton, "_LEAST", 1)
    monkeypatch.setattr(triton, "_MOST", 1)
    check(LAUNCHERS, reference.planar_flow, arguments(70, 2, 1), 4)


def test_zero_w_is_a_plain_shift() -> None:
    z, u, w, b = arguments(7, 5, 2)
    w[1] = 0.0
    found = launched(LAUNCHERS, [z, u, w, b], [draw(7, 5, seed=5), draw(7, seed=6)], arguments(7, 5, 2))
    assert all(t.isfinite().all() for t in found.values())
    shifted, logdet = triton.planar_flow(z, u[1:2], w[1:2], b[1:2])
    torch.testing.assert_close(shifted, z + torch.tanh(b[1]) * u[1])
    assert logdet.abs().max() <= 1e-7


@pytest.mark.parametrize("steep", [1e3, -1e3])
def test_large_products_neither_overflow_nor_cancel(steep: float) -> None:
    z, u, w, b = arguments(6, 2, 1)
    u, w = torch.full_like(u, steep), torch.ones_like(w)
    ours, exact = triton.planar_flow(z, u, w, b), reference.planar_flow(z.double(), u.double(), w.double(), b.double())
    for a, e in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=3e-6, atol=1e-4)


def test_strides_are_read_where_they_are() -> None:
    z, u, w, b = arguments(5, 4, 2)
    grads, tops = [draw(5, 4, seed=5), draw(5, seed=6)], arguments(5, 4, 2)
    dense = launched(LAUNCHERS, [z, u, w, b], grads, tops)
    turned = [t.T.contiguous().T for t in (z, u, w)]
    strided = launched(
        LAUNCHERS,
        [*turned, b],
        [grads[0].T.contiguous().T, grads[1]],
        [t.T.contiguous().T if t.dim() == 2 else t for t in tops],
    )
    assert all(torch.equal(dense[name], strided[name]) for name in dense)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    z, u, w, b = arguments(70, 6, 3)
    whole = triton.planar_flow(z, u, w, b)
    parts = [triton.planar_flow(part, u, w, b) for part in (z[:1], z[1:38], z[38:])]
    for n in range(2):
        assert torch.equal(whole[n], torch.cat([part[n] for part in parts]))
