"""`ornstein evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from ornstein.evaluation import Scores


def evaluate(
    run: str,
    *overrides: str,
    n: Annotated[int, Parameter(name=["--number", "-n"])] = 1000,
    seed: int = 0,
    steps: int | None = None,
    average: str = "",
    json: Annotated[bool, Parameter(negative="")] = False,
    runs: Path = Path("runs"),
) -> None:
    """Score a run's samples, with references and an interval.

    Parameters
    ----------
    run: str
        A run's name or folder.
    overrides: str
        How to generate, such as step=jump grid=trailing.
    n: int
        How many samples to generate.
    seed: int
        Seed of the samples, the halves and the interval.
    steps: int
        Steps of the sampler.
    average: str
        Which average of the weights; "none" for the last weights.
    json: bool
        Print the scores as JSON.
    runs: Path
        The folder of all runs.
    """
    from ornstein.cli.request import generation
    from ornstein.run import Run

    opened = Run.open(run, runs)
    chosen, _ = generation(opened.recipe.generation, steps, overrides)
    scores = opened.scores(n, seed, generation=chosen, average=average)
    print(scores.model_dump_json(indent=1) if json else table(scores))


def table(scores: Scores) -> str:
    """Scores with what they are measured against, for a person to read."""
    held_out = (
        ""
        if scores.held_out is None
        else f"  {scores.held_out:8.3f}  {scores.held_out_count:,} held-out real samples\n"
    )
    sure = (
        ""
        if scores.confidence is None
        else (
            f"the classifier (held-out accuracy {scores.accuracy:.1%}) is {scores.confidence:.0%} "
            f"sure of its class on average; entropy of classes {scores.entropy:.2f} nats\n"
        )
    )
    return (
        f"{scores.name} of {scores.generated:,} samples to {scores.reference:,} of the training "
        f"split\n(features: {scores.extractor}; seed {scores.seed})\n"
        f"  {scores.value:8.3f}  this model, 95 % interval {scores.low:.3f} to {scores.high:.3f}\n"
        f"  {scores.halves:8.3f}  two halves of the real data, {scores.reference // 2:,} each\n"
        f"{held_out}"
        f"  {scores.gaussian:8.3f}  1,000 samples of one Gaussian fitted to the data\n"
        "(a distance falls with the number of samples: compare at equal counts)\n"
        f"{sure}"
        f"memorised: {scores.memorised:.1%} are as near to a training sample as the nearest 1 % "
        "of unseen data"
    )
