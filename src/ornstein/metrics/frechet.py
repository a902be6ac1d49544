"""Fréchet distance of two Gaussians, used on features of images.

D. Dowson, B. Landau, "The Fréchet distance between multivariate normal distributions", 1982;
M. Heusel et al., "GANs trained by a two time-scale update rule", 2017, arXiv:1706.08500, eq. 6:

    d² = |m₁ - m₂|² + tr C₁ + tr C₂ - 2 tr M^½,    M = C₂^½ C₁ C₂^½

The last term is the sum of the roots of the eigenvalues of a *symmetric* matrix, so nothing
complex can appear and singular covariances (fewer samples than features, constant features) are
no special case. It is a squared distance, in squared units of the features.

The estimate from N samples is biased upwards by about c / N: compare scores of equal N only.

Since d tr M^½ = ½ tr M^{-½} dM, a sample x of the first Gaussian has the influence

    φ(x) = 2 (m₁ - m₂)·(x - m₁) + (x - m₁)ᵀ (I - C₂^½ M^{-½} C₂^½) (x - m₁) + constant

with the pseudo-inverse where M is singular: resampling never leaves the span of the samples.
Where both laws are equal φ vanishes in the limit; what is left of it makes the interval up to √2
too wide there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ornstein.metrics.estimate import estimate, rows
from ornstein.scores import Estimate


class Gaussian(NamedTuple):
    """A fitted Gaussian: mean [D], and C^½ [D, D], the symmetric root of its covariance."""

    mean: Tensor
    root: Tensor


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D, D] (divided by N - 1) of features [N, D], in float64.

    ConfigError for fewer than two rows, NumericsError for values that are not finite.
    """
    x = rows(features)
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def fit(features: Tensor) -> Gaussian:
    """The Gaussian with the moments of features [N, D]. Raises: as `moments`."""
    mean, cov = moments(features)
    return Gaussian(mean, _root(cov))


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """The squared Fréchet distance of N(mean1, cov1) and N(mean2, cov2); 0 or more.

    Means are [D], covariances [D, D], symmetric and positive semi-definite, of any rank.
    """
    return _distance(mean1.double(), cov1.double(), Gaussian(mean2.double(), _root(cov2.double())))


def frechet(features: Tensor, reference: Gaussian) -> Estimate:
    """The squared Fréchet distance of generated features [N, D] to a fixed reference.

    Raises: as `moments`.
    """
    mean, cov = moments(features)
    middle = reference.root @ cov @ reference.root
    values, vectors = torch.linalg.eigh((middle + middle.T) / 2)
    values = _eigenvalues(values)
    inverse = torch.where(values > 0, values.clamp_min(torch.finfo(values.dtype).tiny).rsqrt(), 0)
    centred = rows(features) - mean
    along = centred @ (reference.root @ vectors)  # in which M is diagonal
    influence = centred.square().sum(1) - along.square() @ inverse
    influence *= len(centred) / (len(centred) - 1)  # as the covariance is divided
    influence += 2 * centred @ (mean - reference.mean)
    return estimate(_distance(mean, cov, reference, values), influence, least=0.0)


def _distance(
    mean: Tensor, cov: Tensor, reference: Gaussian, values: Tensor | None = None
) -> float:
    """d², given the eigenvalues of M if they are known; tr C₂ is the root's sum of squares."""
    if values is None:
        middle = reference.root @ cov @ reference.root
        values = _eigenvalues(torch.linalg.eigvalsh((middle + middle.T) / 2))
    traces = cov.trace() + reference.root.square().sum() - 2 * values.sqrt().sum()
    return max(0.0, float((mean - reference.mean).square().sum() + traces))


def _root(cov: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    root: Tensor = (vectors * _eigenvalues(values).sqrt()) @ vectors.T
    return root


def _eigenvalues(values: Tensor) -> Tensor:
    """Eigenvalues with those at the level of rounding set to 0.

    The root of an error of 1e-16 is one of 1e-8, and a singular matrix has many of them.
    """
    level = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    return torch.where(values > level, values, torch.zeros_like(values))
