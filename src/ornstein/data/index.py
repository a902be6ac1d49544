"""Which bytes of which file each sample is: what is known of data that is not decoded as a whole.

    <cache>/shards/<key>/spans       for each sample: start and size in what its part unpacks to
                         parts       for each part: its file, start and size there, and packing
                         labels      int64, where samples have classes
                         about.json  files, counts, classes, what was left out, fingerprint

The key is a hash of the path, the settings and every file's name, size, mode and time of change.
A tar file is one part, and a page of a Parquet file is one, see `ornstein.data.columns`. The
numbers lie in plain arrays that are memory-mapped, 24 bytes a sample: what is not asked for takes
no memory, and what was can be given back by the system at any time.

Of tar files only headers and labels are read, of Parquet files the pages of the column of images
once. The folder is written under another name and then given its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ornstein.data.columns import values
from ornstein.data.decode import MAX_FILE, cause, too_big
from ornstein.data.images import Progress, cache_folder, storing, too_few
from ornstein.data.info import BadFile
from ornstein.data.pages import groups
from ornstein.data.parquet import (
    MAX_CLASSES,
    File,
    columns_of,
    files,
    labels_of,
    opening,
    rows_at_once,
)
from ornstein.data.tar import Sample, Window, samples
from ornstein.errors import DataError, StorageError

SPAN = np.dtype([("start", "<u8"), ("size", "<u4"), ("part", "<u4")])
PART = np.dtype(
    [("start", "<u8"), ("packed", "<u8"), ("unpacked", "<u8"), ("file", "<u4"), ("codec", "<u4")]
)

MAX_SAMPLES = 1 << 31
"""The most samples of all files together."""

MAX_ROWS = 10_000_000
"""The most rows of a group of a Parquet file."""

NAMED = 10_000
"""How many of the samples that are left out are named, at most."""

_LAYOUT = 1
_ROWS = 1 << 16  # samples that are in memory at a time
_NULL = "It is null: the row holds no image."
_UNLABELLED = "Its label is missing, or names no class."


class Index(NamedTuple):
    """N samples in the files of `path`.

    first: int64 [len(files) + 1], the number of the first sample of each file, and N. spans: SPAN
    [N], parts: PART; label: int64 [N] or None, all memory-mapped. bad: what is left out. ignored:
    how many members of tar files are no data by their names. fingerprint: SHA-256 of the files'
    names and sizes, of where samples lie in them, and of their labels; not of what they hold, and
    not of when they were written. folder: of the cache.
    """

    path: Path
    files: tuple[File, ...]
    first: np.ndarray
    spans: np.ndarray
    parts: np.ndarray
    label: np.ndarray | None
    classes: tuple[str, ...]
    bad: tuple[BadFile, ...]
    ignored: int
    fingerprint: str
    folder: Path

    def name(self, sample: int) -> str:
        """A sample's file, and its number among those of the file that are used."""
        file = int(np.searchsorted(self.first, sample, "right")) - 1
        return f"{self.files[file].name} sample {sample - int(self.first[file])}"


class Names(Sequence[str]):
    """The names of all samples, made as they are asked for."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def __len__(self) -> int:
        return len(self._index.spans)

    def __getitem__(self, sample: Any) -> Any:
        if isinstance(sample, slice):
            return [self._index.name(i) for i in range(*sample.indices(len(self)))]
        return self._index.name(range(len(self))[sample])


def shards(path: Path) -> list[File]:
    """The files that a path means: itself, or the tar files of a folder; where it has none, its
    Parquet files. They are looked for as `ornstein.data.parquet.files` does."""
    return files(path, ".tar") or files(path)


def indexed(path: Path, labelled: bool = True, progress: Progress | None = None) -> Index:
    """The index of the samples in a file or a folder: from the cache, or made.

    labelled: whether labels are read. `progress(done, total)` is called as files are read, and
    not at all if the cache serves. DataError: there are fewer than two samples, or more than
    2^31; a Parquet file is damaged, lies or is beyond a limit; labels are too many for classes.
    StorageError: the cache cannot be written.
    """
    found = shards(path)
    if not found:
        raise DataError(f"there is no .tar or .parquet file in {path}, nor in a folder of a split")
    key = json.dumps([_LAYOUT, str(path.resolve()), [file[1:] for file in found], labelled])
    folder = cache_folder() / "shards" / hashlib.sha256(key.encode()).hexdigest()[:40]
    known = _known(path, found, folder)
    if known is None:
        with _made(folder) as part:
            _write(path, found, labelled, part, progress)
        known = _known(path, found, folder)
    if known is None:
        raise StorageError(f"the image cache at {folder} does not keep what is written to it")
    return known


def _known(path: Path, found: list[File], folder: Path) -> Index | None:
    """What the cache holds, or None if it holds nothing whole."""
    try:
        about: dict[str, Any] = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        first = np.array(about["first"], np.int64)
        count = int(first[-1])
        spans = np.memmap(folder / "spans", SPAN, "r")
        parts = np.memmap(folder / "parts", PART, "r")
        label = np.memmap(folder / "labels", "<i8", "r") if about["classes"] else None
        whole = len(first) == len(found) + 1 and len(parts) == about["parts"]
        if not whole or len(spans) != count or (label is not None and len(label) != count):
            return None
        return Index(
            path=path,
            files=tuple(found),
            first=first,
            spans=spans,
            parts=parts,
            label=label,
            classes=tuple(map(str, about["classes"])),
            bad=tuple(BadFile(str(name), str(why)) for name, why in about["bad"]),
            ignored=int(about["ignored"]),
            fingerprint=str(about["fingerprint"]),
            folder=folder,
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


class _Rows:
    """Samples on their way to the files of an index.

    known: the number of each label, in the order in which they came. names: of labels that are
    numbers to begin with.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spans = (folder / "spans").open("wb")
        self.codes = (folder / "codes").open("wb")
        self.parts = list[tuple[int, int, int, int, int]]()
        self.count = self.with_label = self.ignored = self.unnamed = 0
        self.bad = list[BadFile]()
        self.known: dict[int | str, int] = {}
        self.names = list[str]()
        self._start, self._size, self._code = array("Q"), array("I"), array("i")

    def leave_out(self, name: str, why: str) -> None:
        if len(self.bad) < NAMED:
            self.bad.append(BadFile(name, why))
        else:
            self.unnamed += 1

    def add(self, start: int, size: int, label: int | str | None) -> None:
        """A sample of the last part."""
        code = -1 if label is None else self.known.setdefault(label, len(self.known))
        self._start.append(start)
        self._size.append(size)
        self._code.append(code)
        if len(self._start) == _ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what was added one by one."""
        part = np.full(len(self._start), len(self.parts) - 1)
        self.extend(part, *map(np.array, (self._start, self._size, self._code)))
        self._start, self._size, self._code = array("Q"), array("I"), array("i")

    def extend(
        self, part: np.ndarray, start: np.ndarray, size: np.ndarray, code: np.ndarray
    ) -> None:
        rows = np.empty(len(start), SPAN)
        rows["start"], rows["size"], rows["part"] = start, size, part
        with storing(self.folder):
            self.spans.write(rows.tobytes())
            self.codes.write(code.astype("<i4").tobytes())
        self.count += len(rows)
        self.with_label += int((code >= 0).sum())
        if self.count > MAX_SAMPLES or len(self.parts) > MAX_SAMPLES:
            raise DataError(f"there are more than {MAX_SAMPLES:,} samples: train on a part of them")

    def close(self) -> None:
        self.spans.close()
        self.codes.close()


def _write(
    path: Path, found: list[File], labelled: bool, folder: Path, progress: Progress | None
) -> None:
    """Write the index of some files into a folder."""
    rows, first = _Rows(folder), [0]
    try:
        tables = found[0].name.lower().endswith(".parquet")
        read = _tables(found, labelled, rows) if tables else _archives(path, found, labelled, rows)
        for done, _ in enumerate(read, 1):
            first.append(rows.count)
            if progress is not None:
                progress(done, len(found))
    finally:
        rows.close()
    if 0 < rows.with_label < rows.count:
        first = _drop_unlabelled(found, folder, rows, first)
    if rows.count < 2:
        form = "as KEY.jpg, KEY.png and the like" if not tables else "as rows that hold their bytes"
        raise DataError(too_few(path, form, rows.count, rows.bad, rows.ignored))
    classes = _write_labels(folder, rows)
    parts = np.array(rows.parts, PART)
    (folder / "parts").write_bytes(parts.tobytes())
    (folder / "codes").unlink()
    digest = hashlib.sha256(json.dumps([[f.name, f.size] for f in found]).encode())
    digest.update(json.dumps([first, classes]).encode() + parts.tobytes())
    for name in ("spans", "labels") if classes else ("spans",):
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    more = [BadFile("...", f"{rows.unnamed:,} more cannot be used.")] if rows.unnamed else []
    about = {
        "first": first,
        "parts": len(parts),
        "classes": classes,
        "bad": [*rows.bad, *more],
        "ignored": rows.ignored,
        "fingerprint": digest.hexdigest(),
    }
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _archives(path: Path, found: list[File], labelled: bool, rows: _Rows) -> Iterator[None]:
    """Add the samples of tar files, and yield after each.

    A file that is damaged ends where that begins, and is named.
    """
    for number, file in enumerate(found):
        before = rows.count
        rows.parts.append((0, file.size, file.size, number, 0))
        try:
            with file.path.open("rb", buffering=0) as raw:
                for sample in samples(Window(raw, file.size), labelled):
                    if isinstance(sample, Sample):
                        rows.add(sample.start, sample.size, sample.label)
                        if len(rows.known) > MAX_CLASSES:
                            raise DataError(
                                f"{path} has more than {MAX_CLASSES:,} different labels, too many "
                                "for classes: write data.labels=false"
                            )
                    elif sample is None:
                        rows.ignored += 1
                    else:
                        rows.leave_out(f"{file.name}: {sample.path}", sample.reason)
            rows.flush()
        except ValueError as error:
            rows.flush()
            told = f"It is damaged after {rows.count - before:,} samples: {error}."
            rows.leave_out(file.name, told)
        except OSError as error:
            raise DataError(f"{file.path} cannot be read: {cause(error)}") from error
        yield


def _tables(found: list[File], labelled: bool, rows: _Rows) -> Iterator[None]:
    """The same of Parquet files; of these, one that is damaged is a DataError."""
    for file in found:
        with opening(file) as opened:
            if opened.metadata.num_rows > file.size:  # labels may be packed to nothing
                raise ValueError(f"{opened.metadata.num_rows:,} rows are more than it can hold")
    columns = columns_of(found)
    labels, rows.names = labels_of(found, columns) if labelled else (None, [])
    numbers = None if labels is None else np.array(labels, np.int32)
    del labels
    row = 0
    for number, file in enumerate(found):
        before = row
        with opening(file) as opened, file.path.open("rb", buffering=0) as raw:
            known = [opened.schema.column(i) for i in range(len(opened.schema.names))]
            column = next(c for c in known if c.path == columns.image)
            if column.max_repetition_level:
                raise ValueError("its images are lists")
            for group in groups(raw, file.size):
                chunk = group.chunks.get(columns.image)
                if chunk is None or chunk.values != group.rows:
                    raise ValueError("its column of images has other rows")
                if group.rows > min(MAX_ROWS, file.size):
                    raise ValueError(f"a group of {group.rows:,} rows is too large")
                rows_at_once(raw, file, chunk)
                for part, start, size in values(raw, file.size, chunk, column.max_definition_level):
                    told = (part.start, part.packed, part.unpacked, number, part.codec)
                    if not rows.parts or rows.parts[-1] != told:
                        rows.parts.append(told)
                    code = np.full(len(start), -1)
                    if numbers is not None:
                        code = numbers[row : row + len(start)]
                    good = (size > 0) & (size <= MAX_FILE)
                    for i in np.flatnonzero(~good)[: NAMED + 1]:
                        why = "The file is empty." if not size[i] else too_big()
                        name = f"{file.name} row {row - before + int(i)}"
                        rows.leave_out(name, _NULL if size[i] < 0 else why)
                    rows.unnamed += max(0, int((~good).sum()) - NAMED - 1)
                    part_of = np.full(int(good.sum()), len(rows.parts) - 1)
                    rows.extend(part_of, start[good], size[good], code[good])
                    row += len(start)
            if row - before != opened.metadata.num_rows:
                raise ValueError(f"{row - before} rows where there should be others")
        yield


def _drop_unlabelled(found: list[File], folder: Path, rows: _Rows, first: list[int]) -> list[int]:
    """Leave out the samples without a label, where others have one."""
    spans, codes = np.memmap(folder / "spans", SPAN, "r"), np.memmap(folder / "codes", "<i4", "r")
    kept = [0]
    with (folder / "spans.new").open("wb") as new, (folder / "codes.new").open("wb") as numbers:
        for file, start, stop in zip(found, first, first[1:], strict=False):
            count = 0
            for at in range(start, stop, _ROWS):
                part = slice(at, min(at + _ROWS, stop))
                good = codes[part] >= 0
                for i in np.flatnonzero(~good).tolist():
                    rows.leave_out(f"{file.name} sample {at - start + i}", _UNLABELLED)
                new.write(spans[part][good].tobytes())
                numbers.write(codes[part][good].tobytes())
                count += int(good.sum())
            kept.append(kept[-1] + count)
    for name in ("spans", "codes"):
        (folder / f"{name}.new").replace(folder / name)
    rows.count = kept[-1]
    return kept


def _write_labels(folder: Path, rows: _Rows) -> list[str]:
    """Write the class of each sample, and return the classes' names; none if all have the same.

    They are in the order that files gave them, else sorted.
    """
    if not rows.with_label:
        return []
    names: list[Any] = rows.names or [*rows.known]
    codes = np.memmap(folder / "codes", "<i4", "r")
    parts = [codes[at : at + _ROWS] for at in range(0, len(codes), _ROWS)]
    chosen = sorted({i for part in parts for i in np.unique(part).tolist()})
    if len(chosen) < 2:  # one class says nothing
        return []
    if rows.known:
        if len({isinstance(names[i], str) for i in chosen}) > 1:
            raise DataError("some labels are text and others are numbers: write data.labels=false")
        chosen.sort(key=lambda i: names[i])
    place = np.zeros(len(names), "<i8")
    place[chosen] = np.arange(len(chosen))
    with (folder / "labels").open("wb") as file:
        for part in parts:
            file.write(place[part].tobytes())
    return [str(names[i]) for i in chosen]


@contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """A folder to fill, which is given its name at the end: it is there whole or not at all."""
    part = folder.with_name(f".tmp-{uuid.uuid4().hex}")
    with storing(folder.parent):
        part.mkdir(parents=True)
    try:
        with storing(folder.parent):
            yield part
            for file in part.iterdir():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            if folder.exists():  # it is damaged
                folder.rename(part / "before")
            try:
                part.rename(folder)
            except OSError:
                if not (folder / "about.json").is_file():  # else another process was quicker
                    raise
            shutil.rmtree(folder / "before", ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)
