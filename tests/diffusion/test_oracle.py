"""Oracles against quadrature, autograd, linear algebra and torch.distributions."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from ornstein.diffusion.levels import level_at
from ornstein.diffusion.oracle import Finite, Mixture, gaussian
from ornstein.diffusion.process import VE, VP, Straight
from ornstein.noise import Noise
from tests.helpers import COVARIANCE, MEAN, PROCESSES, f64, gaussian_data, two_dim_mixture

LEVELS = [level_at(p, t) for p in (VP(), VE(), Straight()) for t in (0.1, 0.5, 0.97)]
levels = pytest.mark.parametrize("level", LEVELS, ids=lambda k: f"{k.alpha:.2g},{k.sigma:.2g}")


def points(n, dim, seed=0, scale=2.0):
    return scale * Noise.of(seed, "points", n).normal(0, (dim,), torch.float64)


@levels
def test_one_dimensional_mixture_by_quadrature(level):
    """p_t(x) = ∫ p(x0) N(x; α x0, σ²) dx0 and E[x0|x], by the trapezoid rule on 60,000 points."""
    weights, means, stds = f64([0.2, 0.5, 0.3]), f64([-2.0, 0.3, 1.5]), f64([0.3, 0.8, 0.1])
    oracle = Mixture(5 * weights, means.view(3, 1), (stds**2).view(3, 1, 1))
    x0 = torch.linspace(-8, 8, 60_001, dtype=torch.float64)

    def normal(y, mean, std):
        return torch.exp(-0.5 * ((y - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))

    prior = (weights * normal(x0.unsqueeze(1), means, stds)).sum(1)
    x = level.alpha * f64([-2.4, -1.0, 0.1, 1.4, 3.0]) + level.sigma * f64([1, -2, 0.2, 0, -1])
    joint = prior * normal(x.unsqueeze(1), level.alpha * x0, level.sigma)
    density = torch.trapezoid(joint, x0)
    mean = torch.trapezoid(joint * x0, x0) / density
    torch.testing.assert_close(
        oracle.log_prob(x.view(-1, 1), level), density.log(), rtol=1e-7, atol=1e-7
    )
    ours = oracle(x.view(-1, 1), level).x0.flatten()
    torch.testing.assert_close(ours, mean, rtol=1e-7, atol=1e-7)


ORACLES = {
    "gaussian": gaussian_data(),
    "mixture": two_dim_mixture(),
    "finite": Finite(points(7, 4)),
}


@levels
@pytest.mark.parametrize("name", ORACLES)
def test_score_is_the_gradient_of_log_density(name, level):
    """−E[ε|x]/σ = ∇ log p_t(x), and Tweedie: E[x0|x] = (x + σ² ∇ log p_t)/α."""
    oracle = ORACLES[name]
    x = points(5, {"gaussian": 3, "mixture": 2, "finite": 4}[name])
    x = (level.alpha * x + level.sigma * x.flip(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(oracle.log_prob(x, level).sum(), x)
    prediction = oracle(x.detach(), level)
    torch.testing.assert_close(prediction.score, gradient, rtol=1e-8, atol=1e-8)
    tweedie = (x.detach() + level.sigma**2 * gradient) / level.alpha
    torch.testing.assert_close(prediction.x0, tweedie, rtol=1e-7, atol=1e-7)


@levels
def test_gaussian_is_linear_regression(level):
    """E[x0|x] = m + α C (α² C + σ² I)⁻¹ (x − α m), by a linear solve; and log N(x; αm, ·)."""
    x = level.alpha * points(6, 3) + level.sigma * points(6, 3, seed=1)
    covariance = level.alpha**2 * COVARIANCE + level.sigma**2 * torch.eye(3).double()
    gain = level.alpha * torch.linalg.solve(covariance, COVARIANCE).T
    expected = MEAN + (x - level.alpha * MEAN) @ gain.T
    oracle = gaussian_data()
    torch.testing.assert_close(oracle(x, level).x0, expected, rtol=1e-9, atol=1e-9)
    density = MultivariateNormal(level.alpha * MEAN, covariance)
    torch.testing.assert_close(oracle.log_prob(x, level), density.log_prob(x))


@levels
def test_mixture_density_is_torchs(level):
    oracle = two_dim_mixture()
    covariances = level.alpha**2 * oracle.covariances + level.sigma**2 * torch.eye(2).double()
    law = MixtureSameFamily(
        Categorical(f64([0.5, 0.3, 0.2])),
        MultivariateNormal(level.alpha * oracle.means, covariances),
    )
    x = points(6, 2)
    torch.testing.assert_close(oracle.log_prob(x, level), law.log_prob(x))


@levels
def test_a_finite_data_set_is_a_mixture_without_width(level):
    data = points(5, 3)
    finite, mixture = Finite(data), Mixture(torch.ones(5), data, torch.zeros(5, 3, 3))
    x = level.alpha * points(8, 3, seed=2) + level.sigma * points(8, 3, seed=3)
    torch.testing.assert_close(finite(x, level).x0, mixture(x, level).x0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(finite.log_prob(x, level), mixture.log_prob(x, level))
    distances = torch.cdist(x, level.alpha * data) ** 2
    direct = torch.softmax(-distances / (2 * level.sigma**2), dim=1) @ data
    torch.testing.assert_close(finite(x, level).x0, direct, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ORACLES)
def test_per_sample_levels_and_image_shapes(name):
    """Level [B] = one at a time; x [B, C, H, W] = x [B, D]; x = α x̂0 + σ ε̂ throughout."""
    oracle = {**ORACLES, "mixture": gaussian(points(1, 4)[0], torch.eye(4))}[name]
    dim = {"gaussian": 3, "mixture": 4, "finite": 4}[name]
    process, t = VP(), f64([0.05, 0.3, 0.8, 1.0])
    x, level = points(4, dim), level_at(process, t)
    together = oracle(x, level)
    for b in range(4):
        one = level_at(process, t[b].item())
        torch.testing.assert_close(together.x0[b : b + 1], oracle(x[b : b + 1], one).x0)
        torch.testing.assert_close(
            oracle.log_prob(x, level)[b : b + 1], oracle.log_prob(x[b : b + 1], one)
        )
    torch.testing.assert_close(together.at(level), x)
    if dim == 4:
        image = oracle(x.view(4, 1, 2, 2), level)
        assert torch.equal(image.x0, together.x0.view(4, 1, 2, 2))
        assert torch.equal(image.eps, together.eps.view(4, 1, 2, 2))
    single = oracle(x.float(), level)
    assert single.x0.dtype == single.eps.dtype == torch.float32
    torch.testing.assert_close(single.x0.double(), together.x0, rtol=1e-5, atol=1e-5)


def test_far_from_all_data_nothing_overflows():
    """At 1000 σ from every point the nearest point wins, in every oracle."""
    level = level_at(VE(), 0.1)
    data = f64([[-1.0, 0.0], [1.0, 0.5]])
    x = f64([[1000 * level.sigma + 5, 0.2], [-40.0, 3.0]])
    for oracle in (Finite(data), Mixture(torch.ones(2), data, 1e-9 * torch.eye(2).expand(2, 2, 2))):
        torch.testing.assert_close(oracle(x, level).x0, data.flip(0), rtol=1e-3, atol=1e-3)
        assert oracle.log_prob(x, level).isfinite().all()


def test_clean_samples_have_the_law():
    """100,000 samples: moments of a tilted Gaussian, weights of a mixture, within 5 σ."""
    n = 100_000
    x = gaussian_data().sample(Noise.of(0, "data", n))
    spread = torch.sqrt(COVARIANCE.diagonal() / n)
    assert ((x.mean(0) - MEAN).abs() < 5 * spread).all()
    error = (COVARIANCE**2 + COVARIANCE.diagonal().outer(COVARIANCE.diagonal())) / n
    assert ((torch.cov(x.T) - COVARIANCE).abs() < 5 * error.sqrt()).all()
    mixture = two_dim_mixture()
    x = mixture.sample(Noise.of(1, "data", n))
    first = (x[:, 0] < -0.4).double().mean()
    expected = sum(
        w * torch.special.ndtr((-0.4 - m[0]) / c[0, 0].sqrt())
        for w, m, c in zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
    )
    assert abs(first - expected) < 5 * math.sqrt(0.25 / n)


def test_data_on_a_line_stay_on_the_line():
    """A covariance of rank one: E[x0|x] lies on m + c d for every x."""
    direction = f64([0.6, 0.8])
    oracle = gaussian(f64([1.0, -1.0]), direction.outer(direction))
    for process in PROCESSES.values():
        x0 = oracle(points(9, 2), level_at(process, 0.5)).x0 - f64([1.0, -1.0])
        assert (x0 @ f64([-0.8, 0.6])).abs().max() < 1e-12
