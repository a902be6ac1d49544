"""Toys: standardised by their closed forms, and pure functions of (name, seed, number)."""

from typing import get_args

import numpy as np
import pytest

from ornstein.data.sources import ToyName
from ornstein.data.toys import TOYS, toy

NAMES = sorted(TOYS)


def test_every_name_that_can_be_chosen_is_there():
    assert set(get_args(ToyName)) == set(TOYS)


@pytest.mark.parametrize("name", NAMES)
def test_moments_are_the_closed_forms(name):
    count = 40_000
    x = toy(name, count).astype(np.float64)
    assert x.shape == (count, 2)
    # Five standard errors; fourth moments are below 3 here, so Var[x²] < 2 per coordinate.
    assert np.abs(x.mean(axis=0)).max() < 5 * x.std(axis=0).max() / count**0.5
    assert abs(np.square(x).mean() - 1) < 5 * (2 / count) ** 0.5


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_named_not_taken(name):
    x = toy(name, 500, seed=3)
    assert x.dtype == np.float32
    assert x.flags.writeable
    np.testing.assert_array_equal(x[:100], toy(name, 100, seed=3))
    assert not np.isclose(x, toy(name, 500, seed=4)).all(axis=1).any()
    assert len(np.unique(x, axis=0)) == 500


def test_the_checkerboard_has_its_holes():
    cell = np.floor(toy("checkerboard", 20_000).astype(np.float64) * (4 / 3) ** 0.5 + 2)
    assert set(np.unique(cell)) == {0, 1, 2, 3}
    assert not (cell.sum(axis=1) % 2).any()
    _, counts = np.unique(cell, axis=0, return_counts=True)
    assert len(counts) == 8
    assert counts.min() > 2200


def test_eight_gaussians_are_eight():
    x = toy("eight_gaussians", 4_000)
    angle = np.round(np.arctan2(x[:, 1], x[:, 0]) / (np.pi / 4)) % 8
    assert np.unique(angle, return_counts=True)[1].min() > 400


def test_circles_and_spirals_have_two_arms():
    radius = np.linalg.norm(toy("circles", 4_000) * np.sqrt(0.3150), axis=1)
    assert (np.minimum(abs(radius - 1), abs(radius - 0.5)) < 0.25).all()
    inner = (radius < 0.75).mean()
    assert 0.45 < inner < 0.55
