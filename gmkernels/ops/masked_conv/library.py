"""Schemas and fakes of the convolutions, the gate, and their derivatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gmkernels.core.doors import Operator

from . import reference

BACKENDS = ("cpu", "triton")


def channels_last(t: Tensor) -> bool:
    """Whether an image is stored with its channels last; one that is stored both ways counts as contiguous."""
    return t.dim() == 4 and not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)


def like(t: Tensor, channels: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor in the memory format of ``t``, with this many channels."""
    layout = torch.channels_last if channels_last(t) else torch.contiguous_format
    shape = t.shape[0], channels, *t.shape[2:]
    return torch.empty(shape, dtype=dtype or t.dtype, device=t.device, memory_format=layout)


def gradients(x: Tensor, weight: Tensor, needs: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the gradients by x, weight and bias; empty for those that are not needed."""
    by_x, by_weight, by_bias = needs
    return (
        like(x, x.shape[1]) if by_x else x.new_empty(0),
        weight.new_empty(weight.shape) if by_weight else weight.new_empty(0),
        weight.new_empty(weight.shape[0]) if by_bias else weight.new_empty(0),
    )


def _fake(x, weight, bias, mask_type, channel_groups):
    return like(x, weight.shape[0])


def _fake_backward(grad, x, weight, mask_type, channel_groups, by_x, by_weight, by_bias):
    return gradients(x, weight, (by_x, by_weight, by_bias))


_NEEDS = "bool by_x, bool by_weight, bool by_bias, str backend) -> (Tensor, Tensor, Tensor)"

masked_conv2d = Operator(
    "masked_conv",
    "masked_conv2d(Tensor x, Tensor weight, Tensor? bias, str mask_type, int channel_groups, str backend) -> Tensor",
    _fake,
    reference.masked_conv2d,
    BACKENDS,
)
masked_conv2d_backward = Operator(
    "masked_conv",
    f"masked_conv2d_backward(Tensor grad, Tensor x, Tensor weight, str mask_type, int channel_groups, {_NEEDS}",
    _fake_backward,
    backends=BACKENDS,
)


def _fake_causal(x, weight, bias, dilation):
    return like(x, weight.shape[0])


def _fake_causal_backward(grad, x, weight, dilation, by_x, by_weight, by_bias):
    return gradients(x, weight, (by_x, by_weight, by_bias))


causal_conv1d = Operator(
    "masked_conv",
    "causal_conv1d(Tensor x, Tensor weight, Tensor? bias, SymInt dilation, str backend) -> Tensor",
    _fake_causal,
    reference.causal_conv1d,
    BACKENDS,
)
causal_conv1d_backward = Operator(
    "masked_conv",
    f"causal_conv1d_backward(Tensor grad, Tensor x, Tensor weight, SymInt dilation, {_NEEDS}",
    _fake_causal_backward,
    backends=BACKENDS,
)


def _fake_gate(x, cond):
    return like(x, x.shape[1] // 2)


def _fake_gate_backward(grad, x, cond):
    return like(x, x.shape[1])


def _fake_gate_double_backward(grad_grad, grad, x, cond):
    return like(x, x.shape[1] // 2), like(x, x.shape[1])


gated_activation = Operator(
    "masked_conv",
    "gated_activation(Tensor x, Tensor? cond, str backend) -> Tensor",
    _fake_gate,
    reference.gated_activation,
    BACKENDS,
)
gated_activation_backward = Operator(
    "masked_conv",
    "gated_activation_backward(Tensor grad, Tensor x, Tensor? cond, str backend) -> Tensor",
    _fake_gate_backward,
    backends=BACKENDS,
)
gated_activation_double_backward = Operator(
    "masked_conv",
    "gated_activation_double_backward(Tensor grad_grad, Tensor grad, Tensor x, Tensor? cond, str backend)"
    " -> (Tensor, Tensor)",
    _fake_gate_double_backward,
    backends=BACKENDS,
)


def gated_outputs(x: Tensor, weight: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """Room for the output and for what backward wants of the sums, in float32 or wider."""
    dtype = reference.wide(x)
    return like(x, weight.shape[0] // 2), like(x, weight.shape[0], dtype) if keep else x.new_empty(0, dtype=dtype)


def gated_gradients(
    x: Tensor, weight: Tensor, cond: Tensor | None, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for the gradients by x, weight, bias and condition; empty for those that are not needed."""
    by_cond = x.new_empty(0)
    if cond is not None and needs[3]:
        by_cond = like(x, weight.shape[0]) if cond.dim() == 4 else x.new_empty(cond.shape)
    return *gradients(x, weight, needs[:3]), by_cond


def _fake_gated(x, weight, bias, cond, mask_type, channel_groups, keep):
    return gated_outputs(x, weight, keep)


def _fake_gated_backward(grad, kept, x, weight, bias, cond, mask_type, channel_groups, *needs):
    return gated_gradients(x, weight, cond, needs)


_CALL = "Tensor x, Tensor weight, Tensor? bias, Tensor? cond, str mask_type, int channel_groups"

gated_masked_conv2d = Operator(
    "masked_conv",
    f"gated_masked_conv2d({_CALL}, bool keep, str backend) -> (Tensor, Tensor)",
    _fake_gated,
    reference.gated_masked_conv2d,
    BACKENDS,
    internal=1,
)
gated_masked_conv2d_backward = Operator(
    "masked_conv",
    f"gated_masked_conv2d_backward(Tensor grad, Tensor kept, {_CALL}, bool by_x, bool by_weight, bool by_bias,"
    " bool by_cond, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_gated_backward,
    backends=BACKENDS,
)
