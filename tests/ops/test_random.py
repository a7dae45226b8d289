"""The random stream: one set of integers on every backend, frozen by hashes, behind keys and both doors."""

from __future__ import annotations

import hashlib
import json
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
from .drawing import KEYS, available, draws, key, on

ROOT = Path(__file__).resolve().parents[2]

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
    assert gmk.random.key(seed=np.int64(9)).tolist() == [9, 0]
    for wrong, match in ((1.5, "must be an int, got 1.5"), (2**63, "must fit 64 bits")):
        with pytest.raises((TypeError, ValueError), match=match):
            gmk.random.key(seed=wrong)
    with pytest.raises(TypeError, match=r"got 7; a number is given as key\(seed"):
        gmk.random.key(7)


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
