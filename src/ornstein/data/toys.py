"""Distributions in the plane whose samples one can look at.

Each is generated at its own scale and then standardised, x = (y − m) / √v, where m is the mean
and v the mean of the two coordinates' variances, both in closed form: over all values the mean
is 0 and the variance 1, and shapes keep their proportions. A little Gaussian noise of standard
deviation s gives every distribution but the checkerboard a density everywhere.

Sample number i depends on (name, seed, i) only: a larger set begins with the smaller one.
Arithmetic is in float64 and rounded to float32 at the end.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ornstein.noise import Noise


class Toy(NamedTuple):
    """How to draw y, float64 [N, 2], with its mean m and its variance v per coordinate."""

    draw: Callable[[Noise], Tensor]
    mean: tuple[float, float]
    variance: float


def toy(name: str, count: int, seed: int = 0) -> np.ndarray:
    """`count` samples of the distribution `name` (a key of `TOYS`), float32 [count, 2]."""
    draw, mean, variance = TOYS[name]
    y = draw(Noise.of(seed, f"toy/{name}", count))
    x: np.ndarray = ((y - torch.tensor(mean)) / math.sqrt(variance)).float().numpy()
    return x


def swiss_roll(noise: Noise) -> Tensor:
    """y = a (cos a, sin a) + s z,  a uniform on [3π/2, 9π/2],  s = 0.5."""
    a = _uniform(noise, 1.5 * math.pi, 4.5 * math.pi)
    return _polar(a, a) + 0.5 * _normal(noise)


def two_spirals(noise: Noise) -> Tensor:
    """y = ± a (cos a, sin a) + s z,  a = 3π √u,  s = 0.3."""
    a = 3 * math.pi * _uniform(noise, 0, 1).sqrt()
    sign = 2 * noise.integers(1, 2) - 1
    return _polar(sign * a, a) + 0.3 * _normal(noise)


def moons(noise: Noise) -> Tensor:
    """y = (cos a, sin a) or (1 − cos a, 1/2 − sin a), + s z,  a uniform on [0, π],  s = 0.05."""
    upper = _polar(1.0, _uniform(noise, 0, math.pi))
    lower = torch.tensor((1.0, 0.5)) - upper
    return torch.where(noise.integers(1, 2, (1,)) == 0, upper, lower) + 0.05 * _normal(noise)


def circles(noise: Noise) -> Tensor:
    """y = r (cos a, sin a) + s z,  r = 1 or 1/2,  a uniform on [0, 2π],  s = 0.05."""
    radius = 0.5 * (1 + noise.integers(1, 2))
    return _polar(radius, _uniform(noise, 0, 2 * math.pi)) + 0.05 * _normal(noise)


def checkerboard(noise: Noise) -> Tensor:
    """y uniform on the eight squares of a 4 × 4 board on [−2, 2]² whose row + column is even."""
    square = noise.integers(1, 8)
    row = square // 2
    corner = torch.stack((2 * (square % 2) + row % 2, row), dim=1) - 2
    return corner + noise.uniform(0, (2,), torch.float64)


def pinwheel(noise: Noise) -> Tensor:
    """y = R(φ) (1 + 0.3 z₁, 0.1 z₂),  φ = 2πk/5 + exp(1 + 0.3 z₁) / 4,  k one of five arms.

    M. Johnson et al., "Composing graphical models with neural networks for structured
    representations and fast inference", NeurIPS 2016, https://arxiv.org/abs/1603.06277.
    """
    z = _normal(noise)
    along, across = 1 + 0.3 * z[:, 0], 0.1 * z[:, 1]
    turn = 2 * math.pi / 5 * noise.integers(1, 5) + along.exp() / 4
    return _polar(along, turn) + _polar(across, turn + math.pi / 2)


def eight_gaussians(noise: Noise) -> Tensor:
    """y = 2 (cos a, sin a) + s z,  a one of eight even angles,  s = 0.2."""
    return _polar(2.0, math.pi / 4 * noise.integers(1, 8)) + 0.2 * _normal(noise)


PI = math.pi
TOYS: dict[str, Toy] = {
    # E[a cos a] = 2, E[a sin a] = 2/(3π), E[a²] = 39π²/4
    "swiss_roll": Toy(
        swiss_roll,
        (2.0, 2 / (3 * PI)),
        (39 * PI**2 / 4 - 4 - (2 / (3 * PI)) ** 2) / 2 + 0.25,
    ),
    # one moon: variances 1/2 and 1/2 − 4/π²; their means are (0, 2/π) and (1, 1/2 − 2/π)
    "moons": Toy(moons, (0.5, 0.25), (0.75 + 0.5 - 4 / PI**2 + (2 / PI - 0.25) ** 2) / 2 + 0.0025),
    "circles": Toy(circles, (0.0, 0.0), (1 + 0.25) / 4 + 0.0025),
    "checkerboard": Toy(checkerboard, (0.0, 0.0), 4 / 3),
    # a rotation keeps lengths: E|y|² = 1 + 0.3² + 0.1²
    "pinwheel": Toy(pinwheel, (0.0, 0.0), 1.1 / 2),
    "eight_gaussians": Toy(eight_gaussians, (0.0, 0.0), 2 + 0.04),
    # E[a²] = 9π²/2
    "two_spirals": Toy(two_spirals, (0.0, 0.0), 9 * PI**2 / 4 + 0.09),
}


def _uniform(noise: Noise, low: float, high: float) -> Tensor:
    return low + (high - low) * noise.uniform(0, (), torch.float64)


def _normal(noise: Noise) -> Tensor:
    return noise.normal(2, (2,), torch.float64)


def _polar(radius: Tensor | float, angle: Tensor) -> Tensor:
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=1)
