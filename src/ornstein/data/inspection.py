"""What a data set holds, measured before a model is trained on it.

Everything is taken from the data set as a model would be given it, so that what was left out,
resized or split is seen too. Nothing is written but the cache of decoded images.

What is proposed: the size is that of the images, or the one that they were fitted to; σ_d is the
standard deviation of the training split's values once their range is [−1, 1] (data without a
range is standardised, and σ_d is 1), which is what EDM preconditioning asks for (T. Karras et
al., 2022, arXiv:2206.00364, table 1).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ornstein.data.arrays import rows
from ornstein.data.distances import Farthest, farthest
from ornstein.data.duplicates import Groups, duplicates, leaked
from ornstein.data.info import BadFile, DataInfo, Dataset, Originals
from ornstein.data.sources import Frames, Shards, recognise

if TYPE_CHECKING:
    from ornstein.choice import Choice

SHEET, STRIPS = 100, 24
"""How many samples a contact sheet shows, and how many sequences: each of these takes a row."""

MODEL_RANGE = (-1.0, 1.0)


class ClassCount(NamedTuple):
    """How many samples of a class there are."""

    name: str
    train: int
    held_out: int


class Dimension(NamedTuple):
    """One number of a vector, over all samples."""

    low: float
    high: float
    mean: float
    std: float


class Repeated(NamedTuple):
    """Groups of samples' numbers that are exact or near-duplicates, see `data.duplicates`.

    leaked, nearly_leaked: held-out samples with such a duplicate among those trained on.
    compared: how many samples were looked at for near ones.
    """

    exact: Groups
    near: Groups
    leaked: tuple[int, ...]
    nearly_leaked: tuple[int, ...]
    compared: int


class Proposal(NamedTuple):
    """Settings for training. size: side of the images in pixels, None where there is none to
    choose. why: of the size. command: what to type."""

    size: int | None
    why: str
    channels: int | None
    sigma_data: float
    command: str


class Report(NamedTuple):
    """What is known of a data set.

    looked: how many samples values, colours and duplicates are of: all, but where images are
    decoded as they are asked for. low, high: the smallest and largest value there is. grey: how
    many images have no colour, or None for vectors. originals, common: sizes (H, W) before images
    were fitted, see `Dataset`. dimensions: of vectors. names: of the samples that are duplicates,
    by number. farthest: the largest distance between two samples to train on.
    """

    info: DataInfo
    train: int
    held_out: int
    looked: int
    bad: tuple[BadFile, ...]
    ignored: int
    originals: Originals | None
    common: tuple[tuple[tuple[int, int], int], ...]
    grey: int | None
    low: float
    high: float
    classes: tuple[ClassCount, ...]
    dimensions: tuple[Dimension, ...]
    repeated: Repeated
    names: dict[int, str]
    farthest: Farthest
    proposal: Proposal


def inspect(
    source: Choice, dataset: Dataset, progress: Callable[[int, int], None] | None = None
) -> Report:
    """The report of `dataset`, which `source` loaded. `progress(done, total)` is called while
    images are compared."""
    info, some = dataset.info, dataset.some()
    ids = np.sort(np.concatenate((some.train, some.held_out)))
    x = np.asarray(dataset.x) if len(ids) == len(dataset.x) else dataset.x[ids]
    outside = np.zeros(len(x), bool)
    outside[np.searchsorted(ids, some.held_out)] = True
    found = duplicates(x, info.range, progress)
    exact, near = (ids[places].tolist() for places in leaked(found, outside))
    groups = [_numbers(ids, groups) for groups in (found.exact, found.near)]
    named = {i for kind in groups for group in kind for i in group}
    extremes = [(float(part.min()), float(part.max())) for _, part in rows(x)]
    return Report(
        info=info,
        train=len(dataset.train),
        held_out=len(dataset.held_out),
        looked=len(ids),
        bad=dataset.bad,
        ignored=dataset.ignored,
        originals=dataset.originals,
        common=dataset.common,
        grey=_grey(x) if info.kind == "image" else None,
        low=min(low for low, _ in extremes),
        high=max(high for _, high in extremes),
        classes=_classes(dataset),
        dimensions=_dimensions(x) if info.kind == "vector" else (),
        repeated=Repeated(groups[0], groups[1], tuple(exact), tuple(near), found.compared),
        names={i: dataset.names[i] for i in sorted(named)} if dataset.names else {},
        farthest=farthest(dataset),
        proposal=_proposal(source, dataset),
    )


def sheet(dataset: Dataset) -> tuple[np.ndarray, int | None]:
    """The numbers of the samples of a contact sheet, int64, and how many to put in a row.

    They lie evenly through the training split; where there are up to 20 classes, a row shows one.
    """
    train, count = dataset.train, len(dataset.info.classes)
    if dataset.info.kind == "sequence":
        return _evenly(train, STRIPS), None
    if dataset.label is None or not 2 <= count <= 20:
        return _evenly(train, SHEET), None
    most = max(5, SHEET // count)
    label = dataset.label[train]
    parts = [_evenly(train[label == k], most) for k in range(count)]
    if min(map(len, parts)) < most:  # rows would not be classes
        return np.concatenate(parts), None
    return np.concatenate(parts), most


def as_json(value: Any) -> Any:
    """A report, or a part of it, in what JSON knows."""
    if isinstance(value, DataInfo):
        return value.model_dump(mode="json")
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: as_json(part) for name, part in value._asdict().items()}
    if isinstance(value, tuple | list):
        return [as_json(part) for part in value]
    if isinstance(value, dict):
        return {str(key): as_json(part) for key, part in value.items()}
    return value


def _numbers(ids: np.ndarray, groups: Groups) -> Groups:
    """The samples that stand at the places of some groups."""
    return tuple(tuple(ids[list(group)].tolist()) for group in groups)


def _evenly(ids: np.ndarray, count: int) -> np.ndarray:
    if len(ids) <= count:
        return ids
    chosen: np.ndarray = ids[np.arange(count) * len(ids) // count]
    return chosen


def _grey(x: np.ndarray) -> int:
    if x.shape[1] == 1:
        return len(x)
    return int(sum((part == part[:, :1]).all(axis=(1, 2, 3)).sum() for _, part in rows(x)))


def _classes(dataset: Dataset) -> tuple[ClassCount, ...]:
    if dataset.label is None:
        return ()
    names = dataset.info.classes
    train, held_out = (
        np.bincount(dataset.label[ids], minlength=len(names)).tolist()
        for ids in (dataset.train, dataset.held_out)
    )
    return tuple(map(ClassCount, names, train, held_out))


def _dimensions(x: np.ndarray) -> tuple[Dimension, ...]:
    """Range and moments of each coordinate of x [N, D]."""
    mean = sum(part.sum(axis=0, dtype=np.float64) for _, part in rows(x)) / len(x)
    square = sum(np.square(part - mean).sum(axis=0) for _, part in rows(x)) / len(x)
    low = np.min([part.min(axis=0) for _, part in rows(x)], axis=0)
    high = np.max([part.max(axis=0) for _, part in rows(x)], axis=0)
    columns = (low, high, mean, np.sqrt(square))
    return tuple(Dimension(*map(float, row)) for row in np.stack(columns, axis=1))


def _proposal(source: Choice, dataset: Dataset) -> Proposal:
    info = dataset.info
    given = source.model_dump(mode="json", exclude_defaults=True)
    data = str(given.pop("path", None) or given.pop("name", None) or getattr(source, "kind", ""))
    size, why, channels = None, "", None
    if info.kind != "vector":
        channels, side, width = info.shape[-3:]
        square = side == width
        size = side if square else None
        why = _why(source, dataset)
        if dataset.originals is not None and square:
            given["size"] = side
    if isinstance(source, Shards | Frames) and recognise(data) != type(source)(path=data):
        given["kind"] = source.kind
    words = [f"data.{key}={value}" for key, value in given.items()]
    recipe = "td_vae" if info.kind == "sequence" else "edm"
    return Proposal(
        size=size,
        why=why,
        channels=channels,
        sigma_data=info.scaled(MODEL_RANGE).std,
        command=shlex.join(["ornstein", "train", recipe, "--data", data, *words]),
    )


def _why(source: Choice, dataset: Dataset) -> str:
    """Why images have the size that they have, and when to choose another."""
    h, w = dataset.info.shape[-2:]
    sizes = dataset.originals
    if sizes is None:
        return "the samples come in this size"
    if set(sizes) == {(h, w)}:
        return "all images have it"
    short = min(sizes.median)
    half = f"half of the images have a short side of up to {short}"
    if getattr(source, "size", None) is not None:
        return f"asked for; {half}"
    if h < 64:
        return "nine in ten images reach it, or it is the smallest that is chosen"
    more = f"; data.size={2 * h} shows more, at about 4 times the work" if short >= 2 * h else ""
    return f"the largest that is chosen unasked; {half}{more}"
