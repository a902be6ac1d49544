"""How far the codes of a run keep apart the factors that its images of shapes are made from.

The factors of a single shape (`data.shapes`) that a code can be asked for:

    shape 6, colour 8, background 4     classes, of which none is between two others
    x, y, size 8 each                   quantities, at 8 evenly spaced values from end to end

Rotation is none of them: circles and rings have none, and a turn means another angle for a square
than for a star. It is drawn evenly, as in the data, and is a nuisance to all four scores. Codes are
the likeliest ones, q's mean for a VAE; the definitions are in `metrics.disentanglement`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ornstein.autoencoders.codec import Codec
from ornstein.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    FREEDOM,
    GRID,
    MARGIN,
    SHAPES,
    TURNS,
    Factors,
    draw,
    period,
)
from ornstein.data.sources import Shapes
from ornstein.errors import ConfigError
from ornstein.metrics.disentanglement import DCI, PAIRS, VOTES, beta_vae_score, dci, mig, sap
from ornstein.noise import Noise
from ornstein.scores import Estimate

if TYPE_CHECKING:
    from ornstein.run import Run

COUNT = 5000
LEVELS = 8  # values of a quantity
FACTORS = {
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "background": len(BACKGROUNDS),
    "x": LEVELS,
    "y": LEVELS,
    "size": LEVELS,
}
"""How many values each has, in the order of the columns of factors."""
ORDERED = (False, False, False, True, True, True)
_BATCH = 512  # images that are encoded at a time


class Disentanglement(NamedTuple):
    """The four scores; see `metrics.disentanglement`. importance of `dci` is [units, factors]."""

    mig: Estimate
    sap: Estimate
    dci: DCI
    beta_vae: Estimate


def disentanglement(
    run: Run,
    n: int = COUNT,
    seed: int = 0,
    *,
    pairs: int = PAIRS,
    votes: int = VOTES,
    average: str = "",
) -> Disentanglement:
    """The scores of a run's codes on `n` new images, and 2 · `pairs` · `votes` for the last score.

    seed: of factors, rotations and votes. average: of the run's weights, see `Run.generate`.
    Raises: ConfigError where the run has no codes, or learns no single shapes.
    """
    data = run.recipe.data
    if not isinstance(data, Shapes) or data.objects != 1:
        raise ConfigError(
            f"{run.path.name} was trained on data whose factors are not known; disentanglement is "
            "measured on single shapes: train with --data shapes"
        )
    model = run.learner(average).model
    if not isinstance(model, Codec):
        raise ConfigError(
            f"{run.path.name} has no codes to be disentangled; train an autoencoder, such as "
            "beta_vae"
        )
    a, b = run.info.affine(run.recipe.objective.range)

    def encode(values: Tensor, noise: Noise) -> Tensor:
        return encoded(model, a * torch.from_numpy(images(values, noise, data.size)) + b)

    values = drawn(n, seed)
    codes = encode(values, Noise.of(seed, "disentangling/images", n))
    return Disentanglement(
        mig(codes, values),
        sap(codes, values, ORDERED),
        dci(codes, values, ORDERED, seed),
        beta_vae_score(encode, tuple(FACTORS.values()), pairs, votes, seed),
    )


def drawn(n: int, seed: int) -> Tensor:
    """The factors of `n` images, independent and uniform, int64 [n, 6]; see `FACTORS`."""
    noise = Noise.of(seed, "disentangling/factors", n)
    return torch.stack([noise.integers(k, count) for k, count in enumerate(FACTORS.values())], 1)


def images(values: Tensor, noise: Noise, size: int) -> np.ndarray:
    """Images made from factors int64 [n, 6], uint8 [n, 3, size, size], turned as the noise says."""
    shape, colour, background, *rest = values.numpy().T
    low, high = FREEDOM[1]
    nearest = high + MARGIN
    ends = ((nearest, GRID - nearest), (nearest, GRID - nearest), (low, high))
    x, y, extent = (
        np.rint(first + (last - first) * level / (LEVELS - 1)) / GRID
        for level, (first, last) in zip(rest, ends, strict=True)
    )
    periods = np.array([period(number) for number in range(len(SHAPES))])
    rotation = noise.integers(0, TURNS).numpy() / TURNS * periods[shape]
    one_object = Factors(
        shape=shape[:, None],
        colour=colour[:, None],
        x=x[:, None],
        y=y[:, None],
        size=extent[:, None],
        rotation=rotation[:, None],
        background=background,
    )
    return draw(one_object, size)


@torch.no_grad()
def encoded(model: Codec, x: Tensor) -> Tensor:
    """The likeliest codes of x [n, *shape], at the model's scale, as rows [n, L]."""
    device = next(model.parameters()).device
    codes = [model.encode(part.float().to(device)).z for part in torch.split(x, _BATCH)]
    return torch.cat([z.flatten(1).cpu() for z in codes])
