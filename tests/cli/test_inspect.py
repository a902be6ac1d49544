"""`ornstein inspect` as a person types it."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ornstein.cli import run

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def photo(seed, size=(16, 16)):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def fill(folder, seeds, **options):
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        photo(seed, **options).save(folder / f"{seed:04d}.png")
    return folder


def say(capsys, *words):
    """Exit code, standard output and standard error of a command."""
    capsys.readouterr()
    code = run(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def tree(folder):
    return {p: hashlib.sha256(p.read_bytes()).digest() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def anything(tmp_path):
    """Something of every kind of data, by the word that names it."""
    folder = fill(tmp_path / "data" / "my photos", range(12))
    contents = [path.read_bytes() for path in sorted(folder.iterdir())]
    pq.write_table(pa.table({"image": contents}), tmp_path / "data" / "x.parquet")
    np.save(tmp_path / "data" / "vectors.npy", np.random.default_rng(0).normal(size=(50, 3)))
    images = np.random.default_rng(0).integers(0, 256, (30, 7, 9), dtype=np.uint8)
    np.savez(tmp_path / "data" / "images.npz", x=images, y=np.arange(30) % 3)
    return {
        name: str(tmp_path / "data" / name)
        for name in ("my photos", "x.parquet", "vectors.npy", "images.npz")
    } | {"digits": "digits", "moons": "moons", "shapes": "shapes"}


KINDS = ["digits", "moons", "shapes", "my photos", "x.parquet", "vectors.npy", "images.npz"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_and_the_command_that_is_proposed(here, anything, kind, capsys):
    """It is inspected, and what is printed trains as it is printed, but for a shorter time."""
    more = {"shapes": ["data.count=60", "data.size=16"], "moons": ["data.count=500"]}.get(kind, [])
    before = tree(here.parent / "data")
    code, out, err = say(capsys, "inspect", anything[kind], *more)
    assert (code, err) == (0, "")
    assert tree(here.parent / "data") == before
    sheet = here / out.split("\nsheet: ")[1].splitlines()[0]
    assert set(here.iterdir()) <= {sheet, sheet.with_name(f"{sheet.stem}-duplicates.png")}
    with Image.open(sheet) as image:
        assert min(image.size) >= 30
    for word in ("left out", "values", "classes", "duplicates", "proposed", "sigma_data"):
        assert word in out
    (line,) = [line for line in out.splitlines() if line.startswith("            ornstein train ")]
    words = [*shlex.split(line)[1:], "--samples", "32", "--no-previews", "optim.batch=16"]
    if kind not in ("moons", "vectors.npy"):
        words += ["model.network=unet", "model.network.channels=[8,8]"]
    code, _, err = say(capsys, *words)
    assert code == 0, err
    assert "trained in" in err


def test_the_first_ten_bad_files_are_shown_and_all_are_listed(here, tmp_path, capsys):
    folder = fill(tmp_path / "photos", range(5))
    for i in range(12):
        (folder / f"bad{i:02d}.png").write_bytes(b"")
    (folder / "\x1b[2J\n.png").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    code, out, _ = say(capsys, "inspect", str(folder))
    assert code == 0
    assert "left out    13 files that cannot be read and 1 file of other kinds" in out
    assert "  \\x1b[2J\\x0a.png: The file is empty." in out
    assert out.count(": The file is empty.") == 10
    assert "  ... and 3 more\n" in out
    assert out.splitlines()[-1] == "bad files: inspect-photos-bad.tsv"
    rows = (here / "inspect-photos-bad.tsv").read_text().splitlines()
    assert len(rows) == 13
    assert rows[-1] == "bad11.png\tThe file is empty."
    code, out, _ = say(capsys, "inspect", str(folder), "--bad", "lists/bad.txt", "--out", "a/b.png")
    assert code == 0
    assert (here / "lists" / "bad.txt").read_text().splitlines() == rows
    assert (here / "a" / "b.png").is_file()
    assert say(capsys, "inspect", str(folder), "--out", "a")[0] == 0
    assert (here / "a" / "inspect-photos.png").is_file()


def test_leaks_are_said_and_drawn(here, tmp_path, capsys):
    fill(tmp_path / "photos" / "train", range(40))
    fill(tmp_path / "photos" / "test", [*range(40, 50), 3])
    photo(4).save(tmp_path / "photos" / "test" / "again.jpg", quality=80)
    code, out, _ = say(capsys, "inspect", str(tmp_path / "photos"))
    assert code == 0
    assert "duplicates  1 exact group of 2 samples, 1 near group of 2 samples" in out
    assert "leak: 1 held out (8.3%) are the same as samples to train on" in out
    assert "leak: 1 held out (8.3%) are nearly the same as samples to train on" in out
    assert "  test/0003.png = train/0003.png\n" in out
    assert "  test/again.jpg ~ train/0004.png\n" in out
    with Image.open(here / "inspect-photos-duplicates.png") as image:
        assert image.width > 4 * 48  # two pairs side by side


def test_json(here, tmp_path, capsys):
    folder = fill(tmp_path / "photos" / "a", range(8), size=(30, 20)).parent
    fill(folder / "b", range(50, 53), size=(30, 20))
    (folder / "b" / "x.png").write_bytes(b"")
    code, out, _ = say(capsys, "inspect", str(folder), "data.size=12", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["info"]["shape"] == [3, 12, 12]
    assert (found["train"], found["held_out"]) == (10, 1)
    assert sum(c["train"] + c["held_out"] for c in found["classes"]) == 11
    assert found["common"] == [[[20, 30], 11]]
    assert found["bad"] == [{"path": "b/x.png", "reason": "The file is empty."}]
    assert shlex.split(found["proposal"]["command"])[4:] == [str(folder), "data.size=12"]
    assert found["sheet"] == "inspect-photos.png"
    assert found["bad_files"] == "inspect-photos-bad.tsv"


@pytest.mark.parametrize(
    "words", [[], ["--out", "sub/x.png"], ["--out", "../x.png", "--bad", "x.tsv"], ["--out", "."]]
)
def test_nothing_is_written_into_the_data(tmp_path, words, monkeypatch, capsys):
    folder = fill(tmp_path / "photos", range(4))
    (folder / "bad.png").write_bytes(b"")
    monkeypatch.chdir(folder)
    before = tree(folder)
    code, out, err = say(capsys, "inspect", ".", *words)
    assert (code, out) == (2, "")
    assert "lies in the data, which is never changed: give --out" in err
    assert tree(folder) == before
    assert say(capsys, "inspect", ".", "--out", "../x.png", "--bad", "../x.tsv")[0] == 0
    assert tree(folder) == before


def test_the_data_itself_is_not_overwritten(here, tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(9, 2)))
    before = (tmp_path / "a.npy").read_bytes()
    code, _, err = say(capsys, "inspect", str(tmp_path / "a.npy"), "--out", str(tmp_path / "a.npy"))
    assert code == 2
    assert "lies in the data" in err
    assert (tmp_path / "a.npy").read_bytes() == before


@pytest.mark.parametrize(
    ("code", "words", "says"),
    [
        (2, [], "inspect needs a DATA"),
        (3, ["swis_roll"], "did you mean 'swiss_roll'?"),
        (3, ["nowhere/at/all"], "does not exist"),
        (2, ["digits", "optim.lr=1"], "'optim.lr=1' says nothing about data"),
        (2, ["digits", "data.size=8"], "data.size"),
        (2, ["moons", "data.count=1"], "data.count must be at least 2, got 1"),
        (2, ["digits", "--jsn"], "--json"),
    ],
)
def test_a_mistake_is_one_sentence(here, code, words, says, capsys):
    found, out, err = say(capsys, "inspect", *words)
    assert (found, out) == (code, "")
    assert err.startswith("ornstein: ")
    assert says in err
    assert err.count("\n") == 1
    assert list(here.iterdir()) == []


def test_many_classes_are_cut_short(here, tmp_path, capsys):
    rng = np.random.default_rng(0)
    label = np.concatenate([np.arange(50), np.repeat(7, 100)])
    x = rng.integers(0, 256, (150, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=label)
    code, out, _ = say(capsys, "inspect", str(tmp_path / "a.npz"))
    assert code == 0
    assert "classes     50, of 1 to 101 samples, the largest 101.0 times the smallest" in out
    assert "  ... and 30 more between these" in out
    assert out.count(" held out\n") == 21


@pytest.mark.slow
def test_what_is_known_of_cifar_10(here, capsys):
    """B. Barz and J. Denzler, "Do we train on test data?", 2020, arXiv:1902.00423: by eye, 3.3 % of
    its test images are exact, near or very similar duplicates of images to train on."""
    if not (SHARED / "cifar10-jpeg").is_dir():
        pytest.skip(f"there is no data in {SHARED / 'cifar10-jpeg'}")
    code, out, _ = say(capsys, "inspect", str(SHARED / "cifar10-jpeg"), "--json")
    assert code == 0
    found = json.loads(out)
    assert found["proposal"]["size"] == 32
    assert found["proposal"]["sigma_data"] == pytest.approx(0.5008, abs=2e-4)
    assert {(c["train"], c["held_out"]) for c in found["classes"]} == {(5000, 1000)}
    assert 60 < len(found["repeated"]["nearly_leaked"]) < 330
