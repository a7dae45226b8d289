"""The normalising constant of restricted Boltzmann machines, by annealed importance sampling."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gmkernels.core import checks

from . import boltzmann_library as library
from . import inputs, values

__all__ = ["ais_log_z"]


def ais_log_z(
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    *,
    key: Tensor,
    betas: Tensor | None = None,
    num_betas: int | None = None,
    chains: int | None = None,
    first: int = 0,
    base_visible_bias: Tensor | None = None,
    reverse_from: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Log-weights of annealed importance sampling, whose mean weight estimates the normalising constant Z of an RBM.

    The machine has binary units and ``log p*(v) = vb . v + sum_j log(1 + exp(hb_j + (v W)_j))``. Chains pass from a base
    machine without couplings, whose visible units have the biases a, to the machine itself by way of

        ``log p*_b(v) = ((1 - b) a + b vb) . v + sum_j log(1 + exp(b (hb_j + (v W)_j)))``,   b from 0 to 1

    (R. Salakhutdinov and I. Murray, "On the quantitative analysis of deep belief networks", 2008, section 4.1, for such
    a base). ``log w = log Z_0 + sum_k log p*_k(v_k) - log p*_{k-1}(v_k)``, where ``v_k`` is drawn by a block Gibbs step
    at ``b_{k-1}`` from ``v_{k-1}``, and ``v_1`` from the base, for which ``log Z_0 = sum_i log(1 + exp(a_i)) + H log 2``.

    * Forward, ``mean(exp(log w))`` is an unbiased estimate of Z: ``logsumexp(log_w, 0) - log(chains)`` tends to lie below
      log Z.
    * With ``reverse_from``, samples of the machine are annealed back to the base (Y. Burda, R. Grosse and
      R. Salakhutdinov, "Accurate and conservative estimates of MRF log-likelihood using reverse annealing", 2015), and
      ``mean(exp(-log w))`` is an unbiased estimate of 1 / Z: ``log(chains) - logsumexp(-log_w, 0)`` tends to lie above.

    Args:
        weight: (visible, hidden), float32 or float64.
        visible_bias: (visible,), hidden_bias: (hidden,), in that dtype.
        key: int64 tensor (2,) made by :func:`gmkernels.random.key`, on the device of ``weight``.
        betas: the schedule, floating tensor (n,), from 0 to 1 without going back; n at least 2. Rounded to the dtype.
        num_betas: in its place, for so many betas at equal distances. 1,000 if neither is given.
        chains: how many, 100 if not given; with ``reverse_from``, as many as it has rows.
        first: logical index of the first chain, so that a batch cut in two draws the same as the whole.
        base_visible_bias: (visible,), a; None for 0. The log-odds of the data's mean image make a far better base.
        reverse_from: (chains, visible) of 0 and 1, in that dtype: samples of the machine.
        backend: ``auto``, ``reference``, ``cpu`` or ``triton``.

    Returns:
        log w, (chains,) in the dtype of ``weight``; the sums behind it are float64.

    One pass over the fields of the hidden units gives both the ratio of the two distributions and the draw, so there are
    two products per beta. Randomness: as for :func:`gmkernels.rbm_gibbs`, half-step 0 for the draw from the base,
    ``2 k - 1`` and ``2 k`` for hidden and visible units of step k. Not differentiable. Bits do not depend on batch split,
    threads or instruction set; another backend sums in another order. Values are looked at on the CPU only.

    Raises:
        TypeError: an argument has an unsupported type or dtype.
        ValueError: shapes or devices do not fit, a state, bias, weight or schedule is not what it has to be, or both
            ``betas`` and ``num_betas`` are given.
        BackendError: an explicitly requested backend cannot run.
    """
    op = "ais_log_z"
    inputs.floats(op, weight=weight, visible_bias=visible_bias, hidden_bias=hidden_bias)
    checks.dims(op, "weight", weight, 2, "(visible, hidden)")
    checks.shape(op, "visible_bias", visible_bias, weight.shape[:1])
    checks.shape(op, "hidden_bias", hidden_bias, weight.shape[1:])
    base = visible_bias.new_zeros(visible_bias.shape) if base_visible_bias is None else base_visible_bias
    inputs.floats(op, weight=weight, base_visible_bias=base)
    checks.shape(op, "base_visible_bias", base, weight.shape[:1])
    inputs.finite(op, weight=weight, visible_bias=visible_bias, hidden_bias=hidden_bias, base_visible_bias=base)
    if reverse_from is not None:
        inputs.floats(op, weight=weight, reverse_from=reverse_from)
        checks.dims(op, "reverse_from", reverse_from, 2, "(chains, visible)")
        checks.shape(op, "reverse_from", reverse_from, (reverse_from.shape[0], weight.shape[0]))
        inputs.states(op, "reverse_from", reverse_from, False)
        if chains is not None and chains != reverse_from.shape[0]:
            raise ValueError(f"{op}: chains must be the {reverse_from.shape[0]} of reverse_from, got {chains}")
        chains = reverse_from.shape[0]
        reverse_from = reverse_from.detach()
    chains = 100 if chains is None else chains
    inputs.count(op, "chains", chains)
    inputs.chains(op, key, first, chains)
    checks.same_device(op, weight=weight, key=key)
    schedule = _schedule(op, weight, betas, num_betas)
    return library.ais_log_z(
        weight.detach(), visible_bias.detach(), hidden_bias.detach(), key, schedule, base.detach(), reverse_from,
        chains, first, backend,
    )  # fmt: skip


def _schedule(op: str, weight: Tensor, betas: Tensor | None, num_betas: int | None) -> Tensor:
    if betas is None:
        num_betas = 1000 if num_betas is None else num_betas
        inputs.count(op, "num_betas", num_betas)
        if num_betas < 2:
            raise ValueError(f"{op}: num_betas must be 2 or more, got {num_betas}")
        return torch.linspace(0.0, 1.0, num_betas, dtype=weight.dtype, device=weight.device)
    if num_betas is not None:
        raise ValueError(f"{op}: give betas or num_betas, not both")
    checks.floating(op, "betas", betas)
    checks.dims(op, "betas", betas, 1, "(steps)")
    checks.same_device(op, weight=weight, betas=betas)
    if betas.shape[0] < 2:
        raise ValueError(f"{op}: betas must hold 2 numbers or more, got {betas.shape[0]}")
    if values.visible_here(betas):
        rising = bool((np.diff(values.array(betas)) >= 0).all())
        if not (rising and betas[0] == 0.0 and betas[-1] == 1.0):
            raise ValueError(
                f"{op}: betas must rise from 0 to 1, got {betas.shape[0]} numbers from {betas[0].item()} "
                f"to {betas[-1].item()}{'' if rising else ' that do not rise throughout'}"
            )
    return betas.detach().to(weight.dtype)
