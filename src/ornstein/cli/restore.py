"""`ornstein restore`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    import numpy as np

    from ornstein.problems import Inputs
    from ornstein.restoration import Restored
    from ornstein.run import Run


def restore(
    run: str,
    *overrides: str,
    task: Literal["inpaint", "superres", "deblur", "colorize", "denoise", "edit"] = "inpaint",
    mask: str | None = None,
    factor: int | None = None,
    width: float | None = None,
    noise: float | None = None,
    strength: float | None = None,
    method: Literal["mmps", "pigdm", "dps", "repaint", "reverse"] | None = None,
    images: Path | None = None,
    degraded: Annotated[bool, Parameter(negative="")] = False,
    n: Annotated[int, Parameter(name=["--number", "-n"])] = 8,
    draws: int = 3,
    seed: int = 0,
    steps: int | None = None,
    average: str = "",
    json: Annotated[bool, Parameter(negative="")] = False,
    out: Path = Path("restored.png"),
    runs: Path = Path("runs"),
) -> int:
    """Restore images with a run's model: fill in, enlarge, sharpen, colour, denoise, or edit.

    Parameters
    ----------
    run: str
        A run's name or folder.
    overrides: str
        How to draw, such as step.eta=0.5 or clip=true.
    task: Literal["inpaint", "superres", "deblur", "colorize", "denoise", "edit"]
        What has been done to the images that is to be undone; or edit, which noises them and walks
        back.
    mask: str
        What is missing, for inpaint: center, left, right, top, bottom, random:SHARE, box:Y,X,H,W,
        or a picture of the run's size that is white there.
    factor: int
        How many times smaller the images are, for superres; by default 2.
    width: float
        The standard deviation of the blur in pixels, for deblur; by default 1.
    noise: float
        The standard deviation of the noise in the images, in the values of the data (0 to 255 for
        8-bit images); by default a hundredth of their range, for denoise a fifth.
    strength: float
        How much is changed by edit, from 0, nothing, to 1, everything; by default 0.5.
    method: Literal["mmps", "pigdm", "dps", "repaint", "reverse"]
        How the measurement guides the model; repaint is for inpaint, reverse for denoise.
    images: Path
        Your own images, a file or a folder; by default held-out samples of the run's data.
    degraded: bool
        Your images are degraded already, and not to be degraded here.
    n: int
        How many images.
    draws: int
        How many restorations of each.
    seed: int
        Seed of the choice of images, of their noise, of a random mask and of the draws.
    steps: int
        Steps of the sampler.
    average: str
        Which average of the weights; "none" for the last weights.
    json: bool
        Print what was measured as JSON.
    out: Path
        The picture to write: before, after, and what the best simpler means make of it.
    runs: Path
        The folder of all runs.
    """
    from ornstein import fsops
    from ornstein.cli.request import generation
    from ornstein.errors import ConfigError
    from ornstein.run import Run

    fsops.check_picture(out)
    if n < 1 or draws < 1:
        raise ConfigError(
            f"at least 1 image is restored at least once, got --number {n} and --draws {draws}"
        )
    if degraded and (images is None or task == "edit"):
        raise ConfigError(
            "--degraded says that your own images need not be degraded here: it goes with --images "
            "and any task but edit"
        )
    opened = Run.open(run, runs)

    from ornstein import pictures, problems, restoration
    from ornstein.cli.progress import counted, show

    if task == "edit":
        _refuse(mask=mask, factor=factor, width=width, noise=noise, method=method)
        problems.check_images(opened)
        edit, _ = generation(opened.recipe.generation, steps, overrides)
        with opened.still(average):
            inputs = _inputs(opened, images, n, seed, None)
            edits = restoration.edited(
                opened,
                inputs.x,
                0.5 if strength is None else strength,
                draws=draws,
                seed=seed,
                generation=edit,
                average=average,
                progress=counted("drawn"),
            )
        drawn = restoration.picture_of_edits(inputs.x, edits, opened, inputs.names)
        text = ""
    else:
        if strength is not None:
            raise ConfigError("--strength belongs to --task edit; leave it out")
        problem = problems.problem(
            opened, task, mask=mask, factor=factor, width=width, noise=noise, seed=seed
        )
        chosen = restoration.suited(problem, method)
        solver, _ = generation(restoration.sampler(opened), steps, overrides)
        with opened.still(average):
            shape = restoration.shape_of(opened, problem) if degraded else None
            inputs = _inputs(opened, images, n, seed, shape)
            if degraded:
                y, truth = restoration.as_measured(opened, problem, inputs.x), None
            else:
                y, truth = restoration.degraded(opened, problem, inputs.x, seed), inputs.x
            found = restoration.restored(
                opened,
                problem,
                y,
                truth,
                method=chosen,
                draws=draws,
                seed=seed,
                generation=solver,
                average=average,
                progress=counted("drawn"),
            )
        drawn = restoration.picture(found, opened, inputs.names)
        text = _json(found, chosen, solver) if json else table(found, chosen)
    fsops.make_folder(out.parent, "--out")
    fsops.replace(out, pictures.png(drawn), "--out")
    if text:
        print(text)
    for bad in inputs.bad[:3]:
        show(f"left out: {bad.path}. {bad.reason}")
    show(str(out)) if json else print(out)
    return 0


def table(found: Restored, method: str) -> str:
    """What was measured, for a person to read."""
    from ornstein.cli.evaluate import aligned
    from ornstein.restoration import lead, mean_and_error

    task, count, draws = found.problem.task, len(found.draws), found.draws.shape[1]
    title = f"{task} of {count} image{'s' * (count > 1)} by {method}, noise {found.problem.noise:g}"
    if found.truth is None:
        return f"{title}; no PSNR, since what the images were is not known"
    rows = [["", "PSNR", "standard error"]]
    for name, x in measured(found).items():
        value, error = mean_and_error(found.psnr(x))
        rows.append([name, f"{value:.2f} dB", "" if count == 1 else f"{error:.2f}"])
    lines = [f"{title}, of a range of {found.span:g}", "", *aligned(rows), ""]
    if draws > 1:
        lines.append(
            "a draw is a sample, with twice the least squared error (3 dB less) where it is "
            f"exact; the mean of {draws} has {1 + 1 / draws:.2f} times the least"
        )
    ahead = lead(found)
    if ahead is not None:
        said = "" if count == 1 else f" (standard error {ahead.error:.2f})"
        who = f"the mean of {draws} draws" if draws > 1 else "a draw"
        way = "ahead of" if ahead.value >= 0 else "behind"
        lines.append(f"{who} is {abs(ahead.value):.2f} dB{said} {way} {ahead.baseline!r}")
        if ahead.value < 0:
            lines.append(
                f"{ahead.baseline!r} beats the model here, by squared error: look at the picture, "
                "make more draws, or train for longer"
            )
    return "\n".join(lines)


def measured(found: Restored) -> dict[str, np.ndarray]:
    """All that a PSNR is given of, by name."""
    draws = found.draws.shape[1]
    every = {"as given": found.given, **found.others, "a draw": found.draws}
    if draws > 1:
        every[f"mean of {draws} draws"] = found.average
    return every if found.mean is None else {**every, "the network, asked once": found.mean}


def _refuse(**options: Any) -> None:
    """Options that edit does not have."""
    from ornstein.errors import ConfigError

    for name, value in options.items():
        if value is not None:
            raise ConfigError(
                f"--{name} is not for edit, which takes --strength only; leave it out"
            )


def _inputs(
    run: Run, images: Path | None, n: int, seed: int, shape: tuple[int, ...] | None
) -> Inputs:
    from ornstein import problems

    if images is None:
        return problems.held_out(run, n, seed)
    return problems.read(run, images, n, shape)


def _json(found: Restored, method: str, how: Any) -> str:
    import json

    from ornstein.restoration import lead, mean_and_error

    record: dict[str, Any] = {
        "task": found.problem.task,
        "method": method,
        "noise": found.problem.noise,
        "images": len(found.draws),
        "draws": found.draws.shape[1],
        "range": found.span,
        "generation": how.model_dump(mode="json"),
    }
    if found.truth is not None:
        record["psnr"] = {
            name: _estimate(*mean_and_error(found.psnr(x))) for name, x in measured(found).items()
        }
        ahead = lead(found)
        if ahead is not None:
            record["lead"] = {"of": ahead.baseline, **_estimate(ahead.value, ahead.error)}
    return json.dumps(record, indent=1, ensure_ascii=False)


def _estimate(value: float, error: float) -> dict[str, float | None]:
    return {"value": value, "error": None if error != error else error}
