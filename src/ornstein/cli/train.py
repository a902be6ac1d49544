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
    """Train a recipe, or a plan of several; the same command goes on where it stopped.

    Parameters
    ----------
    recipe: str
        The name of a recipe or a plan (see `ornstein recipes`) or a YAML file.
    overrides: str
        Dotted settings, such as optim.lr=1e-3 or model.network.channels=[32,64]; of a plan with the
        name of a stage first, such as codec.optim.lr=1e-3.
    data: str
        A folder of images, a .parquet, .npy or .npz file, "digits", "shapes", "moving_digits",
        "moving_shapes", or the name of a toy distribution.
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
    from ornstein.cli import staged
    from ornstein.cli.carry import Outcome, carry_out
    from ornstein.cli.dry_run import dry_run as rehearse
    from ornstein.cli.request import Request, check_options, request
    from ornstein.cli.together import together
    from ornstein.errors import ConfigError
    from ornstein.run import checked_name
    from ornstein.trackers import chosen

    trackers = chosen(track)

    def rehearsed(asked: Request, runs: Path, name: str | None, fresh: bool = False) -> int:
        return rehearse(
            asked, runs=runs, name=name, fresh=fresh, allow=allow_change, previews=previews
        )

    def trained(asked: Request, runs: Path, name: str | None, fresh: bool = False) -> Outcome:
        return carry_out(
            asked,
            runs=runs,
            name=name,
            save_every=save_every,
            fresh=fresh,
            allow=allow_change,
            previews=previews,
            trackers=trackers,
        )

    if staged.is_plan(recipe):
        if minutes is not None or samples is not None:
            raise ConfigError(
                "the stages of a plan have lengths of their own; write STAGE.optim.samples=N or "
                "STAGE.optim.minutes=M for each that you want to change"
            )
        plan = staged.request(recipe, data, file, seed, overrides)
        check_options(recipe, runs, save_every, allow_change)
        folder = runs / (plan.plan.run_name() if run is None else checked_name(run))
        if dry_run:
            return staged.dry_run(plan, folder, rehearsed)
        return together(gpus, lambda: staged.carry_out(plan, folder, fresh, trained))
    staged.check_name(recipe)
    options = {"optim.minutes": minutes, "optim.samples": samples, "seed": seed}
    asked = request(recipe, data, file, options, overrides)
    check_options(recipe, runs, save_every, allow_change)
    if dry_run:
        return rehearsed(asked, runs, run, fresh)
    return together(gpus, lambda: trained(asked, runs, run, fresh).code)
