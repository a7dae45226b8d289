"""Flows of nflows, zuko and normflows taken over: the same densities and the same samples of the same latents."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genmodels.errors import MissingPackage
from genmodels.flows import Flow, from_nflows, from_normflows, from_zuko

D = 6


def _nflows(name: str) -> Any:
    pytest.importorskip("nflows")
    from nflows import distributions, flows, transforms
    from nflows.nn import nets

    def coupling(net: Callable[[int, int], nn.Module], kind: Any = transforms.AffineCouplingTransform) -> Any:
        return kind([1, -1, -1, 1, 1, -1], net)

    def flow(*steps: Any) -> Any:
        return flows.Flow(transforms.CompositeTransform(steps), distributions.StandardNormal([D]))

    def net(inputs: int, outputs: int) -> Any:
        return nets.ResidualNet(inputs, outputs, 16, 3, activation=F.elu)

    made = transforms.MaskedAffineAutoregressiveTransform
    return {
        "RealNVP": lambda: flows.realnvp.SimpleRealNVP(D, 16, 4, 2),
        "RealNVP with batch norm": lambda: flows.realnvp.SimpleRealNVP(D, 16, 3, 1, batch_norm_between_layers=True),
        "NICE": lambda: flows.realnvp.SimpleRealNVP(D, 16, 3, 1, use_volume_preserving=True, activation=torch.tanh),
        "couplings with context": lambda: flow(coupling(net), transforms.InverseTransform(coupling(net))),
        "MAF": lambda: flows.autoregressive.MaskedAutoregressiveFlow(D, 20, 3, 2),
        "MAF feedforward": lambda: flows.autoregressive.MaskedAutoregressiveFlow(
            D, 20, 3, 2, use_residual_blocks=False, use_random_masks=True, use_random_permutations=True,
            activation=torch.tanh, batch_norm_between_layers=True,
        ),
        "IAF": lambda: flow(
            transforms.InverseTransform(made(D, 20)), transforms.RandomPermutation(D), transforms.InverseTransform(made(D, 20))
        ),
    }[name]()  # fmt: skip


NFLOWS = ("RealNVP", "RealNVP with batch norm", "NICE", "couplings with context", "MAF", "MAF feedforward", "IAF")


def _stir(model: nn.Module, dtype: torch.dtype, scale: float = 0.2) -> Any:
    """Weights that do something, statistics that are not those of a start."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += scale * torch.randn_like(parameter)
    for name, buffer in model.named_buffers():
        if "running_var" in name:
            buffer.copy_(torch.rand_like(buffer) + 0.5)
        elif "running_mean" in name:
            buffer.copy_(torch.randn_like(buffer))
    return model.to(dtype).eval()


def _close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected.to(dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NFLOWS)
def test_nflows(name: str, dtype: torch.dtype) -> None:
    theirs = _stir(_nflows(name), dtype, 0.1)
    ours = from_nflows(theirs)
    x = torch.randn(40, D, dtype=dtype)
    c = torch.randn(40, 3, dtype=dtype) if "context" in name else None
    with torch.no_grad():
        _close(ours.log_prob(x, c), theirs.log_prob(x, c), dtype)
        z, _ = theirs._transform(x, c)
        _close(ours.inverse(z, c)[0], theirs._transform.inverse(z, c)[0], dtype)
    _grows(ours, x, c)


def _grows(flow: Flow, x: Tensor, context: Tensor | None = None) -> None:
    """What was taken over can be trained on, stands alone, and can be saved."""
    before = flow.log_prob(x, context).mean().item()
    optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        (-flow.log_prob(x, context).mean()).backward()
        optimizer.step()
    assert flow.log_prob(x, context).mean().item() - before > 1e-3
    assert not any(type(m).__module__.split(".")[0] in ("nflows", "zuko", "normflows") for m in flow.modules())


def _zuko(name: str) -> Any:
    zuko = pytest.importorskip("zuko")
    couplings = {"activation": nn.ELU, "hidden_features": (16, 12)}
    made = zuko.flows.MaskedAutoregressiveTransform
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.randn(D), torch.rand(D) + 0.5, buffer=True
    )
    return {
        "RealNVP": lambda: zuko.flows.RealNVP(D, transforms=4, **couplings),
        "RealNVP with context": lambda: zuko.flows.RealNVP(D, 3, transforms=4, randmask=True, **couplings),
        "MAF": lambda: zuko.flows.MAF(D, transforms=3, hidden_features=(20, 17), activation=nn.Tanh),
        "MAF with context": lambda: zuko.flows.MAF(D, 3, transforms=3, randperm=True, hidden_features=(30, 30)),
        "three passes": lambda: zuko.flows.MAF(D, transforms=3, passes=3, randperm=True, hidden_features=(20,)),
        "IAF": lambda: zuko.flows.Flow(
            [made(D, hidden_features=(20, 20)).inv, made(D, order=[5, 4, 3, 2, 1, 0]).inv], base
        ),
    }[name]()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["RealNVP", "RealNVP with context", "MAF", "MAF with context", "three passes", "IAF"])
def test_zuko(name: str, dtype: torch.dtype) -> None:
    theirs = _stir(_zuko(name), dtype, 0.1)
    ours = from_zuko(theirs)
    x = torch.randn(40, D, dtype=dtype)
    c = torch.randn(40, 3, dtype=dtype) if "context" in name else None
    assert ours.contexts == (0 if c is None else 3)
    with torch.no_grad():
        _close(ours.log_prob(x, c), theirs(c).log_prob(x), dtype)
        z, base = theirs(c).transform(x), theirs.base().base_dist
        back = theirs(c).transform.inv(z)
        _close(ours.inverse((z - base.loc) / base.scale, c)[0], back, dtype)
    _grows(ours, x, c)


def _normflows(name: str) -> Any:
    nf = pytest.importorskip("normflows")

    def net(i: int, o: int) -> Any:
        return nf.nets.MLP([i, 16, 16, o], leaky=0.1)

    def couplings(scale_map: str = "exp", **options: Any) -> list[Any]:
        found = []
        for mode in ("channel", "channel_inv"):
            found.append(nf.flows.AffineCouplingBlock(net(3, 6), scale_map=scale_map, split_mode=mode, **options))
            found.append(nf.flows.Permute(D, mode="shuffle"))
        return found

    def mades(**options: Any) -> list[Any]:
        made = nf.flows.MaskedAffineAutoregressive
        return [made(D, 20, num_blocks=2, **options), nf.flows.Permute(D, mode="swap"), made(D, 20, **options)]

    mask = torch.tensor([1.0, 0, 1, 0, 0, 1])
    return {
        "RealNVP": lambda: [*couplings(), nf.flows.AffineConstFlow(D)],
        "sigmoid": lambda: couplings("sigmoid"),
        "sigmoid_inv": lambda: couplings("sigmoid_inv"),
        "residual couplings": lambda: [nf.flows.AffineCouplingBlock(nf.nets.ResidualNet(3, 6, 16), scale_map="exp")],
        "NICE": lambda: [nf.flows.AffineCouplingBlock(net(3, 3), scale=False)],
        "masked": lambda: [
            nf.flows.MaskedAffineFlow(mask, net(D, D), net(D, D)),
            nf.flows.MaskedAffineFlow(1 - mask, net(D, D)),
        ],
        "IAF": lambda: mades(),
        "IAF feedforward": lambda: mades(use_residual_blocks=False),
    }[name], nf


NORMFLOWS = ("RealNVP", "sigmoid", "sigmoid_inv", "residual couplings", "NICE", "masked", "IAF", "IAF feedforward")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NORMFLOWS)
def test_normflows(name: str, dtype: torch.dtype) -> None:
    make, nf = _normflows(name)
    theirs = _stir(nf.NormalizingFlow(nf.distributions.base.DiagGaussian(D), make()), dtype)
    ours = from_normflows(theirs)
    x = torch.randn(40, D, dtype=dtype)
    with torch.no_grad():
        _close(ours.log_prob(x), theirs.double().log_prob(x.double()), dtype)
        z = torch.randn(40, D, dtype=dtype)
        loc, log_scale = theirs.q0.loc, theirs.q0.log_scale
        theirs_x = theirs(loc + log_scale.exp() * z.double())
        _close(ours.inverse(z)[0], theirs_x, dtype)
    _grows(ours, x)


def _unsupported(name: str) -> Callable[[], Flow]:
    nflows, zuko, nf = (pytest.importorskip(module) for module in ("nflows.flows", "zuko", "normflows"))
    base = nf.distributions.base.DiagGaussian(D)
    maf = nflows.autoregressive.MaskedAutoregressiveFlow
    return {
        "another library's": lambda: from_nflows(zuko.flows.MAF(D)),
        "batch norm inside": lambda: from_nflows(maf(D, 8, 1, 1, batch_norm_within_layers=True)),
        "activation": lambda: from_nflows(maf(D, 8, 1, 1, activation=F.elu)),
        "spline": lambda: from_zuko(zuko.flows.NSF(D)),
        "fresh ActNorm": lambda: from_normflows(nf.NormalizingFlow(base, [nf.flows.ActNorm(D)])),
        "radial": lambda: from_normflows(nf.NormalizingFlow(base, [nf.flows.Radial(D)])),
        "images": lambda: from_normflows(nf.NormalizingFlow(nf.distributions.base.DiagGaussian((1, 4, 4)), [])),
    }[name]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("another library's", TypeError, r"expected a nflows.flows.Flow, got MAF"),
        ("batch norm inside", ValueError, "batch normalisation inside an autoregressive network is not supported"),
        ("activation", ValueError, "activation of an autoregressive network must be relu or tanh, got <function elu"),
        ("spline", ValueError, "MonotonicRQSTransform.* is not supported, only MonotonicAffineTransform"),
        ("fresh ActNorm", ValueError, "an ActNorm that has not seen a batch is not supported"),
        ("radial", ValueError, "normflows' Radial is not supported"),
        ("images", ValueError, r"only flows of vectors are supported, this one's samples have shape \(1, 4, 4\)"),
    ],
)
def test_what_cannot_be_taken_over_is_named(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _unsupported(name)()


@pytest.mark.parametrize(
    ("take", "module"), [(from_nflows, "nflows"), (from_zuko, "zuko"), (from_normflows, "normflows")]
)
def test_a_missing_library_is_named(take: Any, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == module:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackage, match=rf"needs {module}: pip install '\.\[peers\]'"):
        take(nn.Identity())
