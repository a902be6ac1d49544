"""`ornstein restore`, as a person types it; wrong inputs are in `test_wrong_inputs.py`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ornstein.cli import run

TINY = ["model.network=unet", "model.network.channels=[8,16]", "optim.batch=32", "optim.warmup=0"]
SHAPES = ["--data", "shapes", "data.count=64", "data.size=16"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of a few updates: `small` on digits, `colour` on shapes, `flat` on vectors."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in (("small", TINY), ("colour", [*SHAPES, *TINY]), ("flat", ["--data=moons"])):
        words = ["train", "edm", "--samples", "64", "--run", name, "--runs", str(folder)]
        assert run([*words, "--no-previews", *more]) == 0
    return folder


def restored(capsys, runs, *words):
    """Exit code, standard output and standard error."""
    capsys.readouterr()
    code = run(["restore", *words, "--runs", str(runs), "--steps", "3", "--draws", "2"])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        ("small", ["mean of the data", "harmonic", "best linear"]),
        ("small --mask random:0.5 --method repaint", ["mean of the data", "harmonic"]),
        ("small --task superres --method pigdm", ["bicubic", "best linear"]),
        ("small --task deblur --method dps --width 0.7", ["Wiener", "best linear"]),
        ("small --task denoise --noise 2", ["Wiener", "best linear", "the network, asked once"]),
        ("colour --task colorize", ["best linear"]),
    ],
)
def test_every_task_has_a_picture_and_a_table(words, rows, runs, tmp_path, capsys):
    out = tmp_path / "new" / "x.png"
    code, said, _ = restored(capsys, runs, *words.split(), "-n", "3", "--out", str(out))
    assert code == 0
    for row in ("as given", *rows, "a draw", "mean of 2 draws"):
        assert f"\n{row} " in said
    assert "3 images" in said
    assert " dB (standard error " in said
    assert said.endswith(f"{out}\n")
    with Image.open(out) as image:
        assert image.width > 400
        assert image.height > 500


def test_what_is_measured_can_be_read_by_programs(runs, tmp_path, capsys):
    words = ["small", "--task", "superres", "--json", "--out", str(tmp_path / "x.png"), "-n", "4"]
    code, said, _ = restored(capsys, runs, *words, "step.eta=0.5")
    record = json.loads(said)
    assert code == 0
    assert record["generation"]["step"] == {"kind": "jump", "eta": 0.5}
    assert record["generation"]["steps"] == 3
    assert (record["task"], record["images"], record["draws"]) == ("superres", 4, 2)
    assert set(record["psnr"]) == {
        *("as given", "bicubic", "best linear", "a draw", "mean of 2 draws")
    }
    # A hardly trained model loses, and it is said.
    lead = record["lead"]
    assert lead["of"] in ("bicubic", "best linear")
    difference = record["psnr"]["mean of 2 draws"]["value"] - record["psnr"][lead["of"]]["value"]
    assert lead["value"] == pytest.approx(difference)
    assert lead["error"] > 0
    assert lead["value"] < 0
    code, said, _ = restored(capsys, runs, *words[:3], *words[4:], "step.eta=0.5")
    assert f"{lead['of']!r} beats the model here" in said
    # One image has no standard error.
    code, said, _ = restored(capsys, runs, *words[:6], "-n", "1")
    assert json.loads(said)["psnr"]["a draw"]["error"] is None


def test_ones_own_images_are_only_read(runs, tmp_path, capsys):
    mine, out = tmp_path / "mine", tmp_path / "x.png"
    mine.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(mine / f"{i}.png")
    (mine / "3.png").write_text("no picture")
    before = {path: path.read_bytes() for path in mine.iterdir()}
    words = ["colour", "--images", str(mine), "--out", str(out)]
    code, said, err = restored(capsys, runs, *words, "--task", "inpaint")
    assert code == 0
    assert "3 images" in said
    assert "left out: 3.png" in err
    for more in (
        ["--task", "superres", "--factor", "4"],
        ["--task", "colorize"],
        ["--mask", "left"],
        ["--task", "denoise"],
        ["--task", "deblur"],
    ):
        code, said, _ = restored(capsys, runs, *words, "--degraded", *more)
        assert code == 0
        assert "no PSNR, since what the images were is not known" in said
    code, said, _ = restored(capsys, runs, *words, "--task", "edit", "--strength", "0.2")
    assert (code, said) == (0, f"{out}\n")
    assert {path: path.read_bytes() for path in mine.iterdir()} == before


def test_a_picture_is_replaced_whole_or_not_at_all(runs, tmp_path, capsys, monkeypatch):
    out = tmp_path / "x.png"
    assert restored(capsys, runs, "small", "-n", "1", "--out", str(out))[0] == 0
    before = out.read_bytes()

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ornstein.restoration.baselines", interrupted)
    code, said, err = restored(capsys, runs, "small", "-n", "2", "--out", str(out))
    assert (code, said) == (130, "")
    assert "interrupted" in err
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("flat", "the samples of flat are no images"),
        ("flat --task edit", "the samples of flat are no images"),
        ("colour --task superres --factor 3", "those that do: 2, 4, 8, 16"),
    ],
)
def test_what_a_run_cannot_do(words, sentence, runs, tmp_path, capsys):
    out = tmp_path / "x.png"
    code, said, err = restored(capsys, runs, *words.split(), "--out", str(out))
    assert (code, said) == (2, "")
    assert sentence in err
    assert not out.exists()
