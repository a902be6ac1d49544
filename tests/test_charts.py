"""Charts say what their numbers say, and no numbers break them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageColor

from ornstein.charts import COLOURS, FAINT, GRID, Curve, Panel, chart, number, spelt, ticks


def pixels(*curves, **panel):
    """A chart of one panel, float [H, W, 3]."""
    return np.asarray(chart([Panel(curves, **panel)]), dtype=np.float64)


def near(image, colour, tolerance=60.0):
    """Bool [H, W]: where a picture has a colour, or nearly."""
    return np.abs(image - np.array(ImageColor.getrgb(colour))).sum(2) <= tolerance


def frame(image):
    """Left, right, bottom and top of a chart's frame, from the picture alone: axes and grid."""
    axis, faint = near(image, FAINT, 0), near(image, GRID, 0)

    def full(mask, along):
        count = mask.sum(along)
        return np.flatnonzero(count > count.max() / 2)

    left, bottom = full(axis, 0).mean(), full(axis, 1).mean()
    return left, full(faint, 0)[-1], bottom, full(faint, 1)[0]


def round_number(value):
    """Whether a number is 1, 2 or 5 times a power of ten."""
    return f"{value:.6e}"[:8] in ("1.000000", "2.000000", "5.000000")


finite = st.floats(-1e6, 1e6)


@given(finite, st.floats(1e-3, 1e6), st.integers(2, 10))
def test_ticks_are_round_and_cover_the_range(low, width, most):
    high = low + width
    found = ticks(low, high, most=most)
    step = np.diff(found)
    assert 1 <= len(step) <= most
    assert found[0] <= low + 1e-5 * width
    assert found[-1] >= high - 1e-5 * width
    np.testing.assert_allclose(step, step[0], rtol=1e-4)
    assert round_number(float(f"{step[0]:.5g}"))
    np.testing.assert_allclose(np.divide(found, step[0]), np.rint(np.divide(found, step[0])), 1e-3)
    # None to spare: without the first or the last, the range would not be covered.
    assert found[1] > low - 1e-5 * width
    assert found[-2] < high + 1e-5 * width


@given(st.floats(-8, 8), st.floats(0, 8), st.integers(2, 10))
def test_logarithmic_ticks_are_round_and_cover_the_range(power, decades, most):
    low, high = 10.0**power, 10.0 ** (power + decades)
    found = ticks(low, high, log=True, most=most)
    assert 1 <= len(found) - 1 <= most
    assert found[0] <= low * (1 + 1e-6)
    assert found[-1] >= high * (1 - 1e-6)
    assert all(a < b for a, b in itertools.pairwise(found))
    assert all(round_number(value) for value in found)


def test_ticks_that_a_person_would_choose():
    assert ticks(0, 1, most=5) == (0, 0.2, 0.4, 0.6, 0.8, 1)
    assert ticks(-9.7, 8, most=4) == (-10, -5, 0, 5, 10)
    assert ticks(3, 47, log=True) == (2, 5, 10, 20, 50)
    assert ticks(1e-4, 300, log=True, most=4) == (1e-4, 1e-2, 1, 1e2, 1e4)


def test_numbers_as_they_are_written():
    values = (0, 0.25, -20, 1500, 1e6, 2e-5, -1e7, 3.5e8)
    written = ["0", "0.25", "-20", "1500", "10^6", "2·10^-5", "-10^7", "3.5·10^8"]
    assert [number(value) for value in values] == written


def test_text_has_only_letters_of_the_font():
    assert spelt("Fréchet, ᾱ = α²") == "Frechet, alpha = alpha^2"
    assert spelt("数据 8×8 − σ") == "?? 8x8 - sigma"


def test_a_curve_lies_where_the_mathematics_says():
    """x² on [0, 1]²: the frame is found by its grid, whose ends are 0 and 1."""
    x = np.linspace(0, 1, 300)
    image = pixels(Curve(x, x**2))
    left, right, bottom, top = frame(image)
    ink = image[..., 2] - image[..., 0]  # blue: axes and grid are grey
    for column in range(int(left) + 20, right - 20, 7):
        centre = np.average(np.arange(len(ink)), weights=ink[:, column])
        at = (column - left) / (right - left)
        assert (bottom - centre) / (bottom - top) == pytest.approx(at**2, abs=0.004)


def test_a_power_law_is_straight_on_logarithmic_axes():
    x = np.geomspace(1, 1e4, 50)
    image = pixels(Curve(x, x**-0.5), x_log=True, y_log=True)
    left, right, bottom, top = frame(image)
    coloured = near(image, COLOURS[0])
    for share in (0.25, 0.5, 0.75):  # y = x^-½ falls by two decades while x rises by four
        column = round(left + share * (right - left))
        centre = np.flatnonzero(coloured[:, column]).mean()
        assert (centre - top) / (bottom - top) == pytest.approx(share, abs=0.004)


def test_an_error_bar_reaches_from_low_to_high():
    image = pixels(Curve([1.0], [5.0], low=[2.0], high=[6.0]), x_range=(0, 2), y_range=(0, 10))
    left, right, bottom, top = frame(image)
    coloured = image[..., 2] - image[..., 0] > 40
    middle = round((left + right) / 2)
    height = np.flatnonzero(coloured[:, middle - 1 : middle + 2].any(1))
    ends = (bottom - height[[-1, 0]]) / (bottom - top) * 10
    np.testing.assert_allclose(ends, [2, 6], atol=0.1)


def test_an_error_bar_to_zero_leaves_a_logarithmic_frame():
    bar = Curve([1.0], [0.5], low=[0.0], high=[1.0])
    image = pixels(bar, y_log=True, y_range=(0.01, 10), x_range=(0, 2))
    left, right, bottom, top = frame(image)
    coloured = image[..., 2] - image[..., 0] > 40
    middle = round((left + right) / 2)
    height = np.flatnonzero(coloured[:, middle - 1 : middle + 2].any(1))
    assert (bottom - height[0]) / (bottom - top) == pytest.approx(2 / 3, abs=0.01)
    assert height[-1] == pytest.approx(bottom, abs=2)


def test_a_gap_is_where_numbers_are_not_finite():
    x = np.linspace(0, 1, 101)
    y = np.where(abs(x - 0.5) < 0.1, math.nan, 0.5)
    image = pixels(Curve(x, y), y_range=(0, 1))
    left, right, _, _ = frame(image)
    drawn = near(image, COLOURS[0]).any(0)
    at = (np.arange(len(drawn)) - left) / (right - left)
    assert drawn[(at > 0.02) & (at < 0.38)].all()
    assert not drawn[(at > 0.42) & (at < 0.58)].any()


def test_a_curve_beyond_a_given_range_stays_in_its_frame():
    x = np.linspace(0, 1, 50)
    image = pixels(Curve(x, 100 * (x - 0.5), markers=True), y_range=(-1, 1))
    _, _, bottom, top = frame(image)
    drawn = np.flatnonzero(near(image, COLOURS[0]).any(1))
    assert top - 4 <= drawn.min() < drawn.max() <= bottom + 4


def test_one_label_is_one_colour_in_all_panels():
    line = [0.0, 1.0]
    first = Panel([Curve(line, line, "a"), Curve(line, [1.0, 0.0], "b")])
    both = np.asarray(chart([first, Panel([Curve(line, line, "b")])]), dtype=np.float64)
    half = both.shape[1] // 2
    assert not near(both[:, half:], COLOURS[0]).any()
    assert near(both[:, half:], COLOURS[1]).any()


def test_panels_stand_side_by_side():
    one = chart([Panel([Curve([0, 1], [0, 1])])])
    three = chart([Panel([Curve([0, 1], [0, 1])])] * 3)
    assert three.size == (3 * one.width, one.height)


INF = math.inf
ODD = {
    "nothing": Curve([], []),
    "a point": Curve([1.0], [2.0], markers=True),
    "a constant": Curve([0, 1, 2], [3, 3, 3]),
    "zeros": Curve([0, 0], [0, 0]),
    "only infinities": Curve([0, 1], [INF, -INF]),
    "only nan": Curve([0, 1], [math.nan, math.nan], low=[0, 0], high=[INF, math.nan]),
    "negative": Curve([-1, -2], [-3, -4]),
    "some infinities": Curve([0, 1, 2, 3], [1, INF, 2, -INF], low=[0, -INF, 1, 0], high=[INF] * 4),
    "huge and tiny": Curve([1e-300, 1e300], [1e-300, 1e300]),
}


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("curve", ODD.values(), ids=ODD)
def test_no_data_breaks_a_chart(curve, log):
    image = np.asarray(chart([Panel([curve], x_log=log, y_log=log)]))
    assert image.min() < 255  # the frame is there


def test_no_panels_are_a_picture_too():
    assert chart([], title="nothing").height > 0
