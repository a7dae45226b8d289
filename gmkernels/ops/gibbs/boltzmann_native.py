"""Launchers of the C++ core for fully connected machines and for annealed importance sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from gmkernels.core.layout import address
from gmkernels.core.native import DTYPES, cpu

from .ais_reference import log_base

_core = cpu()


def boltzmann_gibbs(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    key: Tensor,
    beta: Tensor,
    clamp: Tensor | None,
    order: Tensor | None,
    sweeps: int,
    first: int,
    spin: bool,
) -> Tensor:
    if order is not None:
        x, weight, bias = x[:, order], weight[order][:, order], bias[order]
        clamp = None if clamp is None else clamp[:, order]
    tensors = [None if t is None else t.contiguous() for t in (x, weight, bias, beta, clamp, order, key)]
    out = x.new_empty(x.shape)
    _core.boltzmann_gibbs(
        *x.shape, DTYPES[x.dtype], *map(address, tensors), first, sweeps, spin, out.data_ptr(), 0
    )  # fmt: skip
    if order is None:
        return out
    turned = x.new_empty(x.shape)
    turned[:, order] = out
    return turned


def hopfield_recall(x: Tensor, weight: Tensor, bias: Tensor, max_sweeps: int) -> tuple[Tensor, Tensor]:
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    out, used = x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=torch.int64)
    _core.hopfield_recall(
        *x.shape, DTYPES[x.dtype], x.data_ptr(), weight.data_ptr(), bias.data_ptr(), 0, 0, 0, 0, 0, max_sweeps, True,
        out.data_ptr(), used.data_ptr(),
    )  # fmt: skip
    return out, used


def ais_log_z(
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    key: Tensor,
    betas: Tensor,
    base_bias: Tensor,
    reverse_from: Tensor | None,
    chains: int,
    first: int,
) -> Tensor:
    tensors = (weight, visible_bias, hidden_bias, betas, base_bias, reverse_from, key)
    alive = [None if t is None else t.contiguous() for t in tensors]
    out = weight.new_empty(chains)
    _core.ais_log_z(
        *weight.shape, chains, betas.shape[0], DTYPES[weight.dtype], *map(address, alive), first,
        log_base(base_bias, weight.shape[1]).item(), out.data_ptr(),
    )  # fmt: skip
    return out
