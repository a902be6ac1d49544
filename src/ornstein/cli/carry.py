"""Training as a person runs it: announced, watched, stopped by Ctrl-C, and summed up."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ornstein import ranks
from ornstein.cli.progress import clock, counted, show, watched
from ornstein.cli.request import Request
from ornstein.errors import printable

if TYPE_CHECKING:
    from ornstein.data.info import BadFile, Originals
    from ornstein.trackers import Tracker


ECHO = 1.0  # seconds within which a second signal is the first one, passed on


class Outcome(NamedTuple):
    """A run, and the exit code of training it: 0, or 128 + the signal that stopped it."""

    run: Any
    code: int


def carry_out(
    asked: Request,
    *,
    runs: Path,
    name: str | None = None,
    save_every: float = 60.0,
    fresh: bool = False,
    allow: tuple[str, ...] = (),
    previews: bool = True,
    trackers: Sequence[type[Tracker]] = (),
) -> Outcome:
    """Make or find the run that is asked for, and train it to its end or until it is stopped."""
    import torch

    from ornstein.run import Run, checked_name
    from ornstein.training import flops_per_sample, matmul_peak, precision

    for note in asked.notes:
        say(note)
    path = runs / (asked.recipe.run_name() if name is None else checked_name(name))
    if fresh:
        Run.plan(asked.recipe, path / "planned")  # what is refused must not move the old run
        with ranks.alike():
            if ranks.leads():
                _set_aside(path)
    if asked.recipe.optim.samples is None and not path.exists():
        say(f"measuring the speed, for a training of {asked.recipe.optim.minutes:g} minutes")
    run = Run.create(
        asked.recipe, runs, name, asked.provenance, allow=allow, progress=counted("reading")
    )
    run.check_references()
    _report_data(run)
    if ranks.from_lead(run.finished):
        say(
            f"{run.path} is finished ({run.samples:,} samples); "
            "train longer with --samples or --minutes, or draw from it: "
            f"ornstein sample {run.path}"
        )
        return Outcome(run, 0)
    start = run.samples
    learner = run.untrained().to(run.device)
    parameters = sum(p.numel() for p in learner.parameters())
    flops = flops_per_sample(learner, run.source(), run.recipe.seed)
    del learner  # a copy of all weights
    bf16 = precision(run.recipe.optim.precision, run.device) == "bf16"
    peak = ranks.world() * matmul_peak(run.device, torch.bfloat16 if bf16 else torch.float32)
    resumed = f", resumed at {start:,}" if start else ""
    threads = torch.get_num_threads()
    each = f"{ranks.world()} processes, each with " if ranks.world() > 1 else ""
    say(
        f"{run.path}: {parameters:,} parameters, {run.total:,} samples{resumed}, "
        f"{run.device} with {each}{threads} thread{'s' * (threads != 1)}"
    )
    begun = time.monotonic()
    with _stopping() as received:
        events = run.train(
            save_every=save_every,
            previews=previews,
            stop=lambda: received[0] if received else 0,
            trackers=trackers,
        )
        for _event in watched(events, start, run.total, flops, peak):
            pass
    if run.stopped and not run.finished:
        say(f"\nstopped after a save; the same command goes on: {run.path}")
        return Outcome(run, 128 + run.stopped)
    drawn = run.path / "previews"
    pictures = f"; pictures in {drawn}" if previews and drawn.is_dir() else ""
    say(f"trained in {clock(time.monotonic() - begun)}{pictures}")
    return Outcome(run, 0)


def say(text: str) -> None:
    """A line for the person at the terminal."""
    show(text)


def about_data(run: Any) -> list[str]:
    """What is known of a run's data, a line for each thing."""
    info, bad = run.info, run.dataset.bad
    classes = f", {len(info.classes)} classes" if info.classes else ""
    shape = "×".join(map(str, info.shape))
    resizing = _resizing(run.recipe.data, info.shape, run.dataset.originals)
    return [
        f"data: {info.name}, {info.count:,} samples of {shape}{classes}, "
        f"{info.held_out:,} held out",
        *filter(None, [resizing]),
        *(f"skipped {printable(file.path)}: {file.reason}" for file in bad[:5]),
        *([f"... and {len(bad) - 5:,} more"] if len(bad) > 5 else []),
    ]


def _report_data(run: Any) -> None:
    for line in about_data(run):
        say(line)
    from ornstein import fsops

    bad = run.dataset.bad
    with ranks.alike():
        if bad and ranks.leads():
            fsops.replace(run.path / "bad_files.tsv", bad_table(bad).encode("utf-8"))
    if bad:
        say(f"{len(bad):,} unreadable files were skipped; {run.path}/bad_files.tsv lists them")


def _resizing(source: Any, shape: tuple[int, ...], sizes: Originals | None) -> str:
    """How images came by the size [..., H, W] that they have; "" where all of them had it."""
    if sizes is None or set(sizes) == {shape[-2:]}:
        return ""
    h, w = shape[-2:]
    small, middle, large = (f"{width}×{height}" for height, width in sizes)
    which = large if small == large else f"{small} to {large} (half of them up to {middle})"
    if small == large and sizes.median[0] * w == sizes.median[1] * h:
        how = ""  # the proportions are right
    else:
        how = {"pad": "padded to a square and ", "stretch": "stretched to a square and "}.get(
            getattr(source, "fit", "crop"), "cut square and "
        )
    change = "enlarged" if max(sizes.largest) < min(h, w) else "resized"
    # Who has chosen a size needs no advice on it.
    more = getattr(source, "size", h) is None and min(sizes.median) >= 2 * max(h, w)
    advice = f"; data.size={2 * h} for more detail (about 4 times the work)" if more else ""
    return f"images of {which} are {how}{change} to {w}×{h}{advice}"


def bad_table(bad: Sequence[BadFile]) -> str:
    """A line for each file that was left out: its name, a tab and the reason."""
    return "".join(f"{printable(file.path)}\t{file.reason}\n" for file in bad)


def _set_aside(path: Path) -> None:
    """Rename the run that would be found, so that a fresh one takes its place."""
    from ornstein import fsops
    from ornstein.log import locked

    if (path / "recipe.yaml").exists():
        moved = path.with_name(f"{path.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
        with locked(path):
            fsops.rename(path, moved)
        say(f"set the old run aside as {moved}")


@contextlib.contextmanager
def _stopping() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP, so that the update in progress is finished and saved.

    A second Ctrl-C stops at once; the last checkpoint is whole then too. Of several processes,
    each gets a Ctrl-C from the terminal and from who has started them: that is one.
    """
    received: list[int] = []
    first = 0.0

    def note(number: int, _frame: object) -> None:
        nonlocal first
        if not received:
            first = time.monotonic()
            received.append(number)
        elif ranks.world() == 1 or time.monotonic() - first > ECHO:
            raise KeyboardInterrupt(received[0])

    signals = [signal.SIGINT, signal.SIGTERM, *filter(None, [getattr(signal, "SIGHUP", None)])]
    before = {number: signal.signal(number, note) for number in signals}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
