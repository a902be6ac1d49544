"""Images that are decoded as they are asked for: data larger than memory, and than the cache.

    path/*.tar        named in WebDataset's way, see `ornstein.data.tar`
    path/*.parquet    as the Hugging Face hub keeps them, see `ornstein.data.parquet`

An index says which bytes each sample is (`ornstein.data.index`). An image that is asked for is
read from there and decoded by the processes that read folders, too (`ornstein.data.decoders`):
nothing is unpacked, nothing is kept, and any sample can be had without those before it.

    tar, Parquet without packing    its own bytes are read
    Parquet with packing            its page is read and unpacked, some megabytes; the last pages
                                    are kept while they take no more than 64 MiB

What would take all images takes some: size and channels, where they are not asked for, are those
of `LOOKED` random images, mean and standard deviation are of `MEASURED` of the training split, and
scores, classifiers and reports look at no more than `MOST` of each split, always the same. What is
measured is kept beside the index, so that the next start decodes nothing.

An image that cannot be decoded does not end training. In its place stands the next one, in the
order of the files, that can be decoded, of the same split and class; so which images a position
has depends on nothing but the files. A file that has changed, or cannot be read, is an error.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import chain, groupby
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import PIL

from ornstein.data.columns import Part, unpacked
from ornstein.data.decode import READABLE, cause
from ornstein.data.decoders import Answer, Item, Job, decoders
from ornstein.data.images import BLOCK, COMMON, Progress, common_size, stored, storing
from ornstein.data.index import Index, Names, indexed
from ornstein.data.info import DataInfo, Dataset, Fit, Originals, drawn, originals
from ornstein.data.parquet import sides
from ornstein.data.sources import held, moments, split
from ornstein.errors import DataError

LOOKED = 512
"""How many images sizes and channels are chosen from."""

MEASURED = 4096
"""How many images of the training split mean and standard deviation are of."""

MOST = 10_000
"""How many images of a split scores, classifiers and reports look at."""

WORKERS, AT_ONCE = 16, 8
"""How many processes decode, where there are as many processors, and how many images each of them
is handed at a time: a batch of 64 then keeps eight of them busy."""

TRIES = 1000
"""How many images in a row may be no good, when one is looked for to stand in another's place."""

NOTED = 20
"""How many images that could not be decoded are named in the log."""

_KEPT = 64 << 20  # bytes of unpacked pages
_LAYOUT = 1  # of what is measured


class Pixels:
    """Images as an array, uint8 [N, C, H, W], whose rows are decoded as they are asked for.

    job: how. held_out: the numbers of the samples that are, rising. replaced: what stands in the
    place of what, by number, as far as was seen.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, index: Index, job: Job, held_out: np.ndarray, source: Source | None = None
    ) -> None:
        assert job.size is not None
        self.shape = (len(index.spans), job.channels, *job.size)
        self._index, self._job, self._held_out = index, job, held_out
        self._source = source or Source(index)
        self.replaced = self._source.replaced

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The images of a slice, of numbers or of a mask; of one number, one image.

        DataError: a file has changed or cannot be read, or there is nothing to decode near by.
        """
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        ids = np.asarray(rows)
        if ids.dtype == bool and ids.shape == (len(self),):
            ids = np.flatnonzero(ids)
        if ids.size == 0:
            ids = ids.astype(np.int64)
        if ids.dtype.kind not in "iu" or ids.ndim > 1:
            raise IndexError("images are asked for by a slice, whole numbers or a mask")
        ids = np.where(ids < 0, ids + len(self), ids).astype(np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < len(self):
            raise IndexError(f"there are {len(self)} images, from 0 on")
        found = self._decoded(ids.reshape(-1))
        return found[0] if ids.ndim == 0 else found

    def _decoded(self, ids: np.ndarray) -> np.ndarray:
        ids = np.array([self.replaced.get(i, i) for i in ids.tolist()], np.int64)
        spans = self._index.spans[ids]
        order = np.lexsort((spans["start"], spans["part"]))  # files and pages one after the other
        found = np.empty((len(ids), *self.shape[1:]), np.uint8)
        failed = list[tuple[int, str]]()
        answers = self._source(self._job, ids[order])
        for place, answer in zip(order.tolist(), answers, strict=True):
            if answer.bad:
                failed.append((place, answer.bad))
            else:
                found[place] = np.frombuffer(answer.pixels, np.uint8).reshape(self.shape[1:])
        for place, why in failed:
            found[place] = self._instead(int(ids[place]), why)
        return found

    def _instead(self, sample: int, why: str) -> np.ndarray:
        """The image that stands in the place of one that cannot be decoded."""
        for tried, other in enumerate(self._following(sample)):
            [answer] = self._source(self._job, np.array([other]))
            if not answer.bad:
                self._note(sample, other, why)
                return np.frombuffer(answer.pixels, np.uint8).reshape(self.shape[1:])
            if tried == TRIES:
                break
        raise DataError(
            f"{self._index.name(sample)} cannot be decoded ({why[:-1]}), nor can the next ones of "
            f"its kind in {self._index.path}: see what these files hold"
        )

    def _following(self, sample: int) -> Iterator[int]:
        """The samples of the same split and class after one, and from the first one on again."""
        label, held_out = self._index.label, self._held_out

        def outside(ids: np.ndarray) -> np.ndarray:
            place = np.searchsorted(held_out, ids).clip(max=max(0, len(held_out) - 1))
            return held_out[place] == ids if len(held_out) else np.zeros(len(ids), bool)

        side = outside(np.array([sample]))[0]
        count = len(self)
        for start in chain(range(sample + 1, count, BLOCK), range(0, sample, BLOCK)):
            stop = count if start > sample else sample
            ids = np.arange(start, min(start + BLOCK, stop))
            good = outside(ids) == side
            if label is not None:
                good &= label[ids] == label[sample]
            yield from ids[good].tolist()

    def _note(self, sample: int, other: int, why: str) -> None:
        if sample in self.replaced:
            return
        self.replaced[sample] = other
        if len(self.replaced) <= NOTED:
            logging.getLogger(__name__).warning(
                "%s cannot be decoded, and %s stands in its place: %s%s",
                *(self._index.name(sample), self._index.name(other), why),
                " More are not named." if len(self.replaced) == NOTED else "",
            )


class Source:
    """Reads the bytes of samples, and has them decoded by processes that end when it is gone."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._pages = OrderedDict[int, bytes]()
        self.replaced: dict[int, int] = {}
        stack = ExitStack()
        self._ask = stack.enter_context(decoders(WORKERS, AT_ONCE))
        weakref.finalize(self, stack.close)

    def __call__(self, job: Job, ids: np.ndarray) -> Iterator[Answer]:
        """What decoding the samples `ids`, in this order, gives. DataError: as `Pixels`."""
        blocks = self._bodies(ids)
        with closing(blocks):
            yield from self._ask(job, blocks)

    def _bodies(self, ids: np.ndarray) -> Generator[Sequence[Item], None, None]:
        """What is to be decoded, one at a time. DataError: a file has changed, or is not there."""
        spans = self._index.spans[ids]
        parts = self._index.parts[spans["part"]]
        wanted = zip(spans.tolist(), parts.tolist(), strict=True)
        for number, group in groupby(wanted, lambda pair: pair[1][3]):
            with self._opened(number) as file:
                for (start, size, name), (begin, packed, whole, _, codec) in group:
                    part = Part(begin, packed, whole, codec)
                    if codec:
                        body = self._page(number, file, name, part)[start : start + size]
                    else:
                        body = self._read(number, file, part.start + start, size)
                    if len(body) < size:
                        raise DataError(self._changed(number))
                    yield [Item("", size, body)]

    @contextmanager
    def _opened(self, number: int) -> Iterator[IO[bytes]]:
        about = self._index.files[number]
        try:
            file = about.path.open("rb", buffering=0)
        except OSError as error:
            raise DataError(f"{about.path} cannot be opened: {cause(error)}") from error
        with file:
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) != (about.size, about.mtime):
                raise DataError(self._changed(number))
            yield file

    def _read(self, number: int, file: IO[bytes], start: int, size: int) -> bytes:
        try:
            file.seek(start)
            return file.read(size)
        except OSError as error:
            path = self._index.files[number].path
            raise DataError(f"{path} cannot be read: {cause(error)}") from error

    def _page(self, number: int, file: IO[bytes], name: int, part: Part) -> bytes:
        """What part number `name` unpacks to."""
        with self._lock:
            if name in self._pages:
                self._pages.move_to_end(name)
                return self._pages[name]
        try:
            content = unpacked(self._read(number, file, part.start, part.packed), part)
        except ValueError as error:
            raise DataError(self._changed(number)) from error
        with self._lock:
            self._pages[name] = content
            while len(self._pages) > 1 and sum(map(len, self._pages.values())) > _KEPT:
                self._pages.popitem(last=False)
        return content

    def _changed(self, file: int) -> str:
        return (
            f"{self._index.files[file].path} has changed since it was read: put it back, or start "
            "again"
        )


class _Measured(NamedTuple):
    """What some images tell of all of them; originals and common as in `Dataset`."""

    size: tuple[int, int]
    channels: int
    mean: float
    std: float
    originals: Originals
    common: tuple[tuple[tuple[int, int], int], ...]


def read_shards(
    path: Path,
    size: int | None = None,
    channels: int | None = None,
    fit: Fit = "crop",
    held_out: float = 0.1,
    labelled: bool = True,
    progress: Progress | None = None,
) -> Dataset:
    """The images in the tar or Parquet files that `path` means, none of them decoded before it is
    asked for.

    size, channels, fit: as for a folder, from some of the images where they are left open.
    held_out: the share that is, where files are not named as splits. labelled: whether labels are
    classes. progress: as in `indexed`. DataError: there are fewer than two samples, the images
    looked at cannot be decoded, or see `indexed`. StorageError: the cache cannot be written.
    """
    index = indexed(path, labelled, progress)
    train, outside = _sides(index, held_out)
    settings = [_LAYOUT, PIL.__version__, size, channels, fit, len(train), len(outside)]
    key = hashlib.sha256(json.dumps([*settings, held_out]).encode()).hexdigest()[:20]
    note = index.folder / f"{key}.json"
    found = _noted(note)
    source = Source(index)
    if found is None:
        asked = Job((size, size) if size else None, channels or 0, fit)
        found = _measure(index, source, asked, train, outside)
        with stored(note) as part, storing(note.parent):
            part.write_text(json.dumps(found), encoding="utf-8")
    if not found.std > 0:
        raise DataError(f"all values of {path} are {found.mean:g}: there is nothing to learn")
    content = [index.fingerprint, found.size, found.channels, fit, _split_of(index)]
    info = DataInfo(
        name=(path.stem if path.is_file() else path.name) or "data",
        kind="image",
        shape=(found.channels, *found.size),
        range=(0.0, 255.0),
        bins=256,
        classes=index.classes,
        count=len(index.spans),
        held_out=len(outside),
        mean=found.mean,
        std=found.std,
        fingerprint=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
    )
    return Dataset(
        info=info,
        x=Pixels(index, Job(found.size, found.channels, fit), outside, source),
        label=index.label,
        train=train,
        held_out=outside,
        bad=index.bad,
        originals=found.originals,
        common=found.common,
        names=Names(index),
        ignored=index.ignored,
        most=MOST,
    )


def _split_of(index: Index) -> list[bool] | None:
    """Which files are held out, by their names; None if these say nothing."""
    return sides(list(index.files), index.path)


def _sides(index: Index, share: float) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the samples to train on, and of those held out, int64, memory-mapped."""
    count, of_files = len(index.spans), _split_of(index)
    if of_files is None:
        name, apart = f"split-{share!r}", held(count, share)
    else:
        sizes = np.diff(index.first)
        name, apart = "split-of-files", int(sizes[np.array(of_files)].sum())
        if apart == count:
            raise DataError(f"there are no images to train on in {index.path}")
    path = index.folder / name
    if not path.is_file() or path.stat().st_size != 8 * count:
        if of_files is None:
            found = split(count, share)
        else:
            mask = np.repeat(np.array(of_files), sizes)
            found = np.flatnonzero(~mask), np.flatnonzero(mask)
        with stored(path) as part, part.open("wb") as file, storing(path.parent):
            for ids in found:
                file.write(ids.astype("<i8", copy=False).data)
    both = np.asarray(np.memmap(path, "<i8", "c"))  # torch warns of arrays that are read-only
    return both[: count - apart], both[count - apart :]


def _noted(note: Path) -> _Measured | None:
    """What was measured before, or None if nothing says so."""
    try:
        size, channels, mean, std, seen, common = json.loads(note.read_text(encoding="utf-8"))
        return _Measured(
            size=(int(size[0]), int(size[1])),
            channels=int(channels),
            mean=float(mean),
            std=float(std),
            originals=Originals(*((int(h), int(w)) for h, w in seen)),
            common=tuple(((int(h), int(w)), int(n)) for (h, w), n in common),
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _measure(
    index: Index, source: Source, asked: Job, train: np.ndarray, outside: np.ndarray
) -> _Measured:
    """Look at some images. asked: with no channels where they are left open. DataError: none can
    be decoded."""
    looked = drawn(np.arange(len(index.spans)), LOOKED, "looked at")
    seen = [answer.original for answer in source(Job(None), looked) if not answer.bad]
    if not seen:
        raise DataError(
            f"none of {len(looked)} images in {index.path} can be read: they have to be {READABLE}"
        )
    job = asked._replace(size=asked.size or common_size(seen))
    if not job.channels:
        job = job._replace(channels=3)
        if all(answer.grey for answer in source(job, looked) if not answer.bad):
            job = job._replace(channels=1)
    assert job.size is not None
    pixels = Pixels(index, job, outside, source)
    mean, std = moments(pixels, drawn(train, MEASURED, "measured"))
    common = tuple(Counter(seen).most_common(COMMON))
    return _Measured(job.size, job.channels, mean, std, originals(seen), common)
