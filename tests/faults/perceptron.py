"""Mistakes in perceptrons, in couplings with one inside, and in reversible chains."""

from __future__ import annotations

from .patch import Fault

_MLP, _COUPLED, _REVERSIBLE = "mlp", "coupling_mlp", "reversible"
_CORE, _LAYERS, _SUMS, _ROWS = (f"csrc/mlp/{name}" for name in ("mlp.cpp", "layers.h", "sums.h", "rowwise.h"))
_OPS, _NN = "gmkernels/ops/mlp/", "gmkernels/nn/"

PERCEPTRON = [
    Fault("silu-slope-without-its-second-part", _ROWS, "return fma(h, P(T(1)) - s, s);", "return s;", _MLP),
    Fault("last-batch-tile-left-out", _LAYERS, "const int64_t tiles = (a.batch + kTile - 1) / kTile;",
          "const int64_t tiles = a.batch < kTile ? 1 : a.batch / kTile;", _MLP),
    Fault("bias-gradient-of-one-sample", _SUMS, "for (int64_t b = 0; b < a.batch; ++b) sum = sum + get(",
          "for (int64_t b = 0; b < 1; ++b) sum = sum + get(", _MLP),
    Fault("single-layer-forgets-the-weight-twice", _OPS + "autograd.py",
          'along[3] = library.mlp_backward(grad, hidden, u, weight, None, *rest, "relu", 2, backend)[1]', "pass", _MLP),
    Fault("second-derivative-follows-the-graph-before", _OPS + "autograd.py",
          "return t.view_as(t) if t.requires_grad else", "return t if t.requires_grad else", _MLP),
    Fault("kept-half-gets-no-gradient-of-its-own", _CORE,
          "if (a.split) to.add = grad + kept, to.add_step = grad_step;", "", _COUPLED),
    Fault("shift-of-an-inverse-with-the-wrong-sign", _ROWS, "inverse ? -r.x : gi", "inverse ? r.x : gi", _COUPLED),
    Fault("wide-layer-begins-its-second-block-of-samples-late", _LAYERS, "const int64_t first = group * kBlockVectors,",
          "const int64_t first = group * kBlockVectors + (group != 0),", _MLP),
    Fault("wide-layer-forgets-its-bias", _LAYERS, "part.bias = w[l].bias + o;", "part.bias = w[l].bias;", _MLP),
    Fault("wide-sums-take-another-block-of-columns", _SUMS, "outer_block(packed + o * a.batch,",
          "outer_block(packed + first * a.batch,", _MLP),
    Fault("pairs-of-one-row", _CORE, "b % a.rows * a.widths[0]", "0 * a.widths[0]", _MLP),
    Fault("strips-of-pairs-begin-at-the-first-column", _CORE, "A::value(sum(i + o, lanes))", "A::value(sum(o, lanes))", _MLP),
    Fault("gradient-of-one-pair", _SUMS, "for (int64_t r = 0; r < a.rows; ++r) sum = sum + get(from + r * width + i, lanes);",
          "for (int64_t r = 0; r < 1; ++r) sum = sum + get(from + r * width + i, lanes);", _MLP),
    Fault("panel-of-the-last-columns-left-out", _SUMS, "std::min(kPanels * kLanes, a.widths[l + 1] - row)",
          "std::min(kPanels * kLanes, a.widths[l + 1] - row - 1)", _MLP),
    Fault("likelihood-forgets-its-cotangent", _CORE, "get(slopes + i, lanes) * P(factor[b])", "get(slopes + i, lanes)",
          "likelihood_mlp"),
    Fault("likelihood-sums-forget-its-cotangent", _SUMS, "return by ? P(by[b]) * found : found;", "return found;",
          "likelihood_mlp"),
    Fault("silu-of-silu", _CORE, "static constexpr bool kAfter = kind == GMK_RELU;", "static constexpr bool kAfter = true;",
          _MLP),
    Fault("likelihood-of-the-next-image", _CORE, "b / a.target_samples * a.target_step", "b % a.target_samples * a.target_step",
          "likelihood_mlp"),
    Fault("actnorm-scale-without-the-logdet", _SUMS,
          "column(along + i, a.features, lanes) + P(std::accumulate(logdet, logdet + a.batch, T(0)))",
          "column(along + i, a.features, lanes)", _COUPLED),
    Fault("actnorm-shift-from-the-scaled-gradient", _SUMS, "column(static_cast<const T*>(a.grad) + i, a.grad_step, lanes)",
          "column(static_cast<const T*>(a.grad) + i, a.grad_step, lanes) * P(T(0.5))", _COUPLED),
    Fault("reversible-forgets-the-actnorm", _NN + "coupling.py", "grads = own | pull(", "grads = pull(", _REVERSIBLE),
    Fault("reversible-forgets-what-passes-through", _NN + "coupling.py", "self._whole(direct + through, inner[0])",
          "self._whole(through, inner[0])", _REVERSIBLE),
    Fault("reversible-never-drifts", _NN + "reversible.py", "if bool(self.drift <= self.tolerance * (1 + x.abs().amax())):",
          "if True:", _REVERSIBLE),
    Fault("reversible-draws-dropout-anew", _NN + "reversible.py", "random = _Random.now(x) if _draws(step) else None",
          "random = None", _REVERSIBLE),
    Fault("reversible-forgets-autocast", _NN + "reversible.py",
          "with ctx.autocast.again(), _training(ctx.modes):\n                grads = _reverse",
          "with _training(ctx.modes):\n                grads = _reverse", _REVERSIBLE),
    Fault("reversible-follows-a-changed-mode", _NN + "reversible.py", "        module.training = training\n    yield",
          "        pass\n    yield", _REVERSIBLE),
]  # fmt: skip
