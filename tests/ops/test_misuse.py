"""Arguments that make no sense: one sentence that names the operator, the argument and what was got."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import gmkernels as gmk

X = torch.ones(2, 4)
M = torch.ones(2, 3, 4)
KEY = gmk.random.key(seed=1)
LAYER = gmk.nn.MinibatchDiscrimination(4, 3, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gmk.affine_coupling([1.0], X, X), TypeError, "affine_coupling: x must be a torch.Tensor, got list"),
        (lambda: gmk.affine_coupling(X, X.long(), X), TypeError, "affine_coupling: log_scale must be float32, "),
        (lambda: gmk.affine_coupling(X.to_sparse(), X, X), TypeError, "affine_coupling: x must be dense .*sparse_coo"),
        (lambda: gmk.affine_coupling(X, X, X.double()), TypeError, "affine_coupling: the tensors must share one dtype"),
        (lambda: gmk.affine_coupling(X[0], X[0], X[0]), ValueError, r"affine_coupling: x must .* got \(4,\)"),
        (lambda: gmk.affine_coupling(X, X[:, :3], X), ValueError, r"affine_coupling: log_scale must .* got \(2, 3\)"),
        (
            lambda: gmk.affine_coupling(X, X, X.to("meta")),
            ValueError,
            "affine_coupling: all tensors must be on one device",
        ),
        (
            lambda: gmk.affine_coupling(X, X, X, mask=X),
            TypeError,
            "affine_coupling: mask must be bool, got torch.float32",
        ),
        (lambda: gmk.affine_coupling(X, X, X, scale_map="exq"), ValueError, "affine_coupling: scale_map .* got 'exq'"),
        (
            lambda: gmk.affine_coupling(X, X, X, scale_map=["exp"]),
            ValueError,
            "affine_coupling: scale_map must be one of",
        ),
        (
            lambda: gmk.affine_coupling(X, X, X, clamp="a"),
            TypeError,
            "affine_coupling: clamp must be a number .* got 'a'",
        ),
        (
            lambda: gmk.affine_coupling(X, X, X, clamp=-1),
            ValueError,
            "affine_coupling: clamp of 'exp' must be positive",
        ),
        (lambda: gmk.affine_coupling(X, X, X, inverse="no"), TypeError, "affine_coupling: inverse must .* got 'no'"),
        (lambda: gmk.affine_coupling(X, X, X, backend="gpu"), ValueError, "affine_coupling: unknown backend 'gpu'"),
        (lambda: gmk.affine_coupling(X, X, X, backend=None), ValueError, "affine_coupling: unknown backend None"),
        (lambda: gmk.planar_flow(X, None, X, X), TypeError, "planar_flow: u must be a torch.Tensor, got NoneType"),
        (lambda: gmk.planar_flow(X, X, X, X), ValueError, r"planar_flow: b must have shape \(2,\), got \(2, 4\)"),
        (lambda: gmk.minibatch_discrimination(X), ValueError, "minibatch_discrimination: m must have 3 dimensions"),
        (lambda: gmk.minibatch_discrimination(M.to_sparse()), TypeError, "minibatch_discrimination: m must be dense"),
        (lambda: gmk.mlp(X, None), TypeError, "mlp: weights must be a sequence of tensors, got NoneType"),
        (lambda: gmk.mlp(X, [X], X), TypeError, "mlp: biases must be a sequence of tensors, got Tensor"),
        (
            lambda: gmk.affine_coupling_mlp(X, [X], split=1, inverse=1),
            TypeError,
            "affine_coupling_mlp: inverse must be True or False, got 1",
        ),
        (lambda: gmk.random.uniform(KEY, (2.5,)), TypeError, r"uniform: shape must be an int .* got \(2.5,\)"),
        (lambda: gmk.random.normal(KEY, "ab"), TypeError, "normal: shape must be an int .* got 'ab'"),
        (lambda: gmk.random.bits(KEY, (-2,)), ValueError, "bits: shape must not have negative sizes"),
        (lambda: gmk.random.uniform(3, 2), TypeError, "uniform: key must be a torch.Tensor, got int"),
        (lambda: gmk.backend_for("affine_coupling"), ValueError, "backend_for: give the tensors"),
        (lambda: gmk.backend_for(3, X), ValueError, "backend_for: unknown operator '3'; known are affine_coupling, "),
        (lambda: gmk.nn.VirtualBatchNorm(3, eps=-1), ValueError, "VirtualBatchNorm: .* eps 0 or more, got 3 and -1"),
        (lambda: LAYER(X.long()), TypeError, "MinibatchDiscrimination: x must be float32, .* got torch.int64"),
        (lambda: LAYER(X[:, :3]), ValueError, r"MinibatchDiscrimination: x must have shape \(batch, 4\), got \(2, 3\)"),
    ],
)
def test_one_sentence(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_sizes_may_be_what_counts_as_an_index() -> None:
    numpy = pytest.importorskip("numpy")
    assert gmk.random.bits(KEY, (numpy.int64(2), 3)).shape == gmk.random.bits(KEY, torch.Size((2, 3))).shape == (2, 3)
