"""One step of a sampler, from a level t to a cleaner level s of an explicit grid.

    x_s = α_s x̂0 + √(σ_s² − ν²) ε̂ + ν z                    the general step
    ν = 0                      DDIM, the Euler rule of dx = x̂0 dα + ε̂ dσ
    ν² = σ²_{t|s} σ_s²/σ_t²    ancestral DDPM: q(x_s | x_t, x̂0) of the actual pair (t, s)
    ν = σ_s                    renoising

A step is a pure function (denoise, levels, i, x, noise, memory) -> (x, memory): it sees the whole
grid, so the ends need no flags, and memory is None at i = 0. Coefficients are floats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol

from pydantic import Field

from ornstein.choice import Choice
from ornstein.diffusion.grid import Levels
from ornstein.diffusion.levels import Level
from ornstein.diffusion.prediction import Denoise
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.noise import Noise


class SamplerStep(Protocol):
    """From levels[i] to levels[i + 1]."""

    def __call__(
        self, denoise: Denoise, levels: Levels, i: int, x: Tensor, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]: ...

    def evaluations(self, steps: int) -> int:
        """How often the network is asked on a grid of `steps` steps."""


def ancestral_std(t: Level, s: Level) -> float:
    """√β̃ of the pair, the standard deviation of q(x_s | x_t, x0) (notes eq 1.7, 22)."""
    return float(_forward_std(t, s) * s.sigma / t.sigma)


class Jump(Choice):
    """DDIM at η = 0, ancestral DDPM at η = 1, between any two levels.

    ν = η √β̃ of the pair (J. Song et al. 2021, "Denoising diffusion implicit models",
    arXiv:2010.02502, eq 12 and 16; notes eq 41-43, whose σ² = η β̃ agrees at 0 and 1 only).
    """

    kind: Literal["jump"] = "jump"
    eta: float = Field(0.0, ge=0, le=1)

    def __call__(
        self, denoise: Denoise, levels: Levels, i: int, x: Tensor, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]:
        t, s = levels[i], levels[i + 1]
        prediction = denoise(x, t)
        nu = self.eta * ancestral_std(t, s)
        kept = math.sqrt(max(s.sigma**2 - nu**2, 0.0))
        x = s.alpha * prediction.x0 + kept * prediction.eps
        return (x + nu * _normal(noise, i, x) if nu > 0 else x), None

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

    def __call__(
        self, denoise: Denoise, levels: Levels, i: int, x: Tensor, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]:
        t, s = levels[i], levels[i + 1]
        prediction = denoise(x, t)
        small, large = ancestral_std(t, s), _forward_std(t, s)
        kept = math.sqrt(max(s.sigma**2 - small**2, 0.0))
        x = s.alpha * prediction.x0 + kept * prediction.eps
        if small == 0:
            return x, None
        v = self.spread if prediction.spread is None else prediction.spread
        std = large**v * small ** (1 - v)
        return x + std * _normal(noise, i, x), None

    def evaluations(self, steps: int) -> int:
        return steps


class Renoise(Choice):
    """x_s = α_s x̂0 + σ_s z: right only where x̂0 is a sample, as from a consistency function.

    With an ordinary denoiser, whose x̂0 is a mean, it loses variance as steps grow.
    Y. Song et al. 2023, "Consistency models", arXiv:2303.01469, algorithm 1.
    """

    kind: Literal["renoise"] = "renoise"

    def __call__(
        self, denoise: Denoise, levels: Levels, i: int, x: Tensor, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]:
        s = levels[i + 1]
        x = s.alpha * denoise(x, levels[i]).x0
        return (x + s.sigma * _normal(noise, i, x) if s.sigma > 0 else x), None

    def evaluations(self, steps: int) -> int:
        return steps


class Heun(Choice):
    """The trapezoid rule of dx = x̂0 dα + ε̂ dσ, of order 2 for any process; the last step is Euler.

    T. Karras et al. 2022, arXiv:2206.00364, algorithm 1, written without α̇, σ̇ or a division.
    """

    kind: Literal["heun"] = "heun"

    def __call__(
        self, denoise: Denoise, levels: Levels, i: int, x: Tensor, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]:
        t, s = levels[i], levels[i + 1]
        first = denoise(x, t)
        guess = first.at(s)
        if s.sigma == 0:
            return guess, None
        second = denoise(guess, s)
        d_alpha, d_sigma = 0.5 * (s.alpha - t.alpha), 0.5 * (s.sigma - t.sigma)
        return x + d_alpha * (first.x0 + second.x0) + d_sigma * (first.eps + second.eps), None

    def evaluations(self, steps: int) -> int:
        return 2 * steps - 1


class Multistep(Choice):
    """Order 2 with one evaluation a step: x̂0 is extrapolated in log-SNR, then a DDIM step.

    C. Lu et al. 2022, "DPM-Solver++", arXiv:2211.01095, algorithm 2 (2M). The first step, and
    the last one to σ = 0, are of order 1.
    """

    kind: Literal["multistep"] = "multistep"

    def __call__(
        self, denoise: Denoise, levels: Levels, i: int, x: Tensor, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]:
        t, s = levels[i], levels[i + 1]
        x0 = estimate = denoise(x, t).x0
        if memory is not None and s.sigma > 0:
            before = levels[i - 1]
            ratio = 0.5 * (_half_log_snr(s) - _half_log_snr(t))
            ratio /= _half_log_snr(t) - _half_log_snr(before)
            estimate = x0 + ratio * (x0 - memory)
        scale = s.sigma / t.sigma
        return scale * x + (s.alpha - t.alpha * scale) * estimate, x0

    def evaluations(self, steps: int) -> int:
        return steps


Step = Annotated[Jump | Ancestral | Renoise | Heun | Multistep, Field(discriminator="kind")]


class State(NamedTuple):
    """Where a sampler is: `x` at `level`, after `step` steps."""

    step: int
    level: Level
    x: Tensor


def sample(
    denoise: Denoise, levels: Levels, step: SamplerStep, x: Tensor, noise: Noise
) -> Iterator[State]:
    """Walk down the grid from x [B, *] at levels[0], yielding every state after a step.

    The last state is at levels[-1], `CLEAN` for a grid. `noise` gives sample b of the batch its
    own numbers, so that its path does not depend on its neighbours. It must not be the noise that
    `x` was drawn with: step 0 would draw the same numbers again (`noise.child` makes another).
    """
    memory = None
    for i in range(len(levels) - 1):
        with torch.no_grad():
            x, memory = step(denoise, levels, i, x, noise, memory)
        yield State(i + 1, levels[i + 1], x)


def _forward_std(t: Level, s: Level) -> float:
    """σ_{t|s}: √β of the pair."""
    return math.sqrt(max(t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2, 0.0))


def _half_log_snr(level: Level) -> float:
    return math.log(level.alpha / level.sigma) if level.alpha > 0 else -math.inf


def _normal(noise: Noise, i: int, x: Tensor) -> Tensor:
    return noise.at(i).normal(0, x.shape[1:], x.dtype)
