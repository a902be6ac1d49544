"""What has been done to an image that is to be undone: a task, and its measurement y = A x + s z.

    inpaint    pixels are missing: a mask
    superres   pixels are means of squares of `factor` x `factor`
    deblur     a Gaussian blur, `width` pixels wide
    colorize   the colours are gone
    denoise    nothing but the noise, A = 1

`noise` is s in the data's native units, the same for every value: for 8-bit images, of 0 to 255.
Each of these A takes a constant to the same constant, or leaves pixels out, so that it says the
same of native values and of values at the model's scale; s is multiplied as the values are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from ornstein.data.decode import READABLE
from ornstein.data.decoders import Answer, Item, Job, decoders
from ornstein.data.images import scan
from ornstein.data.info import BadFile, DataInfo, Fit
from ornstein.diffusion.measurements import Blur, Downsample, Grey, Mask, Measurement, Operator
from ornstein.errors import ConfigError, DataError, nearest, quote
from ornstein.metrics.reconstruction import span_of
from ornstein.noise import permutation

if TYPE_CHECKING:
    from ornstein.run import Run

Task = Literal["inpaint", "superres", "deblur", "colorize", "denoise"]
NOISE = {"denoise": 0.2}  # of the data's range; what is otherwise measured is measured well
LITTLE = 0.01
WORDS = ("center", "left", "right", "top", "bottom", "random:SHARE", "box:Y,X,H,W")
"""What a mask may be called; anything else is the path of a picture."""


class Problem(NamedTuple):
    """A task, and the measurement at the model's scale; noise: its s in native units."""

    task: Task
    measurement: Measurement
    noise: float


class Inputs(NamedTuple):
    """Images in native values, float64 [n, *], and what they are called."""

    x: np.ndarray
    names: tuple[str, ...]
    bad: tuple[BadFile, ...] = ()


def problem(
    run: Run,
    task: Task,
    *,
    mask: str | Tensor | None = None,
    factor: int | None = None,
    width: float | None = None,
    noise: float | None = None,
    seed: int = 0,
) -> Problem:
    """The problem of this task for images like those of a run.

    mask: one of `WORDS`, the path of a picture that is white where pixels are missing, or what is
    seen itself, 1 and 0 [1, H, W]; by default the centre is missing. factor: 2 by default; width:
    1. noise: by default a hundredth of the data's range, a fifth where it is all that there is.
    seed: of a random mask. Raises: ConfigError for what belongs to another task, or cannot be.
    """
    check_images(run)
    if task not in get_args(Task):
        raise ConfigError(f"there is no task {quote(task)}{nearest(task, get_args(Task))}")
    owners = {"mask": "inpaint", "factor": "superres", "width": "deblur"}
    for name, value in (("mask", mask), ("factor", factor), ("width", width)):
        if value is not None and task != owners[name]:
            raise ConfigError(
                f"--{name} belongs to the task {owners[name]!r}, not to {task!r}; leave it out, "
                f"or write --task {owners[name]}"
            )
    if noise is None:
        noise = NOISE.get(task, LITTLE) * span_of(run.info)
    if not (noise >= 0 and math.isfinite(noise)):
        raise ConfigError(f"--noise is a standard deviation of at least 0, got {noise:g}")
    if task == "denoise" and noise == 0:
        raise ConfigError("without noise there is nothing to denoise; write --noise above 0")
    std = noise * abs(run.info.affine(run.recipe.objective.range)[0])
    measurement = _measurement(run.info, task, mask, factor, width, std, seed)
    return Problem(task, measurement, noise)


def check_images(run: Run) -> None:
    """Raises: ConfigError where a run's samples are no images."""
    if run.info.kind != "image":
        raise ConfigError(
            f"the samples of {run.path.name} are no images, so there is nothing to restore"
        )


def _measurement(
    info: DataInfo,
    task: Task,
    mask: str | Tensor | None,
    factor: int | None,
    width: float | None,
    std: float,
    seed: int,
) -> Measurement:
    channels, *size = info.shape
    match task:
        case "inpaint":
            word = "center" if mask is None else mask
            seen = mask_of(word, (size[0], size[1]), seed) if isinstance(word, str) else word
            return Mask(checked(seen, info, word if isinstance(word, str) else ""), std)
        case "superres":
            factor = 2 if factor is None else factor
            if factor < 2 or any(side % factor for side in size):
                fits = [k for k in range(2, max(size) + 1) if not any(side % k for side in size)]
                listed = ", ".join(map(str, fits)) or "none"
                raise ConfigError(
                    f"--factor {factor} does not divide the sides of {size[0]} x {size[1]} pixels; "
                    f"those that do: {listed}"
                )
            return Downsample(factor, std)
        case "deblur":
            width = 1.0 if width is None else width
            widest = (min(size) - 1) / 3  # beyond it, the image and its reflection do not suffice
            if not 0 < width <= widest:
                raise ConfigError(
                    "--width is the standard deviation of a blur in pixels, above 0 and, for "
                    f"images of {size[0]} x {size[1]}, at most {widest:.3g}; got {width:g}"
                )
            return Blur(width, std)
        case "colorize":
            if channels != 3:
                raise ConfigError(
                    f"colorize needs a run on images of 3 channels, and these have {channels}"
                )
            return Grey(std)
        case "denoise":
            return Operator(lambda x0: x0, std)


def mask_of(word: str, size: tuple[int, int], seed: int = 0) -> Tensor:
    """What a mask leaves to see, 1 and 0 as float32 [1, H, W]; see `WORDS`.

    A random one hides the first of a random order of the pixels, chosen by the seed.
    """
    height, width = size
    seen = torch.ones(1, height, width)
    name, colon, rest = word.partition(":")
    half = {"left": (0, 0, height, width // 2), "top": (0, 0, height // 2, width)}
    half["right"] = (0, width // 2, height, width - width // 2)
    half["bottom"] = (height // 2, 0, height - height // 2, width)
    half["center"] = (height // 4, width // 4, height - height // 2, width - width // 2)
    if word in half:
        y, x, h, w = half[word]
    elif name == "box" and colon:
        y, x, h, w = _box(rest, size)
    elif name == "random" and colon:
        hidden = permutation(seed, "restore/mask", 0, height * width)
        seen.view(-1)[hidden[: round(_share(rest) * height * width)]] = 0
        return seen
    else:
        return _drawn(word, size)
    seen[:, y : y + h, x : x + w] = 0
    return seen


def checked(seen: Tensor, info: DataInfo, word: str = "") -> Tensor:
    """What is seen, if it suits the data and leaves both something to see and something to fill.

    word: what the mask was called. Raises: ConfigError.
    """
    size = tuple(info.shape[1:])
    called = f"the mask {quote(word)}" if word else "the mask"
    if seen.dim() != 3 or tuple(seen.shape[1:]) != size or seen.shape[0] not in (1, info.shape[0]):
        raise ConfigError(
            f"{called} has the shape {list(seen.shape)}, and the run's images are of "
            f"{size[0]} x {size[1]} pixels"
        )
    if bool(((seen != 0) & (seen != 1)).any()):
        raise ConfigError(f"{called} is 1 where a pixel is seen and 0 elsewhere, nothing between")
    if bool(seen.all()):
        raise ConfigError(f"{called} hides nothing; hidden is what is white in a picture")
    if not bool(seen.any()):
        raise ConfigError(f"{called} hides everything; to draw new images, use `ornstein sample`")
    return seen


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise ConfigError(
            f"the share of hidden pixels lies between 0 and 1, got {quote(text)}; write "
            "--mask random:0.5"
        )
    return share


def _box(text: str, size: tuple[int, int]) -> tuple[int, int, int, int]:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(
            f"a box is its top, left, height and width in pixels, got {quote(text)}; write --mask "
            "box:2,2,4,4"
        )
    y, x, h, w = (int(part) for part in parts)
    if h < 1 or w < 1 or y + h > size[0] or x + w > size[1]:
        raise ConfigError(
            f"the box {quote(text)} of top, left, height and width is not inside the run's images "
            f"of {size[0]} x {size[1]} pixels"
        )
    return y, x, h, w


def _drawn(word: str, size: tuple[int, int]) -> Tensor:
    """The mask in a picture: white is what is missing, as in programs where one paints over it."""
    path = Path(word)
    try:
        there = path.exists()
    except OSError as error:  # too long a name, no permission
        raise ConfigError(
            f"{quote(word)} cannot be looked up; known: {', '.join(WORDS)}"
        ) from error
    if not word or not there:
        names = [known.partition(":")[0] for known in WORDS]
        hint = nearest(word.partition(":")[0], names)
        if not hint.startswith("; did you mean"):
            hint = f"; known: {', '.join(WORDS)}"
        raise ConfigError(f"{quote(word)} is neither a kind of mask nor a picture{hint}")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; a mask is one picture")
    (found,) = _decoded([path], Job(size, 1, "stretch"))
    if found.bad:
        raise DataError(f"the mask {path} cannot be read: {found.bad}"[:-1])
    if found.original != size:
        raise ConfigError(
            f"the mask {path} is of {found.original[0]} x {found.original[1]} pixels (height x "
            f"width), and the run's images are of {size[0]} x {size[1]}: give one of that size"
        )
    white = np.frombuffer(found.pixels, np.uint8).reshape(1, *size) >= 128
    return torch.from_numpy(1.0 - white.astype(np.float32))


# ── Images to work on.


def held_out(run: Run, n: int, seed: int = 0) -> Inputs:
    """`n` samples that are held out of the run's data, in an order that the seed chooses; image i
    is the same for any n. Raises: ConfigError where too few are held out."""
    unseen = run.dataset.held_out
    if len(unseen) < n:
        raise ConfigError(
            f"{n} images were asked for, and {len(unseen)} are held out of the data of "
            f"{run.path.name}; write --number with fewer, or --images with a folder of your own"
        )
    chosen = unseen[permutation(seed, "restore", 0, len(unseen))[:n].numpy()]
    names = run.dataset.names
    called = tuple(names[i] if len(names) else f"#{i}" for i in chosen)
    return Inputs(run.dataset.x[chosen].astype(np.float64), called)


def read(run: Run, path: Path, n: int, shape: Sequence[int] | None = None) -> Inputs:
    """The first `n` images in a file or a folder, by name, as samples of the run's data.

    They are fitted to `shape`, (C, H, W), by default that of the data: as the data was where it
    was images, else cut about the centre. Nothing is written. Raises: DataError where there are
    none that can be read, ConfigError where the data is unlike any image.
    """
    info = run.info
    channels, height, width = info.shape if shape is None else shape
    if info.range is None or channels not in (1, 3):
        lacks = "a range of values" if info.range is None else f"{channels} channels"
        raise ConfigError(
            f"the data of {run.path.name} has {'no ' * (info.range is None)}{lacks}, so that a "
            "picture cannot stand for a sample of it; leave out --images"
        )
    files, missed = _files(path)
    job = Job((height, width), channels, _fit(run))
    good, names, bad = [], [], list(missed)
    for file, answer in zip(files[:n], _decoded(files[:n], job), strict=True):
        if answer.bad:
            bad.append(BadFile(file.name, answer.bad))
            continue
        good.append(np.frombuffer(answer.pixels, np.uint8).reshape(channels, height, width))
        names.append(file.name)
    if not good:
        why = f": {bad[0].path}: {bad[0].reason}"[:-1] if bad else ""
        raise DataError(f"no image in {path} can be read as {READABLE}{why}")
    low, high = info.range
    return Inputs(low + np.stack(good) / 255 * (high - low), tuple(names), tuple(bad))


def _files(path: Path) -> tuple[list[Path], list[BadFile]]:
    try:
        if path.is_dir():
            found, bad, _ = scan(path)
            return [path / file.path for file in found], bad
        if path.is_file():
            return [path], []
    except OSError as error:
        raise DataError(f"{quote(str(path))} cannot be looked up; write --images PATH") from error
    if path.exists():
        raise DataError(f"{path} is neither a folder nor an ordinary file; give --images one")
    raise DataError(f"{path} does not exist; give --images a {READABLE} file, or a folder of them")


def _fit(run: Run) -> Fit:
    fit: Fit = getattr(run.recipe.data, "fit", "crop")
    return fit


def _decoded(paths: Sequence[Path], job: Job) -> list[Answer]:
    with decoders() as ask:
        return list(ask(job, [[Item(path.name, path.stat().st_size, path) for path in paths]]))
