"""How a diffusion model generates: a step, a grid and a number of steps, from pure noise.

    x_T = √(σ_T² + σ_d² α_T²) z,  then `sample` down the grid.

The start is noise with the variance of the marginal at the first level: N(0, I) for a variance-
preserving process as in DDPM, σ_max z for VE.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ornstein.choice import Choice
from ornstein.diffusion.grid import Grid, LogSNR
from ornstein.diffusion.steps import Multistep, Step, sample

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.data.info import DataInfo
    from ornstein.diffusion.denoiser import Denoiser
    from ornstein.noise import Noise


class Sampling(Choice):
    """Generation by walking a grid. `steps` counts grid steps; Heun evaluates twice in each."""

    kind: Literal["sampling"] = "sampling"
    step: Step = Multistep()
    grid: Grid = LogSNR()
    steps: int = Field(20, ge=1, le=100_000)

    @property
    def evaluations(self) -> int:
        """Evaluations of the network per sample."""
        return self.step.evaluations(self.steps)

    def __call__(self, model: Denoiser, info: DataInfo, noise: Noise) -> Iterator[Tensor]:
        """Yield the states from the start to the samples, [B, *info.shape] at the model's scale.

        info: the data at the model's scale. Raises: ConfigError where grid and process disagree.
        """
        from ornstein.diffusion.denoiser import bind

        levels = self.grid(model.process, self.steps)
        first = levels[0]
        scale = math.sqrt(first.sigma**2 + (model.sigma_data * first.alpha) ** 2)
        x = scale * noise.child("start").normal(0, info.shape)
        yield x
        for state in sample(bind(model), levels, self.step, x, noise.child("steps")):
            yield state.x
