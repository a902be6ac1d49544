"""What the children of the zygote do, and the page on which they say how far they are.

A page is a small file that a child maps into its memory; what it has written there is readable
when it has been killed.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from ornstein import checkpoint, cli, log
from ornstein import run as run_module
from ornstein import training as training_module
from ornstein.run import Run
from tests.reliability import small
from tests.reliability.disk import Disk, Operation
from tests.reliability.families import FAMILIES
from tests.reliability.loaders import living, poisoned, unpickling

__all__ = ["command", "living", "planned", "poisoned", "saving", "training", "unpickling", "warm"]

START, UPDATE, SAVE, PRUNE, PREVIEW, DONE = range(6)
PHASES = ("start", "update", "save", "prune", "preview", "done")
UPDATES = 4096  # more than any family is trained for


class Page:
    """phase: one of the above. step: the last update that was done. since: when the interval of
    the next save began, or a little later. done: when each update was done, by its step."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(8 * (3 + UPDATES)))
        with path.open("r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        self._numbers = np.frombuffer(memory, np.int64, 2)
        self._since = np.frombuffer(memory, np.float64, 1, 16)
        self.done = np.frombuffer(memory, np.float64, UPDATES, 24)

    @property
    def phase(self) -> int:
        return int(self._numbers[0])

    @phase.setter
    def phase(self, value: int) -> None:
        self._numbers[0] = value

    @property
    def step(self) -> int:
        return int(self._numbers[1])

    @step.setter
    def step(self, value: int) -> None:
        self._numbers[1] = value

    @property
    def since(self) -> float:
        return float(self._since[0])

    @since.setter
    def since(self, value: float) -> None:
        self._since[0] = value


@contextlib.contextmanager
def watched(page: Page) -> Iterator[None]:
    """Within, what a run does is noted on the page."""

    def noted(real, phase):
        def call(*words, **named):
            before, page.phase = page.phase, phase
            try:
                return real(*words, **named)
            finally:
                page.phase = before

        return call

    def add(self: log.Log, event) -> None:
        page.done[event.step] = time.monotonic()
        page.step = event.step
        real_add(self, event)

    real_add = log.Log.add
    with (
        mock.patch.object(checkpoint, "save", noted(checkpoint.save, SAVE)),
        mock.patch.object(checkpoint, "_prune", noted(checkpoint._prune, PRUNE)),
        mock.patch.object(Run, "_preview_of", noted(Run._preview_of, PREVIEW)),
        mock.patch.object(log.Log, "add", add),
    ):
        yield


def warm() -> None:
    """Import what the acts need, and let the first calls of torch be over."""
    for steps in (2, 4, 6):
        small.at(steps)


def training(family: str, folder: str, save_every: float, page: str) -> None:
    """Begin or go on with a training of a family, with previews."""
    watch = Page(Path(page))
    watch.phase, watch.step, watch.since = START, 0, 0.0
    with watched(watch), mock.patch.object(run_module, "PREVIEW_SHARE", 0.1):
        run = Run.create(FAMILIES[family](Path(folder)), Path(folder), "job")
        saved = None
        for _ in run.train(save_every=save_every):
            watch.phase = UPDATE
            newest = checkpoint.newest(run.path / "ckpt")
            if newest != saved or not watch.since:
                saved, watch.since = newest, time.monotonic()
    watch.phase = DONE


def planned(file: str, folder: str, cache: str, save_every: float) -> None:
    """Begin or go on with the plan in a file, as the command does."""
    os.environ["ORNSTEIN_CACHE"] = cache
    speed = mock.patch.object(training_module, "matmul_peak", return_value=1e9)
    with speed, mock.patch.object(run_module, "PREVIEW_SHARE", 0.1):
        words = ["--run", "p", "--runs", folder, "--save-every", str(save_every)]
        cli.main(["train", file, *words])


def saving(folder: str, k: int, torn: bool) -> None:
    """Save a third checkpoint, which removes the first, and die at the k-th operation."""

    def between(now: int, _: Operation) -> None:
        if now == k:
            os.kill(os.getpid(), signal.SIGKILL)

    with Disk(Path(folder), between, torn):
        small.save(Path(folder), 6)


def command(arguments: list[str], folder: str, refusals: list, signals: list) -> None:
    """Run a command of `ornstein`, on a disk that refuses and among signals.

    refusals: [kind, part of the path, number]: what fails so from now on. signals: [kind, part of
    the path, n, numbers]: at the n-th such operation these signals arrive, one after another.
    """
    count: Counter[str] = Counter()

    def between(_: int, operation: Operation) -> None:
        for kind, part, number in refusals:
            if operation.kind in (kind or operation.kind) and part in operation.path:
                raise OSError(number, os.strerror(number))
        for kind, part, n, numbers in signals:
            if operation.kind == kind and part in operation.path:
                count[part] += 1
                if count[part] == n:
                    for number in numbers:
                        os.kill(os.getpid(), number)

    # The speed of this machine is not what is tested, and takes a third of a second.
    speed = mock.patch.object(training_module, "matmul_peak", return_value=1e9)
    with Disk(Path(folder), between), speed:
        cli.main(arguments)
