"""The launches of every family's Triton kernels, on tensors without data, for ``triton_resources.py`` to compile."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from gmkernels.core.triton_launch import INT32_SAFE


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


Case = tuple[str, Callable[[], Any]]


def _affine_calls(
    name: str, x: torch.Tensor, s: torch.Tensor, mask: torch.Tensor | None, *how: Any, keep: bool = False
) -> Iterator[Case]:
    from gmkernels.ops.coupling import triton as family

    logdet, inner = _empty(x.shape[0]), _empty(*(x.shape if keep else (0,)))
    yield f"{name} forward", lambda: family.affine_coupling(x, s, s, mask, *how, keep)
    yield f"{name} backward", lambda: family.affine_coupling_backward(x, logdet, x, s, s, mask, inner, *how)
    if not keep:
        yield f"{name} double", lambda: family.affine_coupling_double_backward(x, s, x, logdet, x, s, s, mask, *how)


def affine() -> Iterator[Case]:
    """Every tile with the plainest map, then every map, direction, mask, dtype and layout with the widest tile."""
    for columns in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
        calls = list(_affine_calls(f"tile 4096x{columns}", *[_empty(4096, columns)] * 2, None, "exp", 2.0, False))
        # Beyond 128 columns only backward takes another tile.
        yield from calls if columns <= 128 else calls[1:2]
    yield from _affine_calls("tile 64x1024", *[_empty(64, 1024)] * 2, None, "exp", 2.0, False)
    x = _empty(4096, 1024)
    for scale_map, inverse in itertools.product(
        ("exp", "tanh", "atan", "sigmoid", "reciprocal_sigmoid", "softplus", "soft_clip"), (False, True)
    ):
        yield from _affine_calls(f"{scale_map} inverse={inverse}", x, x, None, scale_map, 1.0, inverse)
    for scale_map in ("sigmoid", "reciprocal_sigmoid"):
        yield from _affine_calls(f"{scale_map} clamp=0", x, x, None, scale_map, 0.0, False)
    for scale_map in ("tanh", "atan"):
        yield from _affine_calls(f"{scale_map} kept", x, x, None, scale_map, 2.0, False, keep=True)
    yield from _affine_calls("mask", x, x, _empty(1024, dtype=torch.bool), "tanh", 2.0, True)
    for dtype in (torch.float16, torch.bfloat16):
        half = _empty(4096, 1024, dtype=dtype)
        yield from _affine_calls(f"{dtype}", half, half, None, "tanh", 2.0, True)
        yield from _affine_calls(f"float32 by {dtype}", x, half, None, "tanh", 2.0, False)
    image = _empty(256, 12, 16, 16)
    yield from _affine_calls("interleaved", image[:, :6], image[:, 0::2], None, "tanh", 2.0, False)
    huge = _empty(2, INT32_SAFE // 2 + 1, 4)
    yield from _affine_calls("wide", huge[:, :, :2], huge[:, :, 1:3], None, "tanh", 2.0, False)


def planar() -> Iterator[Case]:
    from gmkernels.ops.coupling import planar_triton as family

    def calls(batch: int, dim: int, dtype: torch.dtype = torch.float32) -> Iterator[Case]:
        z, u, b, logdet = (_empty(*shape, dtype=dtype) for shape in ((batch, dim), (32, dim), (32,), (batch,)))
        logdet = logdet.float()
        name = f"{batch}x{dim} {dtype}"
        yield f"{name} forward", lambda: family.planar_flow(z, u, u, b)
        yield f"{name} backward", lambda: family.planar_flow_backward(z, logdet, z, u, u, b)
        yield f"{name} double", lambda: family.planar_flow_double_backward(z, u, u, b, z, logdet, z, u, u, b)

    for exponent in range(13):
        yield from calls(4096, 2**exponent)
    yield from calls(4099, 63, torch.bfloat16)
    yield from calls(4099, 63, torch.float16)


def minibatch() -> Iterator[Case]:
    from gmkernels.ops.minibatch import triton as family

    def calls(batch: int, kernels: int, dim: int, dtype: torch.dtype = torch.float32) -> Iterator[Case]:
        m, o = _empty(batch, kernels, dim, dtype=dtype), _empty(batch, kernels, dtype=dtype)
        name = f"{batch}x{kernels}x{dim} {dtype}"
        yield f"{name} forward", lambda: family.minibatch_discrimination(m)
        yield f"{name} backward", lambda: family.minibatch_discrimination_backward(o, m)
        yield f"{name} double", lambda: family.minibatch_discrimination_double_backward(m, o, m)

    for batch, dim in itertools.product((64, 1024), (5, 16, 50, 64, 100)):
        yield from calls(batch, 50, dim)
    yield from calls(256, 100, 5, torch.bfloat16)
    yield from calls(256, 100, 5, torch.float16)


def penalty() -> Iterator[Case]:
    from gmkernels.ops.penalty import triton as family

    key = _empty(2, dtype=torch.int64)

    def calls(name: str, g: torch.Tensor) -> Iterator[Case]:
        weight = _empty(g.shape[0])
        yield f"{name} interpolate", lambda: family.random_interpolate(g, g, key, 5)
        yield f"{name} forward", lambda: family.norm_penalty(g, 1.0, False)
        yield f"{name} backward", lambda: family.norm_penalty_backward(weight, g, 1.0, True)
        yield f"{name} both", lambda: family.norm_penalty_gradient(g, 0.0, False)

    for exponent in range(8):
        yield from calls(f"{2**exponent}", _empty(64, 2**exponent))
    yield from calls("image", _empty(64, 3, 64, 64))
    yield from calls("channels_last", _empty(64, 64, 64, 3).permute(0, 3, 1, 2))
    for dtype in (torch.bfloat16, torch.float16):
        yield from calls(f"{dtype}", _empty(64, 783, dtype=dtype))


def random() -> Iterator[Case]:
    from gmkernels.ops.random import triton as family

    key, shape = _empty(2, dtype=torch.int64), (1000, 77)
    yield "bits", lambda: family.random_bits(key, shape, 5)
    for dtype in (torch.float32, torch.float64):
        yield f"uniform {dtype}", lambda dtype=dtype: family.random_uniform(key, shape, 5, dtype)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        yield f"normal {dtype}", lambda dtype=dtype: family.random_normal(key, shape, 5, dtype)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        p = _empty(*shape, dtype=dtype)
        yield f"bernoulli {dtype}", lambda p=p: family.random_bernoulli(p, key, 5)


def gaussian() -> Iterator[Case]:
    from gmkernels.ops.gaussian import triton as family

    key = _empty(2, dtype=torch.int64)

    def draws(name: str, m: torch.Tensor) -> Iterator[Case]:
        kl, constants = _empty(m.shape[0]), (key, 1.0, 0.1, 5)
        yield f"draw {name} forward", lambda: family.reparameterize_kl(m, m, *constants)
        yield f"draw {name} backward", lambda: family.reparameterize_kl_backward(m, kl, m, m, *constants)
        yield f"draw {name} double", lambda: family.reparameterize_kl_double_backward(m, m, m, kl, m, m, *constants)

    def likelihoods(name: str, x: torch.Tensor, weight: torch.Tensor | None, like: torch.Tensor) -> Iterator[Case]:
        n = 1 if x is like else 2
        g, m = _empty(*like.shape[:n]), like
        yield f"bernoulli {name} forward", lambda: family.bernoulli_log_likelihood(m, x, weight, n)
        yield f"bernoulli {name} backward", lambda: family.bernoulli_log_likelihood_backward(g, m, x, weight, n)
        yield f"bernoulli {name} double", lambda: family.bernoulli_log_likelihood_double_backward(m, g, m, x, weight, n)
        yield f"gaussian {name} forward", lambda: family.gaussian_log_likelihood(x, m, m, weight, n)
        yield f"gaussian {name} backward", lambda: family.gaussian_log_likelihood_backward(g, x, m, m, weight, n)
        yield (
            f"gaussian {name} double",
            lambda: family.gaussian_log_likelihood_double_backward(m, m, g, x, m, m, weight, n),
        )

    for columns in (1, 2, 4, 8, 15, 16, 20, 31, 33, 64, 257, 1024):
        yield from draws(f"4096x{columns}", _empty(4096, columns))
    for columns in (1, 2, 4, 8, 16, 32, 64, 784):
        yield from likelihoods(f"4096x{columns}", x := _empty(4096, columns), None, x)
    yield from likelihoods("masked", x := _empty(4096, 784), _empty(4096, 784), x)
    draws_of_one = _empty(512, 1, 784).expand(512, 8, 784)
    yield from likelihoods("several draws", draws_of_one, draws_of_one, _empty(512, 8, 784))
    for dtype in (torch.float16, torch.bfloat16):
        half = _empty(4096, 256, dtype=dtype)
        yield from draws(str(dtype), half)
        yield from likelihoods(str(dtype), half, half, half)
    image = _empty(256, 12, 16, 16)[:, 0::2]
    yield from draws("interleaved", image)
    yield from likelihoods("interleaved", image, image, image)
    huge = _empty(2, INT32_SAFE // 2 + 1, 4)[:, :, 1:3]
    yield from draws("wide", huge)
    yield from likelihoods("wide", huge, None, huge)
    x = _empty(4096, 20)
    yield "prior forward", lambda: family.gaussian_log_likelihood(x, None, None, None, 1)
    yield "prior backward", lambda: family.gaussian_log_likelihood_backward(_empty(4096), x, None, None, None, 1)
    yield (
        "prior double",
        lambda: family.gaussian_log_likelihood_double_backward(x, _empty(0), _empty(4096), x, None, None, None, 1),
    )


def boltzmann() -> Iterator[Case]:
    from gmkernels.ops.gibbs import ais_triton, boltzmann_triton

    key, order = _empty(2, dtype=torch.int64), _empty(794, dtype=torch.int64)
    for units in (12, 794, 5000):
        x, w, b, beta = _empty(64, units), _empty(units, units), _empty(units), _empty(64)
        tensors = (x, w, b, key, beta)
        yield f"spin {units}", lambda t=tensors: boltzmann_triton.boltzmann_gibbs(*t, None, None, 10, 0, True)
        yield f"recall {units}", lambda t=tensors: boltzmann_triton.hopfield_recall(*t[:3], 20)
    x, w, b, clamp = _empty(64, 794), _empty(794, 794), _empty(794), _empty(64, 794, dtype=torch.bool)
    held = (x, w, b, key, _empty(64), clamp, order)
    yield "binary held ordered", lambda: boltzmann_triton.boltzmann_gibbs(*held, 10, 0, False)
    for visible, hidden in ((784, 500), (7, 5)):
        w, v, h = _empty(visible, hidden), _empty(visible), _empty(hidden)
        machine = (w, v, h, key, _empty(1000), v)
        yield f"ais {visible}x{hidden} forward", lambda m=machine: ais_triton.ais_log_z(*m, None, 100, 0)
        start = _empty(100, visible)
        yield f"ais {visible}x{hidden} reverse", lambda m=machine, v=start: ais_triton.ais_log_z(*m, v, 100, 0)


def rbm() -> Iterator[Case]:
    from gmkernels.ops.gibbs import rbm_triton as family

    key = _empty(2, dtype=torch.int64)
    for chains, visible, hidden in ((64, 784, 500), (8192, 784, 512), (3, 7, 5)):
        v, w, vb, hb = _empty(chains, visible), _empty(visible, hidden), _empty(visible), _empty(hidden)
        machine, beta = (v, w, vb, hb, key), _empty(chains)
        clamp = _empty(chains, visible, dtype=torch.bool)
        name = f"{chains} chains {visible}x{hidden}"
        yield f"{name} exact", lambda m=machine: family.rbm_gibbs(*m, None, None, 100, 0, False, False)
        yield f"{name} fixed", lambda m=machine: family.rbm_gibbs(*m, None, None, 100, 0, False, True)
        held = (*machine, beta, clamp)
        yield f"{name} exact held", lambda m=held: family.rbm_gibbs(*m, 100, 0, False, False)
        yield f"{name} Gaussian held", lambda m=held: family.rbm_gibbs(*m, 100, 0, True, False)
        up, down = (v, w, hb, key, None, 0), (_empty(chains, hidden), w, vb, key, beta, 0)
        yield f"{name} hidden", lambda a=up: family.rbm_conditional(*a, False, False)
        yield f"{name} visible", lambda a=down: family.rbm_conditional(*a, True, False)
        yield f"{name} Gaussian visible", lambda a=down: family.rbm_conditional(*a, True, True)
    for batch, dtype in ((4096, torch.float32), (3, torch.float32), (4096, torch.float16), (4096, torch.bfloat16)):
        field, g = _empty(batch, 500, dtype=dtype), _empty(batch)
        name = f"energy {batch} {dtype}"
        yield f"{name} forward", lambda f=field: family.rbm_softplus_sum(f)
        yield f"{name} backward", lambda f=field, g=g: family.rbm_softplus_sum_backward(g, f)
        yield f"{name} double", lambda f=field, g=g: family.rbm_softplus_sum_double_backward(f, g, f)


def masked_conv() -> Iterator[Case]:
    from gmkernels.ops.masked_conv import triton as family

    for channels, outputs, kernel, dtype in (
        *(
            (64, 64, 3, torch.float32),
            (64, 128, 7, torch.float32),
            (1, 128, 7, torch.float32),
            (96, 96, 5, torch.float32),
        ),
        *((128, 128, 3, torch.float16), (128, 128, 3, torch.bfloat16)),
    ):
        x, w = _empty(16, channels, 28, 28, dtype=dtype), _empty(outputs, channels, kernel, kernel, dtype=dtype)
        g, groups = _empty(16, outputs, 28, 28, dtype=dtype), 3 if channels == 96 else 1
        b, name = _empty(outputs, dtype=dtype), f"{channels} to {outputs} {kernel}x{kernel} {dtype}"
        given, rule = (x, w, b), ("A" if channels == 1 else "B", groups)
        yield f"{name} forward", lambda a=given, r=rule: family.masked_conv2d(*a, *r)
        yield f"{name} backward", lambda a=(g, x, w), r=rule: family.masked_conv2d_backward(*a, *r, True, True, False)
    x, w = _empty(8, 64, 4000), _empty(128, 64, 2)
    yield "causal forward", lambda: family.causal_conv1d(x, w, None, 64)
    yield "causal backward", lambda: family.causal_conv1d_backward(_empty(8, 128, 4000), x, w, 64, True, True, False)
    for name, t, cond in (
        ("plain", _empty(16, 128, 28, 28), None),
        ("label", _empty(16, 128, 28, 28), _empty(16, 128, 1, 1).expand(16, 128, 28, 28)),
        ("half", _empty(16, 128, 28, 28, dtype=torch.float16), None),
        ("channels_last", _empty(16, 28, 28, 128).permute(0, 3, 1, 2), None),
    ):
        g = family.like(t, 64)
        yield f"gate {name} forward", lambda t=t, c=cond: family.gated_activation(t, c)
        yield f"gate {name} backward", lambda t=t, c=cond, g=g: family.gated_activation_backward(g, t, c)
        yield f"gate {name} double", lambda t=t, c=cond, g=g: family.gated_activation_double_backward(t, g, t, c)


def virtual_batch_norm() -> Iterator[Case]:
    from gmkernels.ops.virtual_batch_norm import triton as family

    def calls(name: str, x: torch.Tensor) -> Iterator[Case]:
        c, mix = _empty(x.shape[1]), (0.01, 1e-5)
        yield f"{name} forward", lambda: family.virtual_batch_norm(x, c, c, c, c, *mix)
        yield f"{name} backward", lambda: family.virtual_batch_norm_backward(x, x, c, c, c, *mix)
        double = family.virtual_batch_norm_double_backward
        yield f"{name} double", lambda: double(x, c, c, c, c, x, x, c, c, c, *mix)

    for exponent in range(9):
        yield from calls(f"{2**exponent}", _empty(64, 128, 2**exponent))
    yield from calls("channels_last", _empty(64, 16, 16, 128).permute(0, 3, 1, 2))
    for dtype in (torch.bfloat16, torch.float16):
        yield from calls(f"{dtype}", _empty(64, 99, 49, dtype=dtype))


FAMILIES = {
    "affine": affine, "planar": planar, "minibatch": minibatch, "penalty": penalty, "random": random, "gaussian": gaussian,
    "boltzmann": boltzmann, "rbm": rbm, "masked_conv": masked_conv,
    "virtual_batch_norm": virtual_batch_norm,
}  # fmt: skip
# What CI compiles, for sm_90: every kernel, and the heaviest tile of each.
QUICK = {
    "affine tile 4096x2 forward", "affine softplus inverse=True backward", "affine tanh inverse=True double",
    "affine interleaved forward", "affine wide double", "affine mask forward",
    "affine torch.bfloat16 backward",
    "planar 4096x2 torch.float32 forward", "planar 4096x4096 torch.float32 double",
    "planar 4099x63 torch.bfloat16 backward",
    "minibatch 1024x50x64 torch.float32 forward", "minibatch 64x50x64 torch.float32 double",
    "minibatch 256x100x5 torch.bfloat16 backward",
    "penalty image interpolate", "penalty 128 forward", "penalty torch.bfloat16 backward", "penalty channels_last both",
    "random bits", "random uniform torch.float32", "random normal torch.float64", "random bernoulli torch.float32",
    "gaussian draw 4096x20 forward", "gaussian draw 4096x31 backward", "gaussian draw interleaved double",
    "gaussian bernoulli masked forward", "gaussian gaussian wide backward", "gaussian gaussian interleaved double",
    "boltzmann spin 794", "boltzmann binary held ordered", "boltzmann recall 794", "boltzmann ais 784x500 forward",
    "rbm 64 chains 784x500 exact held", "rbm 8192 chains 784x512 fixed", "rbm 64 chains 784x500 visible",
    "rbm energy 4096 torch.float32 forward", "rbm energy 4096 torch.bfloat16 double",
    "masked_conv 96 to 96 5x5 torch.float32 forward", "masked_conv 64 to 128 7x7 torch.float32 backward",
    "masked_conv gate label double",
    "virtual_batch_norm 256 forward", "virtual_batch_norm 1 backward", "virtual_batch_norm channels_last double",
}  # fmt: skip
