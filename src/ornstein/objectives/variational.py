"""Training on the variational bound, which is what teaches a network its reverse variance.

    L_hybrid = L_simple + λ L_vlb                 (notes eq 35 and after)
    L_vlb    = L_t/p_t,  t ~ p_t                  an unbiased estimate of Σ_t L_t

A. Nichol, P. Dhariwal 2021, "Improved denoising diffusion probabilistic models",
arXiv:2102.09672, §3.1 and 3.3. The terms are those of `diffusion/bound.py` on the chain t = i/T,
without L_T, which nothing can train, and in **bits per dimension**: the unit in which the paper's
λ = 0.001 is meant. (Its code draws t evenly and writes T·L_t/1000 for λ·T·L_t.)

In L_hybrid the bound's gradient reaches the variance only: the mean is learned from L_simple. In
L_vlb it reaches both, and its noise is tamed by drawing t in proportion to √E[L_t²]; this is what
reaches 2.94 bits/dim on CIFAR-10 in the notes' fig 2-6.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from ornstein.choice import Choice, Load
from ornstein.diffusion.bound import Bins, Chain, bins_of, chain_of, drawn, term_nats
from ornstein.diffusion.grid import Trailing
from ornstein.diffusion.prediction import aim, resolve
from ornstein.errors import ConfigError
from ornstein.lazy import torch
from ornstein.objectives.base import Context, Loss
from ornstein.objectives.denoising import DataRange, Range

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.data.info import Batch, DataInfo
    from ornstein.diffusion.denoiser import Denoiser
    from ornstein.objectives.importance import VariationalLoss

LENGTH = "T, the number of steps of the chain whose bound is trained"


class Hybrid(Choice):
    """L_simple + λ L_vlb, for a network that predicts its variance."""

    kind: Literal["hybrid"] = "hybrid"
    steps: int = Field(1000, ge=2, le=100_000, description=LENGTH)
    weight: float = Field(0.001, ge=0, description="λ, of the bound in bits per dimension")
    range: DataRange = (-1.0, 1.0)

    def build(self, model: Denoiser, info: DataInfo, load: Load) -> HybridLoss:
        """Raises: ConfigError for a network that predicts no variance."""
        if not model.learn_spread:
            raise ConfigError(
                "hybrid trains a predicted variance, and this network predicts none; "
                "write model.variance=learned"
            )
        return HybridLoss(self.weight, trained_chain(model, self.steps), bins_of(info), self.range)


class Variational(Choice):
    """L_vlb itself, with importance-sampled t: the best likelihood, the slowest to good images.

    spread: v of the reverse variance β^v β̃^(1−v) where the network predicts none.
    """

    kind: Literal["variational"] = "variational"
    steps: int = Field(1000, ge=2, le=100_000, description=LENGTH)
    importance: bool = Field(True, description="draw t by what its terms vary; else evenly")
    spread: float = Field(1.0, ge=0, le=1, description="v, where it is not learned")
    range: DataRange = (-1.0, 1.0)

    def build(self, model: Denoiser, info: DataInfo, load: Load) -> VariationalLoss:
        from ornstein.objectives.importance import VariationalLoss

        chain, bins = trained_chain(model, self.steps), bins_of(info)
        return VariationalLoss(chain, bins, self.spread, self.importance, self.range)


class HybridLoss(NamedTuple):
    """Per sample: the mean squared error of the target per dimension, plus λ·T·L_t of one pair
    drawn evenly, in bits per dimension. Metrics: `simple`, and `vlb`, Σ L_t in bits/dim."""

    weight: float
    chain: Chain
    bins: Bins | None
    range: Range

    def __call__(self, model: Denoiser, batch: Batch, context: Context) -> Loss:
        x0 = batch.x
        steps = len(self.chain.gain)
        u = context.noise.child("level").uniform(0, (), torch.float64)
        row = steps - 1 - torch.floor(u * steps).long()  # the chain begins with the noise
        eps = context.noise.child("eps").normal(0, x0.shape[1:], x0.dtype)
        x, level = drawn(self.chain, row, x0, eps)
        f, spread = model.heads(x, level)
        assert spread is not None  # `build` saw to it
        wanted = aim(model.target, model.process, level, x0, eps)
        simple = (f - wanted).square().flatten(1).mean(1)
        p, q = model.target(model.process, level)
        estimate = resolve(x, level, f.detach(), p, q).x0
        nats = term_nats(x0, estimate, spread, self.chain, row, self.bins)
        vlb = steps * bits(nats, x0)
        metrics = {
            "simple": (simple.detach().sum(), float(len(x0))),
            "vlb": (vlb.detach().sum(), float(len(x0))),
        }
        return Loss(simple + self.weight * vlb, metrics)


def trained_chain(model: Denoiser, steps: int) -> Chain:
    """The pairs of t = 1, 1 − 1/T, ..., 1/T, 0."""
    return chain_of(Trailing()(model.process, steps))


def bits(nats: Tensor, x0: Tensor) -> Tensor:
    """Nats per sample [B] as bits per dimension of x0 [B, *]."""
    return nats / (x0[0].numel() * math.log(2))
