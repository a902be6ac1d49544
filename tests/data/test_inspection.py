"""Inspection: what is said of data is what can be counted in it."""

import hashlib
import io
import json
import re
import shlex

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ornstein.data.info import Originals
from ornstein.data.inspection import _why, as_json, inspect, sheet
from ornstein.data.sources import Arrays, Digits, Folder, Parquet, Shapes, Toy, recognise


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / ".cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def photo(seed, size=(16, 16), grey=False):
    """A picture with a few soft patches: two of them are never alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    return image.convert("L") if grey else image


def fill(folder, seeds, **options):
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        photo(seed, **options).save(folder / f"{seed:04d}.png")
    return folder


def report(source):
    return inspect(source, source.load())


def test_everything_is_counted(here):
    """A folder with splits, classes of unequal sizes, bad and other files, several sizes."""
    root = here / "photos"
    fill(root / "train" / "cats", range(30), size=(40, 30))
    fill(root / "train" / "dogs", range(100, 108), size=(64, 48))
    fill(root / "test" / "cats", range(200, 205), size=(20, 20), grey=True)
    fill(root / "test" / "dogs", range(300, 304), size=(640, 480))
    (root / "train" / "dogs" / "bad.png").write_bytes(b"")
    (root / "train" / "dogs" / "z.jpg").write_bytes(b"hello")
    (root / "notes.txt").write_text("")
    before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*.*")}
    found = report(Folder(path="photos"))
    assert (found.train, found.held_out, found.info.count) == (38, 9, 47)
    assert [bad.path for bad in found.bad] == ["train/dogs/bad.png", "train/dogs/z.jpg"]
    assert found.ignored == 1
    assert found.classes == (("cats", 30, 5), ("dogs", 8, 4))
    assert found.common == (((30, 40), 30), ((48, 64), 8), ((20, 20), 5), ((480, 640), 4))
    assert found.originals == Originals((20, 20), (30, 40), (480, 640))
    assert (found.info.shape, found.grey) == ((3, 20, 20), 5)
    assert 0 <= found.low < found.high <= 255
    assert found.repeated.exact == found.repeated.near == ()
    assert before == {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*.*")}


def test_duplicates_across_the_split_are_leaks(here):
    root = here / "photos"
    fill(root / "train", range(60))
    fill(root / "test", range(60, 80))
    photo(7).save(root / "test" / "equal.png")
    photo(8).save(root / "test" / "near.jpg", quality=80)
    photo(9).save(root / "train" / "within.png")
    photo(61).resize((40, 40)).save(root / "test" / "other.png")
    data = Folder(path="photos", size=16).load()
    found = inspect(Folder(path="photos", size=16), data).repeated

    def names(groups):
        return [[data.names[i] for i in group] for group in groups]

    assert names(found.exact) == [
        ["test/equal.png", "train/0007.png"],
        ["train/0009.png", "train/within.png"],
    ]
    assert names(found.near) == [
        ["test/0061.png", "test/other.png"],
        ["test/near.jpg", "train/0008.png"],
    ]
    assert names([found.leaked, found.nearly_leaked]) == [["test/equal.png"], ["test/near.jpg"]]
    assert found.compared == 82
    mentioned = {i for group in found.exact + found.near for i in group}
    assert inspect(Folder(path="photos"), data).names == {i: data.names[i] for i in mentioned}


def test_vectors_are_described_by_coordinate(here):
    x = np.random.default_rng(0).normal([0, 5, 1e6], [1, 0.1, 3], (3000, 3)).astype(np.float32)
    x[7] = x[2900]
    np.save("a.npy", x)
    found = report(Arrays(path="a.npy"))
    truth = x.astype(np.float64)
    for d, column in zip(found.dimensions, truth.T, strict=True):
        assert (d.low, d.high) == (column.min(), column.max())
        assert d.mean == pytest.approx(column.mean(), rel=1e-12)
        assert d.std == pytest.approx(column.std(), rel=1e-6)
    assert (found.low, found.high) == (truth.min(), truth.max())
    assert found.repeated[:2] == (((7, 2900),), ())
    assert (found.grey, found.originals, found.classes, found.names) == (None, None, (), {})
    assert found.proposal[:4] == (None, "", None, pytest.approx(1))


@pytest.mark.parametrize(
    "source", [Digits(), Digits(held_out=0.5), Shapes(count=60, size=16), Toy(name="moons")]
)
def test_sigma_data_is_that_of_the_training_split_in_the_range_of_models(source):
    data = source.load()
    x = data.x[data.train].astype(np.float64)
    if data.info.range is None:
        x = (x - x.mean()) / x.std()
    else:
        low, high = data.info.range
        x = 2 * (x - low) / (high - low) - 1
    assert inspect(source, data).proposal.sigma_data == pytest.approx(x.std(), rel=1e-9)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (Digits, {}, ["digits"]),
        (Toy, {"name": "pinwheel", "count": 500}, ["pinwheel", "data.count=500"]),
        (Shapes, {"count": 60, "size": 16}, ["shapes", "data.size=16", "data.count=60"]),
        (Folder, {"path": "it's $x"}, ["{here}/it's $x", "data.size=16"]),
        (
            Folder,
            {"path": "it's $x", "size": 12, "fit": "pad"},
            ["{here}/it's $x", "data.size=12", "data.fit=pad"],
        ),
        (Folder, {"path": "wide", "channels": 1}, ["{here}/wide", "data.channels=1"]),
        (Folder, {"path": "wide", "size": 20}, ["{here}/wide", "data.size=20"]),
        (Parquet, {"path": "x.parquet"}, ["{here}/x.parquet", "data.size=16"]),
    ],
)
def test_the_command_says_what_was_inspected(here, kind, options, words):
    fill(here / "it's $x", range(12))
    fill(here / "wide", range(12), size=(40, 24))
    contents = [path.read_bytes() for path in sorted((here / "it's $x").iterdir())]
    pq.write_table(pa.table({"image": contents}), here / "x.parquet")
    found = shlex.split(report(kind(**options)).proposal.command)
    assert found[:4] == ["ornstein", "train", "edm", "--data"]
    assert sorted(found[4:]) == sorted(word.format(here=here) for word in words)


@pytest.mark.parametrize(
    ("options", "shape", "originals", "says"),
    [
        ({}, (16, 16), None, "come in this size"),
        ({}, (16, 16), [(16, 16)] * 3, "all images have it"),
        ({}, (28, 28), [(28, 30), (40, 40), (80, 90)], "nine in ten images reach it"),
        ({}, (64, 64), [(64, 64), (100, 80), (300, 300)], r"chosen unasked; .* up to 80$"),
        ({}, (64, 64), [(64, 64), (400, 300), (900, 900)], "up to 300; data.size=128 shows more"),
        ({"size": 32}, (32, 32), [(64, 64), (400, 300), (900, 900)], "^asked for; .* up to 300$"),
    ],
)
def test_the_size_has_a_reason(here, options, shape, originals, says):
    data = Digits().load()
    info = data.info.model_copy(update={"shape": (3, *shape)})
    data = data._replace(info=info, originals=originals and Originals(*originals))
    assert re.search(says, _why(Folder(path="x", **options), data))


def test_a_sheet_shows_the_classes_in_rows(here):
    data = Digits().load()
    ids, columns = sheet(data)
    assert (len(ids), columns) == (100, 10)
    assert data.label[ids].reshape(10, 10).tolist() == [[k] * 10 for k in range(10)]
    assert set(ids) <= set(data.train)
    assert len(set(ids)) == 100
    assert ids[9] - ids[0] > 1000  # from all of the data
    fill(here / "few" / "a", range(3))
    fill(here / "few" / "b", range(10, 60))
    ids, columns = sheet(Folder(path="few").load())
    assert columns is None
    assert len(ids) <= 60
    ids, columns = sheet(Toy(name="moons").load())
    assert (len(ids), columns) == (100, None)


@pytest.mark.parametrize("name", ["digits", "circles", "p"])
def test_a_report_is_json(here, name):
    fill(here / "p", range(12))
    (here / "p" / "1.png").write_bytes(b"")
    photo(3).save(here / "p" / "copy.png")
    found = report(recognise(name))
    text = json.loads(json.dumps(as_json(found)))
    assert text["info"]["fingerprint"] == found.info.fingerprint
    assert text["proposal"]["command"] == found.proposal.command
    assert text["repeated"]["exact"] == [list(group) for group in found.repeated.exact]
    assert set(text) == set(found._fields)
    assert text["bad"] == [{"path": b.path, "reason": b.reason} for b in found.bad]


def test_the_report_does_not_depend_on_the_file_that_holds_the_images(here):
    """A folder and a Parquet file of the same images differ in their names only."""
    seeds = [*range(20), 4, 5]
    (here / "p").mkdir()
    contents = []
    for i, seed in enumerate(seeds):
        buffer = io.BytesIO()
        photo(seed, (24, 20)).save(buffer, "JPEG", quality=95 - i)
        (here / "p" / f"{i:02d}.jpg").write_bytes(buffer.getvalue())
        contents.append(buffer.getvalue())
    pq.write_table(pa.table({"image": contents}), here / "p.parquet")
    a, b = (as_json(report(s)) for s in (Folder(path="p"), Parquet(path="p.parquet")))
    assert a["repeated"]["near"] == [[4, 20], [5, 21]]
    for name in ("names", "proposal"):
        assert a.pop(name) != b.pop(name)
    assert a == b
