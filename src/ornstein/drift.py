"""What a new request may change in a run that exists.

free      how samples are drawn: takes effect, and that is all
noted     how training goes on (its length, rate, micro-batch): takes effect from here on, and
          the run remembers when it changed
refused   what makes the run what it is (data, architecture, objective, batch, seed)
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ornstein.recipe import Recipe
from ornstein.settings import difference

FREE = ("generation", "preview")
NOTED = tuple(
    f"optim.{name}"
    for name in (
        *("samples", "minutes", "micro_batch", "lr", "betas", "eps", "weight_decay", "clip"),
        *("warmup", "decay", "compile", "recompute", "shard", "snapshots"),
    )
)


class Change(NamedTuple):
    """A value of an existing run that a new request would change."""

    key: str
    old: Any
    new: Any


def changes(stored: Recipe, request: Recipe) -> tuple[Change, ...]:
    """The dotted settings in which a request differs from the one a run was made with."""
    return tuple(Change(key, *pair) for key, pair in difference(stored, request).items())


def refused(found: tuple[Change, ...], allow: tuple[str, ...] = ()) -> tuple[Change, ...]:
    """Those that a run does not take over, unless their key or section is in `allow`."""
    accepted = (*FREE, *NOTED, *allow)
    return tuple(
        change
        for change in found
        if not any(change.key == key or change.key.startswith(f"{key}.") for key in accepted)
    )
