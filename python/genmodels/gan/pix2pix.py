"""Image-to-image translation from pairs: Isola, Zhu, Zhou and Efros, "Image-to-image translation with conditional
adversarial networks", 2017."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk

from ..data import Batch
from ..model import Model
from .networks import virtual
from .techniques import Techniques
from .translators import Norm, PatchGAN, UNet, halvings

Method = TypeVar("Method", bound=Callable[..., Any])


def by_reference(method: Method) -> Method:
    """A method of a :class:`Translator` during which virtual batch norm has the statistics of the reference images."""

    @functools.wraps(method)
    def referring(self: Translator, *args: Any, **kwargs: Any) -> Any:
        with self.referring():
            return method(self, *args, **kwargs)

    return cast(Method, referring)


class Translator(Model):
    """Images in [-1, 1] inside, uint8 levels or [0, 1] outside; what the models have in common of the techniques.

    Args:
        levels: grey levels of uint8 images.
        techniques: see :class:`Techniques`.
    """

    def __init__(self, levels: int = 256, techniques: Techniques | None = None) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"{type(self).__name__}: levels must be at least 2, got {levels}")
        self.levels, self.techniques = levels, techniques or Techniques()
        self.history = nn.ModuleDict()
        self.register_buffer("reference_x", None)
        self.register_buffer("reference_y", None)

    reference_x: Tensor | None
    reference_y: Tensor | None

    def refer(self, norm: Norm, reference: tuple[Tensor, Tensor] | None, *shapes: Sequence[int]) -> None:
        """Keep the images x and y by which virtual batch norm normalises. They belong to the state_dict.

        Raises:
            ValueError: there are none, or they have other shapes than the model's.
        """
        if norm != "virtual":
            return
        if reference is None:
            raise ValueError(f"{type(self).__name__}: virtual batch norm needs reference images x and y, got None")
        self.reference_x, self.reference_y = (
            self.inside(images, shape, f"reference {name}")
            for name, images, shape in zip("xy", reference, shapes, strict=True)
        )

    def references(self, x: Tensor, y: Tensor) -> Mapping[nn.Module, Tensor]:
        """The networks, each with what it sees of reference images."""
        raise NotImplementedError

    @contextlib.contextmanager
    def referring(self) -> Iterator[None]:
        """Networks with virtual batch norm can be called inside: the reference goes once through each."""
        with contextlib.ExitStack() as stack:
            if self.reference_x is not None and self.reference_y is not None:
                for network, reference in self.references(self.reference_x, self.reference_y).items():
                    if virtual(network):
                        stack.enter_context(gmk.nn.virtual_batch(network, reference))
            yield

    def remember(self, **parts: Sequence[nn.Module]) -> None:
        """Keep the historical averages of the networks of each part, if the techniques want them."""
        if self.techniques.historical:
            for name, networks in parts.items():
                parameters = [p for network in networks for p in network.parameters()]
                self.history[name] = gmk.nn.HistoricalAverage(parameters)

    def held(self, found: dict[str, Tensor], part: str) -> dict[str, Tensor]:
        """The losses of a part, and the distance of its parameters from their averages."""
        if part not in self.history:
            return found
        away = self.techniques.historical * self.history[part].penalty()  # type: ignore[operator]
        return found | {"loss": found["loss"] + away, "historical": away}

    def updated(self, part: str) -> None:
        """To be called after every update of a part."""
        if part in self.history:
            self.history[part].update()  # type: ignore[operator]

    def inside(self, images: Tensor, shape: Sequence[int], name: str) -> Tensor:
        """Images (B, *shape), uint8 levels or real in [0, 1], as numbers in [-1, 1].

        Raises:
            ValueError: the images have another shape, or floating ones lie outside [0, 1].
            TypeError: they are neither uint8 nor floating.
        """
        if tuple(images.shape[1:]) != tuple(shape):
            raise ValueError(f"{name}: expected images of shape {('batch', *shape)}, got {tuple(images.shape)}")
        if images.dtype == torch.uint8:
            return images.to(self.device, self.dtype) * (2 / (self.levels - 1)) - 1
        if not images.is_floating_point():
            raise TypeError(f"{name}: expected uint8 images or floating ones in [0, 1], got {images.dtype}")
        if len(images) and not torch.compiler.is_compiling():
            low, high = (float(end) for end in images.detach().aminmax())
            if not (low >= 0 and high <= 1):
                raise ValueError(f"{name}: floating images must lie in [0, 1], got values from {low:.4g} to {high:.4g}")
        return images.to(self.device, self.dtype) * 2 - 1

    def some(self, *batches: Tensor) -> None:
        """Images to take the mean loss of.

        Raises:
            ValueError: there are none.
        """
        if not all(len(images) for images in batches):
            raise ValueError(f"{type(self).__name__}: the batch is empty, and a mean loss is of one image at least")

    @staticmethod
    def outside(images: Tensor) -> Tensor:
        """Numbers in [-1, 1] as images in [0, 1]."""
        return (images + 1) / 2


class Pix2Pix(Translator):
    """A U-Net that translates, taught by the target (L1) and by a critic that judges pairs patch by patch.

    With logits D(x, y) averaged over patches and images, and noise from dropout (their equations 1 to 4),

    - critic: ``1/2 [softplus(-D(x, y)) + softplus(D(x, G(x)))]`` (halved, so that it learns slowly; section 3.3),
    - generator: ``adversarial * softplus(-D(x, G(x))) + l1 * mean |y - G(x)|``, images in [-1, 1].

    Real and fake go through the critic in separate batches. With label smoothing the critic's target for real pairs is
    that much below 1; with feature matching the verdict is the squared distance of the mean features of real and
    translated pairs.

    Args:
        input_shape, shape: (C, H, W) of inputs and of targets, the same height and width.
        width: channels of the first layers of both networks; 64 in the paper.
        depth: halvings of the U-Net; as many as the size allows, 8 at the most, if None.
        layers: convolutions of stride 2 of the critic; 3 (70x70 patches) in the paper, for images of 256x256.
        norm: ``batch`` or ``instance`` (what the paper's batches of one image amount to), ``virtual`` or ``none``.
        dropout: of the first layers of the decoder; the only noise.
        l1: weight of the distance to the target; 100 in the paper.
        adversarial: weight of the critic's verdict; with 0 there is nothing but the distance, and no critic.
        minibatch: closeness features of the critic's minibatch discrimination; see :class:`PatchGAN`.
        reference: inputs and their targets, as many of each, by which virtual batch norm normalises: the generator by the
            inputs (without noise), the critic by the pairs.
        levels, techniques: see :class:`Translator`.

    Raises:
        ValueError: the sizes differ, or do not fit the networks; or there is no reference for virtual batch norm.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        shape: Sequence[int],
        *,
        width: int = 64,
        depth: int | None = None,
        layers: int = 3,
        norm: Norm = "instance",
        dropout: float = 0.5,
        l1: float = 100.0,
        adversarial: float = 1.0,
        minibatch: int = 0,
        reference: tuple[Tensor, Tensor] | None = None,
        levels: int = 256,
        techniques: Techniques | None = None,
    ) -> None:
        super().__init__(levels, techniques)
        if tuple(input_shape[1:]) != tuple(shape[1:]):
            raise ValueError(
                f"Pix2Pix: inputs and targets must have one height and width, got {tuple(input_shape)} and {tuple(shape)}"
            )
        if l1 < 0 or adversarial < 0 or l1 + adversarial == 0:
            raise ValueError(f"Pix2Pix: l1 and adversarial must be 0 or more, and not both 0; got {l1}, {adversarial}")
        self.input_shape, self.shape = tuple(input_shape), tuple(shape)
        self.l1, self.adversarial = l1, adversarial
        depth = halvings(*shape[1:]) if depth is None else depth
        if depth < 1 or any(side % 2**depth for side in shape[1:]):
            raise ValueError(
                f"Pix2Pix: height and width must be multiples of 2**depth with a depth of at least 1, got "
                f"{shape[1]}x{shape[2]} and depth {depth}"
            )
        self.generator = UNet(input_shape[0], shape[0], depth=depth, width=width, norm=norm, dropout=dropout)
        self.critic = (
            PatchGAN(input_shape[0] + shape[0], width=width, layers=layers, norm=norm, minibatch=minibatch)
            if adversarial
            else None
        )
        self.refer(norm, reference, self.input_shape, self.shape)
        self.remember(generator=[self.generator])
        if self.critic is not None:
            self.remember(critic=[self.critic])

    def references(self, x: Tensor, y: Tensor) -> Mapping[nn.Module, Tensor]:
        seen: dict[nn.Module, Tensor] = {self.generator: x}
        if self.critic is not None:
            seen[self.critic] = torch.cat([x, y], 1)
        return seen

    @by_reference
    def losses(self, batch: Batch, part: str = "generator", key: Tensor | int | None = None) -> dict[str, Tensor]:
        """The loss of ``part``, ``critic`` or ``generator``, and what it is made of.

        Args:
            batch: inputs ``x`` and their targets ``y``.
            key: of the dropout.

        Raises:
            ValueError: no such part, no images, no targets, or another shape.
        """
        if batch.y is None:
            raise ValueError("Pix2Pix: the batch has no targets y")
        x, y = self.inside(batch.x, self.input_shape, "x"), self.inside(batch.y, self.shape, "y")
        self.some(x, y)
        key = self.key(key)
        if part == "critic" and self.critic is not None:
            with torch.no_grad():
                fake = self.generator(x, key)
            real, fake = (self.critic(torch.cat([x, image], 1)) for image in (y, fake))
            smooth = self.techniques.label_smoothing * real.mean()
            loss = 0.5 * (F.softplus(-real).mean() + smooth + F.softplus(fake).mean())
            return self.held({"loss": loss, "real": real.sigmoid().mean(), "fake": fake.sigmoid().mean()}, part)
        if part != "generator":
            parts = "generator" if self.critic is None else "critic or generator"
            raise ValueError(f"Pix2Pix: part must be {parts}, got {part!r}")
        made = self.generator(x, key)
        distance = (made - y).abs().mean()
        found = {"loss": self.l1 * distance, "l1": distance}
        if self.critic is not None:
            pairs = torch.cat([x, made], 1)
            if self.techniques.feature_matching:
                with torch.no_grad():
                    wanted = self.critic.features(torch.cat([x, y], 1))
                fooled = gmk.feature_matching_loss(wanted, self.critic.features(pairs))
            else:
                fooled = F.softplus(-self.critic(pairs)).mean()
            found = {"loss": found["loss"] + self.adversarial * fooled, "l1": distance, "adversarial": fooled}
        return self.held(found, part)

    @torch.no_grad()
    @by_reference
    def translate(self, x: Tensor, key: Tensor | int | None = None, *, noise: bool = True, first: int = 0) -> Tensor:
        """Translations (B, *shape) in [0, 1] of inputs (B, *input_shape).

        Args:
            key: of the dropout, which stays on, as in the paper; a fresh one if None.
            noise: False turns it off.
            first: logical index of the first image: a batch cut in two is translated as the whole.
        """
        inputs = self.inside(x, self.input_shape, "x")
        return self.outside(self.generator(inputs, self.key(key) if noise else None, first=first))
