"""Sequences as a person meets them: trained, drawn, animated, measured, and refused."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import numpy as np
import pytest
from PIL import Image

from ornstein.cli import run

FILMS = ["data.count=60", "data.frames=6", "data.size=8"]
SMALL = [
    *("model.nets.hidden=[16]", "model.features=8", "model.belief=8", "model.units=2"),
    *("model.hidden=8", "model.reach=2"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the run `small`, of moving digits."""
    folder = tmp_path_factory.mktemp("films")
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(told):
        patch.setenv("ORNSTEIN_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        words = ["train", "td_vae", "--data", "moving_digits", "--samples", "64", "--run", "small"]
        assert run([*words, *FILMS, *SMALL]) == 0
    return folder


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.setenv("ORNSTEIN_CACHE", str(trained / "cache"))
    monkeypatch.chdir(trained)
    return trained


def test_previews_are_strips_of_film(here):
    previews = sorted((here / "runs" / "small" / "previews").glob("*.png"))
    assert previews
    with Image.open(previews[-1]) as image:  # 16 rows of 6 frames, enlarged six times
        assert image.size == (6 * 50 + 2, 16 * 50 + 2)


def test_samples_are_drawn_in_every_form(here, tmp_path, capsys):
    assert run(["sample", "small", "-n", "5", "--save", "all", "--out", str(tmp_path)]) == 0
    written = {path.name for path in tmp_path.iterdir()}
    singles = {f"seed0-{i:05d}.png" for i in range(5)}
    assert written == {"grid-seed0.png", "samples-seed0.npz", "motion-seed0.gif", *singles}
    x = np.load(tmp_path / "samples-seed0.npz")["samples"]
    assert (x.shape, x.dtype) == ((5, 6, 1, 8, 8), np.uint8)
    with Image.open(tmp_path / "motion-seed0.gif") as gif:  # time, not the reverse process
        assert gif.size == (3 * 50 + 2, 2 * 50 + 2)
        assert gif.n_frames <= 6  # equal ones are merged
        first = np.asarray(gif.convert("L"))
    np.testing.assert_array_equal(first[2:50:6, 2:50:6], x[0, 0, 0])
    with Image.open(tmp_path / "seed0-00003.png") as strip:
        assert strip.size == (6 * 50 + 2, 52)


def test_an_animation_alone_is_the_same(here, tmp_path):
    for form in ("gif", "npz"):
        words = ["sample", "small", "-n", "5", "--save", form, "--out", str(tmp_path / form)]
        assert run(words) == 0
    x = np.load(tmp_path / "npz" / "samples-seed0.npz")["samples"]
    with Image.open(tmp_path / "gif" / "motion-seed0.gif") as gif:
        first = np.asarray(gif.convert("L"))
    np.testing.assert_array_equal(first[2:50:6, 52:100:6], x[1, 0, 0])


def test_scores_and_comparisons_are_of_sequences(here, tmp_path, capsys):
    assert run(["evaluate", "small", "--number", "20"]) == 0
    assert "features: pixels 4x4 of 6 frames" in capsys.readouterr().out
    words = ["compare", "small", "--number", "20", "--out", str(tmp_path / "rows.png")]
    assert run(words) == 0
    assert (tmp_path / "rows.png").exists()


@pytest.mark.parametrize("recipe", ["edm", "ddpm", "vae", "vq_vae", "ncsnv2"])
def test_recipes_of_single_samples_say_that_they_are(here, recipe, capsys):
    for dry in ([], ["--dry-run"]):
        words = ["train", recipe, "--data", "moving_shapes", "data.count=20", "data.frames=2"]
        assert run([*words, *dry]) == 2
        out, err = capsys.readouterr()
        assert "are sequences of frames" in err
        assert "td_vae" in err
        assert "Traceback" not in out + err
    assert [path.name for path in (here / "runs").iterdir()] == ["small"]


def test_augmentation_is_refused(here, capsys):
    words = ["train", "td_vae", "--data", "moving_digits", *FILMS, *SMALL, "augment.flip=true"]
    assert run([*words, "--samples", "64", "--run", "flipped"]) == 2
    assert "holds sequence data of shape [6, 1, 8, 8]" in capsys.readouterr().err


def test_folders_of_frames_are_trained_on(here, tmp_path, capsys):
    for k in range(3):
        folder = tmp_path / "films" / f"s{k}"
        folder.mkdir(parents=True)
        for i in range(9):
            Image.fromarray(np.full((100, 80), 20 * k + i, np.uint8)).save(folder / f"{i}.png")
    words = ["train", "td_vae", "--data", str(tmp_path / "films"), "data.kind=frames"]
    words += ["data.frames=4", "data.size=8", *SMALL, "--samples", "64", "--run", "filmed"]
    assert run([*words, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "6 samples of 4×1×8×8, 2 held out" in out + err
    assert "images of 80×100 are cut square and resized to 8×8" in out + err
    assert "nothing was written but the cache" in out + err


def test_a_folder_of_folders_is_not_taken_for_sequences_unasked(here, tmp_path, capsys):
    for k in range(2):
        folder = tmp_path / "films" / f"s{k}"
        folder.mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((8, 8), 20 * k + i, np.uint8)).save(folder / f"{i}.png")
    assert run(["train", "td_vae", "--data", str(tmp_path / "films"), "--samples", "64"]) == 2
    assert "no sequences of frames" in capsys.readouterr().err
