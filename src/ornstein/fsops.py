"""Every file operation of a save, in one place, so that faults can be injected and replayed.

A file is written, flushed to the disk and only then given its name; a folder is flushed after a
name in it has changed. Whoever reads sees the old content or the new, never a part of it.
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

from ornstein.errors import CheckpointError, StorageError


def write(path: Path, content: bytes, told: Path | None = None, option: str = "--runs") -> None:
    """Write a new file and flush it to the disk; it is not atomic by itself.

    told, option: what an error names instead of `path`, and how a user would change it.
    """
    with explained(told or path, option), path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, content: bytes, option: str = "--runs") -> None:
    """Give `path` this content atomically.

    option: by which a user would name another place.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write(temporary, content, told=path, option=option)
        rename(temporary, path, option)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def rename(source: Path, target: Path, option: str = "--runs") -> None:
    """Rename within a file system, and flush the folder that holds the new name."""
    with explained(target, option):
        source.replace(target)
        flush_folder(target.parent)


def make_folder(path: Path, option: str = "--runs") -> None:
    """Make a folder and those above it, where they are missing.

    option: by which a user would name another.
    """
    with explained(path, option):
        path.mkdir(parents=True, exist_ok=True)


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
    """Remove a folder of ours, or a file."""
    with explained(path):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The content of a JSON file of ours. Raises: CheckpointError if it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
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
