"""Which way a picture moves, from its frames alone.

With S the shift of all columns by one to the right, the last one coming in on the left, a pair of
successive frames moves to the right if the later one is nearer to what the earlier would then be:

    ‖x_{t+1} − Sᵏ x_t‖² < ‖x_{t+1} − S⁻ᵏ x_t‖²   ⇔   c_t(k) > c_t(−k),   c_t(d) = ⟨x_{t+1}, Sᵈ x_t⟩

where k is the speed, and c_t the circular cross-correlation; the two are one criterion because a
shift keeps the norm. Brightness and contrast, x → a x + b with a > 0, change nothing of it, and
independent noise nothing in the mean. Of a picture that does move by d k, c_t(d k) is the
largest value of its autocorrelation: the answer is right without exception, but for pictures
that look the same after 2 k columns, of which nobody can say.

`direction` sums over all pairs: where frames are blurred, each says a little. `displacements` says
how far each pair has moved, whatever the speed: the d of the largest c_t(d).
"""

from __future__ import annotations

import numpy as np

from ornstein.errors import ConfigError

TIED = 1e-9
"""Differences below this share of the frames' energy are rounding: nothing has moved."""


def direction(frames: np.ndarray, speed: int = 1) -> np.ndarray:
    """+1 where a sequence moves to the right, −1 to the left, 0 where neither is nearer: int64 [N].

    frames: [N, T, C, H, W] of any number type, or one sequence [T, C, H, W], which gives a number
    of shape []; T at least 2. speed: columns between two frames that follow each other, which is
    larger where only some frames of a sequence are given. Raises: ConfigError for other shapes.
    """
    x = _checked(frames)
    if not 1 <= speed < x.shape[-1]:
        raise ConfigError(
            f"frames of {x.shape[-1]} columns can move by 1 to {x.shape[-1] - 1}, not by {speed}"
        )
    after, before = x[..., 1:, :, :, :], x[..., :-1, :, :, :]
    axes = (-4, -3, -2, -1)
    right, left = (
        (after * np.roll(before, shift, axis=-1)).sum(axes, dtype=np.float64)
        for shift in (speed, -speed)
    )
    difference = right - left
    tied = np.abs(difference) <= TIED * np.square(x).sum(axes)
    found: np.ndarray = np.where(tied, 0, np.sign(difference)).astype(np.int64)
    return found


def displacements(frames: np.ndarray) -> np.ndarray:
    """By how many columns each pair of successive frames has moved to the right: int64 [N, T − 1].

    Whole numbers above −W/2 and up to W/2, of equals the one nearest to 0; one sequence [T, C, H,
    W] gives [T − 1]. Raises: ConfigError for other shapes.
    """
    x = _checked(frames)
    width = x.shape[-1]
    waves = np.fft.rfft(x, axis=-1)
    product = waves[..., 1:, :, :, :] * waves[..., :-1, :, :, :].conj()
    correlation = np.fft.irfft(product.sum((-3, -2)), width, axis=-1)  # [..., T − 1, W]
    shift = np.arange(width)
    shift = np.where(shift > width // 2, shift - width, shift)
    nearest = np.argsort(np.abs(shift), kind="stable")
    scale = np.abs(correlation).max(-1, keepdims=True)
    ordered = np.rint(correlation[..., nearest] / np.maximum(scale, 1e-300) / TIED)
    found: np.ndarray = shift[nearest][ordered.argmax(-1)]
    return found


def _checked(frames: np.ndarray) -> np.ndarray:
    if frames.ndim not in (4, 5) or frames.shape[-4] < 2:
        raise ConfigError(
            "a motion is that of at least 2 frames, [N, T, C, H, W] or [T, C, H, W]; got "
            f"{list(frames.shape)}"
        )
    x = frames.astype(np.float64)
    # Brightness says nothing, and would hide a faint picture in its rounding.
    centred: np.ndarray = x - x.mean((-4, -3, -2, -1), keepdims=True)
    return centred
