"""The gate's tensors as its kernels take them: halves of the channels, as rows of two dimensions."""

from __future__ import annotations

from torch import Tensor

from gmkernels.core import layout
from gmkernels.core.layout import Strides

from .library import channels_last

Operand = tuple[Tensor, Strides] | None


def arrange(
    x: Tensor,
    cond: Tensor | None,
    grad: Tensor | None = None,
    along: Tensor | None = None,
    out: Tensor | None = None,
    out_x: Tensor | None = None,
) -> tuple[tuple[int, int, int], list[Operand]]:
    """Sizes of a half (batch, outer, inner), and the operands a, b, cond_a, cond_b, grad, along_a, along_b, out, out_a,
    out_b with their strides. ``grad`` and ``out`` have as many channels as a half, the others twice as many.
    """
    last = channels_last(x)

    def seen(t: Tensor | None) -> Tensor | None:  # with the pixels where they lie in memory, before the channels
        return t.permute(0, 2, 3, 1) if last and t is not None else t

    def halves(t: Tensor | None) -> tuple[Tensor | None, ...]:
        t = seen(t)
        return (None, None) if t is None else t.tensor_split(2, -1 if last else 1)

    given = [*halves(x), *halves(cond), seen(grad), *halves(along)]
    results = [seen(out), *halves(out_x)]
    found = [t for t in (*given, *results) if t is not None]
    sizes, strides, alive = layout.rows(*found)
    if any(a is not b for a, b in zip(alive, found, strict=True)):
        # No two dimensions describe them all. Of the inputs there are copies to be made, of the outputs not.
        given = [None if t is None else t.contiguous() for t in given]
        sizes, strides, alive = layout.rows(*[t for t in (*given, *results) if t is not None])
    known = iter(zip(alive, strides, strict=True))
    return sizes, [None if t is None else next(known) for t in (*given, *results)]
