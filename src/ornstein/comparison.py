"""Several runs, or several ways of drawing from one, measured by one rule.

A row is a run and a sampler with the scores of its samples. A score that is stored with the run is
taken over where everything that it depends on is the same: the weights, the sampler, the counts,
the seed, the split and the features. Runs that are still being trained are read at their last
whole checkpoint.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from ornstein import pictures
from ornstein.charts import Curve, Panel, chart
from ornstein.data.images import cache_folder
from ornstein.errors import CheckpointError, ConfigError
from ornstein.features.select import extractor_for
from ornstein.log import last_line
from ornstein.scores import Estimate, Scores, read
from ornstein.strips import stacked, strips

if TYPE_CHECKING:
    from ornstein.diffusion.sampling import Sampling
    from ornstein.run import Run

LIVE = 30.0  # seconds since the last update of a run that is being trained
STRIP = 10  # samples of each row in the picture
POINTS = 2000  # of vector data, drawn as a cloud


class Asked(NamedTuple):
    """What all rows have in common: `Run.scores` says what each is."""

    n: int = 1000
    seed: int = 0
    average: str = ""
    extractor: str = ""
    likelihood: int = 256


class Row(NamedTuple):
    """A run and a sampler. scores: None where there are none, and `note` says why."""

    run: Run
    how: Sampling
    state: str
    scores: Scores | None
    note: str = ""

    @property
    def sampler(self) -> str:
        """The sampler in a word or two, without its number of steps."""
        changed = {
            name: value
            for name, value in self.how.step.model_dump(exclude_defaults=True).items()
            if name != "kind"
        }
        inside = ", ".join(f"{name} {value:g}" for name, value in changed.items())
        return f"{self.how.step.kind}{f' ({inside})' if inside else ''} on {self.how.grid.kind}"


def compared(
    pairs: Iterable[tuple[Run, Sampling]], asked: Asked, fresh: bool = False
) -> Iterator[Row]:
    """A row for each run and sampler, in order; what cannot be measured says so in its note.

    fresh: measure anew what is stored already.
    """
    for run, group in groupby(pairs, key=lambda pair: pair[0]):
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(CheckpointError):  # which each row will say
                stack.enter_context(run.still(asked.average))
            for _, how in group:
                state = state_of(run)
                try:
                    scores = None if fresh else stored(run, how, asked)
                    scores = scores or run.scores(generation=how, **asked._asdict())
                except (CheckpointError, ConfigError) as error:
                    yield Row(run, how, state, None, str(error))
                else:
                    yield Row(run, how, state, scores)


def state_of(run: Run) -> str:
    """`finished`, `34 %` or `not trained yet`, and whether it is being trained now."""
    log = run.path / "metrics.jsonl"
    last = last_line(log)
    if last is None:
        return "not trained yet"
    if last["samples"] >= run.total:
        return "finished"
    live = time.time() - log.stat().st_mtime < LIVE
    return f"{last['samples'] / run.total:.0%}{', live' if live else ''}"


def stored(run: Run, how: Sampling, asked: Asked) -> Scores | None:
    """The newest record of the run that answers the same question, if there is one."""
    weights = run.weights(asked.average)
    eye = extractor_for(run.dataset, 0, cache_folder(), asked.extractor, run.device)
    expected = min(asked.likelihood, len(run.dataset.held_out)) if how.no_law is None else 0
    for scores in reversed(read(run.path / "scores.json")):
        if not isinstance(scores, Scores) or scores.made is None:
            continue
        protocol = scores.protocol
        same = (
            scores.made.weights == weights
            and scores.made.generation == how.model_dump(mode="json")
            and (protocol.generated, protocol.seed) == (asked.n, asked.seed)
            and (protocol.extractor, protocol.weights) == (eye.name, eye.weights)
            and (protocol.split, protocol.data) == ("train", run.info.fingerprint)
            and (scores.likelihood.count if scores.likelihood else 0) == expected
        )
        if same:
            return scores
    return None


def difference(rows: list[Row]) -> str:
    """Why the scores of some rows do not compare, in a sentence; empty where they do."""
    protocols = [row.scores.protocol for row in rows if row.scores is not None]
    for name, what in (
        ("data", "their data"),
        ("sha256", "the samples that they are measured against"),
        ("extractor", "the features"),
        ("weights", "the weights of the extractor"),
        ("generated", "the number of samples"),
        ("seed", "the seed"),
    ):
        if len({getattr(protocol, name) for protocol in protocols}) > 1:
            return f"these scores do not compare: {what} differ"
    return ""


def picture(rows: list[Row], asked: Asked) -> Image.Image:
    """The same seeds drawn by each row, and curves against evaluations where there are any."""
    shown = [row for row in rows if row.scores is not None]
    labels = [label(row, shown) for row in shown]
    colours = _groups(shown)
    vectors = shown[0].run.info.kind != "image"
    drawn = []
    for row in shown:
        n = POINTS if vectors else STRIP
        x = row.run.generate(n, asked.seed, generation=row.how, average=asked.average)
        if vectors:
            drawn.append([pictures.picture(x, row.run.info)])
        else:
            drawn.append([pictures.single(one, row.run.info) for one in x])
    if vectors:  # clouds stand side by side
        below = strips([("", [cloud for (cloud,) in drawn])], labels)
    else:
        below = strips(list(zip(labels, drawn, strict=True)), colours=colours)
    panels = _panels(shown, colours)
    return stacked([chart(panels), below]) if panels else below


def label(row: Row, rows: list[Row]) -> str:
    """What tells a row from the others."""
    parts = []
    if len({other.run.path for other in rows}) > 1:
        parts.append(row.run.path.name)
    if len({other.sampler for other in rows}) > 1 or not parts:
        parts.append(row.sampler)
    if len({other.how.steps for other in rows}) > 1:
        parts.append(f"{row.how.steps} steps")
    return ", ".join(parts)


def _groups(rows: list[Row]) -> list[int]:
    """Rows that differ in their steps only have one number, in the order in which they come."""
    keys = [(row.run.path, row.sampler) for row in rows]
    known = list(dict.fromkeys(keys))
    return [known.index(key) for key in keys]


def _panels(rows: list[Row], groups: list[int]) -> list[Panel]:
    """Scores against evaluations, one curve for each group of several step counts."""

    def curves(found: list[Estimate | None]) -> list[Curve]:
        made = []
        for group in dict.fromkeys(groups):
            points = sorted(
                (row.how.evaluations, estimate.value, estimate.low, estimate.high)
                for row, estimate, own in zip(rows, found, groups, strict=True)
                if own == group and estimate is not None
            )
            if points:
                firsts = [rows[groups.index(one)] for one in dict.fromkeys(groups)]
                name = label(rows[groups.index(group)], firsts)
                x, y, low, high = zip(*points, strict=True)
                made.append(Curve(x, y, name, low, high, markers=True))
        return made

    if len({row.how.evaluations for row in rows}) < 2 or len(set(groups)) == len(rows):
        return []
    scores = [row.scores for row in rows if row.scores is not None]
    name = scores[0].protocol.names["frechet"]
    panels = [
        Panel(curves([s.frechet for s in scores]), name, "evaluations of the network", x_log=True)
    ]
    bits = [None if s.likelihood is None else s.likelihood.bits_per_dim for s in scores]
    if len([b for b in bits if b is not None]) > 1:
        panels.append(Panel(curves(bits), "bits/dim", "evaluations of the network", x_log=True))
    return panels
