"""Plain shapes on a plain ground, of which everything is known: images made from their factors.

A shape of radius R (of the circle around it) is one wedge and its reflections. With n axes, let u
be how far a point lies along the axis nearest to it and v ≥ 0 how far off that axis:

    the point is inside  ⇔  a u + b v ≤ c R  for every face (a, b, c) of the wedge

              axes                       faces (a, b, c)
    circle    none: u is the distance    (1, 0, 1)
    ring      none                       (1, 0, 1), (−1, 0, −0.55)
    square    4 normals of edges         (1, 0, √½)
    triangle  3 normals of edges         (1, 0, ½)
    star      5 tips                     (cos β, sin β, cos β), the inner corners 0.45 R away
    cross     4 arms                     (1, 0, √(1 − w²)), (0, 1, w),  w = 0.32

How much of a pixel is covered is ½ − d, cut to [0, 1], where d is the greatest a u + b v − c R
(and no less than the distance beyond the circle around the shape) at the pixel's centre: the
distance to the edge in pixels, which makes edges smooth and keeps areas.

The factors of image i depend on (seed, i, objects) only, so that a larger set begins with the
smaller one, and an image of 64 pixels is that of 32 drawn finer. They are independent and
uniform, each over a few hundred values: x, y, size and rotation are fractions over powers of two.
Directions are rounded to 2⁻¹⁵, whereupon all that is computed is exact in float64 but for a
square root, and coverage is rounded to 1/256: every machine draws the same bytes.

Several objects have different colours and are drawn from back to front. Their positions are drawn
anew, all of them, until two thirds of the area of each are seen, measured at 32 × 32 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from ornstein.errors import ConfigError
from ornstein.noise import Noise

VERSION = 1
"""Another number means other images for the same choice."""

COLOURS = {
    "blue": (30, 85, 225),
    "cyan": (60, 200, 225),
    "green": (35, 160, 65),
    "orange": (245, 130, 20),
    "pink": (250, 130, 190),
    "purple": (165, 50, 190),
    "red": (220, 30, 40),
    "yellow": (250, 215, 40),
}
BACKGROUNDS = {
    "black": (16, 16, 16),
    "dark grey": (68, 68, 68),
    "light grey": (178, 178, 178),
    "white": (245, 245, 245),
}

GRID = 1024  # positions and sizes are whole numbers of this part of the side
TURNS = 256  # rotations are whole numbers of this part of a shape's own period
FREEDOM = {1: (168, 288), 2: (144, 240), 3: (128, 208), 4: (112, 184)}
"""The smallest and the largest radius by the number of objects, in parts of the grid."""
MARGIN = 32  # parts of the grid between the circle around a shape and the border

_FINE = 2**15
_CHUNK = 1 << 19  # pixels that are drawn at a time
_RASTER = 32  # pixels on a side, to measure what is seen
_SEEN = 2 / 3


class Form(NamedTuple):
    """A shape. axes: how many it has, 0 for full symmetry. faces: (a, b, c) of one wedge.

    first: where its first axis is when it is upright, as a part of the period 360° / axes,
    anticlockwise from the top.
    """

    axes: int
    faces: tuple[tuple[float, float, float], ...]
    first: float = 0.0


def _star(inner: float) -> tuple[float, float, float]:
    """The line through a tip and an inner corner, 36° from its axis and `inner` from the centre."""
    a, b = inner * math.sin(math.pi / 5), 1 - inner * math.cos(math.pi / 5)
    length = math.hypot(a, b)
    return a / length, b / length, a / length


SHAPES = {
    "circle": Form(0, ((1, 0, 1),)),
    "cross": Form(4, ((1, 0, math.sqrt(1 - 0.32**2)), (0, 1, 0.32))),
    "ring": Form(0, ((1, 0, 1), (-1, 0, -0.55))),
    "square": Form(4, ((1, 0, math.sqrt(0.5)),)),
    "star": Form(5, (_star(0.45),)),
    "triangle": Form(3, ((1, 0, 0.5),), 0.5),
}
CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""Pairs in alphabetical order: number 6 · colour + shape."""


class Factors(NamedTuple):
    """What images consist of; arrays [N, objects] from back to front, `background` [N].

    shape, colour, background: int64, numbers in the order of `SHAPES`, `COLOURS`, `BACKGROUNDS`.
    x, y: float64, the centre as a part of the side, from the left and from the top.
    size: float64, the radius of the circle around the shape as a part of the side.
    rotation: float64, degrees anticlockwise from upright (one tip up, or edges level), in
    [0, `period(shape)`); 0 for circles and rings.
    """

    shape: np.ndarray
    colour: np.ndarray
    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    rotation: np.ndarray
    background: np.ndarray


def period(shape: int) -> float:
    """The smallest rotation in degrees that leaves a shape as it is; 0 where all do."""
    axes = list(SHAPES.values())[shape].axes
    return 360 / axes if axes else 0.0


def factors(ids: Sequence[int] | range | int, objects: int = 1, seed: int = 0) -> Factors:
    """The factors of the images with these numbers (a whole number: of those below it).

    Raises: ConfigError for a number of images below 0 or a number of objects that there is not.
    """
    if objects not in FREEDOM or (isinstance(ids, int) and ids < 0):
        raise ConfigError(
            f"shapes are drawn for 0 images or more, of {min(FREEDOM)} to {max(FREEDOM)} objects; "
            f"got {ids} of {objects}"
        )
    noise = Noise.of(seed, f"shapes/{objects}", ids)
    count, (low, high) = len(noise.ids), FREEDOM[objects]
    several = (objects,)
    shape = noise.integers(0, len(SHAPES), several).numpy()
    # The first few of a random order: no colour comes twice.
    colour = np.argsort(noise.bits(1, len(COLOURS)).numpy(), axis=1, kind="stable")[:, :objects]
    size = (low + noise.integers(2, high - low + 1, several).numpy()) / GRID
    periods = np.array([period(number) for number in range(len(SHAPES))])
    rotation = noise.integers(3, TURNS, several).numpy() / TURNS * periods[shape]
    background = noise.integers(4, len(BACKGROUNDS)).numpy()
    x, y = np.empty((2, count, objects))
    found = Factors(shape, colour, x, y, size, rotation, background)
    nearest = high + MARGIN
    pending, attempt = np.arange(count), 0
    while len(pending):
        part = noise._replace(ids=noise.ids[pending]).at(attempt)
        place = nearest + part.integers(5, GRID - 2 * nearest + 1, (objects, 2)).numpy()
        x[pending], y[pending] = place[..., 0] / GRID, place[..., 1] / GRID
        if objects == 1:
            break
        seen = [_seen(_part(found, pending[rows])) for rows in _chunks(len(pending), _RASTER)]
        pending, attempt = pending[(np.concatenate(seen) < _SEEN).any(axis=1)], attempt + 1
    return found


def shapes(
    count: int,
    size: int = 32,
    objects: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """`count` images, uint8 [count, 3, size, size], and of single objects the labels, int64
    [count], which number `CLASSES`."""
    found = factors(count, objects, seed)
    x = np.empty((count, 3, size, size), np.uint8)
    for rows in _chunks(count, size):
        x[rows] = draw(_part(found, rows), size)
        if progress is not None:
            progress(rows.stop, count)
    label = len(SHAPES) * found.colour[:, 0] + found.shape[:, 0]
    return x, label if objects == 1 else None


def draw(found: Factors, size: int) -> np.ndarray:
    """The images that consist of these factors, uint8 [N, 3, size, size].

    Rotations are taken to the nearest 1/256 of a period.
    """
    colours = np.array(list(COLOURS.values()), np.uint16)[found.colour]
    grounds = np.array(list(BACKGROUNDS.values()), np.uint16)[found.background]
    drawn = np.empty((len(found.shape), 3, size, size), np.uint8)
    for rows in _chunks(len(drawn), size):
        image = np.broadcast_to(grounds[rows, :, None, None], drawn[rows].shape)
        for k in range(found.shape.shape[1]):
            cover = _coverage(_part(found, rows), k, size)[:, None]
            # At most 256 · 255 + 128: no overflow.
            image = (cover * colours[rows, k, :, None, None] + (256 - cover) * image + 128) >> 8
        drawn[rows] = image
    return drawn


def captions(found: Factors) -> tuple[str, ...]:
    """What there is to see in each image, such as "a large red star at the top left, on white".

    Large and small are the upper and the lower third of the sizes. What lies within 1/16 of the
    side of the middle is neither left nor right, or neither top nor bottom. Several objects are
    named from front to back.
    """
    return tuple(_caption(_part(found, slice(i, i + 1))) for i in range(len(found.shape)))


def _caption(one: Factors) -> str:
    shapes, colours, grounds = (list(table) for table in (SHAPES, COLOURS, BACKGROUNDS))
    objects = one.shape.shape[1]
    low, high = FREEDOM[objects]
    phrases = []
    for k in reversed(range(objects)):
        part = (one.size[0, k] * GRID - low) / (high - low)
        extent = "small " if part < 1 / 3 else "large " if part > 2 / 3 else ""
        words = f"{extent}{colours[one.colour[0, k]]} {shapes[one.shape[0, k]]}"
        across = _word(one.x[0, k], "left", "right")
        along = _word(one.y[0, k], "top", "bottom")
        place = f"at the {' '.join(filter(None, (along, across)))}" if along or across else ""
        article = "an" if words[0] in "aeiou" else "a"
        phrases.append(f"{article} {words} {place or 'in the middle'}")
    *first, last = phrases
    listed = f"{', '.join(first)} and {last}" if first else last
    return f"{listed}, on {grounds[one.background[0]]}"


def _word(place: float, before: str, after: str) -> str:
    return before if place < 7 / 16 else after if place > 9 / 16 else ""


def _part(found: Factors, rows: slice | np.ndarray) -> Factors:
    return Factors(*(column[rows] for column in found))


def _chunks(count: int, size: int) -> Iterator[slice]:
    step = max(1, _CHUNK // size**2)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _seen(found: Factors) -> np.ndarray:
    """The share of each object's area that no later object covers, float64 [N, objects]."""
    covers = [_coverage(found, k, _RASTER) / 256 for k in range(found.shape.shape[1])]
    free = np.ones_like(covers[0])
    shares = []
    for cover in reversed(covers):
        shares.append((cover * free).sum(axis=(1, 2)) / cover.sum(axis=(1, 2)))
        free *= 1 - cover
    return np.stack(shares[::-1], axis=1)


def _coverage(found: Factors, k: int, size: int) -> np.ndarray:
    """How much of each pixel object k covers, in 256ths, uint16 [N, size, size]."""
    cover = np.zeros((len(found.shape), size, size), np.uint16)
    # Whatever pixel has its centre half a pixel or more beyond the radius is bare: the others
    # are in a window.
    reach = size * float(found.size[:, k].max(initial=0))
    window = np.arange(min(size, math.ceil(2 * reach) + 1))
    for number, form in enumerate(SHAPES.values()):
        rows = np.flatnonzero(found.shape[:, k] == number)
        if len(rows) == 0:
            continue
        x, y = size * found.x[rows, k, None], size * found.y[rows, k, None]
        first = np.clip(np.floor(np.stack((x, y)) - reach), 0, size - len(window)).astype(np.int64)
        column, row = first + window
        right, down = (column + 0.5 - x)[:, None, :], (row + 0.5 - y)[:, :, None]
        radius = (size * found.size[rows, k])[:, None, None]
        r = np.sqrt(right**2 + down**2)
        if form.axes:
            turn = np.rint(found.rotation[rows, k] * (form.axes * TURNS / 360)).astype(np.int64)
            u, v = _along(form, turn, right, down)
        else:
            u, v = r, np.zeros_like(r)
        d = r - radius
        for a, b, c in form.faces:
            face = _rounded(a) * u
            if b:
                face += _rounded(b) * v
            np.maximum(d, face - _rounded(c) * radius, out=d)
        part = np.floor(np.clip(0.5 - d, 0, 1) * 256 + 0.5)
        cover[rows[:, None, None], row[:, :, None], column[:, None, :]] = part
    return cover


def _along(
    form: Form, turn: np.ndarray, right: np.ndarray, down: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """u and v of points `right` [N, 1, W] and `down` [N, H, 1] of a centre; turn: int64 [N]."""
    directions = _directions(form)
    for j in range(form.axes):
        e, f = directions[:, (turn + TURNS * j) % (TURNS * form.axes)][:, :, None, None]
        along, off = right * e + down * f, np.abs(right * f - down * e)
        if j == 0:
            u, v = along, off
        else:
            nearer = along > u
            u, v = np.where(nearer, along, u), np.where(nearer, off, v)
    return u, v


@cache
def _directions(form: Form) -> np.ndarray:
    """Unit vectors (right, down) of the first axis after each turn, [2, 256 axes], to 2⁻¹⁵."""
    turns = (np.arange(TURNS * form.axes) / TURNS + form.first) / form.axes
    angle = 2 * np.pi * turns
    directions: np.ndarray = np.rint(np.stack((-np.sin(angle), -np.cos(angle))) * _FINE) / _FINE
    return directions


def _rounded(value: float) -> float:
    return round(value * _FINE) / _FINE
