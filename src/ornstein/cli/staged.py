"""Plans on the command line: asked for, rehearsed, and trained stage by stage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ornstein import fsops, ranks
from ornstein.cli.carry import Outcome, say
from ornstein.cli.request import Request, data_words
from ornstein.errors import CheckpointError, ConfigError, nearest
from ornstein.log import locked
from ornstein.plan import FILE, MARK, Asked, Plan, Stage, keep, named, names, resolved
from ornstein.recipe import names as recipes
from ornstein.settings import load_yaml


def is_plan(recipe: str) -> bool:
    """Whether a word names a plan, or a YAML file that holds one."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return "stages" in load_yaml(path)
    return recipe in names()


def check_name(recipe: str) -> None:
    """Raises: ConfigError for a word that is neither a recipe nor a plan nor a file, with the
    nearest that is one."""
    known = [*recipes(), *names()]
    path = Path(recipe)
    if recipe not in known and path.suffix not in (".yaml", ".yml") and not path.is_file():
        raise ConfigError(f"there is no recipe {recipe!r}{nearest(recipe, known)}")


def request(
    recipe: str,
    data: str | None,
    file: Path | None,
    seed: int | None,
    overrides: Sequence[str],
) -> Asked:
    """Merge a plan, a file, options and dotted overrides into one plan.

    recipe: a plan's name, or a YAML file with `stages`. Raises: ConfigError, DataError.
    """
    base: Plan | None = named(recipe) if recipe in names() else None
    if base is None:
        if file is not None:
            raise ConfigError("give one YAML file: either as the plan or with --file")
        file = Path(recipe)
        name = load_yaml(file).get("name")
        base = named(name) if name in names() else None
    words = [] if data is None else data_words(data, overrides)
    words += [] if seed is None else [f"seed={seed}"]
    return resolved(base, file, [*words, *overrides])


def dry_run(asked: Asked, folder: Path, rehearse: Callable[[Request, Path, str], int]) -> int:
    """Print each stage: as `train --dry-run` has it where the runs that it builds on are there.

    Returns the first exit code of a stage that is not 0.
    """
    code = 0
    for stage, waits in zip(asked.plan.stages, _waiting(asked.plan, folder), strict=True):
        print(f"# stage {stage.name}")
        if waits:
            print(stage.recipe.yaml(), end="")
            print(f"\nmemory, time and disk show once stage {waits} is trained")
        else:
            placed = next(s for s in asked.plan.placed(folder).stages if s.name == stage.name)
            given = Request(placed.recipe, asked.provenance[stage.name], ())
            code = code or rehearse(given, folder, stage.name)
        print()
    return code


def carry_out(
    asked: Asked,
    folder: Path,
    fresh: bool,
    train: Callable[[Request, Path, str], Outcome],
) -> int:
    """Train the stages in order; the exit code of the last one that was begun.

    A stage that is finished with this recipe is passed by. Raises: CheckpointError where a stage
    was trained on what an earlier one is no longer; and what training raises.
    """
    for note in asked.notes:
        say(note)
    plan = asked.plan.placed(folder)
    with ranks.alike():
        if ranks.leads():
            if fresh:
                _set_aside(folder, plan)
            if (folder / "recipe.yaml").exists():
                raise ConfigError(
                    f"{folder} is the run of a recipe, and a plan has a run for each stage; choose "
                    "another name with --run"
                )
            keep(plan, folder)
    for number, stage in enumerate(plan.stages, 1):
        say(f"stage {number} of {len(plan.stages)}: {stage.name}")
        outcome = _trained(stage, asked, folder, train)
        if outcome.code:
            return outcome.code
    return 0


def _trained(
    stage: Stage, asked: Asked, folder: Path, train: Callable[[Request, Path, str], Outcome]
) -> Outcome:
    try:
        outcome = train(Request(stage.recipe, asked.provenance[stage.name], ()), folder, stage.name)
        outcome.run.check_references()
    except CheckpointError as error:
        told = CheckpointError(
            f"stage {stage.name}: {error}; to train it on what is there now, move "
            f"{folder / stage.name} away and give the same command"
        )
        told.shared = error.shared
        raise told from error
    return outcome


def _waiting(plan: Plan, folder: Path) -> list[str]:
    """Of each stage the earlier one, as yet without a checkpoint, that it waits for, or ""."""
    from ornstein.checkpoint import newest
    from ornstein.choice import references

    found = []
    for stage in plan.stages:
        needed = [r.path.removeprefix(MARK) for r in references(stage.recipe)]
        missing = [
            one
            for one in needed
            if one in {s.name for s in plan.stages} and newest(folder / one / "ckpt") is None
        ]
        found.append(missing[0] if missing else "")
    return found


def _set_aside(folder: Path, plan: Plan) -> None:
    """Rename a plan's folder, so that a fresh one takes its place."""
    if not (folder / FILE).exists():
        return
    moved = folder.with_name(f"{folder.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
    with contextlib.ExitStack() as held:
        for stage in plan.stages:
            if (folder / stage.name / "recipe.yaml").exists():
                held.enter_context(locked(folder / stage.name))
        fsops.rename(folder, moved)
    say(f"set the old plan run aside as {moved}")
