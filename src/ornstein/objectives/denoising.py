"""The denoising objective: one noise level per sample, the squared error of the target.

    t ~ levels,  x = α x0 + σ ε,  loss = w(level) · mean over dimensions of (f̂ − f)²

With target ε, uniform t and w = 1 it is L_simple (Ho et al. 2020, arXiv:2006.11239, eq 14; notes
eq 30). Any weighting means the same for every target, because in the plane

    ‖f̂ − f‖² = ((αq − σp)/σ)² ‖x̂0 − x0‖².
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import AfterValidator, Field

from ornstein.choice import Choice, Load
from ornstein.diffusion.grid import Grid, LogSNR
from ornstein.diffusion.levels import Level, expand, level_at, level_of_log_snr
from ornstein.diffusion.ncsn import levels_of
from ornstein.diffusion.prediction import PredictionTarget, aim
from ornstein.diffusion.process import NoisingProcess, rates
from ornstein.errors import ConfigError
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
    steps: int = Field(1000, ge=1, le=100_000)

    def __call__(self, process: NoisingProcess, u: Tensor) -> Level:
        return level_at(process, (torch.floor(u * self.steps) + 1) / self.steps)


class Gridded(Choice):
    """The noisy levels of a sampling grid, each as often: training and sampling see the same ones.

    With the grid `log_snr` they are NCSN's geometric sequence from σ_1 to σ_L, both included
    (Y. Song, S. Ermon 2019, arXiv:1907.05600, §3.1; notes eq 1.15).
    """

    kind: Literal["gridded"] = "gridded"
    grid: Grid = LogSNR()
    steps: int | None = Field(
        None, ge=1, le=100_000, description="how many; null: by NCSNv2's rule (notes eq 1.16)"
    )

    def fitted(self, process: NoisingProcess, info: DataInfo) -> Gridded:
        """With their number. Raises: ConfigError where the process ends in pure noise."""
        if self.steps is not None:
            return self
        return self.but(steps=levels_of(process, math.prod(info.shape)))

    def __call__(self, process: NoisingProcess, u: Tensor) -> Level:
        rows = _gridded(self, process, str(u.device))
        return Level(*rows[:, torch.floor(u * rows.shape[1]).long()])


@lru_cache(maxsize=8)
def _gridded(law: Gridded, process: NoisingProcess, device: str) -> Tensor:
    """t, α and σ of its levels, float64 [3, L]."""
    if law.steps is None:
        raise ConfigError(
            "the number of training levels is left to the data, which is not known here; write "
            "objective.levels.steps=100, say"
        )
    noisy = law.grid(process, law.steps)[:-1]
    return torch.tensor(noisy, dtype=torch.float64, device=device).T


class LogNormal(Choice):
    """ln(σ/α) normal: the middle levels, where there is something to learn, most often.

    T. Karras et al. 2022, arXiv:2206.00364, table 1 (P_mean, P_std).
    """

    kind: Literal["log_normal"] = "log_normal"
    mean: float = Field(-1.2, ge=-50, le=50)
    std: float = Field(1.2, gt=0, le=50)

    def __call__(self, process: NoisingProcess, u: Tensor) -> Level:
        log_sigma = self.mean + self.std * torch.special.ndtri(u)
        return level_of_log_snr(process, -2 * log_sigma)


class LogitNormal(Choice):
    """ln(t/(1 − t)) normal: mostly the middle times, where flows are hardest to tell.

    On straight paths it is `LogNormal` with the same numbers. P. Esser et al. 2024, "Scaling
    rectified flow transformers", arXiv:2403.03206, eq 19 (m, s).
    """

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = Field(0.0, ge=-50, le=50)
    std: float = Field(1.0, gt=0, le=50)

    def __call__(self, process: NoisingProcess, u: Tensor) -> Level:
        t = torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))
        return level_at(process, t.clamp(min=process.smallest))


class CosineTime(Choice):
    """σ/α = shift · tan(πu/2): the levels of the cosine schedule, whatever the process is, within
    the levels that it has.

    D. Kingma, R. Gao 2023, "Understanding diffusion objectives as the ELBO", arXiv:2303.00848,
    table 1; on straight paths it is the mode law CosMap of arXiv:2403.03206, eq 21.
    """

    kind: Literal["cosine"] = "cosine"
    shift: float = Field(1.0, ge=1e-3, le=1000)

    def __call__(self, process: NoisingProcess, u: Tensor) -> Level:
        log_snr = -2 * torch.log(self.shift * torch.tan(0.5 * math.pi * u))
        return level_at(process, process.time(log_snr).clamp(process.smallest, 1.0))


class UniformLogSNR(Choice):
    """λ = 2 log(α/σ) uniform, between the ends of the process or those that are given in σ/α.

    It is maximum-likelihood training with importance-sampled times (Y. Song et al. 2021, "Maximum
    likelihood training of score-based diffusion models", arXiv:2101.09258, eq 7 and §5.1; notes
    ref 7). As ŝ − s = (α/σ²) (x̂0 − x0) and g² = −σ² dλ/dt, likelihood weighting is

        ½ g² ‖ŝ − s‖² = −½ SNR dλ/dt ‖x̂0 − x0‖² = −½ dSNR/dt ‖x̂0 − x0‖²

    under uniform t: weighting `vlb` there. Times of density ∝ g²/σ² = −dλ/dt are uniform λ, and
    what is left of it is ½ (λ_max − λ_min) SNR ‖x̂0 − x0‖²: weighting `snr` here, the plain error
    of ε. Both have one expectation, and the second varies less.
    """

    kind: Literal["log_snr"] = "log_snr"
    sigma_min: float | None = Field(None, gt=0, description="smallest σ/α; null: the process's")
    sigma_max: float | None = Field(None, gt=0, description="largest σ/α; null: the process's")

    def __call__(self, process: NoisingProcess, u: Tensor) -> Level:
        """Raises: ConfigError where the process has no such levels."""
        first, last = self.ends(process)
        t = process.time(first + (last - first) * u)
        return level_at(process, t.clamp(process.smallest, 1.0))

    def ends(self, process: NoisingProcess) -> tuple[float, float]:
        """λ_max and λ_min, toward data and toward noise."""
        alpha, sigma = process(torch.tensor([process.smallest, 1.0], dtype=torch.float64))
        least, most = (sigma / alpha).tolist()
        low, high = self.sigma_min or least, self.sigma_max or most
        if math.isinf(high):
            raise ConfigError(
                "this process ends in pure noise, where log-SNR is −∞ and has no uniform law; "
                "write objective.levels.sigma_max=80, say"
            )
        if low >= high or low < least * (1 - 1e-9) or high > most * (1 + 1e-9):
            raise ConfigError(
                f"training levels between σ/α = {low:g} and {high:g} are not those of the process, "
                f"{least:.4g} to {most:.4g}; write objective.levels.sigma_min and sigma_max within "
                "these, or leave them out"
            )
        return -2 * math.log(low), -2 * math.log(high)


Levels = Annotated[
    UniformTime | Discrete | Gridded | LogNormal | LogitNormal | CosineTime | UniformLogSNR,
    Field(discriminator="kind"),
]


class Weighting(Protocol):
    """w of ‖f̂ − f‖² at each level, [B] or [], for a target of a process."""

    def __call__(
        self, target: PredictionTarget, process: NoisingProcess, level: Level
    ) -> Tensor: ...


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
        return _on_image(_snr(level), target, process, level)


class MinSNR(Choice):
    """min(SNR, γ) · ‖x̂0 − x0‖²: levels with almost no noise do not rule the gradient.

    T. Hang et al. 2023, "Efficient diffusion training via min-SNR weighting", arXiv:2303.09556.
    """

    kind: Literal["min_snr"] = "min_snr"
    gamma: float = Field(5.0, gt=0)

    def __call__(self, target: PredictionTarget, process: NoisingProcess, level: Level) -> Tensor:
        return _on_image(_snr(level).clamp(max=self.gamma), target, process, level)


class TruncatedSNR(Choice):
    """max(SNR, 1) · ‖x̂0 − x0‖²: levels of almost pure noise still count.

    T. Salimans, J. Ho 2022, "Progressive distillation", arXiv:2202.00512, §4.
    """

    kind: Literal["truncated_snr"] = "truncated_snr"

    def __call__(self, target: PredictionTarget, process: NoisingProcess, level: Level) -> Tensor:
        return _on_image(_snr(level).clamp(min=1), target, process, level)


class EDMWeight(Choice):
    """(SNR + 1/σ_d²) · ‖x̂0 − x0‖²: the loss has the same size at every level at the start.

    T. Karras et al. 2022, arXiv:2206.00364, table 1: λ = (σ² + σ_d²)/(σ σ_d)². For the target EDM
    it is `simple`, with the σ_d that the target has.
    """

    kind: Literal["edm"] = "edm"
    sigma_data: float = Field(0.5, ge=1e-3, le=1e3)

    def __call__(self, target: PredictionTarget, process: NoisingProcess, level: Level) -> Tensor:
        return _on_image(_snr(level) + self.sigma_data**-2, target, process, level)


class VLB(Choice):
    """−½ dSNR/dt · ‖x̂0 − x0‖²: with uniform t, the bound Σ L_t of infinitely many steps.

    In nats, per dimension. D. Kingma et al. 2021, "Variational diffusion models",
    arXiv:2107.00630, eq 17; it depends on the ends of the process only, not on the path.
    """

    kind: Literal["vlb"] = "vlb"

    def __call__(self, target: PredictionTarget, process: NoisingProcess, level: Level) -> Tensor:
        t, alpha, sigma = (torch.as_tensor(c, dtype=torch.float64) for c in level)
        alpha_dot, sigma_dot = rates(process, t)
        falling = alpha * (alpha * sigma_dot - alpha_dot * sigma) / sigma**3  # −½ dSNR/dt
        return _on_image(falling, target, process, level)


def _snr(level: Level) -> Tensor:
    return torch.as_tensor((level.alpha / level.sigma) ** 2)


def _on_image(
    weight: Tensor, target: PredictionTarget, process: NoisingProcess, level: Level
) -> Tensor:
    """The weight of the target's error that is `weight` on the image's.

    ‖f̂ − f‖² = ((αq − σp)/σ)² ‖x̂0 − x0‖².
    """
    p, q = target(process, level)
    return weight * torch.as_tensor(level.sigma / (level.alpha * q - level.sigma * p)) ** 2


Weight = Annotated[
    Simple | SNR | MinSNR | TruncatedSNR | EDMWeight | VLB, Field(discriminator="kind")
]
Range = tuple[float, float] | None


def rising(limits: Range) -> Range:
    """A range of data as an objective may declare it. Raises: ValueError where it falls."""
    if limits is not None and not -1e3 <= limits[0] < limits[1] <= 1e3:
        raise ValueError(f"range must rise, within -1000 to 1000; got {list(limits)}")
    return limits


DataRange = Annotated[Range, AfterValidator(rising)]


class Denoising(Choice):
    """Denoising score matching at random levels, for any process and target.

    The loss of a sample is its weighted mean squared error per dimension of the target.
    Images arrive in `range`; data without bounds arrives as it is.
    """

    kind: Literal["denoising"] = "denoising"
    levels: Levels = UniformTime()
    weighting: Weight = Simple()
    range: DataRange = (-1.0, 1.0)

    def build(self, model: Denoiser, info: DataInfo, load: Load) -> Denoising:
        """Raises: ConfigError for levels that the process does not have."""
        self.levels(model.process, torch.full((1,), 0.5, dtype=torch.float64))
        return self

    def __call__(self, model: Denoiser, batch: Batch, context: Context) -> Loss:
        x0 = batch.x
        u = context.noise.child("level").uniform(0, (), torch.float64)
        eps = context.noise.child("eps").normal(0, x0.shape[1:], x0.dtype)
        level = self.levels(model.process, u)
        x = expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps
        f = aim(model.target, model.process, level, x0, eps)
        error = (model.output(x, level) - f).square().flatten(1).mean(1)
        weight = self.weighting(model.target, model.process, level).to(error)
        return Loss(weight * error)
