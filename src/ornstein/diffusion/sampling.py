"""How a diffusion model generates: a step, a grid and a number of steps, from pure noise.

    x_T = √(σ_T² + σ_d² α_T²) z,  then `sample` down the grid.

The start is noise with the variance of the marginal at the first level: N(0, I) for a variance-
preserving process as in DDPM, σ_max z for VE. Where the steps are ancestral the samples have a
law that can be bounded, see `diffusion/bound.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ornstein.choice import Choice
from ornstein.diffusion.grid import Grid, LogSNR
from ornstein.diffusion.prediction import Denoise, clipped
from ornstein.diffusion.steps import Ancestral, Heun, Jump, Multistep, Renoise
from ornstein.diffusion.walk import sample
from ornstein.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.data.info import DataInfo
    from ornstein.diffusion.denoiser import Denoiser
    from ornstein.nats import Nats
    from ornstein.noise import Noise


Step = Annotated[Jump | Ancestral | Renoise | Heun | Multistep, Field(discriminator="kind")]


class Sampling(Choice):
    """Generation by walking a grid. `steps` counts grid steps; Heun evaluates twice in each.

    clip: keep x̂0 within the range of the data, where it has one.
    """

    kind: Literal["sampling"] = "sampling"
    step: Step = Multistep()
    grid: Grid = LogSNR()
    steps: int = Field(20, ge=1, le=100_000)
    clip: bool = False

    @property
    def evaluations(self) -> int | None:
        """Evaluations of the network per sample; None where they depend on the sample."""
        return self.step.evaluations(self.steps)

    def __call__(self, model: Denoiser, info: DataInfo, noise: Noise) -> Iterator[Tensor]:
        """Yield the states from the start to the samples, [B, *info.shape] at the model's scale.

        info: the data at the model's scale. Raises: ConfigError where grid and process disagree.
        """
        levels = self.grid(model.process, self.steps)
        first = levels[0]
        scale = math.sqrt(first.sigma**2 + (model.sigma_data * first.alpha) ** 2)
        x = scale * noise.child("start").normal(0, info.shape)
        yield x
        denoise = self.denoise(model, info)
        for state in sample(denoise, model.process, levels, self.step, x, noise.child("steps")):
            yield state.x

    @property
    def no_law(self) -> str | None:
        """Steps that are not ancestral have no densities that the bound could compare."""
        if isinstance(self.step, Ancestral):
            return None
        return (
            f"steps of the kind {self.step.kind!r} give no bound on the likelihood; write "
            "step=ancestral, with grid=trailing and steps=1000, say"
        )

    def denoise(self, model: Denoiser, info: DataInfo) -> Denoise:
        """The model as the steps ask it."""
        from ornstein.diffusion.denoiser import bind

        if not self.clip or info.range is None:
            return bind(model)
        return clipped(bind(model), *info.range)

    def likelihood(self, model: Denoiser, info: DataInfo, x: Tensor, noise: Noise) -> Nats:
        """The variational bound of −log p(x) for this chain, with its parts L_T, L_t and L_0.

        x: [B, *info.shape] at the model's scale, as is `info`. Raises: ConfigError for steps that
        are not ancestral.
        """
        from ornstein.diffusion.bound import bins_of, bound

        if not isinstance(self.step, Ancestral):
            raise ConfigError(str(self.no_law))
        return bound(
            self.denoise(model, info),
            self.grid(model.process, self.steps),
            x,
            noise,
            spread=self.step.spread,
            sigma_data=model.sigma_data,
            bins=bins_of(info),
        )
