"""The mistakes that the suite must see. Each was made by someone, somewhere, in a library of this kind."""

from __future__ import annotations

from .chains import CHAINS
from .convolution import CONVOLUTION
from .gaussian import GAUSSIAN
from .made import MADE
from .metrics import METRICS
from .patch import Fault
from .penalty import PENALTY
from .perceptron import PERCEPTRON
from .wavenet import WAVENET

_COUPLING, _PLANAR, _MINIBATCH, _RANDOM = "affine_coupling", "planar", "minibatch", "random"
_ANY = "affine_coupling or planar or minibatch"

_GLUE = [
    Fault("affine-double-drops-shift", "gmkernels/ops/coupling/autograd.py",
          "grad_t = _shift(None, grad_x, mask, True).to(t.dtype) if constants[2] else None", "grad_t = None", _COUPLING),
    Fault("affine-shift-gradient-ignores-mask", "gmkernels/ops/coupling/autograd.py",
          "return grad if mask is None else grad.masked_fill(mask, 0.0)", "return grad", _COUPLING),
    Fault("affine-shift-gradient-sign", "gmkernels/ops/coupling/autograd.py",
          "grad = -grad_x if inverse or", "grad = grad_x if inverse or", _COUPLING),
    Fault("planar-vjp-swaps-u-and-w", "gmkernels/ops/coupling/autograd.py",
          "return library.planar_flow_backward(*grads, *saved, *constants)",
          "z, u, w, b = library.planar_flow_backward(*grads, *saved, *constants)\n    return z, w, u, b", _PLANAR),
    Fault("minibatch-double-sign-in-vjp", "gmkernels/ops/minibatch/autograd.py",
          "return library.minibatch_discrimination_double_backward(grads[0], *saved, *constants)",
          "g, m = library.minibatch_discrimination_double_backward(grads[0], *saved, *constants)\n    return g, -m",
          _MINIBATCH),
    Fault("fake-copies-strides", "gmkernels/ops/coupling/library.py",
          "return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=dtype), inner_like(x, dtype, keep)",
          "return torch.empty_like(x), x.new_empty(x.shape[0], dtype=dtype), inner_like(x, dtype, keep)", _COUPLING),
    Fault("fake-logdet-dtype", "gmkernels/ops/coupling/library.py",
          "return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=dtype), inner_like(x, dtype, keep)",
          "return x.new_empty(x.shape), x.new_empty(x.shape[0]), inner_like(x, dtype, keep)", _COUPLING),
    Fault("reference-atan-constant", "gmkernels/ops/coupling/reference.py",
          "return clamp * 0.636 * torch.atan(s)", "return clamp * 0.6366 * torch.atan(s)", _COUPLING),
    Fault("reference-logdet-sign-of-inverse", "gmkernels/ops/coupling/reference.py",
          "return y.to(x.dtype), -logdet if inverse else logdet", "return y.to(x.dtype), logdet", _COUPLING),
    Fault("reference-planar-without-autocast-care", "gmkernels/ops/coupling/reference.py",
          "h = torch.tanh((z * w_k).sum(1) + b_k)", "h = torch.tanh(z @ w_k + b_k)", _PLANAR),
    Fault("reference-planar-squares-in-float32", "gmkernels/ops/coupling/reference.py",
          "w_wide, u_wide = w_k.double(), u_k.double()", "w_wide, u_wide = w_k, u_k", _PLANAR),
    Fault("mask-inverted-for-all", "gmkernels/ops/coupling/__init__.py",
          "return mask.expand(x.shape[1:]).contiguous()", "return ~mask.expand(x.shape[1:]).contiguous()",
          _COUPLING + " or law or inverse"),
    Fault("clamp-of-zero-allowed", "gmkernels/ops/coupling/__init__.py",
          "if not (clamp > 0 or zero_allowed and clamp == 0):", "if not clamp >= 0:", _COUPLING),
    Fault("logdet-in-half-precision", "gmkernels/ops/coupling/native.py",
          "dtype = wide(x, log_scale)", "dtype = wide(x, x)", _COUPLING),
    Fault("tanh-kept-of-any-size", "gmkernels/ops/coupling/__init__.py",
          "and x.numel() <= KEPT", "", _COUPLING + " or test_coupling"),
    Fault("tanh-kept-without-gradient", "gmkernels/ops/coupling/__init__.py",
          "and (x.requires_grad or log_scale.requires_grad)", "", "test_coupling"),
    Fault("threads-cut-the-batch", "gmkernels/ops/coupling/native.py",
          "ins = [t.contiguous() for t in (z, u, w, b, grad_z, grad_logdet)]\n    outs = [contiguous_like(t) for t in ins[:4]]",
          "if torch.get_num_threads() > 1 and len(z) > 64:\n"
          "        n = len(z) // torch.get_num_threads()\n"
          "        a = planar_flow_backward(grad_z[:n], grad_logdet[:n], z[:n], u, w, b)\n"
          "        c = planar_flow_backward(grad_z[n:], grad_logdet[n:], z[n:], u, w, b)\n"
          "        return torch.cat((a[0], c[0])), a[1] + c[1], a[2] + c[2], a[3] + c[3]\n"
          "    ins = [t.contiguous() for t in (z, u, w, b, grad_z, grad_logdet)]\n"
          "    outs = [contiguous_like(t) for t in ins[:4]]", _PLANAR),
    Fault("strides-merge-too-much", "gmkernels/core/layout.py",
          "if merged and all(s[merged[-1][-1]] == s[d] * shape[d] for s in strides):",
          "if merged and strides[0][merged[-1][-1]] == strides[0][d] * shape[d]:", _COUPLING),
    Fault("explicit-backend-falls-back", "gmkernels/core/backends.py",
          'raise BackendError(f"{op}: backend {name!r} cannot run this call: {reason}")', 'return "reference"',
          "test_table or test_gradients"),
    Fault("third-derivative-is-zero", "gmkernels/core/doors.py",
          "if op.vjp is None: raise NotImplementedError("
          'f"{op.name} cannot be differentiated again: {op.family} is twice differentiable")',
          "if op.vjp is None:\n            return (None,) * len(ctx.needs_input_grad)", _ANY),
    Fault("forward-mode-drops-tangents", "gmkernels/core/doors.py",
          "if any(_unpack_dual(t, level=0)[1] is not None for t in tensors):",
          "if False:", _ANY),
    Fault("forward-mode-not-noticed", "gmkernels/core/doors.py",
          "(_functorch_active() or _forward_ad._current_level >= 0)", "_functorch_active()", _ANY),
    Fault("modes-not-noticed", "gmkernels/core/doors.py",
          "if _compiling() or _dispatch_modes() or _functorch_active()", "if _compiling() or _functorch_active()", _ANY),
    Fault("waiting-signs-not-noticed", "csrc/door.h", "if (opposite == Py_True) Py_RETURN_NONE;", "", _ANY),
    Fault("shapes-of-a-kind-not-compared", "csrc/door.h", "!std::equal(t.shape, t.shape + t.ndim, first.shape)", "false",
          _COUPLING),
    Fault("traces-not-noticed", "gmkernels/core/doors.py", "if _tracing():", "if False:", _ANY),
]  # fmt: skip

_STREAM = [
    Fault("first-counts-elements", "gmkernels/ops/random/native.py",
          "count, start = out.numel(), first * math.prod(out.shape[1:])", "count, start = out.numel(), first", _RANDOM),
    Fault("first-is-dropped", "gmkernels/ops/random/native.py",
          "count, start = out.numel(), first * math.prod(out.shape[1:])", "count, start = out.numel(), 0", _RANDOM),
    Fault("half-the-key-ignored", "gmkernels/ops/random/native.py",
          "seed, offset = (word & 0xFFFFFFFFFFFFFFFF for word in key.tolist())",
          "seed, offset = (word & 0xFFFFFFFF for word in key.tolist())", _RANDOM),
    Fault("probabilities-read-as-if-dense", "gmkernels/ops/random/native.py", "p.new_empty(p.shape), first, p.contiguous())",
          "p.new_empty(p.shape), first, p)", _RANDOM),
    Fault("reference-uniform-of-24-bits", "gmkernels/core/philox.py",
          "return ((word >> 9).to(dtype) + 0.5) * 2.0**-23", "return ((word >> 8).to(dtype) + 0.5) * 2.0**-24", _RANDOM),
    Fault("reference-bernoulli-rounds-up", "gmkernels/ops/random/reference.py",
          ".nan_to_num(0.0).floor().to(torch.int64)", ".nan_to_num(0.0).ceil().to(torch.int64)", _RANDOM),
    Fault("counter-off-by-one", "csrc/include/gmk/stream.h",
          "uint64_t(block) * kLanes + load(counter)", "uint64_t(block) * kLanes + 1 + load(counter)", _RANDOM),
    Fault("counter-of-32-bits", "csrc/include/gmk/stream.h",
          "uint64_t(block) * kLanes + load(counter)",
          "uint64_t(uint32_t(uint64_t(block) * kLanes)) + load(counter)", _RANDOM),
    Fault("bernoulli-misses-the-last-word", "csrc/random/cpu.cpp",
          "double(word[k]) + 1.0 <= limit", "double(word[k]) + 1.0 < limit", _RANDOM),
    Fault("uniform-closed-at-zero", "csrc/include/gmk/stream.h", "+ T(0.5)) * T(kUniformStep)", "+ T(0)) * T(kUniformStep)", _RANDOM),
]  # fmt: skip

_KERNELS = [
    Fault("affine-logdet-sign", "csrc/coupling/affine.h", "inverse ? -k.a : k.a}", "k.a}", _COUPLING),
    Fault("affine-inverse-adds-shift", "csrc/coupling/affine.h", "inverse ? (x - t) * k.factor", "inverse ? (x + t) * k.factor",
          _COUPLING),
    Fault("affine-gradient-beyond-clamp", "csrc/include/gmk/scale_map.h",
          "slope = pick(value(a) == value(s), N(T(1)), N(T(0)));", "slope = N(T(1));", _COUPLING),
    Fault("clip-of-nan-is-the-bound", "csrc/include/gmk/dual.h", "min(pack<T>(c), a)", "min(a, pack<T>(c))", _COUPLING),
    Fault("matrix-strides-swapped", "csrc/exchange.h", "t.strides[0], 0, t.strides[1]", "t.strides[1], 0, t.strides[0]",
          _COUPLING),
    Fault("matrix-of-bfloat16-as-float16", "csrc/exchange.h", "t.code == kBfloat ? GMK_BF16 : ", "", _COUPLING),
    Fault("affine-kept-of-another-block", "csrc/coupling/affine.cpp",
          "const T* ph = inner ? inner + b * features + i : nullptr;",
          "const T* ph = inner ? inner + b * features : nullptr;", _COUPLING),
    Fault("affine-slope-of-what-is-kept", "csrc/coupling/affine.cpp",
          "ph && Map == GMK_TANH ? ph", "ph ? ph", _COUPLING),
    Fault("rows-of-a-group-left-out", "csrc/include/gmk/rows.h",
          "task = std::max(begin, stop - size)", "task = std::max(begin, stop - size + 1)", _COUPLING),
    Fault("affine-unfused", "csrc/coupling/affine.h", "fma(x, k.factor, t)", "x * k.factor + t", _COUPLING),
    Fault("affine-double-forgets-curvature", "csrc/include/gmk/dual.h",
          "return {h, fma(-h, h, P(1)) * a.d};", "return {h, a.d};", _COUPLING),
    Fault("dual-abs-sign", "csrc/include/gmk/dual.h", "pick(a.v < P(0), -a.d, a.d)", "a.d", _COUPLING),
    Fault("row-tail-counted", "csrc/include/gmk/rows.h",
          "lanes[p] += n == kLanes ? a : select<T>(iota<typename native<T>::mask>() < n, a, T(0));", "lanes[p] += a;", _COUPLING),
    Fault("row-tail-not-written", "csrc/include/gmk/rows.h", "else store_n(block + p * kLanes, a, n);", "", _COUPLING),
    Fault("row-tail-overrun", "csrc/include/gmk/rows.h",
          "if (n == kLanes) store(block + p * kLanes, a); else store_n(block + p * kLanes, a, n);",
          "store(block + p * kLanes, a);", _COUPLING),
    Fault("row-strides-swapped", "csrc/include/gmk/rows.h",
          "return b * rows.batch + o * rows.outer + k * rows.inner;",
          "return b * rows.batch + o * rows.inner + k * rows.outer;", _COUPLING),
    Fault("row-offset-of-32-bits", "csrc/include/gmk/rows.h",
          "static_cast<const T*>(rows.data) + b * rows.batch + i;",
          "static_cast<const T*>(rows.data) + int32_t(b * rows.batch) + i;", _COUPLING),
    Fault("bfloat16-truncates", "csrc/include/gmk/convert.h",
          "uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16)", "uint16_t(u >> 16)", _COUPLING),
    Fault("float16-ties-up-without-f16c", "csrc/include/gmk/convert.h",
          "(u - 0x38000000 + 0xfff + (u >> 13 & 1)) >> 13", "(u - 0x38000000 + 0x1000) >> 13",
          _COUPLING + " or instruction"),
    Fault("planar-gradient-of-the-norm", "csrc/coupling/planar.h", "S(2) * grad_norm * w[d]", "grad_norm * w[d]", _PLANAR),
    Fault("planar-gradient-of-logdet", "csrc/coupling/planar.h",
          "N grad_h = (h + h) * (N(T(1)) - f.gain) * per_det;", "N grad_h = h * (N(T(1)) - f.gain) * per_det;", _PLANAR),
    Fault("planar-zero-w", "csrc/coupling/planar.h", "if (plain(norm) > 0) {", "if (true) {", _PLANAR),
    Fault("minibatch-counts-itself", "csrc/minibatch/minibatch.cpp",
          "iota<typename native<T>::mask>() > typename native<T>::mask(i - j * kLanes)",
          "iota<typename native<T>::mask>() >= typename native<T>::mask(i - j * kLanes)", _MINIBATCH),
    Fault("minibatch-sign-of-zero", "csrc/minibatch/minibatch.cpp", "return select<T>(d != T(0), s, T(0));", "return s;", _MINIBATCH),
    Fault("minibatch-double-sign", "csrc/minibatch/minibatch.cpp", "w = -(w * along);", "w = w * along;", _MINIBATCH),
    Fault("minibatch-tile-keeps-its-sums", "csrc/minibatch/minibatch.cpp",
          "s.row[i - start] = P(T(0));", "", _MINIBATCH),
    Fault("forked-child-waits-for-threads", "csrc/parallel.cpp",
          "if (tasks <= grain || in_forked_child) {", "if (tasks <= grain) {", "test_processes"),
]  # fmt: skip

_AFFINE_TRITON = "gmkernels/ops/coupling/triton.py"
_TRITON = [
    Fault("triton-rows-out-of-bounds", _AFFINE_TRITON,
          "keep = (row < batch)[:, None] & inside[None, :]\n        x_ =", "keep = (row >= 0)[:, None] & inside[None, :]\n        x_ =",
          _COUPLING, triton=True),
    Fault("triton-padding-counted", _AFFINE_TRITON, "total += tl.where(keep, a, 0.0)", "total += a", _COUPLING, triton=True),
    Fault("triton-mask-inverted", _AFFINE_TRITON, "(tl.load(mask + col, mask=inside, other=0) != 0)",
          "(tl.load(mask + col, mask=inside, other=0) == 0)", _COUPLING, triton=True),
    Fault("triton-curvature-sign", _AFFINE_TRITON, "second = -2.0 * tanh(s) * slope", "second = 2.0 * tanh(s) * slope",
          _COUPLING, triton=True),
    Fault("triton-stream-not-aligned", "gmkernels/ops/random/triton.py", "tl.arange(0, 4 * BLOCK) - skip",
          "tl.arange(0, 4 * BLOCK)", _RANDOM, triton=True),
    Fault("triton-words-out-of-order", "gmkernels/ops/random/triton.py", "tl.join(tl.join(a, c), tl.join(b, d))",
          "tl.join(tl.join(a, b), tl.join(c, d))", _RANDOM, triton=True),
]  # fmt: skip

FAULTS = [
    *_GLUE,
    *_STREAM,
    *_KERNELS,
    *_TRITON,
    *GAUSSIAN,
    *CONVOLUTION,
    *CHAINS,
    *WAVENET,
    *PERCEPTRON,
    *MADE,
    *METRICS,
    *PENALTY,
]
