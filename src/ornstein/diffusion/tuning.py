"""A solver fitted to a model: the levels and weights that end nearest to where the flow ends.

    e_b(θ) = ‖x_b(θ) − x_b‖/√D               θ = (log r_0, ..., log r_{N−1}, shares c_ij)
    minimise  mean_b √(e_b² + c²)

over a few hundred starts b, x_b being where a teacher, the same flow in many steps, takes them.
All that N evaluations can do in a multistep method is in θ (`learned`): where they are made, and
what is made of them. The weights of the network stay as they are.

The minimum is sought by Gauss and Newton's method with Levenberg's damping, from the best solver
that is known already. The mean of distances, and not of squares, is what a few starts on a
watershed between two images, which no solver of few steps can tell apart, do not rule: each start
counts with 1/√(e_b² + c²), computed anew in each round. Derivatives are differences of true walks,
so that the network is a `Denoise` like any other; a walk with one number changed is the same until
that number is used, which saves half of the evaluations, and between rounds the last step mends
them (Broyden's rule), which saves most of the rest.

Grids and weights have been fitted to models before: D. Watson et al. 2022, "Learning fast samplers
for diffusion models by differentiating through sample quality", arXiv:2202.05830; A. Sabour et al.
2024, "Align your steps", arXiv:2404.14507 (grids); D. Shaul et al. 2024, "Bespoke non-stationary
solvers", arXiv:2403.01329, and V. Tong et al. 2024, "Learning to discretize denoising diffusion
ODEs", arXiv:2405.15506 (both at once, by gradients).

Whether it was worth it other starts decide, which the fit has not seen: `verdict`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ornstein.diffusion.grid import Budget, Explicit, Grid, Karras, LogSNR
from ornstein.diffusion.learned import Learned, Rows, rows_of
from ornstein.diffusion.levels import Level
from ornstein.diffusion.multistep import Multistep
from ornstein.diffusion.prediction import Denoise, Prediction
from ornstein.diffusion.process import NoisingProcess
from ornstein.diffusion.sampling import Sampling, Step
from ornstein.diffusion.steps import Heun
from ornstein.diffusion.walk import sample
from ornstein.errors import ConfigError
from ornstein.noise import Noise
from ornstein.scores import Estimate

SHARES = 4  # of x̂0 in a step, at most: more gain nothing on models or mixtures
FAR = 100.0  # σ/α of the first level in standard deviations, where a process ends in pure noise
TEACHER = 64  # evaluations of the teacher, to begin with
TEACHERS = 512  # at most
CHECKED = 32  # starts with which the teacher is checked
CLOSE = 1e-3  # error of the teacher in standard deviations of the data that needs no more
DIFFERENCE = 0.01  # of log r or of a share, for derivatives
APART = 0.02  # of neighbouring log r, at least
LEVEL_OFF = 0.1  # c, of the mean error at first
REACH = 0.3  # of the first step, in log r and in shares
TRIES = 6  # of a step, each a third as long, before a fit ends
STALE = 0.03  # gain of a round below which derivatives are computed anew
GAIN = 5e-3  # of a round with new derivatives, below which it is a small one
SMALL = 2  # small rounds in succession end a fit
ROUNDS = 40
BROKEN = 1e9  # the error of a solver that diverges
DEFAULT = "default"
FITTED = "fitted"


class Flow(NamedTuple):
    """The flow of a model: its network and process, the spread σ_d of the data, and the scale by
    which noise at the first level is made a start, √(σ² + scale² α²).

    spread, scale: at the model's scale. batch: samples at a time.
    """

    denoise: Denoise
    process: NoisingProcess
    spread: float = 1.0
    scale: float = 1.0
    batch: int = 64

    @property
    def ends(self) -> tuple[float, float]:
        """σ/α at the smallest level and at the first, or far enough where that is pure noise."""
        times = torch.tensor([self.process.smallest, 1.0], dtype=torch.float64)
        alpha, sigma = self.process(times)
        low, high = (sigma / alpha).tolist()
        return low, high if math.isfinite(high) else max(FAR * self.spread, 2 * low)

    def start(self, z: Tensor, first: Level) -> Tensor:
        """The sample at the first level that is made of noise z."""
        return math.sqrt(first.sigma**2 + (self.scale * first.alpha) ** 2) * z

    def said(self, x: Tensor, level: Level) -> Tensor:
        """x̂0 [B, *], a part of the batch at a time."""
        return torch.cat([self.denoise(part, level).x0 for part in torch.split(x, self.batch)])

    @torch.no_grad()
    def end(self, how: Sampling, z: Tensor) -> Tensor:
        """Where a sampler takes the noise z [B, *], by its grid and its step."""
        assert how.steps is not None
        levels = how.grid(self.process, how.steps)
        ends = []
        for part in torch.split(z, self.batch):
            x = self.start(part, levels[0])
            for state in sample(self.denoise, self.process, levels, how.step, x, _NO_NOISE):
                x = state.x
            ends.append(x)
        return torch.cat(ends)


class Truth(NamedTuple):
    """Noises z [B, *], where the flow takes them, and about how far from there the teacher is."""

    z: Tensor
    end: Tensor
    error: float

    def part(self, of: slice) -> Truth:
        return Truth(self.z[of], self.end[of], self.error)


class Solver(NamedTuple):
    """log σ/α of the levels, falling, and the shares of each step."""

    logs: tuple[float, ...]
    rows: Rows

    def grid(self, process: NoisingProcess) -> Explicit:
        """The levels as a grid of a process."""
        times = process.time(-2 * torch.tensor(self.logs, dtype=torch.float64))
        return Explicit(times=tuple(times.clamp(1e-9, 1.0).tolist()))

    def sampling(self, process: NoisingProcess) -> Sampling:
        """The solver as a way of generating."""
        grid = self.grid(process)
        return Sampling(step=Learned(rows=self.rows), grid=grid, steps=len(self.logs))


class Round(NamedTuple):
    """A solver after some rounds of the fit, with its mean error over the starts."""

    rounds: int
    solver: Solver
    error: float


class Verdict(NamedTuple):
    """What other starts say: mean errors of all that was tried, by name, that of the `chosen` one
    over that of the `best` fixed one, and whether the fit is clearly better than this."""

    chosen: str
    best: str
    errors: Mapping[str, Estimate]
    ratio: Estimate
    clear: bool


def truth(flow: Flow, z: Tensor) -> Truth:
    """Where the flow takes z, by as many steps as it needs."""
    steps = TEACHER
    end = flow.end(teacher(flow, steps), z)
    while True:
        finer = flow.end(teacher(flow, 2 * steps), z[:CHECKED])
        error = float(distance(end[:CHECKED], finer).mean())
        if not error > CLOSE * flow.spread or 2 * steps > TEACHERS:
            return Truth(z, end, error)
        steps *= 2
        end = torch.cat((finer, flow.end(teacher(flow, steps), z[CHECKED:])))


def teacher(flow: Flow, steps: int) -> Sampling:
    """The flow in many steps, down to the smallest level of the process, where x̂0 is the end."""
    step = Multistep(order=4, clock="log_snr")
    return Sampling(step=step, grid=LogSNR(sigma_max=_high(flow)), steps=steps)


def fixed(flow: Flow, evaluations: int) -> dict[str, Sampling]:
    """The solvers that are known already, by name, as they are at that many evaluations; those
    that do not go with the process are left out."""
    s, n = flow.spread, evaluations
    high = _high(flow)
    budget = Budget(sigma_max=high, sigma_data=s)
    karras, log_snr = Karras(sigma_max=high), LogSNR(sigma_max=high)
    plus, deis = Multistep(order=2, clock="log_snr"), Multistep(field="eps", clock="log_snr")
    unipc = Multistep(clock="log_snr", corrector=True)
    default = Sampling().step
    if hasattr(default, "sigma_data"):
        default = default.model_copy(update={"sigma_data": s})
    tried: dict[str, tuple[Step, Grid, int]] = {
        DEFAULT: (default, budget, n),
        "multistep of order 2": (Multistep(order=2, sigma_data=s), budget, n),
        "multistep of order 3": (Multistep(order=3, sigma_data=s), budget, n),
        "corrected multistep of order 2": (
            Multistep(order=2, corrector=True, sigma_data=s),
            budget,
            n,
        ),
        "corrected multistep of order 3": (
            Multistep(order=3, corrector=True, sigma_data=s),
            budget,
            n,
        ),
        "DPM-Solver++(2M), log-SNR": (plus, log_snr, n),
        "DPM-Solver++(2M), Karras": (plus, karras, n),
        "UniPC-3, log-SNR": (unipc, log_snr, n),
        "DEIS-3, log-SNR": (deis, log_snr, n),
        "Heun, Karras": (Heun(), karras, (n + 1) // 2),
    }
    found = {}
    for name, (step, grid, steps) in tried.items():
        try:
            step.along(flow.process, grid(flow.process, steps))
        except ConfigError:
            continue
        found[name] = Sampling(step=step, grid=grid, steps=steps)
    return found


def solver_of(how: Sampling, process: NoisingProcess) -> Solver:
    """A linear multistep method on its grid as a `Solver`, with `SHARES` shares in a row at most.

    Raises: ConfigError for a method that no table stands for, see `rows_of`.
    """
    assert how.steps is not None
    levels = how.grid(process, how.steps)
    logs = tuple(math.log(level.sigma / level.alpha) for level in levels[:-1])
    cut = [row[1:SHARES] for row in rows_of(how.step, process, levels)]
    return Solver(logs, tuple((1 - sum(row), *row) for row in cut))


@torch.no_grad()
def fitted(flow: Flow, true: Truth, first: Solver, rounds: int = ROUNDS) -> Iterator[Round]:
    """Improve a solver for the starts of `true`, yielding it after each round, from the first on.

    It is the same for the same arguments. It ends when a round gains little, when none can, or
    where the teacher knows no better.
    """
    fit = _Fit(flow, true, 0.0)
    walk = fit.walked(first)
    fit = fit._replace(level_off=LEVEL_OFF * _mean(walk.errors))
    slope: Tensor | None = None
    radius, small = REACH, 0
    yield Round(0, first, _mean(walk.errors))
    for done in range(1, rounds + 1):
        if not _mean(walk.errors) > true.error or small == SMALL:
            return
        better = None
        if slope is not None:
            better, radius = fit.stepped(walk, slope, radius, 1)
        fresh = better is None
        if better is None:
            slope = fit.slope(walk)
            better, radius = fit.stepped(walk, slope, radius, TRIES)
        if better is None or slope is None:
            return
        gain = 1 - fit.cost(better) / fit.cost(walk)
        slope = fit.secant(slope, walk, better) if gain > STALE else None
        small = small + 1 if fresh and gain < GAIN else 0
        walk = better
        yield Round(done, walk.solver, _mean(walk.errors))


def verdict(errors: Mapping[str, Tensor], teacher: float) -> Verdict:
    """Whether the fit is to be used, by the errors [B] at starts that it has not seen.

    It is where the best fixed solver of these very starts is worse by a margin clear of the 95 %
    interval of the paired difference and of the teacher's own error; else that solver is.
    """
    best = min((name for name in errors if name != FITTED), key=lambda name: _mean(errors[name]))
    gain = mean_of(errors[best] - errors[FITTED])
    clear = gain.low > teacher
    chosen = FITTED if clear else best
    return Verdict(
        chosen,
        best,
        {name: mean_of(found) for name, found in errors.items()},
        ratio_of(errors[chosen], errors[best]),
        clear,
    )


def distance(x: Tensor, y: Tensor) -> Tensor:
    """The root mean square of x − y over all values of a sample, float64 [B]; `BROKEN` where it is
    not finite."""
    found = (x - y).double().flatten(1).square().mean(1).sqrt()
    return torch.nan_to_num(found, nan=BROKEN, posinf=BROKEN)


def mean_of(values: Tensor) -> Estimate:
    """The mean with its 95 % interval."""
    mean = _mean(values)
    reach = 1.96 * float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Estimate(value=mean, low=mean - reach, high=mean + reach)


def ratio_of(above: Tensor, below: Tensor) -> Estimate:
    """The ratio of two means over the same starts, with its 95 % interval (delta method)."""
    ratio = _mean(above) / max(_mean(below), 1e-300)
    moved = mean_of((above - ratio * below) / max(_mean(below), 1e-300))
    return Estimate(value=ratio, low=ratio + moved.low, high=ratio + moved.high)


class _Walk(NamedTuple):
    """A walk of all starts: what was held before each step, x and memory, what the network said
    there, and how far the end is from the truth."""

    solver: Solver
    held: list[tuple[Tensor, Any]]
    said: list[Tensor]
    end: Tensor
    errors: Tensor


class _Fit(NamedTuple):
    """What a fit looks at."""

    flow: Flow
    true: Truth
    level_off: float

    def cost(self, walk: _Walk) -> float:
        """Mean √(e² + c²), which is minimised."""
        return _mean((walk.errors.square() + self.level_off**2).sqrt())

    def walked(self, solver: Solver, like: _Walk | None = None, since: int = 0) -> _Walk:
        """The walk of a solver. like, since: a walk that is the same up to step `since`, and to
        what the network says there."""
        process = self.flow.process
        how = solver.sampling(process)
        levels = how.grid(process, len(solver.logs))
        move = how.step.along(process, levels)
        held = [] if like is None else like.held[:since]
        said = [] if like is None else like.said[: since + 1]
        x, memory = (
            (self.flow.start(self.true.z, levels[0]), None) if like is None else like.held[since]
        )
        for i in range(since, len(levels) - 1):
            held.append((x, memory))
            if i == len(said):
                said.append(self.flow.said(x, levels[i]))
            x, memory = move(_saying(said[i]), i, x, _NO_NOISE, memory)
        return _Walk(solver, held, said, x, distance(x, self.true.end))

    def slope(self, walk: _Walk) -> Tensor:
        """The derivative of the ends by all that is free, [B, D, P], over √D."""
        ends = []
        for k, (by, since) in enumerate(_differences(walk.solver)):
            numbers = _numbers(walk.solver)
            numbers[k] += by
            known = (walk, since) if since is not None else (None, 0)
            moved = self.walked(_solver(numbers, walk.solver), *known)
            ends.append(_per_value(moved.end - walk.end) / by)
        return torch.nan_to_num(torch.stack(ends, -1), nan=0.0, posinf=0.0, neginf=0.0)

    def stepped(
        self, walk: _Walk, slope: Tensor, radius: float, tries: int
    ) -> tuple[_Walk | None, float]:
        """The best walk that is found by steps of about this length, if any is better, and a length
        for the next one: twice as long while that helps, else a third."""
        normal, gradient = self._normal(walk, slope)
        best, found = walk, None
        for _ in range(tries):
            tried = self._moved(walk, damped(normal, gradient, radius))
            if tried is not None and self.cost(tried) < self.cost(best):
                best = found = tried
                radius *= 2
            elif found is not None:
                break
            else:
                radius /= 3
        return found, radius

    def _normal(self, walk: _Walk, slope: Tensor) -> tuple[Tensor, Tensor]:
        """JᵀWJ and JᵀWe of Gauss and Newton, W the starts' weights 1/√(e² + c²)."""
        weights = 1 / (walk.errors.square() + self.level_off**2).sqrt()
        weights = (weights / weights.sum()).to(slope).view(-1, 1, 1)
        jacobian, weighed = slope.flatten(0, 1), (weights * slope).flatten(0, 1)
        rest = _per_value(walk.end - self.true.end).flatten()
        return (weighed.T @ jacobian).double().cpu(), (weighed.T @ rest).double().cpu()

    def secant(self, slope: Tensor, old: _Walk, new: _Walk) -> Tensor:
        """The derivative mended so that it explains the last step (C. Broyden 1965)."""
        step = (_numbers(new.solver) - _numbers(old.solver)).to(slope)
        unexplained = _per_value(new.end - old.end) - slope @ step
        mended: Tensor = slope + unexplained.unsqueeze(-1) * (step / step.square().sum())
        return mended

    def _moved(self, walk: _Walk, step: Tensor) -> _Walk | None:
        """The walk of the solver to which a step leads; None where it is none."""
        solver = _solver(_numbers(walk.solver) + step, walk.solver)
        low, high = (math.log(ratio) for ratio in self.flow.ends)
        # A grid must not touch t = 0, which is the smallest level of some processes.
        logs = tuple(min(max(log, low + 1e-4), high) for log in solver.logs)
        if any(a - b < APART for a, b in pairwise(logs)):
            return None
        return self.walked(Solver(logs, solver.rows))


def damped(normal: Tensor, gradient: Tensor, radius: float) -> Tensor:
    """−(A + λ I)⁻¹ g for the smallest λ with which it is no longer than `radius`."""
    values, vectors = torch.linalg.eigh(normal)
    along = vectors.T @ gradient
    values = values.clamp(min=0) + 1e-9 * float(values.max()) + 1e-300
    low, high = 0.0, float(along.norm()) / radius
    for _ in range(60):
        middle = 0.5 * (low + high)
        longer = float((along / (values + middle)).norm()) > radius
        low, high = (middle, high) if longer else (low, middle)
    step: Tensor = -vectors @ (along / (values + high))
    return step


def _numbers(solver: Solver) -> Tensor:
    """All that is free in a solver: log r of each step, and the shares but for the newest, which
    makes up for the others."""
    return torch.tensor([*solver.logs, *(c for row in solver.rows for c in row[1:])]).double()


def _solver(numbers: Tensor, like: Solver) -> Solver:
    """The solver with these numbers, and as many shares in each row as another one."""
    given = iter(numbers.tolist())
    logs = tuple(next(given) for _ in like.logs)
    cut = [tuple(next(given) for _ in row[1:]) for row in like.rows]
    return Solver(logs, tuple((1 - sum(row), *row) for row in cut))


def _differences(solver: Solver) -> list[tuple[float, int | None]]:
    """For each of the numbers by how much it is changed for a derivative, and the step up to
    which, and to what the network says there, the walk stays the same; None where its start is
    another one."""
    first: list[tuple[float, int | None]] = [(-DIFFERENCE, None)]  # only down
    levels = [(DIFFERENCE, i - 1) for i in range(1, len(solver.logs))]
    return first + levels + [(DIFFERENCE, i) for i, row in enumerate(solver.rows) for _ in row[1:]]


def _per_value(x: Tensor) -> Tensor:
    """[B, D], over √D, so that its norm is the root mean square."""
    return x.flatten(1) / math.sqrt(x[0].numel())


def _saying(x0: Tensor) -> Denoise:
    """The denoiser that says what is known already."""

    def denoise(x: Tensor, level: Level) -> Prediction:
        return Prediction.from_x0(x, level, x0)

    return denoise


def _high(flow: Flow) -> float | None:
    """σ/α of the first level of a grid, where the process does not say it."""
    alpha, _ = flow.process(torch.ones(1, dtype=torch.float64))
    return None if alpha.item() > 0 else flow.ends[1]


def _mean(values: Tensor) -> float:
    return float(values.mean())


_NO_NOISE = cast(Noise, None)  # the flow has none
