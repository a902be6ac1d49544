"""Scatter pictures: points are where they belong, in the colour of their class."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageColor

from ornstein.scatter import ABOVE, LEFT, PALETTE, framed, scatter

CORNERS = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0], [3.0, 1.0]])


def pixel(image, x, y, size=400, low=-0.04, high=4.04):
    """The colour at a place of the plane, for points that reach from 0 to 4 both ways."""
    across, up = ((v - low) / (high - low) * size for v in (x, y))
    return image.getpixel((round(LEFT + across), round(ABOVE + size - up)))


def test_points_lie_at_their_places_in_their_colours():
    label = np.array([0, 1, 2, 11, 4])
    image = scatter(CORNERS, label, [str(i) for i in range(12)], "across", "up", size=400)
    for (x, y), i in zip(CORNERS, label, strict=True):
        # A class of one point has its name there: its frame is in the colour of the class.
        around = [pixel(image, x + d, y) for d in np.linspace(-0.4, 0.4, 81) if 0 <= x + d <= 4]
        assert ImageColor.getrgb(PALETTE[i % len(PALETTE)]) in around
    assert pixel(image, 2.2, 2.7) == (255, 255, 255)


@pytest.mark.parametrize("classes", [(), tuple(map(str, range(21)))])
def test_too_many_classes_are_none(classes):
    label = np.arange(5) if classes else None
    image = scatter(CORNERS, label, classes, size=400)
    for x, y in CORNERS:
        assert pixel(image, x, y) == ImageColor.getrgb(PALETTE[0])


def test_both_axes_have_one_scale():
    """A cloud ten times as wide as high stays so."""
    image = scatter(CORNERS * [1, 0.1], size=400)
    blue = (np.asarray(image) == ImageColor.getrgb(PALETTE[0])).all(axis=2)
    rows, columns = np.flatnonzero(blue.any(axis=1)), np.flatnonzero(blue.any(axis=0))
    assert np.ptp(columns) == pytest.approx(10 * np.ptp(rows), rel=0.15)


def test_one_place_and_a_frame():
    assert (
        scatter(np.zeros((3, 2))).size
        == framed(scatter(np.zeros((3, 2))).crop((0, 0, 800, 800))).size
    )
