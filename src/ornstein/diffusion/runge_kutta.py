"""An ordinary differential equation for each sample of a batch, solved with error control.

    dy/dτ = f(y, τ)

A step of the pair of J. Dormand and P. Prince ("A family of embedded Runge-Kutta formulae",
J. Comp. Appl. Math. 6, 1980) has two results, of order 5 and 4, from the same seven slopes. Their
difference estimates the error: the step counts where that is within the tolerance, and the next
one is as long as the tolerance allows. The last slope is the first one of the next step.

Every sample has a time and a step of its own, so that its result does not depend on its
neighbours. Who arrives leaves the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ornstein.errors import NumericsError
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

MOST = 20_000  # evaluations for one sample; a flow that can be followed takes some hundreds
FIRST = 0.05  # the first step, which may turn out to be too long
SAFETY, SHRINK, GROW = 0.9, 0.2, 5.0

_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_ROWS = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),  # the result of order 5
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

Slope = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
"""(y [b, n], τ [b], rows [b]) -> dy/dτ [b, n] of the samples `rows` of the batch."""


class Solution(NamedTuple):
    """y: float64 [B, n] at the end. evaluations: of the slope, int64 [B], for each sample."""

    y: Tensor
    evaluations: Tensor


def solve(
    slope: Slope,
    y: Tensor,
    start: float,
    end: float,
    tolerance: float,
    size: Callable[[Tensor], Tensor],
    longest: float = math.inf,
) -> Solution:
    """Follow dy/dτ from y [B, n], float64, at τ = `start` to τ = `end`, forth or back.

    size: the length [b] of errors [b, n], of which one step may make `tolerance`. longest: a step
    that may be taken, where slopes are small at first and errors therefore too.
    Raises: NumericsError where that cannot be had, because a slope is not finite or jumps.
    """
    result, evaluations = y.clone(), torch.zeros(len(y), dtype=torch.int64, device=y.device)
    if start == end or not len(y):
        return Solution(result, evaluations)
    rows = torch.arange(len(y), device=y.device)
    time = y.new_full((len(y),), start)
    step = y.new_full((len(y),), math.copysign(min(FIRST, abs(end - start)), end - start))
    first, asked = slope(y, time, rows), 1
    while len(rows):
        if asked > MOST:
            raise NumericsError(
                f"the probability flow cannot be followed to a tolerance of {tolerance:g} for "
                f"{len(rows)} of {len(result)} samples; write a larger one, or use another average"
            )
        last = step.abs() >= (end - time).abs()
        h = torch.where(last, end - time, step)
        slopes = [first]
        for node, row in zip(_NODES, _ROWS, strict=True):
            point = y + h.unsqueeze(1) * _sum(row, slopes)
            slopes.append(slope(point, time + node * h, rows))
        asked += len(_NODES)
        error = size(h.unsqueeze(1) * _sum(_ERROR, slopes)) / tolerance
        fine = error <= 1  # which NaN is not
        change = (SAFETY * error.clamp(min=1e-10) ** -0.2).clamp(SHRINK, GROW)
        step = (h * torch.where(torch.isfinite(error), change, SHRINK)).clamp(-longest, longest)
        y = torch.where(fine.unsqueeze(1), point, y)
        first = torch.where(fine.unsqueeze(1), slopes[-1], first)
        time = torch.where(fine, time + h, time)
        arrived = fine & last
        if bool(arrived.any()):
            result[rows[arrived]], evaluations[rows[arrived]] = y[arrived], asked
            on = ~arrived
            rows, time, step, y, first = rows[on], time[on], step[on], y[on], first[on]
    return Solution(result, evaluations)


def rms(error: Tensor) -> Tensor:
    """The root mean square [b] of errors [b, n]."""
    return error.square().mean(1).sqrt()


def _sum(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        if weight:
            total = total.add(slope, alpha=weight)
    return total
