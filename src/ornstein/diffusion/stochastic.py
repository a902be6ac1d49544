"""Reverse-time SDEs, solved along a Brownian path that does not depend on the number of steps.

In t, from noise to data (notes eq 1.20 at η = 1 and 1.22 at η = 0; Y. Song et al. 2021,
arXiv:2011.13456, eq 6 and 13), with the same marginals for every η:

    dx = [f x − (1 + η²)/2 g² ∇log p_t] dt + η g dw,        f = α̇/α,  g² = 2σ (σ̇ − f σ)

As x = α x̂0 + σ ε̂ and ∇log p_t = −ε̂/σ, an Euler step over Δ = t − s is a point of the plane:

    x_s = (α − α̇ Δ) x̂0 + [σ − σ̇ Δ − η² (σ̇ − f σ) Δ] ε̂ + η g √Δ z                (Euler-Maruyama)

In τ = SNR = α²/σ² and z = x α/σ² the reverse SDE of every process is the same one:

    z_τ = τ x0 + W(τ) given x0, whatever the process, since for τ_t < τ_s
        Cov(z_t, z_s) = (α_t α_s/σ_t² σ_s²) · (α_t/α_s) σ_s² = τ_t = min(τ_t, τ_s)
    dz = x̂0(z, τ) dτ + dB(τ),   z = 0 at τ = 0

which is stochastic localisation (A. Montanari 2023, "Sampling, diffusions, and stochastic
localization", arXiv:2305.10690). A step that holds x̂0 is

    x_s = (α_t σ_s²/(α_s σ_t²)) x + α_s (1 − τ_t/τ_s) x̂0 + (σ_s²/α_s) ΔB

and since (σ_s²/α_s)² (τ_s − τ_t) = σ_s² (1 − τ_t/τ_s) = β̃, it is the ancestral step, `Jump(eta=1)`.
The noise is additive, so the trapezoid rule for x̂0, with one ΔB for both of its evaluations, is
of weak order 2 (E. Platen's explicit scheme; P. Kloeden, E. Platen 1992, "Numerical solution of
stochastic differential equations", section 15.1):

    x_s = x' + ½ α_s (1 − τ_t/τ_s) (x̂0' − x̂0),    x' the ancestral step, x̂0' seen from there

Strongly, along one path, both are of order 1: the noise within a step is seen by its sum only.
C. Lu et al. 2022, arXiv:2211.01095 (SDE-DPM-Solver++), and T. Karras et al. 2022,
arXiv:2206.00364 (churn), solve the same SDEs with fresh noise for each grid.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ornstein.choice import Choice
from ornstein.diffusion.brownian import Path
from ornstein.diffusion.grid import Levels
from ornstein.diffusion.prediction import Denoise
from ornstein.diffusion.process import NoisingProcess, rates
from ornstein.diffusion.walk import Move, ancestral_std
from ornstein.errors import ConfigError
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.noise import Noise


class EulerMaruyama(Choice):
    """Euler-Maruyama for the reverse SDE in t: of order 1, weakly and (its noise is additive)
    strongly. η = 1 is notes eq 1.20, η = 0 Euler for the probability-flow ODE, eq 1.22.

    It is the plain method, unstable where steps are long: g² Δ/σ² should stay below 1. The other
    steps of order 1, `Jump` with η = 1 and 0, integrate the linear part exactly. The last step,
    to σ = 0, gives x̂0.
    """

    kind: Literal["euler_maruyama"] = "euler_maruyama"
    eta: float = Field(1.0, ge=0)

    def along(self, process: NoisingProcess, levels: Levels) -> Move:
        """Raises: ConfigError where η > 0 and the grid starts at α = 0, where g is infinite."""
        noisy = [level for level in levels if level.sigma > 0]
        times = [float(level.t) for level in noisy]
        slopes = rates(process, torch.tensor(times, dtype=torch.float64))
        points, stds = [], []
        for (t, s), alpha_dot, sigma_dot in zip(
            pairwise(noisy), *(slope.tolist() for slope in slopes), strict=False
        ):
            gap, half = t.t - s.t, 0.0
            if self.eta > 0:
                if t.alpha == 0:
                    raise ConfigError(
                        f"the reverse SDE is infinitely fast at t = {t.t:g}, where this process "
                        "has α = 0; give the grid a sigma_max (grid=log_snr grid.sigma_max=80), "
                        "or use step=stochastic_heun"
                    )
                half = max(sigma_dot - alpha_dot / t.alpha * t.sigma, 0.0)  # g²/2σ
            kept = t.sigma - gap * (sigma_dot + self.eta**2 * half)
            points.append((t.alpha - gap * alpha_dot, kept))
            stds.append(self.eta * math.sqrt(2 * t.sigma * half * gap))
        # VE's own last level may round to just below t = 0.
        path = Path([max(t, 0.0) for t in times]) if self.eta > 0 else None

        def move(
            denoise: Denoise, i: int, x: Tensor, noise: Noise, memory: Any
        ) -> tuple[Tensor, Any]:
            prediction = denoise(x, levels[i])
            if levels[i + 1].sigma == 0:
                return prediction.x0, None
            x = prediction.point(*points[i])
            return (x if path is None else path.added(x, stds[i], noise, i)), None

        return move

    def evaluations(self, steps: int) -> int:
        return steps


class StochasticHeun(Choice):
    """The trapezoid rule of dz = x̂0 dτ + dB(τ), of weak order 2 for any process; the last step is
    x̂0, as of the others.

    The order holds on grids that are smooth in log-SNR, `log_snr` and `karras` above all. The
    path's clock is the SNR, so that one key gives one path for any number of steps, and for any
    process. From pure noise, α = 0, it starts at τ = 0 like from anywhere.
    """

    kind: Literal["stochastic_heun"] = "stochastic_heun"

    def along(self, process: NoisingProcess, levels: Levels) -> Move:
        path = Path([float((k.alpha / k.sigma) ** 2) for k in levels if k.sigma > 0])
        stds = [ancestral_std(t, s) for t, s in pairwise(levels)]
        keeps = [float(s.sigma / t.sigma) ** 2 for t, s in pairwise(levels)]
        points, weights = [], []
        for (t, s), keep in zip(pairwise(levels), keeps, strict=True):
            weight = s.alpha - t.alpha / s.alpha * keep * t.alpha
            points.append((s.alpha, t.alpha / s.alpha * keep * t.sigma))
            weights.append(float(0.5 * weight))

        def move(
            denoise: Denoise, i: int, x: Tensor, noise: Noise, memory: Any
        ) -> tuple[Tensor, Any]:
            s = levels[i + 1]
            first = denoise(x, levels[i])
            guess = first.point(*points[i])
            if s.sigma == 0:
                return guess, None
            guess = path.added(guess, stds[i], noise, i)
            second = denoise(guess, s)
            correction = second.point(weights[i], 0.0).sub_(first.point(weights[i], 0.0))
            return correction.add_(guess), None

        return move

    def evaluations(self, steps: int) -> int:
        return 2 * steps - 1
