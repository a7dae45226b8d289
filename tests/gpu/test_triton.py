"""The Triton kernels on a GPU: bfloat16 and the other dtypes in large sizes, the bits of the C++ core, streams, graphs,
offsets beyond 2^31, devices, and the same bits again and again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import gmkernels as gmk
from gmkernels.core import native
from gmkernels.ops.coupling import reference as coupling
from gmkernels.ops.minibatch import reference as minibatch
from gmkernels.testing.budget import error

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
Call = Callable[..., "Tensor | tuple[Tensor, ...]"]


def draw(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return (torch.randn(shape, generator=generator, device="cuda") * scale).to(dtype)


def results(call: Call, inputs: Sequence[Tensor], order: int = 2) -> list[Tensor]:
    """Outputs, gradients, and gradients of gradients with respect to inputs and cotangents."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    out = call(*leaves)
    out = out if isinstance(out, tuple) else (out,)
    found = list(out)
    if order:
        grads = [draw(*t.shape, seed=20 + n).to(t.dtype).requires_grad_() for n, t in enumerate(out)]
        first = torch.autograd.grad(out, leaves, grads, create_graph=order > 1)
        found += first
        if order > 1:
            tops = [draw(*t.shape, seed=30 + n).to(t.dtype) for n, t in enumerate(first)]
            found += torch.autograd.grad(first, [*leaves, *grads], tops, materialize_grads=True)
    return [t.detach() for t in found]


def agree(ours: Call, reference: Call, inputs: Sequence[Tensor], order: int = 2) -> None:
    """No result is further from float64 than ten times PyTorch in the same dtype, or 64 half-ULPs."""
    found, eager = results(ours, inputs, order), results(reference, inputs, order)
    exact = results(reference, [t.double() for t in inputs], order)
    for n, (a, b, e) in enumerate(zip(found, eager, exact, strict=True)):
        measured, limit = error(a, e), max(64.0, 10.0 * error(b, e))
        assert measured <= limit, f"result {n}: error {measured:.3g} > {limit:.3g}"


def affine(**constants: object) -> tuple[Call, Call]:
    scale_map = constants.get("scale_map", "exp")
    clamp = constants.get("clamp") or coupling.SCALE_MAPS[scale_map]
    return (
        lambda x, s, t: gmk.affine_coupling(x, s, t, backend="triton", **constants),
        lambda x, s, t: coupling.affine_coupling(x, s, t, constants.get("mask"), scale_map, clamp, constants.get("inverse", False)),
    )  # fmt: skip


def planar(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    return gmk.planar_flow(*inputs, backend="triton")


def discriminate(m: Tensor) -> Tensor:
    return gmk.minibatch_discrimination(m, backend="triton")


def planar_inputs(batch: int, dim: int, flows: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    scale = min(1.0, 1.5 / dim**0.5)
    shapes = [((batch, dim), 1.0), ((flows, dim), scale), ((flows, dim), scale), ((flows,), 1.0)]
    return [draw(*shape, seed=n, scale=s, dtype=dtype) for n, (shape, s) in enumerate(shapes)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale_map", gmk.ops.coupling.SCALE_MAPS)
def test_affine_coupling(scale_map: str, inverse: bool, dtype: torch.dtype) -> None:
    inputs = [draw(517, 784, seed=n, dtype=dtype) for n in range(3)]
    agree(*affine(scale_map=scale_map, inverse=inverse), inputs)


@pytest.mark.parametrize("shape", [(70001, 2), (9, 3, 33, 31), (2, 65539), (4097, 1), (65539, 17)])
def test_affine_shapes(shape: tuple[int, ...]) -> None:
    inputs = [draw(*shape, seed=n) for n in range(3)]
    mask = torch.arange(math.prod(shape[1:]), device="cuda").view(shape[1:]) % 2 == 0
    agree(*affine(scale_map="tanh", mask=mask), inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_affine_views(dtype: torch.dtype) -> None:
    image, parameters = draw(33, 12, 16, 16, dtype=dtype), draw(33, 12, 16, 16, seed=1, dtype=dtype)
    agree(*affine(scale_map="tanh"), [image[:, :6], parameters[:, 0::2], parameters[:, 1::2]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch,dim,flows", [(4096, 2, 32), (1031, 63, 5), (77, 784, 3), (5, 4096, 2), (3, 9000, 1)])
def test_planar_flow(batch: int, dim: int, flows: int, dtype: torch.dtype) -> None:
    agree(planar, coupling.planar_flow, planar_inputs(batch, dim, flows, dtype))


def test_planar_flow_in_more_tiles_than_programs() -> None:
    agree(planar, coupling.planar_flow, planar_inputs(300_000, 2, 4), order=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "batch,kernels,dim", [(64, 50, 5), (257, 100, 5), (600, 7, 16), (130, 5, 50), (130, 3, 65), (70, 2, 200)]
)
def test_minibatch_discrimination(batch: int, kernels: int, dim: int, dtype: torch.dtype) -> None:
    agree(discriminate, minibatch.minibatch_discrimination, [draw(batch, kernels, dim, scale=1.5 / dim, dtype=dtype)])


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale_map", gmk.ops.coupling.SCALE_MAPS)
def test_affine_has_the_bits_of_the_cpp_core(scale_map: str, inverse: bool) -> None:
    assert native.cpu_error() is None
    for shape in ((257, 784), (1031, 5), (3, 1025)):
        inputs = [draw(*shape, seed=n, scale=3.0) for n in range(3)]
        here = gmk.affine_coupling(*inputs, scale_map=scale_map, inverse=inverse, backend="triton")
        there = gmk.affine_coupling(*[t.cpu() for t in inputs], scale_map=scale_map, inverse=inverse, backend="cpu")
        for name, a, b in zip(("y", "logdet"), here, there, strict=True):
            assert torch.equal(a.cpu().view(torch.int32), b.view(torch.int32)), name


CALLS = {
    "affine": (affine(scale_map="tanh")[0], lambda: [draw(4096, 784, seed=n) for n in range(3)]),
    "planar": (planar, lambda: planar_inputs(20_000, 8, 16)),
    "minibatch": (discriminate, lambda: [draw(256, 100, 5)]),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_same_bits_every_time(name: str) -> None:
    """Unsynchronised threads would show as a bit that changes; poison shows what is not written."""
    call, make = CALLS[name]
    inputs = make()
    first = results(call, inputs)
    for _ in range(20):
        again = results(call, inputs)
        assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("name", CALLS)
def test_kernels_run_on_the_current_stream(name: str) -> None:
    """On a side stream, after a long wait there: launched on any other stream, the kernel would read old values."""
    call, make = CALLS[name]
    inputs = make()
    expected = results(call, inputs, order=1)
    copies = [torch.full_like(t, float("nan")) for t in inputs]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        for target, t in zip(copies, inputs, strict=True):
            target.copy_(t)
        found = results(call, copies, order=1)
    side.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("name", CALLS)
def test_graphs_capture_forward_and_backward(name: str) -> None:
    call, make = CALLS[name]
    inputs = make()
    static = [t.clone() for t in inputs]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        results(call, static, order=1)  # compiles
    torch.cuda.current_stream().wait_stream(side)
    leaves = [t.requires_grad_() for t in static]
    cotangents: list[Tensor] = []
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(*leaves)
        out = out if isinstance(out, tuple) else (out,)
        cotangents = [torch.ones_like(t) for t in out]
        captured = [*out, *torch.autograd.grad(out, leaves, cotangents)]
    for change in (1.0, -0.5):
        with torch.no_grad():
            for leaf, t in zip(leaves, inputs, strict=True):
                leaf.copy_(t * change)
        graph.replay()
        fresh = [(t * change).requires_grad_() for t in inputs]
        out = call(*fresh)
        out = out if isinstance(out, tuple) else (out,)
        expected = [*out, *torch.autograd.grad(out, fresh, [torch.ones_like(t) for t in out])]
        assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def _room(gigabytes: float) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < gigabytes * 2**30:
        pytest.skip(f"needs {gigabytes} GiB of free GPU memory, there are {free / 2**30:.1f}")


def test_strides_beyond_2_to_the_31() -> None:
    _room(6)
    far = torch.full((2**31 + 4096,), float("nan"), dtype=torch.float16, device="cuda")
    view = far.as_strided((2, 300), (2**31 + 7, 1)).copy_(draw(2, 300, dtype=torch.float16))
    dense = view.clone()
    for ours, theirs in zip(results(affine()[0], [view] * 3), results(affine()[0], [dense] * 3), strict=True):
        assert torch.equal(ours, theirs)
    m = far.as_strided((2, 20, 5), (2**31 + 7, 5, 1))
    assert torch.equal(discriminate(m), discriminate(m.clone()))
    z = far.as_strided((2, 8), (2**31 + 7, 1))
    rest = planar_inputs(2, 8, 3, torch.float16)[1:]
    assert torch.equal(planar(z, *rest)[0], planar(z.clone(), *rest)[0])


def test_more_than_2_to_the_31_elements() -> None:
    """Rows at the end of a tensor this large, and one sample this long, give what they give by themselves."""
    _room(30)
    count = 2**31 // 64 + 1000
    x = torch.zeros(count, 64, dtype=torch.float16, device="cuda")
    tail = draw(1000, 64, dtype=torch.float16)
    x[-1000:] = tail
    s = tail[:1].expand(count, 64)
    y, logdet = gmk.affine_coupling(x, s, s, backend="triton")
    small, total = gmk.affine_coupling(tail, tail[:1], tail[:1], backend="triton")
    assert torch.equal(y[-1000:], small) and torch.equal(logdet[-1000:], total)
    del y
    long = x.view(1, -1)
    zero = torch.zeros(1, 1, dtype=torch.float16, device="cuda").expand_as(long)
    y, logdet = gmk.affine_coupling(long, zero, zero, backend="triton")
    assert torch.equal(y, long) and logdet.item() == 0.0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_kernels_run_on_the_device_of_their_tensors() -> None:
    inputs = [draw(64, 50, seed=n) for n in range(3)]
    there = [t.to("cuda:1") for t in inputs]
    y, logdet = gmk.affine_coupling(*there, backend="triton")
    expected = gmk.affine_coupling(*inputs, backend="triton")
    assert y.device == torch.device("cuda:1")
    assert torch.equal(y.cpu(), expected[0].cpu()) and torch.equal(logdet.cpu(), expected[1].cpu())


@pytest.mark.parametrize("name", CALLS)
def test_compile_runs_the_same_kernels(name: str) -> None:
    call, make = CALLS[name]
    inputs = make()
    compiled = torch.compile(call, fullgraph=True)
    for a, b in zip(results(call, inputs, order=1), results(compiled, inputs, order=1), strict=True):
        assert torch.equal(a, b)


def test_auto_takes_triton_on_a_gpu() -> None:
    x = draw(4, 6)
    assert gmk.backend_for("affine_coupling", x, x, x) == "triton"
    assert gmk.backend_for("affine_coupling", x.double(), x.double(), x.double()) == "reference"
