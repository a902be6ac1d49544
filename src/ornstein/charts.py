"""Line charts, drawn by Pillow alone: curves, markers and error bars over round-numbered axes.

    place(v) = start + (stop − start) (u(v) − u(low)) / (u(high) − u(low)),    u = id or log10

is all the mathematics there is. Ticks are 1, 2 or 5 times a power of ten, and an axis reaches from
a tick to a tick, so that its ends can be read. Curves are drawn four times too large and averaged
down, which makes them smooth; text is set at its own size in the font that Pillow carries, which
has no letters but Latin ones. Colours are those of M. Okabe and K. Ito, "Color universal design",
2008, which people with any kind of colour vision tell apart; after seven they come again, dashed.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Numbers: TypeAlias = "Sequence[float] | np.ndarray"
Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right and bottom, in pixels."""

SCALE = 2  # pixels for each unit of the lengths below
FINE = 4  # how much larger curves are drawn before they are averaged down
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
INK, FAINT, GRID, PAPER = "#222222", "#666666", "#E6E6E6", "#FFFFFF"
SMALL, TEXT, LARGE = 10.0, 11.5, 14.0  # sizes of letters
SIZE = (320, 216)  # width and height of a panel's frame
LEFT, RIGHT, ABOVE, BELOW = 62, 16, 26, 44  # what stands around a frame
LINE, DOT, CAP, DASH = 1.7, 3.2, 3.5, 5.0  # widths of a curve, a marker, a cap; a dash


class Curve(NamedTuple):
    """Points [N] to join, to mark, or both. What is not finite is left out, and is a gap.

    Curves with one label have one colour, in all panels of a chart.
    low, high: the ends [N] of an error bar for each point; an infinite one leaves the frame.
    """

    x: Numbers
    y: Numbers
    label: str = ""
    low: Numbers | None = None
    high: Numbers | None = None
    line: bool = True
    markers: bool = False


class Panel(NamedTuple):
    """Curves in one frame. An axis covers its data, or the range that is given instead.

    On a logarithmic axis only numbers above 0 have a place.
    """

    curves: Sequence[Curve]
    title: str = ""
    x_label: str = ""
    y_label: str = ""
    x_log: bool = False
    y_log: bool = False
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None


class Axis(NamedTuple):
    """The numbers `ticks[0]` to `ticks[-1]` on the pixels `start` to `stop`."""

    ticks: tuple[float, ...]
    log: bool
    start: int
    stop: int

    def place(self, values: Numbers | None) -> np.ndarray:
        """Where numbers are drawn, pixels [N], float64; not finite for those without a place."""
        v = np.asarray([] if values is None else values, dtype=np.float64)
        low, high = self.ticks[0], self.ticks[-1]
        if self.log:
            low, high = math.log10(low), math.log10(high)
            with np.errstate(divide="ignore"):
                v = np.log10(np.maximum(v, 0))  # what is not positive is infinitely far down
        return self.start + (self.stop - self.start) * ((v - low) / (high - low))


def ticks(low: float, high: float, log: bool = False, most: int = 6) -> tuple[float, ...]:
    """Round numbers, rising and at most `most` intervals apart, that cover `low` to `high`.

    They are multiples of 1, 2 or 5 times a power of ten. Logarithmic ones are powers of ten, or
    1, 2 and 5 times these where the range is short. A range without a width gets one.
    """
    if log:
        return _log_ticks(low, high, most)
    if not high > low:
        room = 0.1 * abs(low) or 1.0
        low, high = low - room, high + room
    power = math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20):
        step = factor * 10.0**power
        first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
        if last - first <= most:
            break
    digits = max(0, -power)
    return tuple(round(i * step, digits) for i in range(first, last + 1))


def _log_ticks(low: float, high: float, most: int) -> tuple[float, ...]:
    first, last = math.log10(low), math.log10(high)
    down, up = math.floor(first + 1e-9), math.ceil(last - 1e-9)
    round_ones = [f * 10.0**p for p in range(down - 1, up + 1) for f in (1, 2, 5)]
    start = max(i for i, v in enumerate(round_ones) if v <= low * (1 + 1e-9))
    stop = min((i for i, v in enumerate(round_ones) if v >= high * (1 - 1e-9) and i > start))
    if stop - start <= most:
        return tuple(float(f"{v:.6g}") for v in round_ones[start : stop + 1])
    step = math.ceil((up - down) / most)
    return tuple(10.0 ** (down + i * step) for i in range(math.ceil((up - down) / step) + 1))


def number(value: float) -> str:
    """A tick as it is written: 0.25, 1500, 10^6, 2·10^-5 (`^` raises what follows it)."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.6g}"
    power = math.floor(math.log10(abs(value)) + 1e-9)
    factor = f"{value / 10.0**power:.3g}"
    sign = factor.removesuffix("1")
    return f"{sign}10^{power}" if sign in ("", "-") else f"{factor}·10^{power}"


def chart(panels: Sequence[Panel], title: str = "", size: tuple[int, int] = SIZE) -> Image.Image:
    """Panels side by side under a title and one legend, as an RGB picture.

    size: width and height of a panel's frame, in units of two pixels.
    """
    labels = list(dict.fromkeys(c.label for panel in panels for c in panel.curves if c.label))
    width = len(panels) * (LEFT + size[0] + RIGHT)
    rows = _legend_rows(labels, _px(width - LEFT))
    head = (34 if title else 4) + 18 * len(rows)
    image = Image.new("RGB", (_px(width), _px(head + ABOVE + size[1] + BELOW)), PAPER)
    if title:
        write(image, (_px(LEFT), _px(20)), title, LARGE, INK, "lm")
    for i, row in enumerate(rows):
        for label, left in row:
            place = (_px(LEFT) + left, _px(head - 18 * (len(rows) - i) + 6))
            _draw_key(image, place, labels.index(label), label, panels)
    for i, panel in enumerate(panels):
        left, top = _px(LEFT + i * width / len(panels)), _px(head + ABOVE)
        _draw_panel(image, panel, (left, top, left + _px(size[0]), top + _px(size[1])), labels)
    return image


# ── Drawing: lengths are in units, places in pixels, and `_px` turns the one into the other.


def _draw_panel(image: Image.Image, panel: Panel, frame: Box, labels: list[str]) -> None:
    left, top, right, bottom = frame
    x_axis, y_axis = _axes(panel, frame)
    draw = ImageDraw.Draw(image)
    for tick, place in zip(x_axis.ticks, np.rint(x_axis.place(x_axis.ticks)), strict=True):
        draw.line((place, top, place, bottom), GRID, 1)
        write(image, (place, bottom + _px(6)), number(tick), SMALL, FAINT, "mt")
    for tick, place in zip(y_axis.ticks, np.rint(y_axis.place(y_axis.ticks)), strict=True):
        draw.line((left, place, right, place), GRID, 1)
        write(image, (left - _px(6), place), number(tick), SMALL, FAINT, "rm")
    draw.line((left, top, left, bottom), FAINT, SCALE)
    draw.line((left, bottom, right, bottom), FAINT, SCALE)
    for i, curve in enumerate(panel.curves):
        index = labels.index(curve.label) if curve.label else i
        low, high = (y_axis.place(v) for v in (curve.low, curve.high))
        x, y = x_axis.place(curve.x), y_axis.place(curve.y)
        _draw_curve(image, frame, curve, index, np.stack([x, y], 1), low, high)
    write(image, (left, top - _px(13)), panel.title, TEXT, INK, "lm")
    write(image, ((left + right) / 2, bottom + _px(25)), panel.x_label, SMALL, INK, "mt")
    room = max(text_width(number(tick), SMALL) for tick in y_axis.ticks) + _px(15)
    _write_upwards(image, (left - room, (top + bottom) / 2), panel.y_label, SMALL, INK)


def _axes(panel: Panel, frame: Box) -> tuple[Axis, Axis]:
    left, top, right, bottom = frame
    ups = [v for c in panel.curves for v in (c.y, c.low, c.high) if v is not None]
    x_low, x_high = panel.x_range or _extent([c.x for c in panel.curves], panel.x_log)
    y_low, y_high = panel.y_range or _extent(ups, panel.y_log)
    across = ticks(x_low, x_high, panel.x_log, max(2, (right - left) // _px(50)))
    up = ticks(y_low, y_high, panel.y_log, max(2, (bottom - top) // _px(32)))
    return Axis(across, panel.x_log, left, right), Axis(up, panel.y_log, bottom, top)


def _extent(values: Sequence[Numbers], log: bool) -> tuple[float, float]:
    """The range of all numbers that have a place on an axis; 0 to 1 (1 to 10) where none has."""
    joined = np.concatenate([np.ravel(np.asarray(v, dtype=np.float64)) for v in [[], *values]])
    fit = joined[np.isfinite(joined) & ((joined > 0) | (not log))]
    return (float(fit.min()), float(fit.max())) if len(fit) else (float(log), 1.0 + 9 * log)


def _draw_curve(
    image: Image.Image,
    frame: Box,
    curve: Curve,
    index: int,
    points: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> None:
    """A curve through `points` [N, 2] within a frame, all in pixels."""
    colour = COLOURS[index % len(COLOURS)]
    pen, dash = FINE * _px(LINE), FINE * _px(DASH) * (index // len(COLOURS))
    with _Sheet(image, frame, _px(LINE)) as sheet:
        for run in _runs(points) if curve.line else ():
            for part in _dashed(sheet.at(run), dash):
                sheet.draw.line(part.ravel().tolist(), colour, pen, joint="curve")
    top, bottom = frame[1], frame[3]
    with _Sheet(image, frame, _px(DOT + LINE)) as sheet:
        for i, (x, y) in enumerate(points):
            if not frame[0] <= x <= frame[2]:
                continue
            if len(low) and len(high) and not np.isnan([low[i], high[i]]).any():
                ends = np.clip([low[i], high[i]], top, bottom)
                (x0, y0), (x1, y1) = sheet.at(np.array([[x, ends[0]], [x, ends[1]]])).tolist()
                sheet.draw.line((x0, y0, x1, y1), colour, pen // 2)
                for end, place in zip((low[i], high[i]), (y0, y1), strict=True):
                    if top <= end <= bottom:
                        cap = FINE * _px(CAP)
                        sheet.draw.line((x0 - cap, place, x0 + cap, place), colour, pen // 2)
            if curve.markers and top <= y <= bottom:
                ((a, b),) = sheet.at(np.array([[x, y]])).tolist()
                dot = FINE * _px(DOT)
                sheet.draw.ellipse((a - dot, b - dot, a + dot, b + dot), colour, PAPER, 2 * FINE)


class _Sheet:
    """A part of a picture, enlarged to be drawn on; at the end it is averaged down again."""

    def __init__(self, image: Image.Image, frame: Box, margin: int) -> None:
        left, top, right, bottom = frame
        self._image = image
        self._box = (left - margin, top - margin, right + margin + 1, bottom + margin + 1)
        self._part = image.crop(self._box)
        size = (self._part.width * FINE, self._part.height * FINE)
        self._large = self._part.resize(size, Image.Resampling.NEAREST)
        self.draw = ImageDraw.Draw(self._large)

    def at(self, points: np.ndarray) -> np.ndarray:
        """Places [N, 2] on the sheet. The centre of a pixel stays the centre of its square."""
        places: np.ndarray = (points - self._box[:2] + 0.5) * FINE - 0.5
        return places.clip(-1e5, 1e5)

    def __enter__(self) -> _Sheet:
        return self

    def __exit__(self, *_: object) -> None:
        small = self._large.resize(self._part.size, Image.Resampling.BOX)
        self._image.paste(small, self._box[:2])


def _runs(points: np.ndarray) -> Iterator[np.ndarray]:
    """The pieces of a curve between what is not finite; a single point is none."""
    whole = np.isfinite(points).all(axis=1)
    cuts = np.flatnonzero(np.diff(whole.astype(int))) + 1
    for piece, first in zip(np.split(points, cuts), np.r_[0, cuts], strict=True):
        if len(piece) > 1 and whole[first]:
            yield piece


def _dashed(points: np.ndarray, dash: float) -> Iterator[np.ndarray]:
    """A curve [N, 2] cut into dashes of this length, with gaps as long; whole for 0."""
    if dash <= 0:
        yield points
        return
    along = np.r_[0, np.cumsum(np.hypot(*np.diff(points, axis=0).T))]
    for start in np.arange(0, along[-1], 2 * dash):
        ends = np.array([start, min(start + dash, along[-1])])
        inside = along[(along > ends[0]) & (along < ends[1])]
        places = np.sort(np.r_[ends, inside])
        yield np.stack([np.interp(places, along, points[:, i]) for i in (0, 1)], axis=1)


def _legend_rows(labels: Sequence[str], width: int) -> list[list[tuple[str, int]]]:
    """Labels with where each begins, in rows that fit into a width in pixels."""
    rows: list[list[tuple[str, int]]] = []
    left = 0
    for label in labels:
        needed = _px(26 + 18) + text_width(label, SMALL)
        if not rows or left + needed > width:
            rows.append([])
            left = 0
        rows[-1].append((label, left))
        left += needed
    return rows


def _draw_key(
    image: Image.Image, place: tuple[int, int], index: int, label: str, panels: Sequence[Panel]
) -> None:
    """An entry of the legend: a piece of the curve, and its label."""
    curve = next(c for panel in panels for c in panel.curves if c.label == label)
    left, middle = place
    frame = (left, middle, left + _px(20), middle)
    points = np.array([[left, middle], [left + _px(10), middle], [left + _px(20), middle]], float)
    none = np.array([])
    _draw_curve(image, frame, curve._replace(markers=False), index, points, none, none)
    _draw_curve(image, frame, curve._replace(line=False), index, points[1:2], none, none)
    write(image, (left + _px(26), middle), label, SMALL, INK, "lm")


# ── Text.

_SPELT = str.maketrans(
    dict(zip("−–—×", "---x", strict=True))
    | {"²": "^2", "∞": "inf", "α": "alpha", "β": "beta", "η": "eta", "λ": "lambda", "σ": "sigma"}
)


def spelt(text: str) -> str:
    """Text in the letters that the font has: Greek ones are named, accents go, others are `?`."""
    apart = (c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
    letters = "".join(apart).translate(_SPELT)
    return "".join(c if 32 <= ord(c) < 127 or c in "·…±" else "?" for c in letters)


@lru_cache(maxsize=16)
def _font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size * SCALE)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _pieces(text: str, size: float) -> list[tuple[str, ImageFont.FreeTypeFont, int]]:
    """Text with its fonts and how far each piece is raised, exponents being small and high."""
    parts = re.split(r"\^(-?\d+)", spelt(text))  # text and exponents by turns
    small, raised = _font(0.75 * size), _px(0.38 * size)
    return [
        (part, small, raised) if i % 2 else (part, _font(size), 0) for i, part in enumerate(parts)
    ]


def text_width(text: str, size: float) -> int:
    return math.ceil(sum(font.getlength(piece) for piece, font, _ in _pieces(text, size)))


def write(
    image: Image.Image,
    place: tuple[float, float],
    text: str,
    size: float,
    colour: str,
    anchor: str,
) -> None:
    """Write text; anchor: `l`, `m` or `r` of its width and `t` or `m` of its height."""
    x, y = place
    x -= text_width(text, size) * {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]]
    # The height of a capital letter is some 0.7 of the size; the base line is its foot.
    y += 0.7 * size * SCALE * {"t": 1.0, "m": 0.5}[anchor[1]]
    draw = ImageDraw.Draw(image)
    for piece, font, raised in _pieces(text, size):
        draw.text((round(x), round(y - raised)), piece, colour, font, anchor="ls")
        x += font.getlength(piece)


def _write_upwards(
    image: Image.Image, middle: tuple[float, float], text: str, size: float, colour: str
) -> None:
    """Write text from the bottom to the top."""
    if not text:
        return
    label = Image.new("RGB", (text_width(text, size) + 4, _px(1.6 * size)), PAPER)
    write(label, (label.width / 2, label.height / 2), text, size, colour, "mm")
    turned = label.transpose(Image.Transpose.ROTATE_90)
    image.paste(turned, (round(middle[0] - turned.width / 2), round(middle[1] - turned.height / 2)))


def _px(length: float) -> int:
    return round(length * SCALE)
