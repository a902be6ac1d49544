"""`ornstein tune`, and `--nfe` of those that draw; wrong inputs are in `test_wrong_inputs.py`."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from ornstein import Run, fsops
from ornstein.cli import run
from ornstein.cli.tune import table
from ornstein.diffusion.sampling import Sampling
from ornstein.diffusion.tuning import DEFAULT, FITTED
from ornstein.errors import CheckpointError, ConfigError
from ornstein.tuned import path_of, read, write
from ornstein.tuning import at_budget, tune
from tests.reliability.disk import Disk

TINY = ["model.network=mlp", "model.network.width=16", "optim.warmup=0", "--no-previews"]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """A teacher of few steps, since what is tested here is not how good it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ornstein.diffusion.tuning.TEACHER", 8)
        patch.setattr("ornstein.diffusion.tuning.TEACHERS", 8)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`plane`, a hardly trained EDM on moons, tuned for 2 and 3 evaluations."""
    folder = tmp_path_factory.mktemp("runs")
    words = ["train", "edm", "--data", "moons", "--samples", "640", "--run", "plane", *TINY]
    assert run([*words, "--runs", str(folder)]) == 0
    assert run(["tune", "plane", "--nfe", "3,2", "--starts", "16", "--runs", str(folder)]) == 0
    return folder


@pytest.fixture
def plane(runs, tmp_path):
    """A copy of the run."""
    return Run.open(shutil.copytree(runs / "plane", tmp_path / "plane"))


def say(capsys, *words):
    capsys.readouterr()
    code = run(list(words))
    return code, *capsys.readouterr()


def test_a_sampler_for_each_number_is_kept_with_the_run(runs):
    for n in (2, 3):
        record = Run.open("plane", runs).tuned(n)
        assert record is not None
        assert record.evaluations == record.generation.evaluations == n
        assert (record.starts, record.unseen, record.seed, record.cut) == (16, 32, 0, False)
        assert record.weights == Run.open("plane", runs).weights()
        assert record.samples_trained == 640
        assert {DEFAULT, FITTED, record.best} <= set(record.errors)
        assert record.ratio.value <= 1
        chosen = record.errors[record.chosen].value
        assert chosen <= record.errors[record.best].value <= record.errors[DEFAULT].value
    assert Run.open("plane", runs).tuned(4) is None
    assert sorted(path.name for path in (runs / "plane" / "tuned").iterdir()) == [
        "2.json",
        "3.json",
    ]


def test_the_table_says_what_was_compared_and_what_is_kept(plane, capsys):
    words = ("tune", str(plane.path), "--nfe", "2", "--starts", "8")
    code, out, err = say(capsys, *words)
    assert code == 0
    record = plane.tuned(2)
    assert out.startswith("evaluations")
    assert f"{record.errors[DEFAULT].value:.4f} ± " in out
    assert f" {record.best} " in out
    assert "16 noises that the fit has not seen" in out
    assert out.endswith(f"use it: ornstein sample {plane.path} --nfe 2\n")
    assert "solving the flow from 24 starts" in err
    kept = record.model_copy(update={"chosen": record.best, "cut": True})
    said = table([kept])
    assert f"the fit is not clearly better than {record.best}, which is kept" in said
    assert f"time ended the fit after {record.rounds} rounds" in said
    code, out, _ = say(capsys, *words, "--json")
    (told,) = json.loads(out)
    assert told["evaluations"] == 2
    assert told["generation"] == plane.tuned(2).generation.model_dump(mode="json")


def test_the_same_seed_finds_the_same_and_another_another(plane):
    found = []
    for seed in (0, 0, 1):
        *_, last = tune(plane, [3], seed=seed, starts=8)
        assert last.record == plane.tuned(3)
        found.append(last.record)
    assert found[0] == found[1].model_copy(update={"seconds": found[0].seconds})
    assert found[0].errors != found[2].errors
    random = torch.get_rng_state()
    list(tune(plane, [2], starts=2))
    assert torch.equal(torch.get_rng_state(), random)


def test_samples_are_drawn_as_tuned(runs, plane, tmp_path, capsys):
    words = ("-n", "5", "--save", "npz", "--out", str(tmp_path / "drawn"))
    code, out, err = say(capsys, "sample", str(plane.path), "--nfe", "3", *words)
    assert code == 0
    assert err.startswith("3 evaluations by the ")
    assert "as tuned\n" in err
    drawn = np.load(out.strip())["samples"]
    expected = plane.generate(5, generation=plane.tuned(3).generation)
    assert np.array_equal(drawn, expected)
    code, out, err = say(capsys, "sample", str(plane.path), "--nfe", "4", *words)
    assert code == 0
    assert "4 evaluations by the default solver; to fit one: ornstein tune " in err
    how, _ = at_budget(plane, 4)
    assert how.evaluations == 4
    default = Sampling(steps=4)
    assert (how.step.kind, how.grid.kind) == (default.step.kind, default.grid.kind)
    expected = plane.generate(5, generation=default)
    assert np.array_equal(np.load(out.strip())["samples"], expected)
    words = ("evaluate", str(plane.path), "--nfe", "3", "-n", "8", "--likelihood", "0", "--json")
    code, out, err = say(capsys, *words)
    assert json.loads(out)["made"]["evaluations"] == 3
    assert "as tuned" in err


def test_other_weights_are_told(plane):
    record = plane.tuned(3)
    path = path_of(plane.path, 3)
    path.write_text(record.model_copy(update={"weights": "0" * 64}).model_dump_json())
    how, sentence = at_budget(plane, 3)
    assert how == record.generation
    assert "to other weights (640 samples, average" in sentence
    assert sentence.endswith(f"ornstein tune {plane.path} --nfe 3")
    assert "other weights" in at_budget(plane, 2, "none")[1]


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 99_999, "{}", None])
def test_a_damaged_record_is_one_sentence(plane, content, capsys):
    other = path_of(plane.path, 2).read_text()  # the record of another number
    path_of(plane.path, 3).write_text(other if content is None else content)
    with pytest.raises(CheckpointError, match="3.json is damaged; tune again, or remove it"):
        plane.tuned(3)
    code, _, err = say(capsys, "sample", str(plane.path), "--nfe", "3", "-n", "2")
    assert code == 4
    assert err.count("\n") == 1
    *_, last = tune(plane, [3], starts=2)
    assert plane.tuned(3) == last.record


def test_interrupted_it_keeps_what_it_has(plane, monkeypatch, capsys):
    shutil.rmtree(plane.path / "tuned")

    def interrupted(_path, _content):
        raise KeyboardInterrupt

    real = fsops.rename
    monkeypatch.setattr(
        fsops, "rename", lambda a, b, *rest: interrupted(a, b) if b.stem == "2" else real(a, b)
    )
    code, _, _ = say(capsys, "tune", str(plane.path), "--nfe", "3,2", "--starts", "4")
    assert code == 130
    assert plane.tuned(3) is not None
    assert plane.tuned(2) is None
    assert [path.name for path in (plane.path / "tuned").iterdir()] == ["3.json"]


class Killed(BaseException):
    """The end of the process."""


def test_a_death_at_any_operation_leaves_the_old_record_or_the_new(plane):
    old = plane.tuned(3)
    new = old.model_copy(update={"seed": 7})
    with Disk(plane.path) as disk:
        write(plane.path, new)
    assert plane.tuned(3) == new
    found = []
    for k in range(len(disk.done)):
        write(plane.path, old)

        def kill(i, _operation, k=k):
            if i >= k:  # nor does it clear up
                raise Killed

        with pytest.raises(Killed), Disk(plane.path, kill):
            write(plane.path, new)
        found.append(plane.tuned(3))
    assert found[0] == old
    assert found[-1] == new  # all but the flush of the folder
    assert all(one in (old, new) for one in found)


def test_a_clock_ends_the_fit_with_what_it_has(plane):
    *_, last = tune(plane, [3], starts=4, seconds=1e-9)
    assert last.record.cut
    assert last.record.rounds == 0
    assert last.record.errors[last.record.chosen].value <= last.record.errors[DEFAULT].value


def test_what_cannot_be_tuned_is_refused(plane):
    for budgets, starts, seconds, said in (
        ([0], None, 1, "1 to 30 evaluations, not 0"),
        ([6, 31], None, 1, "1 to 30 evaluations, not 31"),
        ([6], 1, 1, "at least 2 starts"),
        ([6], None, 0, "more than 0 minutes"),
        ([6], None, float("nan"), "more than 0 minutes"),
    ):
        with pytest.raises(ConfigError, match=said):
            list(tune(plane, budgets, starts=starts, seconds=seconds))


def test_processes_that_end_in_pure_noise_can_be_tuned(tmp_path):
    words = ["train", "flow", "--data", "moons", "--samples", "640", "--run", "straight", *TINY]
    assert run([*words, "--runs", str(tmp_path)]) == 0
    straight = Run.open("straight", tmp_path)
    *_, last = tune(straight, [3], starts=8)
    assert last.record.generation.evaluations == 3
    assert np.isfinite(straight.generate(4, generation=last.record.generation)).all()
    assert np.isfinite(straight.generate(4, generation=at_budget(straight, 5)[0])).all()


def test_a_record_is_read_without_a_run(tmp_path):
    assert read(tmp_path, 6) is None
