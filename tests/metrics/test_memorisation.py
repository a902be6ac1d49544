"""Nearest training samples against brute force, and what counts as memorised."""

import numpy as np
import pytest
import torch

from ornstein.errors import ConfigError
from ornstein.metrics.memorisation import memorisation, memorisation_threshold, nearest_distances
from ornstein.noise import Noise


def normal(count, *shape, seed=0):
    return Noise.of(seed, "test", count).normal(0, shape, torch.float64)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_nearest_distances_are_the_brute_force_ones(shape, monkeypatch):
    queries, reference = normal(37, *shape).numpy(), normal(101, *shape, seed=1).numpy()
    difference = (queries[:, None] - reference[None]).reshape(37, 101, -1)
    everything = np.sqrt((difference**2).mean(-1))
    np.testing.assert_allclose(nearest_distances(queries, reference), everything.min(1))
    monkeypatch.setattr("ornstein.metrics.memorisation._BLOCK", 64)  # many small blocks
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
    assert memorisation(train[::3], train, threshold).value == 1
    found = memorisation(unseen, train, threshold)
    assert found.value == pytest.approx(0.01, abs=0.007)
    assert found.low < found.value < found.high
    if apart:
        assert memorisation(held_out, train, threshold).value == 0.01  # by construction
    assert memorisation(unseen, train, 0.0).value == 0


def test_memorisation_where_training_data_repeat():
    """Then the threshold is 0, and a copy still counts."""
    x = np.repeat(np.eye(5), 3, axis=0)
    assert memorisation_threshold(x, x[:0]) == 0
    assert memorisation(x[:2], x, 0.0).value == 1
    assert memorisation(x[:2] + 1e-3, x, 0.0).value == 0
    with pytest.raises(ConfigError, match="at least one"):
        memorisation(x[:0], x, 0.0)
