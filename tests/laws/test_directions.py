"""Forward and reverse KL divergence against closed forms."""

import math

import pytest
import torch
from torch import distributions

from ornstein.autoencoders.directions import Modes, covering, measured, seeking
from ornstein.noise import Noise


def test_of_a_gaussian_both_directions_find_it():
    law = Modes((1.0,), (0.7,), (1.8,))
    for fit in (covering(law), *seeking(law)):
        assert fit == pytest.approx((0.7, 1.8, 0.0, 0.0), abs=1e-7)
    assert len(seeking(law)) == 1


def test_divergences_of_two_gaussians_are_those_of_torch():
    law, other = Modes((1.0,), (0.7,), (1.8,)), distributions.Normal(-0.4, 0.6)
    fit, p = measured(law, -0.4, 0.6), distributions.Normal(0.7, 1.8)
    assert fit.forward == pytest.approx(distributions.kl_divergence(p, other).item(), rel=1e-6)
    assert fit.reverse == pytest.approx(distributions.kl_divergence(other, p).item(), rel=1e-6)


@pytest.mark.parametrize("weight", [0.5, 0.3])
def test_far_modes_are_covered_or_sought(weight):
    """KL(p ‖ q) tends to log s − H(π), and KL(q ‖ p) to −log π of the mode that is found."""
    law = Modes((weight, 1 - weight), (-20.0, 20.0), (1.0, 1.0))
    mean, entropy = 20 * (1 - 2 * weight), -sum(w * math.log(w) for w in law.weights)
    spread = math.sqrt(1 + 400 - mean**2)
    fit = covering(law)
    assert fit[:2] == pytest.approx((mean, spread))
    assert fit.forward == pytest.approx(math.log(spread) - entropy, abs=1e-9)
    modes = seeking(law)[:2]
    for found, (share, place) in zip(
        modes, sorted(zip(law.weights, law.means, strict=True), reverse=True), strict=True
    ):
        assert abs(found.mean) == pytest.approx(20)
        assert found.std == pytest.approx(1)
        assert found.reverse == pytest.approx(-math.log(share), abs=1e-9)
        assert weight == 0.5 or found.mean == pytest.approx(place)
    assert fit.reverse > modes[0].reverse
    assert modes[0].forward > 10 * fit.forward


def test_each_fit_is_the_best_about_it_and_draws_agree():
    law = Modes((0.6, 0.4), (-1.5, 1.5), (0.6, 0.9))
    best = covering(law)
    for fit, direction in [(best, 2), *((mode, 3) for mode in seeking(law))]:
        for mean, std in ((0.03, 0), (-0.03, 0), (0, 0.03), (0, -0.03)):
            near = measured(law, fit.mean + mean, fit.std + std)
            assert near[direction] > fit[direction]
    assert seeking(law)[0].reverse < best.reverse
    mixture = distributions.MixtureSameFamily(
        distributions.Categorical(torch.tensor(law.weights)),
        distributions.Normal(torch.tensor(law.means), torch.tensor(law.stds)),
    )
    q = distributions.Normal(best.mean, best.std)
    z = q.mean + q.stddev * Noise.of(0, "z", 100_000).normal(0)
    terms = q.log_prob(z) - mixture.log_prob(z)
    assert abs(terms.mean() - best.reverse) < 4 * terms.std() / math.sqrt(len(z))
