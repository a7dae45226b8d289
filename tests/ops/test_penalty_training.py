"""Gradient penalties in training: compiled, under autocast, scaled, accumulated, in several processes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gmkernels as gmk

from .critics import critic_of_images, fill, gradients, pair
from .two_processes import assert_equal_in_two

ROUTES = pytest.mark.parametrize("route", ["first-order", "double-backward"])


def critic_loss(critic: nn.Module, real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    return critic(fake).mean() - critic(real).mean() + gmk.gradient_penalty(critic, real, fake, eps=eps)


def test_compiled_step_without_graph_breaks() -> None:
    eager = critic_of_images()
    compiled = copy.deepcopy(eager)
    step = torch.compile(critic_loss, fullgraph=True)
    for seed in range(2):
        real, fake = pair((3, 1, 8, 8), torch.float32, seed)
        eps = torch.linspace(0.2, 0.9, 3)
        torch.testing.assert_close(
            gradients(compiled, step(compiled, real, fake, eps)),
            gradients(eager, critic_loss(eager, real, fake, eps)),
            rtol=1e-4, atol=1e-5,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@ROUTES
def test_autocast(route: str, dtype: torch.dtype) -> None:
    """Norms are float32 whatever the layers compute in; the penalty's weight does not drown a half's exponent."""
    critic = fill(critic_of_images(), 1)
    real, fake = pair((4, 1, 8, 8), torch.float32)
    eps = torch.linspace(0.1, 0.9, 4)
    expected = gmk.gradient_penalty(critic, real, fake, eps=eps)
    exact = gradients(critic, expected)
    for lambda_ in (10.0, 1e-9, 1e9):
        with torch.autocast("cpu", dtype):
            found = gmk.gradient_penalty(critic, real, fake, eps=eps, lambda_=lambda_, route=route)
        assert found.dtype == torch.float32
        close = 12 * torch.finfo(dtype).eps
        torch.testing.assert_close(found, expected * (lambda_ / 10), rtol=close, atol=0.0)
        if route == "double-backward" and lambda_ != 10.0:
            continue  # there the weight is in the chain, for GradScaler to take care of
        for a, b in zip(gradients(critic, found), exact, strict=True):
            error = (a - b * (lambda_ / 10)).norm()
            assert a.dtype == torch.float32 and float(error) <= close * float(b.norm()) * (lambda_ / 10)


def test_scaled_and_accumulated() -> None:
    """A loss scaled by GradScaler, and a batch in two parts, give the same gradients."""
    critic = critic_of_images()
    real, fake = pair((4, 1, 8, 8), torch.float32)
    eps = torch.linspace(0.1, 0.9, 4)
    whole = gradients(critic, gmk.gradient_penalty(critic, real, fake, eps=eps))
    critic.zero_grad()
    for cut in (slice(0, 2), slice(2, 4)):
        (2.0**14 * gmk.gradient_penalty(critic, real[cut], fake[cut], eps=eps[cut]) / 2).backward()
    for p, g in zip(critic.parameters(), whole, strict=True):
        found = torch.zeros_like(p) if p.grad is None else p.grad / 2.0**14
        torch.testing.assert_close(found, g, rtol=1e-4, atol=1e-6)


TWO_PROCESSES = """
import gmkernels as gmk
def check(rank):
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(1, 4, 3, 2, 1), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(64, 1)
    critic = torch.nn.Sequential(*layers).double()
    real, fake, eps = torch.randn(4, 1, 8, 8).double(), torch.randn(4, 1, 8, 8).double(), torch.rand(4).double()
    def loss(c, s):
        return c(fake[s]).mean() - c(real[s]).mean() + gmk.gradient_penalty(c, real[s], fake[s], eps=eps[s])
    expected = torch.autograd.grad(loss(critic, slice(0, 4)), list(critic.parameters()))
    wrapped = DistributedDataParallel(critic)
    assert gmk.penalty_route(wrapped).name == "first-order"
    for _ in range(2):
        critic.zero_grad()
        loss(wrapped, slice(2 * rank, 2 * rank + 2)).backward()
        for p, g in zip(critic.parameters(), expected):
            torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-12)
"""


def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    assert_equal_in_two(TWO_PROCESSES, tmp_path)


def test_a_third_derivative_raises() -> None:
    critic = critic_of_images()
    x, y = pair((3, 1, 8, 8), torch.float32)
    penalty = gmk.gradient_penalty(critic, x, y)
    with pytest.raises(NotImplementedError, match="use route='double-backward'"):
        torch.autograd.grad(penalty, list(critic.parameters()), create_graph=True, allow_unused=True)


def test_without_gradients_there_is_only_a_value() -> None:
    critic = critic_of_images()
    x, y = pair((3, 1, 8, 8), torch.float32)
    eps = torch.rand(3)
    with torch.no_grad():
        found = gmk.gradient_penalty(critic, x, y, eps=eps)
    assert not found.requires_grad
    torch.testing.assert_close(found, gmk.gradient_penalty(critic, x, y, eps=eps).detach())
    for p in critic.parameters():
        p.requires_grad_(False)
    assert not gmk.gradient_penalty(critic, x, y, eps=eps).requires_grad
    critic[5].weight.requires_grad_()
    gmk.gradient_penalty(critic, x, y, eps=eps).backward()
    assert critic[5].weight.grad is not None and critic[0].weight.grad is None
