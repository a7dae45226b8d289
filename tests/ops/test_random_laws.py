"""Uniforms, normals and Bernoulli draws are functions of the stream's bits, and have the laws they must have."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import gmkernels as gmk
from gmkernels.core import philox

from .drawing import KEY, KEYS, available, draws, key, on

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALVES)

# ---- uniform ---------------------------------------------------------------------------------------------------------

# The first elements under KEY whose 23 leading bits are all zero and all one.
LOWEST, HIGHEST = 320_267, 26_395_024
LOWEST_RADIUS = 21_461_232  # the first of an even index, where a normal's radius is drawn


@on("reference", "cpu", "triton", "cuda")
def test_uniform_is_open_at_both_ends(backend: str) -> None:
    k = key(backend)
    assert int(gmk.random.bits(k, 1, first=LOWEST, backend=backend)) >> 9 == 0
    assert int(gmk.random.bits(k, 1, first=HIGHEST, backend=backend)) >> 9 == 2**23 - 1
    for dtype in (torch.float32, torch.float64):
        low = gmk.random.uniform(k, 1, first=LOWEST, dtype=dtype, backend=backend).item()
        high = gmk.random.uniform(k, 1, first=HIGHEST, dtype=dtype, backend=backend).item()
        assert (low, high) == (2.0**-24, 1 - 2.0**-24)


def test_extreme_words_give_uniforms_inside_the_interval() -> None:
    words = torch.tensor([0, 511, 512, 2**32 - 513, 2**32 - 512, 2**32 - 1])
    expected = [2.0**-24, 2.0**-24, 3 * 2.0**-24, 1 - 3 * 2.0**-24, 1 - 2.0**-24, 1 - 2.0**-24]
    for dtype in (torch.float32, torch.float64):
        assert philox.to_uniform(words, dtype).tolist() == expected


@on("reference", "cpu", "triton", "cuda")
def test_uniform_is_a_function_of_the_bits(backend: str) -> None:
    k, count = key(backend), draws(backend)
    bits = gmk.random.bits(k, count, first=3, backend=backend)
    for dtype in (torch.float32, torch.float64):
        expected = (2 * (bits >> 9) + 1).double() * 2.0**-24
        assert torch.equal(gmk.random.uniform(k, count, first=3, dtype=dtype, backend=backend), expected.to(dtype))


# ---- normal ----------------------------------------------------------------------------------------------------------


def _exact_normals(k: Tensor, count: int, first: int) -> Tensor:
    """Box and Muller in NumPy's double precision, from the bits alone; first is even."""
    word = gmk.random.bits(k, count + count % 2, first=first, backend="reference").cpu().numpy()
    u = ((word >> 9) + 0.5) * 2.0**-23
    radius, angle = np.sqrt(-2 * np.log(u[::2])), 2 * np.pi * u[1::2]
    return torch.from_numpy(np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)[:count])


@on("reference", "cpu", "triton", "cuda", dtypes=DTYPES, doubles=True)
def test_normal_is_box_muller_of_the_bits(backend: str, dtype: torch.dtype) -> None:
    k, count = key(backend), draws(backend) // 8 + 1
    exact = _exact_normals(k, count, 2)
    error = (gmk.random.normal(k, count, first=2, dtype=dtype, backend=backend).cpu().double() - exact).abs()
    # The kernels reduce the angle exactly. The reference rounds 2 pi and the angle: 4.2e-7 of a radius up to 5.77.
    steps = 5.77 * 4.2e-7 + 2.0**-21 if backend == "reference" else 2.0**-21
    limit = {torch.float64: 2.0**-48}.get(dtype, steps) + torch.finfo(dtype).eps / 2 * exact.abs()
    assert (error <= limit).all(), (error / limit).max()


@on("cpu", "cuda")
def test_normals_are_within_three_ulp_of_box_muller(backend: str) -> None:
    k = key(backend)
    exact = _exact_normals(k, 1 << 20, 0)
    drawn = gmk.random.normal(k, 1 << 20, backend=backend).cpu()
    spacing = torch.ldexp(torch.ones_like(exact), torch.frexp(exact).exponent - 24)
    assert ((drawn.double() - exact).abs() / spacing).max() < 3.0


@on(dtypes=(torch.float32, torch.float16))
def test_kernels_give_the_same_bits_of_normals(backend: str, dtype: torch.dtype) -> None:
    for first in (0, 1, 2**40 + 3):
        ours = gmk.random.normal(key(backend), 1021, first=first, dtype=dtype, backend=backend)
        assert torch.equal(ours.cpu(), gmk.random.normal(key(), 1021, first=first, dtype=dtype, backend="cpu"))


@on("reference", "cpu", "triton", "cuda")
def test_the_largest_normal_is_the_documented_one(backend: str) -> None:
    """At the smallest uniform the radius is sqrt(48 ln 2) = 5.768."""
    k = key(backend)
    assert int(gmk.random.bits(k, 1, first=LOWEST_RADIUS, backend=backend)) >> 9 == 0
    pair = gmk.random.normal(k, 2, first=LOWEST_RADIUS, dtype=torch.float64, backend=backend)
    assert pair.norm().item() == pytest.approx(math.sqrt(48 * math.log(2)), rel=1e-12)
    assert pair.norm() < 5.77


# ---- Bernoulli -------------------------------------------------------------------------------------------------------


@on("reference", "cpu", "triton", "cuda", dtypes=DTYPES)
def test_bernoulli_decides_between_integers(backend: str, dtype: torch.dtype) -> None:
    """Against Python's own integers, at the probabilities nearest to where each decision turns."""
    k = key(backend)
    words = gmk.random.bits(k, (64, 5), first=9, backend="reference")
    chances = [(words.double() / 2**32).to(dtype), ((words.double() + 1) / 2**32).to(dtype)]
    if dtype not in HALVES:
        chances += [torch.nextafter(chances[0], torch.full_like(chances[0], end)) for end in (0.0, 1.0)]
    for p in chances:
        drawn = gmk.random.bernoulli(p, k, first=9, backend=backend)
        both = zip(words.flatten().tolist(), p.flatten().tolist(), strict=True)
        assert drawn.dtype == dtype
        assert drawn.flatten().tolist() == [float(word < math.floor(chance * 2**32)) for word, chance in both]


@on("reference", "cpu", "triton", "cuda", dtypes=DTYPES)
def test_bernoulli_is_exact_at_the_ends(backend: str, dtype: torch.dtype) -> None:
    k, count = key(backend), draws(backend) // 4
    finfo = torch.finfo(dtype)
    never = [0.0, -0.0, -1.0, -float("inf"), finfo.smallest_normal if dtype != torch.float16 else 0.0, -finfo.tiny]
    always = [1.0, 2.0, float("inf")]
    for value in never:
        p = torch.full((count,), value, dtype=dtype, device=k.device)
        assert not gmk.random.bernoulli(p, k, backend=backend).any()
    if dtype != torch.float16:
        smallest = torch.nextafter(torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype)).expand(count)
        assert not gmk.random.bernoulli(smallest.to(k.device), k, backend=backend).any()
    for value in always:
        p = torch.full((count,), value, dtype=dtype, device=k.device)
        assert gmk.random.bernoulli(p, k, backend=backend).all()
    p = torch.full((count,), float("nan"), dtype=dtype, device=k.device)
    assert gmk.random.bernoulli(p, k, backend=backend).isnan().all()


@on("reference", "cpu", "triton", "cuda")
def test_bernoulli_takes_strided_probabilities_and_no_gradient(backend: str) -> None:
    k = key(backend)
    p = torch.rand(6, 10, device=k.device).t()[::2].requires_grad_()
    drawn = gmk.random.bernoulli(p, k, backend=backend)
    assert not drawn.requires_grad
    assert torch.equal(drawn, gmk.random.bernoulli(p.detach().contiguous(), k, backend="reference"))


# ---- laws ------------------------------------------------------------------------------------------------------------
#
# Each statistic is compared with its normal limit at 6.5 standard deviations, 8e-11 two-sided. There are fewer than
# 1,000 of them: the false alarm of the whole family is below 1e-7. With 2^22 draws a mean is off by 0.0032 standard
# deviations before it fails, and a probability by 0.0016.

SIGMAS = 6.5
MANY = 1 << 22

core = pytest.mark.skipif("cpu" not in available, reason="millions of draws need the C++ core")


def _z(mean: float, expected: float, variance: float, count: int = MANY) -> float:
    return abs(mean - expected) / math.sqrt(variance / count)


@core
@pytest.mark.parametrize("words", KEYS)
def test_uniform_law(words: tuple[int, int]) -> None:
    u = gmk.random.uniform(key(words=words), MANY, dtype=torch.float64, backend="cpu")
    for power in (1, 2, 3, 4):
        variance = 1 / (2 * power + 1) - 1 / (power + 1) ** 2
        assert _z(u.pow(power).mean().item(), 1 / (power + 1), variance) < SIGMAS
    cells = torch.histc(u, 4096, 0, 1)
    expected = MANY / 4096
    chi2 = ((cells - expected) ** 2 / expected).sum().item()
    assert abs(chi2 - 4095) / math.sqrt(2 * 4095) < SIGMAS
    centred = u - 0.5
    for lag in (1, 2, 3, 4, 5, 8, 64, 1024):
        assert _z((centred[lag:] * centred[:-lag]).mean().item(), 0, 1 / 144, MANY - lag) < SIGMAS


@core
@pytest.mark.parametrize("words", KEYS)
def test_every_bit_is_fair(words: tuple[int, int]) -> None:
    bits = gmk.random.bits(key(words=words), MANY, backend="cpu").numpy().astype("<u4")
    ones = np.unpackbits(bits.view(np.uint8), bitorder="little").reshape(MANY, 32).sum(0, dtype=np.int64)
    assert all(_z(count / MANY, 0.5, 0.25) < SIGMAS for count in ones)


@core
@pytest.mark.parametrize("words", KEYS)
def test_normal_law(words: tuple[int, int]) -> None:
    z = gmk.random.normal(key(words=words), MANY, dtype=torch.float64, backend="cpu")
    moments = [1, 0, 1, 0, 3, 0, 15, 0, 105, 0, 945, 0, 10395, 0, 135135, 0, 2027025]
    for power in (1, 2, 3, 4, 6, 8):
        variance = moments[2 * power] - moments[power] ** 2
        assert _z(z.pow(power).mean().item(), moments[power], variance) < SIGMAS
    first, second = z[0::2], z[1::2]
    for a, b, variance in ((first, second, 1), (first**2 - 1, second**2 - 1, 4), (first[1:], second[:-1], 1)):
        assert _z((a * b).mean().item(), 0, variance, len(a)) < SIGMAS
    # Dvoretzky, Kiefer and Wolfowitz, with Massart's constant: exceeded with probability 1e-10 at most.
    ordered = z.sort().values
    cdf = torch.special.ndtr(ordered)
    steps = torch.arange(MANY + 1, dtype=torch.float64) / MANY
    distance = max((cdf - steps[:-1]).max().item(), (steps[1:] - cdf).max().item())
    assert distance < math.sqrt(math.log(2 / 1e-10) / (2 * MANY))


@core
@pytest.mark.parametrize("p", [1e-6, 0.001, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_bernoulli_law(p: float) -> None:
    for words in KEYS:
        drawn = gmk.random.bernoulli(torch.full((MANY,), p, dtype=torch.float64), key(words=words), backend="cpu")
        # Bernstein's inequality, since successes may be few: the tail is below 2 exp(-x) with x = 23.
        x, variance = 23.0, MANY * p * (1 - p)
        assert abs(drawn.sum().item() - MANY * p) < math.sqrt(2 * variance * x) + 2 * x / 3


@core
def test_neighbouring_keys_are_independent() -> None:
    base = gmk.random.uniform(key(), MANY, dtype=torch.float64, backend="cpu") - 0.5
    seed, offset = KEY
    for other in (
        (seed + 1, offset),
        (seed, offset + 1),
        (seed + 2**32, offset),
        (seed, offset + 2**32),
        (offset, seed),
    ):
        u = gmk.random.uniform(key(words=other), MANY, dtype=torch.float64, backend="cpu") - 0.5
        assert _z((base * u).mean().item(), 0, 1 / 144) < SIGMAS
