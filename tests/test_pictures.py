"""Pictures of sequences: strips of film, and animations in their own time."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from ornstein import pictures
from ornstein.data.info import DataInfo

ZOOM, GAP = 6, 2  # frames of 8 pixels are enlarged six times


def info(channels=1, frames=3):
    return DataInfo(
        name="x",
        kind="sequence",
        shape=(frames, channels, 8, 8),
        range=(0.0, 255.0),
        bins=256,
        count=10,
        mean=0.0,
        std=1.0,
        fingerprint="0" * 64,
    )


def sequences(count=4, channels=1, frames=3):
    return np.random.default_rng(0).integers(0, 256, (count, frames, channels, 8, 8), np.uint8)


def cell(image, row, column):
    """What stands at a place of a grid, at its own size: [8, 8] or [8, 8, 3]."""
    step = 8 * ZOOM + GAP
    top, left = row * step + GAP, column * step + GAP
    return np.asarray(image)[top : top + 8 * ZOOM : ZOOM, left : left + 8 * ZOOM : ZOOM]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_is_a_sequence_and_a_column_a_frame(channels):
    x = sequences(4, channels)
    image = pictures.picture(x, info(channels))
    step = 8 * ZOOM + GAP
    assert image.size == (3 * step + GAP, 4 * step + GAP)
    for n in range(4):
        for t in range(3):
            shown = x[n, t].transpose(1, 2, 0).squeeze()
            np.testing.assert_array_equal(cell(image, n, t), shown)
    # Whatever columns are asked for: they are frames.
    assert pictures.picture(x, info(channels), 2).size == image.size


def test_one_sequence_is_one_strip():
    x = sequences(1)
    assert pictures.single(x[0], info()).tobytes() == pictures.picture(x, info()).tobytes()


@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_shows_time(channels):
    x = sequences(4, channels)
    frames = pictures.motion(x, info(channels))
    assert len(frames) == 3
    for t, image in enumerate(frames):
        for n in range(4):
            shown = x[n, t].transpose(1, 2, 0).squeeze()
            np.testing.assert_array_equal(cell(image, n // 2, n % 2), shown)
    # As a file, too, in which greys are not changed.
    if channels == 1:
        with Image.open(io.BytesIO(pictures.animation(frames))) as gif:
            kept = [frame.convert("L") for frame in ImageSequence.Iterator(gif)]
        for seen, image in zip(kept, frames, strict=True):
            np.testing.assert_array_equal(np.asarray(seen), np.asarray(image))


def test_values_of_another_range_are_shown_alike():
    x = sequences()
    unit = info().model_copy(update={"range": (0.0, 1.0), "bins": None})
    scaled = (x / 255).astype(np.float32)
    assert pictures.picture(scaled, unit).tobytes() == pictures.picture(x, info()).tobytes()
