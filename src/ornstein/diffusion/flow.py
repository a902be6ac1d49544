"""The probability flow: an ODE whose solutions have the marginals of the process (notes eq 1.22).

    dx = x̂0 dα + ε̂ dσ

Scaled to unit length, all processes are one quarter of a circle, walked at speeds of their own:

    N = √(α² + σ²),   cos φ = α/N,   sin φ = σ/N
    u = x/N = cos φ x̂0 + sin φ ε̂          du/dφ = cos φ ε̂ − sin φ x̂0

The slope is the prediction v, finite from data to pure noise, where α = 0. What happens to small
details happens at noise of their size, so the solver's time is that of a logarithm near the data:

    τ = log(σ/(α + σ)) ≤ 0               dφ/dτ = sin φ (sin φ + cos φ)

It is log(σ/α) for small σ, −α/σ where noise prevails, and 0 at α = 0. Data of unit variance have u
of unit variance at every level, so an error of u is relative to the spread of its level.

Y. Song et al. 2021, "Score-based generative modeling through stochastic differential equations",
arXiv:2011.13456, §4.3 and appendix D.4: the same flow, solved in t, and its latents.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ornstein.choice import Choice
from ornstein.diffusion.grid import Levels
from ornstein.diffusion.levels import Level, level_at, level_of_log_snr
from ornstein.diffusion.prediction import Denoise
from ornstein.diffusion.process import NoisingProcess
from ornstein.diffusion.runge_kutta import rms, solve
from ornstein.diffusion.walk import Move
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.noise import Noise

LONGEST = 2.0
"""The longest step in τ, a factor of e² in noise: from data on, slopes say little of what comes."""


class Adaptive(Choice):
    """The probability flow from one level of the grid to the next, within a tolerance.

    tolerance: of one step of the solver, as a root mean square error relative to √(α² + σ²). Each
    sample takes the steps that it needs, whatever its neighbours take. A grid of 2 steps (log_snr
    or karras) is solved in one go from the first level to the last; more only make the solver
    stop on its way. The last step, to `CLEAN`, is x̂0 as for other steps.

    The denoiser is asked of some samples of the batch at a time, at a level for each: it must be
    bound to the same condition for all of them. How often, depends on the samples, so ranks that
    share the weights of one network (optim.shard) cannot draw like this.
    """

    kind: Literal["adaptive"] = "adaptive"
    tolerance: float = Field(1e-3, gt=0, le=1)

    def along(self, process: NoisingProcess, levels: Levels) -> Move:
        def move(
            denoise: Denoise, i: int, x: Tensor, noise: Noise, memory: Any
        ) -> tuple[Tensor, Any]:
            t, s = levels[i], levels[i + 1]
            if s.sigma == 0:
                return denoise(x, t).x0, None
            return follow(denoise, process, x, t, s, self.tolerance), None

        return move

    def evaluations(self, steps: int) -> None:
        return None


def follow(
    denoise: Denoise, process: NoisingProcess, x: Tensor, t: Level, s: Level, tolerance: float
) -> Tensor:
    """Take x [B, *] along the flow from level t to level s, both of floats with σ > 0, toward data
    or toward noise. tolerance: as of `Adaptive`. Raises: NumericsError where it cannot be had."""

    def slope(u: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        return velocity(denoise, process, u.view(-1, *x.shape[1:]), time, x.dtype).flatten(1)

    u = (x.double() / norm_of(t)).flatten(1)
    with torch.no_grad():
        u = solve(slope, u, time_of(t), time_of(s), tolerance, rms, LONGEST).y
    return (norm_of(s) * u).to(x.dtype).view_as(x)


def velocity(
    denoise: Denoise, process: NoisingProcess, u: Tensor, time: Tensor, dtype: torch.dtype
) -> Tensor:
    """du/dτ [B, *] of u, float64, at the times τ, float64 [B]; the denoiser sees `dtype`."""
    # At τ = 0 there is no signal; rounding must not lead beyond.
    ratio = torch.expm1(-time.clamp(max=0))  # α/σ
    level = level_of_log_snr(process, 2 * torch.log(ratio))
    alpha, sigma = torch.as_tensor(level.alpha), torch.as_tensor(level.sigma)
    norm = torch.hypot(alpha, sigma)
    cos, sin = alpha / norm, sigma / norm
    speed = sin * (sin + cos)
    x = (norm.view(-1, *[1] * (u.dim() - 1)) * u).to(dtype)
    return denoise(x, level).point(-speed * sin, speed * cos).to(u.dtype)


def time_of(level: Level) -> float:
    """τ of a level of floats."""
    return math.log(float(level.sigma) / float(level.alpha + level.sigma))


def norm_of(level: Level) -> float:
    """N of a level of floats."""
    return math.hypot(float(level.alpha), float(level.sigma))


def smallest_level(process: NoisingProcess) -> Level:
    """Where the flow ends: the level toward data beyond which no network is asked."""
    return level_at(process, float(process.smallest))


def start_scale(level: Level, sigma_data: float) -> float:
    """√(σ² + σ_d² α²): the standard deviation of what is drawn at the first level."""
    return math.hypot(float(level.sigma), sigma_data * float(level.alpha))


# Latents


def encode(
    denoise: Denoise,
    process: NoisingProcess,
    x: Tensor,
    *,
    first: Level | None = None,
    sigma_data: float = 1.0,
    tolerance: float = 1e-4,
) -> Tensor:
    """The latents z [B, *] of data x [B, *] at the model's scale: the noise from which the flow
    draws x, N(0, I) for data of the model's own law.

    x counts as y = x_t/α at the smallest level, with whatever noise it has; what `decode` returns
    is this y, so that one undoes the other to a few times the tolerance. first: the noisiest
    level, t = 1 if it is not given; a sample starts there from √(σ² + σ_d² α²) z.
    """
    first, last = first or level_at(process, 1.0), smallest_level(process)
    noisy = follow(denoise, process, last.alpha * x, last, first, tolerance)
    return noisy / start_scale(first, sigma_data)


def decode(
    denoise: Denoise,
    process: NoisingProcess,
    z: Tensor,
    *,
    first: Level | None = None,
    sigma_data: float = 1.0,
    tolerance: float = 1e-4,
) -> Tensor:
    """What the flow makes of latents z [B, *]: y = x/α at the smallest level, see `encode`."""
    first, last = first or level_at(process, 1.0), smallest_level(process)
    noisy = start_scale(first, sigma_data) * z
    return follow(denoise, process, noisy, first, last, tolerance) / last.alpha


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation: from a (share 0) to b (share 1), both [B, *], along the great circle
    of their directions, with lengths in proportion.

    Between two latents a straight line is too short by up to √2, and what is decoded from it is
    an average; this stays at the distance from 0 at which N(0, I) has its samples (K. Shoemake
    1985, "Animating rotation with quaternion curves"; T. White 2016, arXiv:1609.04468).
    """
    flat = [x.double().flatten(1) for x in (a, b)]
    lengths = [x.norm(dim=1, keepdim=True).clamp(min=1e-300) for x in flat]
    first, second = (x / length for x, length in zip(flat, lengths, strict=True))
    # From two chords, since an arc cosine is inexact where the directions are almost the same.
    chord, other = (first - second).norm(dim=1), (first + second).norm(dim=1)
    angle = (2 * torch.atan2(chord, other)).unsqueeze(1)
    sine = torch.sin(angle)
    straight = sine < 1e-6  # the same direction, or opposite ones, between which no arc is chosen
    near = torch.where(straight, 1 - share, torch.sin((1 - share) * angle) / sine)
    far = torch.where(straight, share, torch.sin(share * angle) / sine)
    length = (1 - share) * lengths[0] + share * lengths[1]
    found: Tensor = length * (near * first + far * second)
    return found.to(a.dtype).view_as(a)
