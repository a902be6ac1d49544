"""From the words of a command to a recipe or a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ornstein import fsops
from ornstein.choice import Choice
from ornstein.data.sources import recognise
from ornstein.errors import ConfigError, DataError, quote
from ornstein.recipe import Drawing, Recipe, named, names
from ornstein.sentences import like_path, paths
from ornstein.settings import Resolved, load_yaml, resolve

if TYPE_CHECKING:
    from ornstein.run import Run


class Request(NamedTuple):
    """A resolved recipe, where its values came from, and sentences for the user."""

    recipe: Recipe
    provenance: Mapping[str, str]
    notes: tuple[str, ...]


def request(
    recipe: str,
    data: str | None = None,
    file: Path | None = None,
    options: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> Request:
    """Merge default, recipe, file, options and dotted overrides into one recipe.

    recipe: a recipe's name, or a YAML file (which may be a run's `recipe.yaml`).
    options: dotted keys with values, from options that have names of their own.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if file is not None:
            raise ConfigError("give one YAML file: either as the recipe or with --file")
        file = path
        name = load_yaml(file).get("name")
        base: Recipe | dict[str, Any] = named(name) if name in names() else {}
    else:
        base = named(recipe)
    given_length = [(options or {}).get(f"optim.{name}") for name in ("samples", "minutes")]
    if None not in given_length:
        raise ConfigError("give --samples or --minutes, not both")
    words = [f"{key}={value}" for key, value in (options or {}).items() if value is not None]
    if options and options.get("optim.minutes") is not None:
        words.append("optim.samples=null")
    elif options and options.get("optim.samples") is not None:
        words.append("optim.minutes=null")
    if data is not None:
        words += data_words(data, overrides)
    for word in overrides:
        if "=" not in word and data is None and _is_data(word):
            raise ConfigError(f"{quote(word)} is no setting; to train on it, write --data {word}")
    found: Resolved[Recipe] = resolve(Recipe, base, file, [*words, *overrides])
    # That other data has other settings goes without saying.
    notes = tuple(note for note in found.notes if data is None or not note.startswith("data "))
    return Request(found.value, found.provenance, notes)


def data_words(data: str, overrides: Sequence[str] = ()) -> list[str]:
    """What --data says as dotted settings. Raises: DataError for what is no data."""
    source = recognise(data)
    given = source.model_dump(mode="json", exclude_unset=True)
    # A path may be read in another way than its looks suggest.
    chosen = "path" in given and any(w.startswith("data.kind=") for w in overrides)
    words = [] if chosen else [f"data.kind={source.kind}"]
    return words + [f"data.{k}={_quoted(value)}" for k, value in given.items() if k != "kind"]


def check_options(
    recipe: str, runs: Path, save_every: float = 60.0, allow: Sequence[str] = ()
) -> None:
    """Refuse, before any work, options that could only fail after it.

    Raises: ConfigError, StorageError (a folder of runs that cannot be made or written).
    """
    if not save_every > 0:
        raise ConfigError(f"--save-every must be above 0 seconds, got {save_every:g}")
    known = paths(Recipe)
    for key in allow:
        if key not in known:
            hint = like_path(key, known) or f"; `ornstein show {recipe}` lists them"
            raise ConfigError(f"--allow-change: there is no setting {quote(key)}{hint}")
    fsops.check_folder(runs)


Drawn = TypeVar("Drawn", bound=Choice)


def generation(base: Drawn, steps: int | None, overrides: Sequence[str]) -> tuple[Drawn, bool]:
    """A run's way of generating with some of it changed, and whether anything is."""
    words = [] if steps is None else [f"steps={steps}"]
    words += [word.removeprefix("generation.") for word in overrides]
    return (resolve(type(base), base, None, words).value, True) if words else (base, False)


def budgeted(
    run: Run, nfe: int | None, steps: int | None, overrides: Sequence[str], average: str
) -> tuple[Drawing, bool]:
    """`generation` of a run, or where `nfe` is given the sampler for so many evaluations, said on
    standard error. Raises: ConfigError where step, grid or steps are given as well."""
    if nfe is None:
        return generation(run.recipe.generation, steps, overrides)
    keys = [word.removeprefix("generation.").partition("=")[0] for word in overrides]
    given = ["--steps"] if steps is not None else []
    given += [key for key in keys if key.partition(".")[0] in ("step", "grid", "steps")]
    if given:
        raise ConfigError(
            f"--nfe chooses step, grid and steps; leave {given[0]} out, or leave --nfe out"
        )
    from ornstein.cli.progress import show
    from ornstein.tuning import at_budget

    found, sentence = at_budget(run, nfe, average)
    show(sentence)
    return generation(found, None, overrides)[0], True


def _is_data(word: str) -> bool:
    """Whether a word names data, so that who wrote it has likely forgotten --data."""
    try:
        return Path(word).exists() or bool(recognise(word))
    except (DataError, OSError, ValueError):
        return False


def _quoted(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)
