"""A history of generated images, so that a critic does not forget what it has seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import gmkernels as gmk


class ImagePool(nn.Module):
    """The last generated images, in a random half of which the critic sees old ones (Shrivastava et al. 2017).

    Until the pool is full, an image is kept and returned. Then, with probability 1/2, a random one of the pool is returned
    and replaced by the new image, else the new image is returned and forgotten (Zhu et al. 2017, section 4).

    The pool is a buffer: it belongs to the ``state_dict``, so that a resumed run goes on with the images it had. Under
    several processes of one run, all start a step with the pool of the first.

    Args:
        size: images kept, 50 in the paper; 0 returns every image as it came.
        shape: of an image.
    """

    images: Tensor
    held: Tensor

    def __init__(self, size: int, shape: Sequence[int]) -> None:
        super().__init__()
        if size < 0:
            raise ValueError(f"ImagePool: size must be at least 0, got {size}")
        self.register_buffer("images", torch.zeros(size, *shape))
        self.register_buffer("held", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def exchange(self, images: Tensor, key: Tensor) -> Tensor:
        """Images (B, *shape) in, what the critic is to see out; no gradient flows.

        Args:
            key: decides which are exchanged, and for which.
        """
        size = len(self.images)
        if images.shape[1:] != self.images.shape[1:]:
            raise ValueError(
                f"ImagePool: expected images of shape {tuple(self.images.shape[1:])}, got {tuple(images.shape[1:])}"
            )
        if not size:
            return images.detach()
        out = images.detach().clone()
        held, words = int(self.held), gmk.random.bits(key, (len(images), 2)).tolist()
        for i, (coin, place) in enumerate(words):
            if held < size:
                self.images[held] = out[i]
                held += 1
            elif coin & 1:
                old = self.images[place % size].to(out.dtype, copy=True)
                self.images[place % size] = out[i]
                out[i] = old
        self.held.fill_(held)
        return out
