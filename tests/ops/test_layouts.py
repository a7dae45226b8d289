"""Random sizes, layouts and sets of gradients, from hypothesis."""

from __future__ import annotations

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from gmkernels.testing import LAYOUTS, Case, OperatorRow, evaluate, redzones, relayout
from gmkernels.testing.evaluate import different

from . import support
from .support import cpu, on, params, wrong

# Around the lane counts, block sizes and nothing at all; and primes.
SIZES = [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 5, 11, 13, 61, 101, 251, 509]


@st.composite
def draws(data, row: OperatorRow, backend: str):
    limit = row.limit if backend != "triton" or not support.INTERPRETER else 300
    rank = data(st.sampled_from(row.ranks))
    sizes: list[int] = []
    for left in range(rank, 0, -1):
        # What the product allows, with room for at least a little in the dimensions that follow.
        room = limit // max(1, math.prod(sizes)) // (2 ** (left - 1))
        sizes.append(data(st.sampled_from([n for n in SIZES if n <= max(1, room)])))
    order = data(st.permutations(range(rank)))
    return tuple(sizes[i] for i in order)


@params(interpreted=True)
@hypothesis.given(data=st.data())
def test_any_size_layout_and_set_of_gradients(row: OperatorRow, backend: str, data: st.DataObject) -> None:
    sizes = data.draw(draws(row, backend), "sizes")
    double = torch.float64 in row.dtypes and backend != "triton"
    case = row.case(sizes, torch.float64 if double else row.dtypes[0], data.draw(st.integers(0, 99), "seed"))
    layouts = {name: data.draw(st.sampled_from(LAYOUTS), f"layout of {name}") for name in case.tensors}
    case = Case({name: relayout(t, layouts[name]) for name, t in case.tensors.items()}, case.constants)
    needs = [name for name in row.differentiable if data.draw(st.booleans(), f"gradient of {name}")]
    spread = data.draw(st.booleans(), "cotangents of stride 0")
    there = on(backend, case) if support.device(backend) == "cuda" else case

    with redzones() as zones:
        guarded = zones.case(there)
        result = evaluate(row, guarded, backend, needs=needs, spread=spread)
    plain = case.map(lambda t: t.contiguous().clone()).to(torch.float64)
    if double:
        assert not (found := wrong(row, plain, cpu(result), needs=needs, spread=spread)), found
    else:
        exact = evaluate(row, plain, "reference", needs=needs, spread=spread)
        # 16-bit inputs, or Triton: the budgets hold them tightly, this finds what is plainly wrong.
        for name, t in result.items():
            if t.is_floating_point():
                width = 64 * torch.finfo(t.dtype).eps if t.dtype != torch.float32 else 1e-4
                torch.testing.assert_close(t.cpu().double(), exact[name].double(), rtol=width, atol=width)
    if backend != "reference":
        dense = evaluate(row, there.map(lambda t: t.contiguous().clone()), backend, needs=needs, spread=spread)
        assert not (found := different(result, dense)), found


def test_the_sizes_drawn_cover_the_interesting_ones() -> None:
    """The strategy itself: with enough draws, every size of the list comes up in every rank."""
    row = next(r for r in support.ROWS if r.operator == "affine_coupling")
    seen: set[int] = set()

    @hypothesis.settings(max_examples=300)
    @hypothesis.given(draws(row, "cpu"))
    def collect(sizes):
        seen.update(sizes)

    collect()
    assert len(set(SIZES) - seen) <= 3, f"never drawn: {sorted(set(SIZES) - seen)}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (1, 5), (0, 3), (4, 0), (5,)])
def test_relayout_keeps_the_values(layout: str, shape: tuple[int, ...]) -> None:
    t = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    out = relayout(t, layout)
    assert out.shape == t.shape
    if layout == "expanded":
        assert t.numel() == 0 or torch.equal(out, t[..., :1].expand(shape))
    elif layout == "expanded_rows":
        assert t.numel() == 0 or torch.equal(out, t[:1].expand(shape))
    else:
        assert torch.equal(out, t)
