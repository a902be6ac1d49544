"""Processes that work together: which of them this one is, and what they agree on.

    with joined():              one of the processes that torchrun has started, if it has
        with alike():           what fails on one of them fails on all, before anything goes on
            if leads(): ...     the lead alone writes to the run's folder
        stop, due = agreed(stop, due)

A process alone is its own lead and agrees with itself, so no caller asks how many there are. What
is exchanged here are tensors, over the processor, whatever device trains.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from ornstein.errors import ConfigError, OrnsteinError, ProcessLost
from ornstein.lazy import torch

T = TypeVar("T")
# The lead may read a million images while the others wait; who has gone is noticed at once.
PATIENCE = timedelta(days=1)
_LOST = ("connection", "broken pipe", "timed out", "timeout", "nccl", "recvvalue failed", "peer")


def rank() -> int:
    """The number of this process, from 0."""
    return _dist().get_rank() if joined_now() else 0


def world() -> int:
    """How many processes work together."""
    return _dist().get_world_size() if joined_now() else 1


def leads() -> bool:
    """Whether this process writes and speaks for all."""
    return rank() == 0


def expected() -> int:
    """How many processes were started to work together, whether they have joined or not."""
    try:
        return int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return 1


def local() -> int:
    """The number of this process among those on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if expected() > 1 else 0


def joined_now() -> bool:
    """Whether this process has joined others."""
    if "torch" not in sys.modules:  # whoever has joined has imported it
        return False
    return bool(_dist().is_available() and _dist().is_initialized())


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Within, this process works together with those that were started with it (torchrun's
    environment: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT). Alone, it does nothing.

    Raises: ConfigError where the others do not come.
    """
    if expected() < 2 or joined_now():
        yield
        return
    dist = _dist()
    gpu = torch.cuda.is_available() and os.environ.get("ORNSTEIN_DEVICE", "cuda") != "cpu"
    if gpu:
        torch.cuda.set_device(local())
    try:
        store, number, count = next(dist.rendezvous("env://", timeout=PATIENCE))
        # torchrun keeps its store when it starts processes again, with the addresses of the dead.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            store=dist.PrefixStore(f"attempt-{attempt}", store),
            rank=number,
            world_size=count,
            timeout=PATIENCE,
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{expected()} processes were to work together and did not meet "
            f"({str(error).splitlines()[0][:120]}); start them with torchrun"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(RuntimeError):  # one that has gone cannot say goodbye
            dist.destroy_process_group()


def agreed(*values: int) -> tuple[int, ...]:
    """The largest of each value over all processes; every process must ask."""
    if world() == 1:
        return values
    found = torch.tensor(values, dtype=torch.int64)
    with watching():
        _dist().all_reduce(found, _dist().ReduceOp.MAX)
    return tuple(found.tolist())


def from_lead(value: int) -> int:
    """What the lead has."""
    return agreed(value if leads() else -(2**63))[0]


def text_from_lead(text: str) -> str:
    """The lead's text; what other processes give does not matter."""
    if world() == 1:
        return text
    content = text.encode() if leads() else b""
    size = from_lead(len(content))
    held = torch.zeros(size, dtype=torch.uint8)
    if leads():
        held = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    if size:
        with watching():
            _dist().broadcast(held, 0)
    return bytes(held.tolist()).decode()


def gathered(x: torch.Tensor) -> torch.Tensor:
    """The rows of all processes' tensors [n, *] on the CPU, in the order of their ranks; n may
    differ. Every process gets all of them."""
    if world() == 1:
        return x
    x = x.detach().cpu().contiguous()
    counts = [0] * world()
    counts[rank()] = len(x)
    most = max(counts := list(agreed(*counts)))
    padded = x.new_zeros(most, *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in counts]
    with watching():
        _dist().all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


@contextlib.contextmanager
def alike() -> Iterator[None]:
    """Within, no process talks to another; at the end all wait for each other, and an error that
    one of them had is raised by all: by others as the same kind, with `shared` set, since whoever
    had it tells it."""
    failed: OrnsteinError | None = None
    try:
        yield
    except OrnsteinError as error:
        if world() == 1:
            raise
        failed = error
    if world() == 1:
        return
    code, first = agreed(failed.code if failed else 0, world() - rank() if failed else 0)
    if failed is not None and world() - rank() == first:
        raise failed
    if code:
        kind = next((k for k in OrnsteinError.__subclasses__() if k.code == code), OrnsteinError)
        elsewhere = kind(f"process {world() - first + 1} of {world()} failed, so all stop")
        elsewhere.shared = True
        raise elsewhere


def in_turn(work: Callable[[], T]) -> T:
    """What `work` returns: done by the lead first, then by the others, who find what it left.

    Raises: as `alike`.
    """
    found: list[T] = []
    for turn in (True, False):
        with alike():
            if leads() == turn:
                found.append(work())
    return found[0]


def told_by_lead(error: OrnsteinError) -> OrnsteinError:
    """An error that all processes have found alike, marked so that the lead alone tells it."""
    error.shared = not leads()
    return error


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Within, losing another process is an error of ours. Raises: ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        if world() > 1 and lost(error):
            raise ProcessLost(
                "another process of this training has gone; what was saved last is whole: run the "
                "same command again"
            ) from error
        raise


def lost(error: BaseException) -> bool:
    """Whether an error says that another process cannot be reached."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _LOST)


def _dist() -> Any:
    from torch import distributed

    return distributed
