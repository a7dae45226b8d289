"""Mistakes in virtual batch normalisation, in what GANs are trained with, and in what they are measured with."""

from __future__ import annotations

from .patch import Fault

_OP, _LAYER, _CORE = (
    "gmkernels/ops/virtual_batch_norm/",
    "gmkernels/nn/",
    "csrc/virtual_batch_norm/virtual_batch_norm.cpp",
)
_NORM, _MATCH = "virtual_batch_norm", "test_matching"
_METRICS, _FRECHET = "python/genmodels/metrics/", ("tests/models/test_metrics.py",)
_DISTANCES = ("tests/models/test_metrics_distances.py",)

METRICS = [
    Fault("reference-statistics-without-a-graph", _LAYER + "virtual_batch_norm.py", "self.reference = mean, var, reference",
          "self.reference = mean.detach(), var.detach(), reference", _NORM),
    Fault("reference-variance-by-n-less-one", _LAYER + "virtual_batch_norm.py", "correction=0", "correction=1", _NORM),
    Fault("statistics-outlive-their-block", _LAYER + "virtual_batch_norm.py", "layer.clear_reference()", "pass", _NORM),
    Fault("example-weighs-as-much-as-the-reference", _OP + "__init__.py", "1.0 / (examples + 1.0)", "0.5", _NORM),
    Fault("example-left-out-of-the-mixture", _OP + "__init__.py", "1.0 / (examples + 1.0)", "0.0", _NORM),
    Fault("mixed-variance-without-the-gap-of-means", _CORE, "c * fma(k.offset, k.d, s.square)", "c * s.square", _NORM),
    Fault("double-backward-halves-the-root", _CORE, "two * (k.r * r_d) * k.gain", "(k.r * r_d) * k.gain", _NORM),
    Fault("triton-variance-moves-half-the-mean", _OP + "triton.py", "q = 2.0 * (own * offset) * by_var",
          "q = (own * offset) * by_var", _NORM, triton=True),
    Fault("features-matched-on-the-real-side-too", "gmkernels/nn/matching.py", "a.detach() if detach_real else a", "a",
          _MATCH),
    Fault("history-counts-a-step-too-many", _LAYER + "historical.py", "1.0 / self.steps.double()",
          "1.0 / (self.steps.double() + 1.0)", _MATCH),
    Fault("covariance-by-n", _METRICS + "frechet.py", "alpha=-1.0) / (self.n - 1)", "alpha=-1.0) / self.n", "", tests=_FRECHET),
    Fault("few-samples-not-centred", _METRICS + "frechet.py", "(x - mean) / math.sqrt(self.n - 1)",
          "x / math.sqrt(self.n - 1)", "", tests=_FRECHET),
    Fault("ranks-not-added", _METRICS + "frechet.py", "for part in found:\n        whole.join", "for part in found[:1]:\n        whole.join",
          "", tests=_FRECHET),
    Fault("panels-without-their-corner", _METRICS + "frechet.py", "lower[start:, start:stop].mT, half[start:, :stop]",
          "lower[stop:, start:stop].mT, half[stop:, :stop]", "", tests=_FRECHET),
    Fault("damaged-weights-accepted", _METRICS + "extractor.py", "if found != expected:", "if not found:", "", tests=_FRECHET),
    Fault("score-of-joint-entropy", _METRICS + "score.py", "torch.special.xlogy(p, p.mean(dim=0)).sum(dim=1)",
          "torch.special.xlogy(p, p.mean()).sum(dim=1)", "", tests=_FRECHET),
    Fault("resizer-with-pixel-centres", _METRICS + "inception.py", "low = at.long()",
          "at = (at + 0.5 * count / size - 0.5).clamp(min=0.0)\n        low = at.long()", "", tests=_DISTANCES),
    Fault("transport-ignores-order-of-weights", _METRICS + "distances.py", "a[i].cumsum(dim=1), b[j].cumsum(dim=1)",
          "a.expand_as(i).cumsum(dim=1), b.expand_as(j).cumsum(dim=1)", "", tests=_DISTANCES),
]  # fmt: skip
