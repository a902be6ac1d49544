"""`ornstein predict`, and `forecast` behind it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ornstein.cli import run
from ornstein.errors import ConfigError
from ornstein.forecast import forecast
from ornstein.run import Run

SMALL = ["data.frames=6", "data.size=8", "data.count=40", "model.units=3", "model.hidden=8"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of two updates."""
    folder = tmp_path_factory.mktemp("runs")
    more = {
        "jumps": ["td_vae", "--data", "moving_digits", *SMALL, "model.reach=3"],
        "steps": ["state_space", "--data", "moving_shapes", *SMALL],
        "still": ["vae"],
    }
    for name, words in more.items():
        words = ["train", *words, "--samples", "32", "--run", name, "--runs", str(folder)]
        assert run([*words, "--no-previews", "optim.batch=16", "optim.warmup=0"]) == 0
    return folder


def said(capsys, runs, *words):
    """Exit code, standard output and standard error."""
    capsys.readouterr()
    code = run(["predict", *words, "--runs", str(runs)])
    return code, *capsys.readouterr()


def test_a_table_and_a_picture(runs, tmp_path, capsys):
    out = tmp_path / "new" / "x.png"
    code, text, _ = said(capsys, runs, "jumps", "--out", str(out), "-n", "4")
    assert code == 0
    assert "4 sequences, 3 frames seen" in text
    assert [line.split()[0] for line in text.splitlines()[3:6]] == ["1", "2", "3"]
    assert text.endswith(f"{out}\n")
    with Image.open(out) as image:
        assert image.width > 6 * 8
        assert image.height > 8 * 8


def test_an_animation(runs, tmp_path, capsys):
    out = tmp_path / "x.gif"
    words = ["--seen", "2", "--ahead", "3", "--longest", "1", "--out", str(out)]
    assert said(capsys, runs, "steps", *words)[0] == 0
    with Image.open(out) as film:
        assert film.n_frames == 5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["still"], "is of no sequences, so nothing follows; name a run of td_vae"),
        (["jumps", "--seen", "6"], "are not 6 that are seen and 0 after them"),
        (["jumps", "--seen", "3", "--ahead", "4"], "together at most 6"),
        (["jumps", "--longest", "4"], "makes jumps of 1 to 3 frames, not of 4"),
        (["jumps", "-n", "0"], "at least 1 sequence"),
        (["jumps", "--out", "x.jpg"], "written as PNG"),
    ],
)
def test_what_cannot_be_predicted_is_said(words, sentence, runs, capsys):
    code, _, error = said(capsys, runs, *words)
    assert code == ConfigError.code
    assert sentence in error


def test_forecasts_are_native_and_the_same_in_any_batch(runs):
    opened = Run.open("jumps", runs)
    x = opened.dataset.x[opened.dataset.held_out[:4]][:, :3]
    found = forecast(opened, x, [1, 2, 5], seed=3)
    assert found.shape == (4, 3, 1, 8, 8)
    assert found.dtype == np.uint8
    other = forecast(opened, x, [1, 2, 5], seed=3, batch=3)
    assert np.abs(found.astype(int) - other).max() <= 1
    assert not np.array_equal(found, forecast(opened, x, [1, 2, 5], seed=4))
    with pytest.raises(ConfigError, match=r"sequences \[n, t, 1, 8, 8\]"):
        forecast(opened, x[:, 0], [1])
