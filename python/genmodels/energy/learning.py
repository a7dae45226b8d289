"""How a restricted Boltzmann machine's gradient is estimated: where its model samples come from, and what is added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

Method = Literal["cd", "pcd", "pt"]


@dataclass(frozen=True, kw_only=True)
class Learning:
    """Options of the gradient.

    The model's samples come from ``cd``: ``steps`` Gibbs steps from the data (Hinton 2002); ``pcd``: so many more steps
    of chains that go on from update to update (Tieleman 2008); ``pt``: the same with parallel tempering, of whose
    replicas only those at inverse temperature 1 are learnt from (Desjardins et al. 2010).
    """

    method: Method = "pcd"
    steps: int = 1
    """Gibbs steps for each update."""
    chains: int = 100
    """Persistent chains, of pcd and pt; under DDP shared out to the processes."""
    replicas: int = 8
    """Inverse temperatures of pt, at equal distances up to 1; each has ``chains`` chains."""
    beta_min: float = 0.3
    """The smallest of them."""
    centred: bool = True
    """Centred gradient (Melchior, Fischer and Wiskott 2016): the same whichever way a unit's 0 and 1 are named."""
    offset_rate: float = 0.01
    """How fast the centres follow the data's means."""
    sparsity: float = 0.0
    """Weight of the pull of every hidden unit's mean activity towards ``target`` (Hinton 2010, section 11)."""
    target: float = 0.1
    seed: int = 0
    """Of the chains and of the binarisation."""

    def __post_init__(self) -> None:
        if self.method not in ("cd", "pcd", "pt"):
            raise ValueError(f"Learning: method must be 'cd', 'pcd' or 'pt', got {self.method!r}")
        if self.steps < 1 or self.chains < 1:
            raise ValueError(f"Learning: steps and chains must be at least 1, got {self.steps} and {self.chains}")
        if self.replicas < 2:
            raise ValueError(f"Learning: replicas must be at least 2, got {self.replicas}")
        if not 0 < self.beta_min < 1:
            raise ValueError(f"Learning: beta_min must be in (0, 1), got {self.beta_min}")
        if not 0 < self.target < 1:
            raise ValueError(f"Learning: target must be in (0, 1), got {self.target}")

    @property
    def ladder(self) -> Tensor:
        """The inverse temperatures of a chain's replicas."""
        if self.method != "pt":
            return torch.ones(1)
        return torch.linspace(self.beta_min, 1.0, self.replicas)


def ascent(
    weight: nn.Parameter, biases: Sequence[nn.Parameter], lr: float, *, momentum: float = 0.0, weight_decay: float = 0.0
) -> torch.optim.SGD:
    """Plain gradient ascent, with decay of the weights and not of the biases."""
    decayed: dict[str, Any] = {"params": [weight], "weight_decay": weight_decay}
    return torch.optim.SGD([decayed, {"params": list(biases)}], lr, momentum)


def descent(parameters: Sequence[Tensor], steps: Sequence[Tensor], value: Tensor) -> Tensor:
    """A loss of the given value whose gradient by each parameter is minus its step."""
    ascent = torch.stack(
        [torch.dot(p.flatten(), step.flatten()) for p, step in zip(parameters, steps, strict=True)]
    ).sum()
    return value - (ascent - ascent.detach())


def process() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def mine(chains: int) -> tuple[slice, int, int]:
    """This process's share of the chains, its rank, and how many processes there are."""
    rank, world = process()
    if chains % world:
        raise ValueError(f"{chains} chains cannot be shared out to {world} processes; take a multiple")
    share = chains // world
    return slice(rank * share, (rank + 1) * share), rank, world


def everyone(part: Tensor, world: int) -> Tensor:
    """The parts of all processes, one after the other."""
    if world == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(world)]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def consecutive(x: Tensor) -> tuple[Tensor, int]:
    """Of a batch of which every process has every ``world``-th sample: consecutive samples, and the number of the first.

    So that a process draws for its samples what one process alone would have drawn for them.
    """
    rank, world = process()
    if world == 1:
        return x, 0
    whole = everyone(x, world).unflatten(0, (world, len(x))).transpose(0, 1).flatten(0, 1)
    return whole[rank * len(x) : (rank + 1) * len(x)], rank * len(x)


def averaged(x: Tensor) -> Tensor:
    """The mean over all processes."""
    _, world = process()
    if world > 1:
        dist.all_reduce(x)
    return x / world


def centre(
    by_weight: Tensor, by_visible: Tensor, by_hidden: Tensor, visible_mean: Tensor, hidden_mean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of a machine whose units are counted from their means, as steps of the ordinary parameters.

    With ``dW' = <(v - mu)(h - lambda)>_+ - <...>_-``: ``db' = db - dW' lambda`` and ``dc' = dc - mu dW'`` (Melchior,
    Fischer and Wiskott, "How to center deep Boltzmann machines", 2016, algorithm 1).
    """
    by_weight = by_weight.addr(visible_mean, by_hidden, alpha=-1).addr(by_visible, hidden_mean, alpha=-1)
    return by_weight, by_visible - by_weight @ hidden_mean, by_hidden - visible_mean @ by_weight


def swap(
    v: Tensor, field: Tensor, energy: Tensor, betas: Tensor, uniform: Tensor, odd: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Exchange states between neighbouring inverse temperatures, every second pair beginning with the ``odd``-th.

    The states of a pair are exchanged with probability ``min(1, p_r(v_s) p_s(v_r) / (p_r(v_r) p_s(v_s)))`` where
    ``log p_b(v) = -b energy(v) + sum_j log(1 + exp(b field_j))``: hidden units are summed over, so that more exchanges
    are accepted than of whole states.

    Args:
        v: (chains, replicas, V); field: (chains, replicas, H); energy: (chains, replicas), of v alone.
        uniform: (chains, replicas).

    Returns:
        v after the exchanges, and of the pairs (replicas - 1,): which were tried, and the share that was accepted.
    """

    def log_p(at: Tensor) -> Tensor:
        return torch.nn.functional.softplus(at[:, None] * field).sum(2) - at * energy

    own, up, down = log_p(betas), log_p(betas.roll(-1)), log_p(betas.roll(1))
    ratio = (up - own)[:, :-1] + (down - own)[:, 1:]
    tried = torch.arange(len(betas) - 1, device=v.device) % 2 == odd
    taken = tried & (uniform[:, :-1].log() < ratio)
    here = torch.arange(len(betas), device=v.device).expand(len(v), -1).clone()
    here[:, :-1] += taken.long()
    here[:, 1:] -= taken.long()
    return v.gather(1, here[:, :, None].expand_as(v)), tried, taken.to(v.dtype).mean(0)
