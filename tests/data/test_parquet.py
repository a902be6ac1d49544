"""Parquet files of images: the same pixels as from a folder, and nothing else from strangers."""

import io
import json
import os
import random
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ornstein.data import decode, decoders, parquet
from ornstein.data.images import read_folder
from ornstein.data.pages import groups, pages
from ornstein.data.parquet import read_parquet
from ornstein.data.sources import Folder, Parquet, recognise
from ornstein.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def picture(seed, h=8, w=8, kind="PNG"):
    """The bytes of an image file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


PICTURES = [picture(i) for i in range(40)]


def structs(contents):
    return pa.array([{"bytes": c, "path": f"{i}.png"} for i, c in enumerate(contents)], IMAGE)


def declared(**features):
    """The metadata that Hugging Face's library writes."""
    return {"huggingface": json.dumps({"info": {"features": features}})}


def classes(*names):
    return {"names": list(names), "_type": "ClassLabel"}


def write(path, columns=None, metadata=None, **options):
    """A file with these columns; by default ten images, unlabelled."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": structs(PICTURES[:10])} if columns is None else columns
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, path, **options)
    return path


def labelled(path, label, metadata=None, **options):
    """A file of as many images as there are labels."""
    label = label if isinstance(label, pa.Array) else pa.array(label)
    contents = structs(PICTURES[: len(label)])
    return write(path, {"image": contents, "label": label}, metadata, **options)


# The same as a folder


def test_the_same_images_give_the_same_pixels(tmp_path):
    """Every property but the names: pixels, labels, classes, sizes, reasons, fingerprint."""
    contents = [picture(i, 20 + i % 3, 30, ("PNG", "JPEG", "WEBP")[i % 3]) for i in range(24)]
    contents[5], contents[20] = b"", contents[20][:-200]
    names = ["a b", "cats", "中文"]
    for i, content in enumerate(contents):
        path = tmp_path / "folder" / names[i // 8] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    columns = {"label": pa.array([i // 8 for i in range(24)]), "image": structs(contents)}
    path = write(tmp_path / "x.parquet", columns, declared(label=classes(*names)), row_group_size=5)
    for size, channels, fit in ((None, None, "crop"), (16, 1, "pad"), (13, 3, "stretch")):
        a = read_folder(tmp_path / "folder", size, channels, fit=fit)
        b = read_parquet(path, size, channels, fit=fit)
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.label, b.label)
        assert a.fingerprint == b.fingerprint
        assert (a.classes, a.originals, a.common) == (b.classes, b.originals, b.common)
        assert [bad.reason for bad in a.bad] == [bad.reason for bad in b.bad]
        assert [bad.path for bad in b.bad] == ["x.parquet row 5", "x.parquet row 20"]
        assert b.files[:7] == tuple(f"x.parquet row {i}" for i in (0, 1, 2, 3, 4, 6, 7))


def test_splits_are_those_of_the_same_folders(tmp_path):
    for split, numbers in (("test", range(3)), ("train", range(3, 10))):
        for i in numbers:
            path = tmp_path / "folder" / split / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(PICTURES[i])
        contents = structs([PICTURES[i] for i in numbers])
        write(tmp_path / "files" / "data" / f"{split}-00000-of-00001.parquet", {"image": contents})
    a, b = Folder(path=str(tmp_path / "folder")), Parquet(path=str(tmp_path / "files"))
    a, b = a.load(), b.load()
    np.testing.assert_array_equal(a.x, b.x)
    np.testing.assert_array_equal(a.held_out, b.held_out)
    assert a.info.model_dump(exclude={"name"}) == b.info.model_dump(exclude={"name"})
    assert b.names[0] == "data/test-00000-of-00001.parquet row 0"


# Where images are


@pytest.mark.parametrize(
    "columns",
    [
        {"image": structs(PICTURES[:9])},
        {"img": structs(PICTURES[:9])},
        {"Image": structs(PICTURES[:9])},
        {"scan": structs(PICTURES[:9])},
        {"image": pa.array(PICTURES[:9])},
        {"content": pa.array(PICTURES[:9], pa.large_binary())},
        {"image": structs(PICTURES[:9]).filter(pa.array([True] * 9))},
        {"image": pa.array([{"bytes": p} for p in PICTURES[:9]])},
        {"thumbnail": structs([b"x"] * 9), "image": structs(PICTURES[:9])},
        {"mask": pa.array([b"x"] * 9), "scan": structs(PICTURES[:9])},
        {"image": structs(PICTURES[:9]), "caption": pa.array(["x"] * 9)},
        {"image": structs(PICTURES[:9]), "boxes": pa.array([[{"x": [1, 2]}]] * 9)},
        {"meta": pa.array([{"image": {"bytes": b"x"}}] * 9), "image": structs(PICTURES[:9])},
        # what pickle would read, beside the images: it is not opened
        {
            "pickle": pa.array([b"cposix\nsystem\n(S'false'\ntR."] * 9),
            "img": pa.array(PICTURES[:9]),
        },
        {"image": structs(PICTURES[:9]), "a": pa.array([1] * 9), "A": pa.array([b"x"] * 9)},
    ],
    ids=lambda columns: "-".join(columns),
)
def test_the_column_of_images_is_found(tmp_path, columns):
    found = read_parquet(write(tmp_path / "x.parquet", columns))
    wanted = [np.asarray(Image.open(io.BytesIO(p))).transpose(2, 0, 1) for p in PICTURES[:9]]
    np.testing.assert_array_equal(found.x, wanted)
    assert (found.label, found.bad) == (None, ())


def test_the_metadata_says_which_column_is_the_image(tmp_path):
    columns = {"image": structs([b"depth"] * 5), "view": structs(PICTURES[:5])}
    metadata = declared(view={"_type": "Image"}, image={"dtype": "binary", "_type": "Value"})
    assert len(read_parquet(write(tmp_path / "x.parquet", columns, metadata)).x) == 5


@pytest.mark.parametrize(
    "options",
    [
        {"compression": codec, "data_page_version": version, "use_dictionary": dictionary}
        for codec in ("none", "snappy", "gzip", "zstd", "brotli", "lz4")
        for version in ("1.0", "2.0")
        for dictionary in (True, False)
    ]
    + [
        {"row_group_size": 3, "data_page_size": 100},
        {"write_page_checksum": True, "write_page_index": True},
        {"use_dictionary": False, "column_encoding": {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"}},
        {"store_schema": False, "write_statistics": False},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_however_it_is_packed(tmp_path, options):
    """The walk over the pages agrees, to the byte, with what the writer added up."""
    contents = [PICTURES[i % 20] if i % 7 else None for i in range(40)]
    columns = {"image": structs(contents), "label": pa.array([str(i % 4) for i in range(40)])}
    path = write(tmp_path / "x.parquet", columns, **options)
    about = pq.ParquetFile(path).metadata
    with path.open("rb") as file:
        found = list(groups(file, path.stat().st_size))
        assert [group.rows for group in found] == [
            about.row_group(i).num_rows for i in range(about.num_row_groups)
        ]
        for i, group in enumerate(found):
            assert len(group.chunks) == 3
            for j, name in enumerate(("image.bytes", "image.path", "label")):
                chunk, walked = group.chunks[name], list(pages(file, group.chunks[name]))
                truth = about.row_group(i).column(j)
                assert chunk.unpacked == truth.total_uncompressed_size
                assert chunk.unpacked == sum(page.header + page.unpacked for page in walked)
                assert chunk.stop - chunk.start == truth.total_compressed_size
                assert chunk.values == sum(p.values for p in walked if not p.dictionary)
                assert any(page.dictionary for page in walked) == truth.has_dictionary_page
    found = read_parquet(path)
    assert [bad.path for bad in found.bad] == [f"x.parquet row {i}" for i in range(0, 40, 7)]
    assert len(found.x) == 34
    assert found.label.tolist() == [i % 4 for i in range(40) if i % 7]


# Classes


@pytest.mark.parametrize(
    ("label", "metadata", "names", "numbers"),
    [
        (["b", "a", "b", "c"], None, ("a", "b", "c"), [1, 0, 1, 2]),
        ([10, 2, 10, 9], None, ("2", "9", "10"), [2, 0, 2, 1]),
        ([-1, 1, 1, -1], None, ("-1", "1"), [0, 1, 1, 0]),
        ([True, False, True, True], None, ("False", "True"), [1, 0, 1, 1]),
        (pa.array([2**64 - 1, 0, 0, 0], pa.uint64()), None, ("0", str(2**64 - 1)), [1, 0, 0, 0]),
        (pa.array(["y", "x", "x", "y"]).dictionary_encode(), None, ("x", "y"), [1, 0, 0, 1]),
        (pa.array([3, 1, 1, 2], pa.int8()), "z y x w", ("y", "x", "w"), [2, 0, 0, 1]),
        ([0, 3, 0, 3], "z y x w", ("z", "w"), [0, 1, 0, 1]),
        (["x", "z", "z", "y"], "z y x w", ("z", "y", "x"), [2, 0, 0, 1]),
        ([5, 5, 5, 5], None, (), None),
        ([None, None, None, None], None, (), None),
        (pa.array([None] * 4, pa.int64()), "a b", (), None),
        ([-1, -1, -1, -1], "a b", (), None),
        ([0.5, 1.5, 0.5, 1.5], None, (), None),
        ([[1], [2], [1, 2], []], None, (), None),
        ([{"a": 1}] * 4, None, (), None),
        ([b"a", b"b", b"a", b"b"], None, (), None),
    ],
    ids=str,
)
def test_labels(tmp_path, label, metadata, names, numbers):
    metadata = metadata and declared(label=classes(*metadata.split()))
    found = read_parquet(labelled(tmp_path / "x.parquet", label, metadata))
    assert found.classes == names
    assert (found.label if numbers is None else found.label.tolist()) == numbers
    assert found.bad == ()


@pytest.mark.parametrize(
    ("label", "metadata", "missing"),
    [
        ([0, None, 1, 0, None], None, [1, 4]),
        (["a", None, "b", "", "a"], None, [1]),  # a name may be empty
        ([0, -1, 1, None, 1], declared(label=classes("a", "b")), [1, 3]),
    ],
)
def test_rows_without_a_label_are_named(tmp_path, label, metadata, missing):
    found = read_parquet(labelled(tmp_path / "x.parquet", label, metadata))
    reason = "Its label is missing, or names no class."
    assert found.bad == tuple((f"x.parquet row {i}", reason) for i in missing)
    assert len(found.label) == len(found.x) == 5 - len(missing)


@pytest.mark.parametrize(
    ("names", "metadata", "chosen"),
    [
        (["fine_label", "coarse_label"], None, "fine_label"),
        (["coarse_label", "label"], None, "label"),
        (["Label", "id"], None, "Label"),
        (["id", "index"], None, None),
        (["species", "label"], declared(species=classes("a", "b")), "species"),
        (["species", "genus"], declared(species=classes("a", "b"), genus=classes("c", "d")), None),
    ],
)
def test_the_column_of_labels_is_found(tmp_path, names, metadata, chosen):
    columns = {"image": structs(PICTURES[:4])}
    columns |= {name: pa.array([i, 0, 1, 0]) for i, name in enumerate(names)}
    found = read_parquet(write(tmp_path / "x.parquet", columns, metadata))
    wanted = None if chosen is None else columns[chosen].to_pylist()
    assert (None if found.label is None else found.label.tolist()) == wanted


@pytest.mark.parametrize(
    ("label", "names", "classes_", "missing"),
    [
        ([0, 1, 2, 1, 0], ["zero"], ("0", "1", "2"), 0),
        ([1, 2, 3, 1, 2], ["one", "two", "three"], ("1", "2", "3"), 0),
        ([0, -1, 3, 3, None], ["zero", "one"], ("0", "3"), 2),
        (["a", "b", "c", "a", "b"], ["a", "b"], ("a", "b", "c"), 0),
        ([0, 1, 1, 0, 1], [], ("0", "1"), 0),
    ],
)
def test_names_that_do_not_cover_the_labels(tmp_path, label, names, classes_, missing):
    """Rows are not lost for them: the labels name themselves, in all files of a data set."""
    for name, part in (("a", label[:2]), ("b", label[2:])):
        labelled(tmp_path / "d" / f"{name}.parquet", part, declared(label=classes(*names)))
    found = read_parquet(tmp_path / "d")
    assert (found.classes, len(found.bad)) == (classes_, missing)
    kept = [str(value) for value in label if value is not None and value != -1]
    assert [classes_[i] for i in found.label] == kept


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        "null",
        "3",
        b"\xff",
        '{"info": []}',
        '{"info": {"features": [1]}}',
        '{"info": {"features": {"label": [1], "image": 3}}}',
        "[" * 10**5,
        " " * (5 << 20),
        json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": [1, 2]}}}}),
        json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": "ab"}}}}),
        json.dumps({"info": {"features": {"label": {"_type": [], "names": ["a", "b"]}}}}),
    ],
    ids=lambda text: str(text[:60]).strip() or "long",
)
def test_metadata_that_cannot_be_read_counts_as_not_there(tmp_path, text):
    plain = read_parquet(labelled(tmp_path / "a.parquet", [2, 7, 2]))
    found = read_parquet(labelled(tmp_path / "b.parquet", [2, 7, 2], {"huggingface": text}))
    assert (found.classes, found.bad) == (("2", "7"), ())
    assert found.fingerprint == plain.fingerprint


def test_a_class_without_an_image_goes(tmp_path):
    columns = {"image": structs([b"", *PICTURES[1:6]]), "label": pa.array([0, 1, 2, 2, 1, 1])}
    found = read_parquet(write(tmp_path / "x.parquet", columns, declared(label=classes(*"abc"))))
    assert found.classes == ("b", "c")
    assert found.label.tolist() == [0, 1, 1, 0, 0]


# Splits


@pytest.mark.parametrize(
    ("names", "held_out"),
    [
        ("train.parquet test.parquet", "test"),
        ("train-00000-of-00002.parquet train-00001-of-00002.parquet test-0.parquet", "test"),
        ("data/train-0.parquet data/validation-0.parquet data/test-0.parquet", "validation test"),
        ("my_set-TRAIN.parquet my_set-Val.PARQUET", "Val"),
        ("training.parquet testing.parquet", "testing"),
        ("train.parquet data/test.parquet", "test"),
        ("test/0000.parquet train/0000.parquet train/0001.parquet", "test"),
        ("Train/0.parquet my-val/0.parquet", "val"),
        ("data/train/0.parquet data/validation/0.parquet", "validation"),
        ("default/test/0000.parquet default/train/0000.parquet", "test"),
        ("plain_text/test-0.parquet plain_text/train-0.parquet", "test"),
        ("train/0.parquet", None),
        ("only/0.parquet", None),
        ("train.parquet", None),
        ("test.parquet", None),
        ("train-0.parquet train-1.parquet", None),
        ("test.parquet extra.parquet", None),
        ("0000.parquet 0001.parquet", None),
        ("contest.parquet strain.parquet", None),
    ],
)
def test_splits_come_from_the_names(tmp_path, names, held_out):
    for i, name in enumerate(names.split()):
        write(tmp_path / "d" / name, {"image": structs(PICTURES[4 * i : 4 * i + 4])})
    found = read_parquet(tmp_path / "d")
    assert len(found.x) == 4 * len(names.split())
    told = [file.rpartition(" row ")[0] for file in found.files[::4]]
    assert all(name.endswith(file) for name, file in zip(sorted(names.split()), told, strict=True))
    if held_out is None:
        assert found.held_out is None
    else:
        wanted = [any(word in file for word in held_out.split()) for file in found.files]
        assert found.held_out.tolist() == wanted


def test_what_is_no_part_of_it_is_passed_over(tmp_path):
    write(tmp_path / "d" / "train.parquet")
    write(tmp_path / "d" / ".hidden.parquet")
    write(tmp_path / "d" / "other" / "more.parquet")
    (tmp_path / "d" / "README.md").write_text("")
    (tmp_path / "d" / "folder.parquet").mkdir()
    (tmp_path / "d" / "nowhere.parquet").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "d" / "pipe.parquet")
    assert len(read_parquet(tmp_path / "d").x) == 10


def test_several_data_sets_in_one_folder(tmp_path):
    for name in ("plain/train/0000", "plain/test/0000", "gray/train/0000", "deep/er/x"):
        write(tmp_path / "d" / f"{name}.parquet")
    says = r"in several folders \('gray', 'plain'\): name one of them, such as .*/gray$"
    with pytest.raises(DataError, match=says):
        read_parquet(tmp_path / "d")
    with pytest.raises(DataError, match=says):
        recognise(str(tmp_path / "d"))
    assert len(read_parquet(tmp_path / "d" / "plain").x) == 20
    write(tmp_path / "d" / "x.parquet")  # its own files come first
    assert len(read_parquet(tmp_path / "d").x) == 10


def test_files_that_lie_deeper_are_hinted_at(tmp_path):
    write(tmp_path / "d" / "data" / "one" / "train" / "0.parquet")
    write(tmp_path / "d" / "data" / "two" / "x.parquet")
    (tmp_path / "d" / "data" / "loop").symlink_to(tmp_path / "d")
    with pytest.raises(DataError, match="no image in .*; there are Parquet files in .*") as error:
        recognise(str(tmp_path / "d"))
    found = f"{tmp_path}/d/data/one and {tmp_path}/d/data/two"
    assert str(error.value).endswith(f" in {found}: name one")
    with pytest.raises(DataError, match="there is no .parquet file in"):
        read_parquet(tmp_path / "d")


def test_what_has_vanished_is_said(tmp_path):
    for name in ("d", "x.parquet"):
        with pytest.raises(DataError, match=f"/{name} does not exist: put it back"):
            Parquet(path=str(tmp_path / name)).load()


def test_a_split_without_a_good_image_to_train_on(tmp_path):
    write(tmp_path / "d" / "test.parquet")
    write(tmp_path / "d" / "train.parquet", {"image": structs([b"", b""])})
    with pytest.raises(DataError, match="none of the images to train on"):
        read_parquet(tmp_path / "d")


# The cache


def test_the_second_start_reads_no_image(tmp_path, cache, monkeypatch):
    path = labelled(tmp_path / "x.parquet", [0, 1] * 10, row_group_size=7)
    before, calls = path.read_bytes(), []
    first = read_parquet(path, progress=lambda *at: calls.append(at))
    assert calls == [(i, 20) for i in range(1, 21)]
    monkeypatch.setattr(parquet, "_values", None)
    monkeypatch.setattr(decoders, "COMMAND", None)
    for size in (None, 8):  # the size that was chosen is the one that is asked for
        second = read_parquet(path, size, progress=lambda *at: calls.append(at))
        np.testing.assert_array_equal(first.x, second.x)
        assert first.fingerprint == second.fingerprint
        assert first.label.tolist() == second.label.tolist()
    assert len(calls) == 20
    assert len(list(cache.glob("*.u8"))) == 1
    assert path.read_bytes() == before


def test_a_changed_file_is_read_again(tmp_path):
    first = read_parquet(write(tmp_path / "d" / "a.parquet"))
    write(tmp_path / "d" / "a.parquet", {"image": structs(PICTURES[1:11])})
    second = read_parquet(tmp_path / "d" / "a.parquet")
    assert second.fingerprint != first.fingerprint
    np.testing.assert_array_equal(second.x[:9], first.x[1:])
    write(tmp_path / "d" / "b.parquet")
    assert len(read_parquet(tmp_path / "d").x) == 20


# What is not so


HUGE = pa.array([b"\0" * (5 << 20)] * 2, pa.binary())


def flipped(path, place, bits=1):
    data = bytearray(path.read_bytes())
    data[place] ^= bits
    path.write_bytes(bytes(data))


HOSTILE = {
    "empty": (lambda p: p.write_bytes(b""), "is damaged or no Parquet file"),
    "text": (lambda p: p.write_text("hello, world" * 99), "is damaged or no Parquet file"),
    "a page": (lambda p: p.write_text("<!doctype html>"), "is damaged or no Parquet file"),
    "a zip": (lambda p: p.write_bytes(b"PK\3\4" * 99), "is damaged or no Parquet file"),
    "only magic": (lambda p: p.write_bytes(b"PAR1PAR1"), "is damaged or no Parquet file"),
    "a long footer": (
        lambda p: p.write_bytes(b"PAR1\xff\xff\xff\x7fPAR1"),
        "is damaged or no Parquet file",
    ),
    "truncated": (lambda p: p.write_bytes(write(p).read_bytes()[:-99]), "is damaged or no"),
    "head cut": (lambda p: p.write_bytes(write(p).read_bytes()[99:]), "is damaged or no"),
    "sparse": (
        lambda p: os.truncate(write(p), parquet.MAX_FILE + 1),
        "is larger than 64 GiB: split it",
    ),
    "zero rows": (
        lambda p: write(p, {"image": structs([])}),
        "no image in .*: at least 2 are needed, as rows that hold their bytes$",
    ),
    "one row": (
        lambda p: write(p, {"image": structs(PICTURES[:1])}),
        "only one image in .*: at least 2 are needed, as rows that hold their bytes$",
    ),
    "no columns": (lambda p: write(p, {}), "no image in .*: at least 2 are needed, as rows"),
    "numbers": (
        lambda p: write(p, {"a": pa.array([1, 2]), "\x1b[2J": pa.array(["x", "y"])}),
        r"no column of images, .* it has 'a' of int64, '\\x1b\[2J' of string",
    ),
    "text for images": (lambda p: write(p, {"image": pa.array(["x", "y"])}), "no column of im"),
    "numbers for bytes": (
        lambda p: write(p, {"image": pa.array([{"bytes": 1}] * 3)}),
        "no column of images",
    ),
    "lists of images": (
        lambda p: write(p, {"image": pa.array([[{"bytes": PICTURES[0]}]] * 3)}),
        "no column of images",
    ),
    "lists of bytes": (
        lambda p: write(p, {"image": pa.array([{"bytes": [PICTURES[0]]}] * 3)}),
        "no column of images",
    ),
    "only paths": (
        lambda p: write(p, {"image": pa.array([{"path": "/etc/passwd"}] * 3)}),
        "no column of images",
    ),
    "paths and no bytes": (
        lambda p: write(p, {"image": structs([None] * 3)}),
        "as rows that hold their bytes; 3 cannot be read, the first is x.parquet row 0 "
        ".It is null: the row holds no image.",
    ),
    "null structs": (
        lambda p: write(p, {"image": pa.array([None] * 3, IMAGE)}),
        "3 cannot be read, the first is x.parquet row 0 .It is null",
    ),
    "only pickles": (
        lambda p: write(p, {"x": pa.array([b"cposix\nsystem\n(S'touch pwned'\ntR."] * 3)}),
        "the first is x.parquet row 0 .It is something else, not one of JPEG",
    ),
    "several": (
        lambda p: write(p, {"a": structs(PICTURES[:3]), "b": structs(PICTURES[:3])}),
        "has several columns of bytes .'a', 'b'.: name that of images 'image'",
    ),
    "twice": (
        lambda p: pq.write_table(pa.table([structs(PICTURES[:3])] * 2, ["image", "image"]), p),
        "has two columns named 'image': keep one",
    ),
    "label twice": (
        lambda p: pq.write_table(
            pa.table(
                [structs(PICTURES[:3]), pa.array([1, 2, 3]), pa.array([1, 2, 3])],
                ["image", "label", "label"],
            ),
            p,
        ),
        "has two columns named 'label': keep one",
    ),
    "dotted": (
        lambda p: write(p, {"image": structs(PICTURES[:3]), "image.bytes": pa.array([1, 2, 3])}),
        "is damaged or no Parquet file: two columns have one name",
    ),
    "two children": (
        lambda p: write(
            p,
            {
                "image": pa.StructArray.from_arrays(
                    [pa.array(PICTURES[:3]), pa.array(PICTURES[:3])], ["bytes", "bytes"]
                )
            },
        ),
        "no column of images",
    ),
    "too many classes": (
        lambda p: labelled(p, [f"a {i}" for i in range(40)]),
        "'label' of .* has more than 30 values, too many for classes",
    ),
    "DELTA_BYTE_ARRAY": (
        lambda p: write(
            p, use_dictionary=False, column_encoding={"image.bytes": "DELTA_BYTE_ARRAY"}
        ),
        "is packed with DELTA_BYTE_ARRAY, which may unpack to any size",
    ),
    "a packed bomb": (
        lambda p: write(p, {"image": HUGE}, compression="zstd", use_dictionary=False),
        "would unpack [0-9,]+ bytes to 10,4[0-9,]+: save it with",
    ),
    "a packed dictionary": (
        lambda p: write(
            p, {"image": HUGE[:1].take(pa.array([0] * 9))}, compression="gzip", use_dictionary=True
        ),
        "would unpack [0-9,]+ bytes to [0-9,]+: save it with",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path, monkeypatch, name):
    make, says = HOSTILE[name]
    make(tmp_path / "x.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parquet, "MAX_CLASSES", 30)
    monkeypatch.setattr(parquet, "_FREE", 4 << 20)
    start = time.perf_counter()
    with pytest.raises(DataError, match=says) as error:
        read_parquet(tmp_path / "x.parquet")
    assert time.perf_counter() - start < 2
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("limit", "above", "says"),
    [
        ("MAX_ROWS", 10, "has 10 rows: the limit is 9"),
        ("MAX_GROUP", 4000, "a row group of .* takes more than 0 GiB"),
        ("MAX_PAGE", 4000, "would unpack [0-9,]+ bytes to 2,[0-9]+: save it with smaller"),
    ],
)
def test_every_limit_is_held(tmp_path, monkeypatch, limit, above, says):
    path = write(tmp_path / "x.parquet", compression="none")  # 10 images of some 250 bytes
    monkeypatch.setattr(parquet, limit, above)
    assert len(read_parquet(path).x) == 10
    monkeypatch.setattr(parquet, limit, 9)
    with pytest.raises(DataError, match=says):
        read_parquet(path, 9)


def test_bad_rows_are_named_with_their_reasons(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MAX_FILE", 10**6)
    bomb = io.BytesIO()
    Image.new("1", (8000, 8000)).save(bomb, "PNG")
    contents = {
        3: (None, "It is null: the row holds no image."),
        5: (b"", "The file is empty."),
        6: (b"<html>", "It is a web page, not one of "),
        8: (PICTURES[8][:-40], "The file is damaged: "),
        9: (bomb.getvalue(), "It has more than 50 million pixels or 16384 a side."),
        11: (b"\x89PNG" + bytes(decode.MAX_FILE), "It is larger than 1 MB."),
        17: (b"cos\nsystem\n(S'true'\ntR.", "It is something else, not one of "),
    }
    rows = [contents[i][0] if i in contents else PICTURES[i] for i in range(20)]
    for name in ("train", "validation"):
        options = {"row_group_size": 4, "compression": "none"}
        write(tmp_path / "d" / f"{name}.parquet", {"image": structs(rows)}, **options)
    found = read_parquet(tmp_path / "d")
    assert [bad.path for bad in found.bad] == [
        f"{name}.parquet row {i}" for name in ("train", "validation") for i in contents
    ]
    for bad, (_, reason) in zip(found.bad, [*contents.values()] * 2, strict=True):
        assert bad.reason.startswith(reason)
    assert len(found.x) == 26


def test_lying_about_labels_is_no_crash(tmp_path):
    names = ["\ud800", "\x1b[2J", "x" * 10**5]
    text = json.dumps({"info": {"features": {"label": classes(*names)}}})
    path = labelled(tmp_path / "x.parquet", [0, 1, 2, 2], {"huggingface": text})
    info = Parquet(path=str(path)).load().info
    assert info.classes == ("?", "\x1b[2J", "x" * 199 + "…")
    assert type(info).model_validate_json(info.model_dump_json()) == info


def test_files_of_two_data_sets(tmp_path):
    labelled(tmp_path / "d" / "a.parquet", [0, 1])
    for i, other in enumerate(
        (
            lambda p: write(p),
            lambda p: labelled(p, [0, 1], declared(label=classes("a", "b"))),
            lambda p: write(p, {"img": structs(PICTURES[:2]), "label": pa.array([0, 1])}),
        )
    ):
        other(tmp_path / "d" / "b.parquet")
        with pytest.raises(DataError, match="has other columns or classes than a.parquet"):
            read_parquet(tmp_path / "d", 8 + i)
    labelled(tmp_path / "d" / "b.parquet", ["x", "y"])
    with pytest.raises(DataError, match="'label' is text in some files beside .*a.parquet and num"):
        read_parquet(tmp_path / "d")


def test_a_file_beside_the_splits(tmp_path):
    for name in ("train", "test", "extra"):
        write(tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match="and 'extra.parquet' beside them: move it away"):
        read_parquet(tmp_path)


def test_damage_is_a_sentence_or_a_bad_row(tmp_path):
    """Flipped and missing bytes anywhere, and most of all in the footer."""
    dice = random.Random(0)
    refused = 0
    for trial in range(160):
        path = labelled(
            tmp_path / f"{trial}.parquet",
            [i % 3 for i in range(12)],
            declared(label=classes("a", "b", "c")),
            compression=("none", "snappy", "zstd")[trial % 3],
            use_dictionary=trial % 2 == 0,
            data_page_version=("1.0", "2.0")[trial // 4 % 2],
            row_group_size=5,
        )
        data = bytearray(path.read_bytes())
        start = 0 if trial % 4 else len(data) - 1500
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(start, len(data))] ^= 1 << dice.randrange(8)
        if trial % 9 == 0:
            del data[dice.randrange(len(data)) :]
        path.write_bytes(bytes(data))
        refused += 1
        with suppress(DataError):
            found = read_parquet(path, 8)
            assert len(found.x) + len(found.bad) == 12
            refused -= 1
    assert 40 < refused < 160


@contextmanager
def allocated():
    """How much memory pyarrow has at most, in bytes, as a list."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    most = []
    try:
        yield most
    finally:
        most.append(pool.max_memory())
        pa.set_memory_pool(before)


def test_a_large_row_group_is_read_page_by_page(tmp_path):
    content = [picture(i, 60, 60, "BMP") for i in range(8)]  # some 11 kB each
    columns = {"image": structs([content[i % 8] for i in range(3000)])}
    options = {"use_dictionary": False, "compression": "none", "write_batch_size": 32}
    path = write(tmp_path / "x.parquet", columns, data_page_size=1 << 20, **options)
    assert path.stat().st_size > 30 << 20
    with allocated() as most:
        assert len(read_parquet(path, 8).x) == 3000
    assert most[0] < 8 << 20


def test_a_large_dictionary_is_not_multiplied(tmp_path):
    """120 rows that all name one entry of 2 MB: all at once, they would take 240 MB."""
    large = pa.array([b"x" * (2 << 20), PICTURES[0]]).take(pa.array([0] * 120 + [1] * 2))
    path = write(tmp_path / "x.parquet", {"image": large}, dictionary_pagesize_limit=4 << 20)
    assert path.stat().st_size < 4 << 20
    with allocated() as most:
        assert len(read_parquet(path).bad) == 120
    assert most[0] < 150 << 20


def test_without_pyarrow(tmp_path, monkeypatch):
    write(tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"not installed: pip install 'ornstein\[parquet\]'$"):
        recognise(str(tmp_path / "x.parquet")).load()


def test_no_permission_is_said(tmp_path, monkeypatch):
    write(tmp_path / "x.parquet")

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pq, "ParquetFile", refused)
    with pytest.raises(DataError, match="may not be read: permission denied"):
        read_parquet(tmp_path / "x.parquet")


# As a source


def test_as_a_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labelled(tmp_path / "birds.parquet", [0, 1] * 10, declared(label=classes("a", "b")))
    data = Parquet(path="birds.parquet", size=4, channels=1).load()
    assert (data.info.name, data.info.kind, data.info.shape) == ("birds", "image", (1, 4, 4))
    assert (data.info.range, data.info.bins, data.info.held_out) == ((0.0, 255.0), 256, 2)
    assert data.info.classes == ("a", "b")
    assert data.names[3] == "birds.parquet row 3"
    assert data.common == (((8, 8), 20),)


def test_paths_are_recognised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "birds.parquet")
    write(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    (tmp_path / "hub" / "preview.png").write_bytes(PICTURES[0])
    write(tmp_path / "photos" / "notes.parquet")
    for i in range(3):
        (tmp_path / "photos" / f"{i}.png").write_bytes(PICTURES[i])
    assert recognise("birds.parquet") == Parquet(path=str(tmp_path / "birds.parquet"))
    assert recognise(".") == Folder(path=str(tmp_path))  # four images below it
    assert recognise("hub") == Parquet(path=str(tmp_path / "hub"))
    assert recognise("hub/data") == Parquet(path=str(tmp_path / "hub" / "data"))
    assert recognise("photos") == Folder(path=str(tmp_path / "photos"))
    with pytest.raises(DataError, match="did you mean '.*birds.parquet'"):
        recognise("bird.parquet")


# Real data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "train", "mean", "std", "first"),
    [
        ("mnist", (1, 28, 28), 60_000, 0.1307, 0.3081, "0"),
        ("cifar10-jpeg", (3, 32, 32), 50_000, 0.4733, 0.2504, "airplane"),
    ],
)
def test_real_data(name, shape, train, mean, std, first):
    if not (SHARED / name).is_dir():
        pytest.skip(f"there is no data in {SHARED / name}")
    start = time.perf_counter()
    data = recognise(str(SHARED / name)).load()
    assert time.perf_counter() - start < 120
    assert (data.info.shape, data.info.count) == (shape, train + 10_000)
    assert (len(data.train), len(data.held_out), data.bad) == (train, 10_000, ())
    assert data.info.mean / 255 == pytest.approx(mean, abs=2e-4)
    assert data.info.std / 255 == pytest.approx(std, abs=2e-4)
    assert len(data.info.classes) == 10
    assert data.info.classes[0] == first
    assert np.bincount(data.label[data.held_out]).sum() == 10_000
    start = time.perf_counter()
    again = recognise(str(SHARED / name)).load()
    assert time.perf_counter() - start < 5
    assert again.info == data.info
