"""Minibatch discrimination: batches across tiles, and coordinates held, summed in chunks, and read again."""

from __future__ import annotations

import pytest
import torch

from gmkernels.ops.minibatch import reference, triton

from .support import check, draw, launched

LAUNCHERS = (
    triton.minibatch_discrimination,
    triton.minibatch_discrimination_backward,
    triton.minibatch_discrimination_double_backward,
)


@pytest.mark.parametrize("batch,kernels,dim", [(1, 3, 2), (2, 2, 5), (5, 3, 1), (33, 1, 2), (9, 1, 16), (3, 1, 17)])
def test_sizes(batch: int, kernels: int, dim: int) -> None:
    check(LAUNCHERS, reference.minibatch_discrimination, [draw(batch, kernels, dim, scale=1.5 / dim)], 1)


# Sums take 2 coordinates, and 5, 4 and 3 are held forward, backward and in double backward.
@pytest.mark.parametrize("dim", [3, 5, 7])
def test_coordinates_held_in_chunks_and_read_again(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_FEW", 2)
    monkeypatch.setattr(triton, "_HELD", (5, 4, 3))
    check(LAUNCHERS, reference.minibatch_discrimination, [draw(9, 1, dim, scale=1.5 / dim)], 1)


def test_large_batches_have_wider_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_SMALL_BATCH", 0)
    check(LAUNCHERS, reference.minibatch_discrimination, [draw(66, 1, 2)], 1)


def test_no_coordinates_leave_every_distance_zero() -> None:
    out = triton.minibatch_discrimination(draw(5, 2, 0))
    assert torch.equal(out, torch.full_like(out, 4.0))
    first, second = triton.minibatch_discrimination_double_backward(draw(5, 2, 0), draw(5, 2), draw(5, 2, 0))
    assert not first.any() and second.shape == (5, 2, 0)


def test_equal_samples_count_once_each_and_have_no_gradient() -> None:
    m = draw(1, 2, 5).expand(9, 2, 5)
    assert torch.equal(triton.minibatch_discrimination(m), torch.full((9, 2), 8.0, device=m.device))
    assert not triton.minibatch_discrimination_backward(draw(9, 2), m).any()


def test_nan_spoils_what_it_spoils_in_the_reference() -> None:
    m, grad = draw(6, 2, 3), draw(6, 2, seed=1)
    m[2, 1, 0] = float("nan")
    leaf = m.clone().requires_grad_()
    expected = reference.minibatch_discrimination(leaf)
    (gradient,) = torch.autograd.grad(expected, leaf, grad)
    torch.testing.assert_close(triton.minibatch_discrimination(m), expected.detach(), equal_nan=True)
    torch.testing.assert_close(triton.minibatch_discrimination_backward(grad, m), gradient, equal_nan=True)


@pytest.mark.parametrize("infinite", [float("inf"), -float("inf")])
def test_an_infinite_sample_is_far_from_all(infinite: float) -> None:
    m, grad = draw(6, 2, 3), draw(6, 2, seed=1)
    m[2, 1, 0] = infinite
    far = m.nan_to_num(posinf=1e30, neginf=-1e30)
    assert torch.equal(triton.minibatch_discrimination(m), triton.minibatch_discrimination(far))
    assert torch.equal(
        triton.minibatch_discrimination_backward(grad, m), triton.minibatch_discrimination_backward(grad, far)
    )


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0), (0, 2, 1)])
def test_strides_are_read_where_they_are(order: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_FEW", 2)
    m, grad, top = draw(5, 2, 3), draw(5, 2, seed=1), draw(5, 2, 3, seed=2)
    back = [order.index(d) for d in range(3)]
    turned = [t.permute(order).contiguous().permute(back) for t in (m, top)]
    dense = launched(LAUNCHERS, [m], [grad], [top])
    strided = launched(LAUNCHERS, [turned[0]], [grad.T.contiguous().T], [turned[1]])
    assert all(torch.equal(dense[name], strided[name]) for name in dense)
