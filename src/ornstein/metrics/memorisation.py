"""How near generated samples are to those that were trained on.

A sample counts as memorised when its nearest training sample is no farther than the 1st
percentile of what *held-out* data show, so unseen data score 1 % by construction, and copies of
training data 100 %. Distances are between the samples themselves, not their features.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ornstein.errors import ConfigError
from ornstein.metrics.estimate import fraction
from ornstein.scores import Estimate

_BLOCK = 1 << 24  # elements of the largest temporary: 64 MiB in float32
_QUERIES = 2048  # held-out samples that set the threshold


def nearest_distances(
    queries: np.ndarray, reference: np.ndarray, exclude: np.ndarray | None = None
) -> Tensor:
    """Distance of each query to its nearest reference sample, float64 [N].

    queries [N, *shape], reference [M, *shape], any number type. The distance is the root of the
    mean over a sample's values of the squared difference, in the units of the data: a distance
    of 3 on 8-bit images is three grey levels in a typical pixel. `exclude` [N] gives for each
    query one reference sample that does not count (itself, when it is one of them).

    The nearest is sought in float32 by |q|² + |r|² - 2 q·r, in blocks, and its distance is then
    taken from the difference in float64: exactly 0 for a copy.
    """
    if queries.shape[1:] != reference.shape[1:]:
        raise ConfigError(
            f"samples of shape {queries.shape[1:]} cannot be compared with samples of shape "
            f"{reference.shape[1:]}"
        )
    if len(reference) < (1 if exclude is None else 2):
        raise ConfigError("the nearest sample of an empty set does not exist")
    if len(queries) == 0:
        return torch.empty(0, dtype=torch.float64)
    width = max(1, math.prod(queries.shape[1:]))
    # Both are measured from the queries' mean: |q|² and |r|² stay small, and so do their errors.
    centre = queries.reshape(len(queries), -1).mean(0, dtype=np.float64).astype(np.float32)
    q = _rows(queries, slice(None)) - torch.from_numpy(centre)
    own = None if exclude is None else torch.from_numpy(np.array(exclude, dtype=np.int64))
    best = torch.full((len(q),), math.inf)
    nearest = torch.zeros(len(q), dtype=torch.int64)
    rows = max(1, min(8192, _BLOCK // width))
    block = max(1, _BLOCK // rows)
    for start in range(0, len(reference), rows):
        r = _rows(reference, slice(start, start + rows)) - torch.from_numpy(centre)
        square = r.square().sum(1)
        for first in range(0, len(q), block):
            part = slice(first, first + block)
            partial = torch.addmm(square, q[part], r.T, alpha=-2)  # |r|² - 2 q·r, [queries, rows]
            if own is not None:
                column = own[part] - start
                inside = ((column >= 0) & (column < len(r))).nonzero().squeeze(1)
                partial[inside, column[inside]] = math.inf
            low, where = partial.min(1)
            nearer = low < best[part]
            best[part] = torch.where(nearer, low, best[part])
            nearest[part] = torch.where(nearer, where + start, nearest[part])
    found = torch.empty(len(q), dtype=torch.float64)
    block = max(1, _BLOCK // (4 * width))
    for first in range(0, len(q), block):
        part = slice(first, first + block)
        there = reference[nearest[part].numpy()].astype(np.float64)
        difference = torch.from_numpy(queries[part].astype(np.float64) - there)
        found[part] = difference.reshape(len(difference), -1).square().mean(1).sqrt()
    return found


def memorisation_threshold(train: np.ndarray, held_out: np.ndarray) -> float:
    """The 1st percentile of the distances of held-out samples to their nearest training sample.

    Of n distances it is the ⌈n/100⌉-th smallest: 1 % of the held-out samples are no farther
    (one of them if there are fewer than a hundred). Without held-out data, each training sample
    is compared with all the others. At most 2,048 evenly spaced samples are asked. Units and
    shapes are those of `nearest_distances`.
    """
    asked = held_out if len(held_out) else train
    chosen = np.arange(len(asked))
    if len(asked) > _QUERIES:
        chosen = np.linspace(0, len(asked) - 1, _QUERIES).round().astype(np.int64)
    distances = nearest_distances(asked[chosen], train, None if len(held_out) else chosen)
    rank = -(-len(distances) // 100)
    return float(distances.kthvalue(rank).values)


def memorisation(generated: np.ndarray, train: np.ndarray, threshold: float) -> Estimate:
    """The share of generated samples that are as good as copies of training samples.

    Counted are those whose nearest training sample is no farther than the threshold, which
    `memorisation_threshold` gives. Arrays are [N, *shape] in the same units.
    """
    if len(generated) == 0:
        raise ConfigError("memorisation of no samples is not defined; generate at least one")
    return fraction(nearest_distances(generated, train) <= threshold)


def _rows(x: np.ndarray, part: slice) -> Tensor:
    rows = np.array(x[part], dtype=np.float32)  # a copy: memory-mapped arrays are read-only
    return torch.from_numpy(rows.reshape(len(rows), -1))
