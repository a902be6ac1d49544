"""Arrays in a folder of shards: how codes of a data set are kept, and handed from run to run.

    folder/  shard-00001.safetensors ...    one tensor each, x [n, *shape]
             names.jsonl                    one name a row, where rows have any
             manifest.json                  what they are of, and the hashes of all files

All of it is written to a hidden folder beside, each file flushed, the manifest last, and only then
is the folder given its name: it is there whole or not at all. A shard is written when so many rows
have come, so data of any size passes through the memory of one. Reading maps the shards into memory
and checks each against its SHA-256 first, since safetensors does not notice a flipped bit.

What the rows are of is the caller's `about`, a JSON object: the hash of a codec's weights, of its
data. Whoever reads can say what it must be, and is told which of it differs. The form of a shard:
https://huggingface.co/docs/safetensors (length of a header, the header as JSON, the numbers).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ornstein import fsops
from ornstein.errors import DataError, StorageError, clip, printable

FORMAT = 1
SHARD = 32 << 20
"""About how many bytes of numbers a shard holds, unless a caller says how many rows."""

MAX_HEADER = 1 << 16
"""The most bytes of a shard's header; ours take a hundred."""

OPEN = 128
"""How many shards are mapped at once: each takes a file handle, of which a process has 1024."""

OLD = 24 * 3600
"""Seconds after which an unfinished folder is another's no more, but one that a kill has left."""

_MANIFEST, _NAMES = "manifest.json", "names.jsonl"
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2"} | {
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
_TYPE_NAMES = {np.dtype(code): name for name, code in _TYPES.items()}


class _Shard(NamedTuple):
    path: Path
    rows: int
    start: int  # of the numbers in the file, in bytes


class Shards:
    """The rows of a folder as one array [N, *shape] that stays in its files.

    `x[rows]` for a slice or for int64 numbers of rows, each in −N ... N − 1, is an array in memory.
    names: of the rows, where they have any.
    """

    def __init__(
        self, shards: Sequence[_Shard], shape: tuple[int, ...], dtype: np.dtype[Any], names: Path
    ) -> None:
        self._starts = np.cumsum([0, *(shard.rows for shard in shards)])
        self._names = names
        self.shape = (int(self._starts[-1]), *shape)
        self.dtype = dtype

        @lru_cache(maxsize=OPEN)
        def mapped(number: int) -> np.ndarray:
            path, rows, start = shards[number]
            try:
                return np.memmap(path, dtype, "r", start, (rows, *shape))
            except (OSError, ValueError) as error:
                raise DataError(f"{path} has changed since it was opened; make it anew") from error

        self._mapped = mapped

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray | slice, /) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.where(rows < 0, rows + len(self), rows)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows must be below {len(self)}, got {rows.max()}")
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        place = np.searchsorted(self._starts, rows, "right") - 1
        for number in np.unique(place):
            here = place == number
            found[here] = self._mapped(int(number))[rows[here] - self._starts[number]]
        return found

    def names(self) -> Iterator[str]:
        """The names of the rows in order; none where they have none. Raises: DataError."""
        if not self._names.exists():
            return
        try:
            with self._names.open(encoding="utf-8") as file:
                for line in file:
                    yield str(json.loads(line))
        except (OSError, ValueError) as error:
            raise DataError(f"{self._names} cannot be read ({error})") from error


def write(
    folder: Path,
    about: Mapping[str, Any],
    parts: Iterable[np.ndarray],
    rows_per_shard: int | None = None,
    names: Iterable[str] = (),
    option: str = "ORNSTEIN_CACHE",
) -> None:
    """Keep the rows of `parts`, arrays [n, *shape] of any n, in a new folder.

    about: what they are of, JSON. rows_per_shard: as many as take `SHARD` bytes unless given.
    names: one for each row, or none. option: by which a user would name another folder.
    Where another process has made a folder of the same `about` meanwhile, its is left.
    Raises: StorageError where it cannot be written or something else has this name; DataError where
    no row comes. What `parts` raises goes through, and nothing is left of it.
    """
    about = _as_read(about)
    fsops.make_folder(folder.parent, option)
    sweep(folder)
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
    fsops.make_inside(temporary, option)
    try:
        _fill(temporary, about, parts, rows_per_shard, names, option, folder)
        fsops.flush_folder(temporary)
        try:
            fsops.rename(temporary, folder, option)
        except StorageError:
            manifest = _manifest(folder) if (folder / _MANIFEST).exists() else None
            if manifest is None or manifest["about"] != about:
                raise
            fsops.remove(temporary)
    except BaseException:
        with contextlib.suppress(StorageError):
            fsops.remove(temporary)
        raise


def read(folder: Path, about: Mapping[str, Any] | None = None) -> tuple[Shards, dict[str, Any]]:
    """The rows that `write` has kept in a folder, and what they are of.

    about: what they must be of; None takes anything. Every byte is checked.
    Raises: DataError for a folder that is none of ours, is of something else, or is damaged; it
    names what differs, or the shard.
    """
    manifest = _manifest(folder)
    found: dict[str, Any] = manifest["about"]
    if about is not None and (different := differences(found, _as_read(about))):
        raise DataError(
            f"{folder} is stale: it was made with {'; '.join(different)}; remove the folder, and "
            "it is made anew"
        )
    dtype, shape = np.dtype(_TYPES[manifest["dtype"]]), tuple(manifest["shape"])
    shards = [
        _checked(folder / _file(number), entry, manifest["dtype"], shape)
        for number, entry in enumerate(manifest["shards"])
    ]
    names = folder / _NAMES
    if manifest["names"] is not None:
        _check_bytes(names, manifest["names"])
    return Shards(shards, shape, dtype, names), found


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any], of: str = "") -> list[str]:
    """`codec a1b2…, not c3d4…` for each entry that is not as wanted, at any depth."""
    listed = []
    for key in sorted({*found, *wanted}):
        own, other = found.get(key), wanted.get(key)
        if isinstance(own, Mapping) and isinstance(other, Mapping):
            listed += differences(own, other, f"{of}{key}.")
        elif own != other:
            listed.append(f"{of}{printable(key)} {_shown(own)}, not {_shown(other)}")
    return listed


def _as_read(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a JSON file gives back: lists for tuples."""
    found: dict[str, Any] = json.loads(json.dumps(dict(about)))
    return found


def _shown(value: Any) -> str:
    return clip(printable(value if isinstance(value, str) else json.dumps(value)), 24)


def _fill(
    temporary: Path,
    about: dict[str, Any],
    parts: Iterable[np.ndarray],
    rows_per_shard: int | None,
    names: Iterable[str],
    option: str,
    told: Path,
) -> None:
    """Write all files of a folder."""
    from safetensors.numpy import save

    shards: list[dict[str, Any]] = []
    dtype, shape, count = "", (), 0
    for number, x in enumerate(_gathered(parts, rows_per_shard)):
        dtype, shape, count = _TYPE_NAMES[x.dtype], x.shape[1:], count + len(x)
        content = save({"x": x})
        fsops.write(temporary / _file(number), content, told, option)
        shards.append({"rows": len(x), **_entry(content)})
    if not shards:
        raise DataError(f"there is nothing to write to {told}: the data have no samples")
    named = _write_names(temporary / _NAMES, names)
    if named is not None and named.pop("rows") != count:
        raise ValueError(f"there are other names than the {count} rows")
    manifest = {
        "format": FORMAT,
        "about": about,
        "dtype": dtype,
        "shape": list(shape),
        "names": named,
        "shards": shards,
    }
    manifest["digest"] = _digest(manifest)
    content = json.dumps(manifest, indent=1).encode()
    if len(content) > fsops.MAX_JSON:
        raise ValueError(f"{len(shards)} shards are too many; ask for more rows in each")
    fsops.write(temporary / _MANIFEST, content, told, option)


def _write_names(path: Path, names: Iterable[str]) -> dict[str, Any] | None:
    """Write a line for each name, some thousand at a time; None where there are none."""
    waiting = iter(names)
    some = list(islice(waiting, 4096))
    if not some:
        return None
    rows = size = 0
    digest = hashlib.sha256()
    handle = fsops.open_to_append(path)
    try:
        while some:
            lines = "".join(json.dumps(name) + "\n" for name in some).encode()
            fsops.append(handle, lines, path)
            digest.update(lines)
            rows, size = rows + len(some), size + len(lines)
            some = list(islice(waiting, 4096))
        fsops.flush(handle, path)
    finally:
        os.close(handle)
    return {"rows": rows, "bytes": size, "sha256": digest.hexdigest()}


def _gathered(parts: Iterable[np.ndarray], rows_per_shard: int | None) -> Iterator[np.ndarray]:
    """The same rows in arrays of `rows_per_shard` rows; the last has what is left."""
    held: list[np.ndarray] = []
    count, like = 0, None
    for part in parts:
        if not len(part):
            continue
        if like is None:
            like = part[:1]
            each = rows_per_shard or max(1, SHARD // max(1, like.nbytes))
        if part.shape[1:] != like.shape[1:] or part.dtype != like.dtype:
            raise ValueError(
                f"a part has rows {part.dtype} {list(part.shape[1:])}, the first had "
                f"{like.dtype} {list(like.shape[1:])}"
            )
        while count + len(part) >= each:
            taken = each - count
            yield np.concatenate([*held, part[:taken]])
            held, count, part = [], 0, part[taken:]
        if len(part):
            held.append(part)
            count += len(part)
    if held:
        yield np.concatenate(held)


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, each entry of its form. Raises: DataError."""
    path = folder / _MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder} holds no codes: it has no {_MANIFEST}; name a folder that "
            "`ornstein encode` has written"
        )
    try:
        manifest: dict[str, Any] = json.loads(fsops.small(path))
        digest = manifest.pop("digest")
        sound = digest == _digest(manifest)
        if sound and manifest["format"] > FORMAT:
            raise DataError(
                f"{path} was written by a newer version (format {manifest['format']}, this one "
                f"reads {FORMAT}); upgrade ornstein"
            )
        sizes = [*manifest["shape"], *(s["rows"] for s in manifest["shards"])]
        sizes += [s["bytes"] for s in manifest["shards"]]
        sound &= all(type(size) is int and size > 0 for size in sizes)
        sound &= manifest["dtype"] in _TYPES and len(manifest["shards"]) > 0
        sound &= isinstance(manifest["about"], dict) and "names" in manifest
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise DataError(f"{path} is damaged; remove {folder}, and make it anew")
    return manifest


def _checked(path: Path, entry: dict[str, Any], dtype: str, shape: tuple[int, ...]) -> _Shard:
    """A shard whose every byte is as the manifest says. Raises: DataError."""
    _check_bytes(path, entry)
    size = entry["rows"] * math.prod(shape) * np.dtype(_TYPES[dtype]).itemsize
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(length) if length <= MAX_HEADER else b""
    try:
        x = json.loads(raw)["x"]
        found = (x["dtype"], x["shape"], x["data_offsets"])
    except (ValueError, LookupError, TypeError, RecursionError):
        found = ("", [], [])
    if found != (dtype, [entry["rows"], *shape], [0, size]) or 8 + length + size != entry["bytes"]:
        raise DataError(f"{path} does not hold what {_MANIFEST} says; {_remedy(path)}")
    return _Shard(path, entry["rows"], 8 + length)


def _check_bytes(path: Path, entry: dict[str, Any]) -> None:
    """Raises: DataError where a file is not the one that was written."""
    try:
        if not path.is_file():
            raise DataError(f"{path} is missing; {_remedy(path)}")
        sound = path.stat().st_size == entry["bytes"]
        if sound:
            with path.open("rb") as file:
                sound = hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not sound:
        raise DataError(f"{path} is damaged: it is not as it was written; {_remedy(path)}")


def _remedy(path: Path) -> str:
    return f"remove {path.parent}, and make it anew"


def sweep(folder: Path) -> None:
    """Remove what a killed process has left of a folder that it was making, long ago."""
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):
        with contextlib.suppress(OSError, StorageError):
            if time.time() - left.stat().st_mtime > OLD:
                fsops.remove(left)


def _file(number: int) -> str:
    return f"shard-{number + 1:05d}.safetensors"


def _entry(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
