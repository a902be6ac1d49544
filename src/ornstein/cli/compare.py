"""`ornstein compare`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from ornstein.comparison import Row
    from ornstein.scores import Scores


def compare(
    *words: str,
    steps: str = "",
    step: str = "",
    grid: str = "",
    n: Annotated[int, Parameter(name=["--number", "-n"])] = 1000,
    seed: int = 0,
    average: str = "",
    extractor: str = "",
    likelihood: int = 256,
    fresh: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
    out: Path = Path("compare.png"),
    runs: Path = Path("runs"),
) -> int:
    """Compare runs, or ways of drawing from one: a table and a picture.

    Parameters
    ----------
    words: str
        Names or folders of runs, and settings of how to generate such as step.eta=1 or clip=true.
    steps: str
        Numbers of steps to compare, such as 5,10,20,50.
    step: str
        Steps to compare, such as jump,heun,multistep.
    grid: str
        Grids to compare, such as trailing,karras.
    n: int
        How many samples to generate for each row.
    seed: int
        Seed of the samples, and of what they are compared with.
    average: str
        Which average of the weights; "none" for the last weights.
    extractor: str
        Whose features: classifier, pixels, or a safetensors file with the weights of the FID
        network; by default the classifier where the data has classes.
    likelihood: int
        On how many held-out samples bits/dim is measured, where the sampler has it; 0 for none.
    fresh: bool
        Measure anew what is stored with the runs already.
    json: bool
        Print the rows as JSON.
    out: Path
        The picture to write.
    runs: Path
        The folder of all runs.
    """
    from ornstein import fsops
    from ornstein.cli.progress import show
    from ornstein.cli.request import generation
    from ornstein.errors import ConfigError
    from ornstein.run import Run

    names = [word for word in words if "=" not in word]
    settings = [word for word in words if "=" in word]
    if not names:
        raise ConfigError("compare needs at least one RUN; `ornstein runs` lists them")
    if n < 2:
        raise ConfigError(f"a score needs at least 2 samples, got {n}; write --number 1000")
    if likelihood < 0:
        raise ConfigError(f"a likelihood cannot be of {likelihood} samples; write 0 for none")
    fsops.check_picture(out)
    axes = [
        [f"{key}={value}" for value in dict.fromkeys(text.split(",")) if value] or [""]
        for key, text in (("step", step), ("grid", grid), ("steps", steps))
    ]
    opened = [Run.open(name, runs) for name in dict.fromkeys(names)]
    pairs = [
        (run, generation(run.recipe.generation, None, [*filter(None, changed), *settings])[0])
        for run in opened
        for changed in product(*axes)
    ]

    from ornstein import pictures
    from ornstein.comparison import Asked, comparable, compared, difference, picture, still

    asked = Asked(n, seed, average, extractor, likelihood)
    rows = []
    with still(opened, average):
        for row in compared(pairs, asked, fresh):
            rows.append(row)
            if len(pairs) > 1:
                show(f"{len(rows)} of {len(pairs)}: {row.run.path.name}, {row.sampler}")
        measured = [row for row in rows if row.scores is not None]
        if not measured and rows[0].error is not None:
            raise rows[0].error
        print(_json(rows) if json else table(rows))
        if len({row.run.info.kind for row in measured}) == 1:
            fsops.make_folder(out.parent, "--out")
            fsops.replace(out, pictures.png(picture(rows, asked)), "--out")
            show(f"{out}: the same seeds drawn by each row")
    if not comparable(rows):
        raise ConfigError(f"nothing could be compared: {difference(rows)}")
    for row in rows:
        if row.error is not None:  # said in the table, and to scripts
            raise row.error
    return 0


class _Column:
    """A column of the table: a title, the text of a row, and whether its best is high or low."""

    def __init__(
        self,
        title: str,
        text: Callable[[Row], str],
        value: Callable[[Scores], float | None] | None = None,
        high: bool = False,
    ) -> None:
        self.title, self.text, self.value, self.high = title, text, value, high


def table(rows: list[Row]) -> str:
    """The rows as a table, and above it what is the same in all of them."""
    from ornstein.cli.evaluate import aligned
    from ornstein.comparison import difference

    why = difference(rows)
    common, columns, titles = [], [], []
    for column in _columns(rows):
        cells = [column.text(row) for row in rows]
        if not any(cells):
            continue
        if column.value is None and len(rows) > 1 and len(set(cells)) == 1:
            common.append(f"{column.title} {cells[0]}".strip())
            continue
        if column.value is not None and not why:
            for i in _best(column, rows):
                cells[i] += " *"
            cells = [cell if cell.endswith("*") or not cell else f"{cell}  " for cell in cells]
        titles.append(column.title)
        columns.append(cells)
    lines = []
    if common:
        lines += ["all rows: " + ", ".join(common), ""]
    lines += aligned([titles, *(list(cells) for cells in zip(*columns, strict=True))])
    lines += [f"{row.run.path.name}: {row.error}" for row in rows if row.error]
    scored = [row.scores for row in rows if row.scores is not None]
    if why:
        lines += ["", why]
    elif scored:
        protocol = scored[0].protocol
        lines += [
            "",
            f"{protocol.generated:,} samples a row against {protocol.reference:,} of the training "
            f"split, seed {protocol.seed}; features: {protocol.extractor}",
        ]
        if len(scored) > 1:
            lines.append("* best in its column; where intervals overlap, chance may have decided")
    return "\n".join(lines)


def _columns(rows: list[Row]) -> list[_Column]:
    from ornstein.scores import Metric

    def metric(name: Metric, title: str, form: str, high: bool) -> _Column:
        def text(row: Row) -> str:
            found = row.scores and row.scores.metrics.get(name)
            if not found:
                return ""
            if name == "frechet":
                return f"{found.value:{form}} ({found.low:{form}} to {found.high:{form}})"
            return f"{found.value:{form}}"

        def value(scores: Scores) -> float | None:
            return scores.metrics[name].value if name in scores.metrics else None

        return _Column(title, text, value, high)

    def bits(scores: Scores) -> float | None:
        return None if scores.likelihood is None else scores.likelihood.bits_per_dim.value

    def repeated(scores: Scores) -> float | None:
        return None if scores.reconstruction is None else scores.reconstruction.psnr.value

    def alike(scores: Scores) -> float | None:
        return None if scores.reconstruction is None else scores.reconstruction.ssim.value

    def seconds(scores: Scores) -> float | None:
        return None if scores.made is None else scores.made.seconds

    def of(value: Callable[[Scores], float | None], form: str) -> Callable[[Row], str]:
        def text(row: Row) -> str:
            found = None if row.scores is None else value(row.scores)
            return "" if found is None else f"{found:{form}}"

        return text

    def trained(row: Row) -> str:
        made = row.scores and row.scores.made
        return f"{made.samples_trained:,}" if made else ""

    first = next((row.scores for row in rows if row.scores is not None), None)
    frechet = first.protocol.names["frechet"] if first else "Fréchet distance"
    return [
        _Column("run", lambda row: row.run.path.name),
        _Column("state", lambda row: row.state),
        _Column("recipe", lambda row: row.run.recipe.name),
        _Column("samples trained", trained),
        _Column("sampler", lambda row: row.sampler),
        _Column("steps", lambda row: str(row.how.steps)),
        _Column("evaluations", lambda row: str(row.how.evaluations or "varies")),
        metric("frechet", frechet, ".3f", False),
        metric("kernel", "kernel", ".3g", False),
        metric("precision", "precision", ".3f", True),
        metric("recall", "recall", ".3f", True),
        metric("density", "density", ".3f", True),
        metric("coverage", "coverage", ".3f", True),
        metric("inception", "IS", ".2f", True),
        metric("memorised", "memorised", ".1%", False),
        _Column("bits/dim", of(bits, ".3f"), bits),
        _Column("PSNR", of(repeated, ".2f"), repeated, True),
        _Column("SSIM", of(alike, ".3f"), alike, True),
        _Column("s/sample", of(seconds, ".2g"), seconds),
    ]


def _best(column: _Column, rows: list[Row]) -> list[int]:
    """The rows with the best value of a column, where more than one row has any."""
    assert column.value is not None
    found = {
        i: value
        for i, row in enumerate(rows)
        if row.scores is not None and (value := column.value(row.scores)) is not None
    }
    if len(set(found.values())) < 2:
        return []
    best = max(found.values()) if column.high else min(found.values())
    return [i for i, value in found.items() if value == best]


def _json(rows: list[Row]) -> str:
    import json

    def plain(row: Row) -> dict[str, Any]:
        return {
            "run": row.run.path.name,
            "state": row.state,
            "recipe": row.run.recipe.name,
            "generation": row.how.model_dump(mode="json"),
            "evaluations": row.how.evaluations,
            "scores": None if row.scores is None else row.scores.model_dump(mode="json"),
            "error": None if row.error is None else str(row.error),
        }

    return json.dumps([plain(row) for row in rows], indent=1, ensure_ascii=False)
