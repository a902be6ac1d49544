"""`ornstein compare`: one table and one picture, by one rule, of runs at rest and of live ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import pytest
from PIL import Image

from ornstein import Run
from ornstein.cli import run
from ornstein.cli.compare import table
from ornstein.comparison import Asked, Row, compared, difference, label, state_of, stored
from ornstein.scores import read

TINY = ["model.network=unet", "model.network.channels=[8,16]", "optim.batch=32", "optim.warmup=0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on digits and one on the plane, a few updates each."""
    folder = tmp_path_factory.mktemp("runs")
    for recipe, name, words in (
        ("edm", "one", TINY),
        ("ddpm", "two", TINY),
        ("edm", "plane", ["--data", "moons", "model.network=mlp", "model.network.width=8"]),
    ):
        asked = ["train", recipe, *words, "--samples", "320", "--run", name, "--no-previews"]
        assert run([*asked, "--runs", str(folder)]) == 0
    return folder


def say(capsys, runs, *words):
    capsys.readouterr()
    code = run(["compare", *words, "--runs", str(runs), "-n", "12", "--likelihood", "0"])
    return code, *capsys.readouterr()


def test_runs_beside_each_other(runs, tmp_path, capsys):
    out = tmp_path / "both.png"
    code, text, err = say(
        capsys, runs, "one", "two", "step=jump", "grid=trailing", "--steps", "2", "--out", str(out)
    )
    assert code == 0, err
    lines = text.splitlines()
    assert lines[0].startswith("all rows: state finished, samples trained 320, sampler jump on")
    assert [line.split()[0] for line in lines[3:5]] == ["one", "two"]
    assert sum(line.count("*") for line in lines[3:5]) >= 2  # the best are marked
    with Image.open(out) as picture:
        assert picture.width == 1600


def test_samplers_and_step_counts_of_one_run_are_their_product(runs, tmp_path, capsys):
    words = ["one", "--steps", "2,3,2", "--step", "jump,heun", "--grid", "karras", "--json"]
    code, text, _ = say(capsys, runs, *words, "--out", str(tmp_path / "x.png"))
    rows = json.loads(text)
    assert code == 0
    found = [(r["generation"]["step"]["kind"], r["generation"]["steps"]) for r in rows]
    assert found == [("jump", 2), ("jump", 3), ("heun", 2), ("heun", 3)]
    assert [r["evaluations"] for r in rows] == [2, 3, 3, 5]
    assert all(r["scores"]["protocol"]["generated"] == 12 for r in rows)
    assert len({r["scores"]["made"]["weights"] for r in rows}) == 1


def test_what_is_stored_is_taken_over_and_only_what_answers_the_same_question(runs):
    one = Run.open("one", runs)
    how = one.recipe.generation.but(steps=4)
    asked = Asked(n=10, likelihood=0)
    assert stored(one, how, asked) is None
    (row,) = compared([(one, how)], asked)
    count = len(read(one.path / "scores.json"))
    (again,) = compared([(one, how)], asked)
    assert again.scores == row.scores == stored(one, how, asked)
    assert len(read(one.path / "scores.json")) == count
    for other in (
        (one, how.but(steps=5), asked),
        (one, how, asked._replace(n=11)),
        (one, how, asked._replace(seed=1)),
        (one, how, asked._replace(extractor="pixels")),
        (one, how, asked._replace(average="none")),
    ):
        assert stored(*other) is None
    (fresh,) = compared([(one, how)], asked, fresh=True)
    assert len(read(one.path / "scores.json")) == count + 1
    assert fresh.scores.metrics == row.scores.metrics  # the same numbers, measured again


def test_other_data_do_not_compare_and_the_table_says_so(runs, capsys, tmp_path):
    code, text, _ = say(
        capsys, runs, "one", "plane", "--steps", "2", "--out", str(tmp_path / "x.png")
    )
    assert code == 2  # nothing was compared
    assert "these scores do not compare: their data differ (digits, moons)" in text
    assert "*" not in text
    code, text, _ = say(
        *(capsys, runs, "one", "two", "plane", "step=jump", "grid=trailing"),
        *("--steps", "2", "--out", str(tmp_path / "y.png")),
    )
    assert code == 0  # two of the three were
    assert "these scores do not compare: their data differ (digits, moons)" in text


def test_a_run_without_a_checkpoint_is_listed(runs, tmp_path, capsys):
    for name in ("one", "two"):
        shutil.copytree(runs / name, tmp_path / name)
    shutil.rmtree(tmp_path / "two" / "ckpt")
    (tmp_path / "two" / "metrics.jsonl").unlink()
    code, text, err = say(
        capsys, tmp_path, "one", "two", "--steps", "2", "--out", str(tmp_path / "x.png")
    )
    assert code == 4, err  # a script can tell that a row is missing
    assert (tmp_path / "x.png").is_file()
    assert "two: the run two has no checkpoint yet" in text
    assert "not trained yet" in text
    code, text, err = say(capsys, tmp_path, "two")
    assert code == 4
    assert not text
    assert "the run two has no checkpoint yet; train it first" in err.splitlines()[-1]


def test_a_sampler_that_cannot_work_is_a_note(runs, tmp_path, capsys):
    words = ["one", "--steps", "2", "grid.sigma_max=1e9", "--grid", "karras,trailing"]
    code, _, err = say(capsys, runs, *words)
    assert code == 2
    assert "sigma_max" in err
    out = str(tmp_path / "x.png")
    ok = say(capsys, runs, "one", "--grid", "karras,trailing", "--steps", "2", "--out", out)
    assert ok[0] == 0


def test_live_runs_are_read_while_they_train(tmp_path, capsys):
    """Another process trains; rows are of one checkpoint, whatever is saved meanwhile."""
    words = ["train", "edm", *TINY, "--samples", "10000000", "--run", "live", "--no-previews"]
    command = [sys.executable, "-m", "ornstein", *words, "--runs", str(tmp_path)]
    trainer = subprocess.Popen(
        [*command, "--save-every", "0.2"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        started = time.monotonic()
        while not list(tmp_path.glob("live/ckpt/step-*")):
            assert trainer.poll() is None
            assert time.monotonic() - started < 60
            time.sleep(0.1)
        words = ["live", "--steps", "2,3", "--json", "--out", str(tmp_path / "x.png")]
        code, text, err = say(capsys, tmp_path, *words)
        assert code == 0, err
        rows = json.loads(text)
        (state,) = {row["state"] for row in rows}
        assert state.startswith("training, ")
        assert len({row["scores"]["made"]["weights"] for row in rows}) == 1
        assert trainer.poll() is None
    finally:
        trainer.terminate()
        trainer.wait(30)


def test_labels_say_what_differs(runs):
    one, two = (Run.open(name, runs) for name in ("one", "two"))
    how = one.recipe.generation.but(step={"kind": "jump", "eta": 0.5}, steps=3)
    rows = [Row(one, how, "", None), Row(two, how, "", None), Row(one, how.but(steps=4), "", None)]
    assert [label(row, rows) for row in rows] == ["one, 3 steps", "two, 3 steps", "one, 4 steps"]
    alone = [rows[0], rows[2]]
    assert label(rows[0], alone) == "jump (eta 0.5) on karras, 3 steps"
    assert state_of(one) == "finished"
    assert difference(rows) == ""
    assert "sampler" in table([rows[0]])


def test_compare_needs_a_run(capsys):
    assert run(["compare", "--steps", "5"]) == 2
    assert "compare needs at least one RUN" in capsys.readouterr().err
