"""A sampler fitted to a run's model, for as few evaluations as one can afford.

The noises of some hundred starts are carried to where the flow of the model ends, and a solver is
fitted to them (`diffusion.tuning`), for each number of evaluations that is asked for. Starts that
it has not seen say whether it is clearly better than the best of the known solvers; else that one
is kept. The record stays with the run (`tuned`), and the weights are as they were.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch

from ornstein import tuned as records
from ornstein.diffusion.denoiser import Denoiser
from ornstein.diffusion.sampling import Sampling
from ornstein.diffusion.tuning import (
    DEFAULT,
    FITTED,
    Flow,
    Round,
    Solver,
    Truth,
    distance,
    fitted,
    fixed,
    solver_of,
    truth,
    verdict,
)
from ornstein.errors import ConfigError, NumericsError
from ornstein.noise import Noise
from ornstein.run import Run
from ornstein.tuned import Tuned

MOST = 30  # evaluations: with more, known solvers come near enough
VALUES = 2**13  # of all starts together, about
STARTS = 64, 512  # at least and at most
MANY = 10_000  # starts, for which memory and patience are there
COMPARED = 32  # starts by which fixed solvers are ranked
FINALISTS = 3  # fixed solvers that are measured on unseen starts, beside the default


class Step(NamedTuple):
    """How far it is: `what` is done for `evaluations` (0: for all), with the error by now, and the
    record once it is kept."""

    evaluations: int
    what: str
    error: float | None = None
    record: Tuned | None = None


def tune(
    run: Run,
    budgets: Sequence[int],
    *,
    seed: int = 0,
    average: str = "",
    starts: int | None = None,
    seconds: float = 180.0,
) -> Iterator[Step]:
    """Fit and keep a sampler for each number of evaluations, yielding steps.

    starts: how many the fit sees; twice as many more judge it. By default fewer where a sample has
    more values. seconds: after which the fit for one number ends with what it has; what it finds
    before depends on the seed and on `starts` only. Raises: ConfigError for numbers that cannot
    be, or a run that does not generate by steps; StorageError.
    """
    for n in budgets:
        if not 1 <= n <= MOST:
            raise ConfigError(
                f"solvers are fitted to 1 to {MOST} evaluations, not {n}; with more the default "
                "is as good"
            )
    if starts is not None and not 2 <= starts <= MANY:
        raise ConfigError(
            f"a fit needs at least 2 starts, and at most {MANY:,}, got {starts:,}; write "
            "--starts 128"
        )
    if not seconds > 0:
        raise ConfigError(f"a fit needs more than 0 minutes, got {seconds / 60:g}")
    with run.still(average):
        flow = flow_of(run, average)
        shape = run.seen.shape
        count = starts or _starts(math.prod(shape))
        ids = torch.arange(3 * count, device=run.device)
        z = Noise.of(seed, "tune", ids).normal(0, shape)
        yield Step(0, f"solving the flow from {3 * count} starts")
        true = truth(flow, z)
        if not bool(true.end.isfinite().all()):
            raise NumericsError(
                f"the flow of run {run.path.name} does not end at finite values, so no solver can "
                "be fitted to it; train it longer, or with a lower optim.lr"
            )
        seen, unseen = true.part(slice(count)), true.part(slice(count, None))
        for n in dict.fromkeys(budgets):
            yield from _tuned(run, flow, seen, unseen, n, seed, average, seconds)


def _tuned(
    run: Run,
    flow: Flow,
    seen: Truth,
    unseen: Truth,
    evaluations: int,
    seed: int,
    average: str,
    seconds: float,
) -> Iterator[Step]:
    begun = time.monotonic()
    known = fixed(flow, evaluations)
    yield Step(evaluations, f"comparing {len(known)} solvers")
    some = seen.part(slice(COMPARED))
    errors = {
        name: float(distance(flow.end(how, some.z), some.end).mean()) for name, how in known.items()
    }
    ranked = sorted(known, key=lambda name: errors[name])
    first = _first([known[name] for name in ranked], flow)
    last, cut = Round(0, first, math.nan), False
    clock = time.monotonic()
    longest, comparing = 0.0, clock - begun  # what comparing took, judging takes about twice
    for last in fitted(flow, seen, first):
        yield Step(evaluations, f"round {last.rounds}", last.error)
        now = time.monotonic()
        longest, clock = max(longest, now - clock), now
        if cut := now - begun + longest + 2 * comparing > seconds:
            break
    tried = {name: known[name] for name in (*ranked[:FINALISTS], DEFAULT)}
    tried[FITTED] = last.solver.sampling(flow.process)
    said = verdict(
        {name: distance(flow.end(how, unseen.z), unseen.end) for name, how in tried.items()},
        unseen.error,
    )
    own = run.recipe.generation
    assert isinstance(own, Sampling)
    how = tried[said.chosen]
    record = Tuned(
        evaluations=evaluations,
        generation=own.model_copy(update={k: getattr(how, k) for k in ("step", "grid", "steps")}),
        chosen=said.chosen,
        best=said.best,
        errors=dict(said.errors),
        ratio=said.ratio,
        teacher=unseen.error,
        weights=run.weights(average),
        average=average,
        samples_trained=run.samples,
        seed=seed,
        starts=len(seen.z),
        unseen=len(unseen.z),
        rounds=last.rounds,
        cut=cut,
        seconds=time.monotonic() - begun,
    )
    records.write(run.path, record)
    yield Step(evaluations, "kept", said.errors[said.chosen].value, record)


def _first(ranked: Sequence[Sampling], flow: Flow) -> Solver:
    """The first of some samplers that a fit can begin with."""
    for how in ranked:
        with contextlib.suppress(ConfigError):
            return solver_of(how, flow.process)
    raise ConfigError("none of the known solvers goes with this process, so no fit can begin")


def flow_of(run: Run, average: str = "") -> Flow:
    """The flow by which the run's model draws, with the clipping of its recipe.

    Raises: ConfigError where the run does not generate by steps.
    """
    own = run.recipe.generation
    if not isinstance(own, Sampling):
        raise ConfigError(
            f"runs that generate by {own.kind!r} take no steps, so there is no solver to fit"
        )
    model = cast(Denoiser, run.learner(average).model)
    info = run.recipe.at_model_scale(run.seen)
    denoise = own.denoise(model, info)
    return Flow(denoise, model.process, spread=info.std or 1.0, scale=model.sigma_data)


def at_budget(run: Run, evaluations: int, average: str = "") -> tuple[Sampling, str]:
    """How to generate with so many evaluations, and a sentence that says which way it is: as was
    tuned for that many, or by the default solver where nothing was.

    Raises: ConfigError, CheckpointError (a damaged record).
    """
    if evaluations < 1:
        raise ConfigError(f"samples take at least 1 evaluation of the network, got {evaluations}")
    again = f"ornstein tune {run.path} --nfe {evaluations}"
    found = run.tuned(evaluations)
    if found is None:
        how = fixed(flow_of(run, average), evaluations).get(DEFAULT)
        if how is None:
            raise ConfigError(
                f"the default solver does not go with {evaluations} evaluations and this process; "
                "write --steps, step and grid instead of --nfe"
            )
        update = {name: getattr(how, name) for name in ("step", "grid", "steps")}
        own = run.recipe.generation
        assert isinstance(own, Sampling)  # `flow_of` saw to it
        own = own.model_copy(update=update)
        return own, f"{evaluations} evaluations by the default solver; to fit one: {again}"
    what = "the fitted solver" if found.chosen == FITTED else f"the solver {found.chosen!r}"
    told = f"{evaluations} evaluations by {what}, as tuned"
    if found.weights != run.weights(average):
        told += (
            f" to other weights ({found.samples_trained:,} samples, average "
            f"{found.average or 'as in the recipe'!r}); to fit these: {again}"
        )
    return found.generation, told


def _starts(values: int) -> int:
    least, most = STARTS
    return min(max(VALUES // values, least), most)
