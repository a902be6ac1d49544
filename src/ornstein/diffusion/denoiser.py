"""A network made into a denoiser: (x, level) in, `Prediction` out.

    f = network(c_in x, label(level), cond),   c_in = 1/√(σ² + σ_d² α²)
    prediction = resolve(x, level, f, p, q)

The denoiser owns the scale of the input and the noise label, so no network ever sees σ; and it
owns the target, so nothing downstream ever sees what the network predicts. For a variance-
preserving process and σ_d = 1 the input scale is exactly 1, as in DDPM; for VE it is EDM's c_in.

A network that is told no level (label `none`) sees x itself, c_in = 1, since only the size of x
tells the level then. With the target ε it is NCSNv2's s(x, σ) = s(x)/σ, f = −s(x): one function of
x for all levels (Y. Song, S. Ermon 2020, arXiv:2006.09011, technique 3).

A network with twice the outputs also says where the reverse variance lies between β̃ (v = 0) and β
(v = 1) of a step, per value: v = (output + 1)/2 (A. Nichol, P. Dhariwal 2021, arXiv:2102.09672,
eq 15; notes eq 35). It is not clamped, since data wider than a unit Gaussian want v > 1.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ornstein.diffusion.levels import Level, Scalar, expand
from ornstein.diffusion.prediction import (
    Denoise,
    Prediction,
    PredictionTarget,
    check_admissible,
    resolve,
)
from ornstein.diffusion.process import NoisingProcess
from ornstein.errors import ConfigError
from ornstein.nn.cond import NO_COND, Cond

Label = Literal["time", "log_sigma", "none"]
MANY_LEVELS = 4096  # more than any grid has that is walked more than once


class Constants(NamedTuple):
    """Of one level: the scale of the network's input, its noise label (float32 [B]), and
    the target's p and q."""

    scale: Scalar
    label: Tensor
    p: Scalar
    q: Scalar


class Denoiser(nn.Module):
    """backbone + process + target.

    network: (x [B, *], label [B], Cond) -> [B, *], ignorant of diffusion.
    label: `time` is 1000 t, DDPM's index at T = 1000; `log_sigma` is EDM's ¼ ln(σ/α); `none` is 0
        at every level, and the input is x itself.
    sigma_data: standard deviation of clean data at the model's scale.
    learn_spread: whether the network has twice the outputs, the second half being v.
    Raises: ConfigError where the target does not determine x0 at some time of the process.
    """

    def __init__(
        self,
        network: nn.Module,
        process: NoisingProcess,
        target: PredictionTarget,
        label: Label = "time",
        sigma_data: float = 1.0,
        learn_spread: bool = False,
    ) -> None:
        super().__init__()
        check_admissible(target, process)
        if label == "log_sigma" and process(torch.ones(1, dtype=torch.float64))[0].item() == 0:
            raise ConfigError(
                "the noise label 'log_sigma' is infinite where α = 0, at the last time of this "
                "process; write label=time"
            )
        self.network = network
        self.process = process
        self.target = target
        self.label = label
        self.sigma_data = sigma_data
        self.learn_spread = learn_spread
        self._known: dict[Level, Constants] = {}

    def forward(self, x: Tensor, level: Level, cond: Cond = NO_COND) -> Prediction:
        """x [B, *] at `level` (σ > 0) -> Prediction in the precision of x."""
        at = self.constants(level, x)
        f, spread = self._heads(x, at, cond)
        return resolve(x, level, f, at.p, at.q, spread)

    def output(self, x: Tensor, level: Level, cond: Cond = NO_COND) -> Tensor:
        """What the network says, f [B, *]: the quantity that training compares."""
        return self.heads(x, level, cond)[0]

    def heads(self, x: Tensor, level: Level, cond: Cond = NO_COND) -> tuple[Tensor, Tensor | None]:
        """f and, where it is learned, v, each [B, *]."""
        return self._heads(x, self.constants(level, x), cond)

    def _heads(self, x: Tensor, at: Constants, cond: Cond) -> tuple[Tensor, Tensor | None]:
        out: Tensor = self.network(x * expand(at.scale, x), at.label, cond)
        if out.dtype != x.dtype:
            out = out.to(x.dtype)
        if not self.learn_spread:
            return out, None
        f, spread = out.chunk(2, dim=1)
        return f, 0.5 * (spread + 1)

    def constants(self, level: Level, x: Tensor) -> Constants:
        """What depends on the level alone, for a batch like x; for a level of a grid it is
        computed once."""
        if not isinstance(level.t, float):
            return self._constants(level, x)
        known = self._known.get(level)
        if known is None or known.label.size(0) != x.size(0) or known.label.device != x.device:
            if len(self._known) >= MANY_LEVELS:
                self._known.clear()
            known = self._known[level] = self._constants(level, x)
        return known

    def _constants(self, level: Level, x: Tensor) -> Constants:
        norm = (level.sigma**2 + (self.sigma_data * level.alpha) ** 2) ** 0.5
        if self.label == "none":
            norm, label = 1.0, 0.0 * level.t
        elif self.label == "time":
            label = 1000.0 * level.t
        else:
            ratio = level.sigma / level.alpha
            label = 0.25 * (math.log(ratio) if isinstance(ratio, float) else torch.log(ratio))
        if isinstance(label, float):
            label = torch.full((1,), label, dtype=torch.float32)
        label = label.to(x.device, torch.float32).expand(len(x))
        return Constants(1.0 / norm, label, *self.target(self.process, level))


def bind(denoiser: Denoiser, cond: Cond = NO_COND) -> Denoise:
    """The denoiser with its condition fixed: what steps, likelihoods and guidance take."""

    def denoise(x: Tensor, level: Level) -> Prediction:
        prediction: Prediction = denoiser(x, level, cond)
        return prediction

    return denoise
