"""The interval about a metric, from what each sample contributes to it.

A metric θ is a function of the weights that N samples have in it, all 1/N at first. With

    φ_i = N ∂θ/∂w_i,  made to have mean 0                    the influence of sample i

θ moves by Σ φ_i/N when samples are drawn anew, so its variance is about Σ φ_i²/N², and the 95 %
interval is θ ± 1.96 √(Σ φ_i²)/N: the infinitesimal jackknife (L. Jaeckel 1972; B. Efron, "The
jackknife, the bootstrap and other resampling plans", 1982, ch. 6; A. Davison, D. Hinkley,
"Bootstrap methods and their application", 1997, §2.7). It is what the bootstrap tends to as the
resamples become many and small, without drawing any. Resampling whole would count some samples
twice, which biases distances, and widens their intervals two times where features are as many as
samples; and it takes hundreds of eigendecompositions where this takes one.

The interval is for what N samples score *on average*: how far the score would move if N others
were drawn from the same generator. The reference is not redrawn: it is what all are measured by.

A fraction of independent samples has the interval of E. Wilson ("Probable inference", 1927), which
is right at the ends too: none of 1,000 samples means at most 0.4 %, not exactly 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ornstein.errors import ConfigError, NumericsError
from ornstein.scores import Estimate

Z = 1.959963984540054
"""The 97.5 % point of the normal distribution."""


def rows(features: Tensor, least: int = 2) -> Tensor:
    """Features as a matrix [N, D] in float64.

    ConfigError for anything but a matrix of at least `least` rows, NumericsError for values that
    are not finite.
    """
    if features.dim() != 2 or len(features) < least:
        raise ConfigError(
            f"this metric needs at least {least} samples as rows of a matrix, "
            f"not {list(features.shape)}"
        )
    if not bool(torch.isfinite(features).all()):
        bad = int((~torch.isfinite(features)).any(1).sum())
        raise NumericsError(f"{bad} of {len(features)} samples have features that are not finite")
    return features.double()


def estimate(
    value: float, influence: Tensor, least: float = -math.inf, most: float = math.inf
) -> Estimate:
    """θ with its interval, from the influence [N] of each sample up to a common constant.

    least, most: the values that θ can have; the interval does not pass them.
    """
    centred = influence - influence.mean()
    reach = Z * float(centred.square().sum().sqrt()) / len(influence)
    return Estimate(value=value, low=max(least, value - reach), high=min(most, value + reach))


def fraction(hits: Tensor) -> Estimate:
    """The share of `hits` (bool [N]) that are true, with Wilson's interval."""
    count = len(hits)
    share = float(hits.double().mean())
    middle = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    reach = math.sqrt(share * (1 - share) / count + (Z / (2 * count)) ** 2)
    reach *= Z / (1 + Z * Z / count)
    # At 0 and 1 the ends are exact; rounding must not take the value out of its interval.
    low, high = min(share, max(0.0, middle - reach)), max(share, min(1.0, middle + reach))
    return Estimate(value=share, low=low, high=high)
