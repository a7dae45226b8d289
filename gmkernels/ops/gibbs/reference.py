"""The definition of the operators of a restricted Boltzmann machine: plain PyTorch, float32 or float64.

The machine (P. Smolensky, 1986; G. E. Hinton, "A practical guide to training restricted Boltzmann machines", 2010,
section 2) has the energy ``E(v, h) = -vb . v - hb . h - v W h`` with binary units, or with Gaussian visible units of
unit variance ``E(v, h) = |v - vb|^2 / 2 - hb . h - v W h`` (section 13.2). A chain at inverse temperature ``beta`` has
the energy ``beta E``.

Random numbers. The draw of a unit uses word ``unit mod 4`` of the Philox counter ``(unit div 4, chain, half-step, low
word of the offset)``, 32 bits each, under the key ``(low word of the seed, high word of the seed + high word of the
offset)``; half-step ``2 t`` draws the hidden units of step ``t``, half-step ``2 t + 1`` its visible ones. A binary unit
of probability ``p`` is on if ``word < floor(2^32 p)``. Gaussian units ``2 q`` and ``2 q + 1`` take the two normals of
their words.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from gmkernels.core import philox
from gmkernels.core.product import no_autocast

_MASK = 0xFFFFFFFF

# The scale of the fixed-point machine is 2^bits: see fixed_point().
MOST_BITS, LEAST_NARROW_BITS = 20, 8
# 2^-f for |f| <= 1/2, with a relative error of 1.1e-7: least-squares weights sharpened towards the minimax polynomial.
EXP2 = (
    -0.001326472731307149, 0.009671512991189957, -0.05550733581185341, 0.24022242426872253, -0.6931470036506653, 1.0,
)  # fmt: skip
LOG2E = 1.4426950216293335


# ---- random numbers --------------------------------------------------------------------------------------------------


def _philox(key: Tensor, group: Tensor, chains: Tensor, half_step: int) -> Tensor:
    """All four words (B, G, 4) of counters (G,) of chains (B,)."""
    (seed, seed_high), (offset, offset_high) = philox.split(key[0]), philox.split(key[1])
    groups, chain = torch.broadcast_tensors(group[None, :], chains[:, None])
    counter = (groups, chain, torch.full_like(groups, half_step), offset.expand_as(groups))
    return torch.stack(philox.philox4x32(counter, (seed, seed_high + offset_high & _MASK)), dim=2)


def unit_words(key: Tensor, chains: Tensor, units: Tensor, half_step: int) -> Tensor:
    """The 32-bit words of units (U,) of chains (B,) in a half-step, as int64 (B, U)."""
    words = _philox(key, units // 4, chains, half_step)
    return words.gather(2, (units % 4).expand(words.shape[:2])[:, :, None]).squeeze(2)


def _words(key: Tensor, first: int, batch: int, count: int, half_step: int) -> Tensor:
    """The words of all units of a batch's chains."""
    chains = torch.arange(batch, device=key.device) + first
    groups = torch.arange((count + 3) // 4, device=key.device)
    return _philox(key, groups, chains, half_step).flatten(1)[:, :count]


def on(field: Tensor, word: Tensor) -> Tensor:
    """Where ``word < floor(2^32 sigmoid(field))``; a probability next to 1 keeps its digits. A field NaN: nowhere."""
    field = field.double()
    likely = field >= 0
    e = torch.exp(-field.abs())
    # The less likely of the two values has probability e / (1 + e).
    rare = (torch.where(likely, _MASK - word, word) + 1).double() * (1.0 + e) <= e * 2.0**32
    return rare != likely


def on_single(field: Tensor, word: Tensor) -> Tensor:
    """:func:`on` in float32 multiplications and additions alone, each rounded once: the same bits on every machine."""
    t = field.abs().clamp(max=30.0) * LOG2E
    n = t.round()
    f = t - n
    e = torch.full_like(f, EXP2[0])
    for coefficient in EXP2[1:]:
        e = e * f + coefficient
    e = e * ((127 - n.to(torch.int32)) << 23).view(torch.float32)  # a power of two
    likely = field >= 0
    word = torch.where(likely, _MASK - word, word)
    rare = (word.to(torch.float32) + 1.0) * (e + 1.0) <= e * 2.0**32
    return rare != likely


def _normals(key: Tensor, first: int, batch: int, count: int, half_step: int, dtype: torch.dtype) -> Tensor:
    """The normals of all units of a batch's chains. They come in pairs, of which an odd machine leaves one."""
    word = _words(key, first, batch, count + count % 2, half_step).reshape(batch, (count + 1) // 2, 2)
    return philox.to_normal(word, dtype).flatten(1)[:, :count]


# ---- fixed point -----------------------------------------------------------------------------------------------------


def _floor_log2(x: Tensor) -> Tensor:
    return torch.frexp(x).exponent - 1


def fixed_point(weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights and biases as integers (int64) in units of ``2^-bits``, and ``bits``, a tensor without dimensions.

    ``bits`` is the largest number up to 20 with which weights fit int16 and the weights of every unit, made positive,
    add up to less than 2^16: then sums can be kept in 16 bits. If that leaves fewer than 8 bits, it is the largest
    number with which weights fit int16 and sums int32. Every step is exact or rounded once, in float64, so that all
    backends get the same integers.
    """
    w = weight.double()
    units = max(weight.shape)
    largest = w.abs().amax().clamp_min(2.0**-30) if w.numel() else w.new_full((), 2.0**-30)
    fine = 14 - _floor_log2(largest)  # |w 2^fine| < 2^15
    coarse = torch.ldexp(w, fine).round().abs()
    reach = torch.stack([coarse.sum(d).amax() if w.numel() else w.new_zeros(()) for d in (0, 1)]).amax()
    # |round(w 2^bits)| <= (|round(w 2^fine)| + 1/2) 2^(bits - fine) + 1/2
    room = max(2.0**-60, 65535.0 - 0.5 * units)
    int16 = _floor_log2(32767.0 / largest)
    narrow = torch.minimum(int16, fine + _floor_log2(room / (reach + 0.5 * units + 0.5))).clamp(max=MOST_BITS)
    wide = torch.minimum(int16, _floor_log2(2.0**30 / max(units, 1) / largest)).clamp(max=MOST_BITS)
    bits = torch.where(narrow >= LEAST_NARROW_BITS, narrow, wide)

    def rounded(x: Tensor) -> Tensor:
        return torch.ldexp(x.double(), bits).round().clamp(-(2.0**30), 2.0**30).to(torch.int64)

    return rounded(w), rounded(visible_bias), rounded(hidden_bias), bits


# ---- operators -------------------------------------------------------------------------------------------------------


def _beta(beta: Tensor | None, dtype: torch.dtype) -> Tensor | float:
    return 1.0 if beta is None else beta.to(dtype)[:, None]


def rbm_gibbs(
    v: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    key: Tensor,
    beta: Tensor | None,
    clamp: Tensor | None,
    steps: int,
    first: int = 0,
    gaussian: bool = False,
    fixed: bool = False,
) -> tuple[Tensor, Tensor]:
    dtype, batch = v.dtype, v.shape[0]
    if fixed:
        w, vb, hb, bits = fixed_point(weight, visible_bias, hidden_bias)
        w = w.double()  # of integers, these sums are exact
        scale = _beta(beta, torch.float32) * torch.ldexp(torch.ones((), device=v.device), -bits)
    else:
        w, vb, hb = weight.double(), visible_bias.double(), hidden_bias.double()

    def units(given: Tensor, matrix: Tensor, bias: Tensor, half_step: int) -> Tensor:
        count = matrix.shape[1]
        field = given.double() @ matrix + bias
        if gaussian and half_step % 2:
            noise = _normals(key, first, batch, count, half_step, dtype).double()
            return (field + noise * _beta(beta, torch.float64) ** -0.5).to(dtype)
        word = _words(key, first, batch, count, half_step)
        if fixed:
            return on_single(field.to(torch.float32) * scale, word).to(dtype)
        return on(field * _beta(beta, torch.float64), word).to(dtype)

    if steps == 0:
        return v.clone(), units(v, w, hb, 0)
    for step in range(steps):
        h = units(v, w, hb, 2 * step)
        drawn = units(h, w.T, vb, 2 * step + 1)
        v = drawn if clamp is None else torch.where(clamp, v, drawn)
    return v, h


def rbm_conditional(
    given: Tensor,
    weight: Tensor,
    bias: Tensor,
    key: Tensor,
    beta: Tensor | None,
    first: int = 0,
    to_visible: bool = False,
    gaussian: bool = False,
) -> tuple[Tensor, Tensor]:
    """One half-step, 0 to hidden units and 1 to visible ones: the draw, and the means of what it was drawn from."""
    matrix = weight.T if to_visible else weight
    # The draw is decided in float64, so that it is the same on every machine.
    with no_autocast(given):
        mean = given @ matrix + bias
    field = given.double() @ matrix.double() + bias.double()
    place = (key, first, given.shape[0], matrix.shape[1], int(to_visible))
    if gaussian:
        noise = _normals(*place, given.dtype).double() * _beta(beta, torch.float64) ** -0.5
        return (field + noise).to(given.dtype), mean
    drawn = on(field * _beta(beta, torch.float64), _words(*place))
    return drawn.to(given.dtype), torch.sigmoid(mean * _beta(beta, given.dtype))


def rbm_softplus_sum(field: Tensor) -> Tensor:
    """The part of the free energy that the hidden units have: ``sum_j log(1 + exp(field_j))``."""
    wide = torch.promote_types(field.dtype, torch.float32)
    return -logsigmoid(-field.to(wide)).sum(1)


def rbm_free_energy(
    v: Tensor, weight: Tensor, visible_bias: Tensor, hidden_bias: Tensor, gaussian: bool = False
) -> Tensor:
    """``-log sum_h exp(-E(v, h))`` (Hinton 2010, section 16.1)."""
    apart = 0.5 * (v - visible_bias).square().sum(1) if gaussian else -(v * visible_bias).sum(1)
    return apart - rbm_softplus_sum(torch.addmm(hidden_bias, v, weight))


def cd_statistics(v_pos: Tensor, h_pos: Tensor, v_neg: Tensor, h_neg: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of the log-likelihood by weight and biases, from samples of its two phases (Hinton 2002)."""
    a, b = 1.0 / v_pos.shape[0], 1.0 / v_neg.shape[0]
    by_weight = torch.addmm(v_pos.T @ h_pos, v_neg.T, h_neg, beta=a, alpha=-b)
    return by_weight, v_pos.mean(0) - v_neg.mean(0), h_pos.mean(0) - h_neg.mean(0)
