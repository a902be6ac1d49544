"""A process in which torch is imported once, and which forks teams of processes that work together.

It reads requests, a line of JSON each: {"arguments": of `ornstein`, "outputs": a file for each
process, "port": where they meet}. It forks them with torchrun's environment, answers with their
{"pids": [...]}, waits for a line, and answers with {"codes": [...]} when all have ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.reliability.zygote import ROOT, _child, environment

LIMIT = 100.0  # seconds: no team takes that long


class Ended(NamedTuple):
    """How the processes of a team ended: exit codes or −signal, and what each printed."""

    codes: list[int]
    outputs: list[str]


class Team:
    """The test's side of the process. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ranks.team"],
            cwd=ROOT,
            env=environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=LIMIT)

    def __call__(
        self,
        size: int,
        arguments: list[str],
        during: Callable[[list[int]], None] = lambda pids: None,
    ) -> Ended:
        """Let `size` processes run a command; `during` is called with their numbers."""
        outputs = [self._folder / f"output-{rank}.txt" for rank in range(size)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        request = {"arguments": arguments, "outputs": [str(path) for path in outputs]}
        pids = self._ask({**request, "port": port})["pids"]
        during(pids)
        codes = self._ask({})["codes"]
        return Ended(codes, [path.read_text(errors="replace") for path in outputs])

    def _ask(self, request: dict) -> dict:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def act(arguments: list[str], meeting: dict[str, str]) -> None:
    from ornstein import cli

    os.environ.update(meeting)
    cli.main(arguments)


def serve() -> None:
    from tests.reliability import acts

    acts.warm()
    import torch.distributed.checkpoint
    import torch.distributed.fsdp  # noqa: F401  (what else takes long to import)

    threads, deadline = Path("/proc/self/task"), time.monotonic() + 5
    while threads.is_dir() and len(list(threads.iterdir())) > 1:
        assert time.monotonic() < deadline, "a fork would leave threads behind"
        time.sleep(0.01)
    for line in sys.stdin:
        request = json.loads(line)
        size, pids = len(request["outputs"]), []
        for rank, output in enumerate(request["outputs"]):
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request["port"])}
            meeting |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
            meeting |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            words = {"arguments": request["arguments"], "meeting": meeting}
            pids.append(os.fork())
            if pids[-1] == 0:
                _child(act, {"output": output, "with": words})
        print(json.dumps({"pids": pids}), flush=True)
        sys.stdin.readline()
        print(json.dumps({"codes": _codes(pids)}), flush=True)


def _codes(pids: list[int]) -> list[int]:
    deadline, codes = time.monotonic() + LIMIT, dict.fromkeys(pids, 0)
    left = set(pids)
    while left:
        for pid in list(left):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
                left.remove(pid)
            elif time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    return [codes[pid] for pid in pids]


if __name__ == "__main__":
    serve()
