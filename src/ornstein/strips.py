"""Rows of small pictures with a label each: the same seeds, or the same image, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from ornstein.charts import COLOURS, FAINT, INK, LEFT, PAPER, SCALE, SMALL, TEXT, write

GAP = 3 * SCALE
LINE = 24 * SCALE  # height of a label


def strips(
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    captions: Sequence[str] = (),
    width: int = 1200,
    colours: Sequence[int] = (),
) -> Image.Image:
    """Pictures in rows, under their row's label and in the colour of its curve (`charts`).

    colours: which of the curves each row belongs to; by default one after the other.
    captions: one for each column, above the first row. width: of the result, in pixels; pictures
    are enlarged in whole multiples, so that small ones stay sharp, or made smaller to fit.
    """
    columns = max(len(pictures) for _, pictures in rows)
    left, colour_bar = LEFT * SCALE, 3 * SCALE
    room = (width - left) // columns - GAP
    first = rows[0][1][0]
    zoom = room // first.width or room / first.width
    cell = round(first.width * zoom), round(first.height * zoom)
    head = LINE if captions else 0
    canvas = Image.new("RGB", (width, head + len(rows) * (LINE + cell[1] + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, caption in enumerate(captions):
        middle = left + i * (cell[0] + GAP) + cell[0] / 2
        write(canvas, (middle, LINE / 2), caption, SMALL, FAINT, "mm")
    way = Image.Resampling.NEAREST if zoom >= 1 else Image.Resampling.BOX
    for row, (label, pictures) in enumerate(rows):
        top = head + row * (LINE + cell[1] + GAP)
        write(canvas, (left, top + LINE / 2), label, TEXT, INK, "lm")
        top += LINE
        colour = COLOURS[(colours[row] if colours else row) % len(COLOURS)]
        bar = (left - 4 * colour_bar, top, left - 3 * colour_bar, top + cell[1] - 1)
        draw.rectangle(bar, colour)
        for i, picture in enumerate(pictures):
            canvas.paste(
                picture.convert("RGB").resize(cell, way), (left + i * (cell[0] + GAP), top)
            )
    return canvas


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, as wide as the widest."""
    size = max(p.width for p in pictures), sum(p.height for p in pictures)
    canvas = Image.new("RGB", size, PAPER)
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas
