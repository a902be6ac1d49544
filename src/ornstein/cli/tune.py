"""`ornstein tune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from ornstein.scores import Estimate
    from ornstein.tuned import Tuned


def tune(
    run: str,
    *,
    nfe: str = "6",
    minutes: float = 3.0,
    starts: int | None = None,
    seed: int = 0,
    average: str = "",
    json: Annotated[bool, Parameter(negative="")] = False,
    runs: Path = Path("runs"),
) -> int:
    """Fit a sampler of few evaluations to a run's model; `sample --nfe` uses it.

    Parameters
    ----------
    run: str
        A run's name or folder.
    nfe: str
        Evaluations of the network for a sample, such as 6 or 5,6,8,10: a sampler for each.
    minutes: float
        How long the fit for each of them may take; it ends earlier where nothing is left to gain.
    starts: int
        How many noises the fit sees, twice as many more judging it; by default 64 to 512, fewer
        for larger samples.
    seed: int
        Seed of the noises.
    average: str
        Which average of the weights; "none" for the last weights.
    json: bool
        Print the records as JSON.
    runs: Path
        The folder of all runs.
    """
    import sys

    from ornstein import fsops
    from ornstein.cli.progress import show
    from ornstein.errors import ConfigError, quote
    from ornstein.run import Run

    try:
        budgets = [int(word) for word in nfe.split(",")]
    except ValueError:
        raise ConfigError(
            f"--nfe takes whole numbers such as 6 or 5,6,8,10, got {quote(nfe)}"
        ) from None
    opened = Run.open(run, runs)
    fsops.check_folder(opened.path)

    from ornstein.tuning import tune as tuned

    live = sys.stderr.isatty()
    records = []
    for step in tuned(
        opened, budgets, seed=seed, average=average, starts=starts, seconds=60 * minutes
    ):
        about = f"{step.evaluations} evaluations: " if step.evaluations else ""
        error = "" if step.error is None else f", error {step.error:.4g}"
        if step.record is not None:
            records.append(step.record)
        done = step.record is not None
        if live or done or not step.what.startswith("round"):
            show(
                f"{chr(27) + '[2K' if live else ''}{about}{step.what}{error}",
                "\r" if live and not done else "\n",
            )
    if json:
        print("[" + ",\n".join(record.model_dump_json(indent=1) for record in records) + "]")
        return 0
    print(table(records))
    print(f"\nuse it: ornstein sample {opened.path} --nfe {records[0].evaluations}")
    return 0


def table(records: list[Tuned]) -> str:
    """What was fitted beside what was known, for a person to read."""
    from ornstein.cli.evaluate import aligned
    from ornstein.diffusion.tuning import DEFAULT, FITTED

    rows = [["evaluations", "default", "best fixed solver", "fitted", "fitted/best fixed", "kept"]]
    for record in records:
        fit = record.errors[FITTED]
        rows.append(
            [
                str(record.evaluations),
                _form(record.errors[DEFAULT]),
                f"{_form(record.errors[record.best])} {record.best}",
                _form(fit),
                f"{record.ratio.value:.2f} ± {_reach(record.ratio):.2f}"
                if record.chosen == FITTED
                else "",
                "fitted" if record.chosen == FITTED else record.best,
            ]
        )
    lines = [
        *aligned(rows),
        "",
        "error: mean distance to where the flow ends from the same noise (root mean square over "
        "the values of",
        f"a sample, at the model's scale), ± 95 %, of {records[0].unseen} noises that the fit has "
        f"not seen; that end is known to {records[0].teacher:.1g}",
    ]
    for record in records:
        if record.cut:
            lines.append(
                f"{record.evaluations} evaluations: time ended the fit after {record.rounds} "
                "rounds; --minutes gives it more"
            )
        if record.chosen != FITTED:
            lines.append(
                f"{record.evaluations} evaluations: the fit is not clearly better than "
                f"{record.best}, which is kept"
            )
    return "\n".join(lines)


def _form(found: Estimate) -> str:
    return f"{found.value:.4f} ± {_reach(found):.4f}"


def _reach(found: Estimate) -> float:
    return 0.5 * (found.high - found.low)
