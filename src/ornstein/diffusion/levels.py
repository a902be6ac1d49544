"""A noise level: a time with its α and σ, either one for a batch or one per sample.

Levels of a sampling grid hold plain floats, made once before the loop, so that a step costs two
or three tensor operations; levels of a training batch hold float64 tensors [B].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ornstein.diffusion.process import NoisingProcess
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Scalar: TypeAlias = "float | Tensor"


class Level(NamedTuple):
    """t, α and σ: floats (one level for the whole batch) or float64 tensors [B]."""

    t: Scalar
    alpha: Scalar
    sigma: Scalar


CLEAN = Level(0.0, 1.0, 0.0)
"""Data itself. A destination only: no network is asked at σ = 0."""


def level_at(process: NoisingProcess, t: Tensor | float) -> Level:
    """The level of a process at time `t`; a float gives a level of floats."""
    if isinstance(t, float):
        alpha, sigma = process(torch.tensor(t, dtype=torch.float64))
        return Level(t, alpha.item(), sigma.item())
    t = t.double()
    return Level(t, *process(t))


def level_of_log_snr(process: NoisingProcess, log_snr: Tensor | float) -> Level:
    """The level of a process with log-SNR 2 log(α/σ) = `log_snr`."""
    if isinstance(log_snr, float):
        return level_at(process, process.time(torch.tensor(log_snr, dtype=torch.float64)).item())
    return level_at(process, process.time(log_snr.double()))


def expand(scalar: Scalar, x: Tensor) -> Scalar:
    """A level's number, ready to multiply `x`: per-sample numbers get the dimensions of x."""
    if isinstance(scalar, float):
        return scalar
    return scalar.to(x.dtype).view(-1, *[1] * (x.dim() - 1))


def blend(a: float, x: Tensor, b: float, y: Tensor) -> Tensor:
    """a x + b y as a new tensor, in two operations."""
    return torch.mul(x, a).add_(y, alpha=b)
