"""Sources: what a word or a path names, and the data set that comes of it."""

import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from ornstein.data.sources import (
    Arrays,
    Data,
    Digits,
    Folder,
    Parquet,
    Shards,
    Toy,
    ToyName,
    moments,
    recognise,
    split,
)
from ornstein.errors import DataError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / ".cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fill(folder, count=10):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(folder)))
    for i in range(count):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def checked(data):
    """A data set, after the promises that hold for all of them."""
    info = data.info
    assert info.count == len(data.x) == len(data.train) + len(data.held_out)
    assert info.held_out == len(data.held_out)
    assert info.shape == data.x.shape[1:]
    assert data.train.dtype == data.held_out.dtype == np.int64
    assert sorted([*data.train, *data.held_out]) == list(range(info.count))
    assert (np.diff(data.train) > 0).all()
    assert (np.diff(data.held_out) > 0).all()
    training = data.x[data.train].astype(np.float64)
    assert info.mean == pytest.approx(training.mean(), abs=1e-9)
    assert info.std == pytest.approx(training.std(), rel=1e-9)
    if info.range is not None:
        assert info.range[0] <= data.x.min() <= data.x.max() <= info.range[1]
    if data.label is None:
        assert not info.classes
    else:
        assert data.label.dtype == np.int64
        assert set(data.label.tolist()) == set(range(len(info.classes)))
    batch = data.batch(data.train[:2], (-1.0, 1.0))
    assert batch.x.shape == (2, *info.shape)
    assert len(info.fingerprint) == 64
    assert type(info).model_validate_json(info.model_dump_json()) == info
    return data


def test_importing_sources_is_quick():
    code = (
        "import sys, ornstein.data.sources as s; s.Toy(name='moons'); s.recognise('digits');"
        "print([m for m in ('torch', 'numpy', 'PIL', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_digits():
    data = checked(Digits().load())
    assert (data.info.shape, data.info.range, data.info.bins) == ((1, 8, 8), (0.0, 16.0), 17)
    assert data.info.classes == tuple("0123456789")
    assert data.info.held_out == 180


@pytest.mark.parametrize("name", get_args(ToyName))
def test_toys(name):
    data = checked(Toy(name=name, count=2000).load())
    assert (data.info.kind, data.info.range, data.info.shape) == ("vector", None, (2,))
    assert abs(data.info.mean) < 0.1
    assert abs(data.info.std - 1) < 0.1
    again = Toy(name=name, count=2000).load()
    assert again.info == data.info
    assert Toy(name=name, count=2000, seed=1).load().info.fingerprint != data.info.fingerprint


def test_arrays(here):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)).astype(np.float32), rng.integers(0, 3, 30)
    np.savez(here / "a.npz", x=x, y=y)
    data = checked(Arrays(path="a.npz").load())
    assert data.info.name == "a"
    assert data.info.classes == ("0", "1", "2")
    np.savez_compressed(here / "b.npz", y=y, images=x.astype(">f8"))
    assert Arrays(path="b.npz").load().info.fingerprint == data.info.fingerprint
    np.save(here / "c.npy", rng.integers(0, 256, (30, 5, 6, 3), dtype=np.uint8))
    data = checked(Arrays(path="c.npy", held_out=0).load())
    assert (data.info.shape, data.info.held_out) == ((3, 5, 6), 0)


def test_a_folder(here):
    fill(here / "photos" / "a")
    fill(here / "photos" / "b")
    (here / "photos" / "b" / "bad.png").write_bytes(b"")
    seen = []
    data = checked(Folder(path="photos").load(lambda done, total: seen.append(done)))
    assert seen == list(range(1, 22))
    assert (data.info.name, data.info.kind, data.info.bins) == ("photos", "image", 256)
    assert data.info.classes == ("a", "b")
    assert data.info.held_out == 2
    assert [bad.path for bad in data.bad] == ["b/bad.png"]


def test_a_folder_with_splits_of_its_own(here):
    fill(here / "photos" / "train", 6)
    fill(here / "photos" / "test", 3)
    data = checked(Folder(path="photos", held_out=0.5).load())
    assert data.held_out.tolist() == [0, 1, 2]  # "test" sorts before "train"


def test_one_value_cannot_be_learnt(here):
    np.save(here / "a.npy", np.full((5, 2), 3.0))
    with pytest.raises(DataError, match="all values of a are 3"):
        Arrays(path="a.npy").load()


@pytest.mark.parametrize(
    ("count", "share", "held"),
    [(100, 0.1, 10), (10, 0.0, 0), (3, 0.1, 1), (2, 0.99, 1), (1, 0.5, 0), (7, 0.99, 6)],
)
def test_the_split_is_exact(count, share, held):
    train, rest = split(count, share)
    assert len(rest) == held
    assert len(train) == count - held
    assert sorted([*train, *rest]) == list(range(count))


def test_a_larger_share_holds_out_more_of_the_same():
    small, large = split(1000, 0.1)[1], split(1000, 0.2)[1]
    assert set(small) < set(large)
    assert 90 < (large < 500).sum() < 110  # spread, not at one end


def test_moments_of_many_parts():
    rng = np.random.default_rng(0)
    x = (1e6 + rng.normal(size=(1000, 9000))).astype(np.float32)  # squares would cancel
    ids = np.flatnonzero(rng.uniform(size=1000) < 0.9)
    mean, std = moments(x, ids)
    truth = x[ids].astype(np.float64)
    assert mean == pytest.approx(truth.mean(), abs=1e-7)
    assert std == pytest.approx(truth.std(), rel=1e-9)


# Names and paths


@pytest.mark.parametrize("name", get_args(ToyName))
def test_toys_are_recognised(name):
    assert recognise(name) == Toy(name=name)
    assert recognise(f" {name.replace('_', '-').upper()} ") == Toy(name=name)


def test_paths_are_recognised(here, monkeypatch):
    fill(here / "photos" / "sub")
    fill(here / "digits")
    np.save(here / "a.npy", np.ones((3, 2)))
    (here / "a.npy").rename(here / "a.NPY")
    assert recognise("digits") == Digits()
    assert recognise("./digits") == Folder(path=str(here / "digits"))
    assert recognise("photos") == Folder(path=str(here / "photos"))
    assert recognise("photos/../photos/") == Folder(path=str(here / "photos"))
    assert recognise("a.NPY") == Arrays(path=str(here / "a.NPY"))
    monkeypatch.setenv("HOME", str(here))
    assert recognise("~/photos") == Folder(path=str(here / "photos"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no data was named"),
        ("  ", "no data was named"),
        ("digit", "did you mean 'digits'"),
        ("swissroll", "did you mean 'swiss_roll'"),
        ("photo", "no known data set, and no file or folder in .*; did you mean '.*/photos'"),
        ("xyzzy", "known: checkerboard, circles, digits, "),
        ("./photoz", "did you mean '.*/photos'"),
        ("data.npu", "did you mean '.*/data.npy'"),
        ("nowhere/photos", "there is no folder .*/nowhere"),
        ("empty", "no image in .*: a folder needs at least 2"),
        ("arrays", "no image in .*; b.npz in it can be named itself"),
        ("single", "only one image in"),
        ("single/0.png", "is a single image: give a folder"),
        ("a.zip", "an archive: unpack it"),
        ("a.tar.gz", "an archive: unpack it"),
        ("a.csv", r"is text: save its numbers with numpy\.save"),
        ("a.arrow", r"is a table or container: save its arrays with numpy\.savez"),
        ("a.pt", "likely a pickle, which can run any code"),
        ("a.pkl", "likely a pickle, which can run any code"),
        ("a.docx", "is not data that can be read"),
        ("bare", "is not data that can be read"),
        ("/dev/null", "neither a folder nor an ordinary file"),
        ("~nobody-of-this-name/x", "cannot be looked up"),
        ("a\0b", "cannot be looked up"),
        ("x" * 5000, "cannot be looked up"),
        ("loop", "cannot be looked up"),
    ],
)
def test_what_is_not_data_is_said(here, text, says):
    fill(here / "photos")
    fill(here / "single", 1)
    for folder in ("empty", "arrays"):
        (here / folder).mkdir()
    np.save(here / "data.npy", np.ones((3, 2)))
    np.savez(here / "arrays" / "b.npz", np.ones((3, 2)))
    for name in ("a.zip", "a.tar.gz", "a.csv", "a.arrow", "a.pt", "a.pkl", "a.docx"):
        (here / name).write_bytes(b"1")
    (here / "bare").write_bytes(b"1")
    (here / "loop").symlink_to(here / "loop")
    with pytest.raises(DataError, match=says) as error:
        recognise(text)
    assert "\n" not in str(error.value)


def test_sources_are_told_apart_by_kind(here):
    adapter = TypeAdapter(Data)
    for source in (
        Digits(held_out=0.2),
        Toy(name="moons", count=10, seed=3),
        Arrays(path="a.npy"),
        Folder(path="b", size=32, channels=3),
        Parquet(path="c.parquet", size=32, fit="pad"),
        Shards(path="d", size=32, channels=1, labels=False),
    ):
        assert adapter.validate_json(adapter.dump_json(source)) == source
    assert adapter.validate_python({"kind": "folder", "path": "b"}).path == str(here / "b")


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "digits", "held_out": 1.0},
        {"kind": "digits", "held_out": -0.1},
        {"kind": "toy", "name": "moon"},
        {"kind": "toy", "name": "moons", "count": 1},
        {"kind": "folder", "path": ""},
        {"kind": "folder", "path": "a\0b"},
        {"kind": "folder", "path": "a", "channels": 2},
        {"kind": "folder", "path": "a", "size": 0},
        {"kind": "parquet", "path": "a", "size": 0},
        {"kind": "parquet", "path": "a", "fit": "cut"},
        {"kind": "shards", "path": "a", "channels": 2},
        {"kind": "shards", "path": "a", "labels": 3},
        {"kind": "images"},
    ],
)
def test_settings_that_cannot_work(fields):
    with pytest.raises(ValidationError):
        TypeAdapter(Data).validate_python(fields)
