"""Averages and rates are their formulas, and lengths are in samples whatever the batch is."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from pydantic import ValidationError

from ornstein.optim import HalfLife, Optim, Power


def remembered(average, batches, seen=0):
    """What is left of an average as it stood after `seen` samples: the product of all β."""
    left = 1.0
    for batch in batches:
        seen += batch
        left *= average.decay(seen, batch)
    return left


@pytest.mark.parametrize("batches", [[1] * 1000, [1000], [8] * 125, [100, 1, 399, 500]])
def test_a_half_life_forgets_half_in_its_samples(batches):
    assert remembered(HalfLife(samples=1000, ramp=0), batches) == pytest.approx(0.5)
    assert remembered(HalfLife(samples=1000, ramp=0.05), batches, 10**6) == pytest.approx(0.5)


def test_a_ramp_forgets_the_start():
    """While r n < H the half-life is r n: from n to 2n, ½^(ln 2/r) is left, as a power of n."""
    average = HalfLife(samples=500_000, ramp=0.05)
    assert average.decay(64, 64) == pytest.approx(0.5**20)  # after the first update: 1e-6
    left = remembered(average, [1] * 20_000, 20_000)
    assert left == pytest.approx(0.5 ** (math.log(2) / 0.05), rel=1e-3)
    assert average.decay(10**8, 100) == HalfLife(samples=500_000, ramp=0).decay(10**8, 100)


@pytest.mark.parametrize("width", [0.002, 0.01, 0.05, 0.1, 0.15, 0.25, 0.279])
def test_the_width_of_a_power_average(width):
    """σ_rel = (γ+1)^½ (γ+2)⁻¹ (γ+3)^−½ (arXiv:2312.02696, eq 126) gives the width back."""
    gamma = Power(width=width).gamma
    assert math.sqrt(gamma + 1) / (gamma + 2) / math.sqrt(gamma + 3) == pytest.approx(width)


@pytest.mark.parametrize("width", [0.02, 0.05, 0.1, 0.2])
@pytest.mark.parametrize("batches", [[32] * 200, [1, 2, 3, 500, 7, 1, 90] * 9], ids=["even", "odd"])
def test_a_power_average_weights_the_past_by_a_power(width, batches):
    """θ̄(N) = (γ+1)/N^(γ+1) ∫₀ᴺ n^γ θ(n) dn (eq 124), whatever the batches are, exactly."""
    average = Power(width=width)
    randomly = random.Random(0)
    theta = [randomly.gauss(0, 1) for _ in batches]
    seen, recursive = 0, 99.0  # what it starts from does not matter
    for value, batch in zip(theta, batches, strict=True):
        seen += batch
        beta = average.decay(seen, batch)
        recursive = beta * recursive + (1 - beta) * value
    power, start, direct = average.gamma + 1, 0, 0.0
    for value, batch in zip(theta, batches, strict=True):
        stop = start + batch
        direct += ((stop / seen) ** power - (start / seen) ** power) * value
        start = stop
    assert recursive == pytest.approx(direct, abs=1e-10)


def test_the_measured_width_of_a_power_average():
    """The relative standard deviation of the times that it weights is `width`."""
    average, total = Power(width=0.1), 20_000
    power = average.gamma + 1
    weight = [((n + 1) / total) ** power - (n / total) ** power for n in range(total)]
    mean = sum(w * n for n, w in enumerate(weight))
    variance = sum(w * (n - mean) ** 2 for n, w in enumerate(weight))
    assert math.sqrt(variance) / total == pytest.approx(0.1, rel=1e-3)


def test_names_of_averages_tell_them_apart():
    assert HalfLife(samples=500).name == "half-life-500"
    assert Power(width=0.05).name == "power-0.05"


def rates(optim, total):
    starts = range(0, total, optim.batch)
    return {seen: optim.lr_at(seen, total) for seen in starts}


@pytest.mark.parametrize("decay", ["none", "linear", "cosine"])
def test_the_rate_does_not_depend_on_the_batch(decay):
    """After n samples the decay is that of n/N; the warm-up counts the update's own samples."""
    small = Optim(lr=0.5, batch=10, samples=1000, warmup=200, decay=decay)
    large = Optim(lr=0.5, batch=100, samples=1000, warmup=200, decay=decay)
    ours, theirs = rates(small, 1000), rates(large, 1000)
    for seen in range(200, 1000, 100):
        assert ours[seen] == theirs[seen]
    # In the warm-up an update's rate is that of the samples used once it is done.
    flat = {"decay": "none", "samples": 1000, "lr": 0.5, "warmup": 200}
    for end in (100, 200):
        first = Optim(batch=10, **flat).lr_at(end - 10, 1000)
        assert first == pytest.approx(Optim(batch=100, **flat).lr_at(end - 100, 1000))
        assert first == pytest.approx(0.5 * end / 200)


@pytest.mark.parametrize(
    ("decay", "half"), [("none", 1.0), ("linear", 0.5), ("cosine", 0.5)], ids=lambda v: str(v)
)
def test_the_decays(decay, half):
    """From lr at the start by `half` of it in the middle to 0 at the end (none: not at all)."""
    optim = Optim(lr=2.0, batch=1, samples=1000, warmup=0, decay=decay)
    values = [optim.lr_at(seen, 1000) for seen in range(1001)]
    assert values[0] == 2.0
    assert values[500] == pytest.approx(2.0 * half)
    assert values[1000] == pytest.approx(2.0 if decay == "none" else 0.0, abs=1e-12)
    assert all(a >= b for a, b in itertools.pairwise(values))
    assert optim.lr_at(5000, 1000) == values[1000]  # never below the end


def test_the_cosine_is_a_cosine():
    optim = Optim(lr=1.0, samples=100, warmup=0, decay="cosine")
    for seen in (10, 25, 77):
        assert optim.lr_at(seen, 100) == pytest.approx(math.cos(math.pi * seen / 200) ** 2)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "a length is needed: give samples or minutes"),
        ({"samples": 1, "betas": (0.9, 1.0)}, r"betas must lie in [0, 1), got [0.9, 1.0]"),
        ({"samples": 1, "betas": (-0.1, 0.9)}, "betas must lie in"),
        ({"samples": 1, "averages": (Power(), Power())}, "two averages are the same: power-0.1"),
        ({"samples": 0}, "greater than or equal to 1"),
        ({"minutes": 0.0}, "greater than 0"),
        ({"samples": 1, "lr": -1.0}, "greater than 0"),
        ({"samples": 1, "clip": 0.0}, "greater than 0"),
        ({"samples": 1, "lr": math.nan}, "finite number"),
        ({"samples": 1, "micro_batch": 0}, "greater than or equal to 1"),
        ({"samples": 1, "averages": [{"kind": "power", "width": 0.3}]}, "less than 0.28"),
    ],
)
def test_what_cannot_work_is_refused(settings, sentence):
    with pytest.raises(ValidationError) as caught:
        Optim(**settings)
    assert sentence in str(caught.value)
