"""Nearest codes, and the k-means that a codebook can start from.

    assign   k_j = argmin_i ‖x_j − e_i‖ = argmin_i (‖e_i‖² − 2 x_j·e_i)          a matrix product
    move     e_i = mean of the x_j with k_j = i                                  S. Lloyd 1982

Both lower Σ_j ‖x_j − e_{k_j}‖², so that they end where neither changes anything. The start decides
where that is: by D. Arthur, S. Vassilvitskii, "k-means++: the advantages of careful seeding",
SODA 2007, a vector becomes a code with a chance that is its squared distance to the codes so far.
Large codebooks take several codes at a time, as in B. Bahmani et al., "Scalable k-means++",
VLDB 2012, arXiv:1203.6402.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from ornstein.noise import Noise

BLOCK = {"cpu": 1 << 19, "cuda": 1 << 25}
"""Numbers of the largest block of the products [rows, K], by device: what fits its caches, or
keeps it busy."""
ROUNDS = 256  # of the start, at most
_GROUP = 32


def nearest(rows: Tensor, codebook: Tensor) -> Tensor:
    """argmin_i ‖rows_j − codebook_i‖, int64 [n], for rows [n, D] and a codebook [K, D].

    One matrix product for each block of rows, in memory that does not grow with n. A smallest
    value is found many times faster than its place is, so places are sought twice among few: which
    group of codes has it, and which code of the group.
    """
    codes = len(codebook)
    more = -codes % _GROUP  # codes that make the last group whole, infinitely far away
    norms = F.pad(codebook.square().sum(1), (0, more), value=float("inf"))
    columns = F.pad(codebook, (0, 0, 0, more)).T
    size = max(1, BLOCK.get(rows.device.type, BLOCK["cpu"]) // len(norms))
    block = rows.new_empty(min(size, len(rows)), len(norms))
    found = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        far = torch.addmm(norms, part, columns, alpha=-2, out=block[: len(part)])
        far = far.view(len(part), -1, _GROUP)
        group = far.amin(2).argmin(1)
        within = far[torch.arange(len(part), device=rows.device), group].argmin(1)
        torch.add(within, group, alpha=_GROUP, out=found[start : start + size])
    return found.clamp_(max=codes - 1)  # of rows that are not numbers, any code is the nearest


def added(rows: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The sum of the rows of each code, [size, D], and how many there are, int64 [size].

    rows: [n, D]. codes: int64 [n], in [0, size).
    """
    sums = rows.new_zeros(size, rows.shape[1]).index_add_(0, codes, rows)
    return sums, counted(codes, size)


def counted(codes: Tensor, size: int) -> Tensor:
    """How often each of 0 ... size-1 is among codes int64 [n]: int64 [size]. (`bincount` would
    have a GPU wait.)"""
    return torch.zeros(size, dtype=torch.int64, device=codes.device).scatter_add_(
        0, codes, torch.ones_like(codes)
    )


def kmeans(points: Tensor, size: int, noise: Noise, steps: int = 10) -> tuple[Tensor, Tensor]:
    """`size` codes for points [n, D] after `steps` steps of Lloyd's, and what falls to each.

    noise: of one sample. Returns the codes [size, D] and int64 [size]. Where there are fewer
    different points than codes, some codes are the same, and only one of these has points.
    """
    means = points[_seeds(points, size, noise)]
    counts = torch.zeros(size, dtype=torch.int64, device=points.device)
    for _ in range(steps):
        sums, counts = added(points, nearest(points, means), size)
        means = torch.where(counts[:, None] > 0, sums / counts[:, None], means)
    return means, counts


def _seeds(points: Tensor, size: int, noise: Noise) -> Tensor:
    """Which points are the first codes, int64 [size]."""
    rounds = min(size, ROUNDS)
    draws = noise.uniform(0, (size,), torch.float64)[0]
    weights = torch.ones(len(points), dtype=torch.float64, device=points.device)
    chosen = []
    for i in range(rounds):
        part = draws[size * i // rounds : size * (i + 1) // rounds]
        # A draw from each of equal parts of the sum of weights, so that a round spreads its codes.
        reached = weights.cumsum(0)
        marks = (torch.arange(len(part), device=points.device) + part) / len(part) * reached[-1]
        picked = torch.searchsorted(reached, marks, right=True).clamp_(max=len(points) - 1)
        codes = points[picked]
        gap = (points - codes[nearest(points, codes)]).square().sum(1).double()
        weights = torch.minimum(weights, gap) if i else gap
        chosen.append(picked)
    return torch.cat(chosen)
