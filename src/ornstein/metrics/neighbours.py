"""Whether samples lie where the data lie, and whether they reach all of it.

Around each sample stands the closed ball that reaches to its k-th nearest neighbour among its own
kind; the union of the balls stands for the support of a law (T. Kynkäänniemi et al., "Improved
precision and recall metric for assessing generative models", 2019, arXiv:1904.06991, eq. 1-3):

    precision   the share of generated samples in some ball of a real sample
    recall      the share of real samples in some ball of a generated sample

One stray real sample has a large ball, which makes precision too kind, and the balls of generated
samples have to be made anew for each model. M. Naeem et al., "Reliable fidelity and diversity
metrics for generative models", 2020, arXiv:2002.09797, eq. 4 and 5, count with real balls only:

    density     real balls that a generated sample lies in, on average, divided by k; about 1
    coverage    the share of real balls that hold a generated sample

Samples of the data's own law have density 1 on average and, with N generated and M real ones,
coverage 1 - (M-1)...(M-k) / ((M+N-1)...(M+N-k)): 0.97 for k = 5 and N = M, and much less where M
is larger. Therefore compare equal counts.

Distances are in float64, |x|² + |y|² - 2 x·y in blocks, about the reference's mean. Numbers that
agree to 12 digits of |x|² + |y|² count as equal, so that copies lie in every closed ball that
they should.

If generated samples change, precision and density move by what each of them contributes; recall
and coverage by the real samples, or balls, that one of them alone reaches, which is its influence.
(The change of its neighbours' radii is left out. Resampling the real samples instead, as if they
were reached independently, gives intervals that miss in 4 of 10 cases in the plane.) Where nothing
is reached, or everything by several, no sample has any influence, and the interval says nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ornstein.errors import ConfigError
from ornstein.metrics.estimate import estimate, fraction, rows
from ornstein.scores import Estimate

NEIGHBOURS = 5
_BLOCK = 1 << 22  # elements of the largest temporary: 32 MiB in float64
_SAME = 1e-12  # of |x|² + |y|²: squared distances this close are equal


class Manifold(NamedTuple):
    """The four; each in [0, 1] but `density`, which is 0 or more."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def manifold(features: Tensor, reference: Tensor, k: int = NEIGHBOURS) -> Manifold:
    """Precision, recall, density and coverage of generated features [N, D].

    The reference is [M, D]; N and M are larger than k. ConfigError for anything else,
    NumericsError for values that are not finite.
    """
    if k < 1:
        raise ConfigError(f"a neighbour is at least the first, not the {k}th; write k = 5, say")
    x, y = rows(features, k + 1), rows(reference, k + 1)
    if x.shape[1] != y.shape[1]:
        raise ConfigError(f"{x.shape[1]} features cannot be compared with {y.shape[1]}")
    centre = y.mean(0)
    x, y = x - centre, y - centre
    near_x, near_y = radii(x, k), radii(y, k)
    held = torch.empty(len(x), dtype=torch.float64)  # real balls that a generated sample lies in
    recall, coverage = _Union(len(x), len(y)), _Union(len(x), len(y))
    for part in _parts(len(x), len(y)):
        distance = _squares(x[part], y, 1 - _SAME)
        recall.add(part, (distance <= near_x[part].unsqueeze(1)).double())
        inside = (distance <= near_y).double()
        coverage.add(part, inside)
        held[part] = inside.sum(1)
    return Manifold(
        precision=fraction(held > 0),
        recall=recall.share(),
        density=estimate(float(held.mean()) / k, held / k, least=0.0),
        coverage=coverage.share(),
    )


class _Union:
    """How many of M real samples are reached by some of N generated ones."""

    def __init__(self, count: int, real: int) -> None:
        self.count = count
        self.times = torch.zeros(real, dtype=torch.float64)
        self.numbers = torch.zeros(real, dtype=torch.float64)  # the sum of who reaches it

    def add(self, part: slice, reaches: Tensor) -> None:
        """Count the generated samples `part`; reaches: [part, M], 0 or 1."""
        self.times += reaches.sum(0)
        self.numbers += torch.arange(part.start, part.stop, dtype=torch.float64) @ reaches

    def share(self) -> Estimate:
        """The share that is reached."""
        # Where one alone reaches it, the sum of the numbers is that one's.
        alone = torch.bincount(self.numbers[self.times == 1].long(), minlength=self.count)
        influence = alone.double() * (self.count / len(self.times))
        return estimate(float((self.times > 0).double().mean()), influence, least=0.0, most=1.0)


def radii(x: Tensor, k: int) -> Tensor:
    """The squared distance of each row of x [N, D] to its k-th nearest other row, [N]."""
    found = torch.empty(len(x), dtype=x.dtype)
    for part in _parts(len(x), len(x)):
        distance = _squares(x[part], x)
        distance.diagonal(part.start).fill_(math.inf)
        found[part] = distance.topk(k, largest=False).values[:, -1]
    return found


def _parts(count: int, width: int) -> list[slice]:
    height = max(1, _BLOCK // width)
    return [slice(i, min(i + height, count)) for i in range(0, count, height)]


def _squares(x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
    """scale (|x|² + |y|²) - 2 x·y for all pairs of rows, [N, M], 0 or more."""
    norms = scale * (x.square().sum(1, keepdim=True) + y.square().sum(1))
    return norms.addmm_(x, y.T, alpha=-2).clamp_min_(0)
