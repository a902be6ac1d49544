"""A plan: named recipes in order, of which a later one may build on the run of an earlier one.

    codec  ->  top  ->  bottom

A recipe refers to another stage's run by the path `stage:NAME`, wherever a `RunRef` may stand (the
codec of an encoding, a teacher). A plan run is a folder with `plan.yaml` and a run for each stage,

    runs/NAME/  plan.yaml   codec/   top/   bottom/

each of them an ordinary run: what a run offers, resuming bit for bit, pictures, scores, a stage
offers. The last stage is the plan's result, which `sample` draws from and `evaluate` scores.

A stage is done once its run is finished with the recipe that the plan has for it. References are
pinned to weights when a stage's run is made, so a stage whose foundations have changed since is
found out, by name, and not used. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from ornstein import fsops
from ornstein.choice import Choice, RunRef, pinned, references
from ornstein.errors import CheckpointError, ConfigError, nearest, of_section, quote
from ornstein.recipe import Recipe
from ornstein.recipe import named as recipe_named
from ornstein.settings import Section, resolve
from ornstein.yamltree import load, to_text

MARK = "stage:"
FILE = "plan.yaml"
SHARED = ("data", "seed")  # settings that are given to all stages at once
_STAGE = re.compile(r"[a-z][a-z0-9_]*")


class Stage(Choice):
    """A recipe and the name of its stage, which is that of its run's folder."""

    name: str = Field(max_length=40)
    recipe: Recipe

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not _STAGE.fullmatch(name) or name in Recipe.model_fields:
            raise ValueError(
                f"a stage is named with small letters, digits and '_', and not like a setting; "
                f"got {name!r}"
            )
        return name


class Plan(Choice):
    """Stages in order, at least one; a stage refers to earlier ones only."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=60)
    stages: tuple[Stage, ...] = Field(min_length=1, max_length=20)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        before: list[str] = []
        for stage in self.stages:
            if stage.name in before:
                raise ValueError(f"there are two stages {stage.name!r}; give one another name")
            for reference in references(stage.recipe):
                wanted = reference.path.removeprefix(MARK)
                if reference.path.startswith(MARK) and wanted not in before:
                    raise ValueError(
                        f"stage {stage.name!r} builds on {wanted!r}, which is no stage before it"
                        + nearest(wanted, before)
                    )
            before.append(stage.name)
        return self

    @property
    def last(self) -> Stage:
        """The stage whose run is the plan's result."""
        return self.stages[-1]

    def run_name(self) -> str:
        """`<plan>-<data>-<key>`: the folder of its runs, unless another name is given."""
        kept = {stage.name: stage.recipe.key() for stage in self.stages}
        key = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.name}-{self.last.recipe.data_name()}-{key}"

    def placed(self, folder: Path) -> Plan:
        """The plan with references to stages turned into paths of their runs below `folder`."""
        stages = tuple(
            stage.model_copy(update={"recipe": _placed(stage.recipe, folder)})
            for stage in self.stages
        )
        return self.model_copy(update={"stages": stages})

    def yaml(self) -> str:
        """The plan as a file that `train` takes back."""
        stages = {stage.name: stage.recipe.model_dump(mode="json") for stage in self.stages}
        return to_text({"name": self.name, "stages": stages})


class Asked(NamedTuple):
    """A resolved plan, where the values of each stage came from, and sentences for the user."""

    plan: Plan
    provenance: Mapping[str, Mapping[str, str]]
    notes: tuple[str, ...]


def resolved(base: Plan | None, file: Path | None = None, words: Sequence[str] = ()) -> Asked:
    """A plan, or the file alone, with settings from a YAML file and from dotted overrides.

    `STAGE.key=value` is for one stage, `data...=` and `seed=` for all of them. The file has
    sections of these names below `stages`; one that is no stage of `base` comes after those, and
    says in `recipe` what recipe it starts from. Raises: ConfigError.
    """
    given: dict[str, Any] = {} if file is None else load(file)
    if unknown := sorted(given.keys() - {"name", "stages"}):
        raise ConfigError(
            f"file {file}: a plan has a name and stages, and no {quote(unknown[0])}; settings "
            "belong below stages and the name of a stage"
        )
    sections = given.get("stages") or {}
    if not isinstance(sections, dict) or not all(isinstance(v, dict) for v in sections.values()):
        raise ConfigError(f"file {file}: stages is a section of stages, each a section of settings")
    own = {stage.name: stage.recipe for stage in base.stages} if base else {}
    for name, section in sections.items():
        if "recipe" in section or name not in own:
            own[name] = recipe_named(str(section.get("recipe", section.get("name", ""))))
    if not own:
        raise ConfigError(f"file {file}: a plan has one stage or more below stages")
    by_stage: dict[str, list[str]] = {name: [] for name in own}
    for word in words:
        first, dot, rest = word.partition(".")
        if dot and first in own:
            by_stage[first].append(rest)
        elif word.partition("=")[0].partition(".")[0] in SHARED:
            for stage in own:
                by_stage[stage].append(word)
        else:
            hint = nearest(first, [*own, *SHARED])
            raise ConfigError(
                f"{quote(word)}: settings of a plan begin with the name of a stage, such as "
                f"{next(iter(own))}.optim.lr=1e-3{hint}"
            )
    recipes: dict[str, Recipe] = {}
    provenance: dict[str, Mapping[str, str]] = {}
    notes: list[str] = []
    for name, recipe in own.items():
        tree = {key: value for key, value in sections.get(name, {}).items() if key != "recipe"}
        layer = None if file is None else Section(file, tree)
        with of_section(f"stage {name}"):
            found = resolve(Recipe, recipe, layer, by_stage[name])
        recipes[name] = found.value
        provenance[name] = found.provenance
        notes += [f"{name}: {note}" for note in found.notes]
    try:
        stages = tuple(Stage(name=name, recipe=recipe) for name, recipe in recipes.items())
        called = str(given.get("name", base.name if base else "plan"))
        plan = Plan(name=called, stages=stages)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        told = f"{where}: {wrong['msg']}, got {quote(str(wrong['input']))}"
        raise ConfigError(str(wrong.get("ctx", {}).get("error", told))) from error
    return Asked(plan, provenance, tuple(notes))


def named(name: str) -> Plan:
    """The plan `ornstein.plans.<name>`. Raises: ConfigError for an unknown name."""
    if name not in names():
        raise ConfigError(f"there is no plan {name!r}{nearest(name, names())}")
    plan = importlib.import_module(f"ornstein.plans.{name}").PLAN
    assert isinstance(plan, Plan)
    return plan


def names() -> tuple[str, ...]:
    """The names of all plans."""
    package = importlib.import_module("ornstein.plans")
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__)))


def about(name: str) -> str:
    """What a plan is, in the first sentence of its module."""
    text = importlib.import_module(f"ornstein.plans.{name}").__doc__ or ""
    return text.strip().split("\n\n")[0].replace("\n", " ")


def read(folder: Path) -> Plan:
    """The plan that a folder was made with, with paths for references.

    Raises: CheckpointError where it is damaged.
    """
    path = folder / FILE
    try:
        tree = load(path)
        stages = tuple(
            Stage(name=name, recipe=resolve(Recipe, {}, Section(path, section)).value)
            for name, section in tree["stages"].items()
        )
        return Plan(name=str(tree["name"]), stages=stages)
    except (ConfigError, ValidationError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({' '.join(str(error).split())[:100]}); put it back, or train the "
            "plan again, which goes on with the stages that are there"
        ) from error


def result(folder: Path) -> Path | None:
    """The folder of the run that a plan run is for; None where `folder` is no plan run.

    Raises: CheckpointError where `plan.yaml` is damaged, or the last stage is not there yet.
    """
    if not (folder / FILE).is_file():
        return None
    plan = read(folder)
    last = folder / plan.last.name
    if not (last / "recipe.yaml").is_file():
        done = [s.name for s in plan.stages if (folder / s.name / "recipe.yaml").is_file()]
        raise CheckpointError(
            f"plan run {folder.name} has no run of its last stage {plan.last.name!r} yet "
            f"(stages begun: {', '.join(done) or 'none'}); train the plan on, or name a stage's "
            f"run, such as {folder / (done[0] if done else plan.stages[0].name)}"
        )
    return last


def keep(plan: Plan, folder: Path) -> None:
    """Write `plan.yaml`, where it says something else. Raises: StorageError."""
    content = plan.yaml().encode()
    path = folder / FILE
    if path.is_file() and path.read_bytes() == content:
        return
    fsops.make_folder(folder)
    fsops.replace(path, content)


def _placed(choice: Any, folder: Path) -> Any:
    """The choice with `stage:NAME` in every reference as the path of a run below `folder`."""

    def place(reference: RunRef) -> RunRef:
        if not reference.path.startswith(MARK):
            return reference
        path = folder.resolve() / reference.path.removeprefix(MARK)
        return reference.model_copy(update={"path": str(path)})

    return pinned(choice, place)
