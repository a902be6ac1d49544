"""The largest distance between two training samples: what NCSNv2 takes for its largest noise.

Noise of that size leads from any sample to any other (Y. Song, S. Ermon 2020, arXiv:2006.09011,
technique 1). With r_i the distance of sample i from the mean,

    ‖x_i − x_j‖ ≤ r_i + r_j

so that, once some two are known to be far apart, all pairs are out of the question whose samples
are too near to the mean: of CIFAR-10's images almost all.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ornstein.data.arrays import rows
from ornstein.data.info import Dataset

WORK = 2e11
"""Products of values, at most, that pairs are compared by: some 15 seconds of one core, enough for
10,000 images of 3×32×32 where no pair is out of the question."""

_VALUES = 1 << 28  # of samples that are held in memory
_BLOCK = 1 << 21  # values of a block of samples, or distances in a table


class Farthest(NamedTuple):
    """distance: Euclidean, in the values that the data is stored in. looked: of how many samples.
    exact: whether no two of these are farther apart; else it is a lower bound."""

    distance: float
    looked: int
    exact: bool


def farthest(dataset: Dataset) -> Farthest:
    """The largest distance between two samples of the training split.

    Of all of them, but of `Dataset.most` random ones where they are decoded as they are asked for.
    """
    x, ids, width = dataset.x, dataset.some().train, math.prod(dataset.info.shape)
    looked = len(ids)
    if looked < 2:
        return Farthest(0.0, looked, True)
    if dataset.most is not None and looked * width <= _VALUES:  # decode them once
        x, ids = x[ids], np.arange(looked)
    mean = sum(part.sum(axis=0, dtype=np.float64) for _, part in rows(x, ids)) / looked
    centre = torch.from_numpy(np.asarray(mean)).float()

    def centred(some: np.ndarray) -> Tensor:
        return (torch.from_numpy(some).float() - centre).flatten(1)

    def from_point(point: Tensor) -> Tensor:
        return torch.cat([(centred(part) - point).norm(dim=1) for _, part in rows(x, ids)])

    radius = from_point(torch.zeros(width))
    best, at = 0.0, int(radius.argmax())
    for _ in range(2):  # from the sample farthest from the mean to the one farthest from that ...
        away = from_point(centred(x[ids[[at]]])[0])
        best, at = max(best, float(away.max())), int(away.argmax())

    radius, order = radius.sort(descending=True)
    left = int((radius + radius[0] > best).sum())
    held = min(left, max(2, _VALUES // width))
    native = x[ids[order[:held].numpy()]]
    step = max(1, min(_BLOCK // width, math.isqrt(_BLOCK)))
    blocks = [slice(start, start + step) for start in range(0, held, step)]
    work, exact = 0.0, held == left
    for first in blocks:
        a = centred(native[first])
        for second in blocks[blocks.index(first) :]:
            if radius[first.start] + radius[second.start] <= best:
                break  # those that follow are nearer still
            b = centred(native[second])
            work += len(a) * len(b) * width
            if work > WORK:
                return Farthest(best, looked, False)
            # ‖a − b‖² = ‖a‖² + ‖b‖² − 2 a·b, without loss where a and b are far apart
            square = torch.addmm(b.square().sum(1), a, b.T, alpha=-2) + a.square().sum(1)[:, None]
            best = max(best, math.sqrt(max(0.0, float(square.max()))))
    return Farthest(best, looked, exact)
