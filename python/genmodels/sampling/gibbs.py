"""Gibbs sampling of any discrete energy or user-supplied conditional."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import chain
from .colouring import adjacency, colour
from .noise import Noise
from .result import Samples

Conditional = Callable[[Tensor, Tensor, Noise], Tensor]

_STATES = 2**22
"""Numbers in the states whose energies are asked for at once."""


@torch.no_grad()
def gibbs(
    initial: Tensor,
    *,
    energy: Callable[[Tensor], Tensor] | None = None,
    conditional: Conditional | None = None,
    values: Sequence[float] | Tensor = (0, 1),
    graph: Tensor | None = None,
    blocks: Sequence[Tensor | Sequence[int]] | None = None,
    log_density: Callable[[Tensor], Tensor] | None = None,
    draws: int,
    burn_in: int = 0,
    thin: int = 1,
    key: Tensor | int | None = None,
    first: int = 0,
    progress: bool | None = None,
) -> Samples:
    """Gibbs sampling (Geman and Geman 1984): sweeps that draw each block of sites from its law given the others.

    Give one of:

    ``energy``: a function of states (n, sites) to energies (n,); the target is ``p(x) ~ exp(-energy(x))`` over the
    ``values`` of every site. Sites of one block are drawn at once, each from its own conditional, found from the
    energies of all its values: correct for sites that do not interact, which is what ``graph`` is for.

    ``conditional``: a function ``(x, sites, noise)`` that returns new values (chains, len(sites)) of the block
    ``sites`` drawn from its law given the rest of ``x``, with random numbers of ``noise`` (see :class:`Noise`). Any
    values, continuous ones too.

    Args:
        initial: (chains, sites), the start of every chain.
        values: what a site can be, for ``energy``.
        graph: which sites interact: adjacency matrix (sites, sites) or integer edges (edges, 2). Sweeps then go through
            the colours of :func:`colour` and not through single sites. With ``energy`` up to 256 pairs of
            sites of one colour are tried on the first chain's state, and an interaction among them is refused.
        blocks: the blocks of a sweep, in order, instead of single sites or colours; sites in none of them stay.
        log_density: what is reported as log-densities, (n, sites) to (n,); ``-energy`` if not given.
        draws, burn_in, thin: after ``burn_in`` sweeps every ``thin``-th state is kept until there are ``draws``.
        key: a key of ``gmkernels.random.key`` or a seed; drawn from torch's generator if None.
        first: logical index of the first chain, for chains run in several batches.
        progress: show a bar; if None, on a terminal and for long runs.

    Returns:
        :class:`Samples` with samples (chains, draws, sites).

    Raises:
        ValueError: shapes, values, blocks or a graph that make no sense, or energies that are not finite.
    """
    chain.check("gibbs", initial, draws, burn_in, thin)
    if initial.dim() != 2:
        raise ValueError(f"gibbs: initial must have shape (chains, sites), got {tuple(initial.shape)}")
    if (energy is None) == (conditional is None):
        raise ValueError("gibbs: give either energy or conditional")
    if graph is not None and blocks is not None:
        raise ValueError("gibbs: give graph or blocks, not both")
    sites, device = initial.shape[1], initial.device
    cut = _blocks(sites, graph, blocks, device)
    noise = Noise(key, first=first, device=device)
    if energy is not None:
        given = torch.as_tensor(values, device=device)
        allowed = given.to(initial.dtype)
        if not torch.equal(allowed.double(), given.double()):
            raise ValueError(f"gibbs: initial is {initial.dtype}, which cannot hold the values {given.tolist()}")
        if not bool(torch.isin(initial, allowed).all()):
            raise ValueError(f"gibbs: initial must hold only the values {allowed.tolist()}")
        if graph is not None:
            _check_graph(energy, initial[:1], allowed, adjacency(graph.to(device), sites), cut)
        conditional = _from_energy(energy, allowed)
        if log_density is None:
            log_density = lambda x: -energy(x)  # noqa: E731 (a name for it would say no more)
    assert conditional is not None
    draw, x = conditional, initial.clone()

    def advance(t: int) -> None:
        for block in cut:
            new = draw(x, block, noise)
            if tuple(new.shape) != (len(x), len(block)):
                raise ValueError(f"gibbs: conditional must return {(len(x), len(block))}, got {tuple(new.shape)}")
            x[:, block] = new.to(x.dtype)

    samples, densities = chain.collect(
        advance,
        lambda: x,
        None if log_density is None else lambda: log_density(x),
        label="gibbs",
        draws=draws,
        burn_in=burn_in,
        thin=thin,
        progress=progress,
    )
    return Samples(samples, densities, final=x)


def _blocks(
    sites: int, graph: Tensor | None, blocks: Sequence[Tensor | Sequence[int]] | None, device: torch.device
) -> list[Tensor]:
    if graph is not None:
        return [block.to(device) for block in colour(graph, sites)]
    if blocks is None:
        return list(torch.arange(sites, device=device).split(1))
    found = [torch.as_tensor(block, dtype=torch.int64, device=device) for block in blocks]
    named = torch.cat(found) if found else torch.empty(0, dtype=torch.int64)
    if any(block.dim() != 1 for block in found) or len(named) == 0 or len(named.unique()) != len(named):
        raise ValueError("gibbs: blocks must be lists of sites, each site in one of them at most")
    if int(named.min()) < 0 or int(named.max()) >= sites:
        raise ValueError(f"gibbs: blocks must name sites 0..{sites - 1}, got {int(named.min())}..{int(named.max())}")
    return found


def _energies(energy: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    found = energy(states)
    if tuple(found.shape) != (len(states),):
        raise ValueError(f"gibbs: energy must map {tuple(states.shape)} to {(len(states),)}, got {tuple(found.shape)}")
    return found.double()


def _from_energy(energy: Callable[[Tensor], Tensor], values: Tensor) -> Conditional:
    def conditional(x: Tensor, block: Tensor, noise: Noise) -> Tensor:
        logits = torch.empty(len(x), len(block), len(values), dtype=torch.float64, device=x.device)
        step = max(1, _STATES // (x.numel() * len(values)))
        for i in range(0, len(block), step):
            part = block[i : i + step]
            # (chains, sites of the part, values, sites): one site of each state replaced by one value.
            states = x[:, None, None, :].repeat(1, len(part), len(values), 1)
            states[:, torch.arange(len(part), device=x.device), :, part] = values
            logits[:, i : i + step] = -_energies(energy, states.flatten(0, 2)).view(len(x), len(part), -1)
        if bool(logits.isnan().any()) or bool((logits.amax(-1).isinf()).any()):
            raise ValueError(
                "gibbs: energy must be finite (+inf for states that cannot be), got NaN, -inf or only +inf"
            )
        return values[noise.categorical(logits)]

    return conditional


def _check_graph(
    energy: Callable[[Tensor], Tensor], x: Tensor, values: Tensor, edges: Tensor, blocks: list[Tensor]
) -> None:
    """Try up to 256 pairs of sites drawn at once: without an edge, their effects on the energy must add up."""
    pairs = torch.cat([torch.combinations(block) for block in blocks])
    pairs = pairs[torch.linspace(0, len(pairs) - 1, min(256, len(pairs)), device=x.device).long()]
    if not len(pairs) or len(values) < 2:
        return
    states = x.repeat(len(pairs) * 4, 1).view(len(pairs), 4, -1)
    rows = torch.arange(len(pairs), device=x.device)
    for corner in range(4):
        states[rows, corner, pairs[:, 0]] = values[corner % 2]
        states[rows, corner, pairs[:, 1]] = values[corner // 2]
    found = _energies(energy, states.flatten(0, 1)).view(-1, 4)
    gap = (found[:, 0] - found[:, 1] - found[:, 2] + found[:, 3]).abs()
    wrong = gap > 1e-4 * (1 + found.abs().amax(1))
    if bool(wrong.any()):
        a, b = pairs[int(wrong.nonzero()[0])].tolist()
        raise ValueError(
            f"gibbs: sites {a} and {b} interact in the energy but have no edge in the graph; drawing them at once would "
            "be wrong"
        )
