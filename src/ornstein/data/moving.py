"""Sequences of which everything is known: a picture that moves left or right, and comes round.

    x_t(i, j) = s(i, (j − start − direction · speed · t) mod size),    t = 0 ... frames − 1

Frame t is one picture s, moved along its rows on a ring: what leaves on one side comes in on the
other. Direction and speed are constant, so that a few frames tell all that follow. It is the test
of TD-VAE (K. Gregor et al. 2019, arXiv:1806.03107, §5.2), which moves MNIST's digits by one pixel
a frame; a model that says where the picture is but not which way it goes fails it.

    moving_digits   one of scikit-learn's digits, enlarged to ¾ of the side, light on black
    moving_shapes   a coloured shape on a plain ground, see `ornstein.data.shapes`

The factors of sequence i depend on (seed, i) only, so that a larger set begins with the smaller
one, and they are independent and uniform. Pictures are moved by whole pixels and enlarged in whole
numbers: every machine draws the same bytes.

Enlarging is linear between the centres of pixels, x'(i) at (i + ½) 8/m − ½ of the 8 that there
are, and the outermost ones beyond them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from ornstein.data import shapes
from ornstein.data.digits import digits
from ornstein.errors import ConfigError
from ornstein.noise import Noise

VERSION = 1
"""Another number means other sequences for the same choice."""

NAMES = ("moving_digits", "moving_shapes")

SMALLEST = 8
"""Pixels on a side, at the least."""

FASTEST = 3
"""Pixels a frame, at the most: at half a turn a frame, left and right would be the same."""

_COUNT = 1797  # of digits
_CHUNK = 1 << 22  # pixels that are drawn at a time


class Factors(NamedTuple):
    """What sequences consist of, N of each.

    identity: int64, of digits the number of the picture among scikit-learn's 1,797, of shapes that
    of colour and shape in `shapes.CLASSES`. start: int64, how many pixels the picture is moved to
    the right in frame 0; at 0 it is in the middle. direction: int64, +1 to the right, −1 to the
    left. speed: int64, pixels a frame. shape: what else there is to shapes, with the centre in the
    middle of a row; None for digits.
    """

    identity: np.ndarray
    start: np.ndarray
    direction: np.ndarray
    speed: np.ndarray
    shape: shapes.Factors | None = None

    def moved(self, t: int) -> np.ndarray:
        """How many pixels to the right the picture is moved in frame t, int64 [N]; it is no
        matter that this may pass a whole turn."""
        moved: np.ndarray = self.start + self.direction * self.speed * t
        return moved


def factors(
    name: str,
    ids: Sequence[int] | range | int,
    size: int = 16,
    speed: int = 1,
    seed: int = 0,
) -> Factors:
    """The factors of the sequences with these numbers (a whole number: of those below it).

    size: pixels on a side of a frame. speed: pixels a frame. Raises: ConfigError for a name or a
    speed that there is not, for frames that are too small, and for a number below 0.
    """
    if name not in NAMES or (isinstance(ids, int) and ids < 0):
        raise ConfigError(
            f"0 or more sequences of moving_digits or moving_shapes are drawn; got {ids} of {name}"
        )
    if size < SMALLEST or not 1 <= speed <= FASTEST:
        raise ConfigError(
            f"moving pictures are at least {SMALLEST} pixels a side and move 1 to {FASTEST} pixels "
            f"a frame; got {size} and {speed}"
        )
    noise = Noise.of(seed, name, ids)
    start = noise.integers(0, size).numpy()
    direction = 1 - 2 * noise.integers(1, 2).numpy()
    speeds = np.full(len(start), speed, np.int64)
    if name == "moving_digits":
        return Factors(noise.integers(2, _COUNT).numpy(), start, direction, speeds)
    shape = shapes.factors(ids, 1, seed)
    shape = shape._replace(x=np.full_like(shape.x, 0.5))
    identity = len(shapes.SHAPES) * shape.colour[:, 0] + shape.shape[:, 0]
    return Factors(identity, start, direction, speeds, shape)


def moving(
    name: str,
    count: int,
    frames: int = 20,
    size: int = 16,
    speed: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`count` sequences, uint8 [count, frames, C, size, size], and their labels, int64 [count].

    Digits have one channel and name 0 ... 9, shapes have three and number `shapes.CLASSES`. Of
    direction and start the label says nothing. Raises: ConfigError as `factors`; DataError where
    scikit-learn's digits are not there.
    """
    found = factors(name, count, size, speed, seed)
    label, channels = found.identity, 3
    if name == "moving_digits":
        label, channels = _digits()[1][label], 1
    x = np.empty((count, frames, channels, size, size), np.uint8)
    step = max(1, _CHUNK // (frames * channels * size**2))
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        x[rows] = draw(_part(found, rows), frames, size)
        if progress is not None:
            progress(rows.stop, count)
    return x, label


def draw(found: Factors, frames: int, size: int) -> np.ndarray:
    """The sequences that consist of these factors, uint8 [N, frames, C, size, size]."""
    if found.shape is None:
        still = enlarged(_digits()[0][found.identity], size)
    else:
        still = shapes.draw(found.shape, size)
    moved = np.stack([found.moved(t) for t in range(frames)], axis=1)  # [N, frames]
    column = (np.arange(size) - moved[..., None]) % size  # [N, frames, W]
    # Of each frame's row, the columns that have come to stand in it.
    return np.take_along_axis(still[:, None], column[:, :, None, None], axis=4)


def enlarged(x: np.ndarray, size: int) -> np.ndarray:
    """Digits [N, 1, 8, 8] with values 0 ... 16 as uint8 [N, 1, size, size]: enlarged to ¾ of the
    side, in the middle of black, 16 as 255."""
    side = 3 * size // 4
    weights = _linear(x.shape[-1], side)  # in parts of 2 side
    total = weights @ x.astype(np.int64) @ weights.T * 255
    whole = 16 * (2 * side) ** 2
    before = (size - side) // 2
    framed = np.zeros((*x.shape[:2], size, size), np.uint8)
    inside = slice(before, before + side)
    framed[:, :, inside, inside] = (2 * total + whole) // (2 * whole)  # rounded, halves up
    return framed


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    return digits()


def _linear(old: int, new: int) -> np.ndarray:
    """Weights of the old values in the new ones, int64 [new, old]; each row's sum is 2 new."""
    # (2 i + 1) old / (2 new) − ½, in parts of 2 new.
    place = np.clip((2 * np.arange(new) + 1) * old - new, 0, 2 * new * (old - 1))
    weights: np.ndarray = np.maximum(0, 2 * new - np.abs(place[:, None] - 2 * new * np.arange(old)))
    return weights


def _part(found: Factors, rows: slice) -> Factors:
    identity, start, direction, speed = (column[rows] for column in found[:4])
    shape = None
    if found.shape is not None:
        shape = shapes.Factors(*(column[rows] for column in found.shape))
    return Factors(identity, start, direction, speed, shape)
