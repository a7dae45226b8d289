"""Historical averaging of parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class HistoricalAverage(nn.Module):
    """The average of parameters over all steps so far, and a penalty on leaving it.

    ``|| theta - (1/t) sum_i theta[i] ||^2`` over all parameters together (Salimans et al., "Improved techniques for
    training GANs", 2016, section 3.3). A few multi-tensor operations, forwards, whatever the number of parameters.

        history = HistoricalAverage(critic)
        ...
        (loss + weight * history.penalty()).backward()
        optimizer.step()
        history.update()

    The averages and the number of steps are buffers, so they belong to a checkpoint and to ``.to(device)``; the
    parameters stay those of their own module. An average is kept, not a sum: in float32 a sum over a long run would stop
    growing.

    Args:
        parameters: a module or an iterable of parameters.

    Raises:
        ValueError: there is no parameter.
        TypeError: one is not a floating tensor.
    """

    steps: Tensor

    def __init__(self, parameters: nn.Module | Iterable[Tensor]) -> None:
        super().__init__()
        found = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
        self._parameters_of = tuple(found)  # a tuple: they are not this module's own
        if not self._parameters_of:
            raise ValueError("HistoricalAverage: there are no parameters to average")
        for i, p in enumerate(self._parameters_of):
            if not isinstance(p, Tensor) or not p.is_floating_point():
                got = p.dtype if isinstance(p, Tensor) else type(p).__name__
                raise TypeError(f"HistoricalAverage: parameters must be floating tensors, got {got} at place {i}")
            self.register_buffer(f"average_{i}", p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=self._parameters_of[0].device))

    def averages(self) -> list[Tensor]:
        """The average of each parameter; before the first ``update`` its value when this object was made."""
        return [self.get_buffer(f"average_{i}") for i in range(len(self._parameters_of))]

    def penalty(self) -> Tensor:
        """The squared distance of all parameters from their averages, a 0-d tensor, twice differentiable everywhere."""
        # Not by norms, which have no second derivative where a parameter is at its average.
        now, before = (torch.cat([t.flatten() for t in ts]) for ts in (_wide(self._parameters_of), self.averages()))
        return F.mse_loss(now, before, reduction="sum")

    @torch.no_grad()
    def update(self) -> None:
        """Count the parameters as they are now as one more step."""
        self.steps += 1
        averages = self.averages()
        gaps = torch._foreach_sub(_wide(self._parameters_of), averages)
        torch._foreach_mul_(gaps, 1.0 / self.steps.double())
        torch._foreach_add_(averages, gaps)


def _wide(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [p.to(torch.promote_types(p.dtype, torch.float32)) for p in parameters]
