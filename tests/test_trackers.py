"""Trackers are told what the log says: each update once, whatever happened to the run."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

from ornstein import Run, fsops, trackers
from ornstein.cli import run as run_command
from ornstein.data.sources import Toy
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.sampling import Sampling
from ornstein.errors import ConfigError
from ornstein.log import cut
from ornstein.nn.networks import MLP
from ornstein.optim import Optim
from ornstein.pictures import png
from ornstein.recipe import Recipe
from ornstein.trackers import APART, Following, TensorBoard, WandB, chosen

PREVIEW = png(Image.new("L", (6, 4), 77))


class Book:
    """Keeps what it is told, in this process only; `forget` is what a rewinding one does."""

    name: ClassVar[str] = "book"
    rewinds: ClassVar[bool] = True
    told: ClassVar[list[tuple[int, dict[str, float], bytes | None]]] = []
    fails_at: ClassVar[int | None] = None
    closed: ClassVar[int] = 0

    def __init__(self, run: Path, first: int) -> None:
        if self.rewinds:
            self.told[:] = [entry for entry in self.told if entry[0] < first]

    def log(self, step, values, picture):
        if step == self.fails_at:
            raise OSError("the line is\ndead")
        self.told.append((step, dict(values), picture))

    def flush(self):
        return True

    def close(self):
        type(self).closed += 1


@pytest.fixture
def book(monkeypatch):
    monkeypatch.setattr(trackers, "EVERY", -1.0)  # no need to wait
    Book.told, Book.fails_at, Book.closed, Book.rewinds = [], None, 0, True
    return Book


def line(step, seconds=1.0, loss=None):
    values = {"step": step, "samples": 20 * step, "loss": loss or 1 / step, "seconds": seconds}
    return json.dumps(values) + "\n"


def write(run, *steps, **values):
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(line(step, **values) for step in steps)


def preview(run, step):
    fsops.make_folder(run / "previews")
    fsops.replace(run / "previews" / f"step-{step:08d}.png", PREVIEW)


def steps():
    return [step for step, *_ in Book.told]


def unexpected(sentence):
    raise AssertionError(sentence)


def test_it_is_told_every_line_as_it_stands_there(tmp_path, book):
    with Following(tmp_path, book, unexpected) as following:
        write(tmp_path, 1, 2, 3)
        following.follow()
        assert steps() == [1, 2]  # the third may have a preview yet
        preview(tmp_path, 3)
        write(tmp_path, 4)
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 5, "samp')  # being written now
        following.follow()
        following.follow()
        assert steps() == [1, 2, 3, 4]  # the fifth was begun after the preview of the fourth
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(line(5).removeprefix('{"step": 5, "samp'))
    assert steps() == [1, 2, 3, 4, 5]
    assert [picture for *_, picture in Book.told] == [None, None, PREVIEW, None, None]
    expected = {k: v for k, v in json.loads(line(4)).items() if k != "step"}
    assert Book.told[3][1] == expected
    assert Book.closed == 1


@pytest.mark.parametrize("rewinds", [True, False])
@pytest.mark.parametrize("killed", [True, False])
@pytest.mark.parametrize("back", [0, 3, 7])
def test_a_run_that_goes_on_shows_each_update_once(tmp_path, book, rewinds, killed, back):
    """Killed after update 7, with a checkpoint at update `back`; then updates have other values."""
    book.rewinds = rewinds
    following = Following(tmp_path, book, unexpected)
    write(tmp_path, *range(1, 8), loss=1.0)
    following.follow()
    if not killed:
        following.__exit__()
    sent = 6 if killed else 7
    assert steps() == list(range(1, sent + 1))
    cut(tmp_path / "metrics.jsonl", sum(len(line(step, loss=1.0)) for step in range(1, back + 1)))
    with Following(tmp_path, book, unexpected) as following:
        following.follow()
        write(tmp_path, *range(back + 1, 10), loss=2.0)
        following.follow()
    assert steps() == list(range(1, 10))
    before = back if rewinds else max(back, sent)  # what was told stands, where it must
    losses = {step: values["loss"] for step, values, _ in Book.told}
    assert losses == {step: 1.0 if step <= before else 2.0 for step in range(1, 10)}


def test_a_kill_while_it_is_made_loses_nothing(tmp_path, book):
    """What is taken back is no longer noted as told, even if nothing more was noted."""
    following = Following(tmp_path, book, unexpected)
    write(tmp_path, *range(1, 9))
    following.follow()
    cut(tmp_path / "metrics.jsonl", len(line(1) + line(2)))
    Following(tmp_path, book, unexpected)  # killed at once
    assert steps() == [1, 2]
    write(tmp_path, *range(3, 12))
    with Following(tmp_path, book, unexpected):
        pass
    assert steps() == list(range(1, 12))


def test_a_run_that_was_trained_without_it_is_told_from_the_start(tmp_path, book):
    write(tmp_path, *range(1, 6))
    preview(tmp_path, 2)
    with Following(tmp_path, book, unexpected):
        pass
    assert steps() == [1, 2, 3, 4, 5]
    assert Book.told[1][2] == PREVIEW
    (tmp_path / "book" / "followed.json").write_text("[nonsense")
    with Following(tmp_path, book, unexpected):
        pass
    assert steps() == [1, 2, 3, 4, 5]


def test_quick_updates_are_told_ten_times_a_second_of_training(tmp_path, book):
    quick = APART / 4 * 1.0001
    with Following(tmp_path, book, unexpected) as following:
        write(tmp_path, *range(1, 31), seconds=quick)
        preview(tmp_path, 7)
        following.follow()
    assert steps() == [1, 5, 7, 11, 15, 19, 23, 27, 30]  # each fourth, previews, and the end


def test_a_tracker_that_fails_is_noted_once_and_left_out(tmp_path, book):
    notes = []
    book.fails_at = 3
    with Following(tmp_path, book, notes.append) as following:
        for step in range(1, 8):
            write(tmp_path, step)
            following.follow()
    assert steps() == [1, 2]
    (note,) = notes
    assert note.startswith("book shows no more of this run (OSError: the line is dead)")
    assert Book.closed == 0
    book.fails_at = None
    with Following(tmp_path, book, unexpected):
        pass
    assert steps() == list(range(1, 8))


def test_a_tracker_that_cannot_be_made_is_noted_once(tmp_path, book):
    class Broken(Book):
        def __init__(self, run, first):
            raise RuntimeError("no network")

    notes = []
    with Following(tmp_path, Broken, notes.append) as following:
        write(tmp_path, 1, 2)
        following.follow()
    assert len(notes) == 1
    assert "no network" in notes[0]


def test_names_and_packages_are_checked_before_any_work(monkeypatch, tmp_path):
    assert chosen("") == ()
    with pytest.raises(ConfigError, match="no tracker 'wanbd'; did you mean 'wandb'?"):
        chosen("wanbd")
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    for name in ("tensorboard", "wandb"):
        with pytest.raises(ConfigError, match=rf"pip install 'ornstein\[{name}\]'"):
            chosen(f" {name},")


def test_a_folder_of_its_name_is_not_the_package(monkeypatch, tmp_path):
    """W&B itself leaves a folder `wandb` where it is used."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert importlib.util.find_spec("wandb") is not None
    with pytest.raises(ConfigError, match="wandb is not installed"):
        chosen("wandb")


# --- In a training ----------------------------------------------------------------------------


def points(tmp_path):
    """A run of ten updates on points in the plane."""
    recipe = Recipe(
        name="points",
        data=Toy(name="moons", count=200),
        model=Diffusion(network=MLP(width=8, depth=1)),
        optim=Optim(batch=20, samples=200, warmup=0),
        generation=Sampling(steps=3),
    )
    return Run.create(recipe, tmp_path, "job")


def logged(run):
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_a_training_tells_what_it_logs(tmp_path, book, monkeypatch):
    """Stopped after four updates, gone on, and finished with a preview."""
    monkeypatch.setattr(trackers, "APART", 0.0)
    for event in points(tmp_path).train(previews=False, trackers=(Book,)):
        if event.step == 4:
            break
    assert steps() == [1, 2, 3, 4]
    run = points(tmp_path)
    list(run.train(trackers=(Book,)))
    assert [{"step": step, **values} for step, values, _ in Book.told] == logged(run)
    assert steps() == list(range(1, 11))
    assert Book.told[-1][2] == (run.path / "previews" / "step-00000010.png").read_bytes()
    assert Book.closed == 2


def test_a_tracker_that_fails_does_not_end_a_training(tmp_path, book, monkeypatch):
    monkeypatch.setattr(trackers, "APART", 0.0)
    book.fails_at = 3
    run = points(tmp_path)
    assert len(list(run.train(previews=False, trackers=(Book, Book)))) == 10
    assert run.finished
    notes = (run.path / "notes.log").read_text().splitlines()
    assert len(notes) == 2  # one for each
    assert all("book shows no more of this run" in note for note in notes)


def test_the_option_is_checked_before_any_work(tmp_path, capsys):
    words = ["train", "edm", "--data", "moons", "--runs", str(tmp_path / "runs")]
    assert run_command([*words, "--track", "tensorbord"]) == 2
    assert "did you mean 'tensorboard'?" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


# --- Weights & Biases, in effigy ------------------------------------------------------------------


class Server:
    """The part of `wandb` that is used; runs outlive the processes that feed them."""

    def __init__(self):
        self.runs = {}
        self.asked = []

    def init(self, **options):
        self.asked.append(options)
        return self.runs.setdefault(options["id"], Fake())


class Fake:
    def __init__(self):
        self.rows = []

    @property
    def step(self):
        return self.rows[-1][0] + 1 if self.rows else 0

    def log(self, values, step, commit):
        assert commit
        assert step >= self.step, "W&B drops what comes late"
        self.rows.append((step, values))

    def finish(self):
        pass


@pytest.fixture
def server(monkeypatch):
    made = Server()
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin="effigy")
    module.init, module.Settings = made.init, dict
    module.Image = lambda picture: ("picture", picture.size)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(trackers, "EVERY", -1.0)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return made


def test_a_run_of_weights_and_biases_goes_on(tmp_path, server, monkeypatch):
    (tmp_path / "recipe.yaml").write_text("name: edm\noptim: {lr: 1e-3}\n")
    assert chosen("wandb") == (WandB,)
    following = Following(tmp_path, WandB, unexpected)
    write(tmp_path, *range(1, 7))
    following.follow()  # tells 1 to 5, then the process is killed
    cut(tmp_path / "metrics.jsonl", len(line(1) + line(2)))
    preview(tmp_path, 8)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with Following(tmp_path, WandB, unexpected):
        write(tmp_path, *range(3, 10))
    (run,) = server.runs.values()
    assert [step for step, _ in run.rows] == list(range(1, 10))
    assert run.rows[7][1]["preview"] == ("picture", (6, 4))
    assert run.rows[4][1] == {"samples": 100, "loss": 0.2, "seconds": 1.0}
    first, second = server.asked
    assert (first["project"], second["project"]) == ("ornstein", "mine")
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert first["config"] == {"name": "edm", "optim": {"lr": 0.001}}


def test_what_a_kill_has_kept_from_the_server_is_sent_again(tmp_path, server):
    """W&B sends by and by, from a process that a kill ends too: what the server has counts."""
    (tmp_path / "recipe.yaml").write_text("name: edm\n")
    with Following(tmp_path, WandB, unexpected):
        write(tmp_path, 1, 2)
    following = Following(tmp_path, WandB, unexpected)
    write(tmp_path, *range(3, 9))
    following.follow()  # tells 3 to 7
    (run,) = server.runs.values()
    del run.rows[4:]  # and 5 to 7 never arrive
    with Following(tmp_path, WandB, unexpected):
        write(tmp_path, 9)
    assert [step for step, _ in run.rows] == list(range(1, 10))


# --- TensorBoard, in person ---------------------------------------------------------------------


def read_back(run):
    """What TensorBoard shows: {tag: [(step, value)]}, and the steps of previews."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    tags = found.Tags()
    scalars = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags["scalars"]}
    images = found.Images("preview") if "preview" in tags["images"] else []
    return scalars, images


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:pkg_resources")
def test_tensorboard_shows_each_update_once(tmp_path):
    pytest.importorskip("tensorboard")
    assert chosen("tensorboard,tensorboard") == (TensorBoard,)
    following = Following(tmp_path, TensorBoard, unexpected)
    write(tmp_path, *range(1, 8), loss=1.0)
    preview(tmp_path, 5)
    following._tell()  # 1 to 6, then the process is killed: nothing is closed
    scalars, images = read_back(tmp_path)
    assert [step for step, _ in scalars["loss"]] == [1, 2, 3, 4, 5, 6]
    assert [(i.step, i.width, i.height) for i in images] == [(5, 6, 4)]
    assert images[0].encoded_image_string == PREVIEW
    cut(tmp_path / "metrics.jsonl", sum(len(line(step, loss=1.0)) for step in (1, 2, 3)))
    with Following(tmp_path, TensorBoard, unexpected):
        write(tmp_path, *range(4, 10), loss=2.0)
    scalars, images = read_back(tmp_path)
    assert scalars["loss"] == [(s, 1.0 if s <= 3 else 2.0) for s in range(1, 10)]
    assert scalars["samples"] == [(s, 20.0 * s) for s in range(1, 10)]
    assert set(scalars) == {"samples", "loss", "seconds"}
    assert [i.step for i in images] == [5]
