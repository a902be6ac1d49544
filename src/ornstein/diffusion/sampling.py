"""How a diffusion model generates: a step, a grid and a number of steps, from pure noise.

    x_T = √(σ_T² + σ_d² α_T²) z,  then `sample` down the grid.

The start is noise with the variance of the marginal at the first level: N(0, I) for a variance-
preserving process as in DDPM, σ_max z for VE. Samples have a law that can be computed where steps
are ancestral, a chain of Gaussians (`diffusion/bound.py`), and where they follow the probability
flow (`diffusion/density.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar

from pydantic import Field

from ornstein.choice import Choice
from ornstein.diffusion.density import Flow, flow_nats
from ornstein.diffusion.flow import Adaptive, decode, encode
from ornstein.diffusion.grid import Budget, Grid, Levels
from ornstein.diffusion.langevin import Corrected
from ornstein.diffusion.learned import Learned
from ornstein.diffusion.multistep import Multistep, Singlestep, Suited
from ornstein.diffusion.ncsn import levels_of
from ornstein.diffusion.prediction import Denoise, clipped
from ornstein.diffusion.process import NoisingProcess
from ornstein.diffusion.steps import Ancestral, Heun, Jump, Renoise
from ornstein.diffusion.stochastic import EulerMaruyama, StochasticHeun
from ornstein.diffusion.walk import sample
from ornstein.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.data.info import DataInfo
    from ornstein.diffusion.denoiser import Denoiser
    from ornstein.nats import Nats
    from ornstein.noise import Noise


Step = Annotated[
    Jump
    | Ancestral
    | Renoise
    | Heun
    | Multistep
    | Singlestep
    | Suited
    | Learned
    | EulerMaruyama
    | StochasticHeun
    | Corrected
    | Adaptive,
    Field(discriminator="kind"),
]


class Sampling(Choice):
    """Generation by walking a grid. `steps` counts grid steps; Heun evaluates twice in each. Null
    stands for as many as the training levels, where these are of a grid, or else for as many as
    NCSNv2's rule says (notes eq 1.16).

    clip: keep x̂0 within the range of the data, where it has one. flow: how the likelihood is
    computed where the step follows the probability flow.
    """

    kind: Literal["sampling"] = "sampling"
    step: Step = Suited()
    grid: Grid = Budget()
    steps: int | None = Field(20, ge=1, le=100_000)
    clip: bool = False
    flow: Flow = Flow()

    @property
    def evaluations(self) -> int | None:
        """Evaluations of the network per sample; None where they depend on the sample, or on the
        data."""
        return None if self.steps is None else self.step.evaluations(self.steps)

    @property
    def words(self) -> str:
        """The sampler in a word or two, without its number of steps."""
        changed = {
            name: value
            for name, value in self.step.model_dump(exclude_defaults=True).items()
            if name not in ("kind", "rows")  # of a learned solver, some dozens of numbers
        }
        inside = ", ".join(
            f"{name} {value}" if isinstance(value, str) else f"{name} {value:g}"
            for name, value in changed.items()
        )
        return f"{self.step.kind}{f' ({inside})' if inside else ''} on {self.grid.kind}"

    @property
    def stem(self) -> str:
        """The sampler and its number of steps, as a part of a file's name."""
        return f"{self.step.kind}-{self.grid.kind}-{self.steps}"

    def levels(self, process: NoisingProcess, info: DataInfo) -> Levels:
        """The grid. Raises: ConfigError where it and the process disagree."""
        steps = self.steps or levels_of(process, math.prod(info.shape))
        return _measured(self.grid, info)(process, steps)

    def measured_step(self, info: DataInfo) -> Step:
        """The step, with the spread σ_d of the data at the model's scale where it asks for it."""
        return _measured(self.step, info)

    def fitted(self, process: NoisingProcess, info: DataInfo, trained: int | None) -> Self:
        """This choice with what follows from the noise levels filled in: their number (`trained`,
        of training levels, where that is known) and the size of Langevin steps."""
        how = self
        if how.steps is None:
            steps = trained or levels_of(process, math.prod(info.shape))
            how = how.model_copy(update={"steps": steps})
        if isinstance(how.step, Corrected):
            step = how.step.fitted(how.levels(process, info))
            how = how.model_copy(update={"step": step})
        return how

    def __call__(self, model: Denoiser, info: DataInfo, noise: Noise) -> Iterator[Tensor]:
        """Yield the states from the start to the samples, [B, *info.shape] at the model's scale.

        info: the data at the model's scale. Raises: ConfigError where grid and process disagree.
        """
        levels = self.levels(model.process, info)
        first = levels[0]
        scale = math.sqrt(first.sigma**2 + (model.sigma_data * first.alpha) ** 2)
        x = scale * noise.child("start").normal(0, info.shape)
        yield x
        denoise = self.denoise(model, info)
        step = self.measured_step(info)
        for state in sample(denoise, model.process, levels, step, x, noise.child("steps")):
            yield state.x

    @property
    def no_law(self) -> str | None:
        """Other steps have no law that is known: they neither follow the flow to its end nor have
        densities that the bound could compare."""
        if isinstance(self.step, Ancestral) or follows_flow(self.step):
            return None
        eta = "with eta above 0 " if getattr(self.step, "eta", 0) > 0 else ""
        return (
            f"steps of the kind {self.step.kind!r} {eta}have no likelihood that could be computed; "
            "write step=heun for that of the flow, or step=ancestral grid=trailing steps=1000"
        )

    def denoise(self, model: Denoiser, info: DataInfo) -> Denoise:
        """The model as the steps ask it."""
        from ornstein.diffusion.denoiser import bind

        if not self.clip or info.range is None:
            return bind(model)
        return clipped(bind(model), *info.range)

    def likelihood(self, model: Denoiser, info: DataInfo, x: Tensor, noise: Noise) -> Nats:
        """−log p(x) with its parts, x [B, *info.shape] at the model's scale, as is `info`.

        Ancestral steps: the variational bound of this very chain, parts L_T, L_t and L_0. Steps
        that follow the flow: the likelihood of the flow itself, which they approach as they become
        many, from the first level of the grid to the smallest of the process; parts prior, flow
        and, for whole numbers, bins. Raises: ConfigError for other steps.
        """
        from ornstein.diffusion.bound import bins_of, bound

        if self.no_law is not None:
            raise ConfigError(self.no_law)
        denoise, levels = self.denoise(model, info), self.levels(model.process, info)
        if not isinstance(self.step, Ancestral):
            return flow_nats(
                denoise,
                model.process,
                x,
                noise,
                self.flow,
                first=levels[0],
                sigma_data=model.sigma_data,
                bins=bins_of(info),
            )
        return bound(
            denoise,
            levels,
            x,
            noise,
            spread=self.step.spread,
            sigma_data=model.sigma_data,
            bins=bins_of(info),
        )

    def latent(self, model: Denoiser, info: DataInfo) -> tuple[int, ...]:
        """The shape of the latents of one sample: its own."""
        return info.shape

    def encode(self, model: Denoiser, info: DataInfo, x: Tensor) -> Tensor:
        """The latents z [B, *info.shape] from which the flow draws x, whatever the steps are; of
        the model's own samples they are N(0, I)."""
        return encode(
            self.denoise(model, info),
            model.process,
            x,
            first=self.levels(model.process, info)[0],
            sigma_data=model.sigma_data,
            tolerance=self.flow.tolerance,
        )

    def decode(self, model: Denoiser, info: DataInfo, z: Tensor) -> Tensor:
        """What the flow draws from z [B, *info.shape], at the model's scale; undoes `encode`."""
        return decode(
            self.denoise(model, info),
            model.process,
            z,
            first=self.levels(model.process, info)[0],
            sigma_data=model.sigma_data,
            tolerance=self.flow.tolerance,
        )


ChoiceT = TypeVar("ChoiceT", bound=Choice)


def _measured(choice: ChoiceT, info: DataInfo) -> ChoiceT:
    """A step or a grid with σ_d filled in from the data, where it asks for it."""
    if isinstance(choice, Corrected):
        return choice.model_copy(update={"predictor": _measured(choice.predictor, info)})
    if getattr(choice, "sigma_data", 1.0) is None and info.std > 0:
        return choice.model_copy(update={"sigma_data": float(info.std)})
    return choice


def follows_flow(step: Step) -> bool:
    """Whether a step is a rule for the probability flow, without noise of its own."""
    match step:
        case Jump(eta=0) | EulerMaruyama(eta=0) | Heun(churn=0) | Adaptive():
            return True
        case Multistep(eta=0) | Singlestep() | Suited() | Learned():
            return True
    return False
