"""`ornstein reconstruct` and `ornstein latents`; wrong inputs are in `test_wrong_inputs.py`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from PIL import Image

from ornstein.cli import run

MORE = {
    "vae": ["model.units=2"],
    "deep": ["model.units=6"],
    "denoising_autoencoder": [],
    "vq_vae": ["model.bottleneck.codes=32"],
    "vq_vae_2_codec": ["model.bottleneck.top.codes=16", "model.bottleneck.bottom.codes=32"],
    "one_code": ["--data", "moons", "model.nets=dense", "model.bottleneck.codes=8"],
    "k_sparse_autoencoder": [],
    "flat": ["--data", "moons", "model.units=1"],
    "colour": ["--data", "shapes", "data.count=64", "data.size=16"],
}
RECIPES = {"deep": "vae", "flat": "autoencoder", "colour": "autoencoder", "one_code": "vq_vae"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of a few updates."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in MORE.items():
        recipe = RECIPES.get(name, name)
        words = ["train", recipe, "--samples", "256", "--run", name, "--runs", str(folder)]
        assert run([*words, "--no-previews", "optim.batch=64", "optim.warmup=0", *more]) == 0
    return folder


def said(capsys, runs, *words):
    """Exit code, standard output and standard error."""
    capsys.readouterr()
    code = run([*words, "--runs", str(runs)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("name", "parts", "height"),
    [
        ("vae", ["codes of 2 numbers", "of 2 units are active", "a code costs "], 400),
        ("denoising_autoencoder", ["PSNR as given, dB", "SSIM as given"], 550),
        ("vq_vae", ["places, each one of 32 entries", "of 32 entries are used ("], 400),
        (
            "vq_vae_2_codec",
            [
                "1 top places, each one of 16 entries and 4 bottom places, each one of 32 entries",
                "\ntop: ",
                "\nbottom: ",
            ],
            400,
        ),
        ("k_sparse_autoencoder", ["25.0 of 1,000 units are not 0, on average"], 400),
        ("colour", ["SSIM"], 400),
    ],
)
def test_numbers_and_a_picture(name, parts, height, runs, tmp_path, capsys):
    out = tmp_path / "new" / "x.png"
    code, text, _ = said(capsys, runs, "reconstruct", name, "--out", str(out), "--columns", "5")
    assert code == 0
    assert "held-out samples, codes of " in text
    for part in ("PSNR, dB", "SSIM", "95 % interval", *parts):
        assert part in text
    assert text.endswith(f"{out}\n")
    with Image.open(out) as image:
        assert image.width >= 800
        assert image.height >= height


def test_numbers_can_be_read_by_programs(runs, tmp_path, capsys):
    words = ["--json", "-n", "20", "--out", str(tmp_path / "x.png")]
    code, text, err = said(capsys, runs, "reconstruct", "deep", *words)
    record = json.loads(text)
    assert code == 0
    assert (record["samples"], record["units"], len(record["kl"])) == (20, 6, 6)
    assert 0 <= record["active_units"] <= 6
    assert record["psnr"]["low"] < record["psnr"]["value"] < record["psnr"]["high"]
    assert err.endswith("x.png\n")
    record = json.loads(said(capsys, runs, "reconstruct", "vq_vae", *words)[1])
    assert record["codebook"]["entries"] == 32
    assert 1 <= record["codebook"]["perplexity"] <= record["codebook"]["used"] <= 32
    record = json.loads(said(capsys, runs, "reconstruct", "vq_vae_2_codec", *words)[1])
    levels = record["codebooks"]
    assert [levels[name]["entries"] for name in ("top", "bottom")] == [16, 32]
    assert [levels[name]["codes"] for name in ("top", "bottom")] == [20, 80]
    record = json.loads(said(capsys, runs, "reconstruct", "denoising_autoencoder", *words)[1])
    assert {"psnr", "ssim", "psnr_as_given", "ssim_as_given"} < set(record)


def test_the_same_words_draw_the_same_picture(runs, tmp_path, capsys):
    drawn = []
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        out = tmp_path / f"{name}.png"
        words = ["--seed", seed, "--average", "none", "--out", str(out)]
        assert said(capsys, runs, "reconstruct", "denoising_autoencoder", *words)[0] == 0
        drawn.append(out.read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("name", ["vae", "deep", "k_sparse_autoencoder", "colour"])
def test_traversals_and_a_map(name, runs, tmp_path, capsys):
    out, plane = tmp_path / "t.png", tmp_path / "deep" / "m.png"
    words = ["--out", str(out), "--map", str(plane), "--columns", "5"]
    code, text, _ = said(capsys, runs, "latents", name, *words)
    assert (code, text) == (0, f"{out}\n{plane}\n")
    with Image.open(plane) as image:
        wide = image.width > 1.5 * image.height
        assert wide == (name == "vae")  # beside the points, what is decoded
    with Image.open(out) as image:
        assert image.width >= 800


def test_samples_that_are_no_images(runs, tmp_path, capsys):
    out = tmp_path / "x.png"
    code, text, _ = said(capsys, runs, "reconstruct", "flat", "--out", str(out))
    assert code == 0
    assert "codes of 1 number\n" in text
    assert "SSIM" not in text
    text = said(capsys, runs, "reconstruct", "one_code", "--out", str(out))[1]
    assert "codes of 1 places, each one of 8 entries" in text
    with Image.open(out) as image:
        assert image.width > image.height
    out.unlink()
    code, text, err = said(capsys, runs, "latents", "flat", "--out", str(out))
    assert (code, text) == (2, "")
    assert "the samples of flat are no images" in err
    code, text, err = said(capsys, runs, "latents", "vq_vae", "--out", str(out))
    assert (code, text) == (2, "")
    assert "entries of a codebook (vq)" in err
    assert not out.exists()


def test_help_costs_no_torch():
    for name in ("reconstruct", "latents"):
        code = (
            "import sys; from ornstein.cli import run; "
            f"run([{name!r}, '--help']); sys.exit('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert done.returncode == 0
        assert b"--average" in done.stdout
