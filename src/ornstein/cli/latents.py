"""`ornstein latents`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def latents(
    run: str,
    *,
    n: Annotated[int | None, Parameter(name=["--number", "-n"])] = None,
    columns: int = 9,
    seed: int = 0,
    average: str = "",
    out: Path = Path("traversals.png"),
    map_out: Annotated[Path, Parameter(name="--map")] = Path("latent_map.png"),
    runs: Path = Path("runs"),
) -> int:
    """Draw what the numbers of an autoencoder's code mean, and where samples lie.

    Parameters
    ----------
    run: str
        A run's name or folder.
    n: int
        Of how many held-out samples the codes are looked at; by default of all.
    columns: int
        In how many steps a unit goes from -2 to 2 standard deviations.
    seed: int
        Seed of the choice of samples; the first is the one whose code is changed.
    average: str
        Which average of the weights; "none" for the last weights.
    out: Path
        The picture of traversals to write: a row for each unit, the others staying as they are.
    map_out: Path
        The picture to write of where held-out samples lie, in the colours of their classes; of a
        code of two numbers also of what is decoded all over the plane.
    runs: Path
        The folder of all runs.
    """
    from ornstein import fsops
    from ornstein.errors import ConfigError
    from ornstein.run import Run

    fsops.check_picture(out)
    fsops.check_picture(map_out, "--map")
    if columns < 2:
        raise ConfigError(f"a traversal has at least 2 columns, its ends; got {columns}")
    opened = Run.open(run, runs)

    from ornstein import latent_pictures as draw
    from ornstein import latents as of
    from ornstein import pictures
    from ornstein.cli.progress import counted

    of.check_moves(opened)
    if opened.info.kind != "image":
        raise ConfigError(f"the samples of {run} are no images, so there is nothing to draw")
    with opened.still(average):
        codes = of.codes(opened, n, seed, average, progress=counted("encoded"))
        moved = of.traversals(opened, codes, columns, average)
        plane = of.latent_map(opened, codes, average=average) if codes.z.shape[1] > 1 else None
    written = [(out, "--out", draw.picture_of_traversals(moved, opened))]
    if plane is not None:
        written.append((map_out, "--map", draw.picture_of_map(plane, opened)))
    for path, option, drawn in written:
        fsops.make_folder(path.parent, option)
        fsops.replace(path, pictures.png(drawn), option)
        print(path)
    return 0
