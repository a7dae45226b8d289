"""Reading a critic: ``torch.fx`` follows its forward pass, and each layer it meets becomes a step with a rule."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from . import rules
from .program import Known, Make, Program, Step, Value, made, resolve
from .rules import Rule

aten = torch.ops.aten
Piece = tuple[Rule, tuple[Any, ...]]  # a rule and its parameters: an Attribute, a node of the graph, or a constant


class Unsupported(Exception):
    """Why a critic has no penalty of first order."""


class Attribute:
    """A parameter of the critic by its path from a layer, read anew whenever a penalty is computed."""

    def __init__(self, path: str, layer: str = "") -> None:
        self.path, self.layer = path, layer

    def of(self, layer: str) -> Attribute:
        return type(self)(self.path, layer)

    def read(self, critic: nn.Module, alone: bool) -> Any:
        """Its value; ``alone``: the critic is the layer itself, or around it."""
        return getattr(self.home(critic, alone), self.path)

    def home(self, critic: nn.Module, alone: bool) -> Any:
        path = self.layer.partition(".")[2] if alone else self.layer
        return _attribute(critic, path) if path else critic


class _Folded(Attribute):
    """``factor`` or ``offset`` of a batch norm that uses its running statistics."""

    def read(self, critic: nn.Module, alone: bool) -> Tensor:
        m = self.home(critic, alone)
        factor = torch.rsqrt(m.running_var + m.eps)
        factor = factor if m.weight is None else factor * m.weight
        offset = -m.running_mean * factor
        found = factor if self.path == "factor" else offset if m.bias is None else offset + m.bias
        return found.reshape(-1, *[1] * _SPATIAL[_plain_type(m)])


def _attribute(critic: nn.Module, path: str) -> Any:
    found: Any = critic
    for name in path.split("."):
        found = getattr(found, name)
    return found


_AFFINE = (Attribute("weight"), Attribute("bias"))


def _tuple(value: Any, dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value)


def _convolution(dims: int, transposed: bool, how: Callable[[Any], dict[str, Any]]) -> Callable[[Any], list[Piece]]:
    def build(m: Any) -> list[Piece]:
        if m.padding_mode != "zeros":
            raise Unsupported(f"pads with {m.padding_mode!r}")
        return [(_conv_rule(dims, transposed, **how(m)), _AFFINE)]

    return build


def _conv_rule(
    dims: int, transposed: bool, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
    output_padding: Any = 0, kernel: Sequence[int] | None = None,
) -> Rule:  # fmt: skip
    dilation = _tuple(dilation, dims)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        totals = [0] if kernel is None else [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if kernel is None or any(total % 2 for total in totals):
            raise Unsupported("pads one side more than the other")
        padding = [total // 2 for total in totals]
    shape = (_tuple(stride, dims), _tuple(padding, dims), dilation)
    return rules.Convolution(*shape, transposed, _tuple(output_padding, dims), groups)


def _of_module(m: Any) -> dict[str, Any]:
    return {
        "stride": m.stride, "padding": m.padding, "dilation": m.dilation, "groups": m.groups,
        "output_padding": m.output_padding, "kernel": m.kernel_size,
    }  # fmt: skip


def _norm(m: Any, groups: Callable[[torch.Size], int], channelwise: bool) -> list[Piece]:
    return [(rules.Normalise(groups, m.eps, channelwise), _AFFINE)]


def _instance_norm(m: Any) -> list[Piece]:
    if m.track_running_stats:
        raise Unsupported("tracks running statistics")
    return _norm(m, lambda shape: shape[0] * shape[1], True)


def _layer_norm(m: nn.LayerNorm) -> list[Piece]:
    dims = len(m.normalized_shape)
    return _norm(m, lambda shape: math.prod(shape[: len(shape) - dims]), False)


def _group_norm(m: nn.GroupNorm) -> list[Piece]:
    count = m.num_groups
    return _norm(m, lambda shape: shape[0] * count, True)


_SPATIAL = {nn.BatchNorm1d: 0, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}


def _batch_norm(m: Any) -> list[Piece]:
    if couples(m):
        raise Unsupported("couples the samples of a batch")
    if isinstance(m, nn.BatchNorm1d):
        raise Unsupported("has no rule")
    return [(rules.Scale(), (_Folded("factor"), _Folded("offset")))]


def _dropout(m: Any, whole: bool) -> list[Piece]:
    return [(rules.Dropout(m.p, whole), ())] if m.training and m.p > 0 else []


def _drop(p: float = 0.5, training: bool = True, inplace: bool = False) -> Rule:
    return rules.Dropout(p, False) if training and p > 0 else rules.Map(lambda h: h, lambda a, h: a)


def _avg_pool(kernel: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
              count_include_pad: bool = True, divisor_override: int | None = None) -> Rule:  # fmt: skip
    stride = kernel if stride is None or stride == [] else stride
    how = (_tuple(kernel, 2), _tuple(stride, 2), _tuple(padding, 2), ceil_mode, count_include_pad, divisor_override)
    return rules.Map(lambda h: aten.avg_pool2d(h, *how), lambda a, h: aten.avg_pool2d_backward(a, h, *how))


def _adaptive_pool(size: Any) -> Rule:
    return rules.Map(
        lambda h: F.adaptive_avg_pool2d(h, size), lambda a, h: aten._adaptive_avg_pool2d_backward(a.contiguous(), h)
    )


def _max_pool(m: nn.MaxPool2d) -> list[Piece]:
    if m.return_indices:
        raise Unsupported("returns indices")
    how = [_tuple(value, 2) for value in (m.kernel_size, m.stride, m.padding, m.dilation)]
    return [(rules.MaxPool((*how, m.ceil_mode)), ())]


def _flat(shape: Sequence[int], start: int, end: int) -> list[int]:
    start, end = start % len(shape), end % len(shape)
    return [*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]]


def _flatten(start: int = 0, end: int = -1) -> Rule:
    return rules.Reshape(lambda h: _flat(h.shape, start, end))


def _unflatten(dim: int, sizes: Sequence[int]) -> Rule:
    return rules.Reshape(lambda h: h.unflatten(dim, sizes).shape)


def _gelu(approximate: str = "none") -> Rule:
    if approximate != "none":
        raise Unsupported("is the approximate GELU")
    return rules.gelu()


def _alone(make: Callable[[Any], Rule]) -> Callable[[Any], list[Piece]]:
    return lambda m: [(make(m), ())]


_MODULES: dict[type, Callable[[Any], list[Piece]]] = {
    nn.Linear: lambda m: [(rules.Linear(), _AFFINE)],
    **{kind: _convolution(d, False, _of_module) for d, kind in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), 1)},
    **{
        kind: _convolution(d, True, _of_module)
        for d, kind in enumerate((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), 1)
    },
    nn.Identity: lambda m: [],
    nn.ReLU: _alone(lambda m: rules.relu()),
    nn.LeakyReLU: _alone(lambda m: rules.leaky_relu(m.negative_slope)),
    nn.Tanh: _alone(lambda m: rules.tanh()),
    nn.Sigmoid: _alone(lambda m: rules.sigmoid()),
    nn.ELU: _alone(lambda m: rules.elu(m.alpha)),
    nn.SiLU: _alone(lambda m: rules.silu()),
    nn.GELU: _alone(lambda m: _gelu(m.approximate)),
    nn.Softplus: _alone(lambda m: rules.softplus(m.beta, m.threshold)),
    nn.Flatten: _alone(lambda m: _flatten(m.start_dim, m.end_dim)),
    nn.Unflatten: _alone(lambda m: _unflatten(m.dim, m.unflattened_size)),
    nn.AvgPool2d: _alone(
        lambda m: _avg_pool(m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override)
    ),
    nn.AdaptiveAvgPool2d: _alone(lambda m: _adaptive_pool(m.output_size)),
    nn.MaxPool2d: _max_pool,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _instance_norm),
    **dict.fromkeys(_SPATIAL, _batch_norm),
    nn.Dropout: lambda m: _dropout(m, False),
    **dict.fromkeys((nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), lambda m: _dropout(m, True)),
}


def _plain_type(m: nn.Module) -> type:
    """A layer's class, seen through the one that ``torch.nn.utils.parametrize`` gives it."""
    return type(m).__mro__[1] if parametrize.is_parametrized(m) else type(m)


def couples(m: nn.Module) -> bool:
    """Whether a layer lets the samples of a batch see each other, as it is now."""
    if isinstance(m, nn.modules.batchnorm._BatchNorm):
        return m.training or m.running_mean is None
    return type(m).__name__ == "MinibatchDiscrimination"


# Functions and methods: how their arguments after the first name a rule.
_FUNCTIONS: dict[Any, Callable[..., Rule]] = {
    **dict.fromkeys((F.relu, torch.relu, "relu", "relu_"), lambda inplace=False: rules.relu()),
    F.leaky_relu: lambda negative_slope=0.01, inplace=False: rules.leaky_relu(negative_slope),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), rules.tanh),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), rules.sigmoid),
    F.dropout: _drop,
    F.elu: lambda alpha=1.0, inplace=False: rules.elu(alpha),
    F.silu: lambda inplace=False: rules.silu(),
    F.gelu: lambda approximate="none": _gelu(approximate),
    F.softplus: lambda beta=1.0, threshold=20.0: rules.softplus(beta, threshold),
    F.avg_pool2d: lambda kernel_size, *rest, **named: _avg_pool(kernel_size, *rest, **named),
    F.adaptive_avg_pool2d: lambda output_size: _adaptive_pool(output_size),
    **dict.fromkeys((torch.flatten, "flatten"), lambda start_dim=0, end_dim=-1: _flatten(start_dim, end_dim)),
}


def _reduce(how: str) -> Callable[..., Rule]:
    def build(dim: Any = None, keepdim: bool = False) -> Rule:
        if dim is None or 0 in (dims := _tuple(dim, 1)):
            raise Unsupported(f"takes the {how} over the batch")

        def back(a: Tensor, h: Tensor) -> Tensor:
            if not keepdim:
                for d in sorted(d % h.dim() for d in dims):
                    a = a.unsqueeze(d)
            scale = math.prod(h.shape[d] for d in dims) if how == "mean" else 1
            return (a / scale).expand(h.shape)

        return rules.Map(lambda h: getattr(h, how)(dims, keepdim), back)

    return build


_FUNCTIONS |= dict.fromkeys((torch.mean, "mean"), _reduce("mean")) | dict.fromkeys((torch.sum, "sum"), _reduce("sum"))

# How views name their new shape, from the input and whatever follows it.
_VIEWS: dict[Any, Callable[..., Sequence[int]]] = {
    "view": lambda h, *s: h.reshape(*s).shape,
    **dict.fromkeys(("reshape", torch.reshape), lambda h, *s: h.reshape(*s).shape),
    **dict.fromkeys(("squeeze", torch.squeeze), lambda h, *d: h.squeeze(*d).shape),
    **dict.fromkeys(("unsqueeze", torch.unsqueeze), lambda h, d: h.unsqueeze(d).shape),
    "unflatten": lambda h, d, s: h.unflatten(d, s).shape,
}
_ARITHMETIC: dict[Any, str] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), "add"),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub"), "sub"),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), "mul"),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, "div"), "div"),
}
_CONVOLUTIONS: dict[Any, tuple[tuple[str, ...], int]] = {
    convolution: (("weight", "bias", "stride", "padding", "dilation", "groups"), dims)
    for dims, convolution in enumerate((F.conv1d, F.conv2d, F.conv3d), 1)
}


class _Tracer(fx.Tracer):
    """Leaves are the layers with rules. A layer of this package is followed through its ``plain_forward``."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = _plain_type(m) in _MODULES or couples(m)
        return known or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        return super().call_module(m, getattr(m, "plain_forward", forward), args, kwargs)


class _Reader:
    """Turns a graph into steps. A node is a tensor that depends on the input (``active``), something else that does,
    such as its size (``looks``), or neither (``constants``: parameters and what is made of them).
    """

    def __init__(self, critic: nn.Module) -> None:
        self.wrapped = _plain_type(critic) in _MODULES or hasattr(critic, "plain_forward")
        critic = nn.Sequential(critic) if self.wrapped else critic
        self.critic, self.graph = critic, _Tracer().trace(critic)
        self.steps: list[Step | Make] = []
        self.active: dict[fx.Node, int] = {}
        self.looks: dict[fx.Node, int] = {}
        self.constants: dict[fx.Node, int] = {}
        self.makes: list[Make] = []
        self.fresh: set[int] = set()
        self.size = 0

    def read(self) -> Program:
        output = None
        for node in self.graph.nodes:
            try:
                if node.op == "placeholder" and not self.active:
                    self.active[node] = self.value()
                elif node.op == "placeholder" and not node.args:
                    raise Unsupported("the critic takes more than one input")
                elif node.op == "output":
                    output = self.active.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
                    if output is None:
                        raise Unsupported("the critic returns more than one tensor, or one that ignores its input")
                elif any(source in self.active for source in node.all_input_nodes):
                    self.node(node)
                elif any(source in self.looks for source in node.all_input_nodes):
                    self.steps.append(self.make(node, self.looks, self.value()))
                else:
                    self.constant(node)
            except Unsupported as why:
                raise Unsupported(f"{self.name(node)} {why}" if node.op.startswith("call") else str(why)) from None
        assert output is not None
        return Program(tuple(self.steps), tuple(self.makes), self.size, output, self.wrapped)

    def value(self) -> int:
        self.size += 1
        return self.size - 1

    def late(self, found: Any) -> Any:
        """Arguments in which what stands for nodes has taken their places."""
        if isinstance(found, fx.Node):
            if found in self.constants:
                return Known(self.constants[found])
            return Value(self.looks[found] if found in self.looks else self.active[found])
        if isinstance(found, (list, tuple)):
            return (
                type(found)([self.late(part) for part in found]) if type(found) is tuple else [*map(self.late, found)]
            )
        return found

    def make(self, node: fx.Node, known: dict[fx.Node, int], place: int) -> Make:
        if node.op == "call_module" or any(isinstance(value, (dict, slice)) for value in node.args):
            raise Unsupported("has no rule")
        function = node.target if node.op == "call_function" else _method(str(node.target))
        args, kwargs = self.late(tuple(node.args)), tuple((k, self.late(v)) for k, v in node.kwargs.items())
        known[node] = place
        return Make(function, args, kwargs, place)  # type: ignore[arg-type]

    def constant(self, node: fx.Node) -> None:
        place = len(self.makes)
        if node.op == "get_attr":
            self.makes.append(Make(None, str(node.target), (), place))
        elif node.op == "placeholder":  # an optional argument
            self.makes.append(Make(_same, tuple(node.args), (), place))
        else:
            self.makes.append(self.make(node, self.constants, place))
        self.constants[node] = place

    def name(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"layer {str(node.target)!r} ({_plain_type(self.critic.get_submodule(str(node.target))).__name__})"
        return f"{getattr(node.target, '__name__', node.target)}()"

    def add(self, node: fx.Node, pieces: Sequence[Piece], *sources: fx.Node) -> None:
        """Append steps, each of the one before, the first of ``sources``. What nobody else reads may be overwritten."""
        at = tuple(self.active[source] for source in sources)
        single = len(sources) == 1 and len(sources[0].users) == 1
        for rule, params in pieces:
            overwrite = single and at[0] in self.fresh
            self.steps.append(Step(rule, at, params, self.value(), overwrite))
            at, single = (self.size - 1,), True
            if rule.fresh:
                self.fresh.add(at[0])
        self.active[node] = at[0]

    def node(self, node: fx.Node) -> None:
        first = node.args[0] if node.args else None
        if node.op == "call_module":
            return self.module(node)
        if node.target in ("size", "dim") or (
            node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")
        ):
            self.steps.append(self.make(node, self.looks, self.value()))
            return None
        if node.target in _ARITHMETIC and len(node.args) == 2 and not node.kwargs:
            return self.arithmetic(node, _ARITHMETIC[node.target])
        if node.target in (torch.cat, torch.concat):
            return self.join(node, *node.args, **node.kwargs)
        if not (isinstance(first, fx.Node) and first in self.active):
            raise Unsupported("has no rule")
        others = [n for n in node.all_input_nodes if n is not first]
        tail, kwargs = tuple(node.args[1:]), dict(node.kwargs)
        if any(n in self.active for n in others):
            raise Unsupported("has no rule for two branches of the critic")
        if node.target in _VIEWS:
            view = _VIEWS[node.target]
            return self.add(node, [(rules.Reshape(view), self.late((*tail, *kwargs.values())))], first)
        if node.target in (F.linear, *_CONVOLUTIONS):
            names, dims = _CONVOLUTIONS.get(node.target, (("weight", "bias"), 0))
            given = dict(zip(names, tail, strict=False)) | kwargs
            params = given.pop("weight"), given.pop("bias", None)
            return self.add(node, [(_conv_rule(dims, False, **given) if dims else rules.Linear(), params)], first)
        if node.target not in _FUNCTIONS or others:
            raise Unsupported("has no rule")
        return self.add(node, [(_FUNCTIONS[node.target](*tail, **kwargs), ())], first)

    def module(self, node: fx.Node) -> None:
        m = self.critic.get_submodule(str(node.target))
        if couples(m):
            raise Unsupported("couples the samples of a batch")
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
            raise Unsupported("has hooks")
        build = _MODULES.get(_plain_type(m))
        if build is None or len(node.args) != 1 or node.kwargs:
            raise Unsupported("has no rule")
        layer = str(node.target)
        pieces = [(rule, tuple(p.of(layer) for p in params)) for rule, params in build(m)]
        self.add(node, pieces, node.args[0])  # type: ignore[arg-type]

    def join(self, node: fx.Node, tensors: Any, dim: Any = 0) -> None:
        if not all(isinstance(t, fx.Node) and t in self.active for t in tensors):
            raise Unsupported("joins with a constant")
        if dim == 0:
            raise Unsupported("joins along the batch")
        self.add(node, [(rules.Concatenate(dim), ())], *tensors)

    def arithmetic(self, node: fx.Node, kind: str) -> None:
        left, right = node.args
        if isinstance(left, fx.Node) and isinstance(right, fx.Node) and left in self.active and right in self.active:
            rule = {"add": rules.Sum(1.0), "sub": rules.Sum(-1.0), "mul": rules.Product()}.get(kind)
            if rule is None:
                raise Unsupported("has no rule for two branches of the critic")
            return self.add(node, [(rule, ())], left, right)
        leads = isinstance(left, fx.Node) and left in self.active
        branch, other = (left, right) if leads else (right, left)
        number, constant = not isinstance(other, fx.Node), self.late(other)
        if kind in ("add", "mul"):
            params = (None, constant) if kind == "add" else (constant, None)
        elif kind == "sub" and (number or not leads):
            params = (None, -other) if leads else (-1.0, constant)  # type: ignore[operator]
        elif kind == "div" and number and leads:
            params = (1.0 / other, None)  # type: ignore[operator]
        else:
            raise Unsupported("has no rule")
        return self.add(node, [(rules.Scale(), params)], branch)  # type: ignore[arg-type]


def _method(name: str) -> Callable[..., Any]:
    return lambda t, *args, **kwargs: getattr(t, name)(*args, **kwargs)


def _same(value: Any) -> Any:
    return value


def gather(program: Program, critic: nn.Module) -> list[tuple[Any, ...]]:
    """The parameters of every step, recording for autograd what is made of the critic's own."""
    known: list[Any] = []
    for make in program.constants:
        known.append(_attribute(critic, make.args) if make.function is None else made(make, Known, known))
    found: list[tuple[Any, ...]] = []
    for step in program.steps:
        params = () if isinstance(step, Make) else step.params
        read = [p.read(critic, program.wrapped) if isinstance(p, Attribute) else p for p in params]
        found.append(tuple([resolve(p, Known, known) for p in read]))
    return found


def read(critic: nn.Module) -> Program:
    """The critic as a program.

    Raises:
        Unsupported: it has a layer without a rule, or it cannot be followed at all; the message says where.
    """
    try:
        return _Reader(critic).read()
    except Unsupported:
        raise
    except Exception as error:  # what a forward pass can run into when its input is no tensor has no common class
        raise Unsupported(f"torch.fx cannot follow its forward pass: {str(error).splitlines()[0]}") from error
