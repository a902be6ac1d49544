"""Gaussian mixtures with exact denoisers, and where their probability flow ends.

    p = Σ_k w_k N(m_k, diag(s_k²)),  K = 8, with mean 0 and standard deviation 0.5 over all
    y = x/α, r = σ/α                             every process is variance exploding in y
    x̂0(y, r) = Σ_k p(k | y) (s_k² y + r² m_k)/(s_k² + r²)
    dy/d log r = y − x̂0(y, r)                    the flow, by RK4 from the first level to r = 1e-5

A seed is a mixture of its own, of one of three styles: seed mod 3 = 0: means drawn from a Gaussian,
components 0.1 to 0.3 times as wide as the whole; 1: means all as far from the centre, components
narrow, 0.03 to 0.1; 2: unequal weights, and widths that differ by component and dimension, 0.03 to
0.3. In more than two dimensions the spectrum is a power law, standard deviations i^-p with p = 0.5,
1 and 1.5. Defaults are chosen on seeds 0 to 9 and reported on seeds from 100. No package but torch
is needed, so that the environments of other projects can run it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

COMPONENTS = 8
STD = 0.5
SAMPLES = 512
END = 1e-5  # σ/α at which the reference stops: x̂0 there is the sample
STEPS = 1800  # of the reference; half of them change no sample here by more than 1e-7
VP_BETAS = 0.1, 20.0
VP_TIMES = 1.0, 1e-3
EDM_SIGMAS = 80.0, 0.002
BUDGETS = (5, 8, 10, 15, 20, 35, 50)


class Mixture(NamedTuple):
    """weights [*, K], means and stds [*, K, D], float64."""

    weights: Tensor
    means: Tensor
    stds: Tensor

    def x0(self, y: Tensor, ratio: float) -> Tensor:
        """E[x0 | y] for y [*, B, D] = x0 + ratio ε.

        Squares are multiplied out, so that the components cost three products of matrices and no
        tensor [B, K, D].
        """
        variances = self.stds**2 + ratio**2
        scaled = self.means / variances
        logits = self.weights.log() - 0.5 * (variances.log() + self.means * scaled).sum(-1)
        logits = logits.unsqueeze(-2) + y @ scaled.mT - 0.5 * ((y * y) @ variances.reciprocal().mT)
        share = torch.softmax(logits, -1)
        return y * (share @ (self.stds**2 / variances)) + ratio**2 * (share @ scaled)


def mixture(seed: int, dim: int) -> Mixture:
    """The mixture of a seed, in `dim` dimensions."""
    generator = torch.Generator().manual_seed(1000 * dim + seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        """Log-uniform between the two."""
        share = torch.rand(*shape, generator=generator, dtype=torch.float64)
        return low * (high / low) ** share

    style = seed % 3
    means = torch.randn(COMPONENTS, dim, generator=generator, dtype=torch.float64)
    weights = torch.full((COMPONENTS,), 1 / COMPONENTS, dtype=torch.float64)
    power = (0.5, 1.0, 1.5)[style] if dim > 2 else 0.0
    if style == 0:
        widths = uniform(0.1, 0.3, COMPONENTS, 1).expand(-1, dim)
    elif style == 1:
        means = _ring(means, generator)
        widths = uniform(0.03, 0.1, COMPONENTS, 1).expand(-1, dim)
    else:
        widths = uniform(0.03, 0.3, COMPONENTS, dim)
        weights = uniform(0.25, 1.0, COMPONENTS)
        weights = weights / weights.sum()
    spectrum = torch.arange(1, dim + 1, dtype=torch.float64) ** -power
    means = means * spectrum
    means = means - weights @ means
    stds = widths * spectrum
    variance = (weights @ (means**2 + stds**2)).mean()
    scale = STD / variance.sqrt()
    return Mixture(weights, scale * means, scale * stds)


def _ring(means: Tensor, generator: torch.Generator) -> Tensor:
    """As far from the centre as each other; in 2-D also at angles nearly equally spaced."""
    count, dim = means.shape
    if dim > 2:
        return means / means.norm(dim=1, keepdim=True)
    jitter = torch.rand(count, generator=generator, dtype=torch.float64)
    angles = 2 * math.pi * (torch.arange(count, dtype=torch.float64) + 0.5 * jitter) / count
    return torch.stack((angles.cos(), angles.sin()), 1)


class Problem:
    """Mixtures of some seeds, a process (`vp`: linear β from 0.1 to 20, t from 1 to 1e-3; `edm`:
    α = 1, σ from 80 to 0.002) and 512 noises z for each, which start at x = z and x = σ_1 z, and
    where they end. Mixtures are solved side by side, since solvers treat samples alike; y is
    [512 · seeds, D]."""

    def __init__(self, dim: int, process: str, *seeds: int) -> None:
        self.dim, self.process, self.seeds = dim, process, seeds
        found = [mixture(seed, dim) for seed in seeds]
        self.mixtures = Mixture(*(torch.stack(parts) for parts in zip(*found, strict=True)))
        self.noise = torch.cat([starts(seed, dim) for seed in seeds])

    @property
    def ratios(self) -> tuple[float, float]:
        """σ/α at the first level and at the smallest that a model is trained at."""
        if self.process == "edm":
            return EDM_SIGMAS
        first, last = (vp_ratio(t) for t in VP_TIMES)
        return first, last

    def x0(self, y: Tensor, ratio: float) -> Tensor:
        """The exact denoiser at y = x/α and ratio = σ/α."""
        split = y.view(len(self.seeds), SAMPLES, self.dim)
        return self.mixtures.x0(split, ratio).view(y.shape)

    @cached_property
    def first(self) -> Tensor:
        """y at the first level."""
        high = self.ratios[0]
        return self.noise * (high if self.process == "edm" else math.sqrt(1 + high**2))

    def start(self, ratio: float) -> Tensor:
        """y for a solver that starts at `ratio`: on the true path where that is nearly the first
        level, and else fresh noise of that level's scale, which is all that a user has."""
        high = self.ratios[0]
        if abs(ratio / high - 1) < 1e-12:
            return self.first
        if ratio > 0.9 * high:
            return flow(self.x0, self.first, high, ratio, 8)
        return self.noise * (ratio if self.process == "edm" else math.sqrt(1 + ratio**2))

    @cached_property
    def reference(self) -> Tensor:
        """Where the flow takes every noise."""
        return self.solve(STEPS)

    def solve(self, steps: int) -> Tensor:
        """The reference by so many steps of RK4."""
        return self.x0(flow(self.x0, self.first, self.ratios[0], END, steps), END)

    def errors(self, x: Tensor) -> dict[int, tuple[float, float]]:
        """By seed: median and root mean square over samples of ‖x − reference‖/√D; infinite where
        a solver broke down."""
        squares = (x - self.reference).pow(2).mean(1).view(len(self.seeds), SAMPLES)
        squares = torch.where(squares.isfinite(), squares, math.inf)
        medians = squares.median(1).values.sqrt().tolist()
        means = squares.mean(1).sqrt().tolist()
        return dict(zip(self.seeds, zip(medians, means, strict=True), strict=True))


def starts(seed: int, dim: int) -> Tensor:
    """512 noises z [512, D]."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    return torch.randn(SAMPLES, dim, generator=generator, dtype=torch.float64)


def flow(
    x0: Callable[[Tensor, float], Tensor], y: Tensor, first: float, last: float, steps: int
) -> Tensor:
    """y from ratio `first` to `last` along dy/d log r = y − x̂0, by RK4."""
    h = math.log(last / first) / steps
    for i in range(steps):
        r = first * math.exp(i * h)
        middle, end = r * math.exp(0.5 * h), r * math.exp(h)
        a = y - x0(y, r)
        b = y + 0.5 * h * a
        b = b - x0(b, middle)
        c = y + 0.5 * h * b
        c = c - x0(c, middle)
        d = y + h * c
        d = d - x0(d, end)
        y = y + h / 6 * (a + 2 * b + 2 * c + d)
    return y


def vp_ratio(t: float) -> float:
    """σ/α of `vp` at time t."""
    low, high = VP_BETAS
    return math.sqrt(math.expm1(0.5 * t**2 * (high - low) + t * low))
