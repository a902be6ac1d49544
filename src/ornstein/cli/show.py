"""`ornstein show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ornstein.plan import Plan
    from ornstein.recipe import Recipe


def show(name: str, other: str | None = None, *, runs: Path = Path("runs")) -> None:
    """Show a recipe or a run as YAML, or how two of them differ.

    Parameters
    ----------
    name: str
        A recipe, a plan, a run, or a YAML file.
    other: str
        A second one: print only the settings in which the two differ.
    runs: Path
        The folder of all runs.
    """
    from ornstein.settings import difference

    if other is None and (plan := plan_of(name, runs)) is not None:
        print(plan.yaml(), end="")
        return
    first = recipe_of(name, runs)
    if other is None:
        print(first.yaml(), end="")
        return
    for key, (left, right) in difference(first, recipe_of(other, runs)).items():
        print(f"{key}: {_shown(left)} -> {_shown(right)}")


def plan_of(name: str, runs: Path) -> Plan | None:
    """The plan of a plan's name, a plan run or a YAML file; None for another word."""
    from ornstein import plan
    from ornstein.cli import staged

    for folder in (Path(name), runs / name):
        if (folder / plan.FILE).is_file():
            return plan.read(folder)
    return staged.request(name, None, None, None, ()).plan if staged.is_plan(name) else None


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return "-" if value is None else str(value)


def recipe_of(name: str, runs: Path) -> Recipe:
    """The recipe of a recipe's name, a run or a YAML file. Raises: ConfigError for another word."""
    from ornstein.cli.request import request
    from ornstein.errors import ConfigError, nearest
    from ornstein.recipe import Recipe, named, names, stored

    if name in names():
        return named(name)
    for folder in (Path(name), runs / name):
        if (folder / "recipe.yaml").is_file():
            return stored(Recipe, folder)
    if Path(name).suffix in (".yaml", ".yml"):
        return request(name).recipe
    known = [*names(), *(path.parent.name for path in runs.glob("*/recipe.yaml"))]
    raise ConfigError(f"there is no recipe or run {name!r}{nearest(name, known)}")
