"""The two directions of the KL divergence: which Gaussian stands best for a law that is none.

    forward   KL(p ‖ q) = E_p log p/q   dear where p has mass and q has none: q covers p
    reverse   KL(q ‖ p) = E_q log q/p   dear where q has mass and p has none: q seeks a mode of p

(notes §1.2, fig 1-6; C. Bishop 2006, "Pattern recognition and machine learning", §10.1.2.) Of all
q = N(m, s²), the forward divergence is smallest at the mean and the variance of p. The reverse one,
which the bound of a VAE minimises, has as many minima as p has modes that are far apart: about
log 1/π at a mode of weight π, where q is blind to the rest.

p is a mixture of normal laws on the line, p = Σ_k π_k N(μ_k, σ_k²). Expectations under a normal law
are sums over ±10 standard deviations by the trapezoid rule, which for so smooth a function errs in
the last digits only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

REACH, POINTS = 10.0, 2001
SAME = 1e-3  # standard deviations: fits that are nearer to each other are one


class Modes(NamedTuple):
    """A mixture on the line: weights π, which add up to one, means μ and deviations σ, each [K]."""

    weights: tuple[float, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x), like x in float64."""
        weights, means, stds = (torch.tensor(v, dtype=torch.float64) for v in self)
        z = (x.unsqueeze(-1) - means) / stds
        return torch.logsumexp(weights.log() - stds.log() + _log_normal(z), dim=-1)


class Fit(NamedTuple):
    """N(mean, std²), and its two divergences from a law p, in nats."""

    mean: float
    std: float
    forward: float
    reverse: float


def covering(law: Modes) -> Fit:
    """The q of the smallest KL(p ‖ q): the one with the moments of p."""
    mean = math.fsum(w * m for w, m in zip(law.weights, law.means, strict=True))
    spread = (w * (s**2 + (m - mean) ** 2) for w, m, s in zip(*law, strict=True))
    return measured(law, mean, math.sqrt(math.fsum(spread)))


def seeking(law: Modes) -> tuple[Fit, ...]:
    """The q where KL(q ‖ p) has a minimum, the smallest first: those that a descent ends in which
    starts at a mode of p or at its moments."""
    whole = covering(law)
    starts = [*zip(law.means, law.stds, strict=True), (whole.mean, whole.std)]
    found: list[Fit] = []
    for fit in sorted((_descended(law, *start) for start in starts), key=lambda fit: fit.reverse):
        if all(abs(fit.mean - known.mean) > SAME * known.std for known in found):
            found.append(fit)
    return tuple(found)


def measured(law: Modes, mean: float, std: float) -> Fit:
    """q = N(mean, std²) with both divergences."""
    q = Modes((1.0,), (mean,), (std,))
    forward = math.fsum(
        weight * float(_expected(law, q, *(torch.tensor(v, dtype=torch.float64) for v in own)))
        for weight, *own in zip(*law, strict=True)
    )
    at = (torch.tensor(v, dtype=torch.float64) for v in (mean, std))
    return Fit(mean, std, forward, float(_expected(q, law, *at)))


def _expected(p: Modes, q: Modes, mean: Tensor, std: Tensor) -> Tensor:
    """E log p/q under N(mean, std²)."""
    z = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)
    x = mean + std * z
    return _mean(p.log_density(x) - q.log_density(x), z)


def _descended(law: Modes, mean: float, std: float) -> Fit:
    """The minimum of KL(q ‖ p) that is reached from here, over m and log s."""
    z = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)
    place = torch.tensor([mean, math.log(std)], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [place],
        max_iter=500,
        tolerance_grad=1e-10,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def divergence() -> Tensor:
        search.zero_grad()
        log_p = law.log_density(place[0] + place[1].exp() * z)
        loss = -place[1] - _mean(log_p, z) - 0.5 * (1 + math.log(2 * math.pi))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    search.step(divergence)  # type: ignore[no-untyped-call]
    return measured(law, place[0].item(), math.exp(place[1].item()))


def _mean(values: Tensor, z: Tensor) -> Tensor:
    """The expectation of values at z, where z is N(0, 1)."""
    return (values * _log_normal(z).exp()).sum() * (2 * REACH / (POINTS - 1))


def _log_normal(z: Tensor) -> Tensor:
    return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
