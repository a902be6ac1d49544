"""A walk down a grid of levels, from noise to data, one step after another.

A step is chosen; `along` a grid of a process it becomes a pure function (denoise, i, x, noise,
memory) -> (x, memory), which takes the step from levels[i] to levels[i + 1]. It has seen the whole
grid, so the ends need no flags, and all coefficients are floats made once, before the loop.
memory is None at i = 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ornstein.diffusion.grid import Levels
from ornstein.diffusion.levels import Level
from ornstein.diffusion.prediction import Denoise
from ornstein.diffusion.process import NoisingProcess
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.noise import Noise


AHEAD = 2**16  # normals that are drawn at once, at most, where that is more than one step's


class Move(Protocol):
    """From levels[i] to levels[i + 1] of the grid that it was made for."""

    def __call__(
        self, denoise: Denoise, i: int, x: Tensor, noise: Noise, memory: Any
    ) -> tuple[Tensor, Any]: ...


class SamplerStep(Protocol):
    """A rule for getting from one level of a grid to the next."""

    def along(self, process: NoisingProcess, levels: Levels) -> Move:
        """The rule on this grid of the process, with its coefficients computed."""

    def evaluations(self, steps: int) -> int | None:
        """How often the network is asked on a grid of `steps` steps; None where that depends on
        the samples."""


class State(NamedTuple):
    """Where a sampler is: `x` at `level`, after `step` steps."""

    step: int
    level: Level
    x: Tensor


def sample(
    denoise: Denoise,
    process: NoisingProcess,
    levels: Levels,
    step: SamplerStep,
    x: Tensor,
    noise: Noise,
) -> Iterator[State]:
    """Walk down the grid from x [B, *] at levels[0], yielding every state after a step.

    The last state is at levels[-1], `CLEAN` for a grid. `noise` gives sample b of the batch its
    own numbers, so that its path does not depend on its neighbours. It must not be the noise that
    `x` was drawn with: step 0 would draw the same numbers again (`noise.child` makes another).
    """
    move, memory = step.along(process, levels), None
    for i in range(len(levels) - 1):
        with torch.no_grad():
            x, memory = move(denoise, i, x, noise, memory)
        yield State(i + 1, levels[i + 1], x)


def forward_std(t: Level, s: Level) -> float:
    """σ_{t|s}: √β of the pair."""
    return math.sqrt(max(t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2, 0.0))


def ancestral_std(t: Level, s: Level) -> float:
    """√β̃ of the pair, the standard deviation of q(x_s | x_t, x0) (notes eq 1.7, 22)."""
    return float(forward_std(t, s) * s.sigma / t.sigma)


class Fresh:
    """x + std z on one step of a grid after another.

    A draw of a few thousand numbers is all overhead, so that few small samples get those of many
    steps at once: the same numbers, several times faster.
    """

    def __init__(self, levels: Levels) -> None:
        self.steps = len(levels) - 1
        self.noise: Noise | None = None
        self.drawn: dict[int, Tensor] = {}

    def added(self, x: Tensor, std: float | Tensor, noise: Noise, i: int) -> Tensor:
        """x is the step's own and is overwritten."""
        z = self.normal(noise, i, x)
        return x.add_(z, alpha=std) if isinstance(std, float) else x.addcmul_(std, z)

    def normal(self, noise: Noise, i: int, x: Tensor) -> Tensor:
        count = min(self.steps - i, AHEAD // max(1, x.numel()))
        if count < 2 and i not in self.drawn:
            return noise.at(i).normal(0, x.shape[1:], x.dtype)
        if noise is not self.noise or i not in self.drawn:
            z = noise.ahead(i, count).normal(0, x.shape[1:], x.dtype)
            self.noise, self.drawn = noise, dict(enumerate(torch.split(z, len(x)), start=i))
        return self.drawn.pop(i)
