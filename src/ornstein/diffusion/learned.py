"""A solver as a table: what multistep methods for the probability flow come to.

    x_s = (σ_s/σ_t) x_t + (α_s − α_t σ_s/σ_t) Σ_j c_j x̂0_j,    Σ_j c_j = 1

with shares c of what the network has said so far, first the newest: DDIM has one, c = (1), and
Multistep, DEIS, ε-Adams-Bashforth and UniPC have those that `rows_of` reads from them. For a
constant x̂0 every such step is exact, as all steps in data or noise form are. In y = x/α and
r = σ/α it reads

    y_s = ρ y_t + (1 − ρ) Σ_j c_j x̂0_j,    ρ = r_s/r_t

so that a table belongs to a grid in r and to no process. `tuning` fits one to a model.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from pydantic import Field, field_validator

from ornstein.choice import Choice
from ornstein.diffusion.grid import Levels
from ornstein.diffusion.levels import Level, blend
from ornstein.diffusion.prediction import Denoise, Prediction
from ornstein.diffusion.process import NoisingProcess
from ornstein.diffusion.walk import Move, SamplerStep
from ornstein.errors import ConfigError
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.noise import Noise

Rows: TypeAlias = tuple[tuple[float, ...], ...]

UNEVEN = 1e-6  # by which shares may miss their sum, 1, in a file that rounds them


class Learned(Choice):
    """One evaluation a step, and the shares of `rows` in each: a row for each step of the grid
    that the table was made for, first the newest x̂0, with at most as many as there are by then."""

    kind: Literal["learned"] = "learned"
    rows: Rows = Field(min_length=1, max_length=1000)

    @field_validator("rows")
    @classmethod
    def _of_steps(cls, rows: Rows) -> Rows:
        for i, row in enumerate(rows):
            if not 1 <= len(row) <= i + 1:
                raise ValueError(
                    f"row {i + 1} must have 1 to {i + 1} shares, as many x̂0 as there are by then; "
                    f"got {len(row)}"
                )
            if abs(sum(row) - 1) > UNEVEN * max(1.0, *map(abs, row)):
                raise ValueError(f"the shares of row {i + 1} must sum to 1, not to {sum(row):g}")
        return rows

    def along(self, process: NoisingProcess, levels: Levels) -> Move:
        """Raises: ConfigError for a grid of another number of steps."""
        if len(self.rows) != len(levels) - 1:
            raise ConfigError(
                f"this learned solver has {len(self.rows)} steps and the grid {len(levels) - 1}; "
                f"write steps={len(self.rows)} with the grid that it was fitted to, or another step"
            )
        scales = [float(s.sigma / t.sigma) for t, s in pairwise(levels)]
        wholes = [_whole(t, s) for t, s in pairwise(levels)]
        weights = [
            [whole * share for share in row] for whole, row in zip(wholes, self.rows, strict=True)
        ]
        keep = max(map(len, self.rows)) - 1

        def move(
            denoise: Denoise, i: int, x: Tensor, noise: Noise, memory: Any
        ) -> tuple[Tensor, Any]:
            fields = (denoise(x, levels[i]).x0, *(memory or ()))
            x = blend(scales[i], x, weights[i][0], fields[0])
            for weight, field in zip(weights[i][1:], fields[1:], strict=False):
                x.add_(field, alpha=weight)
            return x, fields[:keep]

        return move

    def evaluations(self, steps: int) -> int:
        return steps


def rows_of(step: SamplerStep, process: NoisingProcess, levels: Levels) -> Rows:
    """The shares of a linear multistep method without noise on a grid.

    Its own steps are taken with x̂0 the unit vectors, one for each step. Raises: ConfigError for a
    step with more than one evaluation, or one that is not exact for a constant x̂0 (field=v).
    """
    steps, nothing = len(levels) - 1, cast("Noise", None)
    units = torch.eye(steps, dtype=torch.float64).unsqueeze(1)
    asked: list[int] = []
    move, memory = step.along(process, levels), None
    x, rows = torch.zeros(1, steps, dtype=torch.float64), []
    for i, (t, s) in enumerate(pairwise(levels)):

        def unit(x: Tensor, level: Level, i: int = i) -> Prediction:
            asked.append(i)
            return Prediction.from_x0(x, level, units[i])

        before = x
        x, memory = move(unit, i, before.clone(), nothing, memory)
        shares = (x - s.sigma / t.sigma * before) / _whole(t, s)
        rows.append(tuple(shares[0, : i + 1].flip(0).tolist()))
    if asked != list(range(steps)) or any(abs(sum(row) - 1) > UNEVEN for row in rows):
        raise ConfigError(
            "a table of shares stands for a method in data or noise form with one evaluation a "
            "step; write step=multistep, with step.field=x0 or eps"
        )
    return tuple(rows)


def _whole(t: Level, s: Level) -> float:
    """The weight of a constant x̂0."""
    return float(s.alpha - t.alpha * s.sigma / t.sigma)
