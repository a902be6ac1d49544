"""Every file operation of a run, in one place, so that faults can be injected and replayed.

A file is written, flushed to the disk and only then given its name; a folder is flushed after a
name in it has changed. Whoever reads sees the old content or the new, never a part of it. Tests
put a recorder, a failing disk or a death in the place of the functions of `os` that it uses.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ornstein.errors import CheckpointError, ConfigError, StorageError, quote

MAX_JSON = 4 << 20
"""The most bytes of a JSON file of ours."""

MAX_LISTS = 100_000
"""The most lists and objects in it: each takes twenty times the memory of its two brackets."""

_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY
_GROWING = os.O_WRONLY | os.O_CREAT | os.O_APPEND | _BINARY


def write(path: Path, content: bytes, told: Path | None = None, option: str = "--runs") -> None:
    """Write a new file and flush it to the disk; it is not atomic by itself.

    told, option: what an error names instead of `path`, and how a user would change it.
    """
    with explained(told or path, option):
        handle = os.open(path, _NEW, 0o666)
        try:
            _write_all(handle, content)
            os.fsync(handle)
        finally:
            os.close(handle)


def replace(path: Path, content: bytes, option: str = "--runs") -> None:
    """Give `path` this content atomically.

    option: by which a user would name another place.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write(temporary, content, told=path, option=option)
        rename(temporary, path, option)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def rename(source: Path, target: Path, option: str = "--runs") -> None:
    """Rename within a file system, and flush the folders that hold the names."""
    with explained(target, option):
        source.replace(target)
        flush_folder(target.parent)
        if source.parent != target.parent:
            flush_folder(source.parent)


def open_to_append(path: Path) -> int:
    """A handle of a file that only grows; its name survives a power cut."""
    with explained(path):
        handle = os.open(path, _GROWING, 0o666)
        if os.fstat(handle).st_size == 0:
            flush_folder(path.parent)
        return handle


def append(handle: int, content: bytes, path: Path) -> None:
    """Write at the end of an open file; where that fails, a part of it may have been written."""
    with explained(path):
        _write_all(handle, content)


def append_line(path: Path, line: bytes) -> None:
    """Write at the end of a file that is opened for it."""
    handle = open_to_append(path)
    try:
        append(handle, line, path)
    finally:
        os.close(handle)


def flush(handle: int, path: Path) -> None:
    """Make what an open file holds survive a power cut."""
    with explained(path):
        os.fsync(handle)


def cut(path: Path, size: int) -> None:
    """Shorten a file to its first `size` bytes."""
    with explained(path):
        os.truncate(path, size)


def _write_all(handle: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]


def make_folder(path: Path, option: str = "--runs") -> None:
    """Make a folder and those above it, where they are missing; their names survive a power cut.

    option: by which a user would name another.
    """
    with explained(path, option):
        for folder in reversed((path, *path.parents)):
            make_inside(folder, option)


def make_inside(path: Path, option: str = "--runs") -> None:
    """Make a folder, where it is missing, in one that is there."""
    with explained(path, option):
        if path.is_dir():
            return
        try:
            path.mkdir()
        except FileExistsError:  # another process was quicker, or it is a file
            if not path.is_dir():
                raise
        flush_folder(path.parent)


def check_picture(path: Path, option: str = "--out") -> None:
    """Refuse, before it is drawn, a picture that could not be written.

    Raises: ConfigError for a name that does not end in .png, StorageError as `check_folder`.
    """
    check_folder(path.parent, option)
    if path.suffix.lower() != ".png":
        raise ConfigError(
            f"{option} names a picture, which is written as PNG, and {quote(path.name)} ends "
            f"otherwise; write {option} {path.stem or 'picture'}.png"
        )


def check_folder(path: Path, option: str = "--runs") -> None:
    """Refuse, before any work is done for it, a folder in which nothing can be made.

    Raises: StorageError where it, or the first folder above it that is there, is none or may not
    be written.
    """
    with explained(path, option):
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not there.is_dir():
            raise OSError(errno.ENOTDIR, f"{there} is not a folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, f"{there} may not be written")
        with tempfile.TemporaryFile(dir=there):  # some file systems refuse whatever they say
            pass


def flush_folder(path: Path) -> None:
    """Make the names in a folder survive a power cut (POSIX; elsewhere there is no such call)."""
    if os.name != "posix":
        return
    with explained(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove(path: Path) -> None:
    """Remove a folder of ours with all that is in it, or a file; none is none."""
    with explained(path), contextlib.suppress(FileNotFoundError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        for entry in sorted(path.iterdir()):
            remove(entry)
        path.rmdir()


def small(path: Path) -> bytes:
    """The bytes of a JSON file of ours. Raises: OSError, ValueError if it is beyond a limit."""
    if not path.is_file() and path.exists():  # a pipe would be waited for
        raise ValueError(f"{path} is no file")
    with path.open("rb") as file:
        content = file.read(MAX_JSON + 1)
    if len(content) > MAX_JSON:
        raise ValueError(f"{path} is larger than {MAX_JSON >> 20} MiB")
    if content.count(b"[") + content.count(b"{") > MAX_LISTS:
        raise ValueError(f"{path} holds more than {MAX_LISTS} lists")
    return content


def read_json(path: Path) -> Any:
    """The content of a JSON file of ours. Raises: CheckpointError if it is missing or damaged."""
    try:
        return json.loads(small(path))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is missing or damaged; restore it, or train afresh"
        ) from error


def free_bytes(path: Path) -> int:
    """Free space for this user on the file system of `path`."""
    with explained(path):
        return shutil.disk_usage(path).free


@contextlib.contextmanager
def explained(path: Path, option: str = "--runs") -> Iterator[None]:
    """Turn an operating-system error into a sentence with the remedy: another folder, which
    `option` names."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some space, then run the same command again"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = f"choose a folder that you may write with {option}"
        else:
            remedy = f"check the path, or choose another folder with {option}"
        raise StorageError(f"cannot write {path}: {error.strerror}; {remedy}") from error
