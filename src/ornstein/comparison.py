"""Several runs, or several ways of drawing from one, measured by one rule.

A row is a run and a sampler with the scores of its samples. A score that is stored with the run is
taken over where everything that it depends on is the same: the weights, the sampler, the counts,
the seed, the split and the features. Runs that are still being trained are read at their last
whole checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from ornstein import pictures
from ornstein.charts import Curve, Panel, chart
from ornstein.data.images import cache_folder
from ornstein.errors import CheckpointError, OrnsteinError
from ornstein.features.select import extractor_for
from ornstein.log import progress
from ornstein.scores import Estimate, Scores, read
from ornstein.strips import stacked, strips

if TYPE_CHECKING:
    from ornstein.recipe import Drawing
    from ornstein.run import Run

STRIP = 10  # samples of each row in the picture
POINTS = 2000  # of vector data, drawn as a cloud
ROWS = 4  # of sequences, each of which takes a row
WIDTH = 1600  # of a picture without a chart, in pixels
FAR = 8.0  # a chart whose scores are further apart than this factor is logarithmic


class Asked(NamedTuple):
    """What all rows have in common: `Run.scores` says what each is."""

    n: int = 1000
    seed: int = 0
    average: str = ""
    extractor: str = ""
    likelihood: int = 256


class Row(NamedTuple):
    """A run and a sampler. scores: None where there are none, and `error` says why."""

    run: Run
    how: Drawing
    state: str
    scores: Scores | None
    error: OrnsteinError | None = None

    @property
    def sampler(self) -> str:
        """The sampler in a word or two, without its number of steps."""
        return self.how.words


def compared(
    pairs: Iterable[tuple[Run, Drawing]], asked: Asked, fresh: bool = False
) -> Iterator[Row]:
    """A row for each run and sampler, in order; what cannot be measured says why.

    fresh: measure anew what is stored already.
    """
    states: dict[Path, str] = {}  # one for all rows of a run, though it goes on meanwhile
    for run, how in pairs:
        state = states.setdefault(run.path, state_of(run))
        try:
            scores = None if fresh else stored(run, how, asked)
            scores = scores or run.scores(generation=how, **asked._asdict())
        except OrnsteinError as error:
            yield Row(run, how, state, None, error)
        else:
            yield Row(run, how, state, scores)


@contextlib.contextmanager
def still(runs: Iterable[Run], average: str) -> Iterator[None]:
    """Within, each run is as at its last checkpoint now: its scores and its pictures are of the
    same weights, though another process trains it. A run without a checkpoint is left alone."""
    with contextlib.ExitStack() as stack:
        for run in runs:
            with contextlib.suppress(CheckpointError):  # which each of its rows will say
                stack.enter_context(run.still(average))
        yield


def state_of(run: Run) -> str:
    """`finished`, `training, 34%`, `stopped at 34%` or `not trained yet`."""
    return progress(run.path, run.total).state


def stored(run: Run, how: Drawing, asked: Asked) -> Scores | None:
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
            names = ", ".join(dict.fromkeys(row.run.info.name for row in rows if row.scores))
            which = f" ({names})" if name == "data" else ""
            return f"these scores do not compare: {what} differ{which}"
    return ""


def comparable(rows: list[Row]) -> bool:
    """Whether some two rows with scores compare, or there is but one."""
    protocols = [row.scores.protocol.model_dump_json() for row in rows if row.scores is not None]
    return len(protocols) == 1 or len(set(protocols)) < len(protocols)


def picture(rows: list[Row], asked: Asked) -> Image.Image:
    """The same seeds drawn by each row, and curves against evaluations where there are any."""
    shown = [row for row in rows if row.scores is not None]
    groups = _groups(shown)
    kind = shown[0].run.info.kind
    vectors = kind == "vector"
    lines: dict[int, tuple[str, list[Image.Image]]] = {}
    for i, (row, group) in enumerate(zip(shown, groups, strict=True)):
        n = {"vector": POINTS, "image": STRIP, "sequence": ROWS}[kind]
        x = row.run.generate(n, asked.seed, generation=row.how, average=asked.average)
        if kind == "sequence":
            lines[i] = label(row, shown), [pictures.picture(x, row.run.info)]
            continue
        if not vectors:
            lines[i] = label(row, shown), [pictures.single(one, row.run.info) for one in x]
            continue
        name, clouds = lines.get(group, (_curve_name(shown, groups, group), []))
        more = f"{name}, {row.how.steps}" if clouds else f"{name}: steps {row.how.steps}"
        lines[group] = more, [*clouds, pictures.picture(x, row.run.info)]
    colours = list(lines) if vectors else groups
    panels = [] if difference(shown) else _panels(shown, groups)
    above = [chart(panels)] if panels else []
    width = above[0].width if above else WIDTH
    return stacked([*above, strips(list(lines.values()), width=width, colours=colours)])


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


def _curve_name(rows: list[Row], groups: list[int], group: int) -> str:
    """What tells the rows of a group from those of the others."""
    firsts = [rows[groups.index(one)] for one in dict.fromkeys(groups)]
    return label(rows[groups.index(group)], firsts)


def _panels(rows: list[Row], groups: list[int]) -> list[Panel]:
    """Scores against evaluations and seconds, a curve for each group of several step counts."""

    def panel(
        title: str, found: Sequence[Estimate | None], across: str, cost: Sequence[float | None]
    ) -> Panel:
        made = []
        for group in dict.fromkeys(groups):
            points = sorted(
                (x, y.value, y.low, y.high)
                for x, y, own in zip(cost, found, groups, strict=True)
                if own == group and x is not None and y is not None
            )
            if points:
                x, y, low, high = zip(*points, strict=True)
                name = _curve_name(rows, groups, group)
                made.append(Curve(x, y, name, low, high, markers=True))
        values = [y.value for y in found if y is not None]
        wide = min(values) > 0 and max(values) > FAR * min(values)
        return Panel(made, title, across, x_log=True, y_log=wide)

    if len({row.how.evaluations for row in rows}) < 2 or len(set(groups)) == len(rows):
        return []
    scores = [row.scores for row in rows if row.scores is not None]
    name = scores[0].protocol.names["frechet"]
    frechet = [s.frechet for s in scores]
    evaluations = [row.how.evaluations for row in rows]
    seconds = [None if s.made is None else s.made.seconds for s in scores]
    panels = [panel(name, frechet, "evaluations of the network", evaluations)]
    panels.append(panel(name, frechet, "seconds for a sample", seconds))
    bits = [None if s.likelihood is None else s.likelihood.bits_per_dim for s in scores]
    if len([b for b in bits if b is not None]) > 1:
        panels.append(panel("bits/dim", bits, "evaluations of the network", evaluations))
    return panels
