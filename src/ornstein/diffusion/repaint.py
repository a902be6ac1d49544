"""Inpainting by replacement: known pixels come from the image, at the noise of every level.

    x_s = m (α_s y + σ_s z) + (1 − m) step(x_t)           z fresh at every level

asks nothing of the model but its ordinary steps, without a gradient. What the step draws for the
unknown pixels has not seen the known ones of its own level, so the two halves do not fit; they
grow together as the way back up is taken and the step is made again, `resamples` times a level:

    x_t = α_{t|s} x_s + σ_{t|s} z'

A. Lugmayr et al. 2022, "RePaint: inpainting using denoising diffusion probabilistic models",
arXiv:2201.09865, algorithm 1. Pixels that are known are y in the end, exactly. The law of the rest
comes nearer to p(x0 | y) with every visit (tests/diffusion/test_repaint.py measures how fast), at
the price of the steps made again. y has no noise here; `diffusion/inverse.py` takes what has.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from ornstein.diffusion.grid import Levels
from ornstein.diffusion.measurements import Mask
from ornstein.diffusion.prediction import Denoise
from ornstein.diffusion.process import NoisingProcess
from ornstein.diffusion.walk import Move, SamplerStep, forward_std
from ornstein.errors import ConfigError
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.noise import Noise


class RePaint(NamedTuple):
    """A step around another one, made when y is there.

    step: any that goes from level to level by itself. mask: where y is known, as `Mask` takes it.
    y: [B, *] or [1, *], whatever at unknown pixels. resamples: how often each step but the last is
    made, 1 for replacement alone (published: 10, with jumps of ten steps; here of one).
    """

    step: SamplerStep
    mask: Tensor
    y: Tensor
    resamples: int = 1

    def along(self, process: NoisingProcess, levels: Levels) -> Move:
        """Raises: ConfigError for less than one visit, or a y that does not fit."""
        if self.resamples < 1:
            raise ConfigError(f"resamples must be 1 or more, got {self.resamples}")
        mask = Mask(self.mask)
        y = mask.seen(self.y)
        if not torch.isfinite(y).all():
            raise ConfigError("y is not finite at pixels that the mask says are known")
        moves = [self.step.along(process, levels) for _ in range(self.resamples)]
        ups = [
            (float(t.alpha / s.alpha), forward_std(t, s))
            for t, s in pairwise(levels)
            if s.sigma > 0
        ]
        source: Noise | None = None
        visits: list[Noise] = []

        def known(x: Tensor, i: int, noise: Noise) -> Tensor:
            """x with the pixels that are known as they are at levels[i]."""
            level = levels[i]
            if y.shape[1:] != x.shape[1:] or len(y) not in (1, len(x)):
                raise ConfigError(
                    f"y has the shape {list(y.shape)}, and the samples {list(x.shape)}; give one "
                    "image for each sample, or a single one for all"
                )
            image = level.alpha * y.to(x)
            if level.sigma > 0:
                z = noise.child("known").at(i).normal(0, x.shape[1:], x.dtype)
                image = image + level.sigma * z
            return torch.where(mask.over(x), image, x)

        def move(
            denoise: Denoise, i: int, x: Tensor, noise: Noise, memory: Any
        ) -> tuple[Tensor, Any]:
            nonlocal source, visits
            if source is not noise:  # one child a visit and walk, for what a step draws ahead
                source = noise
                visits = [noise.child(f"visit {k}") for k in range(self.resamples)]
            if i == 0:
                x = known(x, 0, noise.child("start"))
            count = self.resamples if levels[i + 1].sigma > 0 else 1
            kept = memory
            for k in range(count):
                x, kept = moves[k](denoise, i, x, visits[k], memory)
                x = known(x, i + 1, visits[k])
                if k + 1 < count:
                    z = visits[k].child("up").at(i).normal(0, x.shape[1:], x.dtype)
                    x = ups[i][0] * x + ups[i][1] * z
            return x, kept

        return move

    def evaluations(self, steps: int) -> int | None:
        """All steps but the last are made `resamples` times."""
        once, last = self.step.evaluations(steps), self.step.evaluations(1)
        if once is None or last is None:
            return None
        return self.resamples * (once - last) + last
