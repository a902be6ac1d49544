"""A folder of images, as a person would see them, in one array of a common size.

An image is what its content says, whatever its name: JPEG, PNG, WebP, BMP, TIFF or GIF (first
frame). How it is read, and when it is refused, is told in `ornstein.data.decode`; this is done in
processes of their own, see `ornstein.data.decoders`.

A file that cannot be read is left out and named, with the reason; nothing in the folder is ever
changed. Decoded pixels are kept in a cache, so that the next start takes no decoding:

    <cache>/images/<key>.u8     uint8 [N, C, H, W]
    <cache>/images/<key>.json   names, labels, classes, bad files, fingerprint
    <cache>/images/<key>.size   the (H, W) that was chosen where none was asked for

where <cache> is $ORNSTEIN_CACHE, else $XDG_CACHE_HOME/ornstein, else ~/.cache/ornstein, and the
key is a hash of the folder, the settings and every file's name, size, mode and time of change.
The index is written after the pixels and only a pair that fits is used; pixels of one size are
kept once, whether it was asked for or chosen. The cache is not limited in size: its files, and
what begins with `.tmp-` after a crash, may be deleted whenever no run reads them.
"""

import hashlib
import json
import os
import stat
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL

from ornstein.data.decode import READABLE, Unreadable, cause
from ornstein.data.decoders import Ask, Item, Job, decoders
from ornstein.data.info import BadFile, Fit, Originals, originals
from ornstein.errors import DataError, StorageError

READ = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib"}
    | {".tif", ".tiff", ".gif"}
)
"""The endings of the names of files that can be read."""

# Images to a person: they are tried by content too, and named if they cannot be read.
_OTHER = frozenset(
    {".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".tga", ".ico", ".exr"}
    | {".ppm", ".pgm", ".pbm"}
)
SUFFIXES = READ | _OTHER
"""The endings of file names that are looked at; other files are ignored, and counted."""

BLOCK = 256
"""How many images are listed at a time, which bounds what waits in memory."""

COMMON = 10
"""How many of the most common sizes are remembered."""

TRAIN = frozenset({"train", "training"})
HELD_OUT = frozenset({"test", "testing", "val", "valid", "validation"})

_LAYOUT = 4  # of the cache; another number means another way of reading
Progress = Callable[[int, int], None]


class File(NamedTuple):
    """A file with an image's name. path: relative to the folder, parted by `/`. mtime in ns."""

    path: str
    size: int
    mtime: int
    mode: int


Blocks = Callable[[], Iterable[Sequence[Item]]]
"""Items, at most `BLOCK` at a time; the same ones whenever it is called."""


class Told(NamedTuple):
    """What is known of N images besides their pixels.

    label: the number of each one's class, or None. held_out: whether each is, or None where no
    split is given.
    """

    label: list[int] | None
    classes: list[str]
    held_out: list[bool] | None


class Images(NamedTuple):
    """Images of one size.

    x: uint8 [N, C, H, W], memory-mapped, read-only. files: N names, such as relative paths.
    label: int64 [N] or None. held_out: bool [N] if there are splits of its own, else None.
    bad: what was left out, by name. ignored: how many files are no images by their names.
    originals: the sizes that the N images had before they were fitted. common: the most common
    of these, and how many images had each.
    """

    x: np.ndarray
    files: tuple[str, ...]
    label: np.ndarray | None
    classes: tuple[str, ...]
    held_out: np.ndarray | None
    bad: tuple[BadFile, ...]
    ignored: int
    fingerprint: str
    originals: Originals
    common: tuple[tuple[tuple[int, int], int], ...]


def read_folder(
    root: Path,
    size: int | None = None,
    channels: int | None = None,
    progress: Progress | None = None,
    fit: Fit = "crop",
) -> Images:
    """All images below `root`, `size` × `size` pixels with 1 or 3 channels.

    size None: if all images share one size of at most 64 × 64, no side more than twice the
    other, that size; else a square of the short side that nine images in ten reach, a multiple
    of 4 from 8 to 64. channels None: 1 if every pixel of every image is grey, else 3.

    Classes are the sub-folders of the first level that hold images, if there are at least two
    and no image lies beside them. If the sub-folders are named train and test (or val, valid,
    validation), they are splits and the classes are looked for below them; if all the folders
    below the sub-folders are named so, the splits are those, and the classes above them.

    `progress(done, total)` is called as files are decoded, and not at all if the cache serves.
    DataError: no folder, or fewer than two readable images. StorageError: the cache cannot be
    written.
    """
    if not root.is_dir():
        raise DataError(f"{root} {'is not a folder' if root.exists() else 'does not exist'}")
    files, missed, ignored = scan(root)
    level = _split_level(files, root)

    def blocks() -> Iterator[list[Item]]:
        for start in range(0, len(files), BLOCK):
            part = files[start : start + BLOCK]
            yield [Item(file.path, file.size, root / file.path) for file in part]

    def told(good: list[int]) -> Told:
        return _places([files[i].path for i in good], level)

    key = [str(root.resolve()), files, missed]
    return gather(
        root, key, len(files), blocks, told, size, channels, progress, fit, missed, ignored
    )


def gather(
    where: Path,
    key: Sequence[Any],
    total: int,
    blocks: Blocks,
    told: Callable[[list[int]], Told],
    size: int | None = None,
    channels: int | None = None,
    progress: Progress | None = None,
    fit: Fit = "crop",
    missed: Sequence[BadFile] = (),
    ignored: int = 0,
    form: str = f"as {READABLE} files",
) -> Images:
    """The images of `blocks`, `total` of them, in one array: from the cache if it has them.

    where: the folder or file, for messages. key: JSON that tells these images from any others.
    told: asked about the items with these numbers, once it is known which are good. missed: what
    is bad besides. form: how images are kept, for messages. size, channels, progress, fit and
    errors: see `read_folder`.
    """
    if total < 2:
        raise DataError(too_few(where, form, total, missed, ignored))
    cache = cache_folder() / "images"
    listing = json.dumps([_LAYOUT, PIL.__version__, channels, fit, *key])
    note = cache / f"{_digest(listing)}.size"
    with decoders() as ask:
        noted, lost = (size, size) if size else _noted(note), dict[int, str]()
        if noted is None:
            sizes, lost = _sizes(ask, blocks())
        shape = noted or common_size(sizes)
        stem = _digest(f"{shape} {listing}")
        pixels, index = cache / f"{stem}.u8", cache / f"{stem}.json"
        known = _cached(pixels, index, ignored)
        if known is None:
            job = Job(shape, channels or 3, fit)
            with stored(pixels) as part:
                found = _decode_all(ask, blocks, total, job, channels is None, lost, part, progress)
                entry = _entry(where, form, found, told, fit, missed, ignored)
            with stored(index) as part, storing(cache):
                part.write_text(json.dumps(entry), encoding="utf-8")
            known = _cached(pixels, index, ignored)
    if known is None:
        raise StorageError(f"the image cache at {cache} does not keep what is written to it")
    if noted is None:
        with stored(note) as part, storing(cache):
            part.write_text(json.dumps(shape), encoding="utf-8")
    return known


def cache_folder() -> Path:
    """Where decoded data is kept: $ORNSTEIN_CACHE, $XDG_CACHE_HOME/ornstein or ~/.cache."""
    own = os.environ.get("ORNSTEIN_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "ornstein"


def walk(root: Path) -> Iterator[File | BadFile | None]:
    """What is below `root`: files named like images, those out of reach, None for any other.

    Hidden names and folders of runs are passed over. Links are followed, but no folder is entered
    twice, nor one that holds `root`, so that loops end; real folders come before linked ones.
    """
    seen = {_identity(folder) for folder in root.resolve().parents}
    real, linked = [""], list[str]()
    while real or linked:
        folder = real.pop() if real else linked.pop(0)
        try:
            identity = _identity(root / folder)
            if identity in seen:
                continue
            seen.add(identity)
            with os.scandir(root / folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            if {"recipe.yaml", "data.json"} <= {entry.name for entry in entries}:
                continue  # a run of ours, whose pictures are not data
        except OSError as error:
            yield BadFile(shown(folder), f"The folder cannot be read: {cause(error)}.")
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{folder}/{entry.name}" if folder else entry.name
            image = os.path.splitext(entry.name)[1].lower() in SUFFIXES  # noqa: PTH122
            try:
                status = entry.stat()
            except OSError as error:  # a link to nowhere or to itself
                reason = f"It cannot be reached: {cause(error)}."
                yield BadFile(shown(path), reason) if image else None
                continue
            if stat.S_ISDIR(status.st_mode):
                (linked if entry.is_symlink() else real).append(path)
            elif not image:
                yield None
            elif not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
                yield BadFile(shown(path), "It is not an ordinary file.")
            else:
                yield File(path, status.st_size, status.st_mtime_ns, status.st_mode)


def scan(root: Path) -> tuple[list[File], list[BadFile], int]:
    """The files below `root` that may be images, sorted; those out of reach; how many others."""
    files, bad, ignored = [], [], 0
    for found in walk(root):
        if isinstance(found, File):
            files.append(found)
        elif isinstance(found, BadFile):
            bad.append(found)
        else:
            ignored += 1
    return sorted(files), sorted(bad), ignored


class _Seen(NamedTuple):
    """sizes: (H, W) of the images whose headers were read. lost: numbers of items that cost a
    process, and the reasons."""

    sizes: list[tuple[int, int]]
    lost: dict[int, str]


class _Found(NamedTuple):
    """What was read. good: numbers of items; names, digests (SHA-256 of their bytes) and sizes
    are theirs. shape: [N, C, H, W] of the pixels written."""

    good: list[int]
    names: list[str]
    digests: list[str]
    sizes: list[tuple[int, int]]
    bad: list[BadFile]
    shape: tuple[int, int, int, int]


def _decode_all(
    ask: Ask,
    blocks: Blocks,
    total: int,
    job: Job,
    may_be_grey: bool,
    lost: dict[int, str],
    part: Path,
    progress: Progress | None,
) -> _Found:
    """Decode all items but those lost, and write the pixels of the good ones to `part` in order.

    may_be_grey: whether one channel is kept, if all of them are grey.
    """
    good, names, digests, bad = list[int](), list[str](), list[str](), list[BadFile]()
    sizes = list[tuple[int, int]]()
    read, grey = deque[str](), may_be_grey  # names of the items that were handed over

    def left() -> Iterator[list[Item]]:
        number = 0
        for block in blocks():
            read.extend(item.name for item in block)
            whys = (lost.get(i) for i in range(number, number + len(block)))
            yield [
                item._replace(content=Unreadable(why)) if why else item
                for item, why in zip(block, whys, strict=True)
            ]
            number += len(block)

    with part.open("wb") as out:
        for done, answer in enumerate(ask(job, left())):
            name = read.popleft()
            if answer.bad:
                bad.append(BadFile(shown(name), answer.bad))
            else:
                good.append(done)
                names.append(name)
                digests.append(answer.sha256)
                sizes.append(answer.original)
                grey = grey and answer.grey
                with storing(part.parent):
                    out.write(answer.pixels)
            if progress is not None:
                progress(done + 1, total)
    size = job.size or (0, 0)
    if grey and good:
        with storing(part.parent):
            _keep_first_channel(part, (len(good), 3, *size))
    shape = (len(good), 1 if grey else job.channels, *size)
    return _Found(good, names, digests, sizes, bad, shape)


def _entry(
    where: Path,
    form: str,
    found: _Found,
    told: Callable[[list[int]], Told],
    fit: Fit,
    missed: Sequence[BadFile],
    ignored: int,
) -> dict[str, Any]:
    """The index of what was read. DataError: it is too little."""
    bad = sorted([*missed, *found.bad]) if missed else found.bad
    if len(found.good) < 2:
        raise DataError(too_few(where, form, len(found.good), bad, ignored))
    label, classes, held_out = told(found.good)
    if held_out is not None and all(held_out):
        raise DataError(f"none of the images to train on in {where} can be read")
    content = [found.digests, found.shape[1:], fit, label, classes, held_out]
    return {
        "shape": found.shape,
        "files": found.names,
        "label": label,
        "classes": classes,
        "held_out": held_out,
        "bad": bad,
        "originals": originals(found.sizes),
        "common": Counter(found.sizes).most_common(COMMON),
        "fingerprint": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
    }


def _sizes(ask: Ask, blocks: Iterable[Sequence[Item]]) -> _Seen:
    """The size of every image whose header can be read, and why none could be looked for."""
    sizes, lost = list[tuple[int, int]](), dict[int, str]()
    for number, answer in enumerate(ask(Job(None), blocks)):
        if not answer.bad:
            sizes.append(answer.original)
        elif answer.lost:  # it would be again; of others, decoding will say what is wrong
            lost[number] = answer.bad
    return _Seen(sizes, lost)


def common_size(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The size (H, W) for images of these sizes, when none was asked for."""
    if not sizes:
        return 8, 8
    h, w = sizes[0]
    if len(set(sizes)) == 1 and max(h, w) <= min(64, 2 * min(h, w)):
        return h, w
    reached = sorted(min(size) for size in sizes)[len(sizes) // 10]
    side = max(8, min(64, reached // 4 * 4))
    return side, side


def _keep_first_channel(path: Path, shape: tuple[int, int, int, int]) -> None:
    """Rewrite pixels [N, 3, H, W] as [N, 1, H, W], front to back in the same file."""
    plane = shape[2] * shape[3]
    with path.open("r+b") as file:
        for row in range(shape[0]):
            file.seek(3 * plane * row)
            grey = file.read(plane)
            file.seek(plane * row)
            file.write(grey)
        file.truncate(plane * shape[0])


def _split_level(files: list[File], root: Path) -> int | None:
    """Which level of folders is one of splits, 0 or 1. DataError: a part of it is, others not."""
    inner: dict[str, set[str]] = {}  # the second level below each of the first; "" is no folder
    for file in files:
        first, second, *_ = [*file.path.split("/")[:-1], "", ""]
        inner.setdefault(first, set()).add(second)
    if _are_splits(inner):
        others = sorted(name for name in inner if name.lower() not in TRAIN | HELD_OUT)
        if others:
            where = f"the folder {shown(others[0])!r}" if others[0] else "images"
            raise DataError(
                f"{root} has train and test folders and {where} beside them: move it away"
            )
        return 0
    known = {name for names in inner.values() for name in names}
    if all(name.lower() in TRAIN | HELD_OUT for name in known):
        return 1 if _are_splits(known) else None
    split = sorted(name for name in inner if _are_splits(inner[name]))
    if split:
        raise DataError(
            f"{root} has train and test folders in {shown(split[0])!r}, and images that are in no "
            "such folder: sort these too, or move them away"
        )
    return None


def _are_splits(names: Iterable[str]) -> bool:
    """Whether there are names for training and for what is held out."""
    lower = {name.lower() for name in names}
    return bool(lower & TRAIN and lower & HELD_OUT)


def _places(files: list[str], level: int | None) -> Told:
    """What the folders of the files say: labels, classes, and which are held out."""
    folders = [path.split("/")[:-1] for path in files]
    held_out = None
    if level is not None:
        held_out = [folder[level].lower() in HELD_OUT for folder in folders]
    start = 1 if level == 0 else 0
    names = ["".join(folder[start : start + 1]) for folder in folders]
    classes = sorted(set(names))
    if len(classes) < 2 or "" in classes:
        return Told(None, [], held_out)
    number = {name: i for i, name in enumerate(classes)}
    return Told([number[name] for name in names], [shown(name) for name in classes], held_out)


def _digest(listing: str) -> str:
    return hashlib.sha256(listing.encode()).hexdigest()[:40]


def _noted(note: Path) -> tuple[int, int] | None:
    """The size (H, W) that was chosen before, or None if nothing says so."""
    try:
        h, w = json.loads(note.read_text(encoding="utf-8"))
        return (h, w) if 1 <= h <= 64 and 1 <= w <= 64 else None
    except (OSError, ValueError, TypeError):
        return None


def _cached(pixels: Path, index: Path, ignored: int) -> Images | None:
    """What the cache holds, or None if it holds nothing whole."""
    try:
        entry: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        count, channels, height, width = shape = tuple(entry["shape"])
        label, held_out, files = entry["label"], entry["held_out"], tuple(entry["files"])
        columns = [files, *(column for column in (label, held_out) if column is not None)]
        whole = all(len(column) == count for column in columns)
        if not whole or pixels.stat().st_size != count * channels * height * width:
            return None
        return Images(
            x=np.memmap(pixels, dtype=np.uint8, mode="r", shape=shape),
            files=files,
            label=None if label is None else np.array(label, dtype=np.int64),
            classes=tuple(entry["classes"]),
            held_out=None if held_out is None else np.array(held_out, dtype=bool),
            bad=tuple(BadFile(path, reason) for path, reason in entry["bad"]),
            ignored=ignored,
            fingerprint=str(entry["fingerprint"]),
            originals=Originals(*((int(h), int(w)) for h, w in entry["originals"])),
            common=tuple(((int(h), int(w)), int(n)) for (h, w), n in entry["common"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def stored(final: Path) -> Iterator[Path]:
    """A file to write, which is given its name at the end: it is there whole or not at all."""
    part = final.with_name(f".tmp-{uuid.uuid4().hex}")
    with storing(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    try:
        yield part
        with storing(final.parent):
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(final)
            if os.name == "posix":  # elsewhere a folder cannot be opened to be synchronised
                folder = os.open(final.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def storing(cache: Path) -> Iterator[None]:
    """Within, what goes wrong with writing to a cache is a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the image cache at {cache} cannot be written ({cause(error)}): free some space, "
            "or set ORNSTEIN_CACHE to another folder"
        ) from error


def too_few(root: Path, form: str, good: int, bad: Sequence[BadFile], ignored: int) -> str:
    """What is wrong with data of less than two images."""
    found = "no image" if good == 0 else "only one image"
    text = f"{found} in {root}: at least 2 are needed, {form}"
    if bad:
        text += f"; {len(bad)} cannot be read, the first is {bad[0].path} ({bad[0].reason[:-1]})"
    return text + (f"; {ignored} files are no images by their names" if ignored else "")


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def shown(path: str) -> str:
    """A path that can be printed, whatever bytes its name is made of."""
    return os.fsencode(path).decode("utf-8", "replace")
