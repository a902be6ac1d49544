"""Exponential solvers of the probability flow: what is known exactly is integrated exactly.

With r = σ/α the flow dx = x̂0 dα + ε̂ dσ becomes an integral of what the network says, whichever
field of the plane is kept:

    d(x/σ)  = x̂0 d(1/r)                          x0     data form (DPM-Solver++, UniPC)
    d(x/α)  = ε̂ dr                               eps    noise form (DPM-Solver, DEIS, ε-AB)
    d(x/√(σ² + σ_d²α²)) = v̂ dφ,  tan φ = r/σ_d   v      nothing is left to do for N(0, σ_d² I)

so that a step is x_s = scale x_t + Σ_j w_j f_j, exact for a constant field. A method is a field, a
clock u(r) in which the field is a polynomial, and the points through which that polynomial goes:
of the last levels (multistep, C. Lu et al. 2022, arXiv:2211.01095; Q. Zhang, Y. Chen 2023,
"DEIS", arXiv:2204.13902), with the level reached as well to correct it, at no further evaluation
(W. Zhao et al. 2023, "UniPC", arXiv:2302.04867), or within the step (single-step). Clocks:

    log_snr   log r       the published solvers'; infinitely far from data, so that the order
                          falls to 1 in the last step
    ratio     r           Adams-Bashforth in σ, as k-diffusion's `lms`
    asinh     asinh(r/c)  like log r where noise prevails and like r near data, c = ½ σ_d, so that
                          data is a point like any other: the last step extrapolates to it, in
                          r², since near data the flow and x̂0 along it are even in r

All weights are integrals of Lagrange polynomials, made before the loop by Gauss' rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from ornstein.choice import Choice
from ornstein.diffusion.grid import Levels
from ornstein.diffusion.levels import Level, blend, level_of_log_snr
from ornstein.diffusion.prediction import Denoise
from ornstein.diffusion.process import NoisingProcess
from ornstein.diffusion.walk import Fresh, Move
from ornstein.errors import ConfigError
from ornstein.lazy import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.noise import Noise

Kept = Literal["x0", "eps", "v"]
ClockName = Literal["asinh", "log_snr", "ratio"]

MAGNIFIED = (1.0, 6.0, 10.0, 25.0, 63.0)
"""By order, how many times its whole weight a step may weigh the fields. Beyond that errors of the
steps before outweigh what the order gains: on grids uniform in t, whose last steps leap over units
of log σ, order 1 is then better."""
FEW = 12  # steps up to which order 2 is best
KNEE = 0.5  # of the asinh clock, in standard deviations of the data


@lru_cache(maxsize=1)
def _gauss() -> tuple[np.ndarray, np.ndarray]:
    """Nodes in [−1, 1] and weights of Gauss' rule, exact for polynomials of degree 63."""
    nodes, weights = np.polynomial.legendre.leggauss(32)
    return nodes, weights


class Rule(NamedTuple):
    """How a field is integrated: `field`, its clock, σ_d, and κ = η², which is 0 for the flow."""

    field: Kept
    clock: ClockName
    sigma_data: float
    kappa: float = 0.0

    def u(self, ratio: float) -> float:
        """The clock at r = σ/α."""
        if self.clock == "ratio":
            return ratio
        if self.clock == "log_snr":
            return math.log(ratio) if ratio > 0 else -math.inf
        return math.asinh(ratio / (KNEE * self.sigma_data))

    def point(self, level: Level) -> tuple[float, float]:
        """The field as a point of the plane, f = p x̂0 + q ε̂."""
        if self.field == "x0":
            return 1.0, 0.0
        if self.field == "eps":
            return 0.0, 1.0
        norm = self._norm(level)
        p, q = -level.sigma / (self.sigma_data * norm), self.sigma_data * level.alpha / norm
        return float(p), float(q)

    def scale(self, t: Level, s: Level) -> float:
        """Of x in a step from t to s."""
        if self.field == "x0":
            fading = _ratio(s) / _ratio(t) if self.kappa else 1.0
            return float(s.sigma / t.sigma * fading**self.kappa)
        if self.field == "eps":
            return float(s.alpha / t.alpha)
        return self._norm(s) / self._norm(t)

    def weights(self, t: Level, s: Level, through: Sequence[Level]) -> list[float]:
        """Of the fields at the levels `through`, first the newest, in a step from t to s."""
        if len(through) == 1:
            return [self._whole(t, s)]
        at, share = self._measure(t, s)
        clock = self.u if s.sigma > 0 or self.clock != "asinh" else _square
        nodes = [clock(_ratio(level)) for level in through]
        u = np.array([clock(r) for r in at])
        raw = [float(_lagrange(nodes, j, u) @ share) for j in range(len(nodes))]
        return [self._whole(t, s) * w for w in raw]

    def _norm(self, level: Level) -> float:
        return math.hypot(level.sigma, self.sigma_data * level.alpha)

    def _whole(self, t: Level, s: Level) -> float:
        """The weight of a constant field."""
        if self.field == "x0":
            return float(s.alpha - (_ratio(s) / _ratio(t)) ** (1 + self.kappa) * s.alpha)
        if self.field == "eps":
            return float(s.sigma - s.alpha / t.alpha * t.sigma)
        angle = [math.atan2(level.sigma, self.sigma_data * level.alpha) for level in (t, s)]
        return self._norm(s) * (angle[1] - angle[0])

    def _measure(self, t: Level, s: Level) -> tuple[np.ndarray, np.ndarray]:
        """Where the integral from t to s looks at the field, r, and with which weights of sum 1."""
        first, last = _ratio(t), _ratio(s)
        nodes, share = _gauss()
        if last == 0 and self.field == "x0":
            return np.zeros(1), np.ones(1)
        if last == 0:
            r = 0.5 * first * (1 + nodes)
        else:
            ends = math.log(last), math.log(first)
            r = np.exp(0.5 * (ends[0] + ends[1]) + 0.5 * (ends[1] - ends[0]) * nodes)
            share = share * r
        if self.field == "x0":
            share = share * (last / r) ** (2 + self.kappa)
        elif self.field == "v":
            share = share / (r**2 + self.sigma_data**2)
        return r, share / share.sum()


class Multistep(Choice):
    """One evaluation a step, and the polynomial through those before: of order `order` where the
    grid is smooth, and lower at its start, where less is known.

    DPM-Solver++ is field=x0 clock=log_snr (2M as published takes a simpler weight of the same order
    for its second; here it is exact), DEIS and ε-Adams-Bashforth in log σ are field=eps
    clock=log_snr, `lms` is field=eps clock=ratio, UniPC is corrector=true in either. With η > 0
    the reverse SDE with η times the noise of eq 1.20 is solved (SDE-DPM-Solver++), in data form.
    """

    kind: Literal["multistep"] = "multistep"
    order: int = Field(3, ge=1, le=5)
    field: Kept = "x0"
    clock: ClockName = "asinh"
    corrector: bool = Field(
        False, description="whether the level reached is corrected by what is said there"
    )
    eta: float = Field(0.0, ge=0, le=1, description="noise of the SDE; 0: the probability flow")
    sigma_data: float | None = Field(
        None, gt=0, description="σ_d at the model's scale; empty: as measured, or else 1"
    )

    @model_validator(mode="after")
    def _in_data_form(self) -> Multistep:
        if self.eta > 0 and self.field != "x0":
            raise ValueError(f"eta > 0 needs field=x0, the data form; got field={self.field}")
        return self

    def along(self, process: NoisingProcess, levels: Levels) -> Move:
        """Raises: ConfigError for a grid on which the extrapolation would magnify errors, or one
        that starts from pure noise, where ε̂ says nothing of x0."""
        rule = Rule(self.field, self.clock, self.sigma_data or 1.0, self.eta**2)
        check_start(rule, levels[0])
        fresh = Fresh(levels)
        points = [rule.point(level) for level in levels[:-1]]
        scales = [rule.scale(t, s) for t, s in pairwise(levels)]
        stds = [_sde_std(t, s, rule.kappa) for t, s in pairwise(levels)]
        rows = [self._row(rule, levels, i) for i in range(len(levels) - 1)]
        if self.corrector:
            rows = [self._corrected(rule, levels, i, rows, scales[i]) for i in range(len(rows))]
        keep = max(map(len, rows)) - 1

        def move(
            denoise: Denoise, i: int, x: Tensor, noise: Noise, memory: Any
        ) -> tuple[Tensor, Any]:
            field = denoise(x, levels[i]).point(*points[i])
            fields = (field, *(memory or ()))
            x = blend(scales[i], x, rows[i][0], field)
            _add(x, rows[i][1:], fields[1:])
            return (fresh.added(x, stds[i], noise, i) if stds[i] > 0 else x), fields[:keep]

        return move

    def evaluations(self, steps: int) -> int:
        return steps

    def _row(self, rule: Rule, levels: Levels, i: int) -> list[float]:
        t, s = levels[i], levels[i + 1]
        order = 1 if math.isinf(rule.u(_ratio(s))) else self.order
        through = _finite(rule, levels[max(0, i + 1 - order) : i + 1])
        row = rule.weights(t, s, through[::-1] or [t])
        spread = sum(map(abs, row)) / abs(sum(row))
        if s.sigma > 0 and spread > MAGNIFIED[len(row) - 1]:
            raise ConfigError(_breaking(self, levels, i, spread))
        return row

    def _corrected(
        self, rule: Rule, levels: Levels, i: int, rows: list[list[float]], scale: float
    ) -> list[float]:
        """The weights of step i, together with what the field at level i corrects of the step that
        led there: x at level i is not asked for by itself, so that it costs nothing."""
        if i == 0 or math.isinf(rule.u(_ratio(levels[i - 1]))):
            return rows[i]
        before = rows[i - 1]
        new = rule.weights(levels[i - 1], levels[i], levels[i - len(before) : i + 1][::-1])
        pairs = zip_longest(rows[i], new, [0.0, *before], fillvalue=0.0)
        return [w + scale * (n - old) for w, n, old in pairs]


class Suited(Choice):
    """The multistep solver that suits the number of steps: the default.

    In data form and the asinh clock, corrected; of order 2 up to 12 steps, which are long, and of
    order 4 beyond. Chosen by its errors on mixtures of Gaussians (benchmarks/solver_frontier.py),
    other ones than those reported. On a grid that would break it, the order falls until it does
    not. (On small trained networks order 3 errs less than 2 at 5 to 12 steps, by 1 to 35 %.)
    """

    kind: Literal["suited"] = "suited"
    sigma_data: float | None = Field(
        None, gt=0, description="σ_d at the model's scale; empty: as measured, or else 1"
    )

    def solver(self, steps: int) -> Multistep:
        """The solver for so many steps."""
        order = 2 if steps <= FEW else 4
        return Multistep(order=order, corrector=True, sigma_data=self.sigma_data)

    def along(self, process: NoisingProcess, levels: Levels) -> Move:
        solver = self.solver(len(levels) - 1)
        while solver.order > 1:
            try:
                return solver.along(process, levels)
            except ConfigError:
                solver = solver.model_copy(update={"order": solver.order - 1})
        return solver.along(process, levels)

    def evaluations(self, steps: int) -> int:
        return steps


class Singlestep(Choice):
    """`order` evaluations a step, at equal shares of its clock, and no memory (DPM-Solver-2S, 3S).

    Order 2 has its second evaluation half-way; order 3 has them at one and two thirds, where
    Heun's rule of order 3 has them. The last step has one evaluation: below it no network
    was trained. C. Lu et al. 2022, "DPM-Solver", arXiv:2206.00927, algorithms 1 and 2.
    """

    kind: Literal["singlestep"] = "singlestep"
    order: int = Field(2, ge=2, le=3)
    field: Kept = "x0"
    clock: ClockName = "log_snr"
    sigma_data: float | None = Field(
        None, gt=0, description="σ_d at the model's scale; empty: as measured, or else 1"
    )

    def along(self, process: NoisingProcess, levels: Levels) -> Move:
        """Raises: ConfigError for a grid that starts from pure noise."""
        rule = Rule(self.field, self.clock, self.sigma_data or 1.0)
        if levels[0].alpha == 0:
            raise ConfigError(
                f"single steps have levels between those of the grid, and half-way from α = 0, at "
                f"t = {levels[0].t:g}, there is none; give the grid a sigma_max (80, say), or "
                "write step=multistep"
            )
        plan = [self._stages(process, rule, t, s) for t, s in pairwise(levels)]

        def move(
            denoise: Denoise, i: int, x: Tensor, noise: Noise, memory: Any
        ) -> tuple[Tensor, Any]:
            fields: tuple[Tensor, ...] = ()
            at, reached = levels[i], x
            for stage in plan[i]:
                fields = (denoise(reached, at).point(*rule.point(at)), *fields)
                reached = blend(stage.scale, x, stage.weights[0], fields[0])
                _add(reached, stage.weights[1:], fields[1:])
                at = stage.to
            return reached, None

        return move

    def evaluations(self, steps: int) -> int:
        return self.order * (steps - 1) + 1

    def _stages(self, process: NoisingProcess, rule: Rule, t: Level, s: Level) -> list[Stage]:
        if s.sigma == 0:
            return [Stage(s, rule.scale(t, s), rule.weights(t, s, [t]))]
        ends, stages, through = (rule.u(_ratio(t)), rule.u(_ratio(s))), [], [t]
        for k in range(1, self.order + 1):
            u = ends[0] + k / self.order * (ends[1] - ends[0])
            to = s if k == self.order else _level_at(process, rule, u)
            stages.append(Stage(to, rule.scale(t, to), rule.weights(t, to, through[::-1])))
            through.append(to)
        return stages


class Stage(NamedTuple):
    """From the start of a step to a level within it or at its end: the scale of x, and weights
    of the fields so far, first the newest."""

    to: Level
    scale: float
    weights: list[float]


def _ratio(level: Level) -> float:
    return float(level.sigma / level.alpha) if level.alpha > 0 else math.inf


def _square(ratio: float) -> float:
    return ratio**2


def _lagrange(nodes: Sequence[float], j: int, u: np.ndarray) -> np.ndarray:
    """The polynomial that is 1 at nodes[j] and 0 at the others, at u."""
    found = np.ones_like(u)
    for k, node in enumerate(nodes):
        if k != j:
            found *= (u - node) / (nodes[j] - node)
    return found


def _finite(rule: Rule, levels: Levels) -> Levels:
    """The levels that a polynomial can go through: pure noise is infinitely far away."""
    return tuple(level for level in levels if math.isfinite(rule.u(_ratio(level))))


def _add(x: Tensor, weights: Sequence[float], fields: Sequence[Tensor]) -> None:
    for weight, field in zip(weights, fields, strict=False):
        x.add_(field, alpha=weight)


def _sde_std(t: Level, s: Level, kappa: float) -> float:
    """The standard deviation of the noise in a step of the SDE: √β̃ for κ = 1."""
    if kappa == 0:
        return 0.0
    return float(s.sigma * math.sqrt(1 - (_ratio(s) / _ratio(t)) ** (2 * kappa)))


def _level_at(process: NoisingProcess, rule: Rule, u: float) -> Level:
    knee = KNEE * rule.sigma_data
    ratio = {"ratio": lambda: u, "log_snr": lambda: math.exp(u)}.get(
        rule.clock, lambda: knee * math.sinh(u)
    )()
    return level_of_log_snr(process, -2 * math.log(ratio))


def check_start(rule: Rule, first: Level) -> None:
    """Raises: ConfigError where ε̂ is all that is kept, and the grid starts from pure noise."""
    if first.alpha == 0 and rule.field == "eps":
        raise ConfigError(
            f"ε̂ says nothing of the data at t = {first.t:g}, where this process has α = 0; write "
            "step.field=x0, or give the grid a sigma_max (80, say)"
        )


def _breaking(step: Multistep, levels: Levels, i: int, spread: float) -> str:
    ratios = [_ratio(level) for level in levels[max(0, i - 1) : i + 2]]
    way = " to ".join(f"{ratio:.3g}" for ratio in ratios)
    return (
        f"step {i + 1} of this grid is so much longer than those before it (σ/α from {way}) that a "
        f"solver of order {step.order} would magnify errors {spread:.0f} times; write grid=budget, "
        "whose steps suit it, or step.order=1"
    )
