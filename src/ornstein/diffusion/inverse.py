"""Inverse problems: the posterior p(x0 | y) of a measurement y = A(x0) + std n, by any step.

    ∇ log p_t(x | y) = ∇ log p_t(x) + ∇ log p_t(y | x)               Bayes' rule, notes eq 1.23

so that a model of the posterior is a model of the data whose score is nudged: a `Denoise` made of
a `Denoise`, at home in the reverse SDE of eq 1.23, in its flow, and in every step there is. In the
plane the clean image moves,  x̂0 += (σ²/α) ∇ log p_t(y | x).

p_t(y | x) is an integral over the x0 that x may have come from, of which one denoiser call knows
the mean x̂0(x). With a Gaussian of covariance V about it, and A linear or by its Jacobian at x̂0,

    p_t(y | x) ≈ N(y; A x̂0, S),   S = A V Aᵀ + std² I,   r = y − A x̂0
    ∇ log p_t(y | x) ≈ (∂x̂0/∂x)ᵀ Aᵀ S⁻¹ r                            V's own change with x left out

    DPS      V = 0                               H. Chung et al. 2023, arXiv:2209.14687
    ΠGDM     V = r_t² I,                         J. Song et al. 2023, "Pseudoinverse-guided
             r_t² = σ² σ_d²/(σ² + σ_d² α²)       diffusion models for inverse problems"
    MMPS     V = (σ²/α) ∂x̂0/∂x = Cov[x0 | x]     F. Rozet et al. 2024, arXiv:2405.13712

The last is exact for Gaussian data, ΠGDM where their covariance is σ_d² I. S⁻¹ r is found by
conjugate gradients, sample by sample.

Two guards do nothing where V is right. As (σ²/α) ∂x̂0/∂x is the covariance of x0 whatever V says,
A x̂0 moves by  A Cov Aᵀ S⁻¹ r,  which is farther than 2 |r| where V is much too small, and guidance
that overshoots so diverges. The move is shortened until A x̂0 is no farther from y than it was; that
of DPS, whose S is too small whenever std is, until |y − A x̂0| is least along it. (The published
DPS divides by |r| instead, with a step size for chains of 1000 steps; this holds for any grid.)
And at α = 0, where x says nothing about x0 and ∂x̂0/∂x = 0, the covariance is taken to be σ_d² I.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field

from ornstein.choice import Choice
from ornstein.diffusion.levels import Level, expand
from ornstein.diffusion.measurements import Measurement, dot, pushing
from ornstein.diffusion.prediction import Denoise, Prediction
from ornstein.errors import ConfigError
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Around(NamedTuple):
    """What is known at one x: r = y − A x̂0 [B, *y] and three maps.

    adjoint: u ↦ Aᵀ u. lift: u ↦ Cov Aᵀ u [B, *], Cov = (σ²/α) (∂x̂0/∂x)ᵀ. push: v ↦ A v.
    prior: r_t² of ΠGDM, a number or one for each sample.
    """

    residual: Tensor
    adjoint: Callable[[Tensor], Tensor]
    lift: Callable[[Tensor], Tensor]
    push: Callable[[Tensor], Tensor]
    prior: float | Tensor
    std: float


class DPS(Choice):
    """Diffusion posterior sampling: S = std² I, as if x̂0 were x0 itself.

    scale: what the guidance is multiplied by; at 1 it is too strong by S/std² already, and is
    cut off where it would overshoot. One pull-back through the network.
    """

    kind: Literal["dps"] = "dps"
    scale: float = Field(1.0, gt=0)

    def shift(self, at: Around) -> Tensor:
        """What x̂0 moves by, [B, *]."""
        move = at.lift(at.residual)
        size = _reach(at, move)
        if at.std > 0:
            size = size.clamp(max=1 / at.std**2)
        return _scaled(self.scale * torch.where(size.isfinite(), size, 0.0), move)


class PiGDM(Choice):
    """Pseudoinverse guidance: x0 ~ N(x̂0, r_t² I). One pull-back through the network.

    iterations: of conjugate gradients at most, on A alone; one is enough where A Aᵀ is a multiple
    of I, as for masks, down-sampling and grey.
    """

    kind: Literal["pigdm"] = "pigdm"
    iterations: int = Field(50, ge=1, le=10_000)

    def shift(self, at: Around) -> Tensor:
        """What x̂0 moves by, [B, *]."""

        def covariance(u: Tensor) -> Tensor:
            return _scaled(at.prior, at.push(at.adjoint(u))) + at.std**2 * u

        return _within(at, at.lift(solve(covariance, at.residual, self.iterations)))


class MMPS(Choice):
    """Moment matching: the covariance of x0 is that which the denoiser implies.

    iterations: of conjugate gradients at most; each is a pull-back through the network, and one
    more ends the step. As many as y has numbers are exact where the denoiser is; of a trained one
    ∂x̂0/∂x is a covariance only nearly, and few iterations, which leave its small eigenvalues
    alone, restore better than many.
    """

    kind: Literal["mmps"] = "mmps"
    iterations: int = Field(2, ge=1, le=10_000)

    def shift(self, at: Around) -> Tensor:
        """What x̂0 moves by, [B, *]."""

        def covariance(u: Tensor) -> Tensor:
            return at.push(at.lift(u)) + at.std**2 * u

        return _within(at, at.lift(solve(covariance, at.residual, self.iterations)))


Method = Annotated[DPS | PiGDM | MMPS, Field(discriminator="kind")]


def posterior(
    denoise: Denoise,
    measurement: Measurement,
    y: Tensor,
    method: Method | None = None,
    sigma_data: float = 1.0,
) -> Denoise:
    """The denoiser of p(x0 | y): what steps take to sample it.

    y: [B, *], one measurement for each sample of the batches that will come, or [1, *] for all.
    method: `MMPS` if it is not given. sigma_data: standard deviation of the data at the model's
    scale, for ΠGDM's r_t² and where α = 0. The result is a pure function of (x, level) whose sample
    b depends on x[b] and y[b] only; it may itself be differentiated, as likelihoods do.
    Raises: ConfigError where y is not finite or sigma_data not above 0, and, when it is called,
    where y is not of the shape that the measurement of x0 has.
    """
    how = MMPS() if method is None else method
    if not sigma_data > 0:
        raise ConfigError(f"sigma_data must be above 0, got {sigma_data:g}")
    y = measurement.seen(y)
    if not torch.isfinite(y).all():
        raise ConfigError(
            "the measurement y holds numbers that are not finite; mask what is not known"
        )

    def guided(x: Tensor, level: Level) -> Prediction:
        again = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            leaf = x if again else x.detach().requires_grad_()
            free = denoise(leaf, level)
            at = _around(free, leaf, measurement, y, sigma_data, again)
            shift = how.shift(at)
        if again:
            return moved(free, shift)
        spread = None if free.spread is None else free.spread.detach()
        return moved(free._replace(x=x, f=free.f.detach(), spread=spread), shift.detach())

    return guided


def moved(prediction: Prediction, shift: Tensor) -> Prediction:
    """The prediction with x̂0 + shift at the same x: `nudged` by the score (α/σ²) shift, which says
    nothing where α = 0; f += (p − q α/σ) shift."""
    _, alpha, sigma = prediction.level
    weight = prediction.p - prediction.q * alpha / sigma
    return prediction._replace(f=prediction.f + expand(weight, shift) * shift)


def solve(apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """S⁻¹ b [B, *] by conjugate gradients, S = `apply` positive semi-definite for each sample.

    A sample is left as it is once it has converged, and where S has turned out not to be positive
    along its direction, as that of a trained network may: neither ends the work of the others.
    """
    v, left, way = torch.zeros_like(b), b, b
    size = dot(b, b)
    enough = (100 * torch.finfo(b.dtype).eps) ** 2 * size
    at_work = size > enough
    for _ in range(iterations):
        if not at_work.any():
            break
        ahead = apply(way)
        curve = dot(way, ahead)
        at_work = at_work & (curve > 0)
        step = torch.where(at_work, size, 0.0) / torch.where(at_work, curve, 1.0)
        v = v + _scaled(step, way)
        left = left - _scaled(step, ahead)
        new = dot(left, left)
        # What is at rest has no way on, or rounding would grow in it without end.
        way = left + _scaled(torch.where(at_work, new / torch.where(at_work, size, 1.0), 0.0), way)
        size = new
        at_work = at_work & (size > enough)
    return v


def _around(
    free: Prediction,
    x: Tensor,
    measurement: Measurement,
    y: Tensor,
    sigma_data: float,
    again: bool,
) -> Around:
    """again: whether what is found will be differentiated once more."""
    _, alpha, sigma = free.level
    x0 = free.x0
    if not x0.requires_grad:  # a denoiser that does not look at x: a point
        x0 = x0 + 0 * x
    found = measurement(x0)
    _check(found, y)
    y = y.to(found)
    noise, signal = (torch.as_tensor(k, dtype=torch.float64) for k in (sigma, alpha))
    silent = signal == 0
    ratio = noise.square() / torch.where(silent, 1.0, signal)
    prior = noise**2 * sigma_data**2 / (noise**2 + (sigma_data * signal) ** 2)

    def pull(u: Tensor, to: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(found, to, u, retain_graph=True, create_graph=again)
        return pulled

    def lift(u: Tensor) -> Tensor:
        if not silent.any():
            return _scaled(ratio, pull(u, x))
        flat = sigma_data**2 * pull(u, x0)
        if silent.all():
            return flat
        heard = _scaled((~silent).to(flat.dtype), torch.ones_like(flat)) > 0
        return torch.where(heard, _scaled(ratio, pull(u, x)), flat)

    return Around(
        residual=y - found if again else (y - found).detach(),
        adjoint=lambda u: pull(u, x0),
        lift=lift,
        push=pushing(found, x0, again),
        prior=prior,
        std=measurement.std,
    )


def _check(found: Tensor, y: Tensor) -> None:
    if y.shape[1:] != found.shape[1:] or y.shape[:1] not in (found.shape[:1], (1,)):
        raise ConfigError(
            f"y has the shape {list(y.shape)}, but the measurement of these samples has "
            f"{list(found.shape)}; give one y for each sample, or a single one for all"
        )


def _reach(at: Around, move: Tensor) -> Tensor:
    """How many times `move` takes A x̂0 closest to y, [B]; 0 or more, and inf for no move at all."""
    ahead = at.push(move)
    length = dot(ahead, ahead)
    share = dot(at.residual, ahead).clamp(min=0) / torch.where(length > 0, length, 1.0)
    return torch.where(length > 0, share, torch.inf)


def _within(at: Around, move: Tensor) -> Tensor:
    """`move`, shortened where A x̂0 would be farther from y than it was."""
    return _scaled((2 * _reach(at, move)).clamp(max=1.0), move)


def _scaled(factor: float | Tensor, x: Tensor) -> Tensor:
    """factor, a number or one for each sample, times x."""
    if not isinstance(factor, float):
        factor = factor.to(x.device, x.dtype)
    return expand(factor, x) * x
