"""A run folder is the whole truth: what it keeps, what it refuses, and what is drawn from it."""

from __future__ import annotations

import itertools
import json
import os
import shutil

import numpy as np
import pytest
import torch

from ornstein import checkpoint, prepare, training
from ornstein import run as run_module
from ornstein.choice import RunRef
from ornstein.data.info import DataInfo
from ornstein.data.sources import Arrays, Digits, Toy
from ornstein.diffusion.grid import Trailing
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.sampling import Sampling
from ornstein.diffusion.steps import Ancestral, Jump
from ornstein.drift import changes, refused
from ornstein.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NumericsError,
    StorageError,
)
from ornstein.nats import Nats
from ornstein.nn.networks import MLP, UNet
from ornstein.objectives.denoising import Denoising
from ornstein.optim import HalfLife, Optim, Power
from ornstein.recipe import Recipe
from ornstein.run import Run, loader, pinner
from ornstein.scores import read
from ornstein.settings import flatten, resolve
from ornstein.training import Event
from tests.contracts import families

OPTIM = Optim(
    lr=2e-3,
    batch=20,
    samples=100,
    warmup=0,
    averages=(HalfLife(samples=60), Power(width=0.1)),
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / ".cache"))


def points(**changed):
    """A recipe for points in the plane, with some values changed."""
    return Recipe(
        name="points",
        data=Toy(name="moons", count=200),
        model=Diffusion(network=MLP(width=8, depth=1)),
        optim=OPTIM,
        generation=Sampling(steps=3),
    ).model_copy(update=changed)


def with_optim(**changed):
    return points(optim=OPTIM.model_copy(update=changed))


def pictures():
    return points(
        name="pictures",
        data=Digits(),
        model=Diffusion(network=UNet(channels=(8,), blocks=1, middle_attention=False)),
    )


def trained(run, steps=None):
    for event in run.train(previews=False):
        if event.step == steps:
            break
    return run


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    return trained(Run.create(points(), tmp_path_factory.mktemp("runs"), "moons"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return trained(Run.create(pictures(), tmp_path_factory.mktemp("runs"), "digits"))


def copied(run, folder):
    return Run.open(shutil.copytree(run.path, folder / run.path.name))


def record(run):
    return json.loads((run.path / "provenance.json").read_bytes())


# --- minutes ------------------------------------------------------------------------------------


def test_minutes_become_samples_once(tmp_path, monkeypatch):
    """At 0.25 s for a batch of 20, 2 minutes less 5 % are 9,120 samples; the run keeps them."""

    def updates(state, source, optim, total, seed):
        for step in itertools.count(1):
            yield Event(step, 20 * step, None, {}, None, 0.0, 9.0 if step <= 3 else 0.25, 0.0)

    asked = with_optim(samples=None, minutes=2.0)
    monkeypatch.setattr(prepare, "train", updates)
    run = Run.create(asked, tmp_path, "job")
    assert run.total == int(0.95 * 20 / 0.25 * 120) == 9120
    stored = resolve(Recipe, {}, run.path / "recipe.yaml").value
    assert (stored.optim.samples, stored.optim.minutes) == (9120, 2.0)
    assert record(run)["from"]["optim.samples"] == "measured"
    request = resolve(Recipe, {}, run.path / "request.yaml").value
    assert request == asked

    def measure_again(*_):
        raise AssertionError("the speed was measured again")

    monkeypatch.setattr(prepare, "train", measure_again)
    assert Run.create(asked, tmp_path, "job").total == 9120
    assert record(run)["changes"] == []
    # A change of something else keeps the length too.
    longer = asked.model_copy(update={"optim": asked.optim.model_copy(update={"lr": 0.1})})
    assert Run.create(longer, tmp_path, "job").total == 9120


def test_the_real_trial_measures_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "TRIAL_SECONDS", 0.02)
    run = Run.create(with_optim(samples=None, minutes=0.001), tmp_path)
    assert run.total >= OPTIM.batch
    assert run.samples == 0  # the trial is not part of the training
    assert not (run.path / "ckpt").exists()


def test_other_minutes_are_measured_anew(tmp_path, monkeypatch):
    lengths = iter([500, 900])

    def known(recipe, dataset, load):
        optim = recipe.optim.model_copy(update={"samples": next(lengths)})
        return recipe.model_copy(update={"optim": optim})

    monkeypatch.setattr(prepare, "measured", known)
    monkeypatch.setattr(run_module, "measured", known)
    assert Run.create(with_optim(samples=None, minutes=1.0), tmp_path, "job").total == 500
    assert Run.create(with_optim(samples=None, minutes=2.0), tmp_path, "job").total == 900
    assert Run.create(with_optim(samples=70, minutes=None), tmp_path, "job").total == 70


# --- what may change ----------------------------------------------------------------------------


def test_changed_data_is_refused(tmp_path):
    file = tmp_path / "x.npy"
    np.save(file, np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32))
    recipe = points(data=Arrays(path=str(file)))
    run = Run.create(recipe, tmp_path, "job")
    np.save(file, np.random.default_rng(0).normal(size=(51, 2)).astype(np.float32))
    with pytest.raises(DataError, match=r"has changed .*50 samples then, 51 now.*--run") as caught:
        Run.create(recipe, tmp_path, "job")
    assert caught.value.code == 3
    with pytest.raises(DataError, match="has changed"):
        trained(Run.open(run.path))


FREE = {"generation.steps": 5, "preview": Sampling(steps=2)}
NOTED = {
    "optim.samples": 140,
    "optim.lr": 1e-4,
    "optim.betas": (0.8, 0.9),
    "optim.eps": 1e-6,
    "optim.weight_decay": 0.1,
    "optim.clip": None,
    "optim.micro_batch": 7,
    "optim.warmup": 50,
    "optim.decay": "none",
    "optim.compile": "off",
    "optim.recompute": True,
    "optim.shard": "on",
    "optim.snapshots": 3,
}
REFUSED = {
    "name": "other",
    "seed": 1,
    "optim.batch": 10,
    "optim.averages": (Power(width=0.2),),
    "optim.precision": "fp32",
    "objective.range": (0.0, 1.0),
    "objective.weighting.kind": "snr",
    "model.label": "log_sigma",
    "model.target.kind": "v",
    "model.network.width": 16,
    "model.process.beta_max": 10.0,
    "augment.flip": True,
    "augment.crop": 1,
    "encoding": {"codec": {"path": "other"}},
    "data.held_out": 0.2,
}


def changed(recipe, key, value):
    """The recipe with the value at a dotted key changed."""
    tree = recipe.model_dump()
    place = tree
    *path, last = key.split(".")
    for name in path:
        place = place[name]
    place[last] = value.model_dump() if isinstance(value, Sampling) else value
    return Recipe.model_validate(tree)


def test_every_setting_of_a_recipe_is_free_noted_or_refused():
    """No key is forgotten: whatever is not listed as free or noted is refused."""
    optim = {f"optim.{name}" for name in Optim.model_fields}
    listed = {*NOTED, "optim.minutes"} | {key for key in REFUSED if key.startswith("optim")}
    assert listed == optim
    sections = {key.split(".")[0] for key in {**FREE, **NOTED, **REFUSED}}
    assert sections == set(Recipe.model_fields)
    for table, stopped in ((FREE, False), (NOTED, False), (REFUSED, True)):
        for key, value in table.items():
            found = changes(points(), changed(points(), key, value))
            assert bool(refused(found)) is stopped, key
            assert not refused(found, (key.removesuffix(".kind"),)), key


@pytest.mark.parametrize("key", [*FREE, *NOTED])
def test_what_may_change_takes_effect_and_is_remembered(key, moons, tmp_path):
    run = copied(moons, tmp_path)
    value = {**FREE, **NOTED}[key]
    adopted = Run.create(changed(points(), key, value), tmp_path, "moons")
    assert Run.open(run.path).recipe == adopted.recipe
    found = flatten(adopted.recipe)
    assert found[key] == value if key != "preview" else adopted.recipe.preview == value
    assert adopted.recipe.model == moons.recipe.model  # what was measured stays
    noted = [change for change in record(run)["changes"] if change["key"].startswith(key)]
    assert noted
    assert all(change["samples"] == 100 for change in noted)
    assert Run.create(changed(points(), key, value), tmp_path, "moons").recipe == adopted.recipe
    assert len(record(run)["changes"]) == len(noted)  # asked again, nothing is new


@pytest.mark.parametrize("key", [key for key in REFUSED if key != "data.held_out"])
def test_what_makes_a_run_what_it_is_may_not_change(key, moons, tmp_path):
    run = copied(moons, tmp_path)
    before = {p.name: p.read_bytes() for p in run.path.iterdir() if p.is_file()}
    sentence = r"run moons was made with .*choose another name.*--allow-change"
    with pytest.raises(CheckpointError, match=sentence) as caught:
        Run.create(changed(points(), key, REFUSED[key]), tmp_path, "moons")
    assert key.split(".kind")[0] in str(caught.value)
    assert {p.name: p.read_bytes() for p in run.path.iterdir() if p.is_file()} == before


def test_a_refused_change_can_be_insisted_on(moons, tmp_path):
    copied(moons, tmp_path)
    other = changed(points(optim=OPTIM.model_copy(update={"samples": 160})), "optim.batch", 10)
    run = Run.create(other, tmp_path, "moons", allow=("optim.batch",))
    assert run.recipe.optim.batch == 10
    assert [event.samples for event in run.train(previews=False)] == [110, 120, 130, 140, 150, 160]


def test_an_encoding_stays_whatever_is_insisted_on(moons, tmp_path):
    copied(moons, tmp_path)
    other = changed(points(), "encoding", REFUSED["encoding"])
    with pytest.raises(CheckpointError, match="keeps the encoding that it was made with"):
        Run.create(other, tmp_path, "moons", allow=("encoding",))


def test_the_same_request_finds_the_same_run(tmp_path):
    first = Run.create(points(), tmp_path)
    assert Run.create(points(), tmp_path).path == first.path
    assert Run.create(with_optim(samples=200), tmp_path).path == first.path
    assert Run.create(points(generation=Sampling(steps=9)), tmp_path).path == first.path
    assert Run.create(points(seed=1), tmp_path).path != first.path
    assert first.path.name.startswith("points-moons-")


# --- names and folders --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["two words", "运行一", "🌀 spiral", "a.b-c_d", "..hidden", "x" * 230]
)
def test_names_of_all_kinds(name, tmp_path):
    run = trained(Run.create(points(), tmp_path, name), steps=1)
    assert run.path == tmp_path / name
    assert Run.open(name, runs=tmp_path).samples == 20
    assert Run.create(points(), tmp_path, name).samples == 20
    assert [p.name for p in tmp_path.iterdir() if p.name != ".cache"] == [name]


@pytest.mark.parametrize("name", ["a/b", "/abs", "a/", "../up", "", "  ", ".", "./x"])
def test_a_name_is_not_a_path(name, tmp_path):
    with pytest.raises(ConfigError, match="must be a plain name, not .*write --run NAME"):
        Run.create(points(), tmp_path / "runs", name)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["..", "nul\0byte"])
def test_a_name_that_no_folder_can_have(name, tmp_path):
    with pytest.raises(ConfigError, match="name"):
        Run.create(points(), tmp_path / "runs", name)
    assert not (tmp_path / "runs").exists()


def test_a_name_that_is_too_long_for_the_disk(tmp_path):
    with pytest.raises((ConfigError, StorageError), match="long"):
        Run.create(points(), tmp_path, "x" * 300)


def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "thesis.tex").write_text("x")
    with pytest.raises(StorageError, match="exists and is not a run; choose another name"):
        Run.create(points(), tmp_path, "job")
    assert [p.name for p in (tmp_path / "job").iterdir()] == ["thesis.tex"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != ".cache") == ["job"]
    with pytest.raises(ConfigError, match="there is no run 'job'; there are no runs in"):
        Run.open("job", runs=tmp_path)


def test_a_file_in_the_place_of_a_run(tmp_path):
    (tmp_path / "job").write_text("x")
    with pytest.raises(StorageError, match="exists and is not a run"):
        Run.create(points(), tmp_path, "job")
    assert (tmp_path / "job").read_text() == "x"


def test_the_nearest_name_is_suggested(moons):
    with pytest.raises(ConfigError, match="there is no run 'mons'; did you mean 'moons'?"):
        Run.open("mons", runs=moons.path.parent)


def killed_while_made(moons, folder, pid):
    """What a process leaves that was killed while it wrote a run's folder."""
    half = folder / f".job.{pid}.tmp"
    half.mkdir()
    shutil.copy(moons.path / "recipe.yaml", half)


@pytest.mark.parametrize("pid", ["another", "the same"])
def test_a_run_killed_while_it_was_made_blocks_nothing(pid, moons, tmp_path):
    killed_while_made(moons, tmp_path, os.getpid() if pid == "the same" else 999_999)
    run = trained(Run.create(points(), tmp_path, "job"), steps=1)
    assert Run.open(run.path).samples == 20


def test_a_half_made_run_is_not_suggested(moons, tmp_path):
    killed_while_made(moons, tmp_path, 999_999)
    with pytest.raises(ConfigError, match="there are no runs in"):
        Run.open(".job.99999.tmp", runs=tmp_path)


DAMAGE = [b"", b"\0" * 200, b"{", b"[1, 2]", b"\xff\xfe\x00", b"a: [1", b"a: 7\n"]


@pytest.mark.parametrize("content", DAMAGE)
def test_damaged_data_json(content, moons, tmp_path):
    run = copied(moons, tmp_path)
    (run.path / "data.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="data.json is missing or damaged; restore it"):
        Run.open(run.path)
    (run.path / "data.json").unlink()
    with pytest.raises(CheckpointError, match="data.json is missing or damaged"):
        Run.open(run.path)


@pytest.mark.parametrize("file", ["recipe.yaml", "request.yaml"])
@pytest.mark.parametrize("content", DAMAGE)
def test_damaged_recipes(file, content, moons, tmp_path):
    """One line that names the file, and never a traceback."""
    run = copied(moons, tmp_path)
    (run.path / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=file) as caught:
        Run.create(points(), tmp_path, "moons")
    assert "\n" not in str(caught.value)


def test_a_recipe_cut_short_is_not_completed_silently(moons, tmp_path):
    """Whatever is left of recipe.yaml, the run is the one that was made, or it is refused."""
    run = copied(moons, tmp_path)
    lines = (run.path / "recipe.yaml").read_text().splitlines(keepends=True)
    for count in range(len(lines)):
        (run.path / "recipe.yaml").write_text("".join(lines[:count]))
        try:
            found = Run.open(run.path).recipe
        except (ConfigError, CheckpointError):
            continue
        assert found == moons.recipe, lines[count]


@pytest.mark.parametrize("file", ["provenance.json", "scores.json"])
def test_damaged_records(file, moons, tmp_path):
    run = copied(moons, tmp_path)
    (run.path / file).write_bytes(b'{"changes": [')
    other = with_optim(lr=1e-4)
    use = {
        "scores.json": lambda: run.scores(8),
        "provenance.json": lambda: Run.create(other, tmp_path, "moons"),
    }
    with pytest.raises((CheckpointError, StorageError, DataError), match=file):
        use[file]()


def test_the_log_reaches_to_the_failure(tmp_path, monkeypatch):
    """The updates just before a loss that is not finite are the ones to look at."""
    monkeypatch.setattr(training, "CHEAP", 0.0)
    run, seen = Run.create(with_optim(samples=200), tmp_path, "job"), []
    with pytest.raises(NumericsError):
        seen.extend(poisoned(run, step=6))
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(seen) >= 5  # the next batch may have been read before, or not


def poisoned(run, step):
    """Train, and make the data NaN after some updates."""
    for event in run.train(previews=False):
        if event.step == step - 1:  # one more batch has been read already
            run.dataset.x[:] = np.nan
        yield event


def test_a_damaged_checkpoint_is_passed_over_and_noted(tmp_path):
    run = trained(Run.create(points(), tmp_path, "job"), steps=2)
    trained(run, steps=4)
    (run.path / "ckpt" / "step-00000004" / "model.safetensors").write_bytes(b"")
    again = Run.open(run.path)
    assert again.samples == 40
    steps = [event.step for event in again.train(previews=False)]
    assert steps == [3, 4, 5]
    assert "step-00000004 is damaged" in (run.path / "notes.log").read_text(encoding="utf-8")
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]


# --- drawing samples ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "batch", "first"), [(3, 64, 0), (10, 1, 0), (10, 4, 0), (5, 2, 3), (1, 64, 9)]
)
def test_sample_i_is_the_same_in_any_batch(n, batch, first, digits, moons):
    """It depends on (seed, first + i) alone, and on the batch to rounding only."""
    for run, tolerance in ((digits, 1), (moons, 1e-4)):
        whole = run.generate(10, seed=4)
        part = run.generate(n, seed=4, batch=batch, first=first)
        assert part.dtype == whole.dtype
        gap = np.abs(part.astype(float) - whole[first : first + n].astype(float))
        assert gap.max() <= tolerance
        if run is digits:
            assert (gap > 0).mean() < 0.01  # a value on the edge of two bins


def test_samples_depend_on_the_seed_and_on_nothing_else(moons):
    torch.manual_seed(0)
    first = moons.generate(4, seed=4)
    torch.manual_seed(1)
    assert np.array_equal(Run.open(moons.path).generate(4, seed=4), first)
    assert not np.array_equal(moons.generate(4, seed=5), first)


def test_states_end_in_the_samples(digits):
    states = digits.states(4, seed=4)
    assert len(states) == 4  # the start, and one for each of three steps
    assert np.array_equal(states[-1], digits.generate(4, seed=4))


def test_drawing_samples_keeps_no_states(moons, monkeypatch):
    """A thousand steps need the memory of one: only the last state becomes native values."""
    converted, native = [], Run.native
    monkeypatch.setattr(Run, "native", lambda run, x: converted.append(x) or native(run, x))
    moons.generate(4, generation=Sampling(steps=30))
    assert len(converted) == 1


@pytest.mark.parametrize("n", [0, -3])
def test_a_number_of_samples_below_one_is_refused(n, moons):
    with pytest.raises(ConfigError, match="must be at least 1, got"):
        moons.generate(n)


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_below_one_is_refused(batch, moons):
    with pytest.raises(ConfigError, match="batch"):
        moons.generate(3, batch=batch)


def bare(limits, bins, scale=(-1.0, 1.0)):
    """A run of data with this range, that exists in memory only."""
    info = DataInfo(
        name="x",
        kind="vector",
        shape=(1,),
        range=limits,
        bins=bins,
        count=2,
        mean=0.0,
        std=1.0,
        fingerprint="",
    )
    recipe = points(objective=Denoising(range=scale))
    return Run(None, recipe, info)


def test_native_values_are_the_nearest_bins():
    """x ∈ [−1, 1] -> 0 ... 255: scaled back, clipped, rounded, uint8; all 256 come back."""
    run = bare((0.0, 255.0), 256)
    every = torch.arange(256) / 255 * 2 - 1
    found = run.native(every)
    assert found.dtype == np.uint8
    assert found.tolist() == list(range(256))
    nudged = torch.tensor([-3.0, -1 + 0.9 / 255, -1 + 1.1 / 255, 0.999999, 1.0, 55.0])
    assert run.native(nudged).tolist() == [0, 0, 1, 255, 255, 255]


@pytest.mark.parametrize("scale", [(-1.0, 1.0), (0.0, 1.0), None])
def test_native_values_of_few_bins(scale):
    run = bare((0.0, 16.0), 17, scale)
    low, high = scale or (0.0, 16.0)
    values = torch.linspace(low, high, 17, dtype=torch.float64)
    assert run.native(values).tolist() == list(range(17))
    assert run.native(values).dtype == np.uint8


def test_native_values_without_bins_or_range():
    """Reals are scaled and clipped to their range; numbers without one are as they are."""
    found = bare((0.0, 1.0), None).native(torch.tensor([-1.5, -1.0, 0.0, 0.5, 7.0]))
    assert found.dtype == np.float32
    assert found.tolist() == [0.0, 0.0, 0.5, 0.75, 1.0]
    free = bare(None, None).native(torch.tensor([-1.5, 7.25]))
    assert free.dtype == np.float32
    assert free.tolist() == [-1.5, 7.25]
    assert bare((-4.0, 4.0), 9).native(torch.tensor([-1.0, 0.3, 1.0])).tolist() == [-4.0, 1.0, 4.0]


def test_bins_between_whole_numbers_keep_their_values():
    run = bare((0.0, 1.0), 5)
    assert run.native(torch.tensor([-1.0, -0.5, 0.5, 1.0])).tolist() == [0.0, 0.25, 0.75, 1.0]


def test_which_average_is_meant(moons):
    """Empty: the first of the recipe; `none`: the last weights; another name: an error."""
    names = {
        "": "average-half-life-60",
        "half-life-60": "average-half-life-60",
        "power-0.1": "average-power-0.1",
        "none": "model",
    }
    found = checkpoint.latest(moons.path / "ckpt")
    for asked, file in names.items():
        assert moons.weights(asked) == found.sha256(file)
        weights = moons.learner(asked).state_dict()
        for name, value in found.tensors(file).items():
            assert torch.equal(weights[name], value)
        assert not any(p.requires_grad for p in moons.learner(asked).parameters())
    drawn = [moons.generate(3, average=asked) for asked in names]
    assert np.array_equal(drawn[0], drawn[1])
    assert len({d.tobytes() for d in drawn}) == 3
    with pytest.raises(ConfigError, match="keeps no average 'power'; did you mean 'power-0.1'?"):
        moons.generate(1, average="power")


def test_a_run_without_averages_uses_its_weights(tmp_path):
    run = trained(Run.create(with_optim(averages=()), tmp_path, "job"), steps=1)
    assert run.weights() == run.weights("none")
    assert run.generate(2).shape == (2, 2)


def test_a_run_that_is_not_trained_says_so(tmp_path):
    run = Run.create(points(), tmp_path, "job")
    for use in (run.generate, lambda _: run.weights(), lambda _: run.preview()):
        with pytest.raises(CheckpointError, match="run job has no checkpoint yet; train it first"):
            use(1)


def test_new_weights_are_noticed(tmp_path):
    """A run that is open draws with the weights that are there now."""
    run = trained(Run.create(points(), tmp_path, "job"), steps=2)
    before = run.generate(3)
    trained(Run.open(run.path))
    assert not np.array_equal(run.generate(3), before)
    assert np.array_equal(run.generate(3), Run.open(run.path).generate(3))


# --- references to other runs -------------------------------------------------------------------


def test_a_run_is_still_while_another_process_trains_it(tmp_path):
    """What is drawn and said within `still` is of one checkpoint, pruned or not."""
    run = Run.create(with_optim(samples=40), tmp_path, "run")
    trained(run)
    reader = Run.open(run.path)
    with reader.still():
        before = (reader.samples, reader.weights(), reader.generate(3).tolist())
        for samples in (60, 80, 100):
            trained(Run.create(with_optim(samples=samples), tmp_path, "run"))
        assert not (run.path / "ckpt" / "step-00000002").exists()
        with reader.still():
            assert (reader.samples, reader.weights(), reader.generate(3).tolist()) == before
        assert reader.samples == 40
        with pytest.raises(CheckpointError, match="has been replaced by a newer checkpoint"):
            reader.generate(3, average="none")
    assert reader.samples == 100
    assert reader.weights() != before[1]
    with (
        pytest.raises(CheckpointError, match="no checkpoint yet"),
        Run.create(with_optim(samples=20), tmp_path, "new").still(),
    ):
        pass


def test_a_reference_is_pinned_to_path_and_content(moons, tmp_path, monkeypatch):
    monkeypatch.chdir(moons.path.parent)
    filled = pinner(Recipe)(RunRef(path="moons", average="none"))
    assert filled.path == str(moons.path.resolve())
    assert filled.weights == moons.weights("none")
    assert pinner(Recipe)(filled) is filled
    assert torch.equal(
        loader(Recipe)(filled).network.first.weight,
        moons.learner("none").model.network.first.weight,
    )
    wrong = filled.model_copy(update={"weights": "0" * 64})
    with pytest.raises(CheckpointError, match="has other weights .* than the recipe names"):
        loader(Recipe)(wrong)
    with pytest.raises(ConfigError, match="there is no run"):
        pinner(Recipe)(RunRef(path=str(tmp_path / "gone")))


@pytest.mark.parametrize("allow", [(), ("optim.batch",)])
def test_a_change_leaves_references_pinned(allow, tmp_path):
    toy = {"data": Digits(), "optim": OPTIM}
    codec = families.ToyRecipe(
        model=families.VQ(),
        objective=families.VQObjective(),
        generation=families.DecodeCodes(),
        **toy,
    )
    teacher = trained(Run.create(codec, tmp_path, "codec"), steps=1)
    recipe = families.ToyRecipe(
        model=families.Prior(codec=RunRef(path=str(teacher.path))),
        objective=families.CodeObjective(),
        generation=families.DecodePrior(),
        **toy,
    )
    run = Run.create(recipe, tmp_path, "prior")
    pinned = run.recipe.model.codec
    assert pinned.weights == teacher.weights()
    update = {"lr": 0.3, "batch": 10} if allow else {"lr": 0.3}
    other = recipe.model_copy(update={"optim": OPTIM.model_copy(update=update)})
    assert Run.create(other, tmp_path, "prior", allow=allow).recipe.model.codec == pinned


# --- previews, scores, likelihood ---------------------------------------------------------------


def test_previews_are_drawn_and_do_not_change_training(moons, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "PREVIEW_SHARE", 1e9)
    run = Run.create(points(), tmp_path, "moons")
    for _ in run.train():
        pass
    names = sorted(p.name for p in (run.path / "previews").iterdir())
    assert names == [f"step-{step:08d}.png" for step in range(1, 6)]
    assert run.weights("none") == moons.weights("none")
    assert run.preview().name == "step-00000005.png"


def test_a_training_without_previews_draws_none(moons):
    assert not (moons.path / "previews").exists()


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.mark.parametrize("cost", [0.2, 1.0, 40.0])
@pytest.mark.parametrize("step", [0.01, 0.5])
def test_previews_take_no_more_than_their_share(cost, step, monkeypatch):
    """Before each one, what it will cost is already within 3 % of the time that has passed; only
    the first is a guess. So at all times spent ≤ 3 % · elapsed + the cost of the first."""
    clock = Clock()
    monkeypatch.setattr(run_module, "time", clock)
    due, drawn = run_module._PreviewClock(), []
    event = Event(1, 1, None, {}, None, 0.0, step, 0.0)
    for _ in range(20_000):
        clock.now += step
        if due.after(event):
            clock.now += cost
            due.done()
            drawn.append(clock.now - 100)
        spent = cost * len(drawn)
        assert spent <= 0.03 * (clock.now - 100) + (cost if len(drawn) == 1 else 1e-9)
    assert drawn[0] >= 20 * step / 0.03  # the first waits for a time that can pay for it
    total = clock.now - 100
    assert len(drawn) >= 1
    assert cost * len(drawn) >= 0.02 * total - 2 * cost  # and the share is used


def test_scores_are_added_to_the_file(moons, tmp_path):
    run = copied(moons, tmp_path)
    first = run.scores(8, seed=1)
    other = {"generation": Sampling(steps=2), "average": "none", "split": "held_out"}
    second = run.scores(9, seed=2, extractor="pixels", **other)
    assert read(run.path / "scores.json") == [first, second]
    assert [s.protocol.generated for s in (first, second)] == [8, 9]
    assert [s.protocol.split for s in (first, second)] == ["train", "held_out"]
    assert [s.made.average for s in (first, second)] == ["average-half-life-60", "model"]
    assert [s.made.weights for s in (first, second)] == [run.weights(), run.weights("none")]
    assert [s.made.generation["steps"] for s in (first, second)] == [3, 2]
    assert [s.made.evaluations for s in (first, second)] == [3, 2]
    for s in (first, second):
        assert s.made.samples_trained == 100
        assert s.protocol.data == run.info.fingerprint
        assert Sampling.model_validate(s.made.generation).steps == s.made.evaluations
    # The same run scores the same again, from the record alone.
    again = run.scores(
        second.protocol.generated,
        second.protocol.seed,
        generation=Sampling.model_validate(second.made.generation),
        average="none",
        split=second.protocol.split,
    )
    made = again.made.model_copy(update={"seconds": second.made.seconds})
    assert again.model_copy(update={"made": made}) == second


def test_scores_with_an_extractor_that_does_not_fit_are_refused(moons, tmp_path):
    run = copied(moons, tmp_path)
    for extractor, words in (
        ("classifier", "labelled images of two classes"),
        ("clasifier", "did you mean 'classifier'"),
        ("none.safetensors", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=words):
            run.scores(8, extractor=extractor)
    with pytest.raises(ConfigError, match="at least 2 samples, got 1"):
        run.scores(1)
    with pytest.raises(ConfigError, match="no split 'test'"):
        run.scores(8, split="test")
    assert not (run.path / "scores.json").exists()


def test_a_likelihood_is_refused_in_a_sentence(moons):
    how = Sampling(step=Jump(eta=0.5))
    with pytest.raises(ConfigError, match="'jump' with eta above 0 have no .* step=heun"):
        moons.likelihood(np.zeros((1, 2), np.float32), generation=how)
    with pytest.raises(ConfigError, match=r"of native values \[n, 2\]"):
        moons.likelihood(np.zeros((1, 3), np.float32))


def test_a_bound_is_the_sum_of_its_parts_and_does_not_depend_on_batches(moons):
    x = moons.dataset.x[:7]
    how = Sampling(step=Ancestral(), grid=Trailing(), steps=6)
    nats = moons.nats(x, 3, generation=how)
    assert set(nats.parts) == {"L_T", "L_t", "L_0", "scale"}  # vectors, standardised
    assert not nats.exact
    whole = moons.likelihood(x, 3, generation=how)
    np.testing.assert_allclose(whole, sum(part.numpy() for part in nats.parts.values()), rtol=1e-12)
    small = moons.likelihood(x, 3, generation=how, batch=2)
    np.testing.assert_allclose(whole, small, rtol=1e-4, atol=1e-4)
    assert not np.allclose(whole, moons.likelihood(x, 4, generation=how), atol=1e-3)


class Standard:
    """The standard normal at the model's scale."""

    no_law = None

    def likelihood(self, model, info, x, noise):
        nats = (0.5 * x.square() + 0.5 * np.log(2 * np.pi)).flatten(1).sum(1)
        return Nats({"standard": nats}, exact=True)


def test_a_density_is_per_native_value(tmp_path):
    """p(native) = p(scaled) |d scaled / d native|: −log p(x) integrates to 1 over native values."""
    run = bare((0.0, 255.0), None)
    objective = run.recipe.objective.model_copy(update={"range": (-8.0, 8.0)})
    run.recipe = run.recipe.model_copy(update={"objective": objective, "generation": Standard()})
    learner = type("L", (), {"objective": run.recipe.objective, "model": 0})
    run._load = lambda average: (None, learner)
    x = np.linspace(0, 255, 2001, dtype=np.float32)[:, None]
    density = np.exp(-run.likelihood(x))
    assert density.sum() * 255 / 2000 == pytest.approx(1, abs=1e-3)


# --- several processes --------------------------------------------------------------------------


@pytest.mark.parametrize("other", [-1, 1])
def test_processes_that_see_other_data_or_runs_are_refused(other, tmp_path, monkeypatch):
    """Another process has another mark, smaller or larger than this one's."""

    def agreed(*values):
        mine, negative = values
        return max(mine, mine + other), max(negative, negative - other)

    assert run_module._alike("0f" * 32)
    monkeypatch.setattr(run_module.ranks, "agreed", agreed)
    with pytest.raises(ConfigError, match="different data or other runs"):
        Run.create(points(), tmp_path, "job")
    assert not (tmp_path / "job").exists()


# --- memory -------------------------------------------------------------------------------------


def test_out_of_memory_is_noted_and_remembered(tmp_path, monkeypatch):
    """From the update that did not fit on, and when the run is taken up again."""
    real, tried = training._accumulate, []

    def hungry(job, batches, parts, count):
        tried.append(parts)
        if job.state.step >= 2 and len(batches[0].ids) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(job, batches, parts, count)

    monkeypatch.setattr(training, "_accumulate", hungry)
    run = trained(Run.create(points(), tmp_path, "job"), 4)
    assert len(tried) == 5  # update 3 was made twice
    assert run.recipe.optim.micro_batch == 10
    again = Run.create(points(), tmp_path, "job")
    assert again.recipe.optim.micro_batch == 10
    tried.clear()
    trained(again)
    assert {len(parts) for parts in tried} == {2}
    assert "out of memory before update 3: from there on 10 samples at a time" in (
        run.path / "notes.log"
    ).read_text(encoding="utf-8")
