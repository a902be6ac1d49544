"""Samples that are there more than once: exactly, or nearly.

Exact duplicates have the same values, as a model is given them. Near-duplicates are one picture
stored in several ways: encoded again, resized, lighter or darker. They are found like this:

    u   means over a grid of 16 × 16 cells in every channel, less their mean, divided by their norm
    ρ   = u·v, the correlation of two thumbnails:  ‖u − v‖² = 2 (1 − ρ)
    z   the first 64 principal components of u

Brightness and contrast, x → a x + b, leave u as it is; what an encoder or a resampler changes,
means over cells take out, and most of the rest lies beyond the first components. Colours count:
the three channels are parts of one vector. Two images i and j are near-duplicates if

    (1)   ρ_ij ≥ 0.95                                        they look alike
    (2)   ‖z_i − z_j‖ ≤ ⅓ ‖z_i − z_k‖ and ≤ ⅓ ‖z_j − z_l‖    and few things look like them

where k and l are the tenth nearest to i and to j.

No bound on ρ alone would do. Of MNIST's digits one in three has another at ρ ≥ 0.95 and the ones
reach 0.997, while a JPEG of quality 50 of a CIFAR-10 image may have 0.97 with its source. (2) asks
how near strangers are, right there: it is the test of D. Lowe, "Distinctive image features from
scale-invariant keypoints", 2004, section 7.1, with the tenth neighbour for the second, so that a
picture may be there several times. Where points are spread evenly over m dimensions, the k-th
neighbour's distance grows as k^(1/m), and the nearest one passes (2) by chance with probability
1 − (1 − 3⁻ᵐ)⁹ at most: one in 700 at m = 8, one in 10⁶ at m = 15.

What is mirrored, cut or moved by more than a part of a cell is not found, nor are pictures that
are there in more than 10 different ways.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ornstein.data.arrays import rows
from ornstein.noise import permutation

CELLS = 16
COMPONENTS = 64
CORRELATION = 0.95
OTHERS = 10
RATIO = 3.0
FLAT = 0.01
"""Thumbnails whose standard deviation is below this share of the range are all alike, and are
left out."""

MOST = 100_000
"""Of more samples, this many random ones are compared: the work grows as the square."""

_TABLE = 16 << 20  # distances that are in memory at a time

Groups = tuple[tuple[int, ...], ...]


class Duplicates(NamedTuple):
    """exact, near: groups of samples' numbers, rising; of equal samples only the first is in
    `near`. compared: how many samples were looked at for near-duplicates."""

    exact: Groups
    near: Groups
    compared: int


def duplicates(
    x: np.ndarray,
    limits: tuple[float, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Duplicates:
    """The duplicates among the samples x [N, *shape]; near ones if these are images [C, H, W].

    limits: the range of values; None: from the data. `progress(done, total)` is called as images
    are compared.
    """
    equal: dict[bytes, list[int]] = {}
    for start, part in rows(x):
        for i, row in enumerate(part, start):
            digest = hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=16).digest()
            equal.setdefault(digest, []).append(i)
    exact = tuple(tuple(group) for group in equal.values() if len(group) > 1)
    if x.ndim != 4:
        return Duplicates(exact, (), 0)
    firsts = np.array([group[0] for group in equal.values()])
    if len(firsts) > MOST:
        firsts = np.sort(firsts[permutation(0, "compared", 0, len(firsts))[:MOST].numpy()])
    low, high = limits or (float(x.min()), float(x.max()))
    pairs = _pairs(x, firsts, FLAT * (high - low), progress)
    return Duplicates(exact, _joined(pairs), len(firsts))


def leaked(found: Duplicates, held_out: np.ndarray) -> tuple[list[int], list[int]]:
    """The held-out samples that have an exact duplicate among those trained on, and those that
    have only a near one. held_out: bool [N]."""
    copies = {group[0]: group for group in found.exact}
    wide = [[i for first in group for i in copies.get(first, (first,))] for group in found.near]
    exact, near = (
        {i for group in groups if not held_out[list(group)].all() for i in group if held_out[i]}
        for groups in (found.exact, wide)
    )
    return sorted(exact), sorted(near - exact)


def thumbnails(x: np.ndarray) -> tuple[Tensor, Tensor]:
    """u, float32 [N, D] of length 1, and the standard deviation of each before, [N]."""
    cells = min(CELLS, x.shape[2]), min(CELLS, x.shape[3])
    u = adaptive_avg_pool2d(torch.from_numpy(x.astype(np.float32)), cells).flatten(1)
    u = u - u.mean(dim=1, keepdim=True)
    norm = u.norm(dim=1, keepdim=True)
    return u / norm.clamp_min(1e-12), norm.squeeze(1) / u.shape[1] ** 0.5


def _pairs(
    x: np.ndarray, ids: np.ndarray, flat: float, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[int, int]]:
    """The numbers, among `ids`, of samples that are near-duplicates of each other."""
    told = np.concatenate([(thumbnails(part)[1] > flat).numpy() for _, part in rows(x, ids)])
    ids = ids[told]
    if len(ids) < 2:
        return
    left, right = (ids[side] for side in _alone(_components(x, ids), progress))
    for start, part in rows(x, left):
        other = right[start : start + len(part)]
        rho = (thumbnails(part)[0] * thumbnails(x[other])[0]).sum(dim=1)
        for k in (rho >= CORRELATION).nonzero().flatten().tolist():
            yield int(left[start + k]), int(other[k])


def _components(x: np.ndarray, ids: np.ndarray) -> Tensor:
    """z, float32 [N, at most 64]."""
    parts = [thumbnails(part)[0] for _, part in rows(x, ids[:1])]
    width = parts[0].shape[1]
    total, square = torch.zeros(width), torch.zeros(width, width)
    for _, part in rows(x, ids):
        u = thumbnails(part)[0]
        total += u.sum(dim=0)
        square += u.T @ u
    mean = total / len(ids)
    axes = torch.linalg.eigh(square / len(ids) - mean.outer(mean)).eigenvectors[:, -COMPONENTS:]
    return torch.cat([(thumbnails(part)[0] - mean) @ axes for _, part in rows(x, ids)])


def _alone(z: Tensor, progress: Callable[[int, int], None] | None) -> tuple[np.ndarray, np.ndarray]:
    """The rows of z that fulfil (2), in pairs: int64 [M] and [M]."""
    total, half = len(z), z.square().sum(dim=1) / 2
    known = min(OTHERS, total - 1)
    nearest = torch.empty(total, known, dtype=torch.int64)
    apart = torch.empty(total, known)
    step = max(1, _TABLE // total)
    table = torch.empty(min(step, total), total)
    for start in range(0, total, step):
        block = slice(start, min(start + step, total))
        # ‖a − b‖²/2 = |a|²/2 − (a·b − |b|²/2)
        score = table[: block.stop - start]
        torch.addmm(half, z[block], z.T, beta=-1, out=score)
        score.diagonal(start).fill_(-torch.inf)
        best, nearest[block] = score.topk(known)
        square = 2 * (half[block, None] - best)
        apart[block] = square.clamp_min(1e-6).sqrt()  # rounding parts equal thumbnails
        if progress is not None:
            progress(block.stop, total)
    tenth = apart[:, -1] if known == OTHERS else torch.full((total,), torch.inf)
    few = RATIO * apart <= torch.minimum(tenth[:, None], tenth[nearest])
    return few.nonzero()[:, 0].numpy(), nearest[few].numpy()


def _joined(pairs: Iterable[tuple[int, int]]) -> Groups:
    """Groups of numbers of which each is in a pair with another of its group."""
    group_of: dict[int, set[int]] = {}
    for pair in pairs:
        joined = set[int]().union(*(group_of.get(i, {i}) for i in pair))
        group_of.update(dict.fromkeys(joined, joined))
    distinct = {id(group): group for group in group_of.values()}.values()
    return tuple(sorted(tuple(sorted(group)) for group in distinct))
