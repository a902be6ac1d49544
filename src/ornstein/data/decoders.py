"""Processes that decode images, so that a decoder that crashes or hangs costs one of them.

A few processes run `ornstein.data.decode`, started afresh and not forked: the threads of torch
do not live through a fork. Each is handed some items at a time, and answers one after the other,
so that it is known which one it was at when it

    ended     it is replaced, and that item is tried once more in a new process, for it may have
              been innocent: another one spoilt the memory, or the system was short of it
    was slow  it is ended and replaced; the item is left out

Answers come in the order of the items, and what is left out depends on nothing but the items:
two readings name the same. No process outlives the reading. When it ends, by an interrupt too,
they are killed; when we are killed, they find nobody who asks, and one that hangs is ended by an
alarm of its own.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

from ornstein.data import decode
from ornstein.data.info import Fit
from ornstein.errors import DataError

LIMIT = 20.0
"""How long reading and decoding one file may take, in seconds."""

START = 60.0
"""How long a process may take to start, in seconds; it takes a tenth of one."""

COMMAND = (sys.executable, "-P", str(Path(decode.__file__)))
"""What decodes. By its path and not as a module, so that it imports nothing but what it needs."""

AT_ONCE = 32
"""How many items are handed to a process at a time, unless they or the answers are large: few
small ones then need one process, and few photos as many as there are."""

CRASHED = "Decoding it crashed."

_HEADER = 1 << 14  # bytes of the header of an answer
_LARGE = 1 << 20  # bytes of what is handed over at a time, and of the answers, if it is several


class Item(NamedTuple):
    """An image that is still to be read. name: as people are told of it. size: in bytes.
    content: its file, its bytes, or why there are none."""

    name: str
    size: int
    content: Path | bytes | decode.Unreadable


class Job(NamedTuple):
    """What is done with every item: fitted to size (H, W); None: only its header is looked at."""

    size: tuple[int, int] | None
    channels: int = 3
    fit: Fit = "crop"

    @property
    def bytes(self) -> int:
        """What the pixels of an answer take."""
        return 0 if self.size is None else self.channels * self.size[0] * self.size[1]


class Answer(NamedTuple):
    """What became of an item: `bad` says why nothing, if anything, and the rest is empty then.

    original: the size (H, W) in which it is seen. sha256: of its bytes. grey: whether it is.
    pixels: uint8 [channels, H, W]. After a look there is only `original`. lost: whether its
    process was.
    """

    bad: str = ""
    original: tuple[int, int] = (0, 0)
    sha256: str = ""
    grey: bool = False
    pixels: bytes = b""
    lost: bool = False


Ask = Callable[[Job, Iterable[Sequence[Item]]], Iterator[Answer]]
"""Answers to all items, in their order."""


class _Lost(Exception):
    """A process that has ended, or that took too long."""

    def __init__(self, slow: bool) -> None:
        self.slow = slow


class _Worker:
    """A process, and what it has sent that nobody has looked at."""

    def __init__(self) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        try:
            self.process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **threads},
                **_OWN_GROUP,
            )
        except OSError as error:
            raise DataError(
                f"images are decoded in a process of their own, and none can be started "
                f"({decode.cause(error)}): end other programs"
            ) from error
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.requests: IO[bytes] = self.process.stdin
        self.answers: IO[bytes] = self.process.stdout
        self.received = bytearray()

    def ask(self, job: Job, items: Sequence[Item]) -> None:
        """Hand over items. _Lost: it has ended."""
        contents = [item.content for item in items]
        bodies = [content for content in contents if isinstance(content, bytes)]
        header = {
            **job._asdict(),
            "limit": LIMIT,
            "items": [len(c) if isinstance(c, bytes) else str(c) for c in contents],
        }
        try:
            decode.write_frame(self.requests, header, *bodies)
        except OSError as error:
            raise _Lost(slow=False) from error

    def answer(self, limit: float, most: int = 0) -> tuple[dict[str, Any], bytes]:
        """The next answer, its body of at most so many bytes.

        _Lost: there is none within the limit, in seconds, or ever, or it is nonsense, as from a
        process whose memory was overwritten.
        """
        length, size = decode.FRAME.unpack(self._take(decode.FRAME.size, limit))
        if length > _HEADER or size > most:
            raise _Lost(slow=False)
        try:
            header: dict[str, Any] = json.loads(self._take(length, limit))
        except (ValueError, RecursionError) as error:
            raise _Lost(slow=False) from error
        return header, self._take(size, limit)

    def _take(self, count: int, limit: float) -> bytes:
        while len(self.received) < count:
            if not _readable(self.answers, limit):
                raise _Lost(slow=True)
            part = os.read(self.answers.fileno(), max(1 << 16, count - len(self.received)))
            if not part:
                raise _Lost(slow=False)
            self.received += part
        taken = bytes(self.received[:count])
        del self.received[:count]
        return taken

    def end(self) -> None:
        """Kill it, wait until it is gone, and close what led to it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.requests, self.answers):
            with suppress(OSError):
                pipe.close()


# A terminal's Ctrl-C is for us alone; we then end them.
_OWN_GROUP: dict[str, Any] = (
    {"process_group": 0} if os.name == "posix" else {"creationflags": 0x200}
)


def _readable(pipe: IO[bytes], limit: float) -> bool:
    """Whether something, be it the end, comes out of a pipe within the limit, in seconds."""
    if not hasattr(select, "poll"):  # Windows cannot wait for a pipe: no limit there
        return True
    waiting = select.poll()
    waiting.register(pipe, select.POLLIN)
    # Once more, should we have been stopped meanwhile, and not the one who answers.
    return bool(waiting.poll(limit * 1000) or waiting.poll(0))


@contextmanager
def decoders(most: int = 4, at_once: int = AT_ONCE) -> Iterator[Ask]:
    """What decodes items, in processes that start when they are needed and end with the context.

    most: how many processes there are, at most; at_once: items that one is handed at a time, at
    most. What it yields raises DataError if no process can be started.
    """
    workers = min(most, os.cpu_count() or 1)
    started, idle = list[_Worker](), deque[_Worker]()
    lock, closed = threading.Lock(), threading.Event()

    def start() -> _Worker:
        """A process that has said that it is there."""
        for _ in range(2):
            with lock:
                if closed.is_set():
                    raise InterruptedError
                worker = _Worker()
                started.append(worker)
            with suppress(_Lost):
                worker.answer(START)
                return worker
        raise DataError(
            "images are decoded in a process of their own, and it ends as soon as it starts: "
            f"see what {' '.join(COMMAND)} says"
        )

    def some(job: Job, items: Sequence[Item]) -> list[Answer]:
        """Answers to items, by one process after the other if need be."""
        answers, again = list[Answer](), False
        while len(answers) < len(items):
            try:
                worker = idle.pop()
            except IndexError:  # none is, or another thread was quicker
                worker = start()
            rest = items[len(answers) :]
            at = len(answers)
            try:
                # What a process was lost at is tried alone, so that nothing else can be the cause.
                worker.ask(job, rest[:1] if again else rest)
                for _ in rest[:1] if again else rest:
                    answers.append(_answer(job, *worker.answer(LIMIT, job.bytes)))
                idle.append(worker)
                again = False
            except _Lost as lost:
                worker.end()
                if closed.is_set():
                    raise InterruptedError from lost
                second = again and len(answers) == at
                again = not (lost.slow or second)
                if lost.slow:
                    answers.append(Answer(f"Decoding it took more than {LIMIT:g} s.", lost=True))
                elif second:
                    answers.append(Answer(CRASHED, lost=True))
        return answers

    def ask(job: Job, blocks: Iterable[Sequence[Item]]) -> Iterator[Answer]:
        waiting = deque[Future[list[Answer]]]()
        for items in _parts(job, blocks, at_once):
            waiting.append(pool.submit(_known_apart, some, job, items))
            if len(waiting) > 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()

    pool = ThreadPoolExecutor(workers)
    try:
        yield ask
    finally:
        with lock:
            closed.set()
        for worker in started:
            worker.process.kill()
        pool.shutdown(cancel_futures=True)
        for worker in started:
            worker.end()


def _parts(job: Job, blocks: Iterable[Sequence[Item]], at_once: int) -> Iterator[list[Item]]:
    """The items in parts of at most so many, which are not large."""
    part, size = list[Item](), 0
    for item in chain.from_iterable(blocks):
        each = max(min(item.size, decode.MAX_FILE), job.bytes)
        if part and (len(part) == at_once or size + each > _LARGE):
            yield part
            part, size = [], 0
        part.append(item)
        size += each
    if part:
        yield part


def _known_apart(
    some: Callable[[Job, Sequence[Item]], list[Answer]], job: Job, items: Sequence[Item]
) -> list[Answer]:
    """Answers to items of which some need no process."""
    known = [_known(item) for item in items]
    unknown = [item for item, why in zip(items, known, strict=True) if not why]
    answers = iter(some(job, unknown))
    return [Answer(why) if why else next(answers) for why in known]


def _known(item: Item) -> str:
    """Why an item cannot be read, where that is known at once."""
    if item.size > decode.MAX_FILE:
        return decode.too_big()
    return str(item.content) if isinstance(item.content, decode.Unreadable) else ""


def _answer(job: Job, header: dict[str, Any], body: bytes) -> Answer:
    """What an answer says. _Lost: nonsense."""
    try:
        if "bad" in header:
            return Answer(str(header["bad"]))
        h, w = map(int, header["original"])
        if len(body) != job.bytes:
            raise ValueError(len(body))
        return Answer("", (h, w), header.get("sha256", ""), header.get("grey", False), body)
    except (KeyError, TypeError, ValueError) as error:
        raise _Lost(slow=False) from error
