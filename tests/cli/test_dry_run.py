"""`ornstein train ... --dry-run`: it says what would happen, and nothing does."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from ornstein import memory
from ornstein.cli import run
from ornstein.recipe import Recipe
from ornstein.settings import flatten, resolve

TINY = ["model.network=unet", "model.network.channels=[8,16]", "optim.batch=32", "optim.warmup=0"]


@pytest.fixture(autouse=True)
def short_trials(monkeypatch):
    monkeypatch.setattr("ornstein.prepare.TRIAL_SECONDS", 0.1)


def dry(runs, *words, capsys):
    """Exit code, standard output and standard error of a dry run."""
    capsys.readouterr()
    code = run(["train", *words, *TINY, "--runs", str(runs), "--dry-run"])
    return (code, *capsys.readouterr())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of runs with one short training in it, named `small`."""
    folder = tmp_path_factory.mktemp("runs")
    words = ["train", "edm", "--samples", "320", "--run", "small", "--runs", str(folder)]
    assert run([*words, *TINY]) == 0
    return folder


def content(folder):
    """All files below a folder, with what is in them."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_setting_has_its_source(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("optim:\n  clip: 2.5\n")
    words = ["edm", "--samples", "64", "--seed", "3", "--file", str(file)]
    code, out, _ = dry(tmp_path / "runs", *words, capsys=capsys)
    assert code == 0
    assert not (tmp_path / "runs").exists()
    recipe, _, rest = out.partition("\n\n")
    sources = {}
    for line in recipe.splitlines():
        found = re.fullmatch(r" *(\w+: .*\S) +# (.*)", line)
        if found:
            sources[found[1]] = found[2]
    assert sources["samples: 64"] == "command line"
    assert sources["seed: 3"] == "command line"
    assert sources["clip: 2.5"] == f"file {file}"
    assert sources["sigma_max: 80.0"] == "recipe"
    assert sources["weight_decay: 0.0"] == "default"
    assert sources["sigma_data: 0.7522"] == "measured from the data"
    assert len({line.index("#") for line in recipe.splitlines() if "# " in line}) == 1
    # It is a recipe that `train` takes, and complete.
    (tmp_path / "said.yaml").write_text(recipe)
    said = resolve(Recipe, {}, tmp_path / "said.yaml")
    assert "default" not in said.provenance.values()
    assert said.value.optim.clip == 2.5
    assert recipe.count("# ") == len(flatten(said.value))
    assert "data: digits, 1,797 samples of 1×8×8, 10 classes, 180 held out" in rest
    for word in ("size: ", "disk: ", "memory: ", "speed: ", "time: ", "folder: ", "nothing was w"):
        assert len(re.findall(f"^{word}", rest, re.MULTILINE)) == 1
    assert re.search(r"^time: 0:0\d for 64 samples \(", rest, re.MULTILINE)


def test_minutes_are_measured(tmp_path, capsys):
    code, out, _ = dry(tmp_path / "runs", "edm", "--minutes", "0.02", capsys=capsys)
    assert code == 0
    samples = re.search(r"samples: (\d+) +# measured speed", out)
    assert f"for {int(samples[1]):,} samples" in out
    assert "time: 0:01 for" in out  # 0.02 minutes are 1.2 s
    assert not (tmp_path / "runs").exists()


def test_a_run_that_is_there_is_left_as_it_is(runs, capsys):
    before = content(runs)
    code, out, _ = dry(runs, "edm", "--samples", "320", "--run", "small", capsys=capsys)
    assert code == 0
    assert f"folder: {runs / 'small'} exists and is finished" in out
    assert "time: 0:00 for 0 samples more, after 320" in out
    assert re.search(r"sigma_data: 0.7522 +# the run", out)
    words = ["edm", "--samples", "640", "--run", "small"]
    code, out, _ = dry(runs, *words, capsys=capsys)
    assert code == 0
    assert "exists and would go on at 320 samples" in out
    assert "for 320 samples more, after 320" in out
    code, out, _ = dry(runs, *words, "--fresh", capsys=capsys)
    assert f"{runs / 'small'} would be made; the run that is there would be set aside" in out
    assert "for 640 samples (" in out
    code, out, err = dry(runs, *words, "--seed", "1", capsys=capsys)
    assert (code, out) == (4, "")
    assert "was made with seed=0, not 1" in err
    assert content(runs) == before


WRONG = [
    (2, "edm optim.lr=-1", "optim.lr must be greater than 0"),
    (2, "edm --data moons", "write model.network=mlp"),
    (2, "ddpm model.process=straight", "does not determine the clean image"),
    (3, "edm --data nowhere", "no known data set"),
]


@pytest.mark.parametrize(("code", "words", "hint"), WRONG, ids=lambda v: str(v)[:30])
def test_what_train_refuses_is_refused(code, words, hint, tmp_path, capsys):
    found, out, err = dry(tmp_path / "runs", *words.split(), capsys=capsys)
    assert (found, out) == (code, "")
    assert hint in err
    assert not (tmp_path / "runs").exists()


def test_what_does_not_fit_is_told_and_not_tried(tmp_path, monkeypatch, capsys):
    free = 300 * 2**20
    monkeypatch.setattr(memory, "free", lambda device: free)
    monkeypatch.setattr(memory, "held", lambda device: 0)
    words = ["edm", "optim.micro_batch=16384", "--samples", "32768"]
    given = ["train", *words, *TINY, "--runs", str(tmp_path), "--dry-run", "optim.lr=0.001"]
    given[given.index("optim.batch=32")] = "optim.batch=32768"
    code = run(given)
    out = capsys.readouterr().out
    assert code == 7
    assert "by a count of tensors" in out
    proposed = int(re.search(r"it does not fit; optim.micro_batch=(\d+) would fit", out)[1])
    assert 128 <= proposed < 16384
    assert "time: " not in out
    free = 2**20
    assert run(given) == 7
    assert "it does not fit; take a smaller network" in capsys.readouterr().out


def test_the_cache_of_images_is_the_one_thing_that_is_written(tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    for i in range(4):
        pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    words = ["edm", "--data", str(tmp_path), "--samples", "64"]
    code, out, _ = dry(tmp_path / "runs", *words, capsys=capsys)
    assert code == 0
    assert "nothing was written but the cache of images" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{i}.png" for i in range(4)]
