"""Points of a plane in the colours of their classes, drawn by Pillow alone.

Both axes have one scale, so that distances are what they look like. Points are drawn three times
too large and averaged down; a class has its name where half of its points lie to each side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ornstein.charts import (
    COLOURS,
    FAINT,
    GRID,
    INK,
    PAPER,
    SCALE,
    SMALL,
    TEXT,
    Axis,
    number,
    text_width,
    ticks,
    write,
)
from ornstein.errors import clip

PALETTE = (*COLOURS[:6], "#7B2D8B", "#8C5A14", "#9AA400", "#4D4D4D")
"""Ten colours, the first six those of `charts`; of more classes they come again."""
NAMED = 20  # classes that are named, at most
FINE = 3  # how much larger points are drawn
DOT = 2.5  # their radius, in pixels
LEFT, RIGHT, ABOVE, BELOW = (SCALE * side for side in (48, 12, 8, 40))


def scatter(
    points: np.ndarray,
    label: np.ndarray | None = None,
    classes: Sequence[str] = (),
    x_label: str = "",
    y_label: str = "",
    size: int = 800,
) -> Image.Image:
    """Points [N, 2], those of class `label` [N] in its colour, in a square frame of `size` pixels.

    classes: their names; where there are more than NAMED, or no labels, all points look alike.
    """
    known = label if 0 < len(classes) <= NAMED else None
    middle = (points.min(0) + points.max(0)) / 2
    reach = 1.02 * max(float((points.max(0) - points.min(0)).max()) / 2, 1e-12)
    right, bottom = LEFT + size, ABOVE + size
    canvas = Image.new("RGB", (right + RIGHT, bottom + BELOW), PAPER)
    x_axis, y_axis = (
        Axis((float(m - reach), float(m + reach)), False, *ends)
        for m, ends in zip(middle, ((LEFT, right), (bottom, ABOVE)), strict=True)
    )
    _draw_axes(canvas, x_axis, y_axis)
    places = np.stack([x_axis.place(points[:, 0]), y_axis.place(points[:, 1])], axis=1)
    _draw_points(canvas, (LEFT, ABOVE, right, bottom), places, known)
    if known is not None:
        _write_names(canvas, places, known, classes)
    return _labelled(canvas, x_label, y_label)


def framed(image: Image.Image, x_label: str = "", y_label: str = "") -> Image.Image:
    """A picture of a plane with the same space around it as that of `scatter`, and its labels."""
    size = (LEFT + image.width + RIGHT, ABOVE + image.height + BELOW)
    canvas = Image.new("RGB", size, PAPER)
    canvas.paste(image, (LEFT, ABOVE))
    return _labelled(canvas, x_label, y_label)


def _draw_axes(canvas: Image.Image, x_axis: Axis, y_axis: Axis) -> None:
    draw = ImageDraw.Draw(canvas)
    left, right, bottom, top = x_axis.start, x_axis.stop, y_axis.start, y_axis.stop
    for axis in (x_axis, y_axis):
        low, high = axis.ticks
        for tick in ticks(low, high, most=8):
            if not low <= tick <= high:
                continue
            place = round(float(axis.place([tick])[0]))
            if axis is x_axis:
                draw.line((place, top, place, bottom), GRID, 1)
                write(canvas, (place, bottom + 6 * SCALE), number(tick), SMALL, FAINT, "mt")
            else:
                draw.line((left, place, right, place), GRID, 1)
                write(canvas, (left - 6 * SCALE, place), number(tick), SMALL, FAINT, "rm")
    draw.rectangle((left, top, right, bottom), outline=FAINT, width=1)


def _draw_points(
    canvas: Image.Image,
    frame: tuple[int, int, int, int],
    places: np.ndarray,
    label: np.ndarray | None,
) -> None:
    part = canvas.crop(frame)
    large = part.resize((part.width * FINE, part.height * FINE), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(large)
    dot = FINE * DOT
    for i, (x, y) in enumerate((places - frame[:2] + 0.5) * FINE - 0.5):
        colour = PALETTE[0 if label is None else label[i] % len(PALETTE)]
        draw.ellipse((x - dot, y - dot, x + dot, y + dot), colour)
    canvas.paste(large.resize(part.size, Image.Resampling.BOX), frame[:2])


def _write_names(
    canvas: Image.Image, places: np.ndarray, label: np.ndarray, classes: Sequence[str]
) -> None:
    """The names of classes at their points' medians, or below the names that are there."""
    draw, high = ImageDraw.Draw(canvas), 9.0 * SCALE
    taken: list[tuple[float, float, float]] = []  # middle and half the width of a name
    for i in np.unique(label):
        name = clip(classes[i], 12)
        wide = text_width(name, TEXT) / 2 + 4 * SCALE
        x, y = (float(v) for v in np.median(places[label == i], axis=0))
        while any(abs(x - a) < wide + w and abs(y - b) < 2 * high for a, b, w in taken):
            y += high / 4
        taken.append((x, y, wide))
        box, colour = (x - wide, y - high, x + wide, y + high), PALETTE[i % len(PALETTE)]
        draw.rounded_rectangle(box, 3 * SCALE, PAPER, colour, SCALE)
        write(canvas, (x, y), name, TEXT, INK, "mm")


def _labelled(canvas: Image.Image, x_label: str, y_label: str) -> Image.Image:
    """What the axes are, below the frame and, from the bottom to the top, to the left of it."""
    across, up = (LEFT + canvas.width - RIGHT) / 2, (ABOVE + canvas.height - BELOW) / 2
    write(canvas, (across, canvas.height - BELOW + 22 * SCALE), x_label, SMALL, INK, "mt")
    if y_label:
        strip = Image.new("RGB", (text_width(y_label, SMALL) + 4, 16 * SCALE), PAPER)
        write(strip, (strip.width / 2, strip.height / 2), y_label, SMALL, INK, "mm")
        turned = strip.transpose(Image.Transpose.ROTATE_90)
        canvas.paste(turned, (0, round(up - turned.height / 2)))
    return canvas
