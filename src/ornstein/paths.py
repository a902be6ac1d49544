"""Data made into noise and noise into data, path by path, in one dimension (notes fig 1.4).

    forward            dx = f x dt + g dw                     by its transitions, which are exact
    reverse SDE        dx = [f x − g² ∇log p_t] dt + g dw̄     notes eq 1.20
    probability flow   dx = [f x − ½ g² ∇log p_t] dt          notes eq 1.22

The data are a mixture of three Gaussians, so that p_t and its score are known. All three have the
same p_t at every time: the picture shows it behind the paths, shade by shade (at each time in
proportion to its largest value), and at the ends as a curve, with the histogram of what many paths
of either kind arrive at. Paths of the flow start where those of the SDE do; they never cross.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ornstein.charts import (
    COLOURS,
    FAINT,
    INK,
    LARGE,
    PAPER,
    SCALE,
    SMALL,
    TEXT,
    number,
    text_width,
    write,
)
from ornstein.charts import ticks as round_ticks
from ornstein.diffusion.grid import Uniform
from ornstein.diffusion.levels import Level
from ornstein.diffusion.oracle import Mixture
from ornstein.diffusion.process import NoisingProcess, transition
from ornstein.diffusion.steps import Heun
from ornstein.diffusion.stochastic import StochasticHeun
from ornstein.diffusion.walk import SamplerStep, sample
from ornstein.noise import Noise
from ornstein.strips import stacked

STEPS = 300
SHOWN = 6  # paths of each kind in the picture
COUNT = 2000  # paths that the histograms and shares are of
WEIGHTS, MEANS, STD = (0.4, 0.35, 0.25), (-1.2, 0.2, 1.4), 0.15
EDGES = (-0.5, 0.8)  # between the three Gaussians
GROWTH = 4.0  # of the standard deviation, beyond which the vertical axis is not linear
FORWARD, REVERSE, FLOW, SHADE = COLOURS[2], COLOURS[1], COLOURS[0], (150, 146, 196)


class Walks(NamedTuple):
    """Paths in time: t [T + 1] and x [N, T + 1], both in the order in which they are walked."""

    t: np.ndarray
    x: np.ndarray


def data() -> Mixture:
    """The law of the data, of mean −0.06 and standard deviation 1.05."""
    means = torch.tensor(MEANS, dtype=torch.float64).unsqueeze(1)
    return Mixture(torch.tensor(WEIGHTS), means, torch.full((3, 1, 1), STD**2))


def forward(process: NoisingProcess, x0: Tensor, noise: Noise, steps: int = STEPS) -> Walks:
    """From data x0 [N, 1] to noise: x_t = α_{t|s} x_s + σ_{t|s} z, from one time to the next."""
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    alphas, stds = transition(process, t[:-1], t[1:])
    alpha, sigma = process(t[:1])
    x = alpha * x0 + sigma * _normal(noise.child("start"))
    states = [x]
    for i, (alpha, std) in enumerate(zip(alphas, stds, strict=True)):
        x = alpha * x + std * _normal(noise.child("path").at(i))
        states.append(x)
    return Walks(t.numpy(), torch.cat(states, dim=1).numpy())


def reverse(
    process: NoisingProcess, step: SamplerStep, z: Tensor, noise: Noise, steps: int = STEPS
) -> Walks:
    """From noise to data, z [N, 1] standard normal, by a step with the exact denoiser."""
    levels = Uniform()(process, steps)
    x = math.hypot(levels[0].alpha, levels[0].sigma) * z
    states = [x, *(state.x for state in sample(data(), process, levels, step, x, noise))]
    return Walks(np.array([float(k.t) for k in levels]), torch.cat(states, dim=1).numpy())


class Portrait(NamedTuple):
    """What is drawn of a process: some paths of each kind, and where many arrive, [N]."""

    forward: Walks
    sde: Walks
    flow: Walks
    noised: np.ndarray
    of_sde: np.ndarray
    of_flow: np.ndarray


def portrait(
    process: NoisingProcess, seed: int = 0, count: int = COUNT, steps: int = STEPS
) -> Portrait:
    """The paths of a process. Those shown start at even quantiles, of the data and of N(0, 1), so
    that they are seen all over; `count` others at random."""
    many, few = Noise.of(seed, "paths", count), Noise.of(seed, "shown paths", SHOWN)
    even = (torch.arange(SHOWN, dtype=torch.float64) + 0.5) / SHOWN
    x0, z = data().sample(many.child("data")), _normal(many.child("noise"))
    few_x0 = torch.quantile(x0, even, dim=0)
    few_z = torch.special.ndtri(even).unsqueeze(1)
    sde, flow = StochasticHeun(), Heun()
    return Portrait(
        forward(process, few_x0, few, steps),
        reverse(process, sde, few_z, few.child("back"), steps),
        reverse(process, flow, few_z, few.child("back"), steps),
        forward(process, x0, many, steps).x[:, -1],
        reverse(process, sde, z, many.child("back"), steps).x[:, -1],
        reverse(process, flow, z, many.child("back"), steps).x[:, -1],
    )


def shares(x: np.ndarray) -> list[float]:
    """How many of the samples are of each of the three Gaussians."""
    counts = np.bincount(np.searchsorted(EDGES, x), minlength=3)
    return [float(share) for share in counts / len(x)]


# ── Drawing: all lengths are in pixels; a row is drawn twice too large and averaged down.

FINE = 2
WIDE, HIGH, SIDE, GAP = 340 * SCALE, 190 * SCALE, 48 * SCALE, 8 * SCALE
LEFT, ABOVE, BELOW, RIGHT = 56 * SCALE, 40 * SCALE, 30 * SCALE, 16 * SCALE


class Vertical(NamedTuple):
    """The vertical axis within ±reach: linear, or `bent`, asinh(x), which is linear about 0 and
    logarithmic far off. Rows count from the top."""

    reach: float
    bent: bool

    def place(self, x: np.ndarray, high: int) -> np.ndarray:
        """The row of x, 0 to high."""
        share: np.ndarray = self._bend(x) / self._bend(np.array(self.reach))
        return (1 - share) * high / 2

    def at(self, row: np.ndarray, high: int) -> np.ndarray:
        """x at some rows."""
        bent: np.ndarray = (1 - 2 * row / high) * self._bend(np.array(self.reach))
        return np.sinh(bent) if self.bent else bent

    def ticks(self) -> list[float]:
        if not self.bent:
            return [tick for tick in round_ticks(-self.reach, self.reach) if abs(tick) < self.reach]
        decades = range(math.floor(math.log10(self.reach)) + 1)
        marks = [f * 10.0**k for k in decades for f in (1, 3) if f * 10.0**k < 0.9 * self.reach]
        return [*(-mark for mark in reversed(marks)), 0.0, *marks]

    def _bend(self, x: np.ndarray) -> np.ndarray:
        return np.arcsinh(x) if self.bent else x


def vertical(process: NoisingProcess) -> Vertical:
    """Three standard deviations of the widest p_t; bent where that is much wider than the data."""
    alpha, sigma = process(torch.linspace(0, 1, 101, dtype=torch.float64))
    widest = float(torch.sqrt(1.1 * alpha**2 + sigma**2).max())
    return Vertical(3.1 * widest, widest > GROWTH)


def density(process: NoisingProcess, t: np.ndarray, x: np.ndarray) -> np.ndarray:
    """p_t(x) at some times [T] and places [N]: [N, T]."""
    at, where = torch.from_numpy(t).clamp(min=1e-6), torch.from_numpy(x)
    alpha, sigma = process(at)
    columns = [
        data().log_prob(where.unsqueeze(1), Level(*(float(c) for c in row))).exp()
        for row in zip(at, alpha, sigma, strict=True)
    ]
    return torch.stack(columns, dim=1).numpy()


def picture(portraits: Mapping[str, tuple[NoisingProcess, Portrait]]) -> Image.Image:
    """A row for each process, by name."""
    rows = [row(name, process, found) for name, (process, found) in portraits.items()]
    return stacked([_legend(rows[0].width), *rows])


def row(name: str, process: NoisingProcess, found: Portrait) -> Image.Image:
    """From left to right: data, forward paths, noise, reverse paths, data."""
    axis = vertical(process)
    clean, noised = (density(process, np.array([t]), _middles(axis))[:, 0] for t in (0.0, 1.0))
    pieces = [
        ("data", _side(clean, axis, [], left=True)),
        ("data to noise", _panel(process, axis, [(found.forward, FORWARD, 1.1)])),
        ("noise", _side(noised, axis, [(found.noised, FORWARD)])),
        (
            "noise to data",
            _panel(process, axis, [(found.sde, REVERSE, 1.1), (found.flow, FLOW, 1.7)], back=True),
        ),
        ("data", _side(clean, axis, [(found.of_sde, REVERSE), (found.of_flow, FLOW)])),
    ]
    width = LEFT + sum(piece.width for _, piece in pieces) + GAP * (len(pieces) - 1) + RIGHT
    image = Image.new("RGB", (width, ABOVE + HIGH + BELOW), PAPER)
    write(image, (LEFT, 12 * SCALE), name, TEXT, INK, "lm")
    left = LEFT
    for i, (title, piece) in enumerate(pieces):
        image.paste(piece, (left, ABOVE))
        place = (left + piece.width / 2, ABOVE - 10 * SCALE)
        write(image, place, title, SMALL, INK if i % 2 else FAINT, "mm")
        if i % 2:
            _times(image, left, back=i == 3)
        left += piece.width + GAP
    for tick in axis.ticks():
        y = ABOVE + float(axis.place(np.array(tick), HIGH))
        write(image, (LEFT - 6 * SCALE, y), number(tick), SMALL, FAINT, "rm")
    return image


def _middles(axis: Vertical) -> np.ndarray:
    """x in the middle of each row of pixels, [HIGH]."""
    return axis.at(np.arange(HIGH) + 0.5, HIGH)


def _panel(
    process: NoisingProcess,
    axis: Vertical,
    kinds: Sequence[tuple[Walks, str, float]],
    back: bool = False,
) -> Image.Image:
    """p_t in shades, and paths on it; time runs to the right, or to the left."""
    t = (np.arange(WIDE // 4) + 0.5) / (WIDE // 4)
    shade = density(process, t, _middles(axis))
    shade = np.sqrt(shade / shade.max(axis=0)).repeat(4, axis=1)[:, :: -1 if back else 1]
    pixels = 255 - shade[..., None] * (255 - np.array(SHADE))
    canvas = _large(Image.fromarray(pixels.astype(np.uint8)))
    draw = ImageDraw.Draw(canvas)
    for walks, colour, width in kinds:
        across = (1 - walks.t if back else walks.t) * canvas.width
        for path in walks.x:
            points = np.stack([across, axis.place(path, canvas.height)], axis=1)
            draw.line(points.ravel().tolist(), colour, round(width * SCALE * FINE), joint="curve")
    return _small(canvas)


def _side(
    exact: np.ndarray, axis: Vertical, arrived: Sequence[tuple[np.ndarray, str]], left: bool = False
) -> Image.Image:
    """A density [HIGH] against the vertical axis, and histograms of samples as outlines."""
    canvas = Image.new("RGB", (SIDE * FINE, HIGH * FINE), PAPER)
    draw = ImageDraw.Draw(canvas)
    base = canvas.width - 1 if left else 0

    def outline(value: np.ndarray, rows: np.ndarray) -> list[float]:
        length = np.minimum(0.9 * value / exact.max(), 1) * (canvas.width - 1)
        return np.stack([abs(base - length), rows * FINE], axis=1).ravel().tolist()

    body = outline(exact, np.arange(HIGH) + 0.5)
    draw.polygon([base, 0, *body, base, canvas.height], SHADE)
    edges = np.linspace(0, HIGH, HIGH // 6 + 1)
    for samples, colour in arrived:
        counts, _ = np.histogram(axis.place(samples, HIGH), edges)
        heights = counts / len(samples) / -np.diff(axis.at(edges, HIGH))
        steps = outline(heights.repeat(2), edges.repeat(2)[1:-1])
        draw.line(steps, colour, round(1.2 * SCALE * FINE))
    return _small(canvas)


def _times(image: Image.Image, left: int, back: bool) -> None:
    """The frame of a panel, and its horizontal axis."""
    draw, bottom = ImageDraw.Draw(image), ABOVE + HIGH
    draw.rectangle((left, ABOVE, left + WIDE - 1, bottom - 1), None, FAINT, 1)
    for t in (0.0, 0.25, 0.5, 0.75, 1.0):
        place = left + (1 - t if back else t) * (WIDE - 1)
        draw.line((place, bottom, place, bottom + 3 * SCALE), FAINT, 1)
        text = f"t = {t:g}" if t == float(back) else f"{t:g}"
        write(image, (place, bottom + 6 * SCALE), text, SMALL, FAINT, "mt")


def _legend(width: int) -> Image.Image:
    image = Image.new("RGB", (width, 54 * SCALE), PAPER)
    draw = ImageDraw.Draw(image)
    write(image, (LEFT, 18 * SCALE), "Paths of a diffusion, forward and back", LARGE, INK, "lm")
    left, middle = LEFT, 42 * SCALE
    shade = "#{:02X}{:02X}{:02X}".format(*SHADE)
    for text, colour, high in (
        ("forward SDE", FORWARD, 2),
        ("reverse SDE", REVERSE, 2),
        ("probability flow, from the same starts", FLOW, 3),
        ("density at each time", shade, 10),
    ):
        half = high * SCALE // 2
        draw.rectangle((left, middle - half, left + 20 * SCALE, middle + half - 1), colour)
        write(image, (left + 26 * SCALE, middle), text, SMALL, INK, "lm")
        left += 52 * SCALE + text_width(text, SMALL)
    return image


def _large(image: Image.Image) -> Image.Image:
    size = image.width * FINE, image.height * FINE
    return image.resize(size, Image.Resampling.NEAREST)


def _small(image: Image.Image) -> Image.Image:
    size = image.width // FINE, image.height // FINE
    return image.resize(size, Image.Resampling.BOX)


def _normal(noise: Noise) -> Tensor:
    return noise.normal(0, (1,), torch.float64)
