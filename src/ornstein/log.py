"""The log of a run, one line for each update, the lock that lets one process write it, and what
others can see of both meanwhile.

Who looks whether a run is in training asks for a shared lock, for an instant, and gets it if nobody
trains. A training that starts in that instant is refused the lock; but it gets a shared one, which
it would not beside another training, so it tells the two apart, and tries again.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ornstein import fsops
from ornstein.errors import StorageError

if TYPE_CHECKING:
    from ornstein.trackers import Following
    from ornstein.training import Event

FLUSH_SECONDS = 1.0
SPAN = 30.0  # seconds of training over which its speed is measured
TAIL = 1 << 16  # bytes at the end of a log that are read for it
LIVE = 30.0  # seconds since the last line of a run in training, where a lock tells nothing


class Log:
    """`metrics.jsonl`: updates wait in memory for a second at most, since reading a loss waits
    for the device, and longer where the disk is full. A context manager.

    followers: what is told as soon as there are new lines.
    """

    def __init__(self, path: Path, followers: Sequence[Following] = ()) -> None:
        self._path = path
        self._followers = followers
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
        for follower in self._followers:
            follower.follow()
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
    while True:
        for operation in (fcntl.LOCK_EX, fcntl.LOCK_SH):
            try:
                fcntl.flock(file, operation | fcntl.LOCK_NB)
            except OSError:
                continue
            if operation == fcntl.LOCK_EX:
                return True
            fcntl.flock(file, fcntl.LOCK_UN)
            time.sleep(1e-3)  # somebody only looks, see `in_training`
            break
        else:
            return False


def in_training(path: Path) -> bool | None:
    """Whether a process holds the run now; None where this system cannot tell. It only looks."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        file = os.open(path / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(file)
    return False


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


class Progress(NamedTuple):
    """How far a run is. training: whether a process trains it now. rate: samples a second of late,
    0 where there is too little to tell. age: seconds since the last line. loss: None before it."""

    samples: int
    total: int
    loss: float | None
    training: bool
    rate: float
    age: float

    @property
    def left(self) -> float:
        """Seconds to the end at this rate; 0 where nothing is known."""
        return max(0, self.total - self.samples) / self.rate if self.rate else 0.0

    @property
    def state(self) -> str:
        """In a few words."""
        share = f"{int(100 * self.samples / self.total)}%"  # 100% at the end alone
        if self.training:
            return f"training, {share}"
        if self.loss is None:
            return "not trained yet"
        return "finished" if self.samples >= self.total else f"stopped at {share}"


def progress(run: Path, total: int) -> Progress:
    """How far the run in a folder is, of `total` samples; another process may be training it."""
    log = run / "metrics.jsonl"
    held = in_training(run)  # before the log, which is whole then if the run ends meanwhile
    lines = tail(log)
    try:
        age = max(0.0, time.time() - log.stat().st_mtime)
    except OSError:
        age = 0.0
    last = lines[-1] if lines else None
    return Progress(
        samples=int(last["samples"]) if last else 0,
        total=total,
        loss=last["loss"] if last else None,
        training=held if held is not None else last is not None and age < LIVE,
        rate=_rate(lines),
        age=age,
    )


def _rate(lines: list[dict[str, float]]) -> float:
    """Samples a second of the last half minute that was spent on updates."""
    samples = seconds = 0.0
    for earlier, line in reversed(list(pairwise(lines))):
        if seconds and seconds + line["seconds"] > SPAN:
            break
        samples += line["samples"] - earlier["samples"]
        seconds += line["seconds"]
    return samples / seconds if seconds else 0.0


def tail(path: Path) -> list[dict[str, float]]:
    """The last lines of a log, oldest first; what is torn is left out."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            content = file.read()
    except OSError:
        return []
    lines = []
    for line in content.splitlines():
        with contextlib.suppress(ValueError):
            if isinstance(value := json.loads(line), dict):
                lines.append(value)
    return lines
