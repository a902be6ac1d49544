"""`ornstein train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def train(
    recipe: str,
    *overrides: str,
    data: str | None = None,
    minutes: float | None = None,
    samples: int | None = None,
    seed: int | None = None,
    file: Path | None = None,
    run: str | None = None,
    runs: Path = Path("runs"),
    save_every: float = 60.0,
    fresh: Annotated[bool, Parameter(negative="")] = False,
    allow_change: tuple[str, ...] = (),
    previews: bool = True,
    track: str = "",
    gpus: int | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Train a recipe on your data; the same command goes on where it stopped.

    Parameters
    ----------
    recipe: str
        A recipe's name (see `ornstein recipes`) or a YAML file.
    overrides: str
        Dotted settings, such as optim.lr=1e-3 or model.network.channels=[32,64].
    data: str
        A folder of images, a .parquet, .npy or .npz file, "digits", "shapes", or the name of a toy
        distribution.
    minutes: float
        How long to train; the speed is measured once and turned into samples.
    samples: int
        How long to train, in samples; a longer one extends a finished run.
    seed: int
        Seed of initial weights, data order and noise.
    file: Path
        A YAML file with settings, on top of the recipe.
    run: str
        A name for the run, instead of <recipe>-<data>-<key>.
    runs: Path
        The folder of all runs.
    save_every: float
        Seconds between checkpoints.
    fresh: bool
        Set an existing run of this name aside, and start again.
    allow_change: tuple[str, ...]
        Settings that may differ from those an existing run was made with.
    previews: bool
        Draw pictures at fixed seeds while training, in at most 3 % of the time.
    track: str
        Who else shows the log while it is written: tensorboard, wandb, or both with a comma.
    gpus: int
        How many GPUs of this machine work together, each with a process; without GPUs, how many
        processes share the processor.
    dry_run: bool
        Only say what would be trained, with the source of every setting, and what it would take:
        memory, time and disk. No run is made.
    """
    from ornstein.cli.carry import carry_out
    from ornstein.cli.dry_run import dry_run as rehearse
    from ornstein.cli.request import check_options, request
    from ornstein.cli.together import together
    from ornstein.trackers import chosen

    options = {"optim.minutes": minutes, "optim.samples": samples, "seed": seed}
    asked = request(recipe, data, file, options, overrides)
    check_options(recipe, runs, save_every, allow_change)
    trackers = chosen(track)
    if dry_run:
        return rehearse(
            asked, runs=runs, name=run, fresh=fresh, allow=allow_change, previews=previews
        )
    return together(
        gpus,
        lambda: (
            carry_out(
                asked,
                runs=runs,
                name=run,
                save_every=save_every,
                fresh=fresh,
                allow=allow_change,
                previews=previews,
                trackers=trackers,
            ).code
        ),
    )
