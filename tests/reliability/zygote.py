"""A process in which torch is imported once, and which forks a child for every act of a test.

Importing torch takes seconds, and a test that kills processes starts many. This one has a single
thread, so that a fork of it is whole. It reads requests, a line of JSON each,

    {"act": a function of `acts`, "with": its arguments, "output": a file,
     "after": seconds, "signals": numbers}

forks, waits for the child (for so long at most, where that is given; then it sends the signals,
20 ms apart, and waits on), and answers with {"code": as `subprocess` counts them, "seconds": how
long the child lived}.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

ROOT = Path(__file__).parents[2]
LIMIT = 100.0  # seconds: no act takes that long


class Ended(NamedTuple):
    """How a child ended: the exit code or −signal, its life in seconds, and what it printed."""

    code: int
    seconds: float
    output: str


def environment(folder: Path) -> dict[str, str]:
    """Of a process that is forked: one thread, no GPU, and a cache of its own."""
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ORNSTEIN_DEVICE": "cpu"}
    return {**os.environ, **one, "ORNSTEIN_CACHE": str(folder / "cache")}


class Zygote:
    """The test's side of the process. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._output = folder / "output.txt"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.zygote"],
            cwd=ROOT,
            env=environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(LIMIT)
        self._process.stdout.close()

    def __call__(
        self,
        act: str,
        *,
        after: float | None = None,
        numbers: tuple[int, ...] = (signal.SIGKILL,),
        **words: Any,
    ) -> Ended:
        """Let a child do something, send it signals after some seconds, and wait for its end."""
        request = {"act": act, "with": words, "output": str(self._output)}
        request |= {"after": after, "signals": numbers if after is not None else ()}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request, default=str) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        text = self._output.read_text(encoding="utf-8", errors="replace")
        return Ended(answer["code"], answer["seconds"], text)


def serve() -> None:
    from tests.reliability import acts

    acts.warm()
    threads, deadline = Path("/proc/self/task"), time.monotonic() + 5
    while threads.is_dir() and len(list(threads.iterdir())) > 1:
        assert time.monotonic() < deadline, "a fork would leave threads behind"
        time.sleep(0.01)  # those that read data are about to end
    for line in sys.stdin:
        request = json.loads(line)
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _child(getattr(acts, request["act"]), request)
        code = _wait(pid, request["after"], request["signals"])
        answer = {"code": code, "seconds": time.monotonic() - started}
        print(json.dumps(answer), flush=True)


def _wait(pid: int, after: float | None, signals: list[int]) -> int:
    deadline = time.monotonic() + (LIMIT if after is None else after)
    waiting = [*signals, signal.SIGKILL] if signals != [signal.SIGKILL] else signals
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            number, *waiting = waiting or [signal.SIGKILL]
            os.kill(pid, number)
            deadline = time.monotonic() + (0.02 if len(waiting) > 1 else LIMIT)
        time.sleep(0.0005)


def _child(act: Any, request: dict[str, Any]) -> NoReturn:
    code = 1
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        output, nothing = os.open(request["output"], flags, 0o644), os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        act(**request["with"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
