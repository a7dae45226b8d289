"""Sites that do not interact get one colour, and can be drawn at once."""

from __future__ import annotations

import torch
from torch import Tensor


def adjacency(graph: Tensor, sites: int) -> Tensor:
    """A graph as a symmetric bool matrix (sites, sites) without a diagonal.

    ``graph`` is such a matrix (of any dtype; non-zero is an edge) or a list of edges, integers (edges, 2).

    Raises:
        ValueError: another shape, an edge to a site that does not exist, or a matrix that is not symmetric.
    """
    if tuple(graph.shape) == (sites, sites) and (graph.dtype == torch.bool or sites != 2 or graph.is_floating_point()):
        matrix = graph != 0
        if not torch.equal(matrix, matrix.t()):
            raise ValueError("graph: an adjacency matrix must be symmetric")
    elif graph.dim() == 2 and graph.shape[1] == 2 and not graph.is_floating_point() and graph.dtype != torch.bool:
        if len(graph) and not (int(graph.min()) >= 0 and int(graph.max()) < sites):
            raise ValueError(f"graph: edges must join sites 0..{sites - 1}, got {int(graph.min())}..{int(graph.max())}")
        matrix = torch.zeros(sites, sites, dtype=torch.bool, device=graph.device)
        matrix[graph[:, 0], graph[:, 1]] = True
        matrix = matrix | matrix.t()
    else:
        raise ValueError(
            f"graph must be an adjacency matrix of shape ({sites}, {sites}) or integer edges of shape (edges, 2), "
            f"got {graph.dtype} of shape {tuple(graph.shape)}"
        )
    return matrix & ~torch.eye(sites, dtype=torch.bool, device=matrix.device)


def colour(graph: Tensor, sites: int | None = None) -> list[Tensor]:
    """Blocks of sites no two of which are neighbours, few and each in ascending order.

    Greedy colouring of the sites in order of falling degree (Welsh and Powell 1967): at most one colour more than the
    largest degree, and two for most bipartite graphs such as grids.

    Args:
        graph: adjacency matrix (sites, sites), or integer edges (edges, 2) together with ``sites``.

    Returns:
        int64 tensors that partition ``0 .. sites - 1``.
    """
    matrix = adjacency(graph, len(graph) if sites is None else sites).cpu()
    neighbours = [row.nonzero()[:, 0].tolist() for row in matrix]
    order = sorted(range(len(neighbours)), key=lambda i: -len(neighbours[i]))
    colours: dict[int, int] = {}
    for site in order:
        taken = {colours[other] for other in neighbours[site] if other in colours}
        colours[site] = next(c for c in range(len(taken) + 1) if c not in taken)
    blocks: list[list[int]] = [[] for _ in range(max(colours.values(), default=-1) + 1)]
    for site in range(len(neighbours)):
        blocks[colours[site]].append(site)
    return [torch.tensor(block, device=graph.device) for block in blocks]
