"""Steps from a level t to a cleaner level s of an explicit grid.

    x_s = α_s x̂0 + √(σ_s² − ν²) ε̂ + ν z                    the general step
    ν = 0                      DDIM, the Euler rule of dx = x̂0 dα + ε̂ dσ
    ν² = σ²_{t|s} σ_s²/σ_t²    ancestral DDPM: q(x_s | x_t, x̂0) of the actual pair (t, s)
    ν = σ_s                    renoising

A step of order 1 costs two tensor operations beyond its evaluation.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from ornstein.choice import Choice
from ornstein.diffusion.grid import Levels
from ornstein.diffusion.levels import Level, blend
from ornstein.diffusion.prediction import Denoise
from ornstein.diffusion.process import NoisingProcess
from ornstein.diffusion.walk import Fresh, Move, ancestral_std, forward_std
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.noise import Noise


class Jump(Choice):
    """DDIM at η = 0, ancestral DDPM at η = 1, between any two levels.

    ν = η √β̃ of the pair (J. Song et al. 2021, "Denoising diffusion implicit models",
    arXiv:2010.02502, eq 12 and 16; notes eq 41-43, whose σ² = η β̃ agrees at 0 and 1 only).
    """

    kind: Literal["jump"] = "jump"
    eta: float = Field(0.0, ge=0, le=1)

    def along(self, process: NoisingProcess, levels: Levels) -> Move:
        fresh = Fresh(levels)
        stds = [self.eta * ancestral_std(t, s) for t, s in pairwise(levels)]
        alphas, kept = _alphas(levels), _kept(levels, stds)

        def move(
            denoise: Denoise, i: int, x: Tensor, noise: Noise, memory: Any
        ) -> tuple[Tensor, Any]:
            prediction = denoise(x, levels[i])
            x = prediction.point(alphas[i + 1], kept[i])
            return (fresh.added(x, stds[i], noise, i) if stds[i] > 0 else x), None

        return move

    def evaluations(self, steps: int) -> int:
        return steps


class Ancestral(Choice):
    """DDPM with a chosen reverse variance: x_s ~ N(μ̃(x_t, x̂0), β^v β̃^(1−v) I).

    `spread` is v: 0 is β̃, optimal for point data; 1 is β, optimal for unit Gaussian data under a
    variance-preserving process (Ho et al. 2020, §3.2; notes eq 27-28 and after 1.7). A network
    that predicts v overrides it (notes eq 35). The last step has β̃ = 0 and adds no noise.
    """

    kind: Literal["ancestral"] = "ancestral"
    spread: float = Field(0.0, ge=0, le=1)

    def along(self, process: NoisingProcess, levels: Levels) -> Move:
        fresh = Fresh(levels)
        small = [ancestral_std(t, s) for t, s in pairwise(levels)]
        large = [forward_std(t, s) for t, s in pairwise(levels)]
        alphas, kept = _alphas(levels), _kept(levels, small)

        def move(
            denoise: Denoise, i: int, x: Tensor, noise: Noise, memory: Any
        ) -> tuple[Tensor, Any]:
            prediction = denoise(x, levels[i])
            x = prediction.point(alphas[i + 1], kept[i])
            if small[i] == 0:
                return x, None
            v = self.spread if prediction.spread is None else prediction.spread
            return fresh.added(x, large[i] ** v * small[i] ** (1 - v), noise, i), None

        return move

    def evaluations(self, steps: int) -> int:
        return steps


class Renoise(Choice):
    """x_s = α_s x̂0 + σ_s z: right only where x̂0 is a sample, as from a consistency function.

    With an ordinary denoiser, whose x̂0 is a mean, it loses variance as steps grow.
    Y. Song et al. 2023, "Consistency models", arXiv:2303.01469, algorithm 1.
    """

    kind: Literal["renoise"] = "renoise"

    def along(self, process: NoisingProcess, levels: Levels) -> Move:
        fresh = Fresh(levels)

        def move(
            denoise: Denoise, i: int, x: Tensor, noise: Noise, memory: Any
        ) -> tuple[Tensor, Any]:
            s = levels[i + 1]
            x = s.alpha * denoise(x, levels[i]).x0
            return (fresh.added(x, s.sigma, noise, i) if s.sigma > 0 else x), None

        return move

    def evaluations(self, steps: int) -> int:
        return steps


class Heun(Choice):
    """The trapezoid rule of dx = x̂0 dα + ε̂ dσ, of order 2 for any process; the last step is Euler.

    T. Karras et al. 2022, arXiv:2206.00364, algorithm 1, written without α̇, σ̇ or a division.
    With `churn` it is their algorithm 2: before a step, noise is added as the process itself adds
    it, until σ/α is 1 + γ times as large, γ = min(churn/steps, √2 − 1), so that errors of earlier
    steps are forgotten. At most the level t = 1 is reached, beyond which no network was trained:
    a grid's first step begins there and has no churn.
    """

    kind: Literal["heun"] = "heun"
    churn: float = Field(0.0, ge=0, description="S_churn of the paper; 0: no noise")
    churn_min: float = Field(0.0, ge=0, description="S_tmin, the smallest σ/α that has churn")
    churn_max: float | None = Field(None, gt=0, description="S_tmax, the largest; empty: any")
    churn_noise: float = Field(
        1.0, gt=0, le=2, description="S_noise, the standard deviation of what is added"
    )

    @model_validator(mode="after")
    def _rising(self) -> Heun:
        if self.churn_max is not None and self.churn_max < self.churn_min:
            raise ValueError(
                f"churn_max ({self.churn_max:g}) must not be below churn_min ({self.churn_min:g})"
            )
        return self

    def along(self, process: NoisingProcess, levels: Levels) -> Move:
        fresh = Fresh(levels)
        starts = self._starts(process, levels)
        added = [
            (float(to.alpha / t.alpha), self.churn_noise * forward_std(to, t)) if to != t else None
            for t, to in zip(levels, starts, strict=False)
        ]
        halves = [
            (float(0.5 * (s.alpha - t.alpha)), float(0.5 * (s.sigma - t.sigma)))
            for t, s in zip(starts, levels[1:], strict=True)
        ]

        def move(
            denoise: Denoise, i: int, x: Tensor, noise: Noise, memory: Any
        ) -> tuple[Tensor, Any]:
            s, more = levels[i + 1], added[i]
            if more is not None:
                x = blend(more[0], x, more[1], fresh.normal(noise, i, x))
            first = denoise(x, starts[i])
            guess = first.at(s)
            if s.sigma == 0:
                return guess, None
            second = denoise(guess, s)
            return first.point(*halves[i]).add_(x).add_(second.point(*halves[i])), None

        return move

    def _starts(self, process: NoisingProcess, levels: Levels) -> list[Level]:
        """Where each step begins: at its level of the grid, or with more noise."""
        steps, starts = len(levels) - 1, list(levels[:-1])
        gamma = min(self.churn / steps, math.sqrt(2) - 1)
        high = math.inf if self.churn_max is None else self.churn_max
        ratios = {i: t.sigma / t.alpha for i, t in enumerate(starts) if t.t < 1}
        ratios = {i: (1 + gamma) * r for i, r in ratios.items() if self.churn_min <= r <= high}
        if gamma == 0 or not ratios:
            return starts
        log_snr = -2 * torch.tensor(list(ratios.values()), dtype=torch.float64).log()
        t = process.time(log_snr).clamp(max=1.0)
        rows = zip(ratios, t.tolist(), *(c.tolist() for c in process(t)), strict=True)
        for i, *level in rows:
            starts[i] = Level(*level)
        return starts

    def evaluations(self, steps: int) -> int:
        return 2 * steps - 1


def _alphas(levels: Levels) -> list[float]:
    return [float(level.alpha) for level in levels]


def _kept(levels: Levels, stds: list[float]) -> list[float]:
    """√(σ_s² − ν²) of each step: how much of the predicted noise is kept beside the fresh."""
    pairs = zip(levels[1:], stds, strict=True)
    return [math.sqrt(max(s.sigma**2 - std**2, 0.0)) for s, std in pairs]
