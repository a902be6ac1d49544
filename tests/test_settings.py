"""Layers become one choice, mistakes become one sentence, and YAML goes there and back."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import Field

from ornstein.choice import Choice
from ornstein.diffusion.grid import Explicit, Grid, Karras, Trailing
from ornstein.diffusion.prediction import EDM, Eps, Target, V
from ornstein.diffusion.process import VE, VP, Process, Tabulated
from ornstein.errors import ConfigError
from ornstein.settings import difference, flatten, load_yaml, resolve, to_yaml


class HalfLife(Choice):
    kind: Literal["half_life"] = "half_life"
    samples: int = Field(1000, gt=0)


class Power(Choice):
    kind: Literal["power"] = "power"
    width: float = Field(0.1, gt=0, lt=0.3)


Average = Annotated[HalfLife | Power, Field(discriminator="kind")]


class Optim(Choice):
    lr: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: int = Field(0, ge=0)
    fused: bool = False
    clip: float | Literal["auto"] | None = None


class Data(Choice):
    name: str = "digits"
    split: str | None = None
    channels: tuple[int, ...] = Field((32, 64), min_length=1)
    weights: dict[str, float] = Field(default_factory=dict)
    labels: int | str = 10


class Preview(Choice):
    every: int = 100
    grid: Grid = Trailing()


class Diffusion(Choice):
    process: Process = VP()
    target: Target = Eps()
    steps: int = Field(50, ge=1, le=1000)
    grid: Grid = Karras(rho=5.0)


class Recipe(Choice):
    seed: int = 0
    data: Data = Data()
    diffusion: Diffusion = Diffusion()
    optim: Optim = Optim()
    averages: tuple[Average, ...] = ()
    preview: Preview | None = None
    guide: Grid | None = None


BASE = Recipe(
    seed=3,
    diffusion=Diffusion(process=Tabulated(steps=500), target=EDM(sigma_data=0.5)),
    averages=(HalfLife(samples=10),),
)


def run(*overrides: str, base: Any = BASE, file: Path | None = None) -> Recipe:
    return resolve(Recipe, base, file, overrides).value


def refused(*overrides: str, base: Any = BASE, file: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        run(*overrides, base=base, file=file)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes, name: str = "a.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


# ── Layers and where values come from.


def test_without_layers_the_base_comes_back():
    assert run() == BASE
    assert run(base={}) == Recipe()


def test_every_leaf_has_a_source(write):
    path = write("optim: {lr: 1e-3, warmup: 1e3}\nseed: 4\n")
    value, provenance, notes = resolve(Recipe, BASE, path, ["seed=5", "diffusion.steps=20"])
    assert provenance.keys() == flatten(value).keys()
    told = {key: source for key, source in provenance.items() if source != "default"}
    assert told == {
        "seed": "command line",
        "diffusion.process.kind": "recipe",
        "diffusion.process.steps": "recipe",
        "diffusion.target.kind": "recipe",
        "diffusion.target.sigma_data": "recipe",
        "diffusion.steps": "command line",
        "averages": "recipe",
        "optim.lr": f"file {path}",
        "optim.warmup": f"file {path}",
    }
    assert (value.seed, value.optim.lr, value.optim.warmup, notes) == (5, 1e-3, 1000, ())


def test_what_a_recipe_sets_explicitly_is_the_recipes_even_at_the_default():
    base = Recipe(seed=0, diffusion=Diffusion(process=VE()))
    provenance = resolve(Recipe, base).provenance
    assert provenance["seed"] == provenance["diffusion.process.kind"] == "recipe"
    assert provenance["diffusion.process.sigma_max"] == "default"


def test_a_default_section_keeps_what_the_schema_chose_for_it():
    """The field's default is Karras(rho=5), though Karras's own is 7."""
    grid = run("diffusion.grid.sigma_max=80").diffusion.grid
    assert grid == Karras(rho=5.0, sigma_max=80.0)
    assert run("diffusion.grid=karras").diffusion.grid == Karras(rho=5.0)


def test_a_recipe_section_replaces_the_default_section():
    base = Recipe(diffusion=Diffusion(grid=Karras(sigma_max=80.0)))
    assert run("diffusion.steps=3", base=base).diffusion.grid == Karras(sigma_max=80.0)


# ── Kinds.


@pytest.mark.parametrize(
    "overrides",
    [
        ["diffusion.process=ve", "diffusion.process.sigma_max=80"],
        ["diffusion.process.sigma_max=80", "diffusion.process.kind=ve"],
        ["diffusion.process={kind: ve, sigma_max: 80}"],
        ["diffusion={process: {kind: ve}}", "diffusion.process.sigma_max=8e1"],
    ],
)
def test_a_new_kind_starts_from_its_defaults_and_keeps_its_own_layer(overrides):
    resolved = resolve(Recipe, BASE, None, overrides)
    assert resolved.value.diffusion.process == VE(sigma_max=80)
    assert resolved.notes == ("diffusion.process is now 've': its other settings are the defaults",)
    assert resolved.provenance["diffusion.process.kind"] == "command line"
    assert resolved.provenance["diffusion.process.sigma_min"] == "default"


def test_a_later_layer_builds_on_the_kind_of_the_file(write):
    path = write("diffusion: {process: {kind: ve, sigma_max: 80}}")
    resolved = resolve(Recipe, BASE, path, ["diffusion.process.sigma_min=0.002"])
    assert resolved.value.diffusion.process == VE(sigma_min=0.002, sigma_max=80)
    assert len(resolved.notes) == 1
    back = resolve(Recipe, BASE, path, ["diffusion.process=tabulated"])
    assert back.value.diffusion.process == Tabulated()  # 1000 steps, not the recipe's 500
    assert len(back.notes) == 1
    assert "'tabulated'" in back.notes[0]


def test_the_same_kind_again_changes_nothing_and_says_nothing():
    resolved = resolve(Recipe, BASE, None, ["diffusion.process=tabulated"])
    assert (resolved.value, resolved.notes) == (BASE, ())


def test_a_kind_without_settings_needs_no_note():
    resolved = resolve(Recipe, BASE, None, ["diffusion.target=v"])
    assert (resolved.value.diffusion.target, resolved.notes) == (V(), ())


def test_optional_sections_come_and_go():
    assert run("preview.every=5").preview == Preview(every=5)
    assert run("preview={}").preview == Preview()
    assert run("guide=karras", "guide.rho=3").guide == Karras(rho=3.0)
    base = Recipe(preview=Preview(every=5))
    assert run("preview=null", base=base).preview is None
    assert resolve(Recipe, base, None, ["preview=none"]).provenance["preview"] == "command line"


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(guide=None), {}, {"guide": None}])
def test_a_key_that_one_kind_has_means_that_kind(recipe):
    value, provenance, notes = resolve(Recipe, recipe, None, ["guide.rho=3", "guide.sigma_max=8"])
    assert value.guide == Karras(rho=3.0, sigma_max=8.0)
    assert provenance["guide.kind"] == provenance["guide.rho"] == "command line"
    assert provenance["guide.sigma_min"] == "default"
    assert notes == ("guide is 'karras', the kind that has rho, sigma_max",)


def test_the_kind_that_is_meant_comes_from_the_layer_that_needs_it(write):
    path = write("guide: {times: [1, .5]}")
    resolved = resolve(Recipe, {}, path, ["guide.times=[.5]", "seed=1"])
    assert resolved.value.guide == Explicit(times=(0.5,))
    assert resolved.provenance["guide.kind"] == f"file {path}"
    assert resolved.notes == ("guide is 'explicit', the kind that has times",)
    assert "belongs to the kind 'karras'" in refused("guide.rho=3", file=path)
    # A section that is unset again, or replaced, leaves no note behind.
    gone = resolve(Recipe, {}, path, ["guide=null"])
    assert (gone.value.guide, gone.notes) == (None, ())
    other = resolve(Recipe, {}, path, ["guide=trailing"])
    assert (other.value.guide, other.notes) == (Trailing(), ())
    again = resolve(Recipe, Recipe(guide=Karras()), write("guide: null"), ["guide.times=[1]"])
    assert again.value.guide == Explicit(times=(1.0,))


def test_a_required_section_may_be_meant_by_its_keys():
    class Needs(Choice):
        average: Average
        rate: float | Average = 0.1

    resolved = resolve(Needs, {}, None, ["average.width=.2"])
    assert resolved.value.average == Power(width=0.2)
    assert resolved.notes == ("average is 'power', the kind that has width",)
    # 0.1 is a value: what is set is not turned into something else.
    with pytest.raises(ConfigError, match=r"^rate needs a kind"):
        resolve(Needs, {}, None, ["average=power", "rate.width=.2"])
    with pytest.raises(ConfigError, match=r"^average.width must be less than 0.3, got 1 \(comm"):
        resolve(Needs, {}, None, ["average.width=1"])


@pytest.mark.parametrize(
    "override", ["guide.sigma_max=3", "guide={}", "guide.roh=3", "guide={rho: 3, times: [1]}"]
)
def test_keys_of_no_kind_or_of_several_do_not_tell_it(override):
    assert refused(override).startswith("guide needs a kind (command line); write guide=KIND, one")


def test_a_list_of_choices_is_one_value(write):
    text = "averages=[{kind: half_life, samples: 1e3}, power]"
    assert run(text).averages == (HalfLife(samples=1000), Power())
    path = write("averages:\n  - kind: power\n    width: .05\n")
    assert run(file=path).averages == (Power(width=0.05),)
    assert run("averages=[]").averages == ()


# ── Values.


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lr=1e-3", 1e-3),
        ("optim.lr=3", 3.0),
        ("optim.lr = .5", 0.5),
        ("optim.warmup=50_000", 50_000),
        ("optim.warmup=2e6", 2_000_000),
        ("optim.fused=true", True),
        ("optim.fused=no", False),
        ("optim.clip=auto", "auto"),
        ("optim.clip=1", 1.0),
        ("optim.clip=null", None),
        ("optim.betas=[0, .99]", (0.0, 0.99)),
        ("data.name=007", "007"),
        ("data.name=1e-3", "1e-3"),
        ("data.name=null", "null"),
        ("data.name=", ""),
        ("data.name=a: b", "a: b"),
        ("data.name=*.png # all", "*.png # all"),
        ("data.name=x=y", "x=y"),
        ('data.name="a\\tb"', "a\tb"),
        ("data.split=none", None),
        ("data.split='none'", "none"),
        ("data.split=", None),
        ("data.labels=7", 7),
        ("data.labels='7'", "7"),
        ("data.labels=seven", "seven"),
        ("data.channels=[32,64,128]", (32, 64, 128)),
        ("data.weights={a: 1, 'b': 2e-1}", {"a": 1.0, "b": 0.2}),
    ],
)
def test_text_is_read_by_the_type_of_its_field(override, expected, write):
    key, _, text = (part.strip() for part in override.partition("="))
    value = flatten(run(override))[key]
    assert value == expected
    assert type(value) is type(expected)
    if not any(mark in text for mark in ":*#"):  # what a shell quotes but YAML reads otherwise
        section, name = key.split(".")
        assert run(file=write(f"{section}:\n  {name}: {text}\n")) == run(override)


# ── Mistakes.


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr=1", "unknown key 'lr' (command line); did you mean 'optim.lr'?"),
        ("optim.lrr=1", "unknown key 'optim.lrr' (command line); did you mean 'optim.lr'?"),
        ("optm.lr=1", "unknown key 'optm.lr' (command line); did you mean 'optim.lr'?"),
        ("data.lr=1", "unknown key 'data.lr' (command line); did you mean 'optim.lr'?"),
        ("process=ve", "unknown key 'process' (command line); did you mean 'diffusion.process'?"),
        (
            "optim.zzz=1",
            "unknown key 'optim.zzz' (command line); known: betas, clip, fused, lr, warmup",
        ),
        (
            "diffusion.process.sigma_max=80",
            "unknown key 'diffusion.process.sigma_max' (command line); it belongs to the kind "
            "'ve', so set diffusion.process=ve too",
        ),
        (
            "diffusion.process=cosin",
            "diffusion.process has no kind 'cosin' (command line); did you mean 'cosine'? known: "
            "cosine, straight, sub_vp, tabulated, ve, vp",
        ),
        (
            "diffusion.process.rule=lineer",
            "diffusion.process.rule must be 'linear' or 'cosine', got 'lineer' (command line); "
            "did you mean 'linear'?",
        ),
        ("optim.lr=-1", "optim.lr must be greater than 0, got -1 (command line)"),
        ("optim.lr=fast", "optim.lr must be a number, got 'fast' (command line)"),
        ("optim.lr=true", "optim.lr must be a number, got true (command line)"),
        ("optim.lr=nan", "optim.lr must be finite, got nan (command line)"),
        ("optim.warmup=1.5", "optim.warmup must be a whole number, got 1.5 (command line)"),
        ("optim.fused=maybe", "optim.fused must be true or false, got 'maybe' (command line)"),
        ("optim.clip=x", "optim.clip must be a number or be 'auto', got 'x' (command line)"),
        (
            "data.channels=32",
            "data.channels must be a list such as [1, 2], got '32' (command line)",
        ),
        (
            "data.channels=[1, a]",
            "data.channels[1] must be a whole number, got 'a' (command line)",
        ),
        (
            "data.channels=[]",
            "data.channels must have a length of at least 1, got [] (command line)",
        ),
        ("optim.betas=[1]", "optim.betas[1] is missing from the list (command line)"),
        (
            "averages=[{samples: 1}]",
            "averages[0] needs a kind (command line); write {kind: KIND} there, one of half_life, "
            "power",
        ),
        ("optim.lr", "'optim.lr' has no '=' (command line); write KEY=VALUE"),
        ("=1", "'=1' has an empty key (command line); write KEY=VALUE"),
        ("optim..lr=1", "'optim..lr=1' has an empty key (command line); write KEY=VALUE"),
        (
            "optim.lr.x=1",
            "optim.lr is a value, not a section, so 'optim.lr.x' cannot be set (command line); "
            "write optim.lr=VALUE",
        ),
        (
            "optim=3",
            "optim is a section, not a value, got '3' (command line); write optim.lr=VALUE",
        ),
        (
            "guide.sigma_max=3",
            "guide needs a kind (command line); write guide=KIND, one of budget, explicit, karras, "
            "leading, log_snr, trailing, uniform",
        ),
        (
            "averages=[{kind: power, widht: 1}]",
            "unknown key 'averages[0].widht' (command line); did you mean 'averages[0].width'?",
        ),
        (
            "averages=[{kind: power, width: 1}]",
            "averages[0].width must be less than 0.3, got 1 (command line)",
        ),
        (
            "data.name=[&x a, *x]",
            "the value of 'data.name': aliases and anchors (*, &) are not read; "
            "write the value out",
        ),
        (
            "diffusion.process={kind: ve, sigma_max: 1e-3}",
            "diffusion.process: sigma_max (0.001) must be above sigma_min (0.01) (command line)",
        ),
    ],
)
def test_a_mistake_is_one_plain_sentence(override, message):
    assert refused(override) == message


def test_a_bracket_that_does_not_close_is_a_mistake():
    assert refused("data.channels=[1").startswith("the value of 'data.channels': ")
    assert refused("data.name='tis").startswith("the value of 'data.name': ")


def test_twice_is_a_mistake():
    assert refused("seed=1", "seed=2") == "'seed' is given twice (command line); keep one"
    assert "given twice" in refused("diffusion.process=ve", "diffusion.process=vp")
    assert "given twice" in refused("diffusion.process=ve", "diffusion.process.kind=vp")
    assert "given twice" in refused("optim={lr: 1}", "optim.lr=2")


def test_of_several_mistakes_the_first_is_told():
    assert refused("optim.lrr=1", "zzz=2").endswith("did you mean 'optim.lr'? (and 1 more)")
    assert refused("optim.lr=-1", "optim.warmup=-1", "seed=x").endswith("(and 2 more)")


def test_a_mistake_in_a_file_names_the_file(write):
    path = write("optim: {lr: -1}")
    assert refused(file=path) == f"optim.lr must be greater than 0, got -1 (file {path})"
    path = write("optim: {lrr: 1, fused: true}")
    assert refused(file=path) == f"unknown key 'optim.lrr' (file {path}); did you mean 'optim.lr'?"
    path = write("optim.lr: 1")
    assert refused(file=path).startswith(f"unknown key 'optim.lr' (file {path}); write each part")


def test_a_missing_value_says_what_to_write():
    class Needs(Choice):
        size: int
        process: Process

    with pytest.raises(ConfigError, match=r"^size has no default; write size=VALUE"):
        resolve(Needs, {}, None, ["process=vp"])
    with pytest.raises(
        ConfigError, match=r"^process has no default; write process=KIND, one of cos"
    ):
        resolve(Needs, {"size": 3})
    with pytest.raises(ConfigError, match="must be a Needs, got a VP"):
        resolve(Needs, VP())


def test_a_field_may_be_a_value_or_a_section():
    class Rate(Choice):
        lr: float | Average = 0.1

    def lr(*overrides: str) -> Any:
        return resolve(Rate, {}, None, overrides).value.lr

    assert lr("lr=1e-3") == 1e-3
    assert lr("lr=power") == Power()
    assert lr("lr.kind=power", "lr.width=.2") == Power(width=0.2)
    with pytest.raises(ConfigError, match=r"^lr must be a number or be a section, got 'powr'"):
        lr("lr=powr")


def test_a_base_may_be_a_plain_tree():
    base = {"diffusion": {"process": {"kind": "ve"}}, "averages": [{"kind": "power"}], "seed": 1}
    resolved = resolve(Recipe, base)
    assert resolved.value.averages == (Power(),)
    assert resolved.value.diffusion.process == VE()
    assert (resolved.provenance["seed"], resolved.notes) == ("recipe", ())
    assert "unknown key 'sed' (recipe)" in refused(base={"sed": 1})
    mixed = {"diffusion": {"process": VE(sigma_max=8.0)}, "averages": (Power(), {"kind": "power"})}
    assert run(base=mixed).averages == (Power(), Power())


# ── YAML.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", ", line 3: "),
        ("a: 1\na: 2\n", ", line 2: the key 'a' is given twice; keep one"),
        ("a: &x 1\nb: *x\n", ", line 1: aliases and anchors (*, &) are not read"),
        ("a: !!python/object:os.system x", ": the tag 'tag:yaml.org,2002:python/object:os"),
        ("- 1\n", " must hold lines of KEY: VALUE, got [1]"),
        ("", " must hold lines of KEY: VALUE, got nothing"),
        ("a: 1\n---\nb: 2\n", ", line 2: a second document begins; keep one"),
        ("? [a]\n: 1", ", line 1: a key must be a name"),
        ("'': 1", ": a key must be a name"),
        ("[" * 21 + "]" * 21, ": a recipe is nested at most 20 deep"),
        ("a: " + "[" * 100_000, ": a recipe is nested at most 20 deep"),
        ("a: [" + "1," * 30_000 + "1]", ": a recipe holds at most 20000 values"),
        ("a: " + "x" * 2_000_000, " is larger than 1 MB, too large for a recipe"),
        (b"a: \xff", " is not UTF-8 text"),
        (b"a: \x00", ": some characters are not text"),
    ],
)
@pytest.mark.parametrize("compiled", [True, False])
def test_yaml_beyond_a_plain_small_tree_is_refused(text, message, compiled, write, monkeypatch):
    if not compiled:
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    path = write(text)
    start = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_yaml(path)
    assert str(caught.value).startswith(f"file {path}{message}")
    assert time.process_time() - start < 2


def test_an_alias_bomb_is_refused(write):
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    with pytest.raises(ConfigError, match="aliases and anchors"):
        load_yaml(write("\n".join(lines)))


def test_a_missing_file_suggests_its_neighbour(write, tmp_path):
    path = write("a: 1", "cifar.yaml")
    with pytest.raises(ConfigError, match=r"there is no file .*/cifer.yaml; did you mean 'cifar.y"):
        load_yaml(tmp_path / "cifer.yaml")
    with pytest.raises(ConfigError, match=r"there is no file .*/none/cifar.yaml$"):
        load_yaml(tmp_path / "none" / path.name)
    with pytest.raises(ConfigError, match=r"cannot be read: is a directory$"):
        load_yaml(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be read"):
        load_yaml(Path("a\0b"))


def test_load_yaml_gives_plain_values(write):
    path = write("\ufeffa: 1e-3\nb: [1, two, '3', null, true]\nc: {d: 2e3, on: yes}\n")
    tree = load_yaml(path)
    assert tree == {"a": 1e-3, "b": [1, "two", "3", None, True], "c": {"d": 2e3, "on": "yes"}}
    assert all(type(v) in (int, str, bool, type(None)) for v in tree["b"])


def test_yaml_reads_well():
    text = to_yaml(Recipe(diffusion=Diffusion(process=VE(sigma_min=1e-5)), averages=(Power(),)))
    assert "diffusion:\n  process:\n    kind: ve\n    sigma_min: 1.0e-05\n" in text
    assert "averages: [{kind: power, width: 0.1}]\n" in text
    assert "channels: [32, 64]\n" in text
    assert "preview: null\n" in text


# ── Properties.

words = st.text(max_size=12) | st.sampled_from(["null", "1e-3", "007", "true", "no", "'", "a: b"])
positive = st.floats(min_value=1e-300, max_value=1e300)
between = st.floats(min_value=0, max_value=1, exclude_min=True, exclude_max=True)
times = st.lists(between, min_size=1, max_size=5, unique=True)
grids = st.one_of(
    st.builds(Trailing),
    st.builds(Karras, rho=positive, sigma_max=st.none() | positive),
    st.builds(lambda t: Explicit(times=tuple(sorted(t, reverse=True))), times),
)
recipes = st.builds(
    Recipe,
    seed=st.integers(),
    data=st.builds(
        Data,
        name=words,
        split=st.none() | words,
        channels=st.lists(st.integers(), min_size=1, max_size=4).map(tuple),
        weights=st.dictionaries(
            words.filter(bool), st.floats(allow_nan=False, allow_infinity=False), max_size=3
        ),
        labels=st.integers() | words,
    ),
    diffusion=st.builds(
        Diffusion,
        process=st.builds(VP, beta_min=positive)
        | st.builds(Tabulated, rule=st.sampled_from(["linear", "cosine"]), beta_last=between),
        target=st.builds(V) | st.builds(EDM, sigma_data=st.none() | positive),
        grid=grids,
    ),
    optim=st.builds(
        Optim,
        lr=positive,
        betas=st.tuples(between, between),
        clip=st.none() | st.just("auto") | st.floats(allow_nan=False, allow_infinity=False),
    ),
    averages=st.lists(
        st.builds(HalfLife) | st.builds(Power, width=st.floats(0.01, 0.29)), max_size=3
    ).map(tuple),
    preview=st.none() | st.builds(Preview, every=st.integers(), grid=grids),
    guide=st.none() | grids,
)
quick = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@quick
@given(recipe=recipes, other=recipes)
def test_yaml_goes_there_and_back(recipe, other, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(recipe), encoding="utf-8", newline="")
    for base in ({}, other):  # a whole file wins over any recipe, and nothing is left to tell
        resolved = resolve(Recipe, base, path)
        assert resolved.value == recipe
        assert resolved.notes == ()
        assert set(resolved.provenance.values()) == {f"file {path}"}
    assert to_yaml(resolved.value) == to_yaml(recipe)
    # Any other reader of YAML sees the same tree.
    assert yaml.safe_load(to_yaml(recipe)) == recipe.model_dump(mode="json")


@quick
@given(recipes, recipes)
def test_the_difference_is_what_overrides_must_say(a, b):
    changed = difference(a, b)
    assert all(x != y for x, y in changed.values())
    assert not difference(a, a)
    assert (changed == {}) == (a == b)
    assert resolve(Recipe, a).value == a


def test_choices_in_a_list_are_leaves_of_plain_data():
    class Nested(Choice):
        lists: tuple[Average | float, ...] = ()
        named: dict[str, Average] = Field(default_factory=dict)

    a = Recipe(averages=(HalfLife(samples=10), Power()))
    power = {"kind": "power", "width": 0.1}
    assert flatten(a)["averages"] == [{"kind": "half_life", "samples": 10}, power]
    assert difference(a, Recipe()) == {"averages": (flatten(a)["averages"], ())}
    assert json.loads(json.dumps(flatten(a)))["averages"] == flatten(a)["averages"]
    assert flatten(Nested(lists=(0.5, Power()), named={"a": Power()})) == {
        "lists": [0.5, power],
        "named": {"a": power},
    }
    same = resolve(Recipe, {}, None, ["averages=[{kind: half_life, samples: 10}, power]"]).value
    assert difference(a, same) == {}


keys = [*flatten(BASE), "diffusion", "diffusion.process", "preview", "guide", "preview.grid"]
scalars = ["", "1", "-1e999", "9" * 5000, "true", "null", "ve", "nan", "[1]", "{kind: ve}", "{}"]
odd = [*scalars, "'", "{a: {b: 1}}", "[[[{}]]]", "!!x", "\ud800", '"\\ud800"', '"\\Uffffffff"']
override = st.one_of(
    st.text(max_size=30),
    st.builds("{}={}".format, st.sampled_from(keys), st.sampled_from(odd) | st.text(max_size=20)),
    st.builds("{}.{}={}".format, st.sampled_from(keys), st.text(max_size=8), st.text(max_size=8)),
    st.builds("{}={}".format, st.text("abkind.[]{}:, \"'\n", max_size=9), st.text("[]{}:,'\"a1& ")),
)


@settings(quick, max_examples=300)
@given(st.lists(override, max_size=4))
@example(["a." * 10_000 + "b=1"])
@example(["x" * 100_000 + "=1"])
@example(["seed=" + "[" * 5000])
@example(["optim.lr={" + "a: {" * 15 + "}" * 16])
@example(["data.weights=3", "data.weights.a=1"])
@example(["data.weights={\x1b: x}"])
@example(["averages=[[power]]"])
@example(["averages.0.width=1"])
@example(["diffusion.process.kind={a: 1}"])
@example(["diffusion.process.kind=null"])
@example(["diffusion.process=[1]", "diffusion.process.kind=ve"])
def test_any_override_resolves_or_is_refused_in_one_line(overrides):
    try:
        resolved = resolve(Recipe, BASE, None, overrides)
    except ConfigError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) < 400
        assert "pydantic" not in message
        assert "Input should" not in message
    else:
        assert isinstance(resolved.value, Recipe)
        assert resolved.provenance.keys() == flatten(resolved.value).keys()


@quick
@given(text=st.text("abkseed: \n-[]{}'\"#&*!|>?%@`,0123.", max_size=60) | st.binary(max_size=40))
def test_any_file_loads_or_is_refused(text, tmp_path):
    path = tmp_path / "any.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        tree = load_yaml(path)
        resolve(Recipe, BASE, path)
    except ConfigError as error:
        message = str(error)
        assert message.isprintable()
    else:
        assert isinstance(tree, dict)


def test_a_file_of_mistakes_is_refused_quickly(write):
    path = write("\n".join(f"seed{i}: 1" for i in range(9000)))
    start = time.process_time()
    assert refused(file=path).endswith("(and 8999 more)")
    path = write("averages:\n" + "- {kind: powr}\n" * 6000)
    assert refused(file=path).endswith("(and 5999 more)")
    assert time.process_time() - start < 4


def test_reading_a_recipe_does_not_import_torch():
    code = "import sys, ornstein.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
