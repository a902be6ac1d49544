"""Pixels as features."""

import numpy as np
import pytest
import torch

from ornstein.errors import ConfigError
from ornstein.features.pixels import Pixels
from ornstein.noise import Noise
from tests.datasets import dataset


def test_images_are_averaged_to_eight_by_eight():
    x = Noise.of(0, "x", 9).uniform(0, (3, 16, 5), torch.float64).numpy()
    found = Pixels(dataset(x).info)
    assert found.name == "pixels 8x5"
    assert found.weights is None
    scaled = (x - found.info.mean) / found.info.std
    pooled = scaled.reshape(9, 3, 8, 2, 5).mean(3)
    np.testing.assert_allclose(found.features(x), pooled.reshape(9, -1), atol=1e-12)
    small = dataset(x[:, :, :4])  # nothing is averaged
    expected = (small.x - small.info.mean) / small.info.std
    np.testing.assert_allclose(Pixels(small.info).features(small.x), expected.reshape(9, -1))
    with pytest.raises(ConfigError, match=r"\[3, 16, 5\]"):
        found.features(x[:, :1])


def test_vectors_are_taken_as_they_are():
    x = Noise.of(0, "x", 40).normal(0, (2,)).numpy() * 3
    found = Pixels(dataset(x, kind="vector").info)
    assert found.name == "values 2"
    assert np.array_equal(found.features(x).numpy(), x.astype(np.float64))
    assert found.probabilities(found.features(x)) is None
