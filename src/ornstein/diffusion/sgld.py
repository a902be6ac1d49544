"""Stochastic-gradient Langevin dynamics: samples of a posterior, a minibatch of data at a time.

    θ ← θ + (ε_t/2) [∇log p(θ) + (N/n) Σ_{i in minibatch} ∇log p(x_i | θ)] + √ε_t z
    ε_t = a (b + t)^−γ,   γ in (½, 1]:   Σ ε_t = ∞, and Σ ε_t² < ∞

M. Welling, Y. Teh 2011, "Bayesian learning via stochastic gradient Langevin dynamics", ICML, eq 4;
the half form of Langevin dynamics (note 000, notes eq 32), with a gradient that is estimated. The
error of the estimate enters θ by its variance times ε²/4, the noise that is added by ε: as ε
falls, what was gradient ascent becomes Langevin dynamics, and goes on from the mode to the whole
posterior, with no step rejected. Without z it is gradient ascent, which ends at the mode.

Averages over the chain are weighted, as late steps are shorter (eq 11):

    E[f(θ) | x] ≈ Σ ε_t f(θ_t) / Σ ε_t

At a constant step ε (γ = 0) the chain settles, too wide: for a Gaussian posterior of covariance Σ
and whole batches, at Σ (I − ε Σ⁻¹/4)⁻¹.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ornstein.choice import Choice
from ornstein.errors import ConfigError
from ornstein.noise import Noise, Shuffle


class Decay(Choice):
    """ε_t = first · (1 + t/delay)^−power, t from 0: the paper's a (b + t)^−γ, as ε_0, b and γ.

    ε_0 should be small beside the smallest posterior variance, and the decay slow enough that
    Σ ε_t is many times the largest. power 0 keeps the step.
    """

    first: float = Field(gt=0, description="ε_0, in squared units of θ")
    delay: float = Field(1.0, gt=0, description="b, in steps")
    power: float = Field(0.55, ge=0, le=1, description="γ; above ½ the bias of ε vanishes")

    def __call__(self, t: int) -> float:
        return float(self.first * (1 + t / self.delay) ** -self.power)


class Posterior(NamedTuple):
    """What is known up to a constant: log p(θ) and log p(x_i | θ) of `observed` observations.

    θ [C, *] are C chains. log_prior: θ -> [C]; log_likelihood: θ, ids [n] -> [C, n]. Both in nats,
    differentiable in θ, and of each chain by itself.
    """

    log_prior: Callable[[Tensor], Tensor]
    log_likelihood: Callable[[Tensor, Tensor], Tensor]
    observed: int

    def gradient(self, theta: Tensor, ids: Tensor) -> Tensor:
        """∇log p(θ) + (N/n) Σ_i ∇log p(x_i | θ) [C, *], unbiased for random ids [n]."""
        leaf = theta.detach().requires_grad_()
        with torch.enable_grad():
            share = self.observed / len(ids)
            total = self.log_prior(leaf).sum() + share * self.log_likelihood(leaf, ids).sum()
            (gradient,) = torch.autograd.grad(total, leaf)
        return gradient


class Draw(NamedTuple):
    """θ [C, *] after `step` steps, the last of them of size ε = `weight`."""

    step: int
    weight: float
    theta: Tensor


def minibatches(seed: int, count: int, size: int) -> Iterator[Tensor]:
    """Ids int64 [size] of 0 ... count−1, without end: every epoch is a random order, cut up.

    What an order leaves over is dropped. Raises: ConfigError for a size that is no part of count.
    """
    if not 1 <= size <= count:
        raise ConfigError(f"a minibatch of {count} observations holds 1 to {count}, not {size}")
    epoch = 0
    while True:
        order = Shuffle.of(seed, "sgld/minibatches", epoch, count)
        for start in range(0, count - size + 1, size):
            yield order(torch.arange(start, start + size))
        epoch += 1


def sgld(
    posterior: Posterior,
    theta: Tensor,
    batches: Iterable[Tensor],
    sizes: Callable[[int], float],
    noise: Noise | None,
) -> Iterator[Draw]:
    """Walk from θ [C, *], one step for each minibatch of ids, yielding every state.

    noise: chain c draws as sample c of it, so that it does not depend on its neighbours; None for
    stochastic gradient ascent. All chains see the same minibatches: they are independent given
    these, and wholly independent only if each has its own (another seed, another call).
    """
    for t, ids in enumerate(batches):
        size = sizes(t)
        theta = torch.add(theta, posterior.gradient(theta, ids), alpha=0.5 * size)
        if noise is not None:
            z = noise.at(t).normal(0, theta.shape[1:], theta.dtype)
            theta = theta.add_(z, alpha=math.sqrt(size))
        yield Draw(t + 1, size, theta)


def average(draws: Iterable[Draw], of: Callable[[Tensor], Tensor]) -> Tensor:
    """Σ ε_t f(θ_t) / Σ ε_t of finitely many draws; f: θ [C, *] -> [C, *], float64.

    Raises: ConfigError without a draw.
    """
    weight, total = 0.0, None
    for draw in draws:
        weight += draw.weight
        value = of(draw.theta).double()
        gap = value if total is None else value - total
        total = value if total is None else total + gap * (draw.weight / weight)
    if total is None:
        raise ConfigError("no draws to average; take some, and drop fewer as burn-in")
    return total
