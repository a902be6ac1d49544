"""What a person sees while training: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ornstein.training import Event

PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal
SHOWN_EVERY = 0.2


def watched(
    events: Iterable[Event], start: int, total: int, flops: int, peak: float
) -> Iterator[Event]:
    """Pass events through and show loss, samples/s, GFLOP/s, share of peak, wait and ETA.

    start, total: samples used at the start and to be used. flops: of one sample, forward and
    backward. peak: FLOP/s of this machine.
    """
    live = sys.stderr.isatty()
    began = shown = time.monotonic()
    since = (start, 0.0, 0.0)  # samples, seconds of steps, seconds waited at the last line
    steps_seconds = waited = 0.0
    loss: float | None = None
    rate = 0.0
    for event in events:
        steps_seconds += event.seconds
        waited += event.waited
        now = time.monotonic()
        done = event.samples >= total
        if now - shown >= (SHOWN_EVERY if live else PLAIN_EVERY) or done:
            value = float(event.loss)
            loss = value if loss is None else loss + 0.3 * (value - loss)
            if now > shown:
                rate = (event.samples - since[0]) / max(now - shown, 1e-9)
            share_waited = (waited - since[2]) / max(steps_seconds - since[1], 1e-9)
            average = (event.samples - start) / max(now - began, 1e-9)
            left = (total - event.samples) / max(average, 1e-9)
            text = (
                f"{event.samples / total:4.0%}  {event.samples:,}/{total:,} samples  "
                f"loss {loss:.4f}  {rate:,.0f}/s  {rate * flops / 1e9:,.0f} GFLOP/s "
                f"({rate * flops / peak:.0%} of peak)  data wait {share_waited:.1%}  "
                f"ETA {clock(left)}"
            )
            end = "\r" if live and not done else "\n"
            clear = "\x1b[2K" if live else ""
            show(f"{clear}{text}", end)
            shown, since = now, (event.samples, steps_seconds, waited)
        yield event


def show(text: str, end: str = "\n") -> None:
    """Print on standard error; if nobody reads it any more, the work goes on."""
    with contextlib.suppress(BrokenPipeError):
        print(text, end=end, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Seconds as m:ss, h:mm:ss or, of two days and more, a number of days."""
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:,.1f} days"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def counted(what: str) -> Callable[[int, int], None]:
    """A callback (done, total) that shows a count on a terminal."""

    def count(done: int, total: int) -> None:
        if sys.stderr.isatty() and total:
            show(f"\x1b[2K{what}: {done:,}/{total:,}", "\n" if done >= total else "\r")

    return count
