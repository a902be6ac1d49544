"""NCSNv2's rules: how many noise levels, and how long the steps of annealed Langevin dynamics.

Levels σ_1 > ... > σ_L are a geometric sequence with the ratio γ = σ_{i−1}/σ_i. In D dimensions a
sample of N(0, σ² I) has a radius of almost exactly N(√D σ, σ²/2), and one of level i lies within
three standard deviations of the radii of level i − 1 with the probability

    Φ(√(2D) (γ − 1) + 3γ) − Φ(√(2D) (γ − 1) − 3γ) ≈ ½                          (notes eq 1.16)

which says how large γ may be. At each level T updates x ← x + α s + √(2α) z are made, with
α = ε σ_i²/σ_L². Were the data one point, x would begin level i with the variance γ² σ_i² (that of
the level before) and end it with s_T². With η = ε/σ_L²,

    s_T²/σ_i² = (1 − η)^(2T) (γ² − c) + c,   c = 2ε/(σ_L² − σ_L² (1 − η)²) = 2/(2 − η)
                                                                               (notes eq 1.17)

and ε is to make that 1 as nearly as it can. The largest level is the largest distance between two
training samples, see `data/distances.py`; the smallest is 0.01 for data in [0, 1].

Y. Song, S. Ermon 2020, "Improved techniques for training score-based generative models",
arXiv:2006.09011, propositions 1-3 and techniques 1-4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from ornstein.diffusion.process import NoisingProcess, log_snr
from ornstein.errors import ConfigError
from ornstein.lazy import torch

OVERLAP = 0.5
UPDATES = 5
"""T, the number of updates at each level that arXiv:2006.09011 uses most."""
SIGMA_MIN = 0.01
"""The smallest level, for data in [0, 1]."""
WIDEST = 2.0
"""The largest ratio of neighbours where eq 1.16 would allow more: below 18 dimensions radii vary
so much that it asks for little, and up to 4 for nothing."""


def overlapping(gamma: float, dimensions: int) -> float:
    """The left-hand side of eq 1.16: how much of a level lies where the one above it, γ times as
    wide, has its samples."""
    shift = math.sqrt(2 * dimensions) * (gamma - 1)
    return _phi(shift + 3 * gamma) - _phi(shift - 3 * gamma)


def ratio(dimensions: int, overlap: float = OVERLAP) -> float:
    """γ > 1 that solves eq 1.16 for D = `dimensions`: about 1/(1 − 3/√(2D)) for one half.

    Raises: ConfigError where there is none: in up to 4 dimensions three standard deviations
    reach down to a radius of 0, and levels that are the same overlap by 0.9973.
    """
    most = overlapping(1.0, dimensions)
    if not 0 < overlap < most:
        raise ConfigError(f"the overlap of noise levels must lie in (0, {most:.4f}), got {overlap}")
    if 2 * dimensions <= 9:
        raise ConfigError(
            f"in {dimensions} dimension{'s' * (dimensions > 1)} eq 1.16 sets no ratio of noise "
            "levels, as they always overlap; give the number of levels"
        )
    low, high = 1.0, 2.0
    while overlapping(high, dimensions) > overlap:
        low, high = high, 2 * high
    return _rising(lambda gamma: overlap - overlapping(gamma, dimensions), low, high)


def count(sigma_max: float, sigma_min: float, dimensions: int, overlap: float = OVERLAP) -> int:
    """L, the number of levels from σ_max to σ_min, ends included, whose ratio is nearest to that of
    eq 1.16 (but at most `WIDEST`)."""
    few = 2 * dimensions <= 9
    gamma = WIDEST if few else min(WIDEST, ratio(dimensions, overlap))
    return 1 + max(1, round(math.log(sigma_max / sigma_min) / math.log(gamma)))


class Rules(NamedTuple):
    """What NCSNv2 would choose: σ_1 and σ_L, the levels' number L and their ratio γ, the updates T
    at each, their ε, and s_T²/σ_i² with it."""

    sigma_max: float
    sigma_min: float
    levels: int
    gamma: float
    updates: int
    eps: float
    variance_ratio: float


def rules(farthest: float, dimensions: int) -> Rules:
    """The choices for data with this largest distance between two samples, as the recipe `ncsnv2`
    makes them. Raises: ConfigError where the distance is below `SIGMA_MIN`."""
    sigma_max = rounded(farthest)
    if sigma_max <= SIGMA_MIN:
        raise ConfigError(
            f"the training samples are at most {farthest:.3g} apart, less than the smallest noise "
            f"level, {SIGMA_MIN:g}"
        )
    levels = count(sigma_max, SIGMA_MIN, dimensions)
    gamma = (sigma_max / SIGMA_MIN) ** (1 / (levels - 1))
    eps = rounded(step_size(SIGMA_MIN, gamma, UPDATES))
    reached = variance_ratio(eps, SIGMA_MIN, gamma, UPDATES)
    return Rules(sigma_max, SIGMA_MIN, levels, gamma, UPDATES, eps, reached)


def rounded(value: float) -> float:
    """To the four digits that a recipe keeps of what is measured."""
    return float(f"{value:.4g}")


def levels_of(process: NoisingProcess, dimensions: int) -> int:
    """`count` from end to end of a process. Raises: ConfigError where it ends in pure noise."""
    ends = torch.tensor([1.0, process.smallest], dtype=torch.float64)
    high, low = torch.exp(-0.5 * log_snr(process, ends)).tolist()
    if math.isinf(high):
        raise ConfigError(
            "this process ends in pure noise (α = 0 at t = 1), from which no number of levels in "
            "finite ratios leads to data; write the number of steps"
        )
    return count(high, low, dimensions)


def variance_ratio(eps: float, sigma_min: float, gamma: float, updates: int) -> float:
    """s_T²/σ_i² of eq 1.17, the same at every level."""
    eta = eps / sigma_min**2
    kept = (1 - eta) ** (2 * updates)
    return kept * gamma**2 + (1 - kept) * 2 / (2 - eta)


def step_size(sigma_min: float, gamma: float, updates: int = UPDATES) -> float:
    """ε, for which s_T²/σ_i² of eq 1.17 is as near to 1 as it can be.

    The paper searches a grid. But with k = (1 − η)^(2T) the ratio is k γ² + (1 − k) 2/(2 − η), a
    mean of two numbers above 1: it never is 1, and nearest where it is smallest. There

        (1 − k)/(2 − η)² = T (1 − η)^(2T−1) (γ² − 2/(2 − η))

    The left side rises from 0 and, as long as it is positive, the right side falls to 0 at η = 1 or
    before: there is one such η, which bisection finds. (Beyond η = 1 updates overshoot.)
    """
    if not gamma > 1 or updates < 1:
        raise ConfigError(
            f"a step size needs a ratio of levels above 1 and at least 1 update at each, got "
            f"{gamma:g} and {updates}"
        )

    def slope(eta: float) -> float:
        left = (1 - (1 - eta) ** (2 * updates)) / (2 - eta) ** 2
        return left - updates * (1 - eta) ** (2 * updates - 1) * (gamma**2 - 2 / (2 - eta))

    return sigma_min**2 * _rising(slope, 0.0, 1.0)


def _phi(x: float) -> float:
    """The distribution function of N(0, 1)."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _rising(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function goes from below 0 to above it between two numbers, by bisection."""
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if function(middle) > 0 else (middle, high)
    return 0.5 * (low + high)
