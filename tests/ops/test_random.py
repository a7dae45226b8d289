"""The random stream: one set of integers on every backend, frozen by hashes, with the laws its samples must have."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import gmkernels as gmk
from gmkernels.core import backends, philox
from gmkernels.testing.evaluate import threads
from tools import check_vmath

from . import support

ROOT = Path(__file__).resolve().parents[2]
KEY = (20240229, 7)
HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALVES)

# (counter, key, words) of Random123's kat_vectors, which passed the authors' BigCrush.
KNOWN = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)

available = [name for name in backends.BACKENDS if backends.unavailable(name) is None]


def on(*names: str, dtypes: tuple[torch.dtype, ...] = (), doubles: bool = False):
    """Parametrise over those of the named backends (all but the reference by default) that run here.

    With ``dtypes``, over the pairs that exist: Triton takes no float64 tensors (``doubles``: but makes them), and its
    interpreter computes bfloat16 wrongly.
    """
    found = []
    for name in available:
        if name not in (names or ("cpu", "triton", "cuda")):
            continue
        marks = [pytest.mark.triton] if name == "triton" else []
        kept = [dtype for dtype in dtypes if support.runs(name, dtype) or (doubles and dtype == torch.float64)]
        found += [pytest.param(name, *pair, marks=marks) for pair in ([(dtype,) for dtype in kept] if dtypes else [()])]
    return pytest.mark.parametrize("backend,dtype" if dtypes else "backend", found)


def key(backend: str = "cpu", words: tuple[int, int] = KEY) -> Tensor:
    signed = [word - 2**64 if word >= 2**63 else word for word in words]
    return torch.tensor(signed, dtype=torch.int64, device=support.device(backend))


def draws(backend: str) -> int:
    """How many draws a test can afford."""
    return 1 << 12 if backend == "triton" and support.INTERPRETER else 1 << 20


# ---- the integers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counter,words,expected", KNOWN)
def test_reference_gives_the_known_answers(counter, words, expected) -> None:
    found = philox.philox4x32(tuple(torch.tensor([c]) for c in counter), tuple(torch.tensor(k) for k in words))
    assert tuple(int(word) for word in found) == expected


@pytest.mark.skipif(check_vmath.compiler() is None, reason="no C++ compiler to build tests/cpp with")
@pytest.mark.parametrize("isa", check_vmath.usable())
def test_compiled_philox_gives_the_known_answers(isa: str, tmp_path: Path) -> None:
    program = check_vmath.build("philox_kat.cpp", isa, tmp_path)
    for counter, words, expected in KNOWN:
        arguments = [f"{word:x}" for word in (*counter, *words)]
        lines = subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout.splitlines()
        assert len(lines) == (2 if isa == "cuda" else 17)  # one counter at a time, then in each lane of a vector
        assert {tuple(int(word, 16) for word in line.split()) for line in lines} == {expected}


@pytest.mark.skipif("triton" not in available, reason="Triton runs in tests/ops/test_triton.py")
@pytest.mark.triton
@pytest.mark.parametrize("counter,words,expected", KNOWN)
def test_triton_philox_gives_the_known_answers(counter, words, expected) -> None:
    from gmkernels.core.triton_launch import launch

    from .triton_kernels import philox as kernel

    pairs = [(counter[0], counter[1]), (counter[2], counter[3]), words]
    arguments = [key("triton", (low | high << 32, 0))[:1] for low, high in pairs]
    out = torch.zeros(4, 16, dtype=torch.int64, device=arguments[0].device)
    launch(kernel, 1, *arguments, out, warps=1)
    assert torch.equal(out.cpu(), torch.tensor(expected)[:, None].expand(4, 16))


@on("reference", "cpu", "triton", "cuda")
def test_the_stream_begins_with_the_known_answer(backend: str) -> None:
    assert tuple(gmk.random.bits(key(backend, (0, 0)), 4, backend=backend).tolist()) == KNOWN[0][2]


# SHA-256 of the first 2^20 draws under KEY, little-endian. A change here changes every result of every user: do not.
GOLDEN = {
    "bits": "c8f28f6050745516d1e3ac6c71bdc06e283bc54ffd7fa0243fbd1346ef4cdaf6",
    "uniform": "93ceabbc893cfc08587d29dae44645ba74f411e701b7e957dd1d5040e0dfa7ca",
    "bernoulli": "8b2e395c71275ebef548bc0216e8374f5f9b0548215e179123164fd0295559a6",
    "normal": "c908eb3c87215e808762a75aa88232d0eb10ad8c1f1e36a2802baec3027366aa",
}


def _golden(name: str, backend: str, count: int, first: int = 0) -> bytes:
    k = key(backend)
    if name == "bernoulli":
        drawn, kind = (
            gmk.random.bernoulli(torch.full((count,), 0.3, device=k.device), k, first=first, backend=backend),
            "u1",
        )
    else:
        drawn, kind = (
            getattr(gmk.random, name)(k, count, first=first, backend=backend),
            "<u4" if name == "bits" else "<f4",
        )
    return drawn.cpu().numpy().astype(kind).tobytes()


@on("reference", "cpu", "cuda")
@pytest.mark.parametrize("name", GOLDEN)
def test_the_stream_is_frozen(name: str, backend: str) -> None:
    # PyTorch's logarithm and cosine round otherwise, and not alike on all machines: normals are the kernels' to keep.
    if (name, backend) != ("normal", "reference"):
        assert hashlib.sha256(_golden(name, backend, 1 << 20)).hexdigest() == GOLDEN[name]


@on("triton")
@pytest.mark.parametrize("name", GOLDEN)
def test_triton_draws_the_frozen_stream(name: str, backend: str) -> None:
    """The interpreter is slow: it draws the ends of the 2^20, the C++ core all of them."""
    assert backends.unavailable("cpu") is None, "the C++ core is the measure here"
    golden = _golden(name, "cpu", 1 << 20)
    assert hashlib.sha256(golden).hexdigest() == GOLDEN[name]
    count = draws(backend)
    width = len(golden) >> 20
    assert _golden(name, backend, count) == golden[: count * width]
    assert _golden(name, backend, count, (1 << 20) - count) == golden[-count * width :]


SHAPES = ([0], [1], [2], [3], [5], [63], [64], [65], [2, 0, 3], [7, 33], [1, 1, 129], [3, 5, 7], [])
FIRSTS = (0, 1, 3, 2**31 - 1, 2**40 + 2)
KEYS = (KEY, (0, 0), (2**63 - 1, 2**63 - 1), (2**64 - 1, 2**63), (0xFFFFFFFF, 2**32))


@on()
@pytest.mark.parametrize("words", KEYS)
def test_the_same_integers_everywhere(backend: str, words: tuple[int, int]) -> None:
    k = key(backend, words)
    for shape in SHAPES:
        for first in FIRSTS if shape else (0,):
            expected = gmk.random.bits(k, shape, first=first, backend="reference")
            assert torch.equal(gmk.random.bits(k, shape, first=first, backend=backend), expected), (shape, first)


@on()
def test_large_draws_are_the_same_integers(backend: str) -> None:
    k, count = key(backend), draws(backend) + 37
    for first in (0, 2**40 + 5):
        expected = gmk.random.bits(k, count, first=first, backend="reference")
        assert torch.equal(gmk.random.bits(k, count, first=first, backend=backend), expected)


KINDS: dict[str, Callable[..., Tensor]] = {
    "bits": lambda k, shape, first, backend: gmk.random.bits(k, shape, first=first, backend=backend),
    "uniform": lambda k, shape, first, backend: gmk.random.uniform(k, shape, first=first, backend=backend),
    "normal": lambda k, shape, first, backend: gmk.random.normal(k, shape, first=first, backend=backend),
    "bernoulli": lambda k, shape, first, backend: gmk.random.bernoulli(
        torch.full(shape, 0.4, device=k.device), k, first=first, backend=backend
    ),
}


@on("reference", "cpu", "triton", "cuda")
@given(
    rows=st.integers(0, 9),
    row=st.sampled_from([1, 2, 3, 5, 17, 64]),
    cut=st.integers(0, 9),
    first=st.integers(0, 2**40),
    kind=st.sampled_from(sorted(KINDS)),
)
def test_a_batch_cut_in_two_draws_the_same(backend: str, rows: int, row: int, cut: int, first: int, kind: str) -> None:
    k, cut = key(backend), min(cut, rows)
    whole = KINDS[kind](k, (rows, row), first, backend)
    parts = [KINDS[kind](k, (cut, row), first, backend), KINDS[kind](k, (rows - cut, row), first + cut, backend)]
    assert torch.equal(torch.cat(parts), whole)


@on("cpu")
@pytest.mark.parametrize("kind", KINDS)
def test_thread_counts_do_not_matter(kind: str, backend: str) -> None:
    shape = (3, 70_001)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(KINDS[kind](key(), shape, 1, backend))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


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


# ---- keys, doors, compilers ------------------------------------------------------------------------------------------


def test_key_follows_the_generators() -> None:
    torch.manual_seed(5)
    first, second = gmk.random.key(), gmk.random.key()
    torch.manual_seed(5)
    assert torch.equal(gmk.random.key(), first)
    assert torch.equal(gmk.random.key(), second)
    assert not torch.equal(first, second)
    generator = torch.Generator().manual_seed(6)
    state = torch.get_rng_state()
    drawn = gmk.random.key(generator)
    assert torch.equal(torch.get_rng_state(), state), "a generator of the user's own leaves the default one alone"
    assert torch.equal(gmk.random.key(torch.Generator().manual_seed(6)), drawn)
    assert (drawn.dtype, drawn.shape) == (torch.int64, (2,))
    assert (drawn >= 0).all()
    assert gmk.random.key(seed=9).tolist() == [9, 0]
    with pytest.raises(ValueError, match="a generator or a seed, not both"):
        gmk.random.key(generator, seed=9)


@on("reference", "cpu", "triton", "cuda")
def test_sampling_leaves_torch_generators_alone(backend: str) -> None:
    k = key(backend)
    state = torch.get_rng_state()
    for draw in KINDS.values():
        draw(k, (4, 5), 0, backend)
    assert torch.equal(torch.get_rng_state(), state)


@on("cpu")
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_calls_draw_the_same(kind: str, backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(KINDS[kind], fullgraph=True, backend="aot_eager")
    for shape, first in (((3, 5), 0), ((6, 5), 2)):
        expected = KINDS[kind](key(), shape, first, backend)
        assert torch.equal(compiled(key(), shape, first, backend), expected)


def test_a_key_drawn_in_compiled_code_follows_manual_seed() -> None:
    torch._dynamo.reset()

    def sample() -> Tensor:
        return gmk.random.normal(gmk.random.key(), (2, 3))

    compiled = torch.compile(sample, fullgraph=True, backend="aot_eager")
    torch.manual_seed(11)
    expected = [sample(), sample()]
    torch.manual_seed(11)
    assert all(torch.equal(compiled(), e) for e in expected)
    assert not torch.equal(*expected)


@pytest.mark.slow
def test_triton_kernels_compile_ahead_of_time_without_spills(tmp_path: Path) -> None:
    """For sm_80 and sm_90, in a process that compiles; no GPU needed."""
    pytest.importorskip("triton")
    if support.INTERPRETER:
        pytest.skip("this process interprets")
    path = tmp_path / "rows.jsonl"
    command = [
        sys.executable,
        ROOT / "tools" / "triton_resources.py",
        "--only",
        "random ",
        "--jobs",
        "1",
        "--json",
        path,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["arch"] for row in rows} == {80, 90}
    assert len({row["kernel"] for row in rows}) == 4
    assert all(row["spilled"] == 0 and row["registers"] <= 64 for row in rows)
