"""The log of a run, one line for each update, and the lock that lets one process write it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ornstein import fsops
from ornstein.errors import StorageError

if TYPE_CHECKING:
    from ornstein.training import Event

FLUSH_SECONDS = 1.0


class Log:
    """`metrics.jsonl`: updates wait in memory for a second at most, since reading a loss waits
    for the device, and longer where the disk is full. A context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = fsops.open_to_append(path)
        self._whole = os.fstat(self._file).st_size  # bytes, up to the end of the last whole line
        self._waiting: list[Event] = []
        self._flushed = time.monotonic()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
        finally:
            os.close(self._file)

    def add(self, event: Event) -> None:
        """Log an update, soon."""
        self._waiting.append(event)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flushed = time.monotonic()
            with contextlib.suppress(StorageError):  # they wait; `sync` tells what is wrong
                self.flush()

    def flush(self) -> None:
        """Write all that waits, in one go."""
        if os.fstat(self._file).st_size != self._whole:  # what a write that failed has left
            fsops.cut(self._path, self._whole)
        content = "".join(map(_line, self._waiting)).encode()
        fsops.append(self._file, content, self._path)
        self._whole += len(content)
        self._waiting.clear()
        self._flushed = time.monotonic()

    def sync(self) -> int:
        """Write all that waits through to the disk; return the length in bytes."""
        self.flush()
        fsops.flush(self._file, self._path)
        return self._whole


def cut(path: Path, size: int) -> None:
    """Forget what was logged after the first `size` bytes: those updates will come again."""
    if not path.exists():
        return
    if path.stat().st_size < size:  # torn: keep its whole lines
        size = path.read_bytes().rfind(b"\n") + 1
    fsops.cut(path, size)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[Callable[[], None]]:
    """Hold the run for one process; the lock of a dead process is free again by itself.

    Yields what raises StorageError once the folder has been removed or replaced: what is written
    then is lost, or in another process's way.
    """
    place = path / "lock"
    file = fsops.open_to_append(place)

    def check() -> None:
        try:
            same = os.path.samestat(os.fstat(file), place.stat())
        except OSError:
            same = False
        if not same:
            raise StorageError(
                f"the folder {path} was removed or replaced while it was trained; put it back, "
                "or run the same command again to start afresh"
            )

    try:
        if not _try_lock(file):
            owner = place.read_text(encoding="utf-8", errors="replace").strip()
            raise StorageError(
                f"run {path.name} is being trained by {owner or 'another process'}; "
                "wait for it, or stop it first"
            )
        check()  # between opening and locking, it may have been set aside
        fsops.cut(place, 0)
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        fsops.append(file, owner.encode(), place)
        yield check
    finally:
        os.close(file)


def _try_lock(file: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows has no flock; there one run must not be trained twice at once
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _line(event: Event) -> str:
    values = {
        "step": event.step,
        "samples": event.samples,
        "loss": float(event.loss),
        **{name: float(value) for name, value in event.metrics.items()},
        "grad_norm": float(event.grad_norm),
        "lr": event.lr,
        "seconds": round(event.seconds, 6),
        "waited": round(event.waited, 6),
    }
    return json.dumps(values) + "\n"


def last_line(path: Path) -> dict[str, float] | None:
    """The last whole line of a log; a torn one is left out."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            value: dict[str, float] = json.loads(line)
            return value
        except ValueError:
            continue
    return None
