"""The log of a run, one line for each update, and the lock that lets one process write it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ornstein.errors import StorageError
from ornstein.fsops import explained

if TYPE_CHECKING:
    from ornstein.training import Event

FLUSH_SECONDS = 1.0


class Log:
    """`metrics.jsonl`: updates wait in memory for a second at most, since reading a loss waits
    for the device. A context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with explained(path):
            self._file = path.open("ab")
        self._waiting: list[Event] = []
        self._flushed = time.monotonic()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
        finally:
            self._file.close()

    def add(self, event: Event) -> None:
        """Log an update, soon."""
        self._waiting.append(event)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write all that waits, in one go."""
        with explained(self._path):
            self._file.write("".join(map(_line, self._waiting)).encode())
            self._file.flush()
        self._waiting.clear()
        self._flushed = time.monotonic()

    def sync(self) -> int:
        """Write all that waits through to the disk; return the length in bytes."""
        self.flush()
        with explained(self._path):
            os.fsync(self._file.fileno())
        return self._file.tell()


def cut(path: Path, size: int) -> None:
    """Forget what was logged after the first `size` bytes: those updates will come again."""
    if not path.exists():
        return
    if path.stat().st_size < size:  # torn: keep its whole lines
        size = path.read_bytes().rfind(b"\n") + 1
    os.truncate(path, size)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the run for one process; the lock of a dead process is free again by itself."""
    with explained(path / "lock"):
        file = (path / "lock").open("a+")
    try:
        if not _try_lock(file):
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise StorageError(
                f"run {path.name} is being trained by {owner}; wait for it, or stop it first"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
    finally:
        file.close()


def _try_lock(file: Any) -> bool:
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
