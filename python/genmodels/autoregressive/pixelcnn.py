"""PixelCNN and Gated PixelCNN: laws of images whose every pixel is drawn given the pixels before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

import gmkernels as gmk

from ..data import Batch
from ..model import Model
from .heads import KINDS, Head, Kind
from .networks import Gated, Network, Plain

Method = Literal["cached", "naive"]
OnRow = Callable[[int, Tensor], object]
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)


class PixelModel(Model):
    """What both models share: ``p(x) = product over pixels of p(x_i | x_1 .. x_i-1)`` in raster order.

    Images are integers ``0 .. levels - 1``. The channels of a pixel come one after another too: by masks in the network
    (``groups`` equal to the number of channels; van den Oord et al., "Pixel recurrent neural networks", 2016, section
    3.4), or, with ``groups=1`` and three channels, within the mixture (Salimans et al., "PixelCNN++", 2017, equation 3).
    Figures are in nats per image, or bits per dimension.

    Randomness: sampling takes ``key`` (an int64 tensor from ``gmkernels.random.key``, or an int seed); without it a key
    is drawn from torch's default generator. With one key, an image does not depend on how many are drawn with it.
    """

    body: ClassVar[type[Plain | Gated]]

    def __init__(
        self,
        shape: Sequence[int],
        kernels: Sequence[int],
        *,
        head: Kind = "bernoulli",
        levels: int = 2,
        components: int = 10,
        width: int = 64,
        hidden: int | None = None,
        classes: int = 0,
        groups: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if len(shape) != 3:
            raise ValueError(f"{name}: shape must be (C, H, W), got {tuple(shape)}")
        channels, height, columns = shape
        if head not in KINDS:
            raise ValueError(f"{name}: head must be one of {', '.join(KINDS)}, got {head!r}")
        if levels < 2 or (head == "bernoulli" and levels != 2):
            raise ValueError(f"{name}: levels must be 2 for a Bernoulli head and at least 2 for others, got {levels}")
        if groups is None:
            groups = 1 if head == "mixture" and channels == 3 else channels
        if groups not in (1, channels) or (groups == 1 < channels and (head != "mixture" or channels != 3)):
            raise ValueError(
                f"{name}: groups must be the number of channels, {channels}, or 1 for a mixture of three channels, "
                f"got {groups}"
            )
        hidden = width if hidden is None else hidden
        if min(width, hidden, components) < 1 or width % groups or hidden % groups:
            raise ValueError(
                f"{name}: width and hidden must be multiples of the {groups} channel groups, got {width} and {hidden}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"{name}: dropout must be in [0, 1), got {dropout}")
        self.shape, self.levels, self.groups, self.classes = (channels, height, columns), levels, groups, classes
        self.head = Head(head, channels, groups, levels, components)
        body = self.body(channels, width, tuple(kernels), groups, dropout)
        self.network = Network(body, hidden, self.head.outputs, groups, classes)

    # What goes in.

    def pixels(self, x: Tensor) -> Tensor:
        """Images as int64.

        Raises:
            TypeError: they are not integers.
            ValueError: another shape than the model's, or values that are no levels.
        """
        if x.dtype not in _INTEGERS:
            raise TypeError(f"pixels must be integers 0..{self.levels - 1}, got {x.dtype}")
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"expected images (batch, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        x = x.to(self.device, torch.int64)
        if x.numel() and not torch.compiler.is_compiling():
            low, high = (int(end) for end in x.aminmax())
            if low < 0 or high >= self.levels:
                raise ValueError(f"pixels must be levels 0..{self.levels - 1}, got values from {low} to {high}")
        return x

    def labels(self, condition: Tensor | None, n: int) -> Tensor | None:
        """Labels as the network takes them.

        Raises:
            ValueError: they are missing, not wanted, not ``n`` integers, or outside ``0 .. classes - 1``.
        """
        name = type(self).__name__
        if not self.classes:
            if condition is not None:
                raise ValueError(
                    f"{name} without classes takes no condition, got one of shape {tuple(condition.shape)}"
                )
            return None
        if condition is None:
            raise ValueError(f"{name} needs a condition: labels (batch,) in 0..{self.classes - 1}, got None")
        if condition.is_floating_point() or tuple(condition.shape) != (n,):
            raise ValueError(
                f"{name}: the condition must be {n} integer labels of shape ({n},), got {condition.dtype} of shape "
                f"{tuple(condition.shape)}"
            )
        if n and not torch.compiler.is_compiling():
            low, high = (int(end) for end in condition.aminmax())
            if low < 0 or high >= self.classes:
                raise ValueError(f"{name}: labels must lie in 0..{self.classes - 1}, got values from {low} to {high}")
        return condition.to(self.device)

    # The law.

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The outputs of the network (B, outputs, H, W) at levels ``x`` (B, C, H, W); see :class:`Head`."""
        x = self.pixels(x)
        # As the samplers make them from value_range.
        values = torch.linspace(-1, 1, self.levels, dtype=torch.float64, device=self.device).to(self.dtype)
        return self.network(values[x], self.labels(condition, len(x)))

    def log_prob(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Exact log-probability of images in nats (B,). Differentiable in the parameters.

        Args:
            x: integers (B, C, H, W).
            condition: with classes, labels (B,).

        Raises:
            TypeError, ValueError: see :meth:`pixels` and :meth:`labels`.
        """
        return self.head.log_prob(self(x, condition), x.to(self.device, torch.int64))

    @torch.no_grad()
    def bits_per_dim(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """``-log2 p(x) / (C H W)`` (B,)."""
        return self.log_prob(x, condition) / (-math.log(2) * math.prod(self.shape))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """``loss`` in bits per dimension, and ``nats`` per image, of a batch and, with classes, its labels."""
        nats = -self.log_prob(batch.x, batch.y if self.classes else None).mean()
        return {"loss": nats / (math.log(2) * math.prod(self.shape)), "nats": nats.detach()}

    # Samples.

    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        *,
        key: Tensor | int | None = None,
        temperature: float = 1.0,
        method: Method = "cached",
        first: int = 0,
        on_row: OnRow | None = None,
    ) -> Tensor:
        """``n`` images (n, C, H, W) of the model, levels in int64.

        Args:
            condition: with classes, labels (n,).
            temperature: logits are divided by it, scales of logistics multiplied: below 1, likelier images.
            method: ``cached`` computes every activation once; ``naive`` runs the whole network for every pixel and
                channel group, which is the definition, and some hundred times slower. Both draw the same images, up to
                pixels whose random number is within a rounding error of a probability.
            first: the number of the first image: ``n`` images from ``first`` on are a part of any larger draw.
            on_row: called as ``on_row(row, images)`` after each row.
        """
        return self._draw(n, condition, key, temperature, method, first, on_row)

    def inpaint(
        self,
        x: Tensor,
        mask: Tensor,
        condition: Tensor | None = None,
        *,
        key: Tensor | int | None = None,
        temperature: float = 1.0,
        method: Method = "cached",
        first: int = 0,
        on_row: OnRow | None = None,
    ) -> Tensor:
        """Images with their hidden pixels drawn given the visible ones: exact samples of the conditional law.

        Args:
            x: integers (B, C, H, W). Hidden pixels are not read.
            mask: bool, broadcastable to (B, 1, H, W); True marks what is visible. All visible pixels must come before
                all hidden ones in raster order: the model has no conditional law for others.

        Everything else is as for :meth:`sample`.

        Raises:
            TypeError: ``mask`` is not bool.
            ValueError: ``mask`` is not causal.
        """
        if mask.dtype != torch.bool:
            raise TypeError(f"a mask must be bool, True where pixels are visible, got {mask.dtype}")
        shown = mask.to(self.device).expand(len(x), 1, *self.shape[1:])
        order = shown.flatten(1)
        if bool((order[:, 1:] & ~order[:, :-1]).any()):
            raise ValueError(
                "inpaint needs a causal mask: a visible pixel after a hidden one in raster order has no influence on "
                "it, got such a pixel"
            )
        held = self.pixels(torch.where(shown, x.to(self.device), 0))
        return self._draw(len(x), condition, key, temperature, method, first, on_row, x_init=held, mask=shown[:, 0])

    @torch.no_grad()
    def _draw(
        self,
        n: int,
        condition: Tensor | None,
        key: Tensor | int | None,
        temperature: float,
        method: Method,
        first: int,
        on_row: OnRow | None,
        x_init: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        if method not in ("cached", "naive"):
            raise ValueError(f"method must be 'cached' or 'naive', got {method!r}")
        draw = gmk.gated_pixelcnn_sample if isinstance(self.network.body, Gated) else gmk.pixelcnn_sample
        return draw(
            self.network.parameters_in_order(),
            (n, *self.shape),
            key=self.key(key),
            head=self.head.kind,
            levels=self.levels,
            value_range=(-1.0, 1.0),
            channel_groups=self.groups,
            condition=self.network.bias(self.labels(condition, n)),
            temperature=temperature,
            first=first,
            on_row=on_row,
            x_init=x_init,
            mask=mask,
            backend="reference" if method == "naive" else "auto",
        )

    def extra_repr(self) -> str:
        return f"{self.shape}, head={self.head.kind!r}, levels={self.levels}, classes={self.classes}"


class PixelCNN(PixelModel):
    """PixelCNN (van den Oord et al., "Pixel recurrent neural networks", 2016): residual blocks of masked convolutions.

    Args:
        shape: (C, H, W) of an image.
        width: h; the residual stream has 2 h channels.
        blocks: residual blocks.
        kernel, first_kernel: sizes of their convolutions, and of the first one; odd.
        head: law of a pixel: ``bernoulli`` (black and white), ``categorical`` (softmax over all levels) or ``mixture``
            (of ``components`` discretised logistics).
        levels: integer levels of a channel; 256 for bytes.
        hidden: channels before the last convolution; ``width`` if None.
        classes: number of classes whose label the network is told; 0 for none.
        groups: see :class:`PixelModel`; by default the number of channels, 1 for a mixture of three channels.
        dropout: in training, within the blocks.

    Pixels right of and above a pixel are partly out of its sight: see :class:`GatedPixelCNN`.
    """

    body = Plain

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 64,
        blocks: int = 12,
        kernel: int = 3,
        first_kernel: int = 7,
        **options: Any,
    ) -> None:
        super().__init__(shape, (first_kernel, *[kernel] * blocks), width=width, **options)


class GatedPixelCNN(PixelModel):
    """Gated PixelCNN (van den Oord et al., "Conditional image generation with PixelCNN decoders", 2016).

    A vertical stack for the rows above and a horizontal one for the row so far, so that every pixel before, within
    reach, is seen; and gates in place of ReLU.

    Args:
        width: C, channels of either stack.
        layers: how many, the first with ``first_kernel``, the others with ``kernel``.

    Everything else is as for :class:`PixelCNN`.
    """

    body = Gated

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 64,
        layers: int = 8,
        kernel: int = 3,
        first_kernel: int = 7,
        **options: Any,
    ) -> None:
        if layers < 1:
            raise ValueError(f"GatedPixelCNN: layers must be at least 1, got {layers}")
        super().__init__(shape, (first_kernel, *[kernel] * (layers - 1)), width=width, **options)
