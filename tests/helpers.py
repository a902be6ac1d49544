"""What several tests share: lists of choices, known data laws, and noise that is given."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ornstein.diffusion.grid import Karras, Leading, Levels, LogSNR, Trailing, Uniform
from ornstein.diffusion.levels import Level
from ornstein.diffusion.oracle import Mixture, gaussian
from ornstein.diffusion.prediction import EDM, X0, Denoise, Eps, Prediction, Score, V, Velocity
from ornstein.diffusion.process import (
    VE,
    VP,
    Cosine,
    NoisingProcess,
    Straight,
    SubVP,
    Tabulated,
)
from ornstein.diffusion.walk import SamplerStep

PROCESSES = {
    "vp": VP(),
    "sub_vp": SubVP(),
    "cosine": Cosine(),
    "ve": VE(),
    "edm": VE(sigma_min=0.002, sigma_max=80),
    "straight": Straight(),
    "linear": Tabulated(),
    "cosine_table": Tabulated(rule="cosine", steps=100),
    "rescaled": Tabulated(zero_terminal=True, shift=1.5, steps=200),
    "shifted_cosine": Cosine(shift=2.0),
    "shifted_flow": Straight(shift=3.0),
}
TARGETS = {
    "x0": X0(),
    "eps": Eps(),
    "v": V(),
    "score": Score(),
    "velocity": Velocity(),
    "edm": EDM(sigma_data=0.7),
}
ZERO_TERMINAL_SNR = ("cosine", "straight", "rescaled", "shifted_cosine", "shifted_flow")
"""Processes with α = 0 at t = 1, where x is all noise and ε says nothing of x0."""

PAIRS = [
    (target, process)
    for target, process in itertools.product(TARGETS, PROCESSES)
    if not (target in ("eps", "score") and process in ZERO_TERMINAL_SNR)
]
SPACINGS = ("uniform", "trailing", "leading", "karras", "log_snr")


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def grid(spacing: str, process: str, steps: int) -> Levels:
    """A grid of a named spacing; those in σ get an end where the process has none."""
    sigma_max = 80.0 if process in ZERO_TERMINAL_SNR else None
    kinds = {
        "uniform": Uniform(),
        "trailing": Trailing(),
        "leading": Leading(),
        "karras": Karras(sigma_max=sigma_max),
        "log_snr": LogSNR(sigma_max=sigma_max),
    }
    return kinds[spacing](PROCESSES[process], steps)


def pairs_of(levels: Levels) -> Iterator[tuple[Level, Level]]:
    """Neighbours (t, s) of a grid that both hold noise."""
    return itertools.pairwise(level for level in levels if level.sigma > 0)


MEAN = f64([0.5, -1.0, 0.2])
_ROOT = f64([[0.9, 0.0, 0.0], [-0.4, 0.5, 0.0], [0.3, 0.2, 1.4]])
COVARIANCE = _ROOT @ _ROOT.T


def gaussian_data() -> Mixture:
    """N(MEAN, COVARIANCE) in three dimensions: every variance differs, every pair correlates."""
    return gaussian(MEAN, COVARIANCE)


def two_dim_mixture() -> Mixture:
    """Three components of unequal weight, tilt and width."""
    means = f64([[-1.5, 0.0], [1.0, 1.2], [1.0, -1.0]])
    covariances = f64(
        [[[0.2, 0.1], [0.1, 0.3]], [[0.3, -0.15], [-0.15, 0.2]], [[0.1, 0.0], [0.0, 0.4]]]
    )
    return Mixture(f64([0.5, 0.3, 0.2]), means, covariances)


def constant(x0: Tensor) -> Denoise:
    """The denoiser that says `x0` whatever it sees: exact where the data are the point x0."""

    def denoise(x: Tensor, level: Level) -> Prediction:
        return Prediction.from_x0(x, level, x0.expand_as(x))

    return denoise


class Given:
    """Noise that is what the test says."""

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def at(self, step: int) -> Given:
        return self

    def ahead(self, first: int, count: int) -> Given:
        return self

    def normal(self, draw: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self.z.to(dtype)


class NoNoise:
    """Noise that may not be drawn."""

    def at(self, step: int) -> NoNoise:
        raise AssertionError("a deterministic step drew noise")

    def ahead(self, first: int, count: int) -> NoNoise:
        raise AssertionError("a deterministic step drew noise")

    def child(self, purpose: str) -> NoNoise:
        raise AssertionError("a deterministic step drew noise")


ANY = VP()  # of steps that read the levels only


def affine(
    step: SamplerStep,
    denoise: Denoise,
    levels: Levels,
    i: int,
    dim: int = 3,
    process: NoisingProcess = ANY,
) -> tuple[Tensor, Tensor, Tensor]:
    """A [D, D], b [D], S [D, D] of one step x' = A x + b + S z, by probing it."""
    zero, one = torch.zeros(dim, dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64)
    x = torch.cat((zero[:1], one, zero))
    z = torch.cat((zero[:1], zero, one))
    out, _ = step.along(process, levels)(denoise, i, x, Given(z), None)
    b = out[0]
    return (out[1 : dim + 1] - b).T, b, (out[dim + 1 :] - b).T


def propagate(
    step: SamplerStep,
    denoise: Denoise,
    levels: Levels,
    mean: Tensor,
    cov: Tensor,
    process: NoisingProcess = ANY,
) -> list[tuple[Tensor, Tensor]]:
    """Mean and covariance at every level of the grid, exactly, from those at levels[0]."""
    moments = [(mean, cov)]
    for i in range(len(levels) - 1):
        a, b, s = affine(step, denoise, levels, i, len(mean), process)
        mean, cov = a @ mean + b, a @ cov @ a.T + s @ s.T
        moments.append((mean, cov))
    return moments


def marginal(level: Level) -> tuple[Tensor, Tensor]:
    """Mean α m and covariance α² C + σ² I of the Gaussian data at a level."""
    noise = level.sigma**2 * torch.eye(3, dtype=torch.float64)
    return level.alpha * MEAN, level.alpha**2 * COVARIANCE + noise


class Truth(nn.Module):
    """A network that says what `denoise` implies for a target, at the levels it knows.

    It is told the scaled input and the label only, as any network is.
    """

    def __init__(self, denoise, target, process: NoisingProcess, levels, sigma_data=1.0) -> None:
        super().__init__()
        self.denoise, self.target, self.process = denoise, target, process
        self.levels, self.sigma_data = levels, sigma_data

    def forward(self, x: Tensor, label: Tensor, cond: object) -> Tensor:
        level = min(self.levels, key=lambda k: abs(1000 * k.t - label[0].item()))
        norm = (level.sigma**2 + self.sigma_data**2 * level.alpha**2) ** 0.5
        return self.denoise(x * norm, level).target(self.target, self.process)


def slope(steps: Sequence[int], errors: Sequence[float]) -> float:
    """The order p of error ~ steps^-p, by least squares in logarithms."""
    x, y = f64(steps).log(), f64(errors).log()
    x, y = x - x.mean(), y - y.mean()
    return -((x * y).sum() / (x * x).sum()).item()
