"""Metrics against closed forms, an independent square root, and laws."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from ornstein.errors import ConfigError, NumericsError
from ornstein.metrics import (
    frechet_bootstrap,
    frechet_distance,
    memorisation,
    memorisation_threshold,
    moments,
    nearest_distances,
)
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


def test_bootstrap_covers_what_such_a_sample_scores_on_average():
    """Nominal 95 %; 40 trials from a known Gaussian, against the mean score of 600 more."""
    reference = normal(4000, 4, purpose="reference")
    mean, cov = moments(reference)
    shift = torch.tensor([0.5, 0.0, 0.0, 0.0], dtype=torch.float64)

    def draw(trial):
        return normal(150, 4, seed=trial, purpose="trial") + shift

    scores = [frechet_distance(*moments(draw(t)), mean, cov) for t in range(1000, 1600)]
    truth = sum(scores) / len(scores)
    assert truth > 0.25  # the population's distance; the rest is the bias of 150 samples
    intervals = [frechet_bootstrap(draw(t), reference, 50, seed=t) for t in range(40)]
    covered = sum(low <= truth <= high for low, high in intervals)
    assert covered >= 34  # 38 is expected; fewer than 34 has probability 1 %
    width = sum(high - low for low, high in intervals) / len(intervals)
    spread = float(np.subtract(*np.quantile(scores, [0.975, 0.025])))
    assert width == pytest.approx(spread, rel=0.2)


def test_bootstrap_is_a_function_of_its_seed_and_contains_the_score():
    x, reference = normal(80, 3), normal(90, 3, seed=1)
    first = frechet_bootstrap(x, reference, 50, seed=3)
    assert first == frechet_bootstrap(x, reference, 50, seed=3)
    assert first != frechet_bootstrap(x, reference, 50, seed=4)
    value = frechet_distance(*moments(x), *moments(reference))
    assert 0 <= first[0] <= value <= first[1]
    with pytest.raises(ConfigError, match="at least 40"):
        frechet_bootstrap(x, reference, 10)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_nearest_distances_are_the_brute_force_ones(shape, monkeypatch):
    queries, reference = normal(37, *shape).numpy(), normal(101, *shape, seed=1).numpy()
    difference = (queries[:, None] - reference[None]).reshape(37, 101, -1)
    everything = np.sqrt((difference**2).mean(-1))
    np.testing.assert_allclose(nearest_distances(queries, reference), everything.min(1))
    monkeypatch.setattr("ornstein.metrics._BLOCK", 64)  # many small blocks
    np.testing.assert_allclose(nearest_distances(queries, reference), everything.min(1))
    exclude = everything.argmin(1)
    everything[np.arange(37), exclude] = np.inf
    np.testing.assert_allclose(nearest_distances(queries, reference, exclude), everything.min(1))


def test_nearest_distance_of_a_copy_is_exactly_zero_and_units_are_the_datas():
    x = Noise.of(0, "bytes", 300).integers(0, 256, (1, 28, 28)).to(torch.uint8).numpy()
    x.setflags(write=False)  # as a memory-mapped file is
    assert (nearest_distances(x[:50], x) == 0).all()
    near = np.clip(x[:5].astype(np.int64) + np.where(x[:5] > 127, -3, 3), 0, 255)
    np.testing.assert_allclose(nearest_distances(near, x), 3.0)
    with pytest.raises(ConfigError, match="shape"):
        nearest_distances(x[:, :, :14], x)
    with pytest.raises(ConfigError, match="empty"):
        nearest_distances(x, x[:0])


@pytest.mark.parametrize("apart", [True, False], ids=["held-out", "leave-one-out"])
def test_memorisation_is_one_for_copies_and_a_hundredth_for_unseen_data(apart):
    x = normal(7000, 6).numpy()
    train, unseen = x[:2000], x[5000:]
    held_out = x[2000:4000] if apart else x[:0]
    threshold = memorisation_threshold(train, held_out)
    assert memorisation(train[::3], train, held_out) == (1.0, threshold)
    fraction, same = memorisation(unseen, train, held_out)
    assert same == threshold
    assert fraction == pytest.approx(0.01, abs=0.007)
    if apart:
        assert memorisation(held_out, train, held_out)[0] == 0.01  # by construction
    assert memorisation(unseen, train, held_out) == (fraction, threshold)
    assert memorisation(unseen, train, held_out, 0.0) == (0.0, 0.0)


def test_memorisation_where_training_data_repeat():
    """Then the threshold is 0, and a copy still counts."""
    x = np.repeat(np.eye(5), 3, axis=0)
    assert memorisation(x[:2], x, x[:0]) == (1.0, 0.0)
    assert memorisation(x[:2] + 1e-3, x, x[:0]) == (0.0, 0.0)
    with pytest.raises(ConfigError, match="at least one"):
        memorisation(x[:0], x, x[:0])
