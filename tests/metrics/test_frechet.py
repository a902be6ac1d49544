"""The Fréchet distance against closed forms, an independent square root, and laws."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from ornstein.errors import ConfigError, NumericsError
from ornstein.metrics.frechet import Gaussian, fit, frechet, frechet_distance, moments
from ornstein.noise import Noise


def normal(count, *shape, seed=0, purpose="test"):
    return Noise.of(seed, purpose, count).normal(0, shape, torch.float64)


def spd(size, rank=None, seed=0):
    factor = normal(size, rank or size + 2, seed=seed, purpose="spd")
    return factor @ factor.T / factor.shape[1]


def rotation(size, seed=0):
    return torch.linalg.qr(normal(size, size, seed=seed, purpose="rotation"))[0]


def test_moments_are_numpys():
    x = normal(50, 7)
    mean, cov = moments(x.float())
    assert mean.dtype == cov.dtype == torch.float64
    expected = x.float().double().numpy()
    np.testing.assert_allclose(mean, expected.mean(0), atol=1e-14)
    np.testing.assert_allclose(cov, np.cov(expected.T), atol=1e-14)


def test_moments_of_one_sample_or_of_nan_are_refused():
    with pytest.raises(ConfigError, match="at least 2 samples"):
        moments(torch.zeros(1, 3))
    x = torch.zeros(5, 3)
    x[2, 1] = math.nan
    with pytest.raises(NumericsError, match="1 of 5 samples"):
        moments(x)


def test_distance_of_commuting_covariances():
    """With a common eigenbasis, d² = |m₁ - m₂|² + Σ (√λ₁ - √λ₂)²."""
    basis = rotation(6)
    first = torch.tensor([4.0, 1.0, 9.0, 0.25, 0.0, 2.0], dtype=torch.float64)
    second = torch.tensor([1.0, 1.0, 0.0, 4.0, 0.0, 3.0], dtype=torch.float64)
    m1, m2 = normal(6), normal(6, seed=1)
    got = frechet_distance(m1, basis * first @ basis.T, m2, basis * second @ basis.T)
    expected = (m1 - m2).square().sum() + (first.sqrt() - second.sqrt()).square().sum()
    assert got == pytest.approx(float(expected), rel=1e-12)


def test_distance_agrees_with_scipys_square_root():
    c1, c2 = spd(9), spd(9, seed=1)
    m1, m2 = normal(9), normal(9, seed=1)
    root = sqrtm(c1.numpy() @ c2.numpy()).real
    expected = float((m1 - m2).square().sum() + c1.trace() + c2.trace()) - 2 * np.trace(root)
    assert frechet_distance(m1, c1, m2, c2) == pytest.approx(expected, rel=1e-10)


def test_distance_of_singular_covariances():
    """For rank-one a aᵀ and b bᵀ, tr (…)^½ = |a·b|: the rest of the space adds nothing."""
    a, b, zero = normal(40), normal(40, seed=1), torch.zeros(40, dtype=torch.float64)
    got = frechet_distance(zero, torch.outer(a, a), zero, torch.outer(b, b))
    assert got == pytest.approx(float(a @ a + b @ b - 2 * (a @ b).abs()), rel=1e-12)
    nothing = torch.zeros(40, 40, dtype=torch.float64)
    assert frechet_distance(zero, torch.outer(a, a), zero, nothing) == pytest.approx(float(a @ a))
    assert frechet_distance(zero, nothing, zero, nothing) == 0


@pytest.mark.parametrize("rank", [3, 12])
def test_distance_is_symmetric_zero_for_equals_and_unmoved_by_rotation(rank):
    c1, c2, m1, m2 = spd(12, rank), spd(12, rank, seed=1), normal(12), normal(12, seed=1)
    there = frechet_distance(m1, c1, m2, c2)
    assert there > 0
    assert frechet_distance(m2, c2, m1, c1) == pytest.approx(there, rel=1e-11)
    assert frechet_distance(m1, c1, m1, c1) == pytest.approx(0, abs=1e-12)
    r = rotation(12)
    turned = frechet_distance(r @ m1, r @ c1 @ r.T, r @ m2, r @ c2 @ r.T)
    assert turned == pytest.approx(there, rel=1e-10)


def test_a_sample_and_its_gaussian_give_the_distance_of_the_moments():
    x, y = normal(60, 5), normal(70, 5, seed=1) * 1.3
    expected = frechet_distance(*moments(x), *moments(y))
    assert frechet(x, fit(y)).value == pytest.approx(expected, rel=1e-12)
    mean, root = fit(y)
    torch.testing.assert_close(root @ root, moments(y)[1])
    torch.testing.assert_close(mean, y.mean(0))


@pytest.mark.parametrize(("count", "size"), [(40, 5), (8, 20)], ids=["full rank", "singular"])
def test_the_influence_is_the_derivative_of_the_distance(count, size, monkeypatch):
    """Against central differences of the distance of weighted moments, sample by sample."""
    x, reference = normal(count, size) + 0.3, fit(normal(400, size, seed=1))
    seen = []
    monkeypatch.setattr(
        "ornstein.metrics.frechet.estimate",
        lambda value, influence, least: seen.append(influence - influence.mean()),
    )
    frechet(x, reference)

    def distance(weight):
        weight = weight / weight.sum()
        mean = weight @ x
        centred = x - mean
        # Divided by N - 1 at equal weights, as the distance does.
        cov = (centred.T * weight) @ centred * (count / (count - 1))
        return frechet_distance(mean, cov, reference.mean, reference.root @ reference.root)

    step = 1e-5 / count
    for i in range(0, count, 3):
        change = torch.zeros(count, dtype=torch.float64)
        change[i] = step
        slope = (distance(1 / count + change) - distance(1 / count - change)) / (2 * step)
        assert float(seen[0][i]) == pytest.approx(slope, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("count", "size", "shift"), [(150, 4, 0.5), (200, 32, 0.0), (60, 64, 0.3)])
def test_intervals_cover_what_such_a_sample_scores_on_average(count, size, shift):
    """Nominal 95 %, from a known Gaussian, for samples fewer than features too."""
    scale = torch.arange(1, size + 1, dtype=torch.float64).rsqrt()
    reference = fit(normal(2000, size, purpose="reference") * scale)
    found = []
    for trial in range(120):
        x = normal(count, size, seed=trial, purpose="trial") * scale
        x[:, 0] += shift
        found.append(frechet(x, reference))
    values = np.array([f.value for f in found])
    covered = sum(f.low <= values.mean() <= f.high for f in found)
    assert covered >= 102  # of 120: fewer have probability 1e-5 at the nominal level
    width = np.mean([f.high - f.low for f in found])
    # Up to √2 too wide where samples and reference share a law.
    assert 0.8 < width / (2 * 1.96 * values.std()) < 1.6


def test_the_distance_is_at_least_zero_and_so_is_its_interval():
    x = normal(30, 4)
    found = frechet(x, fit(x))
    assert found.value == pytest.approx(0, abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high
    point = torch.ones(3, 4)  # no covariance at all
    nowhere = Gaussian(torch.zeros(4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64))
    assert frechet(point, nowhere).value == pytest.approx(4)
