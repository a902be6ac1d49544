"""Arrays that somebody saved: one `.npy` file, or an `.npz` with samples and maybe labels.

Both are files from strangers. A header says how much memory its array takes, and may lie; a zip
may unpack to a thousand times its size. So the claim is checked against the file before anything
is loaded, and arrays of Python objects, which are pickles, are refused.

    [N], [N, D]                            vectors: floats and integers as float32, or uint8
    [N, H, W], [N, H, W, C], [N, C, H, W]  images with C = 1, 3 or 4, handed on as [N, C, H, W]
    [N, T, H, W, C], [N, T, C, H, W]       sequences of T ≥ 2 such images, as [N, T, C, H, W]
    [N, T, H, W]                           sequences of grey ones, where T and W are above 4

Images are whole numbers 0 ... 255 (uint8 in the end), booleans (range 0 to 1, two values), or
floats in [0, 1]. A fourth channel is opacity, and the image is laid over white. Where both the
second and the last axis could be channels, the one that leaves square images is right, and the
last if that does not decide.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np

from ornstein.data.info import Values
from ornstein.errors import DataError

MAX_BYTES = 8 << 30
"""The most memory that one array may take, in bytes."""

IN_MEMORY = 1 << 30
"""A larger `.npy` stays in its file, memory-mapped."""

MAX_RATIO = 200
"""How many times its compressed size a member of an `.npz` above 256 MiB may take."""

SAMPLE_NAMES = ("x", "images", "data")
LABEL_NAMES = ("y", "labels")

_HEADER = 10_000  # bytes; the limit that numpy sets for the text of a header
_CHANNELS = (1, 3, 4)


class Samples(NamedTuple):
    """x: [N, *shape] in native values. label: int64 [N] or None, naming one of `classes`."""

    kind: Literal["image", "vector", "sequence"]
    x: np.ndarray
    range: tuple[float, float] | None
    bins: int | None
    label: np.ndarray | None = None
    classes: tuple[str, ...] = ()


def read_arrays(path: Path) -> Samples:
    """The samples in a `.npy` or `.npz` file, and their labels if it holds any.

    DataError: the file is damaged, holds Python objects, would take more than 8 GiB, or holds
    an array that is no vectors, images or sequences of images with finite values.
    """
    try:
        if path.suffix.lower() == ".npz":
            x, y = _read_npz(path)
        else:
            x, y = _read_npy(path), None
    except DataError:
        raise
    except PermissionError as error:
        raise DataError(f"{path} may not be read: permission denied") from error
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except Exception as error:  # a damaged zip or header makes its readers raise anything
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is damaged or not a numpy file: {first}") from error
    samples = _recognised(x, path)
    if len(samples.x) < 2:
        raise DataError(f"{path} holds {len(samples.x)} samples: at least 2 are needed")
    if y is None:
        return samples
    label, classes = _labels(y, len(samples.x), path)
    return samples._replace(label=label, classes=classes)


def rows(x: Values, ids: np.ndarray | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """x (or its rows `ids`) in parts of some 4 million values, each with its first position."""
    count = len(x) if ids is None else len(ids)
    step = max(1, (4 << 20) // max(1, math.prod(x.shape[1:])))
    for start in range(0, count, step):
        stop = start + step
        yield start, x[start:stop] if ids is None else x[ids[start:stop]]


def _read_npy(path: Path) -> np.ndarray:
    size = path.stat().st_size
    with path.open("rb") as file:
        _check_header(file, size, str(path))
    mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return np.array(mapped) if mapped.nbytes <= IN_MEMORY else mapped


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    with zipfile.ZipFile(path) as archive:
        members = {
            Path(info.filename).stem.lower(): info
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        }
        labels = next((members[name] for name in LABEL_NAMES if name in members), None)
        samples = next((members[name] for name in SAMPLE_NAMES if name in members), None)
        if samples is None:
            others = [info for info in members.values() if info is not labels]
            if len(others) != 1:
                found = ", ".join(sorted(members)) or "none"
                raise DataError(
                    f"{path} must hold one array, or samples named x, images or data with labels "
                    f"named y or labels; its arrays: {found}"
                )
            samples = others[0]
        x = _read_member(archive, samples, path)
        return x, None if labels is None else _read_member(archive, labels, path)


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> np.ndarray:
    where = f"{path}, array {info.filename.removesuffix('.npy')!r},"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{where} is packed in a way that numpy does not use: save it again")
    if info.file_size > 256 << 20 and info.file_size > MAX_RATIO * info.compress_size:
        raise DataError(
            f"{where} would unpack to more than {MAX_RATIO} times its size: save it as .npy"
        )
    with archive.open(info) as stream:
        _check_header(stream, info.file_size, where)
    with archive.open(info) as stream:  # a zip never yields more than the size that it declares
        array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _check_header(stream: IO[bytes], size: int, where: str) -> None:
    """Refuse an array that is not plain numbers or that `size` bytes cannot hold."""
    head = io.BytesIO(stream.read(_HEADER + 12))  # a header may claim to be 4 GB long
    version = np.lib.format.read_magic(head)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(head)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(head)
    elif version == (3, 0):  # for names of fields
        raise DataError(f"{where} holds records, not numbers: save one plain array")
    else:
        raise DataError(f"{where} is damaged or not a numpy file: its version is {version}")
    if dtype.hasobject:
        raise DataError(
            f"{where} holds Python objects, which are pickles and are never loaded: "
            "save an array of numbers"
        )
    if dtype.kind not in "biufUS":
        raise DataError(f"{where} has type {dtype}: save uint8 or float32 numbers")
    if any(n < 0 for n in shape):
        raise DataError(f"{where} is damaged: its shape is {shape}")
    if 0 in shape:
        raise DataError(f"{where} is empty: its shape is {list(shape)}")
    needed = math.prod(shape) * dtype.itemsize
    if needed > MAX_BYTES:
        raise DataError(f"{where} takes {needed / 2**30:.1f} GiB: the limit is 8 GiB")
    if head.tell() + needed > size:
        raise DataError(
            f"{where} is truncated: shape {shape} of {dtype} takes {needed} bytes "
            f"and {size - head.tell()} are there"
        )


def _recognised(x: np.ndarray, path: Path) -> Samples:
    if x.dtype.kind not in "biuf" or x.ndim not in (1, 2, 3, 4, 5):
        raise DataError(
            f"{path} holds {x.dtype} of shape {list(x.shape)}: vectors are [N, D], images "
            "[N, H, W], [N, H, W, C] or [N, C, H, W] and sequences [N, T, H, W, C] or "
            "[N, T, C, H, W] of uint8 or of floats in [0, 1]"
        )
    if x.ndim <= 2:
        x = x.reshape(len(x), -1)
        if x.dtype == np.uint8:
            return Samples("vector", x, (0.0, 255.0), 256)
        return Samples("vector", _finite(x, path), None, None)
    if x.ndim == 3 and x.shape[2] in (3, 4) and min(x.shape[:2]) > 4:
        raise DataError(
            f"{path} looks like a single image of shape {list(x.shape)}: save many as [N, H, W, C]"
        )
    if x.ndim == 4 and min(x.shape[1], x.shape[3]) > max(_CHANNELS):
        x = x[:, :, None]
    if x.ndim < 5:
        return _images(x, path)
    count, frames = x.shape[:2]
    if frames < 2:
        raise DataError(
            f"{path} holds sequences of a single frame, shape {list(x.shape)}: sequences need at "
            "least 2 frames, and images are saved without that axis"
        )
    found = _images(x.reshape(count * frames, *x.shape[2:]), path, frames)
    return found._replace(kind="sequence", x=found.x.reshape(count, frames, *found.x.shape[1:]))


def _images(x: np.ndarray, path: Path, frames: int = 1) -> Samples:
    """frames: how many images are one row of the file."""
    x = x[:, None] if x.ndim == 3 else _channels_first(x, path)
    if x.dtype.kind == "f":
        x = _finite(x, path, frames)
        low, high = _extremes(x)
        if low < 0 or high > 1:
            raise DataError(
                f"{path} holds float images with values from {low:.6g} to {high:.6g}: "
                "scale them to [0, 1], or save uint8 images with values 0 to 255"
            )
        return Samples("image", _over_white(x, 1.0), (0.0, 1.0), None)
    if x.dtype.kind == "b":
        return Samples("image", _over_white(x.astype(np.uint8), 1.0), (0.0, 1.0), 2)
    if x.dtype != np.uint8:
        low, high = _extremes(x)
        if low < 0 or high > 255:
            raise DataError(
                f"{path} holds {x.dtype} images with values from {low:.0f} to {high:.0f}: "
                "scale them to 0 ... 255 and save them as uint8"
            )
        x = x.astype(np.uint8)
    return Samples("image", _over_white(x, 255.0), (0.0, 255.0), 256)


def _channels_first(x: np.ndarray, path: Path) -> np.ndarray:
    _, a, b, c = x.shape
    first, last = a in _CHANNELS, c in _CHANNELS
    if not first and not last:
        raise DataError(
            f"{path} holds images of shape {[a, b, c]}: 1, 3 or 4 channels must come first or last"
        )
    if first and last:
        first = b == c and a != b
    return x if first else np.moveaxis(x, 3, 1)


def _over_white(x: np.ndarray, white: float) -> np.ndarray:
    """Images [N, 4, H, W] laid over white by their opacity, [N, 3, H, W]; others unchanged."""
    if x.shape[1] != 4:
        return x
    laid = np.empty((len(x), 3, *x.shape[2:]), x.dtype)
    for start, part in rows(x):
        opacity = part[:, 3:].astype(np.float32) / white
        mixed = part[:, :3] * opacity + white * (1 - opacity)
        laid[start : start + len(part)] = np.rint(mixed) if x.dtype == np.uint8 else mixed
    return laid


def _finite(x: np.ndarray, path: Path, each: int = 1) -> np.ndarray:
    """x as float32 in this machine's byte order; an error names the first row that is not, of
    those of `each` samples."""
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite: refused
        x = x if x.dtype == np.float32 and x.dtype.isnative else x.astype(np.float32)
    for start, part in rows(x):
        good = np.isfinite(part).reshape(len(part), -1).all(axis=1)
        if not good.all():
            row = (start + int(np.argmin(good))) // each
            raise DataError(
                f"{path} holds NaN, infinity or a number beyond float32 in row {row} "
                "(the first is 0): remove or mend it"
            )
    return x


def _extremes(x: np.ndarray) -> tuple[float, float]:
    parts = [(part.min(), part.max()) for _, part in rows(x)]
    if not parts:
        return 0.0, 0.0
    return float(min(low for low, _ in parts)), float(max(high for _, high in parts))


def _labels(y: np.ndarray, count: int, path: Path) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The class of each sample, numbered in the order of the sorted names or numbers in y."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != (count,):
        raise DataError(
            f"{path} holds {count} samples and labels of shape {list(y.shape)}: "
            f"one label a sample is needed, shape [{count}]"
        )
    if y.dtype.kind == "f":
        if not (np.isfinite(y).all() and np.array_equal(y, np.rint(y))):
            raise DataError(f"{path} has labels that are not whole numbers or names")
        y = y.astype(np.int64)
    names, label = np.unique(y, return_inverse=True)
    if len(names) < 2:  # one class says nothing
        return None, ()
    classes = tuple(
        name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
        for name in names.tolist()
    )
    return label.astype(np.int64), classes
