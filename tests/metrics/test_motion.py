"""Which way a picture moves: against the squares that the criterion is made of, and its laws."""

from __future__ import annotations

import numpy as np
import pytest

from ornstein.errors import ConfigError
from ornstein.metrics.motion import direction, displacements


def film(width, by, frames=5, count=20, channels=2, height=3, seed=0):
    """Random textures that move by `by` columns a frame: [N, T, C, H, W]."""
    still = np.random.default_rng(seed).normal(size=(count, channels, height, width))
    return np.stack([np.roll(still, by * t, -1) for t in range(frames)], axis=1)


@pytest.mark.parametrize("width", [5, 8, 9, 16])
@pytest.mark.parametrize("speed", [1, 2])
def test_what_moves_is_told_without_exception(width, speed):
    for sign in (1, -1):
        x = film(width, sign * speed)
        found = direction(x, speed)
        assert found.dtype == np.int64
        assert (found == sign).all()
        assert (displacements(x) == sign * speed).all()
        # The frames the other way round move the other way.
        assert (direction(x[:, ::-1], speed) == -sign).all()
        assert (direction(x[..., ::-1], speed) == -sign).all()


@pytest.mark.parametrize("speed", [1, 2, 3])
def test_it_is_the_nearer_of_two_predictions(speed):
    """‖x_{t+1} − S x_t‖² against ‖x_{t+1} − S⁻¹ x_t‖², of frames that do not move at all alike."""
    x = np.random.default_rng(1).normal(size=(200, 4, 2, 5, 7))
    right, left = (
        np.square(x[:, 1:] - np.roll(x[:, :-1], shift, -1)).sum((1, 2, 3, 4))
        for shift in (speed, -speed)
    )
    np.testing.assert_array_equal(direction(x, speed), np.where(right < left, 1, -1))


def test_one_sequence_is_one_number():
    x = film(8, 1)
    assert direction(x[0]).shape == ()
    assert int(direction(x[0])) == 1
    assert displacements(x[0]).shape == (4,)
    assert displacements(x).shape == (20, 4)


def test_bytes_do_not_wrap():
    x = (film(8, -1) * 40 + 128).clip(0, 255).astype(np.uint8)
    assert (direction(x) == -1).all()
    assert (displacements(x) == -1).all()


@pytest.mark.parametrize(("a", "b"), [(3.0, 0.0), (1e-3, 200.0), (1.0, -7.0)])
def test_contrast_and_brightness_change_nothing(a, b):
    x = np.random.default_rng(2).normal(size=(100, 3, 1, 6, 8))
    np.testing.assert_array_equal(direction(a * x + b), direction(x))
    np.testing.assert_array_equal(displacements(a * x + b), displacements(x))


def test_what_does_not_move_has_no_direction():
    still = film(9, 0)
    assert (direction(still) == 0).all()
    assert (direction(200 + still.astype(np.float32) / 100) == 0).all()
    assert (displacements(still) == 0).all()
    flat = np.full((2, 3, 1, 4, 4), 7.5)
    assert (direction(flat) == 0).all()
    assert (displacements(flat) == 0).all()
    # To and fro is neither, on the whole.
    x = film(8, 1, frames=2)
    assert (direction(np.concatenate([x, x[:, :1]], axis=1)) == 0).all()


def test_of_a_picture_that_repeats_itself_nobody_can_say():
    x = np.tile(film(2, 1, channels=1), 4)  # columns a, b, a, b, ...
    assert (direction(x) == 0).all()
    assert (displacements(x) == 1).all()  # as well as −1, 3, ...: the nearest is named


@pytest.mark.parametrize("width", [8, 9])
def test_every_displacement_there_is(width):
    for by in range(-((width - 1) // 2), width // 2 + 1):
        assert (displacements(film(width, by)) == by).all()


@pytest.mark.parametrize(("channel", "row"), [(0, 0), (0, 2), (1, 0), (1, 2)])
def test_all_rows_and_channels_are_looked_at(channel, row):
    x = np.zeros((20, 5, 2, 3, 8))
    x[:, :, channel, row] = film(8, -1)[:, :, 0, 0]
    assert (direction(x) == -1).all()
    assert (displacements(x) == -1).all()


def test_noise_is_summed_away():
    """Of many frames the direction is told where single pairs are often wrong."""
    rng = np.random.default_rng(3)
    x = film(16, 1, frames=40, count=100, channels=1, height=8)
    noisy = x + 2 * rng.normal(size=x.shape)
    pairs = direction(np.stack([noisy[:, :-1], noisy[:, 1:]], 2).reshape(-1, 2, 1, 8, 16))
    assert 0.7 < (pairs == 1).mean() < 0.99
    assert (direction(noisy) == 1).all()


@pytest.mark.parametrize(
    ("shape", "speed", "says"),
    [
        ((3, 1, 4, 4, 4), 1, "at least 2 frames"),
        ((3, 4, 4), 1, "at least 2 frames"),
        ((1, 1, 4, 4), 1, "at least 2 frames"),
        ((3, 2, 1, 4, 4), 0, "not by 0"),
        ((3, 2, 1, 4, 4), 4, "not by 4"),
    ],
)
def test_what_is_no_motion_is_said(shape, speed, says):
    with pytest.raises(ConfigError, match=says):
        direction(np.zeros(shape), speed)
