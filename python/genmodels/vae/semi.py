"""Learning from few labels: Kingma et al., "Semi-supervised learning with deep generative models", 2014 (model M2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import gmkernels as gmk

from ..data import Batch, Shuffled
from ..errors import DataError
from .networks import Encoder
from .vae import ConditionalVAE, NonFiniteLoss, finite


class SemiBatch(NamedTuple):
    """Labelled images ``x`` with labels ``y``, and unlabelled images ``u``."""

    x: Tensor
    y: Tensor
    u: Tensor

    def to(self, device: torch.device | str) -> SemiBatch:
        return SemiBatch(self.x.to(device), self.y.to(device), self.u.to(device))


class SemiStream:
    """Endless pairs of a labelled and an unlabelled batch, each shuffled in its own epochs (a ``BatchStream``).

    Args:
        labelled: images with labels.
        unlabelled: images; labels, if it has any, are not looked at.
        batch_size: unlabelled images per batch and process.
        labelled_batch: labelled images per batch and process; all of them, up to 50, if None.

    Raises:
        DataError: one of the two sets is empty, or the first has no labels.
    """

    def __init__(
        self,
        labelled: Batch,
        unlabelled: Batch,
        batch_size: int,
        labelled_batch: int | None = None,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if labelled.y is None or not len(labelled.x):
            raise DataError("semi-supervised learning needs labelled images, got none")
        if not len(unlabelled.x):
            raise DataError("the unlabelled set is empty: semi-supervised learning needs images without labels as well")
        few = min(50, len(labelled.x) // world) if labelled_batch is None else labelled_batch
        self.parts = {
            "labelled": Shuffled(labelled, few, seed=seed, rank=rank, world=world),
            "unlabelled": Shuffled(Batch(unlabelled.x), batch_size, seed=seed + 1, rank=rank, world=world),
        }

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])

    def __iter__(self) -> Iterator[SemiBatch]:
        return self

    def __next__(self) -> SemiBatch:
        (x, y), (u, _) = next(self.parts["labelled"]), next(self.parts["unlabelled"])
        assert y is not None
        return SemiBatch(x, y, u)


def keep_labels(data: Batch, labels: int, classes: int, seed: int = 0) -> tuple[Batch, Batch]:
    """Split into ``labels`` labelled images, the same number of every class, and the rest, whose labels are dropped.

    Which ones is decided by Philox words under ``seed``, so it is the same on every machine.
    """
    if data.y is None:
        raise DataError("keep_labels: the data has no labels to keep")
    if labels < classes or labels % classes:
        raise ValueError(f"labels must be a multiple of the {classes} classes, got {labels}")
    words = gmk.random.bits(gmk.random.key(seed=seed), len(data.x))
    kept = []
    for label in range(classes):
        members = (data.y == label).nonzero()[:, 0]
        if len(members) < labels // classes:
            raise DataError(f"class {label} has {len(members)} images, fewer than {labels // classes} to be labelled")
        kept.append(members[words[members].argsort(stable=True)[: labels // classes]])
    chosen = torch.zeros(len(data.x), dtype=torch.bool)
    chosen[torch.cat(kept)] = True
    return Batch(data.x[chosen], data.y[chosen]), Batch(data.x[~chosen])


class SemiSupervisedVAE(ConditionalVAE):
    """Model M2: a class and a latent make an image, and the class is a latent where no label is known.

    With ``L(x, y) = log p(x|y, z) + log p(y) - KL(q(z|x, y) || p(z))`` at one draw of z, uniform p(y) (their equations
    6 to 9), the loss in nats per image is

    - labelled: ``-L(x, y) - alpha log q(y|x)``,
    - unlabelled: ``-U(x) = -sum_y q(y|x) L(x, y) - H(q(y|x))``, all classes enumerated,

    averaged over all images of the batch, except that ``alpha``'s term is averaged over the labelled ones. The product
    of an image with a first layer is computed once, not once for each class.

    Args:
        classes: number of classes.
        alpha: weight of the cross-entropy of the labelled images.
        free_bits, mask_rate: not offered here.
        others: as :class:`VAE`.

    ``losses`` takes a :class:`SemiBatch`. The parts reported are those of the unlabelled images, averaged over q(y|x):
    ``reconstruction``, ``kl`` and ``kl_class = log classes - H(q(y|x))``; and ``cross_entropy`` and ``accuracy`` of the
    labelled ones.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        alpha: float = 10.0,
        latents: int = 50,
        hidden: int = 500,
        **options: Any,
    ) -> None:
        if alpha < 0:
            raise ValueError(f"SemiSupervisedVAE: alpha must be 0 or more, got {alpha}")
        if options.get("free_bits") or options.get("mask_rate"):
            raise ValueError("SemiSupervisedVAE: free_bits and mask_rate are not offered")
        super().__init__(shape, classes, latents=latents, hidden=hidden, **options)
        self.alpha = alpha
        depth, network = options.get("depth", 1), options.get("network", "mlp")
        self.classifier = Encoder(self.shape, classes, hidden, depth, network)

    def every_class(self, x: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """``log p(x|y, z)`` and ``KL(q(z|x, y) || p(z))``, both (B, classes), of pixels with every class.

        Row ``b * classes + y`` of the noise under ``key`` belongs to image b and class y.
        """
        _, _, z, kl = self._draw(x, key)
        return self.judge(z, None, x), kl.view(len(x), -1)

    def _draw(self, x: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean and log-variance of q(z|x, y) with every class, z (B, classes, latents), and its divergence."""
        mu, logvar = self.encoder.every(x).flatten(0, 1).chunk(2, 1)
        z, kl = gmk.reparameterize_kl(mu, logvar, key)
        return mu, logvar, z.unflatten(0, (len(x), self.classes)), kl

    def unlabelled(self, x: Tensor, key: Tensor) -> dict[str, Tensor]:
        """``-U(x)`` as ``loss``, and its parts without a gradient, each (B,), of pixels."""
        log_q = self.classifier(x).log_softmax(1)
        q = log_q.exp()
        log_likelihood, kl = self.every_class(x, key)
        # log classes = -log p(y); with the entropy it makes KL(q(y|x) || p(y)).
        uniform, expected = math.log(self.classes), torch.linalg.vecdot
        loss = expected(q, log_q + self.beta.times(kl, self.updates) - log_likelihood) + uniform
        with torch.no_grad():
            # What is not finite in any class is not finite in the loss, even where the class has no weight.
            if not torch.compiler.is_compiling() and not finite(loss):
                mu, logvar, z, _ = self._draw(x, key)
                why = self.cause(x, mu, logvar, decoder=self.decoder.every(z), classifier=self.classifier(x))
                raise NonFiniteLoss(f"the loss is not finite: {why}")
            return {
                "loss": loss,
                "reconstruction": -expected(q, log_likelihood),
                "kl": expected(q, kl),
                "kl_class": expected(q, log_q) + uniform,
            }

    def losses(self, batch: SemiBatch, key: Tensor | int | None = None) -> dict[str, Tensor]:  # type: ignore[override]
        """See the class. Raises as :meth:`VAE.losses`, and ``ValueError`` if there are no unlabelled images."""
        if not len(batch.u):
            raise ValueError("the unlabelled part of the batch is empty: semi-supervised learning needs both parts")
        key = self.key(key)
        known = len(batch.x)
        y = self.labels(batch.y, known)
        assert y is not None
        x = self.targets(torch.cat([batch.x, batch.u]), key)
        free = self.unlabelled(x[known:], key)
        # The key's rows 0 .. len(u) * classes - 1 are the unlabelled images'.
        terms = self.terms(x[:known], y, None, key, first=len(batch.u) * self.classes)
        labelled = terms.reconstruction + self.beta.times(terms.kl, self.updates) + math.log(self.classes)
        logits = self.classifier(x[:known])
        cross_entropy = F.cross_entropy(logits, y)
        if self.training:
            self.updates += 1
        loss = (labelled.sum() + free["loss"].sum()) / len(x) + self.alpha * cross_entropy
        return {
            "loss": loss,
            **{name: value.mean() for name, value in free.items() if name != "loss"},
            "cross_entropy": cross_entropy,
            "accuracy": (logits.detach().argmax(1) == y).to(loss.dtype).mean(),
        }

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """``q(y|x)`` (B, classes)."""
        return self.classifier(self.still(x)).softmax(1)

    @torch.no_grad()
    def bound(self, x: Tensor, key: Tensor | int | None = None) -> Tensor:
        """``U(x)`` (B,): the lower bound of ``log p(x)`` without a label, with every ``beta`` 1."""
        key = self.key(key)
        parts = self.unlabelled(self.targets(x, key), key)
        return -(parts["reconstruction"] + parts["kl"] + parts["kl_class"])

    def iwae(self, x: Tensor, y: Tensor | None = None, **options: Any) -> Tensor:
        """As :meth:`VAE.iwae`; without labels a bound of ``log p(x)``: the mean of the weights over all classes too."""
        if y is not None:
            return super().iwae(x, y, **options)
        labels = (x.new_full((len(x),), label, dtype=torch.int64) for label in range(self.classes))
        each = [super(SemiSupervisedVAE, self).iwae(x, y, **options) for y in labels]
        return torch.stack(each).logsumexp(0) - math.log(self.classes)
