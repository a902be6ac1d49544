"""The weights of far modes: plain and annealed Langevin dynamics (notes after eq 1.13, fig 1.3).

    python benchmarks/langevin.py OUT.png

Data are 0.8 N((5, 5), I) + 0.2 N((−5, −5), I), the example of Y. Song, S. Ermon 2019,
arXiv:1907.05600, §3.2.2, with their exact score. Plain Langevin makes 2000 updates from two
starts; annealed Langevin makes as many, 20 at each of 100 levels of noise, and ends with x̂0. The
picture shows where 4000 samples of each end, with the share of each mode, and above the share of
the heavier mode as the updates go on. It is 0.8 where the weights are right.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ornstein import pictures
from ornstein.charts import (
    COLOURS,
    FAINT,
    INK,
    LEFT,
    PAPER,
    SCALE,
    SMALL,
    Curve,
    Panel,
    chart,
    write,
)
from ornstein.diffusion.grid import LogSNR
from ornstein.diffusion.langevin import Annealed, Corrected, Fixed, Keep, Langevin
from ornstein.diffusion.levels import Level
from ornstein.diffusion.oracle import Mixture
from ornstein.diffusion.process import VE
from ornstein.diffusion.walk import sample
from ornstein.noise import Noise
from ornstein.strips import stacked

COUNT, UPDATES, LEVELS = 4000, 2000, 100
STEP = 0.1  # a of plain Langevin, for modes of variance 1
REACH, PIXELS, GAP = 9.0, 280, 24  # the square that is drawn, its side, and what is between two
HEAD = 48  # pixels for the name above a square
WEIGHT = 0.8
MODES = torch.tensor([[5.0, 5.0], [-5.0, -5.0]], dtype=torch.float64)
DATA = Mixture(
    torch.tensor([WEIGHT, 1 - WEIGHT]), MODES, torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
)


def main() -> None:
    out = Path(sys.argv[1])
    square = 16 * (Noise.of(0, "square", COUNT).uniform(0, (2,), torch.float64) - 0.5)
    light = MODES[1] + Noise.of(0, "mode", COUNT).normal(0, (2,), torch.float64)
    walks = {
        "plain, from the whole square": plain(square),
        "plain, from the lighter mode": plain(light),
        "annealed, from pure noise": annealed(),
    }
    truth = DATA.sample(Noise.of(0, "data", COUNT))
    curves = [Curve([0, UPDATES], [WEIGHT, WEIGHT], "the data")]
    tiles = [tile("the data", truth, WEIGHT, 0)]
    for name, walk in walks.items():
        steps, shares, x = [], [], truth
        for update, x in walk:
            steps.append(update)
            shares.append(heavy(x))
        tiles.append(tile(name, x, shares[-1], len(curves)))
        curves.append(Curve(steps, shares, name))
        print(f"{name:30} {shares[-1]:.3f}")
    width = 4 * PIXELS + 3 * GAP
    axes = Panel(
        curves,
        "Share of the samples at the mode whose weight is 0.8",
        "updates",
        x_range=(0, UPDATES),
        y_range=(0, 1),
    )
    above = chart([axes], size=(width // SCALE, 170))
    row = Image.new("RGB", (above.width, HEAD + PIXELS + GAP), PAPER)
    for i, part in enumerate(tiles):
        row.paste(part, (LEFT * SCALE + i * (PIXELS + GAP), 0))
    out.write_bytes(pictures.png(stacked([above, row])))
    print(out)


def plain(x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The number of updates, and where they have led: Langevin dynamics on the data's own score."""
    levels = (Level(0.5, 1.0, 0.01),) * (UPDATES + 1)
    noise = Noise.of(0, "plain", COUNT)
    yield 0, x
    for state in sample(DATA, VE(), levels, Langevin(size=Fixed(step=STEP)), x, noise):
        yield state.step, state.x


def annealed() -> Iterator[tuple[int, Tensor]]:
    """The same over levels of noise from 10 to 0.5, with steps of a fifth of their variance.

    Eq 1.17 would choose shorter ones, for data that are a point: 0.04 of it, and a share of 0.791
    where these have 0.794 in the limit of many samples.
    """
    process, updates = VE(sigma_min=0.5, sigma_max=10), UPDATES // LEVELS
    step = Corrected(
        corrector=Langevin(updates=updates, size=Annealed(eps=0.2 * 0.5**2)),
        predictor=Keep(denoise=True),
    )
    x = 10 * Noise.of(0, "start", COUNT).normal(0, (2,), torch.float64)
    noise = Noise.of(0, "annealed", COUNT)
    yield 0, x
    for state in sample(DATA, process, LogSNR()(process, LEVELS), step, x, noise):
        yield state.step * updates, state.x


def heavy(x: Tensor) -> float:
    """The share of samples on the heavier mode's side."""
    return (x.sum(1) > 0).double().mean().item()


def tile(name: str, x: Tensor, share: float, colour: int) -> Image.Image:
    """Samples [N, 2] as points in the square, under a name, with the share of each mode beside."""
    place = np.rint((x.numpy() / REACH * 0.5 + 0.5) * (PIXELS - 1)).astype(int)
    column, row = place[((place >= 0) & (place < PIXELS)).all(1)].T
    counts = np.zeros((PIXELS, PIXELS))
    np.add.at(counts, (PIXELS - 1 - row, column), 1)
    paper, ink = (
        np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) for code in (PAPER, COLOURS[colour])
    )
    light = (0.3**counts)[..., None]
    image = Image.new("RGB", (PIXELS, HEAD + PIXELS), PAPER)
    image.paste(Image.fromarray((light * paper + (1 - light) * ink).astype(np.uint8)), (0, HEAD))
    ImageDraw.Draw(image).rectangle((0, HEAD, PIXELS - 1, HEAD + PIXELS - 1), outline=FAINT)
    write(image, (0, HEAD / 2), name, SMALL, INK, "lm")
    for mode, weight, way in zip(MODES.tolist(), (share, 1 - share), (-1, 1), strict=True):
        left = (mode[0] / REACH * 0.5 + 0.5) * PIXELS + way * 0.2 * PIXELS
        top = HEAD + (0.5 - mode[1] / REACH * 0.5) * PIXELS
        write(image, (left, top), f"{weight:.2f}", SMALL, INK, "rm" if way < 0 else "lm")
    return image


if __name__ == "__main__":
    main()
