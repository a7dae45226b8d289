"""Masked and causal convolutions and the gate as layers."""

from __future__ import annotations

import math

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from gmkernels.ops.masked_conv import causal_conv1d, gated_activation, gated_masked_conv2d, masked_conv2d


def _lowered(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Under autocast, in the dtype that it gives convolutions."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


@torch.fx.wrap
def _visible(weight: Tensor, mask_type: str, channel_groups: int) -> Tensor:
    """The weights of a masked convolution with zeros where the mask is."""
    outputs, inputs, height, width = weight.shape
    seen = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
    seen[:, :, : height // 2] = True
    seen[:, :, height // 2, : width // 2] = True
    before, after = (torch.arange(n, device=weight.device) * channel_groups // max(1, n) for n in (inputs, outputs))
    last = after[:, None] if mask_type == "B" else after[:, None] - 1
    seen[:, :, height // 2, width // 2] = before[None, :] <= last
    return weight.masked_fill(~seen, 0.0)


def _reset(weight: Tensor, bias: Tensor | None, share: float) -> None:
    """PyTorch's rule for convolutions, uniform within 1 / sqrt(inputs), counting the inputs that are not masked."""
    inputs = share * weight[0].numel()
    bound = 1.0 / math.sqrt(inputs) if inputs > 0 else 0.0
    nn.init.uniform_(weight, -bound, bound)
    if bias is not None:
        nn.init.uniform_(bias, -bound, bound)


class MaskedConv2d(nn.Module):
    """A convolution in which every pixel sees the pixels before it: :func:`gmkernels.masked_conv2d`.

    Args:
        in_channels, out_channels: C and O.
        kernel_size: k, odd; or two odd numbers, height and width.
        mask_type, channel_groups, backend: passed to :func:`gmkernels.masked_conv2d`.
        bias: whether to learn one.

    ``forward(x)``: (N, C, H, W) to (N, O, H, W). Parameters ``weight`` (O, C, k, k), masked taps included, and ``bias``
    (O): those of a textbook masked convolution load as they are.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        mask_type: str,
        channel_groups: int = 1,
        bias: bool = True,
        *,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        if len(size) != 2 or not all(n > 0 and n % 2 for n in size):
            raise ValueError(f"MaskedConv2d: kernel_size must be odd, got {kernel_size}")
        if mask_type not in ("A", "B"):
            raise ValueError(f"MaskedConv2d: mask_type must be 'A' or 'B', got {mask_type!r}")
        if channel_groups < 1 or in_channels % channel_groups or out_channels % channel_groups:
            raise ValueError(
                f"MaskedConv2d: the channels must divide into channel_groups={channel_groups}, "
                f"got {in_channels} in and {out_channels} out"
            )
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, size
        self.mask_type, self.channel_groups, self.backend = mask_type, channel_groups, backend
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        height, width = self.kernel_size
        seen = (
            (height // 2) * width
            + width // 2
            + (self.channel_groups + (-1, 1)[self.mask_type == "B"]) / (2 * self.channel_groups)
        )
        _reset(self.weight, self.bias, seen / (height * width))

    def extra_repr(self) -> str:
        groups = f", channel_groups={self.channel_groups}" if self.channel_groups > 1 else ""
        height, width = self.kernel_size
        return f"{self.in_channels}, {self.out_channels}, {height}x{width}, mask {self.mask_type}{groups}"

    def forward(self, x: Tensor) -> Tensor:
        return masked_conv2d(
            *_lowered(x, self.weight, self.bias),
            mask_type=self.mask_type,
            channel_groups=self.channel_groups,
            backend=self.backend,
        )

    def plain_forward(self, x: Tensor) -> Tensor:
        """The forward pass in operations of PyTorch."""
        weight = _visible(self.weight, self.mask_type, self.channel_groups)
        return F.conv2d(x, weight, self.bias, padding=(self.kernel_size[0] // 2, self.kernel_size[1] // 2))


class GatedMaskedConv2d(MaskedConv2d):
    """A masked convolution to twice the channels and its gate: :func:`gmkernels.gated_masked_conv2d`.

    Args:
        in_channels, out_channels: of the layer; the convolution has twice as many outputs.
        kernel_size, mask_type, channel_groups, bias, backend: as for :class:`MaskedConv2d`.

    ``forward(x, cond=None)``: (N, C', H, W) to (N, C, H, W), a condition (N, 2C) or broadcastable to (N, 2C, H, W) added
    before the gate. Parameters ``weight`` (2C, C', k, k) and ``bias`` (2C), those of the masked convolution alone.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        mask_type: str,
        channel_groups: int = 1,
        bias: bool = True,
        *,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if channel_groups < 1 or out_channels % channel_groups:
            raise ValueError(
                f"GatedMaskedConv2d: out_channels must divide into channel_groups={channel_groups}, got {out_channels}"
            )
        super().__init__(
            in_channels, 2 * out_channels, kernel_size, mask_type, channel_groups, bias,
            backend=backend, device=device, dtype=dtype,
        )  # fmt: skip

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        x, weight, bias = _lowered(x, self.weight, self.bias)
        return gated_masked_conv2d(
            x,
            weight,
            bias,
            None if cond is None else cond.to(x.dtype),
            mask_type=self.mask_type,
            channel_groups=self.channel_groups,
            backend=self.backend,
        )

    def plain_forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """The forward pass in operations of PyTorch."""
        pre = super().plain_forward(x)
        if cond is not None:
            pre = pre + (cond[:, :, None, None] if cond.dim() == 2 else cond)
        a, b = pre.unflatten(1, (self.channel_groups, 2, -1)).unbind(2)
        return (torch.tanh(a) * torch.sigmoid(b)).flatten(1, 2)


class CausalConv1d(nn.Module):
    """A convolution in which no output sees what comes after it: :func:`gmkernels.causal_conv1d`.

    Args:
        in_channels, out_channels, kernel_size: C, O and k.
        dilation, backend: passed to :func:`gmkernels.causal_conv1d`.
        bias: whether to learn one.

    ``forward(x)``: (N, C, T) to (N, O, T). Parameters ``weight`` (O, C, k), the last tap the present, and ``bias`` (O).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int = 1,
        bias: bool = True,
        *,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if min(in_channels, out_channels, kernel_size, dilation) < 1:
            raise ValueError(
                "CausalConv1d: in_channels, out_channels, kernel_size and dilation must be positive, "
                f"got {in_channels}, {out_channels}, {kernel_size}, {dilation}"
            )
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.dilation, self.backend = dilation, backend
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        _reset(self.weight, self.bias, 1.0)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, dilation={self.dilation}"

    def forward(self, x: Tensor) -> Tensor:
        return causal_conv1d(*_lowered(x, self.weight, self.bias), dilation=self.dilation, backend=self.backend)

    def plain_forward(self, x: Tensor) -> Tensor:
        """The forward pass in operations of PyTorch."""
        before = F.pad(x, ((self.kernel_size - 1) * self.dilation, 0))
        return F.conv1d(before, self.weight, self.bias, dilation=self.dilation)


class GatedActivation(nn.Module):
    """``tanh(a) * sigmoid(b)`` of the halves of the channels: :func:`gmkernels.gated_activation`.

    ``forward(x, cond=None)``: (N, 2C, ...) to (N, C, ...).
    """

    def __init__(self, *, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return gated_activation(x, cond, backend=self.backend)
