"""Inception Score: its two ends, a closed form, and a brute-force sum."""

import math

import pytest
import torch

from ornstein.errors import ConfigError, NumericsError
from ornstein.metrics.classes import entropy, inception_score
from ornstein.noise import Noise


def random_probabilities(count, classes, seed=0, sharp=2.0):
    logits = Noise.of(seed, "logits", count).normal(0, (classes,), torch.float64) * sharp
    return logits.softmax(1)


def test_the_two_ends():
    """K where each class is certain and as frequent, 1 where nothing is known of any sample."""
    certain = torch.eye(7, dtype=torch.float64).repeat(3, 1)
    found = inception_score(certain)
    assert (found.value, found.low, found.high) == pytest.approx((7, 7, 7))
    same = random_probabilities(1, 7).repeat(20, 1)
    assert inception_score(same).value == pytest.approx(1)
    assert inception_score(certain[:1].repeat(5, 1)).value == pytest.approx(1)  # one class only


def test_certain_but_unequal_classes_give_the_entropy_of_their_histogram():
    counts = torch.tensor([5, 1, 0, 2])
    p = torch.eye(4, dtype=torch.float64).repeat_interleave(counts, 0)
    expected = -sum(c / 8 * math.log(c / 8) for c in (5, 1, 2))
    assert entropy(counts) == pytest.approx(expected)
    assert inception_score(p).value == pytest.approx(math.exp(expected))
    assert entropy(torch.ones(9)) == pytest.approx(math.log(9))


def test_it_is_the_mean_divergence_from_the_mean():
    p = random_probabilities(40, 5)
    mean = p.mean(0)
    total = sum(float(q * (q / m).log()) for row in p for q, m in zip(row, mean, strict=True))
    assert inception_score(p).value == pytest.approx(math.exp(total / 40), rel=1e-12)
    assert inception_score(p.float()).value == pytest.approx(math.exp(total / 40), rel=1e-6)


def test_intervals_cover_what_such_a_sample_scores_on_average():
    found = [inception_score(random_probabilities(150, 6, seed)) for seed in range(120)]
    truth = sum(f.value for f in found) / len(found)
    assert sum(f.low <= truth <= f.high for f in found) >= 102
    assert all(1 <= f.low <= f.high <= 6 for f in found)


def test_what_is_no_probability_is_refused():
    for bad in (torch.ones(4, 3), torch.tensor([[1.5, -0.5]] * 3), torch.ones(1, 1)):
        with pytest.raises(ConfigError):
            inception_score(bad)
    with pytest.raises(NumericsError, match="2 of 2"):
        inception_score(torch.full((2, 2), math.nan))
