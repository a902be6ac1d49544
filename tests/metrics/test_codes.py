"""Active units, KL of units and codebook usage: closed forms and torch's own divergence."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ornstein.errors import ConfigError
from ornstein.metrics.codes import active, active_units, unit_kl, usage
from ornstein.noise import Noise


def test_a_unit_is_active_where_its_mean_varies():
    """±s has the variance s², whatever is added to it."""
    sign = torch.tensor([1.0, -1.0]).repeat(50).unsqueeze(1)
    spread = torch.tensor([0.0, 0.05, 0.0999, 0.1001, 1.0])
    means = sign * spread + torch.tensor([3.0, -2.0, 0.0, 0.0, 100.0])
    assert active(means).tolist() == [False, False, False, True, True]
    assert active_units(means) == 2
    assert active_units(means, least=2e-3) == 4
    for wrong in (means[:1], means[:, 0]):
        with pytest.raises(ConfigError, match="at least 2 samples"):
            active_units(wrong)


def test_divergence_of_each_unit():
    noise = Noise.of(0, "codes", 30)
    mean = noise.normal(0, (4,), torch.float64)
    std = noise.uniform(1, (4,), torch.float64) + 0.1
    mean[:, 3], std[:, 3] = 0, 1  # a unit that says nothing
    found = unit_kl(mean, std)
    expected = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert float(found[3]) == 0


def test_usage_of_a_codebook():
    even = torch.arange(6).repeat(5).view(2, 15)
    found = usage(even, 8)
    assert (found.entries, found.used, found.codes, found.share) == (8, 6, 30, 0.75)
    assert found.perplexity == pytest.approx(6)
    assert usage(torch.tensor([3, 3, 3]), 4).perplexity == 1
    found = usage(torch.tensor([0, 0, 0, 1]), 2)
    assert math.log(found.perplexity) == pytest.approx(2 * math.log(2) - 0.75 * math.log(3))
    for wrong in ([], [8], [-1]):
        with pytest.raises(ConfigError, match="whole numbers from 0 to 7"):
            usage(torch.tensor(wrong, dtype=torch.int64), 8)
