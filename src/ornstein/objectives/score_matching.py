"""Score matching without the noise: what denoising compares with ε, found by differentiation.

    x = α x0 + σ ε at random levels, as in `denoising`, and at each of them

    explicit    E[½ ‖s‖² + tr ∇s]           A. Hyvärinen 2005, JMLR 6; notes eq 1.13
    sliced      E[½ ‖s‖² + vᵀ ∇s v]         Y. Song et al. 2019, arXiv:1905.07088, eq 8; E[v vᵀ] = I
    denoising   E[½ ‖s + ε/σ‖²]             P. Vincent 2011; notes eq 1.14

of s = s_θ(x), three expectations that differ by constants. They are one by Stein's lemma,
E[ε · ε̂(x)] = σ E[tr ∇ε̂(x)]: with s = −ε̂/σ, and the constant D/2σ² added, all are

    (1/2σ²) E[‖ε̂‖² − 2σ tr ∇ε̂ + D]     =     (1/2σ²) E‖ε̂ − ε‖²

What a network predicts is f = p x0 + q ε, and ‖f̂ − f‖² = ((αq − σp)/α)² ‖ε̂ − ε‖². So for every
target, weighting and law of levels the loss here has the expectation of `Denoising`'s, and the
same gradient on average. Its single values differ, and may be negative.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ornstein.choice import Choice, Load
from ornstein.diffusion.levels import expand
from ornstein.errors import ConfigError
from ornstein.lazy import torch
from ornstein.objectives.base import Context, Loss
from ornstein.objectives.denoising import DataRange, Levels, Simple, UniformTime, Weight

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ornstein.data.info import Batch, DataInfo
    from ornstein.diffusion.denoiser import Denoiser
    from ornstein.noise import Noise

LARGE = 64  # dimensions from which on the exact trace, a backward pass for each, is refused


class ScoreMatching(Choice):
    """Explicit or sliced score matching at random levels, for any process and target.

    The loss of a sample is that of `Denoising` on average, per dimension. It needs the gradient of
    a gradient: two to three times the work of denoising for each projection (or dimension), and a
    network that can be differentiated twice.
    """

    kind: Literal["score_matching"] = "score_matching"
    trace: Literal["exact", "sliced"] = Field(
        "sliced", description="exact: a backward pass for each dimension, for small data"
    )
    projections: int = Field(
        1, ge=1, le=10_000, description="random directions a sample, if sliced"
    )
    directions: Literal["rademacher", "gaussian"] = Field(
        "rademacher", description="±1 varies less, and in one dimension is exact"
    )
    levels: Levels = UniformTime()
    weighting: Weight = Simple()
    range: DataRange = (-1.0, 1.0)

    def build(self, model: Denoiser, info: DataInfo, load: Load) -> ScoreMatching:
        """Raises: ConfigError for data too large for the exact trace, for levels that the process
        does not have, and for a process that ends without signal."""
        size = math.prod(info.shape)
        if self.trace == "exact" and size > LARGE:
            raise ConfigError(
                f"the exact trace costs a backward pass for each of the {size:,} dimensions of a "
                f"sample, and is meant for {LARGE} at most; write objective.trace=sliced"
            )
        one = torch.ones(1, dtype=torch.float64)
        if model.process(one)[0].item() == 0:
            raise ConfigError(
                "at t = 1 this process is pure noise, whose score says nothing of the image; write "
                "model.process=vp, say, or objective=denoising"
            )
        self.levels(model.process, 0.5 * one)
        differentiated_twice(model)
        return self

    def __call__(self, model: Denoiser, batch: Batch, context: Context) -> Loss:
        """Raises: ConfigError for a network whose weights are spread over ranks: they are put
        together for a forward and a backward pass, and not for the pass through the latter."""
        if sharded(model.network):
            raise ConfigError(
                "score matching differentiates gradients, which a sharded network cannot; write "
                "optim.shard=off"
            )
        x0 = batch.x
        u = context.noise.child("level").uniform(0, (), torch.float64)
        eps = context.noise.child("eps").normal(0, x0.shape[1:], x0.dtype)
        level = self.levels(model.process, u)
        x = expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps
        # A compiled network has no second derivative, so that it is called as it was written.
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            x.requires_grad_(True)
            said = model(x.view_as(x), level).eps  # a leaf is no input that torch's counters like
            slope = self._trace(said, x, context.noise) / math.prod(x.shape[1:])
        sigma = torch.as_tensor(level.sigma).to(said)
        error = said.square().flatten(1).mean(1) - 2 * sigma * slope + 1
        p, q = model.target(model.process, level)
        of_target = torch.as_tensor((level.alpha * q - level.sigma * p) / level.alpha) ** 2
        weight = self.weighting(model.target, model.process, level) * of_target
        return Loss(weight.to(error) * error)

    def _trace(self, said: Tensor, x: Tensor, noise: Noise) -> Tensor:
        """tr ∂said/∂x of each sample [B], or its estimate, itself differentiable."""
        if self.trace == "exact":
            axes = torch.eye(math.prod(x.shape[1:]), dtype=x.dtype, device=x.device)
            rows = [axis.view(x.shape[1:]).expand_as(x) for axis in axes]
            return torch.stack([_quadratic(said, x, row) for row in rows]).sum(0)
        noise, shape = noise.child("direction"), x.shape[1:]
        rows = [
            (2 * noise.integers(i, 2, shape) - 1).to(x.dtype)
            if self.directions == "rademacher"
            else noise.normal(i, shape, x.dtype)
            for i in range(self.projections)
        ]
        return torch.stack([_quadratic(said, x, row) for row in rows]).mean(0)


def _quadratic(said: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """vᵀ (∂said/∂x) v of each sample [B]: samples do not see each other, so that one backward
    pass serves all."""
    (row,) = torch.autograd.grad((said * v).sum(), x, create_graph=True)
    return (row * v).flatten(1).sum(1)


def sharded(network: nn.Module) -> bool:
    """Whether ranks hold a part of its weights each."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(network, FSDPModule)


def differentiated_twice(model: nn.Module) -> None:
    """Have attention computed in a way that has second derivatives, while gradients are taken."""
    from ornstein.nn.attention import SelfAttention

    for part in model.modules():
        if isinstance(part, SelfAttention):
            part.twice = True
