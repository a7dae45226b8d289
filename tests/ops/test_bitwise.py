"""The bitwise laws: the same bits from run to run, for any number of threads, cut of the batch, layout, instruction set
and door, and from C++ and Triton where the project promises it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from gmkernels.core import layout as layouts
from gmkernels.core import native
from gmkernels.testing import LAYOUTS, OperatorRow, evaluate, relayout
from gmkernels.testing.digests import digests
from gmkernels.testing.evaluate import different, threads

from . import support
from .support import on, params

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
KERNELS = dict(reference=False, dtypes=DTYPES)


@params(**KERNELS)
def test_run_to_run(row: OperatorRow, backend: str, dtype: torch.dtype) -> None:
    for sizes in support.sizes(row, backend):
        case = on(backend, row.case(sizes, dtype))
        assert not different(evaluate(row, case, backend), evaluate(row, case.map(torch.clone), backend))


def _large(row: OperatorRow) -> tuple[int, ...]:
    """Sizes well above what one thread keeps for itself, of awkward remainders."""
    return {
        "affine_coupling": (67, 1021),
        "planar_flow": (1031, 13, 5),
        "minibatch_discrimination": (131, 17, 5),
        "ais_log_z": (67, 131, 70),
        "masked_conv2d": (5, 19, 37, 13, 31),
        "gated_masked_conv2d": (9, 19, 37, 13, 31),
        "causal_conv1d": (5, 19, 37, 401),
        "gated_activation": (5, 37, 13, 31),
        "pixelcnn_sample": (37, 13, 11),
        "made_inverse": (131, 23),
        "masked_linear": (131, 67, 101),
        # A layer of more than 256 KB is computed in another way; and PyTorch's own silu and tanh, on which second
        # derivatives rest, depend on threads beyond 32,768 numbers.
        "mlp": (121, 307, 259, 35),
        "affine_coupling_mlp": (121, 67, 259, 35),
        "bernoulli_log_likelihood_mlp": (121, 67, 259, 135),
    }.get(row.operator, (257, 1021))


@params(lambda row: True, reference=False, dtypes=(torch.float32, torch.float64))
def test_thread_counts(row: OperatorRow, backend: str, dtype: torch.dtype) -> None:
    if backend != "cpu":
        return  # other backends have no threads of the CPU
    for sizes in (row.sizes[0], row.sizes[-1], _large(row)):
        case = row.case(sizes, dtype)
        found = []
        for count in (1, 2, 4, 3):
            with threads(count):
                found.append(evaluate(row, case, backend))
        for other in found[1:]:
            assert not (wrong := different(found[0], other)), f"{sizes}: {wrong}"


@params(
    lambda row: row.part, dtypes=(torch.float32, torch.float16), reference=False, one_of_each=True, interpreted=True
)
def test_batch_split(row: OperatorRow, backend: str, dtype: torch.dtype) -> None:
    assert row.part is not None
    names = [*row.outputs, *(f"{kind}_{name}" for kind in ("grad", "double") for name in row.batched)]
    for sizes in support.sizes(row, backend):
        whole = on(backend, row.case(sizes, dtype))
        batch = sizes[0]
        # Zero rows after the first, in the middle of a group of four, and all of them.
        cuts = {0, min(1, batch), batch // 2, max(0, batch - 3), batch}
        for cut in sorted(cuts if not support.INTERPRETER else {batch // 2}):
            parts = [evaluate(row, row.part(whole, *span), backend, order=0) for span in ((0, cut), (cut, batch))]
            joined = {name: torch.cat([p[name] for p in parts]) for name in row.outputs}
            assert not (wrong := different(joined, evaluate(row, whole, backend, order=0))), (sizes, cut, wrong)
        if row.order:
            _split_gradients(row, backend, whole, batch, names)


def _split_gradients(row: OperatorRow, backend: str, whole, batch: int, names: list[str]) -> None:
    """Cotangents of one value, so that the halves get the same ones as the whole."""
    assert row.part is not None
    cut = batch // 2
    full = evaluate(row, whole, backend, order=1, spread=True)
    parts = [evaluate(row, row.part(whole, *span), backend, order=1, spread=True) for span in ((0, cut), (cut, batch))]
    for name in names:
        if name in full:
            joined = {name: torch.cat([p[name] for p in parts])}
            assert not different(joined, full, [name]), name


@params(reference=False, dtypes=(torch.float32, torch.float64, torch.float16))
def test_layouts(row: OperatorRow, backend: str, dtype: torch.dtype) -> None:
    for sizes in support.sizes(row, backend):
        case = row.case(sizes, dtype)
        plain = evaluate(row, on(backend, case), backend)
        for layout in LAYOUTS:
            arranged = case.map(lambda t, layout=layout: relayout(t, layout))
            there = on(backend, arranged) if support.device(backend) == "cuda" else arranged
            dense = plain
            if layout.startswith("expanded"):  # other values
                dense = evaluate(row, on(backend, arranged.map(lambda t: t.contiguous().clone())), backend)
            assert not (wrong := different(evaluate(row, there, backend), dense)), (sizes, layout, wrong)


@params(reference=False, one_of_each=True)
def test_matrices_as_tensors_and_as_addresses(row: OperatorRow, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's table of C functions and its Python attributes describe the same operands."""
    if backend != "cpu":
        return
    assert native.takes_tensors(), "this PyTorch has no __dlpack_c_exchange_api__: every call is slower"
    for dtype in row.dtypes:
        case = row.case(row.sizes[0], dtype)
        for layout in ("contiguous", "transposed", "step2", "expanded_rows"):
            arranged = case.map(lambda t, layout=layout: relayout(t, layout))
            with monkeypatch.context() as patch:
                patch.setattr(layouts, "takes_tensors", lambda: False)
                addresses = evaluate(row, arranged, backend)
            assert not (wrong := different(evaluate(row, arranged, backend), addresses)), (dtype, layout, wrong)


@params(lambda row: row.same_bits, dtypes=(torch.float32, torch.float16), reference=False, interpreted=True)
def test_triton_has_the_bits_of_the_cpp_core(row: OperatorRow, backend: str, dtype: torch.dtype) -> None:
    if backend != "triton":
        return
    assert native.cpu_error() is None, "the C++ core is what Triton is compared with"
    for seed, sizes in enumerate(support.sizes(row, backend)):
        ours, theirs = (support.kernel_results(row, b, dtype, sizes, seed) for b in (backend, "cpu"))
        assert not (wrong := different(ours, theirs, row.same_bits)), (sizes, wrong)


def test_instruction_sets() -> None:
    """Everything the table computes, hashed under each instruction set that this machine has."""
    if native.cpu_error() is not None:
        pytest.skip(f"no C++ core: {native.cpu_error()}")
    usable = native.cpu().isas()
    assert "baseline" in usable
    here = digests("cpu")
    for isa in usable:
        environment = {**os.environ, "GMKERNELS_ISA": isa}
        command = [sys.executable, "-m", "gmkernels.testing.digests", "--backend", "cpu", "--threads", "2"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["isa"] == isa
        assert found["digests"].keys() == here.keys()
        wrong = [name for name, value in found["digests"].items() if value != here[name]]
        assert not wrong, f"{isa} against {native.cpu().isa()}: {len(wrong)} differ: {wrong[:10]}"
