"""Stochastic-gradient Langevin dynamics on Bayesian linear regression, whose posterior is known.

y = X w + 0.7 ε with w ~ N(0, 1.5² I): w given y is N(M, C), C⁻¹ = Xᵀ X/0.7² + I/1.5². The step is
affine in w, so mean and covariance over z are propagated exactly for any minibatches.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from ornstein.diffusion.sgld import Decay, Draw, Posterior, average, minibatches, sgld
from ornstein.errors import ConfigError
from ornstein.noise import Noise
from tests.helpers import Given, f64

N, NOISE, PRIOR = 200, 0.7, 1.5
EYE = torch.eye(3, dtype=torch.float64)
_SPREAD = f64([[1.0, 0.6], [0.0, 0.5]])
X = torch.cat(
    (torch.ones(N, 1), Noise.of(0, "x", N).normal(0, (2,), torch.float64) @ _SPREAD), dim=1
)
Y = X @ f64([0.5, -1.0, 2.0]) + NOISE * Noise.of(0, "y", N).normal(0, (), torch.float64)
PRECISION = X.T @ X / NOISE**2 + EYE / PRIOR**2
COVARIANCE = torch.linalg.inv(PRECISION)
MEAN = COVARIANCE @ (X.T @ Y) / NOISE**2
STD = COVARIANCE.diagonal().sqrt()

REGRESSION = Posterior(
    log_prior=lambda w: -0.5 * (w / PRIOR).square().sum(1),
    log_likelihood=lambda w, ids: -0.5 * ((Y[ids] - w @ X[ids].T) / NOISE).square(),
    observed=N,
)
WHOLE = torch.arange(N)


def close(ours, theirs, rtol=1e-10, atol=1e-10):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


def estimated(ids):
    """Precision and right-hand side of the posterior, as one minibatch has them."""
    share = N / len(ids) / NOISE**2
    return share * X[ids].T @ X[ids] + EYE / PRIOR**2, share * X[ids].T @ Y[ids]


# --- the parts --------------------------------------------------------------------------------


def test_the_gradient_of_everything_is_the_posteriors():
    w = Noise.of(0, "w", 5).normal(0, (3,), torch.float64)
    close(REGRESSION.gradient(w, WHOLE), (MEAN - w) @ PRECISION, rtol=1e-9)


@pytest.mark.parametrize("size", [1, 8, 50, 200])
def test_minibatches_estimate_the_gradient_without_bias(size):
    """Over one epoch, whose minibatches hold every observation once, they average to it."""
    w = Noise.of(0, "w", 2).normal(0, (3,), torch.float64)
    epoch = itertools.islice(minibatches(3, N, size), N // size)
    mean = torch.stack([REGRESSION.gradient(w, ids) for ids in epoch]).mean(0)
    close(mean, REGRESSION.gradient(w, WHOLE), rtol=1e-9)


def test_an_epoch_is_a_random_order_that_its_key_says():
    def epochs(seed, count=2, size=20):
        ids = list(itertools.islice(minibatches(seed, N, size), count * (N // size)))
        return torch.cat(ids).view(count, -1)

    first, second = epochs(0)
    assert torch.equal(first.sort().values, WHOLE)
    assert torch.equal(second.sort().values, WHOLE)
    assert not torch.equal(first, second)
    assert torch.equal(epochs(0)[1], second)
    assert not torch.equal(epochs(1)[0], first)
    left_over = epochs(0, count=1, size=30)[0]  # 6 of 30 and 20 that are dropped
    assert len(left_over.unique()) == 180
    for size in (0, 201):
        with pytest.raises(ConfigError, match=f"holds 1 to 200, not {size}"):
            next(minibatches(0, N, size))


def test_sizes_are_those_of_the_paper():
    """a (b + t)^−γ with a = ε_0 b^γ; 0 keeps the step."""
    first, delay, power = 0.01, 30.0, 0.6
    decay = Decay(first=first, delay=delay, power=power)
    for t in (0, 1, 100, 5000):
        a = first * delay**power
        assert decay(t) == pytest.approx(a * (delay + t) ** -power, rel=1e-12)
    assert Decay(first=first, power=0)(9999) == first


# --- the walk ---------------------------------------------------------------------------------


@pytest.mark.parametrize("noisy", [True, False])
def test_every_state_is_that_of_the_paper(noisy):
    """Eq 4 in matrices, without autograd, over 4 epochs and a part of another."""
    decay, noise = Decay(first=2e-3, delay=20), Noise.of(5, "sgld", 4)
    w = theirs = Noise.of(0, "w", 4).normal(0, (3,), torch.float64)
    ids = list(itertools.islice(minibatches(0, N, 20), 45))
    draws = list(sgld(REGRESSION, w, ids, decay, noise if noisy else None))
    assert [draw.step for draw in draws] == list(range(1, 46))
    for t, (draw, batch) in enumerate(zip(draws, ids, strict=True)):
        size = 2e-3 * (1 + t / 20) ** -0.55
        precision, right = estimated(batch)
        z = noise.at(t).normal(0, (3,), torch.float64) if noisy else 0 * theirs
        theirs = theirs + size / 2 * (right - theirs @ precision) + math.sqrt(size) * z
        assert draw.weight == pytest.approx(size, rel=1e-12)
        close(draw.theta, theirs, rtol=1e-9)


def test_a_chain_does_not_depend_on_its_neighbours():
    def last(chains):
        start = Noise.of(0, "w", chains).normal(0, (3,), torch.float64)
        ids = itertools.islice(minibatches(0, N, 20), 50)
        *_, draw = sgld(REGRESSION, start, ids, Decay(first=1e-3), Noise.of(0, "sgld", chains))
        return draw.theta

    batch = last(range(8))
    close(last([5])[0], batch[5])
    close(last([9, 5, 2**40])[1], batch[5])


def test_the_start_is_left_as_it_was():
    start = torch.zeros(2, 3, dtype=torch.float64)
    list(sgld(REGRESSION, start, [WHOLE], Decay(first=1e-3), Noise.of(0, "sgld", 2)))
    assert not start.any()
    assert not start.requires_grad


# --- where it ends ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-4, 1e-3, 4e-3])
def test_a_constant_step_settles_too_wide_by_a_known_amount(size):
    """All data, step ε: C (I − ε C⁻¹/4)⁻¹ = C + ε/4 + ..., mean exact. The step's matrices are
    read off it, as `Given` says what z is."""
    probes = torch.cat((0 * EYE[:1], EYE, 0 * EYE))
    z = torch.cat((0 * EYE[:1], 0 * EYE, EYE))
    (draw,) = sgld(REGRESSION, probes, [WHOLE], Decay(first=size), Given(z))
    b = draw.theta[0]
    a, s = (draw.theta[1:4] - b).T, (draw.theta[4:] - b).T
    settled = COVARIANCE @ torch.linalg.inv(EYE - size / 4 * PRECISION)
    close(a @ MEAN + b, MEAN)
    close(a @ settled @ a.T + s @ s.T, settled)
    assert torch.linalg.eigvals(a).abs().max() < 1
    if size < 1e-3:
        close(settled, COVARIANCE + size / 4 * EYE, rtol=1e-2, atol=1e-6)


def propagated(batches, sizes):
    """Weighted mean and covariance of the chain from the mode, exactly over z, by recursion."""
    parts = [[part.numpy() for part in estimated(ids)] for ids in batches]
    m, c, unit = MEAN.numpy(), np.zeros((3, 3)), np.eye(3)
    weight, first, second = 0.0, np.zeros(3), np.zeros((3, 3))
    for size, (precision, right) in zip(sizes, itertools.cycle(parts), strict=False):
        a = unit - size / 2 * precision
        m, c = a @ m + size / 2 * right, a @ c @ a.T + size * unit
        weight += size
        first += size * m
        second += size * (c + np.outer(m, m))
    mean = first / weight
    return torch.from_numpy(mean), torch.from_numpy(second / weight - np.outer(mean, mean))


@pytest.mark.parametrize(("batch", "wide"), [(50, 0.06), (10, 0.35)])
def test_weighted_averages_are_the_posteriors_as_steps_decay(batch, wide):
    """No sampling error: after 20,000 steps from the mode, on the minibatches of 50 epochs, the
    mean is within 0.02 of a standard deviation, and the covariance too wide in any direction by
    5 % with minibatches of 50, by 30 % with those of 10. After a tenth of the steps, which are
    longer ones, it is further off."""
    batches = list(itertools.islice(minibatches(0, N, batch), 50 * (N // batch)))
    sizes, off = [Decay(first=1e-3, delay=100)(t) for t in range(20_000)], []
    for steps in (2_000, 20_000):
        mean, covariance = propagated(batches, sizes[:steps])
        assert ((mean - MEAN) / STD).abs().max() < 0.02
        ratios = torch.linalg.eigvals(torch.linalg.solve(COVARIANCE, covariance)).real
        off.append((ratios - 1).abs().max().item())
    assert off[1] < wide
    assert off[1] < 0.6 * off[0]


def test_chains_sample_the_posterior():
    """64 chains from zero, 1000 steps on minibatches of 50, 200 of them as burn-in: the weighted
    mean within five standard errors of the posterior's, and each standard deviation within 8 %."""
    steps = itertools.islice(minibatches(0, N, 50), 1000)
    start = torch.zeros(64, 3, dtype=torch.float64)
    walk = sgld(REGRESSION, start, steps, Decay(first=1e-3, delay=200), Noise.of(0, "sgld", 64))

    def moments(w):
        return torch.cat((w, (w.unsqueeze(2) * w.unsqueeze(1)).flatten(1)), dim=1)

    found = average(itertools.islice(walk, 200, None), moments)
    mean = found[:, :3].mean(0)
    error = found[:, :3].std(0) / 8  # of 64 chains
    assert error.max() < 0.1 * STD.max()
    assert ((mean - MEAN).abs() < 5 * error).all()
    covariance = found[:, 3:].mean(0).view(3, 3) - mean.outer(mean)
    assert (covariance.diagonal().sqrt() / STD - 1).abs().max() < 0.08
    assert (covariance - COVARIANCE).abs().max() < 0.2 * COVARIANCE.abs().max()


def test_without_noise_it_collapses_to_the_mode():
    """Gradient ascent: from anywhere all chains end in the one point M, the posterior's mode; with
    minibatches as near as their steps have become short."""
    start = 3 * Noise.of(0, "w", 8).normal(0, (3,), torch.float64)
    *_, last = sgld(REGRESSION, start, [WHOLE] * 600, Decay(first=2e-3, power=0), None)
    close(last.theta, MEAN.expand(8, 3), atol=1e-8)
    ids = itertools.islice(minibatches(0, N, 20), 800)
    *_, last = sgld(REGRESSION, start, ids, Decay(first=2e-3, delay=40, power=0.75), None)
    assert ((last.theta - MEAN) / STD).abs().max() < 0.1
    assert (last.theta.std(0) / STD).max() < 0.02


# --- averages ---------------------------------------------------------------------------------


def test_averages_are_weighted_by_the_step():
    """Eq 11: Σ ε f / Σ ε."""
    draws = [Draw(t, w, f64([[t, -t]])) for t, w in ((1, 0.5), (2, 0.25), (3, 0.05))]
    expected = (0.5 * 1 + 0.25 * 4 + 0.05 * 9) / 0.8
    close(average(draws, torch.square), f64([[expected, expected]]))
    with pytest.raises(ConfigError, match="no draws to average"):
        average([], torch.square)
