"""From what was asked to what is trained: a recipe made concrete, before its run exists.

What was left to the data is measured (σ_d, the network's shape), references to other runs are
pinned to their weights, everything is built once so that what cannot work is refused at once, and
minutes become samples at the speed of a short trial.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ornstein import ranks
from ornstein.choice import Load, RunRef, pinned
from ornstein.data.stream import Stream
from ornstein.errors import ConfigError, of_section
from ornstein.noise import Noise
from ornstein.training import TrainState, precision, train

if TYPE_CHECKING:
    from ornstein.data.info import DataInfo, Dataset, Measure
    from ornstein.recipe import Generation, Recipe

TRIAL_SECONDS = 3.0  # for each minute of training, up to four: a short trial is easily disturbed
OVERHEAD = 0.05  # the share of the minutes that saving, previews and logging take
SIGMA_OFF = 1.15  # a σ_d that is wrong by more of a factor is worth a word


def concrete(
    recipe: Recipe,
    info: DataInfo,
    load: Load,
    pin: Callable[[RunRef], RunRef],
    farthest: Measure | None = None,
) -> Recipe:
    """The recipe with nothing left open but a length in minutes, which is to be `measured`.

    `pin` fills in the weights of a reference, `farthest` is as in `Recipe.fitted`. Raises:
    ConfigError for a recipe that cannot work on this data or this machine.
    """
    resolved: Recipe = pinned(recipe.fitted(info, farthest), pin)
    check(resolved, info, load)
    return resolved


def doubts(recipe: Recipe, info: DataInfo) -> list[str]:
    """What will train but can hardly be meant, a sentence for each: a σ_d that is not the data's.

    info: in native values.
    """
    std = recipe.at_model_scale(info).std
    found = []
    for key in ("model.target", "objective.weighting"):
        section, name = key.split(".")
        given = getattr(getattr(getattr(recipe, section), name, None), "sigma_data", None)
        if given is not None and not 1 / SIGMA_OFF < given / std < SIGMA_OFF:
            how = "leave it out to have it measured" if name == "target" else f"write {std:.4g}"
            found.append(
                f"{key}.sigma_data is {given:g}, but the standard deviation of the training data "
                f"at the model's scale is {std:.4g}; {how}"
            )
    return found


def default_device() -> torch.device:
    """The best device of this machine, or the one that ORNSTEIN_DEVICE names."""
    name = os.environ.get("ORNSTEIN_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=device)  # levels need float64
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"the device {name!r} cannot be used ({str(error).splitlines()[0]}); "
            "set ORNSTEIN_DEVICE to cpu or cuda, or leave it unset"
        ) from error
    return device


def measured(recipe: Recipe, dataset: Dataset, load: Load) -> Recipe:
    """The recipe with `minutes` turned into samples, at the speed of a short trial."""
    return lengthened(recipe, update_seconds(recipe, dataset, load))


def lengthened(recipe: Recipe, seconds: Sequence[float]) -> Recipe:
    """The recipe with `minutes` turned into samples; seconds: of each update of a trial."""
    optim = recipe.optim
    assert optim.minutes is not None
    # The mean: what a busy machine takes away now and then, it will take away later, too.
    rate = optim.batch / float(np.mean(seconds))
    samples = max(optim.batch, int((1 - OVERHEAD) * rate * 60 * optim.minutes))
    samples = ranks.from_lead(samples)
    return recipe.model_copy(update={"optim": optim.model_copy(update={"samples": samples})})


def update_seconds(recipe: Recipe, dataset: Dataset, load: Load) -> list[float]:
    """The seconds that each of a few updates takes: three at least, after three to warm up, but
    only one where that takes longer than all of them should. All ranks measure together."""
    optim = recipe.optim
    learner = recipe.learner(dataset.info, load)
    trial = optim.model_copy(update={"samples": 10**12})
    events = train(
        TrainState(learner, trial, default_device()),
        Stream(dataset, recipe.seed, recipe.objective.range, recipe.augment),
        trial,
        10**12,
        recipe.seed,
    )
    budget = TRIAL_SECONDS * min(optim.minutes or 1, 4)
    times: list[float] = []
    for event in events:
        if event.step > 3:  # the first updates warm caches up, the very first may compile
            times.append(event.seconds)
        endless = 1 < event.step <= 3 and event.seconds > 4 * budget
        if endless:
            times = [event.seconds]  # nobody waits for more of these
        enough = endless or (len(times) >= 3 and sum(times) > budget)
        if ranks.from_lead(enough):
            break
    events.close()  # type: ignore[attr-defined]
    return times


def check(recipe: Recipe, info: DataInfo, load: Load) -> None:
    """Build everything once and begin a sample, so that what cannot work is refused at once."""
    recipe.augment.check(info)
    device = default_device()
    precision(recipe.optim.precision, device)
    learner = recipe.learner(info, load).to(device).eval()
    noise = Noise.of(recipe.seed, "check", torch.zeros(1, dtype=torch.int64, device=device))
    for key in ("generation", "preview"):
        begin: Generation | None = getattr(recipe, key)
        if begin is None:
            continue
        with torch.no_grad(), of_section(key):
            next(begin(learner.model, recipe.at_model_scale(info), noise))
