"""Folders of frames: sequences that lie in a folder as one image file a frame.

    films/walking/0001.png, 0002.png, ...     every folder with images is one sequence
    films/running/1.jpg, 2.jpg, ... 10.jpg    in the order that a person would give the names

Files are read, fitted to one size and cached as any folder of images is (`ornstein.data.images`),
and sequences are cut to windows of as many frames as are asked for, of which only the places are
kept: window n is made of the frames place[n, 0], place[n, 1], ... when it is asked for.

A frame that cannot be read is left out and named; no window reaches over the gap that it leaves,
where the picture would jump. What is left at the end of a sequence, too short for a window, is not
used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ornstein.data.images import Images, Progress, read_folder
from ornstein.data.info import Fit
from ornstein.errors import DataError


class Windows:
    """Sequences as an array, uint8 [N, T, C, H, W], whose rows are put together when asked for.

    frames: uint8 [F, C, H, W], such as a file in the cache. place: int64 [N, T], the numbers of
    the frames that a sequence is made of.
    """

    def __init__(self, frames: np.ndarray, place: np.ndarray) -> None:
        self.frames, self.place = frames, place
        self.shape = (*place.shape, *frames.shape[1:])
        self.dtype = frames.dtype

    def __len__(self) -> int:
        return len(self.place)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The sequences of a slice, of numbers or of a mask; of one number, one sequence."""
        found: np.ndarray = self.frames[self.place[rows]]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of them, in memory."""
        return self[:].astype(dtype or self.dtype, copy=False)


class Sequences(NamedTuple):
    """Windows of one length. names: of each, its first and its last frame. group: int64 [N],
    which folder each was cut from. label, classes, held_out: as of the images, see `read_folder`;
    there are no classes where each would be one folder only. images: where they come from."""

    x: Windows
    names: tuple[str, ...]
    group: np.ndarray
    label: np.ndarray | None
    classes: tuple[str, ...]
    held_out: np.ndarray | None
    fingerprint: str
    images: Images


def read_frames(
    root: Path,
    frames: int,
    stride: int | None = None,
    size: int | None = None,
    channels: int | None = None,
    progress: Progress | None = None,
    fit: Fit = "crop",
) -> Sequences:
    """All windows of `frames` frames in the folders of images below `root`.

    stride: how many frames the next window begins after the one before; None: `frames`, so that
    none is in two of them. size, channels, fit, progress and classes: see `read_folder`.
    DataError: as there, or fewer than two windows. StorageError: the cache cannot be written.
    """
    images = read_folder(root, size, channels, progress, fit)
    parts = list(_unbroken(images))
    place, group = list[np.ndarray](), list[int]()
    for folder, part in parts:
        for start in range(0, len(part) - frames + 1, stride or frames):
            place.append(part[start : start + frames])
            group.append(folder)
    if len(place) < 2:
        longest = max(len(part) for _, part in parts)
        found = "no sequence" if not place else "only one sequence"
        raise DataError(
            f"{found} of {frames} frames in {root}: at least 2 are needed, and the most frames in "
            f"a row, of one folder, are {longest}; write data.frames={max(2, longest // 2)}, say"
        )
    windows, of = Windows(images.x, np.stack(place)), np.array(group, dtype=np.int64)
    first = windows.place[:, 0]
    label, classes = _classes(images, first, len(np.unique(of)))
    return Sequences(
        x=windows,
        names=tuple(f"{images.files[a]} to {_last(images.files[b])}" for a, b in _ends(windows)),
        group=of,
        label=label,
        classes=classes,
        held_out=None if images.held_out is None else images.held_out[first],
        fingerprint=_fingerprint(images, windows),
        images=images,
    )


def natural(name: str) -> tuple[list[str | int], str]:
    """By what names are sorted as a person does it: numbers in them by value, 2 before 10."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _unbroken(images: Images) -> Iterator[tuple[int, np.ndarray]]:
    """The frames that follow each other without a gap, int64, with the number of their folder."""
    number = {path: i for i, path in enumerate(images.files)}
    paths = [*images.files, *(bad.path for bad in images.bad)]
    ordered = sorted(paths, key=lambda path: [natural(part) for part in _split(path)])
    for folder, (_, files) in enumerate(groupby(ordered, key=lambda path: _split(path)[0])):
        for good, part in groupby(files, key=number.__contains__):
            if good:
                yield folder, np.array([number[path] for path in part], dtype=np.int64)


def _split(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name


def _last(path: str) -> str:
    return _split(path)[1]


def _ends(windows: Windows) -> Sequence[tuple[int, int]]:
    return [(int(row[0]), int(row[-1])) for row in windows.place]


def _classes(
    images: Images, first: np.ndarray, folders: int
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The classes of windows that begin with the frames `first`, numbered anew: some may have
    lost all of theirs."""
    if images.label is None or len(images.classes) >= folders:
        return None, ()
    known, label = np.unique(images.label[first], return_inverse=True)
    if len(known) < 2:
        return None, ()
    return label.astype(np.int64), tuple(images.classes[i] for i in known)


def _fingerprint(images: Images, windows: Windows) -> str:
    place = hashlib.sha256(windows.place.astype("<i8").tobytes()).hexdigest()
    content = ["sequences", images.fingerprint, list(windows.shape), place]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
