"""Commands on several processes: `--gpus N` starts them, torchrun may have done so already.

Each runs the same command. The first, the lead, speaks; the others are silent, but for an error
that the lead does not know.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

from ornstein import ranks
from ornstein.errors import ConfigError, ProcessLost

ARGUMENTS: ContextVar[Sequence[str]] = ContextVar("ARGUMENTS", default=())
"""The words of the command that is running."""

JOINED: ContextVar[bool] = ContextVar("JOINED", default=False)
"""Whether it has come to the work that processes share."""


def together(gpus: int | None, command: Callable[[], int | None]) -> int:
    """Run a command: in `gpus` processes on this machine, or as one of those that torchrun has
    started, or alone. Returns the exit code.

    Raises: ConfigError for a number of processes that this machine, or torchrun, does not have.
    """
    if gpus is not None and gpus < 1:
        raise ConfigError(f"--gpus must be at least 1, got {gpus}")
    if gpus is not None and gpus > 1 and ranks.expected() == 1:
        return _started(gpus)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.expected()))
    if gpus is not None and gpus != here and ranks.expected() > 1:
        raise ConfigError(
            f"--gpus {gpus} does not go with the {here} processes that torchrun has started; "
            "leave --gpus out"
        )
    with ranks.joined(), _quiet():
        JOINED.set(True)
        return command() or 0


def speaks() -> bool:
    """Whether this process is the lead, or will be once it has joined the others."""
    return ranks.expected() == 1 or os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within, only the lead writes to standard output and standard error."""
    if ranks.leads():
        yield
        return
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _started(count: int) -> int:
    """Run this command again in `count` processes; the exit code of the first that failed."""
    import logging

    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from ornstein.prepare import default_device

    device = default_device()
    if device.type == "cuda" and count > torch.cuda.device_count():
        raise ConfigError(
            f"--gpus {count}: this machine has {torch.cuda.device_count()}; write at most that many"
        )
    if device.type == "cpu":
        from ornstein.cli.carry import say

        say(f"no GPU is used here: {count} processes share the processor")
    # Processes that shared out cores which others use would wait for each other.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // count)))
    logging.disable(logging.CRITICAL)  # what is worth telling, the lead tells
    logs = tempfile.TemporaryDirectory(prefix="ornstein-")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        run_id=uuid.uuid4().hex,
        logs_specs=DefaultLogsSpecs(log_dir=logs.name),
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "ornstein", *ARGUMENTS.get())
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        # A process that ended by a signal has the number below 0; the others have lost it.
        ours = [code for code in codes if code != ProcessLost.code]
        code = min(ours or codes)
        return 128 - code if code < 0 else code
    except SignalException as error:
        return 128 + int(error.sigval)
    finally:
        logging.disable(logging.NOTSET)
        logs.cleanup()
    return 0
