"""Data that is never decoded as a whole: any sample alone, in one order, whoever asks for it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ornstein.data import index, shards
from ornstein.data.decode import decode
from ornstein.data.index import indexed
from ornstein.data.sources import Folder, Parquet, Shards, recognise, split
from ornstein.data.stream import Stream
from ornstein.errors import DataError
from tests.data import tars

COUNT = 15


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tars.folder(tmp_path_factory.mktemp("data") / "photos")


def content(folder):
    """What a folder holds: every name, size, time and byte."""
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def seen(data, ids):
    """Images by their pixels as they were made, [n, H, W, C]."""
    return data.x[np.asarray(ids)].transpose(0, 2, 3, 1)


def made_pixels(count=COUNT, **words):
    return np.stack([tars.pixels(i, **words) for i in range(count)])


@pytest.mark.parametrize("kind", tars.FORMATS)
def test_samples_are_the_pixels_that_were_stored(tmp_path, kind):
    data = Shards(path=str(tars.folder(tmp_path / "d", kind=kind))).load()
    assert (data.info.count, data.info.shape, data.info.bins) == (COUNT, (3, 8, 8), 256)
    assert (seen(data, range(COUNT)) == made_pixels()).all()
    assert data.label is not None
    assert data.label.tolist() == [i % 3 for i in range(COUNT)]
    assert data.info.classes == ("0", "1", "2")
    assert data.names[7] == "001.tar sample 2"
    assert list(data.names[4:6]) == ["000.tar sample 4", "001.tar sample 0"]


def test_it_is_an_array_whose_parts_are_decoded(made):
    x, expected = Shards(path=str(made)).load().x, made_pixels().transpose(0, 3, 1, 2)
    assert (x.shape, x.dtype, len(x)) == ((COUNT, 3, 8, 8), np.uint8, COUNT)
    order = np.random.default_rng(0).permutation(COUNT)
    assert (x[order] == expected[order]).all()
    assert (x[np.array([3, 3, 0, 3])] == expected[[3, 3, 0, 3]]).all()
    for part in (slice(None), slice(2, 9), slice(9, 2, -3), slice(20, 30), [], [-1, 2], -2):
        assert (x[part] == expected[part]).all()
    mask = np.arange(COUNT) % 2 == 1
    assert (x[mask] == expected[mask]).all()
    for wrong in ([COUNT], [-COUNT - 1], [0.5], [[1]], mask[:3]):
        with pytest.raises(IndexError):
            x[np.array(wrong)]


def test_a_random_sample_is_what_reading_from_the_front_gives(made):
    data = Shards(path=str(made)).load()
    images = []
    for path in sorted(made.iterdir()):
        with tarfile.open(path) as archive:
            bodies = [archive.extractfile(m).read() for m in archive if m.name.endswith("png")]
            images += [decode(body, (8, 8)).image for body in bodies]
    for i in np.random.default_rng(1).permutation(COUNT):
        assert (seen(data, [i])[0] == np.asarray(images[i])).all()


def test_the_next_start_decodes_nothing_and_reads_no_file(made, monkeypatch):
    told = []
    first = Shards(path=str(made), labels=False).load(lambda *pair: told.append(pair))
    assert told == [(1, 3), (2, 3), (3, 3)]
    for name in ("samples", "_write"):
        monkeypatch.setattr(index, name, None)
    monkeypatch.setattr(shards, "_measure", None)
    again = Shards(path=str(made), labels=False).load(lambda *pair: told.append(pair))
    assert len(told) == 3
    assert again.info == first.info
    assert (again.train == first.train).all()
    assert again.originals == first.originals
    assert again.common == first.common


def test_nothing_is_unpacked_or_changed(made, cache):
    before = content(made)
    data = Shards(path=str(made)).load()
    assert len(data.x[:]) == COUNT
    assert content(made) == before
    written = {path.name for path in (cache / "shards").rglob("*") if path.is_file()}
    assert written - {"spans", "parts", "labels", "about.json", "split-0.1"} == {
        name for name in written if name.endswith(".json") and name != "about.json"
    }
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    assert size < COUNT * 24 + COUNT * 8 + 4000


def test_it_is_the_same_data_as_a_folder_and_as_parquet(tmp_path):
    """The same images as tar, folder and Parquet: equal pixels, classes, splits and order."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    sizes = [(30 + i, 50 - i) for i in range(12)]
    members, rows = [], []
    for i, size in enumerate(sizes):
        body = tars.encoded(tars.pixels(i, size), "JPEG")
        members += [(f"{i:02d}.jpg", body), (f"{i:02d}.cls", b"%d" % (i % 2))]
        rows.append({"image": {"bytes": body, "path": None}, "label": i % 2})
        place = tmp_path / "f" / f"{i % 2}" / f"{i:02d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(body)
    tars.write(tmp_path / "t" / "a.tar", members[:10])
    tars.write(tmp_path / "t" / "b.tar", members[10:])
    (tmp_path / "p").mkdir()
    for k, part in enumerate((rows[:7], rows[7:])):
        table = pa.Table.from_pylist(part)
        pq.write_table(table, tmp_path / "p" / f"{k}.parquet", row_group_size=3)
    sources = [
        Shards(path=str(tmp_path / "t"), size=16),
        Shards(path=str(tmp_path / "p"), size=16),
        Parquet(path=str(tmp_path / "p"), size=16),
    ]
    loaded = [source.load() for source in sources]
    folder = Folder(path=str(tmp_path / "f"), size=16).load()
    for data in loaded:
        assert (data.x[:] == np.asarray(loaded[2].x)).all()
        assert data.label.tolist() == [i % 2 for i in range(12)]
        assert (data.held_out == loaded[2].held_out).all()
        assert data.info.mean == pytest.approx(loaded[2].info.mean, abs=1e-9)
        assert data.info.std == pytest.approx(loaded[2].info.std, rel=1e-9)
        assert (Stream(data, 3).ids(5, 40) == Stream(loaded[2], 3).ids(5, 40)).all()
        assert data.originals == folder.originals
    assert sorted(folder.x[:].sum((1, 2, 3))) == sorted(loaded[0].x[:].sum((1, 2, 3)))
    for one, (_, body) in zip(loaded[0].x[:], members[::2], strict=True):
        assert (one.transpose(1, 2, 0) == np.asarray(decode(body, (16, 16)).image)).all()


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
def test_parquet_rows_packed_or_not(tmp_path, codec, monkeypatch):
    """Also where pages do not fit into what is kept of them."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [tars.encoded(tars.pixels(i)) for i in range(60)]
    images[7] = None
    images[8] = b""
    names = {"info": {"features": {"y": {"_type": "ClassLabel", "names": ["dog", "cat", "owl"]}}}}
    table = pa.table(
        {
            "image": [image if image is None else {"bytes": image} for image in images],
            "y": pa.array([i % 2 for i in range(60)], pa.int8()),
        }
    ).replace_schema_metadata({"huggingface": json.dumps(names)})
    (tmp_path / "d").mkdir()
    pq.write_table(
        table,
        tmp_path / "d" / "x.parquet",
        compression=codec,
        data_page_size=500,
        write_batch_size=8,
        row_group_size=25,
        dictionary_pagesize_limit=1000,
    )
    monkeypatch.setattr(shards, "_KEPT", 2000)
    data = Shards(path=str(tmp_path / "d")).load()
    kept = [i for i in range(60) if i not in (7, 8)]
    assert (seen(data, range(58)) == made_pixels(60)[kept]).all()
    assert data.label.tolist() == [i % 2 for i in kept]
    assert data.info.classes == ("dog", "cat")
    assert [(bad.path, bad.reason) for bad in data.bad] == [
        ("x.parquet row 7", "It is null: the row holds no image."),
        ("x.parquet row 8", "The file is empty."),
    ]


# --- splits, labels, sizes -------------------------------------------------------------------


def test_the_split_is_the_one_of_other_data(made):
    for share in (0.1, 0.5, 0.0):
        data = Shards(path=str(made), held_out=share).load()
        train, held_out = split(COUNT, share)
        assert (data.train == train).all()
        assert (data.held_out == held_out).all()
        assert data.train.dtype == data.held_out.dtype == np.int64
        assert data.info.held_out == len(held_out)


def test_files_named_as_splits_are_splits(tmp_path):
    tars.folder(tmp_path / "d", 2, name="train-{:04d}.tar")
    tars.write(tmp_path / "d" / "val" / "0000.tar", tars.labelled(4, 50))
    data = Shards(path=str(tmp_path / "d")).load()
    assert data.held_out.tolist() == [10, 11, 12, 13]
    assert (seen(data, data.held_out) == [tars.pixels(i) for i in range(50, 54)]).all()
    tars.write(tmp_path / "d" / "more.tar", tars.labelled(2))
    with pytest.raises(DataError, match=r"'more.tar' beside them"):
        Shards(path=str(tmp_path / "d")).load()


def test_labels_are_classes_by_their_order(tmp_path):
    images = [(f"{i}.png", tars.encoded(tars.pixels(i))) for i in range(5)]
    cls = [(f"{i}.cls", b"%d" % n) for i, n in enumerate((10, 9, 2, 10, 2))]
    tars.write(tmp_path / "n.tar", [m for pair in zip(images, cls, strict=True) for m in pair])
    data = Shards(path=str(tmp_path / "n.tar")).load()
    assert data.info.classes == ("2", "9", "10")
    assert data.label.tolist() == [2, 1, 0, 2, 0]
    assert data.info.name == "n"
    words = [tars.with_json(str(i), w) for i, w in enumerate(("b", "a", None, "b", "a"))]
    tars.write(tmp_path / "w.tar", [m for pair in zip(images, words, strict=True) for m in pair])
    data = Shards(path=str(tmp_path / "w.tar")).load()
    assert data.info.classes == ("a", "b")
    assert data.label.tolist() == [1, 0, 1, 0]
    assert (seen(data, range(4)) == made_pixels(5)[[0, 1, 3, 4]]).all()
    [bad] = data.bad
    assert bad == ("w.tar sample 2", "Its label is missing, or names no class.")
    assert data.names[2] == "w.tar sample 2"
    data = Shards(path=str(tmp_path / "w.tar"), labels=False).load()
    assert (len(data.x), data.label, data.info.classes, data.bad) == (5, None, (), ())
    tars.write(tmp_path / "one.tar", [*images, ("4.cls", b"1")])
    assert Shards(path=str(tmp_path / "one.tar"), labels=False).load().label is None


def test_labels_that_are_no_classes_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "d.tar"
    mixed = [("0.png", b"x"), ("0.cls", b"1"), ("1.png", b"x"), tars.with_json("1", "cat")]
    tars.write(path, mixed)
    with pytest.raises(DataError, match=r"text and others are numbers: write data.labels=false"):
        Shards(path=str(path)).load()
    monkeypatch.setattr(index, "MAX_CLASSES", 2)
    tars.write(path, tars.labelled(4, classes=4))
    with pytest.raises(DataError, match=r"too many for classes: write data.labels=false"):
        Shards(path=str(path)).load()
    assert len(Shards(path=str(path), labels=False).load().x) == 4


def test_size_and_channels_are_those_of_a_folder(tmp_path):
    cases = {
        "small": ([(12, 20)] * 4, 3, None, (3, 12, 20)),
        "large": ([(90, 70)] * 4, 3, None, (3, 64, 64)),
        "grey": ([(40, 30), (50, 31), (60, 32)], 1, None, (1, 28, 28)),
        "asked": ([(40, 30), (50, 31)], 1, 10, (1, 10, 10)),
    }
    for name, (sizes, channels, size, shape) in cases.items():
        for i, own in enumerate(sizes):
            body = tars.encoded(tars.pixels(i, own, channels))
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{i}.png").write_bytes(body)
        bodies = [(p.name, p.read_bytes()) for p in sorted((tmp_path / name).iterdir())]
        tars.write(tmp_path / f"{name}.tar", bodies)
        data = Shards(path=str(tmp_path / f"{name}.tar"), size=size).load()
        folder = Folder(path=str(tmp_path / name), size=size).load()
        assert data.info.shape == folder.info.shape == shape
        assert (data.x[:] == folder.x[:]).all()
        assert (data.originals, data.common) == (folder.originals, folder.common)
        assert data.info.mean == pytest.approx(folder.info.mean, abs=1e-9)
    colour = Shards(path=str(tmp_path / "grey.tar"), channels=3, size=8).load()
    assert colour.info.shape == (3, 8, 8)


def test_the_fingerprint_knows_files_but_not_when_they_were_written(made, tmp_path):
    first = indexed(made).fingerprint
    copy = tars.folder(tmp_path / "elsewhere")
    assert indexed(copy).fingerprint == first
    for path in copy.iterdir():
        os.utime(path, (1, 1))
    assert indexed(copy).fingerprint == first
    others = {indexed(copy, labelled=False).fingerprint}
    settings = ({}, {"size": 16}, {"fit": "pad"}, {"channels": 1})
    others |= {Shards(path=str(copy), **words).load().info.fingerprint for words in settings}
    (copy / "000.tar").rename(copy / "0000.tar")
    others.add(indexed(copy).fingerprint)
    tars.write(copy / "002.tar", tars.labelled(5, 11))
    others.add(indexed(copy).fingerprint)
    assert len(others | {first}) == 8


# --- order -----------------------------------------------------------------------------------


def test_the_order_depends_on_no_rank_and_no_worker(made, monkeypatch):
    """Parts of a batch, in threads or one after the other, with one decoder or four."""
    data = Shards(path=str(made)).load()
    whole = Stream(data, 1, (-1.0, 1.0)).at(0, 48)
    for ranks in (1, 2, 3, 7):
        parts = [(48 * r // ranks, 48 * (r + 1) // ranks) for r in range(ranks)]
        found = [Stream(data, 1, (-1.0, 1.0)).at(start, stop - start) for start, stop in parts]
        for part, (start, stop) in zip(found, parts, strict=True):
            assert (part.x == whole.x[start:stop]).all()
            assert (part.label == whole.label[start:stop]).all()
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    alone = Shards(path=str(made)).load()
    found = {}

    def work(k):
        found[k] = Stream(alone, 1, (-1.0, 1.0)).at(6 * k, 6).x

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, x in found.items():
        assert (x == whole.x[6 * k : 6 * k + 6]).all()


# --- damage ----------------------------------------------------------------------------------


def damaged_images(path, bad, count=12, classes=2):
    """A tar file some of whose images are nonsense."""
    members = []
    for i in range(count):
        body = b"\x89PNG nonsense" if i in bad else tars.encoded(tars.pixels(i))
        members += [(f"{i:02d}.png", body), (f"{i:02d}.cls", b"%d" % (i % classes))]
    return tars.write(path, members)


def test_the_next_of_its_kind_stands_in_for_what_cannot_be_decoded(tmp_path, caplog):
    """Of the same class, of the same split, and the first again after the last."""
    path = damaged_images(tmp_path / "d.tar", {4, 6, 11})
    data = Shards(path=str(path), held_out=0.25).load()
    outside = set(data.held_out.tolist())
    expected = {}
    for i in (4, 6, 11):
        after = [*range(i + 1, 12), *range(i)]
        alike = [j for j in after if j % 2 == i % 2 and (j in outside) == (i in outside)]
        expected[i] = next(j for j in alike if j not in (4, 6, 11))
    caplog.clear()
    fresh = Shards(path=str(path), held_out=0.25).load()
    for ids in ([4], [11, 6], range(12)):  # in whatever order and company
        for i, one in zip(ids, seen(fresh, ids), strict=True):
            assert (one == tars.pixels(expected.get(i, i))).all()
    assert fresh.x.replaced == expected
    assert len(caplog.records) == 3
    said = caplog.records[0].getMessage()
    assert said.startswith("d.tar sample 4 cannot be decoded, and d.tar sample")
    assert (data.x[np.arange(12)] == fresh.x[np.arange(12)]).all()
    assert fresh.bad == ()  # headers do not tell


def test_of_many_that_cannot_be_decoded_some_are_named(tmp_path, caplog):
    path = damaged_images(tmp_path / "d.tar", set(range(0, 60, 2)), 60, classes=1)
    data = Shards(path=str(path)).load()
    caplog.clear()
    data.x.replaced.clear()
    assert len(data.x[:]) == 60
    assert len(data.x.replaced) == 30
    assert len(caplog.records) == shards.NOTED
    assert caplog.records[-1].getMessage().endswith("More are not named.")


def test_data_with_nothing_to_stand_in_is_an_error(tmp_path, monkeypatch):
    path = damaged_images(tmp_path / "d.tar", {1, 3, 5, 7, 9, 11})
    with pytest.raises(DataError, match=r"cannot be decoded \(.*\), nor can the next ones"):
        Shards(path=str(path)).load().x[np.array([1])]
    monkeypatch.setattr(shards, "TRIES", 1)
    path = damaged_images(tmp_path / "e.tar", {1, 2, 3, 4}, classes=1)
    data = Shards(path=str(path), held_out=0.0, size=8, channels=3)
    with pytest.raises(DataError, match="nor can the next ones"):
        data.load()
    path = damaged_images(tmp_path / "f.tar", set(range(12)))
    with pytest.raises(DataError, match="none of 12 images in .* can be read"):
        Shards(path=str(path)).load()


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path):
    path = tars.write(tmp_path / "d.tar", tars.labelled(6))
    data = Shards(path=str(path)).load()
    os.utime(path, (1, 1))
    with pytest.raises(DataError, match="has changed since it was read"):
        data.x[:3]
    path.unlink()
    with pytest.raises(DataError, match="cannot be opened: no such file"):
        data.x[:3]


def test_a_damaged_tar_file_is_used_up_to_there_and_named(made, tmp_path):
    copy = tars.folder(tmp_path / "d")
    body = (copy / "001.tar").read_bytes()
    (copy / "001.tar").write_bytes(body[: len(body) // 3])
    (copy / "003.tar").write_bytes(b"no tar file at all" * 100)
    (copy / "004.tar").write_bytes(b"")
    data = Shards(path=str(copy)).load()
    kept = len(data.x) - 10
    assert 0 < kept < 5
    assert [bad.path for bad in data.bad] == ["001.tar", "003.tar", "004.tar"]
    assert data.bad[0].reason.startswith(f"It is damaged after {kept} samples: ")
    assert (seen(data, range(len(data.x)))[-5:] == made_pixels()[10:]).all()


def test_flipped_bits_never_crash(tmp_path):
    """Wherever a bit flips: the data load, perhaps with less, or a sentence says why not."""
    path = tars.write(tmp_path / "d.tar", tars.labelled(3, size=(4, 4)))
    body, outcomes = path.read_bytes(), set()
    used = body.rstrip(b"\0")
    for at in np.random.default_rng(0).integers(0, 8 * len(used), 60):
        flipped = bytearray(body)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        try:
            found = indexed(path)
            outcomes.add((len(found.spans), len(found.bad)))
        except DataError as error:
            outcomes.add(str(error).partition(":")[0])
    assert (3, 0) in outcomes
    assert len(outcomes) > 2


def test_too_few_are_said_to_be_too_few(tmp_path):
    tars.write(tmp_path / "d.tar", [("0.png", tars.encoded(tars.pixels(0))), ("0.txt", b"x")])
    with pytest.raises(DataError, match=r"only one image in .*d.tar: at least 2 .* 1 files are no"):
        Shards(path=str(tmp_path / "d.tar")).load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no .tar or .parquet file"):
        Shards(path=str(tmp_path / "empty")).load()


def test_many_that_are_left_out_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "NAMED", 3)
    members = [(f"{i}.png", b"") for i in range(9)]
    tars.write(tmp_path / "d.tar", [*members, *tars.labelled(3)])
    found = indexed(tmp_path / "d.tar")
    assert [bad.path for bad in found.bad] == [*(f"d.tar: {i}.png" for i in range(3)), "..."]
    assert found.bad[-1].reason == "6 more cannot be used."


def test_a_table_that_lies_is_refused(tmp_path):
    """More rows than bytes, whose labels would take no room in the file but all of the memory."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    count = 300_000
    nothing = pa.array([None] * count, pa.binary())
    table = pa.table({"image": nothing, "label": pa.array(np.zeros(count, np.int8))})
    pq.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(DataError, match="damaged .* 300,000 rows are more than it can hold"):
        Shards(path=str(tmp_path / "d.parquet")).load()
    (tmp_path / "e.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(DataError, match="e.parquet is damaged or no Parquet file"):
        Shards(path=str(tmp_path / "e.parquet")).load()


def test_what_is_damaged_in_the_cache_is_made_again(made, cache):
    first = Shards(path=str(made)).load()
    pixels = first.x[:]
    for path in [*cache.rglob("*")]:
        if path.is_file():
            before = path.read_bytes()
            for damage in (before[:-1], b"[1, 2]"):
                path.write_bytes(damage)
                again = Shards(path=str(made)).load()
                assert again.info == first.info
                assert (again.label == first.label).all()
    assert (again.x[:] == pixels).all()
    assert not [*cache.rglob(".tmp-*")]


def test_a_stopped_start_leaves_nothing_half_made(made, cache):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Shards(path=str(made)).load(stop)
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert len(Shards(path=str(made)).load().x) == COUNT


# --- what names it ---------------------------------------------------------------------------


def test_tar_files_are_recognised(made, tmp_path):
    assert recognise(str(made)) == Shards(path=str(made))
    assert recognise(str(made / "001.tar")) == Shards(path=str(made / "001.tar"))
    tars.write(tmp_path / "d" / "a.tar", [])
    for i in range(2):
        Image.new("RGB", (4, 4)).save(tmp_path / "d" / f"{i}.png")
    assert recognise(str(tmp_path / "d")) == Folder(path=str(tmp_path / "d"))


def test_what_would_look_at_all_looks_at_some(made, monkeypatch):
    """Scores, classifiers and reports: the same random samples, and they say how many."""
    from ornstein.data.inspection import inspect
    from ornstein.evaluation import reference_for, score
    from ornstein.features.classifier import train_classifier
    from ornstein.features.pixels import Pixels

    monkeypatch.setattr(shards, "MOST", 6)
    source = Shards(path=str(made), held_out=0.5)
    data = source.load()
    some = data.some()
    assert (len(some.train), len(some.held_out)) == (6, 6)
    assert set(some.train) < set(data.train.tolist())
    assert (some.some().train == some.train).all()
    asked = []
    given = type(data.x).__getitem__
    monkeypatch.setattr(
        type(data.x), "__getitem__", lambda x, ids: (asked.append(len(ids)), given(x, ids))[1]
    )
    eye = Pixels(data.info)
    reference = reference_for(data, eye, count=4)
    assert (reference.protocol.reference, reference.protocol.searched) == (6, 6)
    found = score(data, made_pixels().transpose(0, 3, 1, 2)[:4], eye, reference=reference)
    assert found.protocol.searched == 6
    report = inspect(source, data)
    assert (report.looked, report.train, report.held_out) == (12, 7, 8)
    assert sum(c.train + c.held_out for c in report.classes) == COUNT
    assert f"--data {made} data.held_out=0.5 data.size=8" in report.proposal.command
    monkeypatch.setattr("ornstein.features.classifier._SAMPLES", (256, 256))
    train_classifier(data)
    assert max(n for n in asked if n != 128) == 12  # 128: a batch of a classifier's training


def test_duplicates_are_named_by_their_own_numbers(tmp_path):
    from ornstein.data.inspection import inspect

    images = [tars.encoded(tars.pixels(i // 2 if i > 9 else i)) for i in range(14)]
    members = [(f"{i}.png", body) for i, body in enumerate(images)]
    path = tars.write(tmp_path / "d.tar", members)
    source = Shards(path=str(path), held_out=0.3)
    report = inspect(source, source.load())
    assert report.repeated.exact == ((5, 10, 11), (6, 12, 13))
    assert report.names[12] == "d.tar sample 12"


def test_decoders_end_with_the_data(made):
    others = children()
    data = Shards(path=str(made)).load()
    data.x[:2]
    own = children() - others
    assert own
    del data
    assert not own & children()


def children():
    """Processes that this one has started and that live."""
    lists = list(Path("/proc/self/task").glob("*/children"))
    if not lists:
        pytest.skip("children are looked for in /proc")
    return {child for path in lists for child in path.read_text().split()}


# --- training --------------------------------------------------------------------------------


def test_training_from_tar_files_resumes_bit_for_bit(made, tmp_path):
    import torch

    from ornstein.diffusion.model import Diffusion
    from ornstein.diffusion.sampling import Sampling
    from ornstein.nn.networks import UNet
    from ornstein.optim import Optim
    from ornstein.recipe import Recipe
    from ornstein.run import Run

    recipe = Recipe(
        name="tars",
        data=Shards(path=str(made)),
        model=Diffusion(network=UNet(channels=(8,), blocks=1, middle_attention=False)),
        optim=Optim(batch=8, samples=160, warmup=0),
        generation=Sampling(steps=2),
    )
    whole = Run.create(recipe, tmp_path / "runs", "whole")
    losses = [event.loss.item() for event in whole.train(previews=False)]
    assert len(losses) == 20
    for _ in range(3):
        parts = Run.create(recipe, tmp_path / "runs", "parts")  # opened anew each time
        for number, _event in enumerate(events := parts.train(previews=False), 1):
            if number == 7:
                events.close()
    one, other = (Run.open(tmp_path / "runs" / name).state() for name in ("whole", "parts"))
    assert one.samples == other.samples == 160
    for a, b in zip(
        one.learner.state_dict().values(), other.learner.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
    assert Run.open(tmp_path / "runs" / "whole").generate(2).shape == (2, 3, 8, 8)


def test_no_line_says_that_a_body_is_read_twice(made):
    """Indexing reads headers and labels: of large bodies a few kilobytes each."""
    from ornstein.data.tar import Window, members

    body = bytes(1 << 20)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for i in range(20):
            about = tarfile.TarInfo(f"{i}.jpg")
            about.size = len(body)
            archive.addfile(about, io.BytesIO(body))
    taken, data = [], stream.getvalue()

    class Counted(io.BytesIO):
        def read(self, count=-1):
            found = super().read(count)
            taken.append(len(found))
            return found

    assert len(list(members(Window(Counted(data), len(data))))) == 20
    assert sum(taken) < 1.2e6
