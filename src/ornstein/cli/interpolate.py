"""`ornstein interpolate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def interpolate(
    run: str,
    *overrides: str,
    n: Annotated[int, Parameter(name=["--number", "-n"])] = 6,
    columns: int = 9,
    between: Literal["held_out", "drawn"] = "held_out",
    seed: int = 0,
    average: str = "",
    out: Path = Path("interpolation.png"),
    runs: Path = Path("runs"),
) -> int:
    """Draw the way from one image to another through the latents of the probability flow.

    Parameters
    ----------
    run: str
        A run's name or folder.
    overrides: str
        How to generate, such as clip=true flow.tolerance=1e-4.
    n: int
        How many rows.
    columns: int
        How many images a row, the two reconstructions included.
    between: Literal["held_out", "drawn"]
        What is at the ends: held-out samples of the data, or samples drawn from the run.
    seed: int
        Seed of the choice.
    average: str
        Which average of the weights; "none" for the last weights.
    out: Path
        The picture to write.
    runs: Path
        The folder of all runs.
    """
    from ornstein import fsops
    from ornstein.cli.request import generation
    from ornstein.errors import ConfigError
    from ornstein.run import Run

    fsops.check_picture(out)
    if n < 1:
        raise ConfigError(f"the number of rows must be at least 1, got {n}; write --number 6")
    opened = Run.open(run, runs)
    if opened.info.kind != "image":
        raise ConfigError(f"the samples of {run} are no images, so there is nothing to draw")
    how, _ = generation(opened.recipe.generation, None, overrides)

    from ornstein import pictures
    from ornstein.interpolation import ends, interpolated, picture

    with opened.still(average):
        drawn = between == "drawn"
        pairs = ends(opened, n, seed, drawn=drawn, generation=how, average=average)
        rows = interpolated(opened, *pairs, columns, generation=how, average=average)
    fsops.make_folder(out.parent, "--out")
    fsops.replace(out, pictures.png(picture(rows, opened)), "--out")
    print(f"the ends are reconstructed with a root mean square error of {rows.error:.3g}")
    print(out)
    return 0
