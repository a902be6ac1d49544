"""Intervals: the weights' derivative, Wilson's closed form, and what is refused."""

import math

import pytest
import torch

from ornstein.errors import ConfigError, NumericsError
from ornstein.metrics.estimate import Z, estimate, fraction, rows
from ornstein.noise import Noise


def test_the_interval_of_a_mean_is_the_textbooks():
    x = Noise.of(0, "x", 50).normal(0, (), torch.float64)
    mean = float(x.mean())
    found = estimate(mean, x)
    reach = Z * float(x.std(correction=0)) / math.sqrt(50)
    assert (found.low, found.high) == pytest.approx((mean - reach, mean + reach))
    shifted = estimate(mean, x + 7)  # a constant in the influence says nothing
    assert (shifted.low, shifted.high) == pytest.approx((found.low, found.high))
    assert estimate(0.1, 100 * x, least=0, most=1).low == 0
    assert estimate(0.1, 100 * x, least=0, most=1).high == 1


def test_wilsons_interval_solves_its_equation():
    """Its ends are the p at which |share - p| = z √(p (1 - p) / N)."""
    for hits, count in ((0, 1000), (3, 20), (10, 10), (517, 1000)):
        found = fraction(torch.arange(count) < hits)
        assert found.value == hits / count
        for p in (found.low, found.high):
            error = Z * math.sqrt(max(0.0, p * (1 - p)) / count)
            assert abs(found.value - p) == pytest.approx(error, abs=1e-12)
    nothing = fraction(torch.zeros(1000, dtype=torch.bool))
    assert (nothing.value, nothing.low) == (0, 0)
    assert nothing.high == pytest.approx(0.00383, abs=1e-5)


def test_what_is_no_table_of_features_is_refused():
    with pytest.raises(ConfigError, match=r"at least 2 samples .* not \[1, 3\]"):
        rows(torch.zeros(1, 3))
    with pytest.raises(ConfigError, match=r"not \[4, 3, 2\]"):
        rows(torch.zeros(4, 3, 2))
    x = torch.zeros(5, 3)
    x[2, 1] = math.nan
    x[4] = math.inf
    with pytest.raises(NumericsError, match="2 of 5 samples"):
        rows(x)
    assert rows(torch.ones(2, 1, dtype=torch.float16)).dtype == torch.float64
