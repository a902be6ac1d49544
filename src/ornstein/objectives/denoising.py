"""The denoising objective: one noise level per sample, the squared error of the target.

    t ~ levels,  x = α x0 + σ ε,  loss = w(level) · mean over dimensions of (f̂ − f)²

With target ε, uniform t and w = 1 it is L_simple (Ho et al. 2020, arXiv:2006.11239, eq 14; notes
eq 30). Any weighting means the same for every target, because in the plane

    ‖f̂ − f‖² = ((αq − σp)/σ)² ‖x̂0 − x0‖².
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import Field, field_validator

from ornstein.choice import Choice, Load
from ornstein.diffusion.levels import Level, expand, level_at, level_of_log_snr
from ornstein.diffusion.prediction import Prediction, PredictionTarget
from ornstein.diffusion.process import NoisingProcess
from ornstein.lazy import torch
from ornstein.objectives.base import Context, Loss

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.data.info import Batch, DataInfo
    from ornstein.diffusion.denoiser import Denoiser


class LevelLaw(Protocol):
    """The law of training levels, by its inverse: u in (0, 1), float64 [B] -> levels [B]."""

    def __call__(self, process: NoisingProcess, u: Tensor) -> Level: ...


class UniformTime(Choice):
    """t uniform between the smallest level of the process and 1."""

    kind: Literal["uniform"] = "uniform"

    def __call__(self, process: NoisingProcess, u: Tensor) -> Level:
        return level_at(process, process.smallest + (1 - process.smallest) * u)


class Discrete(Choice):
    """t uniform over i/T, i = 1 ... T: the rows of a table (notes, algorithm 1 of fig 2-4)."""

    kind: Literal["discrete"] = "discrete"
    steps: int = Field(1000, ge=1)

    def __call__(self, process: NoisingProcess, u: Tensor) -> Level:
        return level_at(process, (torch.floor(u * self.steps) + 1) / self.steps)


class LogNormal(Choice):
    """ln(σ/α) normal: the middle levels, where there is something to learn, most often.

    T. Karras et al. 2022, arXiv:2206.00364, table 1 (P_mean, P_std).
    """

    kind: Literal["log_normal"] = "log_normal"
    mean: float = -1.2
    std: float = Field(1.2, gt=0)

    def __call__(self, process: NoisingProcess, u: Tensor) -> Level:
        log_sigma = self.mean + self.std * torch.special.ndtri(u)
        return level_of_log_snr(process, -2 * log_sigma)


Levels = Annotated[UniformTime | Discrete | LogNormal, Field(discriminator="kind")]


class Simple(Choice):
    """w = 1: the squared error of the target itself; L_simple (notes eq 30) for the target ε,
    EDM's weight (σ² + σ_d²)/(σ σ_d)² on the image for the target EDM."""

    kind: Literal["simple"] = "simple"

    def __call__(self, target: PredictionTarget, process: NoisingProcess, level: Level) -> Tensor:
        return torch.ones_like(torch.as_tensor(level.t))


class SNR(Choice):
    """The squared error of ε whatever the target is: SNR · ‖x̂0 − x0‖², SNR = α²/σ²."""

    kind: Literal["snr"] = "snr"

    def __call__(self, target: PredictionTarget, process: NoisingProcess, level: Level) -> Tensor:
        p, q = target(process, level)
        return torch.as_tensor((level.alpha / (level.alpha * q - level.sigma * p)) ** 2)


Weighting = Annotated[Simple | SNR, Field(discriminator="kind")]


class Denoising(Choice):
    """Denoising score matching at random levels, for any process and target.

    The loss of a sample is its weighted mean squared error per dimension of the target.
    Images arrive in `range`; data without bounds arrives as it is.
    """

    kind: Literal["denoising"] = "denoising"
    levels: Levels = UniformTime()
    weighting: Weighting = Simple()
    range: tuple[float, float] | None = (-1.0, 1.0)

    @field_validator("range")
    @classmethod
    def _rises(cls, limits: tuple[float, float] | None) -> tuple[float, float] | None:
        if limits is not None and not -1e3 <= limits[0] < limits[1] <= 1e3:
            raise ValueError(f"range must rise, within -1000 to 1000; got {list(limits)}")
        return limits

    def build(self, model: Denoiser, info: DataInfo, load: Load) -> Denoising:
        return self

    def __call__(self, model: Denoiser, batch: Batch, context: Context) -> Loss:
        x0 = batch.x
        u = context.noise.child("level").uniform(0, (), torch.float64)
        eps = context.noise.child("eps").normal(0, x0.shape[1:], x0.dtype)
        level = self.levels(model.process, u)
        x = expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps
        f = Prediction(x, level, x0, eps).target(model.target, model.process)
        error = (model.output(x, level) - f).square().flatten(1).mean(1)
        weight = self.weighting(model.target, model.process, level).to(error)
        return Loss(weight * error)
