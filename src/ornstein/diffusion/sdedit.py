"""SDEdit: another image like this one, by noising it part of the way and walking back.

    x_{t0} = α_{t0} x + σ_{t0} z,   then the rest of the grid

C. Meng et al. 2022, "SDEdit: guided image synthesis and editing with stochastic differential
equations", arXiv:2108.01073, algorithm 1. At t0 = 1 the image is forgotten as far as the process
forgets, and as t0 → 0 it is given back; between, what is coarser than the noise of t0 stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ornstein.diffusion.grid import Levels
from ornstein.diffusion.levels import Level, level_at
from ornstein.diffusion.prediction import Denoise
from ornstein.diffusion.process import NoisingProcess
from ornstein.diffusion.walk import SamplerStep, State, sample
from ornstein.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.noise import Noise


def below(process: NoisingProcess, levels: Levels, strength: float) -> Levels:
    """The levels of a grid below the time t0 = `strength`, with t0 as the first; a grid that does
    not reach up to t0 as it is.

    A level that is nearer below t0 than half of the grid's stride there (in log σ/α) is left out: a
    step much shorter than the next is one that solvers of higher order cannot go on from.
    Raises: ConfigError where t0 is not in (0, 1], or is below the smallest level of the process.
    """
    if not process.smallest <= strength <= 1 or strength == 0:
        raise ConfigError(
            f"strength is a time from {process.smallest:g} (give the image back) to 1 (forget "
            f"it), above 0; got {strength:g}"
        )
    if strength >= levels[0].t:
        return levels
    first = level_at(process, float(strength))
    rest = [level for level in levels if level.t < strength]
    above = levels[-len(rest) - 1]
    while rest[0].sigma > 0:
        stride = _stride(*rest[:2]) if rest[1].sigma > 0 else _stride(above, rest[0])
        if _stride(first, rest[0]) >= 0.5 * stride:
            break
        above, *rest = rest
    return (first, *rest)


def sdedit(
    denoise: Denoise,
    process: NoisingProcess,
    levels: Levels,
    step: SamplerStep,
    x: Tensor,
    strength: float,
    noise: Noise,
) -> Iterator[State]:
    """Edit x [B, *], clean images at the model's scale, yielding every state after a step.

    strength: t0 in (0, 1], the time to which x is noised. Raises: ConfigError as `below`, when the
    first state is asked for.
    """
    rest = below(process, levels, strength)
    z = noise.child("start").normal(0, x.shape[1:], x.dtype).to(x.device)
    start = rest[0].alpha * x + rest[0].sigma * z
    yield from sample(denoise, process, rest, step, start, noise.child("steps"))


def _stride(t: Level, s: Level) -> float:
    """How much log σ/α falls from t to s; infinite from α = 0."""
    if t.alpha == 0:
        return math.inf
    return math.log(t.sigma / t.alpha) - math.log(s.sigma / s.alpha)
