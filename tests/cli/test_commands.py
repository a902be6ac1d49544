"""The command line as a person types it; wrong inputs are in `test_wrong_inputs.py`."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ornstein.cli import overrides, run
from ornstein.cli.request import request
from ornstein.errors import ConfigError
from ornstein.scores import Scores, read

TINY = ["model.network=unet", "model.network.channels=[8,16]", "optim.batch=32", "optim.warmup=0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of runs with one short training in it, named `small`."""
    folder = tmp_path_factory.mktemp("runs")
    words = ["train", "edm", "--samples", "320", "--run", "small", "--runs", str(folder)]
    assert run([*words, *TINY]) == 0
    return folder


def say(capsys, *words):
    """Exit code, standard output and standard error of a command."""
    capsys.readouterr()
    code = run(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def test_dotted_options_are_overrides():
    words = ["train", "x", "--optim.lr", "1", "--a.b=c", "--data", "x.y/z", "k.v=1", "--data=a.b"]
    assert overrides(words) == [
        *("train", "x", "optim.lr=1", "a.b=c", "--data", "x.y/z", "k.v=1", "--data=a.b"),
    ]


def test_a_path_may_be_read_as_another_kind(tmp_path):
    (tmp_path / "train.parquet").touch()
    asked = request("edm", str(tmp_path), None, {}, ["data.kind=shards"])
    assert asked.recipe.data.kind == "shards"
    assert asked.recipe.data.path == str(tmp_path)
    with pytest.raises(ConfigError, match="given twice"):
        request("edm", "moons", None, {}, ["data.kind=shards"])


def processor_time():
    """Seconds that finished child processes have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_quick_and_without_torch():
    """At most 0.4 s and 1 s of the processor (the clock depends on who else is busy), no torch."""
    for words, limit in ((["--help"], 0.4), (["train", "--help"], 1.0)):
        code = (
            "import sys; from ornstein.cli import run; "
            f"run({words}); sys.exit('torch' in sys.modules)"
        )
        times = []
        for _ in range(3):
            began = processor_time()
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
            times.append(processor_time() - began)
            assert done.returncode == 0
            assert b"ornstein" in done.stdout
        assert min(times) < limit


def test_sample_writes_what_is_asked_for(runs, tmp_path, capsys):
    words = ["sample", "small", "-n", "6", "--steps", "3", "--save", "all"]
    code, out, _ = say(capsys, *words, "--runs", str(runs), "--out", str(tmp_path))
    assert code == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len([n for n in names if n.endswith("png")]) == 7
    for line in out.splitlines()[:2]:
        assert (tmp_path / line.split("/")[-1]).exists()
    with np.load(next(tmp_path.glob("*.npz"))) as file:
        x = file["samples"]
    assert x.shape == (6, 1, 8, 8)
    assert x.dtype == np.uint8
    assert x.max() <= 16
    with Image.open(next(tmp_path.glob("*.gif"))) as gif:
        assert 2 <= gif.n_frames <= 4  # the start and three steps, equal ones merged


def test_sampling_does_not_depend_on_how_many_are_drawn(runs, tmp_path, capsys):
    for n, folder in ((3, "a"), (5, "b")):
        words = ["sample", "small", "-n", str(n), "--save", "npz", "--out", str(tmp_path / folder)]
        assert say(capsys, *words, "--runs", str(runs))[0] == 0
    few, many = (np.load(next((tmp_path / f).glob("*.npz")))["samples"] for f in "ab")
    np.testing.assert_allclose(few.astype(int), many[:3].astype(int), atol=1)


def test_show_reads_back_and_differs(runs, tmp_path, capsys):
    code, out, _ = say(capsys, "show", "small", "--runs", str(runs))
    assert code == 0
    assert "sigma_data: 0." in out  # measured from the data
    (tmp_path / "mine.yaml").write_text(out)
    assert say(capsys, "show", str(tmp_path / "mine.yaml"))[1] == out
    code, out, _ = say(capsys, "show", "edm", "small", "--runs", str(runs))
    assert "optim.batch: 64 -> 32" in out


def test_runs_and_recipes_list_what_there_is(runs, capsys):
    assert "small" in say(capsys, "runs", "--runs", str(runs))[1]
    out = say(capsys, "recipes")[1]
    assert "arXiv:2006.11239" in out


def test_the_same_command_says_that_it_is_finished(runs, capsys):
    words = ["train", "edm", "--samples", "320", "--run", "small", "--runs", str(runs), *TINY]
    code, _, err = say(capsys, *words)
    assert code == 0
    assert "is finished (320 samples)" in err


def test_a_refused_change_names_the_key(runs, capsys):
    words = ["train", "edm", "--run", "small", "--runs", str(runs), "--samples", "320"]
    code, _, err = say(capsys, *words, *TINY, "--seed", "3")
    assert code == 4
    assert "was made with seed=0, not 3" in err
    assert "--allow-change seed" in err


def test_a_longer_length_goes_on(runs, tmp_path, capsys):
    shutil.copytree(runs / "small", tmp_path / "small")
    words = ["train", "edm", "--run", "small", "--runs", str(tmp_path), "--samples", "640"]
    code, _, err = say(capsys, *words, *TINY)
    assert code == 0
    assert "resumed at 320" in err
    changes = json.loads((tmp_path / "small/provenance.json").read_text())["changes"]
    assert [c["key"] for c in changes] == ["optim.samples"]
    assert changes[0]["samples"] == 320


def test_evaluate_prints_json(runs, capsys):
    words = ["evaluate", "small", "-n", "100", "--steps", "3", "--json", "--runs", str(runs)]
    code, out, _ = say(capsys, *words)
    assert code == 0
    scores = Scores.model_validate_json(out)
    assert scores.frechet.low <= scores.frechet.value <= scores.frechet.high
    assert scores.protocol.generated == 100
    stored = read(runs / "small/scores.json")
    assert stored[-1] == scores
    assert scores.made.generation["steps"] == 3
    assert scores.made.evaluations == 5  # Heun: 2 a step, 1 in the last


def test_evaluate_prints_a_table(runs, capsys):
    words = ["evaluate", "small", "-n", "100", "--steps", "3", "--runs", str(runs)]
    code, out, _ = say(capsys, *words, "--split", "held_out", "--extractor", "pixels")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "100 samples against 180 of the held-out split (seed 0)"
    assert lines[1] == "features: pixels 8x8"
    heads = ["this model", "95 % interval", "two halves", "training", "one Gaussian"]
    assert re.split("  +", lines[3].strip()) == heads
    first = [line.partition("  ")[0] for line in lines[4:]]
    names = ["samples", "Fréchet distance", "kernel distance", "precision", "recall", "density"]
    assert first[:8] == [*names, "coverage", "memorised"]
    assert len({len(line) for line in lines[3:11]}) == 1  # a table
    assert max(map(len, lines[:14])) <= 100


def test_older_and_damaged_scores_do_not_hide_a_run(runs, tmp_path, capsys):
    shutil.copytree(runs / "small", tmp_path / "small")
    path = tmp_path / "small" / "scores.json"
    path.write_text('[{"name": "Fréchet distance", "value": 1.234, "low": 1, "high": 2}]')
    assert "Fréchet distance 1.23 (older score)" in say(capsys, "runs", "--runs", str(tmp_path))[1]
    evaluate = ["evaluate", "small", "-n", "20", "--steps", "2", "--extractor", "pixels"]
    assert say(capsys, *evaluate, "--runs", str(tmp_path))[0] == 0
    assert len(read(path)) == 2
    assert "older" not in say(capsys, "runs", "--runs", str(tmp_path))[1]
    path.write_text("[[")
    assert "finished" in say(capsys, "runs", "--runs", str(tmp_path))[1]


def test_doctor_names_device_and_precision(capsys):
    code, out, _ = say(capsys, "doctor")
    assert code == 0
    for word in ("torch", "device", "precision", "threads", "extra"):
        assert word in out


def test_a_bug_leaves_a_log_and_code_1(runs, capsys, monkeypatch):
    monkeypatch.setattr("ornstein.cli.recipes.recipes", lambda: 1 / 0)
    code, _, err = say(capsys, "recipes")
    assert code == 1
    assert "this is a bug" in err
    assert "Traceback" not in err


def test_runs_inside_the_data_are_not_data(tmp_path, monkeypatch, capsys):
    """`--data .` in a folder of photos: the pictures of the run do not change the data."""
    random = np.random.default_rng(0)
    for i in range(5):
        pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    words = ["train", "edm", "--data", ".", "--samples", "64", *TINY]
    assert say(capsys, *words)[0] == 0
    code, _, err = say(capsys, *words)
    assert code == 0
    assert "is finished (64 samples)" in err


def test_two_samples_are_enough(tmp_path, capsys):
    np.save(tmp_path / "two.npy", np.float32([[1, 2], [3, 5]]))
    words = ["train", "edm", "--data", str(tmp_path / "two.npy"), "--samples", "64"]
    assert say(capsys, *words, "--runs", str(tmp_path / "runs"))[0] == 0


def test_a_damaged_run_does_not_hide_the_others(runs, tmp_path, capsys):
    shutil.copytree(runs / "small", tmp_path / "good")
    shutil.copytree(runs / "small", tmp_path / "bad")
    (tmp_path / "bad" / "recipe.yaml").write_text("optim: [")
    code, out, _ = say(capsys, "runs", "--runs", str(tmp_path))
    assert code == 0
    assert "bad   damaged: " in out
    assert "finished" in out
