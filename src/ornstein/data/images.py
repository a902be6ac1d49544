"""A folder of images, as a person would see them, in one array of a common size.

An image is what its content says, whatever its name: JPEG, PNG, WebP, BMP, TIFF or GIF (first
frame). It is refused before it is decoded if it is larger than 64 MB, 50 million pixels or 16384
pixels a side. It is then read like this:

    orientation  the EXIF tag is obeyed
    opacity      what is transparent shows white
    16-bit grey  0 ... 65535 becomes 0 ... 255
    CMYK         as RGB, without colour profiles
    size         the largest centred part of the right proportions, resized with antialiasing

A file that cannot be read is left out and named, with the reason; nothing in the folder is ever
changed. Decoded pixels are kept in a cache, so that the next start takes no decoding:

    <cache>/images/<key>.u8     uint8 [N, C, H, W]
    <cache>/images/<key>.json   files, labels, classes, bad files, fingerprint

where <cache> is $ORNSTEIN_CACHE, else $XDG_CACHE_HOME/ornstein, else ~/.cache/ornstein, and the
key is a hash of the folder, the settings and every file's name, size, mode and time of change.
The index is written last and only a pair that fits is used. The cache is not limited in size:
its files, and what begins with `.tmp-` after a crash, may be deleted whenever no run reads them.
"""

import hashlib
import io
import json
import os
import stat
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from ornstein.data.info import BadFile
from ornstein.errors import DataError, StorageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
READABLE = "JPEG, PNG, WebP, BMP, TIFF and GIF"

_READ = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib"}
    | {".tif", ".tiff", ".gif"}
)
# Images to a person: they are tried by content too, and named if they cannot be read.
_OTHER = frozenset(
    {".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".tga", ".ico", ".exr"}
    | {".ppm", ".pgm", ".pbm"}
)
SUFFIXES = _READ | _OTHER
"""The endings of file names that are looked at; other files are ignored, and counted."""

MAX_FILE = 64 * 10**6
MAX_PIXELS = 50 * 10**6
MAX_SIDE = 16384

TRAIN = frozenset({"train", "training"})
HELD_OUT = frozenset({"test", "testing", "val", "valid", "validation"})

_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"GIF8")
_LAYOUT = 1  # of the cache; another number means another way of reading
_BLOCK = 256  # files handed to the threads at a time, which bounds what waits in memory
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Progress = Callable[[int, int], None]


class File(NamedTuple):
    """A file with an image's name. path: relative to the folder, parted by `/`. mtime in ns."""

    path: str
    size: int
    mtime: int
    mode: int


class Images(NamedTuple):
    """A folder's images.

    x: uint8 [N, C, H, W], memory-mapped, read-only. files: N relative paths, sorted.
    label: int64 [N] or None. held_out: bool [N] if the folder has splits of its own, else None.
    bad: files left out, with relative paths. ignored: how many files are no images by name.
    """

    x: np.ndarray
    files: tuple[str, ...]
    label: np.ndarray | None
    classes: tuple[str, ...]
    held_out: np.ndarray | None
    bad: tuple[BadFile, ...]
    ignored: int
    fingerprint: str


class Unreadable(Exception):
    """Why an image cannot be used, in one sentence."""


def read_folder(
    root: Path,
    size: int | None = None,
    channels: int | None = None,
    progress: Progress | None = None,
) -> Images:
    """All images below `root`, `size` × `size` pixels with 1 or 3 channels.

    size None: if all images share one size of at most 64 × 64, no side more than twice the
    other, that size; else a square of the short side that nine images in ten reach, a multiple
    of 4 from 8 to 64. channels None: 1 if every pixel of every image is grey, else 3.

    Classes are the sub-folders of the first level that hold images, if there are at least two
    and no image lies beside them. If the sub-folders are named train and test (or val, valid,
    validation), they are splits and the classes are looked for below them.

    `progress(done, total)` is called as files are decoded, and not at all if the cache serves.
    DataError: no folder, or fewer than two readable images. StorageError: the cache cannot be
    written.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    files, missed, ignored = scan(root)
    split = _has_splits(files, root)
    if len(files) < 2:
        raise DataError(_too_few(root, len(files), missed, ignored))
    cache = cache_folder() / "images"
    listing = [_LAYOUT, PIL.__version__, str(root.resolve()), size, channels, files, missed]
    key = hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:40]
    pixels, index = cache / f"{key}.u8", cache / f"{key}.json"
    known = _cached(pixels, index, ignored)
    if known is not None:
        return known
    part = cache / f".tmp-{uuid.uuid4().hex}"
    with warnings.catch_warnings():
        # Pillow warns of large images, where our own limit decides, and of odd metadata.
        warnings.simplefilter("ignore")
        with _storing(cache):
            cache.mkdir(parents=True, exist_ok=True)
            part.touch()
        try:
            read, shape = _decode_all(root, files, size, channels, part, progress)
            good = [file.path for file, result in zip(files, read, strict=True) if result[0]]
            bad = sorted(
                missed
                + [BadFile(_shown(f.path), r[1]) for f, r in zip(files, read, strict=True) if r[1]]
            )
            if len(good) < 2:
                raise DataError(_too_few(root, len(good), bad, ignored))
            label, classes, held_out = _places(good, split)
            if held_out is not None and all(held_out):
                raise DataError(f"no image in the train folder of {root} can be read")
            digests = [result[0] for result in read if result[0]]
            content = [digests, shape[1:], label, classes, held_out]
            entry = {
                "shape": shape,
                "files": good,
                "label": label,
                "classes": classes,
                "held_out": held_out,
                "bad": bad,
                "fingerprint": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
            }
            with _storing(cache):
                _commit(part, pixels)
                part.write_text(json.dumps(entry), encoding="utf-8")
                _commit(part, index)
        finally:
            part.unlink(missing_ok=True)
    known = _cached(pixels, index, ignored)
    if known is None:
        raise StorageError(f"the image cache at {cache} does not keep what is written to it")
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
            yield BadFile(_shown(folder), f"The folder cannot be read: {_cause(error)}.")
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{folder}/{entry.name}" if folder else entry.name
            image = os.path.splitext(entry.name)[1].lower() in SUFFIXES  # noqa: PTH122
            try:
                status = entry.stat()
            except OSError as error:  # a link to nowhere or to itself
                reason = f"It cannot be reached: {_cause(error)}."
                yield BadFile(_shown(path), reason) if image else None
                continue
            if stat.S_ISDIR(status.st_mode):
                (linked if entry.is_symlink() else real).append(path)
            elif not image:
                yield None
            elif not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
                yield BadFile(_shown(path), "It is not an ordinary file.")
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


def decode(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """The image in the bytes of a file, uint8 [3, H, W] for size (H, W). Unreadable: why not."""
    image = _opened(io.BytesIO(data))
    try:
        # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, if twice the wanted size remains.
        # Orientation may swap H and W later, so the larger of them is asked for both ways.
        scale = 2 * max(size) / min(image.size)
        if scale < 1:
            image.draft(None, (int(image.width * scale), int(image.height * scale)))
        image.load()
        turn = _orientation(image)  # after loading: a TIFF has then obeyed and dropped its own
        fitted = _fit(_plain(image), size if turn < 5 else size[::-1])
        if turn in _TURN:
            fitted = fitted.transpose(_TURN[turn])
        if fitted.mode == "RGBA":
            white = Image.new("RGBA", fitted.size, "white")
            fitted = Image.alpha_composite(white, fitted)
        return np.ascontiguousarray(np.asarray(fitted.convert("RGB")).transpose(2, 0, 1))
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # decoders raise almost anything on damaged data
        raise Unreadable(f"The file is damaged: {_cause(error)}.") from error


def _opened(file: IO[bytes]) -> Image.Image:
    """The image in `file`, its header read and within the limits."""
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise Unreadable(_TOO_LARGE) from error
    except UnidentifiedImageError as error:
        file.seek(0)
        start = file.read(256)
        if not start:
            raise Unreadable("The file is empty.") from error
        if start.startswith(_MAGIC):
            raise Unreadable("The file is damaged: its header cannot be read.") from error
        start = start.lstrip().lower()
        what = "a web page" if start.startswith((b"<!doctype html", b"<html")) else "something else"
        raise Unreadable(f"It is {what}, not one of {READABLE}.") from error
    except MemoryError:
        raise
    except Exception as error:
        raise Unreadable(f"The file is damaged: {_cause(error)}.") from error
    if max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
        raise Unreadable(_TOO_LARGE)
    return image


_TOO_LARGE = f"It has more than {MAX_PIXELS // 10**6} million pixels or {MAX_SIDE} a side."


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or it cannot be read."""
    try:
        turn = image.getexif().get(0x0112, 1)
    except Exception:  # the picture is worth more than its metadata
        return 1
    return turn if turn in _TURN else 1


def _plain(image: Image.Image) -> Image.Image:
    """The image in mode L, RGB or RGBA."""
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        grey = np.asarray(image).astype(np.float64)
        low, high = (float(grey.min()), float(grey.max())) if np.isfinite(grey).all() else (-1, -1)
        top = next((t for t in ((65535,) if image.mode == "I" else (1, 255)) if high <= t), None)
        if low < 0 or top is None:
            raise Unreadable("Its pixels are neither 8-bit nor 16-bit, nor between 0 and 1.")
        return Image.fromarray(np.rint(grey * (255 / top)).astype(np.uint8))
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The largest centred part of the proportions of `size` (H, W), resized to it."""
    (h, w), (width, height) = size, image.size
    if (width, height) == (w, h):
        return image
    scale = max(w / width, h / height)
    # Half of what is cut away on each side; rounding must not leave the image.
    x, y = max(0.0, (width - w / scale) / 2), max(0.0, (height - h / scale) / 2)
    box = (x, y, width - x, height - y)
    return image.resize((w, h), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def _decode_all(
    root: Path,
    files: list[File],
    size: int | None,
    channels: int | None,
    part: Path,
    progress: Progress | None,
) -> tuple[list[tuple[str, str]], tuple[int, int, int, int]]:
    """Write the pixels to `part`; each file's SHA-256 or the reason it is bad, and the shape."""
    read: list[tuple[str, str]] = []
    count, grey = 0, channels is None
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool, part.open("wb") as out:
        h, w = (size, size) if size else _common_size(_sizes(root, files, pool))
        work = partial(_read, root, size=(h, w), channels=channels or 3)
        for start in range(0, len(files), _BLOCK):
            for pixels, digest, reason in pool.map(work, files[start : start + _BLOCK]):
                read.append((digest, reason))
                if pixels is not None:
                    count += 1
                    grey = grey and bool((pixels == pixels[:1]).all())
                    with _storing(part.parent):
                        out.write(pixels.tobytes())
                if progress is not None:
                    progress(len(read), len(files))
    if grey and count:
        with _storing(part.parent):
            _keep_first_channel(part, (count, 3, h, w))
    return read, (count, 1 if grey else channels or 3, h, w)


def _read(
    root: Path, file: File, size: tuple[int, int], channels: int
) -> tuple[np.ndarray | None, str, str]:
    """(pixels, SHA-256 of the file, "") or (None, "", reason)."""
    try:
        if file.size > MAX_FILE:
            raise Unreadable(f"It is larger than {MAX_FILE // 10**6} MB.")
        try:
            data = (root / file.path).read_bytes()
        except OSError as error:
            raise Unreadable(f"It cannot be opened: {_cause(error)}.") from error
        pixels = decode(data, size)
    except Unreadable as reason:
        return None, "", str(reason)
    if channels == 1 and (pixels != pixels[:1]).any():
        pixels = np.asarray(Image.fromarray(pixels.transpose(1, 2, 0)).convert("L"))[None]
    return pixels[:channels], hashlib.sha256(data).hexdigest(), ""


def _sizes(root: Path, files: list[File], pool: ThreadPoolExecutor) -> list[tuple[int, int]]:
    """(H, W) of every image whose header can be read, as it will be seen."""

    def look(file: File) -> tuple[int, int] | None:
        if file.size > MAX_FILE:
            return None
        try:
            with (root / file.path).open("rb") as stream, _opened(stream) as image:
                # Asking a PNG without EXIF for it decodes the image; a TIFF's size is right.
                ask = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
                turned = ask and _orientation(image) >= 5
                return image.size if turned else (image.height, image.width)
        except (Unreadable, OSError):
            return None  # decoding will say why

    blocks = (files[start : start + _BLOCK] for start in range(0, len(files), _BLOCK))
    return [size for block in blocks for size in pool.map(look, block) if size is not None]


def _common_size(sizes: list[tuple[int, int]]) -> tuple[int, int]:
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


def _has_splits(files: list[File], root: Path) -> bool:
    """Whether the folders of the first level are splits. DataError: some are, others are not."""
    top = {file.path.split("/")[0] if "/" in file.path else "" for file in files}
    names = {name.lower() for name in top}
    if not (names & TRAIN and names & HELD_OUT):
        return False
    others = sorted(name for name in top if name.lower() not in TRAIN | HELD_OUT)
    if others:
        where = f"the folder {_shown(others[0])!r}" if others[0] else "images"
        raise DataError(f"{root} has train and test folders and {where} beside them: move it away")
    return True


def _places(files: list[str], split: bool) -> tuple[list[int] | None, list[str], list[bool] | None]:
    """What the folders of the files say: labels, classes, and which are held out."""
    folders = [path.split("/")[:-1] for path in files]
    held_out = [folder[0].lower() in HELD_OUT for folder in folders] if split else None
    names = ["".join(folder[split : split + 1]) for folder in folders]
    classes = sorted(set(names))
    if len(classes) < 2 or "" in classes:
        return None, [], held_out
    number = {name: i for i, name in enumerate(classes)}
    return [number[name] for name in names], [_shown(name) for name in classes], held_out


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
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _commit(part: Path, final: Path) -> None:
    """Give a finished file its name, so that it is there whole or not at all."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(final)
    if os.name == "posix":  # elsewhere a folder cannot be opened to be synchronised
        folder = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def _storing(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the image cache at {cache} cannot be written ({_cause(error)}): free some space, "
            "or set ORNSTEIN_CACHE to another folder"
        ) from error


def _too_few(root: Path, good: int, bad: list[BadFile], ignored: int) -> str:
    found = "no image" if good == 0 else "only one image"
    text = f"{found} in {root}: at least 2 are needed, as {READABLE} files"
    if bad:
        text += f"; {len(bad)} cannot be read, the first is {bad[0].path} ({bad[0].reason[:-1]})"
    return text + (f"; {ignored} files are no images by their names" if ignored else "")


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _shown(path: str) -> str:
    """A path that can be printed, whatever bytes its name is made of."""
    return os.fsencode(path).decode("utf-8", "replace")


def _cause(error: BaseException) -> str:
    """What an error says, as the end of a sentence."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    lines = str(error).strip().splitlines()
    text = lines[0][:200].rstrip(". ") if lines else type(error).__name__
    return text[:1].lower() + text[1:] if text[1:2].islower() else text
