"""The stack of dilated, gated, causal layers that teacher and student are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk
from gmkernels.nn import CausalConv1d

DOUBLING = tuple(2**i for i in range(10))
"""1, 2, 4 .. 512."""


class Stack(nn.Module):
    """A causal network with residual and skip connections (van den Oord et al., "WaveNet", 2016, figure 4).

    Args:
        inputs: channels of what it sees.
        outputs: channels out of it.
        dilations: one for each layer.
        residual, gate, skip, hidden: channels between layers, out of a gate, of the skip sum, and between the last two
            convolutions.
        kernel, first_kernel: taps of the layers and of the first convolution.
        classes: labels it may be told (a global condition), 0 for none.
        local: channels of a condition for each time, 0 for none.

    ``forward(x, y, local)``: (B, inputs, T), with classes labels (B,), with a local condition (B, local, T), to
    (B, outputs, T). Output t sees x up to t.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        dilations: Sequence[int],
        *,
        residual: int = 32,
        gate: int | None = None,
        skip: int = 64,
        hidden: int | None = None,
        kernel: int = 2,
        first_kernel: int = 2,
        classes: int = 0,
        local: int = 0,
    ) -> None:
        super().__init__()
        gate, hidden = gate or residual, hidden or skip
        sizes = (residual, gate, skip, hidden, kernel, first_kernel, *dilations)
        if not dilations or min(sizes) < 1 or min(classes, local) < 0:
            raise ValueError(f"WaveNet: channels, kernels and dilations must be positive, got {sizes}")
        self.residual, self.gate, self.kernel, self.dilations = residual, gate, kernel, tuple(dilations)
        self.first = CausalConv1d(inputs, residual, first_kernel)
        self.dilated = nn.ModuleList(CausalConv1d(residual, 2 * gate, kernel, d) for d in dilations)
        last = len(dilations) - 1
        self.mix = nn.ModuleList(CausalConv1d(gate, skip + (residual if i < last else 0), 1) for i in range(last + 1))
        self.head, self.output = CausalConv1d(skip, hidden, 1), CausalConv1d(hidden, outputs, 1)
        self.classes = nn.Parameter(torch.zeros(classes, last + 1, 2 * gate)) if classes else None
        self.local = nn.Parameter(torch.randn(last + 1, 2 * gate, local) * local**-0.5) if local else None

    @property
    def receptive_field(self) -> int:
        """How many inputs an output sees."""
        return self.first.kernel_size + (self.kernel - 1) * sum(self.dilations)

    def forward(self, x: Tensor, y: Tensor | None = None, local: Tensor | None = None) -> Tensor:
        h, condition, skip = self.first(x), self.condition(y), self.head.in_channels
        # Residual stream and skip sum side by side, as the layers' last convolutions make them: one sum for both.
        both = F.pad(h, (0, 0, 0, skip))
        for i, (dilated, mix) in enumerate(zip(self.dilated, self.mix, strict=True)):
            inner = dilated(both[:, : self.residual])
            if local is not None and self.local is not None:
                inner = inner + (self.local[i] @ local).to(inner.dtype)
            # In the dtype that autocast has given the convolution.
            mixed = mix(gmk.gated_activation(inner, None if condition is None else condition[:, i].to(inner.dtype)))
            # In place: for a second of sound, fresh memory costs more than the sum.
            both = mixed.add_(both if i + 1 < len(self.dilations) else both[:, self.residual :])
        return self.output(F.relu_(self.head(F.relu_(both))))

    def condition(self, y: Tensor | None) -> Tensor | None:
        """What labels add before each gate: (B, layers, 2 gate)."""
        return None if self.classes is None or y is None else self.classes[y.long()]

    def checked(self, name: str, n: int, length: int, y: Tensor | None, local: Tensor | None) -> None:
        """Whether conditions are those of ``n`` samples of this length.

        Raises:
            ValueError: one is missing, not wanted, of another shape, or a label out of range.
        """
        wanted = 0 if self.classes is None else len(self.classes)
        if (y is None) != (wanted == 0):
            form = f"labels (batch,) in 0..{wanted - 1}" if wanted else "no labels"
            raise ValueError(f"{name} takes {form}, got {None if y is None else tuple(y.shape)}")
        if y is not None:
            if y.is_floating_point() or tuple(y.shape) != (n,):
                raise ValueError(f"{name}: labels must be {n} integers, got {y.dtype} of shape {tuple(y.shape)}")
            if n and not torch.compiler.is_compiling():
                low, high = (int(end) for end in y.aminmax())
                if low < 0 or high >= wanted:
                    raise ValueError(f"{name}: labels must lie in 0..{wanted - 1}, got {low} to {high}")
        channels = 0 if self.local is None else self.local.shape[2]
        if (local is None) != (channels == 0):
            form = f"a local condition of {channels} channels" if channels else "no local condition"
            raise ValueError(f"{name} takes {form}, got {None if local is None else tuple(local.shape)}")
        if local is not None and tuple(local.shape) != (n, channels, length):
            raise ValueError(
                f"{name}: the local condition must have shape {(n, channels, length)}, got {tuple(local.shape)}"
            )

    def parameters_in_order(self) -> list[Tensor]:
        """Weights and biases as :func:`gmkernels.wavenet_sample` takes them."""
        layers = [c for pair in zip(self.dilated, self.mix, strict=True) for c in pair]
        return [t for c in (self.first, *layers, self.head, self.output) for t in (c.weight, c.bias)]  # type: ignore[misc]
