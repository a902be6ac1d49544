"""Images in Parquet files, as the Hugging Face hub keeps them: one row an image.

    image   struct {bytes: binary, path: string}, or binary    the content of an image's file
    label   whole numbers or text                              its class, if there is one

The image column is the one that the schema's `huggingface` metadata calls an image; else one
named image, img, picture or photo; else the only one of its type. The label column is the one
that the metadata calls a `ClassLabel`, else the first with a name of `LABELS`. Other columns are
ignored, and never opened.

    path        a file, or a folder with files in it, in `data` below it, or below these in
                folders named as splits; else the only sub-folder that is such a folder
    splits      files or their folders named like train-00000-of-00003 and test or validation,
                if both are there
    names       `train.parquet row 17`, the first row being 0
    classes     in the order of the metadata's names, else sorted; those without an image go
    no label    a row whose label is null, or below 0 where there are names, is left out and named;
                if all rows are like that, there are no classes
    metadata    what cannot be read of it counts as not there, and so do names that any other label
                lacks: they are then those of something else, perhaps of numbers from 0, not 1

These are files from strangers. What a file claims is held against limits before it is read, and
what its pages unpack to before they are unpacked, see `ornstein.data.pages`. They are read a
page and a few rows at a time. A file that cannot be as it says is an error; an image that
cannot be read is left out and named as in a folder, and pixels are kept in the same cache.
"""

from __future__ import annotations

import json
import logging
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

from ornstein.data.decode import Unreadable, cause
from ornstein.data.decoders import Item
from ornstein.data.images import BLOCK, HELD_OUT, TRAIN, Images, Progress, Told, gather, shown
from ornstein.data.info import Fit
from ornstein.data.pages import DELTA_BYTE_ARRAY, Chunk, groups, pages
from ornstein.errors import DataError, OrnsteinError, clip, printable, quote

IMAGES = ("image", "img", "picture", "photo")
LABELS = ("label", "labels", "class", "fine_label", "coarse_label", "category", "target", "digit")

MAX_FILE = 64 << 30
"""The largest file, in bytes."""

MAX_ROWS = 10_000_000
"""The most rows of all files together."""

MAX_GROUP = 8 << 30
"""What a column of a row group may unpack to, in bytes, by the footer and by its pages."""

MAX_PAGE = 1 << 30
"""What a page may unpack to, in bytes."""

MAX_RATIO = 20
"""How many times its size a page may unpack to if that is above 64 MiB: images are packed."""

MAX_CLASSES = 10_000
"""The most values that a column of labels may have."""

LARGE = 8 << 30
"""Of more bytes than these, it is said that they could stay where they are."""

_FREE = 64 << 20  # bytes that any page may unpack to
_AT_ONCE = 64 << 20  # bytes that a few rows take; they are also limited in number
_TEXT = 4 << 20  # characters of the metadata
_NAME = 200  # characters of a class's name


class File(NamedTuple):
    """A file with many images. name: relative to the folder, parted by `/`. mtime in ns."""

    path: Path
    name: str
    size: int
    mtime: int
    mode: int


class Columns(NamedTuple):
    """The columns that are read. image: dotted, where the bytes are. names: of the classes, or
    () if nothing names them."""

    image: str
    label: str | None
    names: tuple[str, ...]


def read_parquet(
    path: Path,
    size: int | None = None,
    channels: int | None = None,
    progress: Progress | None = None,
    fit: Fit = "crop",
) -> Images:
    """The images in a Parquet file, or in all of a folder; for the others see `read_folder`.

    DataError: pyarrow is missing; a file is damaged, lies or is beyond a limit; it has no column
    of images, or its columns differ from those of the first; fewer than two images are readable.
    StorageError: the cache cannot be written.
    """
    found = files(path)
    if not found:
        raise DataError(
            f"there is no .parquet file in {path}, nor in a folder data, train or test below it"
        )
    held_out = sides(found, path)
    counts = [_count(file) for file in found]
    total = sum(counts)
    if total > MAX_ROWS:
        raise DataError(f"{path} has {total:,} rows: the limit is {MAX_ROWS:,}")

    @cache  # asked only if the cache of images does not serve
    def labelled() -> tuple[Columns, list[int] | None, list[str]]:
        size = sum(file.size for file in found)
        if size > LARGE:
            logging.getLogger(__name__).warning(
                "the pixels of %s (%d GiB) will be kept in the cache; data.kind=shards reads them "
                "where they are, as they are needed",
                *(printable(str(path)), size >> 30),
            )
        columns = columns_of(found)
        return columns, *labels_of(found, columns)

    def blocks() -> Iterator[list[Item]]:
        columns, label, _ = labelled()
        number = 0
        for file in found:
            first = number
            for values in _values(file, columns.image, BLOCK):
                block = []
                for value in values:
                    named = label is None or label[number] >= 0
                    block.append(_item(f"{file.name} row {number - first}", value, named))
                    number += 1
                yield block

    def told(good: list[int]) -> Told:
        _, label, names = labelled()
        outside = None
        if held_out is not None:
            side = [out for out, n in zip(held_out, counts, strict=True) for _ in range(n)]
            outside = [side[i] for i in good]
        used = sorted({label[i] for i in good}) if label else []
        if label is None or len(used) < 2:  # one class says nothing
            return Told(None, [], outside)
        place = {number: i for i, number in enumerate(used)}
        return Told([place[label[i]] for i in good], [names[i] for i in used], outside)

    key = ["parquet", str(path.resolve()), [file[1:] for file in found]]
    form = "as rows that hold their bytes"
    return gather(path, key, total, blocks, told, size, channels, progress, fit, form=form)


def files(path: Path, suffix: str = ".parquet") -> list[File]:
    """The files, by default of Parquet, that a path means, sorted by name: itself, or those of a
    folder.

    These are the files in it, in `data` below it, and in folders of either that are named as
    splits. Where there are none, the only sub-folder that has such files stands for the folder.
    DataError: the path does not exist or cannot be read, or several sub-folders have files.
    """
    try:
        if path.is_file():
            return [_file(path, path.name)]
        if not path.exists():
            raise DataError(f"{path} does not exist: put it back, or name other data")
        if not path.is_dir():
            raise DataError(f"{path} is neither a folder nor an ordinary file: name other data")
        found = _shards(path, suffix)
        inner = [] if found else list(below(path, 1, suffix))
        if len(inner) > 1:
            which = ", ".join(quote(shown(folder.name)) for folder in inner[:5])
            which += f" and {len(inner) - 5} more" if len(inner) > 5 else ""
            raise DataError(
                f"{path} has {suffix} files in several folders ({which}): name one of them, such "
                f"as {inner[0]}"
            )
        return _shards(inner[0], suffix) if inner else found
    except OSError as error:
        raise DataError(f"{path} cannot be read: {cause(error)}") from error


def below(path: Path, levels: int, suffix: str = ".parquet") -> Iterator[Path]:
    """The folders, at most so many levels below one, that could be named for such files.

    None of them lies in another; what cannot be looked into is passed over.
    """
    with suppress(OSError):
        for folder in _folders(path):
            with suppress(OSError):
                if _shards(folder, suffix):
                    yield folder
                elif levels > 1 and not folder.is_symlink():  # links may form loops
                    yield from below(folder, levels - 1, suffix)


def _folders(path: Path) -> list[Path]:
    return [p for p in sorted(path.iterdir()) if not p.name.startswith(".") and p.is_dir()]


def _shards(folder: Path, suffix: str) -> list[File]:
    """The files of a folder, see `files`."""
    places = [place for place in (folder, folder / "data") if place.is_dir()]
    splits = [inner for place in places for inner in _folders(place)]
    places += [inner for inner in splits if _words(inner.name) & (TRAIN | HELD_OUT)]
    found = [
        _file(entry, entry.relative_to(folder).as_posix())
        for place in places
        for entry in place.iterdir()
        if entry.suffix.lower() == suffix and not entry.name.startswith(".")
    ]
    return sorted((f for f in found if stat.S_ISREG(f.mode)), key=lambda file: file.name)


def _file(path: Path, name: str) -> File:
    try:
        status = path.stat()
    except FileNotFoundError:  # a link to nowhere
        return File(path, name, 0, 0, 0)
    return File(path, shown(name), status.st_size, status.st_mtime_ns, status.st_mode)


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z]+", name.lower()))


def sides(found: list[File], path: Path) -> list[bool] | None:
    """Which files are held out, by their names and their folders'; None if these give no split."""
    words = [_words(file.name) for file in found]
    train, rest = ([bool(kind & w) for w in words] for kind in (TRAIN, HELD_OUT))
    if not (any(train) and any(rest)):
        return None
    for file, *sides in zip(found, train, rest, strict=True):
        if sum(sides) != 1:
            raise DataError(
                f"{path} has files for training and for testing, and {quote(file.name)} beside "
                "them: move it away"
            )
    return rest


@contextmanager
def opening(file: File) -> Iterator[Any]:
    """A file's reader; whatever goes wrong with it is a DataError."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataError(
            "Parquet files are read with pyarrow, which is not installed: "
            "pip install 'ornstein[parquet]'"
        ) from error
    if file.size > MAX_FILE:
        raise DataError(f"{file.path} is larger than {MAX_FILE >> 30} GiB: split it")
    try:
        # Without the first two, a whole column of a row group is kept in memory.
        with ParquetFile(
            file.path,
            pre_buffer=False,
            buffer_size=1 << 20,
            page_checksum_verification=True,
            thrift_string_size_limit=16 << 20,
            thrift_container_size_limit=100_000,
        ) as opened:
            yield opened
    except (OrnsteinError, MemoryError):
        raise
    except PermissionError as error:
        raise DataError(f"{file.path} may not be read: permission denied") from error
    except Exception as error:  # a damaged file makes its reader raise anything
        reason = printable(cause(error))
        raise DataError(f"{file.path} is damaged or no Parquet file: {reason}") from error


def _count(file: File) -> int:
    """How many rows a file has, by its footer."""
    with opening(file) as opened:
        count = int(opened.metadata.num_rows)
        if count < 0:
            raise ValueError(f"it claims to have {count} rows")
        return count


def columns_of(found: list[File]) -> Columns:
    """The columns to read, the same in all files."""
    first, *others = found
    columns = _columns_in(first)
    for file in others:
        if _columns_in(file) != columns:
            raise DataError(
                f"{file.path} has other columns or classes than {first.name}: "
                "give the files of one data set"
            )
    return columns


def _columns_in(file: File) -> Columns:
    from pyarrow import types

    with opening(file) as opened:
        schema = opened.schema_arrow
        features = _features(schema.metadata or {})
        images, labels = {}, []
        for field in schema:
            if types.is_struct(field.type):
                inner = [field.type.field(i) for i in range(field.type.num_fields)]
                if [_is_bytes(child.type) for child in inner if child.name == "bytes"] == [True]:
                    images[field.name] = f"{field.name}.bytes"
            elif _is_bytes(field.type):
                images[field.name] = field.name
            elif _is_class(field.type):
                labels.append(field.name)
        twice = {field.name for field in schema if schema.names.count(field.name) > 1}
        declared = [name for name in images if features.get(name, {}).get("_type") == "Image"]
        structs = [name for name in images if images[name] != name]
        chosen = _preferred(declared, IMAGES) or _preferred(list(images), IMAGES, named=True)
        chosen = chosen or _preferred(structs, ()) or _preferred(list(images), ())
        if chosen is None or chosen in twice:
            raise DataError(_no_images(file, schema, list(images), chosen))
        classes = [name for name in labels if features.get(name, {}).get("_type") == "ClassLabel"]
        label = _preferred(classes, LABELS) or _preferred(labels, LABELS, named=True)
        if label in twice:
            raise DataError(f"{file.path} has two columns named {quote(label or '')}: keep one")
        names = _class_names(features.get(label or "", {}))
        return Columns(images[chosen], label, names)


def _preferred(names: list[str], known: tuple[str, ...], named: bool = False) -> str | None:
    """The name that comes first in `known`; else the only one, unless it has to be a known one."""
    lower = {name.lower(): name for name in reversed(names)}
    for name in known:
        if name in lower:
            return lower[name]
    return names[0] if len(names) == 1 and not named else None


def _no_images(file: File, schema: Any, several: list[str], twice: str | None) -> str:
    if twice is not None:
        return f"{file.path} has two columns named {quote(twice)}: keep one"
    if several:
        which = ", ".join(map(quote, several[:5]))
        return f"{file.path} has several columns of bytes ({which}): name that of images 'image'"
    have = ", ".join(f"{quote(field.name)} of {clip(str(field.type))}" for field in schema)
    return (
        f"{file.path} has no column of images, which are a struct with `bytes` or binary; it has "
        f"{printable(clip(have, 200))}"
    )


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_class(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        types.is_integer(kind)
        or types.is_boolean(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
    )


def _features(metadata: dict[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """What the metadata of Hugging Face says of each column; nothing if it cannot be read."""
    text = metadata.get(b"huggingface", b"{}")
    try:
        about = json.loads(text) if len(text) <= _TEXT else {}
        features = about.get("info", {}).get("features", {})
        return {name: what for name, what in features.items() if isinstance(what, dict)}
    except (ValueError, AttributeError, RecursionError):  # the images are sound without it
        return {}


def _class_names(feature: dict[str, Any]) -> tuple[str, ...]:
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    if not isinstance(names, list) or len(names) > MAX_CLASSES:
        return ()
    if not all(isinstance(name, str) for name in names):
        return ()
    # JSON may hold halves of characters, which are no text.
    return tuple(clip(name.encode("utf-8", "replace").decode(), _NAME) for name in names)


def labels_of(found: list[File], columns: Columns) -> tuple[list[int] | None, list[str]]:
    """The class of every row, -1 for none, and the names of the classes; None if no row has one."""
    if columns.label is None:
        return None, []
    values: list[Any] = []
    known: set[Any] = set()
    for file in found:
        for part in _values(file, columns.label, 1 << 16):
            values += part
            known.update(part)
            if len(known) > MAX_CLASSES + 1:  # null is no class
                raise DataError(
                    f"the column {quote(columns.label)} of {file.path} has more than "
                    f"{MAX_CLASSES:,} values, too many for classes: rename or remove it"
                )
    known.discard(None)
    if columns.names:  # a number below 0 is no class then
        known = {value for value in known if isinstance(value, str) or value >= 0}
    names = list(columns.names)
    # What stands for a name is its number, or itself.
    place = {value: i for i, name in enumerate(names) for value in (i, name)}
    if not names or known - place.keys():
        if len({isinstance(value, str) for value in known}) > 1:
            raise DataError(
                f"the column {quote(columns.label)} is text in some files beside {found[0].path} "
                "and numbers in others: give the files of one data set"
            )
        names = [clip(str(value), _NAME) for value in sorted(known)]
        place = {value: i for i, value in enumerate(sorted(known))}
    numbers = [place.get(value, -1) for value in values]
    return (numbers, names) if max(numbers, default=-1) >= 0 else (None, [])


def _values(file: File, column: str, most: int) -> Iterator[list[Any]]:
    """The values of a column, at most `most` rows at a time, and fewer if they are large."""
    with opening(file) as opened, file.path.open("rb") as raw:
        total = 0
        for number, group in enumerate(groups(raw, file.size)):
            chunk = group.chunks.get(column)
            if chunk is None or chunk.values != group.rows:
                raise ValueError(f"its column {quote(column)} has other rows")
            rows = min(most, rows_at_once(raw, file, chunk))
            seen = 0
            for batch in opened.iter_batches(rows, [number], [column], use_threads=False):
                values = batch.column(0).to_pylist()
                seen += len(values)
                yield [value["bytes"] if isinstance(value, dict) else value for value in values]
            if seen != group.rows:
                raise ValueError(f"{seen} rows where {group.rows} should be")
            total += seen
        if total != opened.metadata.num_rows:
            raise ValueError(f"{total} rows where {opened.metadata.num_rows} should be")


def rows_at_once(raw: IO[bytes], file: File, chunk: Chunk) -> int:
    """How many rows of a column may be read at once. Raises what its pages give reason for."""
    values, unpacked, largest = 0, 0, 1
    for page in pages(raw, chunk):
        if page.encoding == DELTA_BYTE_ARRAY:
            raise DataError(
                f"{file.path} is packed with DELTA_BYTE_ARRAY, which may unpack to any size: "
                "save it with plain or dictionary encoding"
            )
        if page.unpacked > MAX_PAGE or page.unpacked > max(_FREE, MAX_RATIO * page.packed):
            raise DataError(
                f"{file.path} would unpack {page.packed:,} bytes to {page.unpacked:,}: "
                "save it with smaller row groups and without compression"
            )
        unpacked += page.unpacked
        values += 0 if page.dictionary else page.values
        # Every row may name the largest entry of a dictionary.
        share = 1 if page.dictionary else max(1, page.values)
        largest = max(largest, page.unpacked // share)
    if max(unpacked, chunk.unpacked) > MAX_GROUP:
        raise DataError(
            f"a row group of {file.path} takes more than {MAX_GROUP >> 30} GiB: "
            "save it with smaller row groups"
        )
    if values != chunk.values:
        raise ValueError(f"{values} values where {chunk.values} should be")
    return max(1, _AT_ONCE // largest)


def _item(name: str, value: Any, named: bool) -> Item:
    if not named:
        return Item(name, 0, Unreadable("Its label is missing, or names no class."))
    if not isinstance(value, bytes):
        return Item(name, 0, Unreadable("It is null: the row holds no image."))
    return Item(name, len(value), value)
