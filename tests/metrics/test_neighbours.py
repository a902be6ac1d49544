"""Precision, recall, density and coverage: point sets with known answers, loops, and limits."""

import math

import numpy as np
import pytest
import torch

from ornstein.errors import ConfigError, NumericsError
from ornstein.metrics import neighbours
from ornstein.metrics.neighbours import Manifold, manifold, radii
from ornstein.noise import Noise


def normal(count, *shape, seed=0, purpose="test"):
    return Noise.of(seed, purpose, count).normal(0, shape, torch.float64)


def values(features, reference, k=5):
    return [found.value for found in manifold(features, reference, k)]


def brute_force(x, y, k):
    """The definitions, pair by pair."""

    def radius(points, i):
        rest = sorted(math.dist(points[i], p) for j, p in enumerate(points) if j != i)
        return rest[k - 1]

    x, y = x.tolist(), y.tolist()
    of_x = [radius(x, i) for i in range(len(x))]
    of_y = [radius(y, j) for j in range(len(y))]
    inside = [[math.dist(a, b) <= of_y[j] for j, b in enumerate(y)] for a in x]
    around = [[math.dist(a, b) <= of_x[i] for b in y] for i, a in enumerate(x)]
    return [
        np.mean([any(row) for row in inside]),
        np.mean([any(column) for column in zip(*around, strict=True)]),
        np.sum(inside) / (k * len(x)),
        np.mean([any(column) for column in zip(*inside, strict=True)]),
    ]


@pytest.mark.parametrize(("size", "k"), [(1, 1), (3, 5), (12, 2)])
def test_they_are_what_they_are_defined_as(size, k, monkeypatch):
    x, y = normal(31, size) * 0.8 + 0.5, normal(23, size, seed=1)
    expected = brute_force(x, y, k)
    assert values(x, y, k) == pytest.approx(expected)
    monkeypatch.setattr(neighbours, "_BLOCK", 50)  # many small blocks
    assert values(x, y, k) == pytest.approx(expected)
    # Far from the origin the squares are large, and their differences small.
    assert values(x + 1e4, y + 1e4, k) == pytest.approx(expected)


def test_points_on_a_line():
    """Real points at 0, 1, 2, 3 and k = 1: balls of radius 1, closed."""
    y = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    x = torch.tensor([[-1.0], [4.5], [2.0]])
    # -1 is on the edge of the ball of 0; 4.5 in none; 2 in those of 1, 2 and 3. The balls of the
    # generated points have radii 3, 2.5 and 2.5: [-4, 2], [2, 7] and [-0.5, 4.5].
    precision, recall, density, coverage = values(x, y, 1)
    assert precision == pytest.approx(2 / 3)
    assert recall == 1
    assert density == pytest.approx((1 + 0 + 3) / 3)
    assert coverage == 1
    assert values(x[1:], y, 1)[1] == pytest.approx(1 / 2 + 1 / 4 + 1 / 4)


def test_identical_sets_and_copies():
    x = normal(60, 4)
    precision, recall, density, coverage = values(x, x, 5)
    assert (precision, recall, coverage) == (1, 1, 1)
    # A point lies in its own ball and in those of the points that it is a neighbour of: k on
    # average.
    assert density == pytest.approx((5 + 1) / 5)
    many = x[:8].repeat_interleave(9, 0)  # every radius is 0
    assert values(many, many, 5)[:2] == [1, 1]
    assert values(many + 1e-3, many, 5) == [0, 0, 0, 0]
    huge = 1e6 * (many / 3)
    assert values(huge, huge, 5)[:2] == [1, 1]


def test_copies_lie_in_balls_of_radius_zero_whatever_rounding_says():
    """Twenty points, seven times each: every sample lies in the seven balls of its copies."""
    y = (normal(20, 65) + 3).repeat(7, 1)
    x = y[:20].repeat(6, 1)[:119]  # another shape, hence another order of sums
    assert values(x, y, 5) == [1, 1, pytest.approx(7 / 5, rel=1e-12), 1]


def test_disjoint_supports_give_nothing():
    found = manifold(normal(40, 3) + 1000, normal(50, 3, seed=1))
    assert [f.value for f in found] == [0, 0, 0, 0]
    assert found.precision.high < 0.1  # of 40 samples, not certainly none
    assert found.precision.high > 0.05


def test_one_sample_of_all_is_precise_but_reaches_little():
    """All mass at one real point: precise and dense, with few balls held."""
    y = normal(200, 8)
    x = y[:1] + 1e-9 * normal(200, 8, seed=1)
    precision, recall, density, coverage = values(x, y)
    assert precision == 1
    assert recall == pytest.approx(1 / 200)
    assert density >= 0.2  # at least its own ball of k
    assert coverage == pytest.approx(density * 5 / 200)


@pytest.mark.parametrize(("count", "real", "k"), [(20, 20, 3), (15, 40, 5), (60, 12, 2)])
@pytest.mark.parametrize("size", [1, 6])
def test_one_law_has_density_one_and_the_coverage_of_random_ranks(count, real, k, size):
    """Naeem et al. 2020, §3.3: for N generated and M real samples of one law, whatever it is,

    E density = 1,    E coverage = 1 - (M-1)...(M-k) / ((M+N-1)...(M+N-k))
    """
    missed = math.prod((real - i) / (real + count - i) for i in range(1, k + 1))
    found = np.array(
        [
            values(normal(count, size, seed=s), normal(real, size, seed=s, purpose="real"), k)
            for s in range(250)
        ]
    )
    error = found.std(0) / math.sqrt(len(found))
    assert abs(found[:, 2].mean() - 1) < 4 * error[2]
    assert abs(found[:, 3].mean() - (1 - missed)) < 4 * error[3]
    assert error[3] < 0.01
    # Precision and recall are one number with the sides exchanged.
    if count == real:
        assert abs(found[:, 0].mean() - found[:, 1].mean()) < 4 * (error[0] + error[1])


def test_exchanging_the_sides_exchanges_precision_and_recall():
    x, y = normal(50, 5) * 0.7, normal(40, 5, seed=1)
    assert values(x, y)[:2] == values(y, x)[1::-1]


def test_radii_are_distances_to_the_kth_other_point():
    x = normal(30, 3)
    everything = torch.cdist(x, x).sort(1).values
    torch.testing.assert_close(radii(x, 4).sqrt(), everything[:, 4])


@pytest.mark.parametrize(("size", "shift"), [(2, 0.7), (8, 0.0), (8, 0.4)])
def test_intervals_cover_what_such_samples_score_on_average(size, shift):
    """Nominal 95 %, against a fixed reference."""
    y = normal(250, size, purpose="real")
    found = [manifold(normal(250, size, seed=s) + shift, y) for s in range(100)]
    for metric in Manifold._fields:
        estimates = [getattr(f, metric) for f in found]
        truth = np.mean([e.value for e in estimates])
        assert sum(e.low <= truth <= e.high for e in estimates) >= 87, metric
        assert all(0 <= e.low <= e.value <= e.high for e in estimates)


def test_the_influence_of_recall_and_coverage_is_what_one_sample_alone_reaches(monkeypatch):
    """Leaving out one generated sample loses as much coverage; recall too, at equal radii."""
    x, y = normal(20, 2) * 0.5, normal(30, 2, seed=1)
    seen = []
    monkeypatch.setattr(neighbours, "estimate", lambda v, influence, **_: seen.append(influence))
    manifold(x, y, 2)
    influences = list(seen)
    within_y = torch.cdist(x, y).square() <= radii(y, 2)
    within_x = torch.cdist(x, y).square() <= radii(x, 2)[:, None]
    for reaches, influence in ((within_x, influences[0]), (within_y, influences[2])):
        for i in range(20):
            left = torch.cat((reaches[:i], reaches[i + 1 :])).any(0)
            lost = reaches.any(0).double().mean() - left.double().mean()
            assert float(influence[i]) / 20 == pytest.approx(float(lost))
        assert influence.sum() > 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="at least 6 samples"):
        manifold(normal(5, 3), normal(50, 3))
    with pytest.raises(ConfigError, match="at least 6 samples"):
        manifold(normal(50, 3), normal(5, 3))
    with pytest.raises(ConfigError, match="2 features cannot be compared with 3"):
        manifold(normal(9, 2), normal(9, 3))
    with pytest.raises(ConfigError, match="k = 5"):
        manifold(normal(9, 2), normal(9, 2), 0)
    with pytest.raises(NumericsError, match="9 of 9"):
        manifold(normal(9, 2) / 0, normal(9, 2))
