"""Sampling grids: the levels that a sampler visits, made once, as a tuple.

A grid of n steps has n levels with noise, from t = 1 down, and `CLEAN` as the last destination.
Steps are taken between explicit neighbours of that tuple, so any spacing is as good as another:
nothing downstream assumes a stride.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, TypeAlias

from pydantic import Field, field_validator

from ornstein.choice import Choice
from ornstein.diffusion.levels import CLEAN, Level
from ornstein.diffusion.process import NoisingProcess
from ornstein.errors import ConfigError
from ornstein.lazy import numpy as np
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Levels: TypeAlias = tuple[Level, ...]


class Spacing(Protocol):
    """n + 1 levels of a process for n steps."""

    def __call__(self, process: NoisingProcess, steps: int) -> Levels: ...


class Uniform(Choice):
    """t from 1 to the smallest level of the process, equally spaced."""

    kind: Literal["uniform"] = "uniform"

    def __call__(self, process: NoisingProcess, steps: int) -> Levels:
        return _at(process, _line(1.0, process.smallest, _positive(steps)))


class Trailing(Choice):
    """t = 1, 1 − 1/n, ..., 1/n: strides counted from the noisy end, t = 0 being the data.

    S. Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed",
    arXiv:2305.08891, table 2.
    """

    kind: Literal["trailing"] = "trailing"

    def __call__(self, process: NoisingProcess, steps: int) -> Levels:
        times = _line(steps, 1, _positive(steps)) / steps
        return _at(process, times.clamp(min=process.smallest))


class Leading(Choice):
    """Strides of 1/n counted from the clean end, with t = 1 as the start.

    The published spacing of DDIM (arXiv:2010.02502, appendix D.3) never visits t = 1, though its
    samples start from pure noise; here the noisiest level is t = 1, which makes the first stride
    the longer one.
    """

    kind: Literal["leading"] = "leading"

    def __call__(self, process: NoisingProcess, steps: int) -> Levels:
        lead = process.smallest + _line(steps - 2, 0, _positive(steps) - 1) / steps
        return _at(process, torch.cat((torch.ones(1, dtype=torch.float64), lead)))


class Karras(Choice):
    """σ̃ = σ/α with σ̃^(1/ρ) equally spaced (T. Karras et al. 2022, arXiv:2206.00364, eq 5).

    The ends are those of the process where they are not given.
    """

    kind: Literal["karras"] = "karras"
    rho: float = Field(7.0, gt=0)
    sigma_min: float | None = Field(None, gt=0)
    sigma_max: float | None = Field(None, gt=0)

    def __call__(self, process: NoisingProcess, steps: int) -> Levels:
        low, high = _ends(process, self.sigma_min, self.sigma_max)
        ramp = _line(high ** (1 / self.rho), low ** (1 / self.rho), _positive(steps))
        return _at(process, process.time(-2 * self.rho * ramp.log()))


class LogSNR(Choice):
    """log-SNR equally spaced: σ/α is a geometric sequence."""

    kind: Literal["log_snr"] = "log_snr"
    sigma_min: float | None = Field(None, gt=0)
    sigma_max: float | None = Field(None, gt=0)

    def __call__(self, process: NoisingProcess, steps: int) -> Levels:
        low, high = _ends(process, self.sigma_min, self.sigma_max)
        ramp = _line(-2 * math.log(high), -2 * math.log(low), _positive(steps))
        return _at(process, process.time(ramp))


class Budget(Choice):
    """Levels chosen for their number n and for the spread σ_d of the data: the default.

    r = σ/α is equally spaced in log r − (1 − share) log(1 + r/knee): geometric where the structure
    of the data appears, and `share` as dense above the knee, where noise prevails and x̂0 hardly
    moves; share = n/150, knee = (5 + 0.8 n) σ_d. The last level is r = 3 σ_d/n², from where
    extrapolating to the data costs about as much accuracy as all the steps do, or the smallest of
    the process. The constants were fitted to mixtures of Gaussians (benchmarks/solver_frontier.py),
    other ones than those reported.
    """

    kind: Literal["budget"] = "budget"
    sigma_max: float | None = Field(None, gt=0)
    sigma_data: float | None = Field(
        None, gt=0, description="σ_d at the model's scale; empty: as measured, or else 1"
    )

    def __call__(self, process: NoisingProcess, steps: int) -> Levels:
        low, high = _ends(process, None, self.sigma_max)
        spread = self.sigma_data or 1.0
        low = min(max(low, 3 * spread / _positive(steps) ** 2), high)
        share, knee = min(steps / 150, 1.0), (5 + 0.8 * steps) * spread
        log_ratio = np.linspace(math.log(high), math.log(low), 4096)
        clock = log_ratio - (1 - share) * np.logaddexp(0, log_ratio - math.log(knee))
        wanted = np.linspace(clock[0], clock[-1], steps)
        found = np.interp(-wanted, -clock, log_ratio)
        return _at(process, process.time(-2 * torch.from_numpy(found)))


class Explicit(Choice):
    """The times themselves, falling, in (0, 1]; they fix the number of steps."""

    kind: Literal["explicit"] = "explicit"
    times: tuple[float, ...] = Field(min_length=1)

    @field_validator("times")
    @classmethod
    def _falling(cls, times: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < t <= 1 for t in times):
            raise ValueError(f"times must lie in (0, 1]; got {list(times)}")
        if any(s >= t for t, s in itertools.pairwise(times)):
            raise ValueError(f"times must fall from noise to data; got {list(times)}")
        return times

    def __call__(self, process: NoisingProcess, steps: int) -> Levels:
        if steps != len(self.times):
            raise ConfigError(
                f"an explicit grid of {len(self.times)} times takes {len(self.times)} steps, "
                f"not {steps}; write steps={len(self.times)}"
            )
        return _at(process, torch.tensor(self.times, dtype=torch.float64))


Grid = Annotated[
    Uniform | Trailing | Leading | Karras | LogSNR | Budget | Explicit, Field(discriminator="kind")
]


def _positive(steps: int) -> int:
    if steps < 1:
        raise ConfigError(f"a grid needs at least 1 step, got {steps}")
    return steps


def _line(first: float, last: float, steps: int) -> Tensor:
    """`steps` numbers, equally spaced."""
    return torch.linspace(first, last, steps, dtype=torch.float64)


def _ends(
    process: NoisingProcess, sigma_min: float | None, sigma_max: float | None
) -> tuple[float, float]:
    """The smallest and the largest σ/α: given, or the process's own."""
    alpha, sigma = process(torch.tensor([process.smallest, 1.0], dtype=torch.float64))
    ratio = (sigma / alpha).tolist()
    low, high = sigma_min or ratio[0], sigma_max or ratio[1]
    if math.isinf(high):
        raise ConfigError(
            "this process ends in pure noise (α = 0 at t = 1), so a grid in σ or log-SNR has no "
            "first level; give the grid a sigma_max (80, say), or use a grid in t (trailing)"
        )
    if low >= high:
        raise ConfigError(f"the grid's sigma_min ({low:g}) must be below its sigma_max ({high:g})")
    if low < ratio[0] * (1 - 1e-9) or high > ratio[1] * (1 + 1e-9):
        raise ConfigError(
            f"the grid's sigma_min ({low:g}) and sigma_max ({high:g}) must lie within σ/α of the "
            f"process, {ratio[0]:.4g} to {ratio[1]:.4g}: beyond it no network was trained"
        )
    return low, high


def _at(process: NoisingProcess, times: Tensor) -> Levels:
    alpha, sigma = process(times)
    rows = zip(times.tolist(), alpha.tolist(), sigma.tolist(), strict=True)
    levels = tuple(Level(*row) for row in rows)
    if any(b.sigma * a.alpha >= a.sigma * b.alpha for a, b in itertools.pairwise(levels)):
        raise ConfigError(
            f"a grid of {len(levels)} steps visits a level of this process twice; use fewer steps"
        )
    return (*levels, CLEAN)
