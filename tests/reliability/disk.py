"""A disk that is watched: what changes below a folder is recorded, and a test may come between.

    with Disk(folder, between) as disk: ...       disk.done: the operations, in order

`between(k, operation)` is called before the k-th operation takes place, counted from 0 (of a
write, after half of it where `torn`). What it raises is what the operation raises; it may also end
the process. The functions of `os` that
change a disk are replaced while the disk is watched, so that what `ornstein.fsops` does is seen
and all else below the folder (a plain `open(..., "w")`) is not: `test_operations` shows, by an
audit hook, that there is nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Operation(NamedTuple):
    """kind: create, write, truncate, fsync, rename, mkdir, unlink, rmdir, or a remark of the
    test's. path: relative to the folder. data: what was written, the new name or the new size."""

    kind: str
    path: str
    data: Any = None


NEEDS_ROOM = ("create", "write", "fsync", "rename", "mkdir")
"""The kinds that a full disk can refuse."""


class Disk:
    """See the file's top. Not for several threads that write."""

    def __init__(
        self,
        root: Path,
        between: Callable[[int, Operation], None] | None = None,
        torn: bool = True,
    ) -> None:
        self.root = root.absolute()
        self.done: list[Operation] = []
        self.busy = False  # within an operation that is recorded
        self._torn = torn
        self._between = between or (lambda _k, _operation: None)
        self._open: dict[int, str] = {}
        self._stack = contextlib.ExitStack()
        self._real = {name: getattr(os, name) for name in ("open", "write", "fsync", "close")}

    def __enter__(self) -> Disk:
        simple = {"mkdir": "mkdir", "unlink": "unlink", "remove": "unlink", "rmdir": "rmdir"}
        replaced = {name: self._named(kind, getattr(os, name)) for name, kind in simple.items()}
        replaced |= {"rename": self._moved(os.rename), "replace": self._moved(os.replace)}
        replaced |= {"truncate": self._cut(os.truncate), "ftruncate": self._cut(os.ftruncate)}
        replaced |= {
            "open": self._opened,
            "write": self._written,
            "fsync": self._synced,
            "close": self._closed,
        }
        self._stack.enter_context(mock.patch.multiple(os, **replaced))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def remark(self, kind: str, data: Any) -> None:
        """Put something of the test's own between the operations."""
        self.done.append(Operation(kind, "", data))

    def _inside(self, path: Any) -> str | None:
        """The path relative to the folder, if it is in it."""
        if isinstance(path, int):
            return self._open.get(path)
        whole = Path(path).absolute()
        if whole == self.root or self.root not in whole.parents:
            return None
        return str(whole.relative_to(self.root))

    def _do(self, operation: Operation, act: Callable[[], Any]) -> Any:
        self._between(len(self.done), operation)
        self.done.append(operation)
        self.busy = True
        try:
            return act()
        finally:
            self.busy = False

    def _named(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *rest: Any, **named: Any) -> Any:
            inside = self._inside(path)
            if inside is None:
                return real(path, *rest, **named)
            return self._do(Operation(kind, inside), lambda: real(path, *rest, **named))

        return call

    def _moved(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(source: Any, target: Any, **named: Any) -> Any:
            old, new = self._inside(source), self._inside(target)
            if old is None or new is None:
                return real(source, target, **named)
            operation = Operation("rename", old, new)
            return self._do(operation, lambda: real(source, target, **named))

        return call

    def _cut(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, size: int) -> Any:
            inside = self._inside(path)
            if inside is None:
                return real(path, size)
            return self._do(Operation("truncate", inside, size), lambda: real(path, size))

        return call

    def _opened(self, path: Any, flags: int, *rest: Any, **named: Any) -> int:
        inside = self._inside(path)
        act = lambda: self._real["open"](path, flags, *rest, **named)  # noqa: E731
        if inside is None and Path(path).absolute() != self.root:
            return int(act())
        if flags & WRITES and not Path(path).exists():
            handle = int(self._do(Operation("create", inside or "."), act))
        else:  # nothing changes yet
            self.busy = True
            try:
                handle = int(act())
            finally:
                self.busy = False
        self._open[handle] = inside or "."
        return handle

    def _written(self, handle: int, data: Any) -> int:
        inside = self._open.get(handle)
        if inside is None:
            return int(self._real["write"](handle, data))
        content = bytes(data)
        half = self._real["write"](handle, content[: len(content) // 2]) if self._torn else 0
        act = lambda: half + self._real["write"](handle, content[half:])  # noqa: E731
        return int(self._do(Operation("write", inside, content), act))

    def _synced(self, handle: int) -> None:
        inside = self._open.get(handle)
        if inside is None:
            return self._real["fsync"](handle)
        return self._do(Operation("fsync", inside), lambda: self._real["fsync"](handle))

    def _closed(self, handle: int) -> None:
        self._open.pop(handle, None)
        self._real["close"](handle)


def failing(
    k: int, number: int = errno.ENOSPC, lasting: bool = False, kinds: tuple[str, ...] = NEEDS_ROOM
) -> Callable[[int, Operation], None]:
    """A disk whose k-th operation of these kinds fails; where it is `lasting`, all later ones."""
    count = iter(range(1 << 60))

    def between(_: int, operation: Operation) -> None:
        if operation.kind in kinds:
            now = next(count)
            if now == k or (lasting and now > k):
                raise OSError(number, os.strerror(number))

    return between


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
