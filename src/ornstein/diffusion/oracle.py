"""Exact denoisers: what a perfect network would say, for data whose law is known.

For x0 ~ Σ_k w_k N(m_k, C_k) and x = α x0 + σ ε, everything is closed form:

    p_t(x)  = Σ_k w_k N(x; α m_k, α² C_k + σ² I)
    E[x0|x] = Σ_k r_k(x) [m_k + α C_k (α² C_k + σ² I)⁻¹ (x − α m_k)],   r_k(x) = p(k | x)

They are `Denoise` like any trained network, so every sampler, likelihood and guidance rule can be
held against the truth.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ornstein.diffusion.levels import Level
from ornstein.diffusion.prediction import Prediction
from ornstein.noise import Noise


class Mixture:
    """The exact denoiser of a Gaussian mixture with full covariances.

    weights [K] (any positive scale), means [K, D], covariances [K, D, D] (positive semi-definite).
    Calls take x [B, *] with D elements per sample, and any level.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        self.weights = weights.double() / weights.double().sum()
        self.means, self.covariances = means.double(), covariances.double()
        variances, self._axes = torch.linalg.eigh(self.covariances)  # [K, D], [K, D, D]
        self._variances = variances.clamp(min=0)

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """E[x0 | x] and E[ε | x], the least-squares optimum of every target."""
        alpha, sigma = _column(level.alpha), _column(level.sigma)
        coordinates, marginal = self._coordinates(x, alpha, sigma)
        shrunk = alpha.unsqueeze(-1) * self._variances / marginal * coordinates
        x0_given_k = self.means + torch.einsum("kij,bkj->bki", self._axes, shrunk)
        log_joint = self.weights.log() + _log_normal(coordinates, marginal)
        x0 = torch.einsum("bk,bki->bi", torch.softmax(log_joint, dim=1), x0_given_k)
        return Prediction.from_x0(x, level, x0.to(x.dtype).view_as(x))

    def log_prob(self, x: Tensor, level: Level) -> Tensor:
        """log p_t(x) in nats, [B]."""
        coordinates, marginal = self._coordinates(x, _column(level.alpha), _column(level.sigma))
        return torch.logsumexp(self.weights.log() + _log_normal(coordinates, marginal), dim=1)

    def sample(self, noise: Noise) -> Tensor:
        """Clean samples, float64 [B, D]."""
        u = noise.uniform(0, (1,), torch.float64)
        k = torch.searchsorted(self.weights.cumsum(0), u).squeeze(1).clamp(max=len(self.means) - 1)
        z = noise.normal(1, self.means.shape[1:], torch.float64) * self._variances[k].sqrt()
        return self.means[k] + torch.einsum("bij,bj->bi", self._axes[k], z)

    def _coordinates(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """x − α m_k along the axes of each component [B, K, D], and the variances there."""
        flat = x.double().flatten(1).unsqueeze(1)
        centred = flat - alpha.unsqueeze(-1) * self.means
        coordinates = torch.einsum("kij,bki->bkj", self._axes, centred)
        return coordinates, (alpha**2).unsqueeze(-1) * self._variances + (sigma**2).unsqueeze(-1)


def gaussian(mean: Tensor, covariance: Tensor) -> Mixture:
    """The exact denoiser of N(mean [D], covariance [D, D])."""
    return Mixture(torch.ones(1), mean.unsqueeze(0), covariance.unsqueeze(0))


class Finite:
    """The exact denoiser of a finite data set: points [N, *], equally likely.

    What a network that has memorised its training set would say; its samples are the points.
    """

    def __init__(self, points: Tensor) -> None:
        self.points = points.double().flatten(1)

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """E[x0 | x] = Σ_n softmax_n(−|x − α x_n|²/2σ²) x_n."""
        alpha, sigma = _column(level.alpha), _column(level.sigma)
        flat = x.double().flatten(1)
        # |x − α x_n|² without its term |x|², which cancels in the softmax.
        energy = alpha**2 * self.points.square().sum(1) - 2 * alpha * (flat @ self.points.T)
        x0 = torch.softmax(-0.5 * energy / sigma**2, dim=1) @ self.points
        return Prediction.from_x0(x, level, x0.to(x.dtype).view_as(x))

    def log_prob(self, x: Tensor, level: Level) -> Tensor:
        """log p_t(x) in nats, [B], for σ > 0."""
        alpha, sigma = _column(level.alpha), _column(level.sigma)
        flat = x.double().flatten(1).unsqueeze(1)
        distance = (flat - alpha.unsqueeze(-1) * self.points).square().sum(-1)
        n, d = self.points.shape
        log_normal = -0.5 * distance / sigma**2 - d * torch.log(math.sqrt(2 * math.pi) * sigma)
        return torch.logsumexp(log_normal, dim=1) - math.log(n)


def _column(scalar: float | Tensor) -> Tensor:
    """A level's number as float64 [B or 1, 1]."""
    return torch.as_tensor(scalar, dtype=torch.float64).reshape(-1, 1)


def _log_normal(coordinates: Tensor, variances: Tensor) -> Tensor:
    terms = coordinates**2 / variances + torch.log(2 * math.pi * variances)
    return -0.5 * terms.sum(-1)
