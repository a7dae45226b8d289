"""Fréchet distances and Inception networks of torch-fidelity and torchmetrics."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..case import Missing

_HINT = "pip install --no-deps torchvision torch-fidelity torchmetrics lightning-utilities"


@functools.cache
def _torchvision() -> torch.library.Library | None:
    """Import torchvision. Beside a CPU-only torch its compiled part does not load, and its Python part then asks for the
    schemas of two operators that nothing here calls."""
    try:
        importlib.import_module("torchvision")
        return None
    except ModuleNotFoundError:
        raise Missing(f"torchvision is not installed; {_HINT}") from None
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        importlib.import_module("torchvision")
        return library


def _module(name: str) -> Any:
    if not name.startswith("scipy"):
        _torchvision()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise Missing(f"{error.name} is not installed; {_HINT}") from None


def torch_fidelity(a: Tensor, b: Tensor) -> float:
    """Its distance of the features (n, d) and (m, d)."""
    module = _module("torch_fidelity.metric_fid")
    first, second = (module.fid_features_to_statistics(x) for x in (a, b))
    return float(next(iter(module.fid_statistics_to_metric(first, second, False).values())))


def torch_fidelity_inception(weights: str) -> nn.Module:
    """Its Inception network, 2,048 features of the last pool and logits without bias, from a weights file."""
    module = _module("torch_fidelity.feature_extractor_inceptionv3")
    return module.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights
    )


def torch_fidelity_score(probabilities: Tensor, splits: int) -> tuple[float, float]:
    """Its inception score. It takes logits and a softmax of them; the logarithm of probabilities is one choice."""
    module = _module("torch_fidelity.metric_isc")
    found = module.isc_features_to_metric(probabilities.log(), splits, shuffle=False)
    return found["inception_score_mean"], found["inception_score_std"]


def torchmetrics(extractor: nn.Module, width: int, shape: tuple[int, ...]) -> nn.Module:
    """Its streaming metric over an extractor (images of ``shape`` to ``width`` features), in float64."""

    class Wrapped(nn.Module):
        num_features = width

        def forward(self, images: Tensor) -> Tensor:
            return extractor(images)

    kind = _module("torchmetrics.image.fid").FrechetInceptionDistance
    return kind(feature=Wrapped(), input_img_size=shape).set_dtype(torch.float64)


def torch_fidelity_distance(a: Tensor, b: Tensor) -> Callable[[], float]:
    """Its distance from the statistics of the features, which are taken beforehand."""
    module = _module("torch_fidelity.metric_fid")
    statistics = [module.fid_features_to_statistics(x) for x in (a, b)]
    return lambda: float(next(iter(module.fid_statistics_to_metric(*statistics, False).values())))


def torchmetrics_distance(m1: Tensor, s1: Tensor, m2: Tensor, s2: Tensor) -> Callable[[], Tensor]:
    """The function that its metric ends with."""
    compute = _module("torchmetrics.image.fid")._compute_fid
    return lambda: compute(m1, s1, m2, s2)


def scipy_distance(m1: Tensor, s1: Tensor, m2: Tensor, s2: Tensor) -> Callable[[], float]:
    """The formula with SciPy's square root of the product, as pytorch-fid and clean-fid write it."""
    linalg, one, other = _module("scipy.linalg"), s1.numpy(), s2.numpy()

    def call() -> float:
        root = linalg.sqrtm(one @ other)
        return float((m1 - m2).square().sum() + s1.trace() + s2.trace() - 2.0 * root.trace().real)

    return call
