"""The whole schema of `Recipe`, walked by its own annotations: what fits comes back, what does not
is refused in one sentence that names the key.

Nothing here lists the fields: a recipe is drawn from the types and bounds that the schema states,
so a new family is covered as soon as it stands in a union.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

import pytest
import yaml
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

import ornstein.cli as cli
from ornstein.autoencoders.bottlenecks import FSQ
from ornstein.autoencoders.prior import CodePrior
from ornstein.choice import Choice, by_kind, elements, members
from ornstein.cli import COMMANDS
from ornstein.diffusion.grid import Explicit
from ornstein.diffusion.learned import Learned
from ornstein.encoding import Encoding
from ornstein.errors import ConfigError
from ornstein.nn.codecnets import Conv, Dense
from ornstein.nn.networks import UNet
from ornstein.objectives.denoising import Denoising
from ornstein.objectives.score_matching import ScoreMatching
from ornstein.optim import Optim
from ornstein.recipe import FAMILIES, Recipe, named, names
from ornstein.sentences import paths
from ornstein.settings import difference, flatten, resolve, to_yaml

QUICK = settings(
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
    ],
)
LONG = settings(QUICK, max_examples=5000, derandomize=False)
CHECKS: list[tuple[Any, dict[str, st.SearchStrategy[Any]]]] = []


def fuzz(examples: int, **strategies: st.SearchStrategy[Any]) -> Any:
    """A test of so many examples, the same on every run; `test_at_length` tries 5,000 others."""

    def of(check: Any) -> Any:
        CHECKS.append((check, strategies))
        return settings(QUICK, max_examples=examples)(given(**strategies)(check))

    return of


# ── Recipes, drawn from the schema.

kinds_of_unit = st.floats(0, 1, exclude_min=True, exclude_max=True)
falling = st.lists(kinds_of_unit, min_size=1, max_size=4, unique=True).map(
    lambda times: sorted(times, reverse=True)
)
# What a validator asks of a whole value, beyond the types: these would seldom be hit by chance.
ranges = st.none() | falling.map(lambda x: [-x[0], x[-1]])
SHAPED: dict[tuple[type[Choice], str], st.SearchStrategy[Any]] = {
    (Explicit, "times"): falling,
    (Learned, "rows"): st.integers(1, 4).map(lambda n: [[1.0], *[[1.5, -0.5]] * (n - 1)]),
    (Optim, "betas"): st.lists(kinds_of_unit, min_size=2, max_size=2),
    (UNet, "channels"): st.lists(st.integers(1, 8192), min_size=1, max_size=5),
    (UNet, "attention"): st.lists(st.sampled_from([1, 2, 4]), max_size=3),
    (Dense, "hidden"): st.lists(st.integers(1, 65536), max_size=4),
    (Conv, "channels"): st.lists(st.integers(1, 8192), min_size=1, max_size=5),
    (FSQ, "levels"): st.lists(st.integers(2, 4096), min_size=1, max_size=5),
    (Denoising, "range"): ranges,
    (ScoreMatching, "range"): ranges,
}


class Limits(NamedTuple):
    """The bounds of a number; inclusive, or not."""

    low: Any = None
    high: Any = None
    without_low: bool = False
    without_high: bool = False


def limits(metadata: list[Any]) -> Limits:
    found = Limits()
    for item in metadata:
        if isinstance(item, Gt | Ge):
            exclusive = isinstance(item, Gt)
            found = found._replace(low=item.gt if exclusive else item.ge, without_low=exclusive)
        if isinstance(item, Lt | Le):
            exclusive = isinstance(item, Lt)
            found = found._replace(high=item.lt if exclusive else item.le, without_high=exclusive)
    return found


def of_type(option: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:
    """Values of one type within its bounds."""
    bounds = limits(metadata)
    if option is type(None):
        return st.none()
    if isinstance(option, type) and issubclass(option, Choice):
        return drawn(option)
    if get_origin(option) is Literal:
        return st.sampled_from(get_args(option))
    if option is bool:
        return st.booleans()
    if option is int:
        low = None if bounds.low is None else math.floor(bounds.low) + bounds.without_low
        high = None if bounds.high is None else math.ceil(bounds.high) - bounds.without_high
        return st.integers(low, high)
    if option is float:
        return st.floats(
            bounds.low,
            bounds.high,
            exclude_min=bounds.without_low,
            exclude_max=bounds.without_high,
            allow_nan=False,
            allow_infinity=False,
        )
    if option is str:
        return of_text(metadata)
    held = elements([option], tuple, 0)
    assert held is not None, f"how to draw a {option}?"
    args = get_args(option)
    sizes = (0, 4) if args[-1] is ... else (len(args), len(args))
    shortest = max([sizes[0], *(item.min_length for item in metadata if isinstance(item, MinLen))])
    return st.lists(of_types(held, []), min_size=shortest, max_size=sizes[1])


def of_text(metadata: list[Any]) -> st.SearchStrategy[str]:
    patterns = [p for item in metadata if (p := getattr(item, "pattern", None))]
    longest = min([99, *(item.max_length for item in metadata if isinstance(item, MaxLen))])
    if patterns:
        exact = patterns[0].removesuffix("$") + r"\Z"
        return st.from_regex(exact).filter(lambda text: len(text) <= longest)
    # The only other text is a path, which is kept as an absolute one.
    letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    return st.text(letters, max_size=20).map(lambda text: f"/nowhere/{text}")


def of_types(options: list[Any], metadata: list[Any]) -> st.SearchStrategy[Any]:
    return st.one_of([of_type(option, metadata) for option in options])


def of_field(cls: type[Choice], name: str) -> st.SearchStrategy[Any]:
    field = cls.model_fields[name]
    if (cls, name) in SHAPED:
        return SHAPED[cls, name]
    return of_types(members(field.annotation), field.metadata)


@functools.cache
def drawn(cls: type[Choice]) -> st.SearchStrategy[Choice]:
    """Any choice of a class, with any part of it left to its defaults."""
    strategies = {name: of_field(cls, name) for name in cls.model_fields}

    @st.composite
    def build(draw: Any) -> Choice:
        values = {}
        for name, field in cls.model_fields.items():
            if field.is_required() or draw(st.booleans()):
                values[name] = draw(strategies[name])
        return settled(cls, values)

    return build()


def settled(cls: type[Choice], values: dict[str, Any]) -> Choice:
    """The choice with these values, less those that do not go together."""
    while True:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            named = {detail["loc"][0] for detail in error.errors() if detail["loc"]}
            free = [n for n in values if not cls.model_fields[n].is_required()]
            doomed = [n for n in free if n in named] or free[-1:]
            assume(doomed)
            values = {name: value for name, value in values.items() if name not in doomed}


@st.composite
def whole(draw: Any) -> Recipe:
    """Any recipe of parts that go with a kind of models, which parts drawn one by one seldom do; a
    prior sees the codes of the codec that it names."""
    pairs = [(kind, one) for kind in FAMILIES for one in FAMILIES[kind].objectives]
    kind, objective = draw(st.sampled_from(pairs))
    drawings = FAMILIES[kind].drawings
    values: dict[str, Any] = {"model": draw(drawn(kind))}
    if isinstance(values["model"], CodePrior):
        codec = values["model"].codec
        values["encoding"] = draw(drawn(Encoding)).but(codec=codec, form="codes")
    values["objective"] = draw(drawn(objective))
    for name in ("generation", "preview")[: 1 + draw(st.booleans())]:
        values[name] = draw(st.one_of([drawn(option) for option in drawings]))
    for name, field in Recipe.model_fields.items():
        if name not in (*values, "preview") and (field.is_required() or draw(st.booleans())):
            values[name] = draw(of_field(Recipe, name))
    return settled(Recipe, values)


recipes = whole()


def words(recipe: Recipe) -> list[str]:
    """A recipe as overrides, in the notation of an independent writer of YAML."""

    def text(value: Any) -> str:
        plain = list(value) if isinstance(value, tuple) else value
        written = yaml.safe_dump(
            plain, default_flow_style=True, width=math.inf, allow_unicode=False
        )
        return str(written.removesuffix("...\n").strip())

    return [f"{key}={text(value)}" for key, value in flatten(recipe).items()]


@pytest.mark.slow
def test_the_walk_reaches_every_key():
    """Of 5,000 recipes, one at least has each key that the schema knows; `preview`, which is made
    like `generation`, counts as that."""
    reached: set[str] = set()

    def known(key: str) -> str:
        return key.replace("preview.", "generation.")

    @LONG
    @given(recipes)
    def collect(recipe):
        reached.update(known(site.key.partition("[")[0]) for site in sites(recipe))

    collect()
    assert {known(key) for key in paths(Recipe)} - reached == set()


@fuzz(40, recipe=recipes, other=recipes)
def test_a_recipe_comes_back_from_its_file(recipe, other, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(recipe), encoding="utf-8", newline="")
    for base in ({}, other):
        resolved = resolve(Recipe, base, path)
        assert resolved.value == recipe
        assert set(resolved.provenance.values()) == {f"file {path}"}
    assert to_yaml(resolved.value) == to_yaml(recipe)
    assert yaml.safe_load(to_yaml(recipe)) == recipe.model_dump(mode="json")


@fuzz(40, recipe=recipes, other=recipes | st.sampled_from([named(name) for name in names()]))
def test_overrides_rebuild_a_recipe(recipe, other):
    resolved = resolve(Recipe, other, None, words(recipe))
    assert resolved.value == recipe
    assert set(resolved.provenance.values()) == {"command line"}
    told = difference(recipe, other)
    assert (told == {}) == (recipe == other)
    assert not difference(recipe, resolved.value)
    assert all(a != b for a, b in told.values())


# ── Single mistakes.


class Site(NamedTuple):
    """A place of a recipe: its key, the field and the value there, and the way to it in a tree."""

    key: str
    field: FieldInfo
    value: Any
    way: tuple[str | int, ...]


class Mistake(NamedTuple):
    """What stands at a place instead, and the key that the sentence must name."""

    way: tuple[str | int, ...]
    value: Any
    named: str


def sites(choice: Choice, prefix: str = "", way: tuple[str | int, ...] = ()) -> Iterator[Site]:
    """Every place of a recipe, sections and what is in lists included."""
    for name, field in type(choice).model_fields.items():
        value = getattr(choice, name)
        key, there = f"{prefix}{name}", (*way, name)
        yield Site(key, field, value, there)
        if isinstance(value, Choice):
            yield from sites(value, f"{key}.", there)
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                if isinstance(item, Choice):
                    yield from sites(item, f"{key}[{i}].", (*there, i))


def mistakes(site: Site) -> Iterator[Mistake]:
    """Values that the field cannot hold, whatever else the recipe says."""
    options = members(site.field.annotation)
    plain = [option for option in options if option is not type(None)]
    optional = len(plain) < len(options)
    bounds = limits(site.field.metadata)
    literals = [c for o in plain if get_origin(o) is Literal for c in get_args(o)]
    kinds = by_kind(plain)
    section = site.key.removesuffix(".kind") if site.way[-1] == "kind" else site.key

    def here(*values: Any) -> Iterator[Mistake]:
        yield from (Mistake(site.way, value, section) for value in values)

    if kinds:
        yield from here([1], [], 3, "no such kind")
        if site.value is not None:
            yield Mistake((*site.way, "no_such_key"), 1, f"{site.key}.no_such_key")
        return
    yield Mistake((*site.way, "no_such_key"), 1, section)  # a leaf has no keys below it
    if literals:
        yield from here([1], f"{literals[0]}x", 12345)
        if not optional:
            yield from here(None)
        return
    if str in plain:
        yield from here([1], [[]])
        if any(getattr(item, "pattern", None) for item in site.field.metadata):
            yield from here("Not a Name", "", "a\nb", "../up")
        else:
            yield from here("", "\0")
        return
    held = elements(plain, tuple, 0)
    if held is not None:
        yield from here("word", 3, True)
        for wrong in ("word", [[1]], None):
            yield Mistake((*site.way, 0), wrong, f"{site.key}[0]")
        return
    if not optional:
        yield from here(None)
    yield from here("word", "1 2", [1], [])
    if bool in plain:
        yield from here(2, -1, 0.5)
        return
    yield from here(True, math.nan, math.inf, -math.inf)
    if int in plain and float not in plain:
        yield from here(1.5, 1e300 if bounds.high is not None else 2.5)
    if bounds.low is not None:
        yield from here(bounds.low if bounds.without_low else bounds.low - 1, bounds.low - 1e9)
    if bounds.high is not None:
        yield from here(bounds.high if bounds.without_high else bounds.high + 1, 1e9)


def changed(tree: Any, way: tuple[str | int, ...], value: Any) -> Any:
    """A tree with another value at the end of a way; what is in the way of it is replaced."""
    if not way:
        return value
    step, rest = way[0], way[1:]
    if isinstance(step, int):
        items = list(tree) if isinstance(tree, list) else []
        items += [None] * (step + 1 - len(items))
        items[step] = changed(items[step], rest, value)
        return items
    branch = dict(tree) if isinstance(tree, dict) else {}
    return branch | {step: changed(branch.get(step), rest, value)}


@st.composite
def recipes_with_a_mistake(draw: Any) -> tuple[Recipe, Mistake]:
    recipe = draw(recipes)
    found = [mistake for site in sites(recipe) for mistake in mistakes(site)]
    return recipe, draw(st.sampled_from([*found, Mistake(("no_such_key",), 1, "no_such_key")]))


def refused(*arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(Recipe, *arguments)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400
    assert "pydantic" not in message
    assert "Input should" not in message
    return message


@fuzz(100, broken=recipes_with_a_mistake())
def test_a_mistake_in_a_file_is_refused(broken, tmp_path):
    recipe, mistake = broken
    tree = changed(recipe.model_dump(mode="json"), mistake.way, mistake.value)
    assert mistake.named in refused(tree)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    message = refused({}, path)
    assert mistake.named in message


@fuzz(100, broken=recipes_with_a_mistake())
def test_a_mistake_in_an_override_is_refused(broken):
    recipe, (way, value, named) = broken
    below = next((i for i, step in enumerate(way) if isinstance(step, int)), len(way))
    if below < len(way):  # a list is one value
        whole: Any = recipe.model_dump(mode="json")
        for step in way[:below]:
            whole = whole[step]
        value = changed(whole, way[below:], value)
    written = yaml.safe_dump(value, default_flow_style=True, width=math.inf)
    text = written.removesuffix("...\n").strip()
    message = refused(recipe, None, [f"{'.'.join(map(str, way[:below]))}={text}"])
    assert named in message


# ── Anything at all.

KEYS = paths(Recipe)
scalars = st.sampled_from(["", "1", "-1", "1e3", "nan", "null", "true", "vp", "x", "'", '"', "[1]"])
lines = st.builds(
    "{}{}:{}{}".format,
    st.sampled_from(["", "  ", "    ", "- ", "\t"]),
    st.sampled_from([part for key in KEYS for part in key.split(".")]) | st.text(max_size=5),
    st.sampled_from([" ", "", " &a ", " *a ", " !!int ", " | ", " > ", " {", " ["]),
    scalars | st.text(max_size=8),
)
files = st.one_of(
    st.binary(max_size=80),
    st.lists(lines, max_size=6).map("\n".join),
    st.text("abkseed: \n-[]{}'\"#&*!|>?%@`,0123.~<=", max_size=80),
)


@fuzz(200, content=files)
def test_any_file_is_a_recipe_or_refused(content, tmp_path):
    path = tmp_path / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    for base in ({}, named("ddpm")):
        try:
            found = resolve(Recipe, base, path)
        except ConfigError as error:
            message = str(error)
            assert message.isprintable()
            assert len(message) < 400
        else:
            assert isinstance(found.value, Recipe)
            assert found.provenance.keys() == flatten(found.value).keys()


OPTIONS = (
    *("--data", "--minutes", "--samples", "--seed", "--file", "--run", "--runs", "--save-every"),
    *("--fresh", "--allow-change", "--previews", "--no-previews", "--steps", "--out", "--save"),
    *("--average", "-n", "--number", "--json", "--dry-run", "--help", "-h", "--version", "--", "-"),
    *("--recipe", "--name", "--overrides", "--no-fresh", "-nh", "-n3", "--seed=1", "--save=grid"),
)
argument = st.one_of(
    st.sampled_from([*COMMANDS, *OPTIONS, *names()]),
    st.sampled_from([*COMMANDS, *OPTIONS]).map(lambda word: word[:-1]),
    st.builds("{}={}".format, st.sampled_from([*KEYS, *OPTIONS]), scalars | st.text(max_size=6)),
    st.builds("--{}".format, st.sampled_from(KEYS) | st.text(max_size=6)),
    scalars,
    st.text(max_size=8),
    st.sampled_from(["1.5", "1e400", "0x10", "[1,2]", '{"a": 1}', "\udcff", "a" * 300, "\0"]),
)
command_lines = st.tuples(
    st.lists(st.sampled_from(list(COMMANDS)), max_size=1), st.lists(argument, max_size=6)
).map(lambda parts: [*parts[0], *parts[1]])


@pytest.fixture
def idle(monkeypatch):
    """Every command with its options as they are, doing nothing."""
    from importlib import import_module

    for name in COMMANDS:
        module = import_module(f"ornstein.cli.{name}")
        command = getattr(module, name)
        monkeypatch.setattr(module, name, functools.wraps(command)(lambda *_, **__: None))


@fuzz(150, arguments=command_lines)
def test_any_words_are_understood_or_refused(arguments, idle):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run(arguments)
    said = err.getvalue()
    assert code in (0, 2), said
    if code == 2:
        assert said.startswith("ornstein: ")
        assert said.removesuffix("\n").isprintable()
        assert len(said) < 420
        assert out.getvalue() == ""
    else:
        assert said == ""


# ── At length.


@pytest.mark.slow
@pytest.mark.parametrize(("check", "strategies"), CHECKS, ids=lambda x: getattr(x, "__name__", ""))
def test_at_length(check, strategies, request):
    fixtures = set(inspect.signature(check).parameters) - set(strategies)
    given_fixtures = {name: request.getfixturevalue(name) for name in fixtures}
    LONG(given(**strategies)(check))(**given_fixtures)
