"""What flows from data to everything else: batches, and what is known of their source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol, Self

from pydantic import Field, model_validator

from ornstein.choice import Choice
from ornstein.lazy import torch

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Batch(NamedTuple):
    """Samples with their condition and their names.

    x: [B, *shape]. ids: int64 [B], the sample's number in its data set.
    label: int64 [B], the class, or None where the data has no classes.
    """

    x: Tensor
    ids: Tensor
    label: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(*(t if t is None else t.to(device, non_blocking=True) for t in self))  # type: ignore[arg-type]


class BadFile(NamedTuple):
    """A file that was skipped, and why, in one sentence."""

    path: str
    reason: str


Fit = Literal["crop", "pad", "stretch"]
"""What becomes of an image of other proportions: cut about its centre, laid on white, or
stretched."""


class Originals(NamedTuple):
    """The sizes (H, W) that images had before they were fitted: the smallest by area, the middle
    one and the largest."""

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]


def originals(sizes: Iterable[tuple[int, int]]) -> Originals:
    """What is kept of the sizes (H, W) of at least one image."""
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return Originals(by_area[0], by_area[len(by_area) // 2], by_area[-1])


class DataInfo(Choice):
    """What is known about a data set, in the values that it is stored in.

    shape: of one sample; images are (C, H, W).
    range: the smallest and largest possible value, or None for unbounded numbers.
    bins: how many equally spaced values there are from range[0] to range[1] (256 for 8-bit
        images), or None for real numbers. The bin width, in any scaling, follows from the two.
    mean, std: moments over all values of the training split, at the scale of `range`.
    fingerprint: SHA-256 of the content, in order: the same files give the same string anywhere.
    """

    name: str
    kind: Literal["image", "vector", "sequence"]
    shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    range: tuple[float, float] | None = None
    bins: int | None = Field(None, ge=2)
    classes: tuple[str, ...] = ()
    count: int = Field(ge=0)
    held_out: int = Field(0, ge=0)
    mean: float
    std: float = Field(gt=0)
    fingerprint: str

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"range must rise, got {list(self.range)}")
        return self

    def affine(self, target: tuple[float, float] | None) -> tuple[float, float]:
        """(a, b) such that a·x + b is the data as an objective asks for it.

        target: the range that it declares, which the data's range is taken to; data without a
        range is standardised instead. None: the data's own values, (1, 0).
        """
        if target is None:
            return 1.0, 0.0
        if self.range is None:
            return 1 / self.std, -self.mean / self.std
        a = (target[1] - target[0]) / (self.range[1] - self.range[0])
        return a, target[0] - a * self.range[0]

    def scaled(self, target: tuple[float, float] | None) -> DataInfo:
        """What is known of the data once `affine(target)` has been applied."""
        a, b = self.affine(target)
        limits = self.range and (a * self.range[0] + b, a * self.range[1] + b)
        moments = {"mean": a * self.mean + b, "std": abs(a) * self.std}
        return self.model_copy(update={"range": limits, **moments})


class Values(Protocol):
    """An array [N, *shape], or what gives parts of one: what is known of it, and its rows."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: np.ndarray | slice, /) -> np.ndarray: ...


class Dataset(NamedTuple):
    """A data set in memory, in a memory-mapped file, or in files that are read as it is asked for.

    x: [N, *shape] in native values (uint8 images, float32 vectors). label: int64 [N] or None.
    train, held_out: the numbers of the samples in each split, rising.
    bad: the files that were left out. labels of classes are `info.classes`.
    originals: the sizes of images that were read from files, whether they had to change or not.
    common: the most common of these, and how many images had each. names: of the samples where
    files gave them any. ignored: how many files were no data by their names.
    most: where samples are decoded as they are asked for, how many of a split are looked at, at
    most, by what would look at all of them, and of how many images sizes are known; else None.
    """

    info: DataInfo
    x: Values
    label: np.ndarray | None
    train: np.ndarray
    held_out: np.ndarray
    bad: tuple[BadFile, ...] = ()
    originals: Originals | None = None
    common: tuple[tuple[tuple[int, int], int], ...] = ()
    names: Sequence[str] = ()
    ignored: int = 0
    most: int | None = None

    def some(self) -> Dataset:
        """The data set with at most `most` samples in each split, drawn at random, always the
        same ones: what is measured on all samples is measured on these."""
        return self._replace(
            train=drawn(self.train, self.most), held_out=drawn(self.held_out, self.most)
        )

    def batch(self, ids: np.ndarray, scale: tuple[float, float] | None = None) -> Batch:
        """The samples `ids`, float32, as an objective that declares the range `scale` gets them."""
        a, b = self.info.affine(scale)
        x = torch.from_numpy(self.x[ids]).to(torch.float32)
        if (a, b) != (1.0, 0.0):
            x = x.mul_(a).add_(b)
        label = None if self.label is None else torch.from_numpy(self.label[ids])
        return Batch(x, torch.from_numpy(ids), label)


Measure = Callable[[], float]
"""Takes a measure of data that few ask for, since it costs seconds."""


def drawn(ids: np.ndarray, most: int | None, purpose: str = "some") -> np.ndarray:
    """`most` of the rising numbers, the same random ones for a purpose; all where they are fewer,
    or where there is no limit."""
    if most is None or len(ids) <= most:
        return ids
    from ornstein.noise import Shuffle

    places = Shuffle.of(0, purpose, 0, len(ids))(torch.arange(most))
    found: np.ndarray = ids[places.sort().values.numpy()]
    return found
