"""Images restored by a trained model: samples of p(x | y), beside what simpler means make of y.

    y = A x + s z                       `problems`: what was done to an image, here or before
    x_1, ..., x_k ~ p(x | y)            draws: the run's own grid, its model made a posterior's
    PSNR = 10 log10(range²/mean (x̂ − x)²)    in dB, of each image; of native values within range

A draw is one of the images that there may have been, as sharp as any. Its expected squared error
is twice that of the mean of p(x | y), 3 dB: the price of not blurring what is unknown. The average
of k draws has 1 + 1/k times the least error, and is what compares with the `baselines`, which all
are estimates of a mean. Both are reported, and neither is called the other.

Guidance is not exact, and a step that follows the probability flow carries the errors of early
levels to the end; one with fresh noise forgets them. So draws are made by ancestral steps where
the run itself would follow the flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ornstein import baselines as simple
from ornstein import memory, pictures
from ornstein.charts import LEFT, SCALE
from ornstein.data.info import drawn
from ornstein.diffusion.denoiser import bind
from ornstein.diffusion.inverse import DPS, MMPS, PiGDM, posterior
from ornstein.diffusion.levels import level_at
from ornstein.diffusion.measurements import Downsample, Mask, measured
from ornstein.diffusion.prediction import Denoise, clipped
from ornstein.diffusion.repaint import RePaint
from ornstein.diffusion.sampling import Sampling, follows_flow
from ornstein.diffusion.sdedit import below, sdedit
from ornstein.diffusion.steps import Jump
from ornstein.diffusion.walk import SamplerStep, sample
from ornstein.errors import ConfigError, DataError, NumericsError, OutOfMemory, nearest, quote
from ornstein.metrics.reconstruction import MOST, psnr, span_of
from ornstein.noise import Noise
from ornstein.problems import Problem
from ornstein.strips import GAP, strips

if TYPE_CHECKING:
    from ornstein.data.info import DataInfo
    from ornstein.diffusion.denoiser import Denoiser
    from ornstein.diffusion.grid import Levels
    from ornstein.recipe import Drawing
    from ornstein.run import Run

Method = Literal["mmps", "pigdm", "dps", "repaint", "reverse"]
BATCH = 64
KNOWN = 10_000  # training images of which the baselines know, at most
KNOWN_VALUES = 1 << 27  # and values of these
CELL = 64 * SCALE  # width of a small image in the picture, in pixels
RESAMPLES = 5  # visits of RePaint to each level
BEST: dict[str, Method] = {"denoise": "reverse", "deblur": "pigdm"}
"""The methods that measured best where it is not MMPS. A blur leaves numbers of every size in
A Cov Aᵀ, which take more iterations than MMPS is given."""
GUIDES: dict[str, type[MMPS | PiGDM | DPS]] = {"mmps": MMPS, "pigdm": PiGDM, "dps": DPS}
ITERATIONS = 2
"""Of conjugate gradients in MMPS. The covariance that a trained network implies is neither quite
symmetric nor positive, and what more iterations add is mostly its error."""


class Restored(NamedTuple):
    """Images [n, *shape] in native values, float64, kept within the data's range.

    given: what was seen, as an image. draws: [n, k, *shape], samples of the posterior. others:
    what each of the baselines makes of it, by name. mean: the posterior's as the network itself
    knows it, where it does, which is of images with nothing but noise. truth: None where it is not
    known. span: the range that PSNR is of.
    """

    problem: Problem
    given: np.ndarray
    draws: np.ndarray
    others: dict[str, np.ndarray]
    mean: np.ndarray | None
    truth: np.ndarray | None
    span: float

    @property
    def average(self) -> np.ndarray:
        """The mean of each image's draws, which comes near the posterior's."""
        return np.asarray(self.draws.mean(axis=1))

    def psnr(self, x: np.ndarray) -> np.ndarray:
        """In dB, [n]: of images [n, *shape], or of draws [n, k, *shape] on average over these.
        Raises: ConfigError where the truth is not known."""
        if self.truth is None:
            raise ConfigError("these images were degraded before; what they were is not known")
        truth = self.truth.repeat(x.size // self.truth.size, axis=0)  # one for each draw
        decibels = psnr(x.reshape(truth.shape), truth, self.span).clamp(max=MOST)
        return np.asarray(decibels.view(len(x), -1).mean(dim=1).numpy())

    @property
    def best(self) -> str | None:
        """The baseline with the highest mean PSNR; where nothing can be measured, the last, which
        knows most. None where there is none."""
        if self.truth is None or not self.others:
            return next(reversed(self.others), None)
        return max(self.others, key=lambda name: float(self.psnr(self.others[name]).mean()))


class Lead(NamedTuple):
    """How far the average of draws is ahead of the best baseline, in dB: the mean over images and
    its standard error (NaN for one image)."""

    baseline: str
    value: float
    error: float


def lead(found: Restored) -> Lead | None:
    """Of the pairs of PSNR of each image, which share what is hard about it; None where there is
    no baseline. Raises: ConfigError where the truth is not known."""
    if found.best is None:
        return None
    ahead = found.psnr(found.average) - found.psnr(found.others[found.best])
    return Lead(found.best, *mean_and_error(ahead))


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error, NaN for one value."""
    count = len(values)
    error = values.std(ddof=1) / math.sqrt(count) if count > 1 else math.nan
    return float(values.mean()), float(error)


@torch.no_grad()
def degraded(run: Run, problem: Problem, x: np.ndarray, seed: int = 0) -> Tensor:
    """The measurement y [n, *] of native values x [n, *shape], at the model's scale, with noise;
    y[i] depends on the seed, i and x[i]."""
    a, b = run.info.affine(run.recipe.objective.range)
    noise = Noise.of(seed, "restore/measured", len(x))
    return measured(problem.measurement, torch.from_numpy(x * a + b).float(), noise)


@torch.no_grad()
def as_measured(run: Run, problem: Problem, x: np.ndarray) -> Tensor:
    """Native values x [n, *] that have been degraded already, as a measurement."""
    a, b = run.info.affine(run.recipe.objective.range)
    return problem.measurement.seen(torch.from_numpy(x * a + b).float())


def shape_of(run: Run, problem: Problem) -> tuple[int, ...]:
    """The shape of one measurement."""
    return tuple(problem.measurement(torch.zeros(1, *run.info.shape)).shape[1:])


def sampler(run: Run) -> Sampling:
    """How a run draws from posteriors: as it generates, but by steps with fresh noise.

    Raises: ConfigError where it does not walk a grid.
    """
    how = run.recipe.generation
    if not isinstance(how, Sampling):
        raise ConfigError(f"{run.path.name} draws in a way that no measurement can guide")
    return how.model_copy(update={"step": Jump(eta=1.0)}) if follows_flow(how.step) else how


def suited(problem: Problem, method: str | None) -> Method:
    """The method that is meant for this problem; None for the one that measures best.

    Raises: ConfigError where there is no such method, or not for this task.
    """
    if method is None:
        return BEST.get(problem.task, "mmps")
    if method not in get_args(Method):
        raise ConfigError(f"there is no method {quote(method)}{nearest(method, get_args(Method))}")
    for name, task in (("repaint", "inpaint"), ("reverse", "denoise")):
        if method == name and problem.task != task:
            raise ConfigError(
                f"the method {name!r} is for the task {task!r} only, not for {problem.task!r}; "
                "write --method mmps, pigdm or dps"
            )
    return cast("Method", method)


def restored(
    run: Run,
    problem: Problem,
    y: Tensor,
    truth: np.ndarray | None = None,
    *,
    method: Method | None = None,
    draws: int = 3,
    seed: int = 0,
    generation: Sampling | None = None,
    average: str = "",
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> Restored:
    """`draws` samples of p(x | y) for each y [n, *] at the model's scale, and the baselines.

    truth: native values x [n, *shape]. method: see `suited`. generation: see `sampler`. Draw j of
    image i depends on (seed, i, j) and y[i] only, and on `batch` to rounding. Raises: ConfigError
    where `method` does not suit the problem, NumericsError where draws are not finite.
    """
    how, chosen = generation or sampler(run), suited(problem, method)
    if chosen == "reverse" and draws > 1 and follows_flow(how.step):
        raise ConfigError(
            f"steps of the kind {how.step.kind!r} add no noise, so that all draws from one image "
            "would be the same; write step=jump step.eta=1, or --draws 1"
        )
    model = cast("Denoiser", run.pixel_model(average))
    found = _drawn(
        run,
        y,
        lambda part, noise: _restored(run, how, model, problem, part, chosen, noise),
        draws,
        seed,
        batch,
        progress,
    )
    once = _asked_once(run, model, problem.measurement.std, y) if chosen == "reverse" else None
    return Restored(
        problem,
        native(run, problem.measurement.back(y, run.info.shape)),
        native(run, found),
        {name: native(run, x) for name, x in baselines(run, problem, y).items()},
        None if once is None else native(run, once),
        truth,
        span_of(run.info),
    )


def edited(
    run: Run,
    x: np.ndarray,
    strength: float = 0.5,
    *,
    draws: int = 3,
    seed: int = 0,
    generation: Drawing | None = None,
    average: str = "",
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """`draws` other images [n, draws, *shape] like each of x [n, *shape], in native values; see
    `diffusion/sdedit.py`.

    strength: from 0, x itself, to 1, no likeness. Raises: ConfigError for another one.
    """
    how = generation or run.recipe.generation
    if not isinstance(how, Sampling):
        raise ConfigError(f"{run.path.name} draws in a way that no image can guide")
    if not 0 < strength <= 1:
        raise ConfigError(
            f"--strength lies between 0, the image itself, and 1, no likeness; got {strength:g}"
        )
    model = cast("Denoiser", run.pixel_model(average))
    info = run.recipe.at_model_scale(run.info)
    levels = how.levels(model.process, info)
    a, b = run.info.affine(run.recipe.objective.range)

    def one(part: Tensor, noise: Noise) -> Tensor:
        denoise, step = how.denoise(model, info), how.measured_step(info)
        *_, last = sdedit(denoise, model.process, levels, step, part, strength, noise)
        return last.x

    guide = torch.from_numpy(x * a + b).float()
    return native(run, _drawn(run, guide, one, draws, seed, batch, progress))


def _drawn(
    run: Run,
    y: Tensor,
    one: Callable[[Tensor, Noise], Tensor],
    draws: int,
    seed: int,
    batch: int,
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    """`draws` results [n, draws, *shape] of `one`, which takes some of y [n, *] and their noise."""
    if draws < 1 or batch < 1 or len(y) < 1:
        raise ConfigError(
            f"of at least 1 image at least 1 draw is made, in batches of 1 or more; got {len(y)} "
            f"images and {draws} draws in batches of {batch}"
        )
    count = len(y)
    which = torch.arange(count).repeat(draws)
    # Draw j of image i has a number of its own, whatever the counts are.
    numbers = (torch.arange(draws).repeat_interleave(count) << 32) + which
    parts = []
    for start in range(0, len(numbers), batch):
        rows = slice(start, start + batch)
        noise = Noise.of(seed, "restore", numbers[rows].to(run.device))
        try:
            parts.append(one(y[which[rows]].to(run.device), noise).cpu())
        except RuntimeError as error:
            if not memory.ran_out(error):
                raise
            raise OutOfMemory(
                f"out of memory with {len(which[rows])} images at a time; restore fewer"
            ) from error
        if progress is not None:
            progress(min(start + batch, len(numbers)), len(numbers))
    return torch.cat(parts).view(draws, count, *run.info.shape).transpose(0, 1)


def _restored(
    run: Run,
    how: Sampling,
    model: Denoiser,
    problem: Problem,
    y: Tensor,
    method: Method,
    noise: Noise,
) -> Tensor:
    """A sample of p(x | y) for each y, at the model's scale."""
    info = run.recipe.at_model_scale(run.info)
    levels = how.levels(model.process, info)
    denoise, step = bind(model), cast("SamplerStep", how.measured_step(info))
    measurement = problem.measurement
    if method == "reverse":
        levels = _levels_below(how, model, info, _time_of(model, measurement.std))
        x = levels[0].alpha * y
    else:
        if method == "repaint":
            assert isinstance(measurement, Mask)
            step = RePaint(step, measurement.mask, y, RESAMPLES)
        else:
            guide = MMPS(iterations=ITERATIONS) if method == "mmps" else GUIDES[method]()
            denoise = posterior(denoise, measurement, y, guide, info.std)
        first = levels[0]
        scale = math.sqrt(first.sigma**2 + (model.sigma_data * first.alpha) ** 2)
        x = scale * noise.child("start").normal(0, info.shape)
    # Last, for guidance must see how x̂0 moves with x, and where it is clipped it does not.
    walked: Denoise = clipped(denoise, *info.range) if how.clip and info.range else denoise
    *_, last = sample(walked, model.process, levels, step, x, noise.child("steps"))
    return last.x


def _levels_below(how: Sampling, model: Denoiser, info: DataInfo, time: float) -> Levels:
    """From this time on as many levels as the sampler has in all, on its grid made finer."""
    levels = how.levels(model.process, info)
    rest = below(model.process, levels, time)
    steps = len(levels) - 1
    finer = how.model_copy(update={"steps": round(steps * steps / max(1, len(rest) - 1))})
    return below(model.process, finer.levels(model.process, info), time)


def _time_of(model: Denoiser, std: float) -> float:
    """When the noise of an image of α = 1 has this standard deviation.

    Raises: ConfigError where it never has as much.
    """
    log_snr = torch.tensor(-2 * math.log(std), dtype=torch.float64)
    time = float(model.process.time(log_snr).clamp(min=max(model.process.smallest, 1e-12)))
    if not time <= 1:
        raise ConfigError(
            "there is more noise in these images than the model was trained with; give a smaller "
            "--noise, or --method pigdm"
        )
    return time


@torch.no_grad()
def _asked_once(run: Run, model: Denoiser, std: float, y: Tensor) -> Tensor:
    """E[x | y] of y = x + s z, as the network knows it: α y is a noisy sample of that level."""
    level = level_at(model.process, _time_of(model, std))
    x0 = [
        bind(model)(level.alpha * y[start : start + BATCH].to(run.device), level).x0.cpu()
        for start in range(0, len(y), BATCH)
    ]
    return torch.cat(x0)


# ── What simpler means make of it.


@torch.no_grad()
def baselines(run: Run, problem: Problem, y: Tensor) -> dict[str, Tensor]:
    """Restorations [n, *shape] of y without the model, at its scale, by name; the last knows the
    most of the training data. Those that need it are left out where it is gone."""
    measurement, shape = problem.measurement, run.info.shape
    found: dict[str, Tensor] = {}
    try:
        known = known_of(run)
    except DataError:
        known = None
    match measurement:
        case Mask():
            if known is not None:
                found["mean of the data"] = simple.filled(known, measurement.mask, y)
            found["harmonic"] = simple.harmonic(measurement.mask, y)
        case Downsample():
            found["bicubic"] = simple.bicubic(y, (shape[1], shape[2]))
    if known is None:
        return found
    if problem.task in ("deblur", "denoise"):
        found["Wiener"] = simple.wiener(known, measurement, measurement.std, y)
    if known.covariance is not None:
        found["best linear"] = simple.linear(known, measurement, measurement.std, y)
    return found


def known_of(run: Run) -> simple.Moments:
    """Moments of the run's training data at the model's scale, of some of it where it is large.
    Raises: DataError where it is gone or has changed."""
    count = max(2, min(KNOWN, KNOWN_VALUES // math.prod(run.info.shape)))
    ids = drawn(run.dataset.train, count, "restore")
    return simple.moments(run.dataset.batch(ids, run.recipe.objective.range).x)


def native(run: Run, x: Tensor) -> np.ndarray:
    """Model-scale values as native ones, kept within the range of the data but not rounded.
    Raises: NumericsError where they are not finite."""
    a, b = run.info.affine(run.recipe.objective.range)
    values = (x.detach().cpu().double().numpy() - b) / a
    if not np.isfinite(values).all():
        raise NumericsError(
            f"what run {run.path.name} restores is not finite; try another --method, step or grid, "
            "or clip=true"
        )
    return values if run.info.range is None else np.clip(values, *run.info.range)


# ── To look at.


def picture(found: Restored, run: Run, names: Sequence[str] = ()) -> Image.Image:
    """Rows: the truth, what was seen, the best baseline, the mean of the draws, the draws; what is
    hidden is grey. names: of the images."""

    def label(text: str, x: np.ndarray) -> str:
        return text if found.truth is None else f"{text}, {found.psnr(x).mean():.1f} dB"

    rows = [] if found.truth is None else [("truth", found.truth)]
    rows.append(("as given", _shown(found, run)))
    if found.best is not None:
        best = found.others[found.best]
        rows.append((label(found.best, best), best))
    return _strips([*rows, *_draws(found.draws, label)], run, names)


def picture_of_edits(
    x: np.ndarray, draws: np.ndarray, run: Run, names: Sequence[str] = ()
) -> Image.Image:
    """Rows: images [n, *shape], and each draw of their edits [n, k, *shape]."""
    rows = _draws(draws, lambda text, _: text)
    return _strips([("as given", x), *rows[draws.shape[1] > 1 :]], run, names)


def _draws(
    draws: np.ndarray, label: Callable[[str, np.ndarray], str]
) -> list[tuple[str, np.ndarray]]:
    count = draws.shape[1]
    rows = [(f"draw {j + 1}", draws[:, j]) for j in range(count)]
    if count > 1:
        rows.insert(0, (f"mean of {count} draws", draws.mean(axis=1)))
    return [(label(text, x), x) for text, x in rows]


def _shown(found: Restored, run: Run) -> np.ndarray:
    """What was given; what is hidden is the middle of the range, which nobody takes for a pixel."""
    measurement = found.problem.measurement
    if not isinstance(measurement, Mask):
        return found.given
    low, high = run.info.range or (found.given.min(), found.given.max())
    return np.where(measurement.mask.numpy(), found.given, (low + high) / 2)


def _strips(rows: Sequence[tuple[str, np.ndarray]], run: Run, names: Sequence[str]) -> Image.Image:
    wide = max(CELL, run.info.shape[-1])
    lines = [(text, [pictures.single(image, run.info) for image in x]) for text, x in rows]
    width = LEFT * SCALE + max(4, len(rows[0][1])) * (wide + GAP)
    return strips(lines, [_end(name) for name in names], width=width)


def _end(name: str, size: int = 13) -> str:
    """The end of a name, which tells it from its neighbours."""
    return name if len(name) <= size else f"…{name[1 - size :]}"
