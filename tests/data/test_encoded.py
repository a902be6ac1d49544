"""Shards give back what was written, and refuse what is stale or damaged by name."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest
import safetensors.numpy

from ornstein import fsops
from ornstein.data import encoded
from ornstein.data.encoded import differences, read, write
from ornstein.errors import DataError, StorageError

ABOUT = {"codec": "a1b2", "transform": {"range": (0, 255), "to": None}, "data": "ffee"}


def parts(x, sizes):
    """x in parts of these sizes, over and over."""
    start, turn = 0, 0
    while start < len(x):
        yield x[start : start + sizes[turn % len(sizes)]]
        start += sizes[turn % len(sizes)]
        turn += 1


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path):
    x = np.arange(11 * 6, dtype=np.float32).reshape(11, 2, 3)
    write(tmp_path / "codes", ABOUT, parts(x, (1, 4)), 3, [f"a/{n}.png" for n in range(11)])
    return tmp_path / "codes"


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i8", "i4", "u1", "?"])
@pytest.mark.parametrize("each", [1, 4, 100, None])
def test_what_was_written_is_read(tmp_path, dtype, each):
    x = np.random.default_rng(0).integers(0, 2, (10, 3)).astype(dtype)
    write(tmp_path / "new" / "codes", ABOUT, parts(x, (3, 0, 5)), each)
    found, about = read(tmp_path / "new" / "codes", ABOUT)
    assert about == json.loads(json.dumps(ABOUT))
    assert (found.shape, found.dtype, len(found)) == (x.shape, x.dtype, 10)
    np.testing.assert_array_equal(found[:], x)
    assert list(found.names()) == []
    files = sorted((tmp_path / "new" / "codes").glob("*.safetensors"))
    assert len(files) == {1: 10, 4: 3, 100: 1, None: 1}[each]
    # Another reader of safetensors sees the same.
    np.testing.assert_array_equal(
        np.concatenate([safetensors.numpy.load(file.read_bytes())["x"] for file in files]), x
    )
    assert names_in(tmp_path / "new") == ["codes"]  # nothing is left beside


def test_rows_are_those_of_an_array(folder):
    x = np.arange(66, dtype=np.float32).reshape(11, 2, 3)
    found, _ = read(folder)
    for rows in (
        slice(None),
        slice(2, 9, 3),
        slice(-3, None),
        slice(5, 5),
        np.array([10, 0, 0, 7, -1, 3]),
        np.array([], np.int64),
    ):
        np.testing.assert_array_equal(found[rows], x[rows])
    for beyond in ([11], [-12]):
        with pytest.raises(IndexError, match="below 11"):
            found[np.array(beyond)]
    found[:][:] = 0  # a copy: what a caller does to it stays with the caller
    np.testing.assert_array_equal(found[:], x)
    assert list(found.names()) == [f"a/{n}.png" for n in range(11)]


def test_rows_of_many_shards_need_few_handles(folder, monkeypatch):
    monkeypatch.setattr(encoded, "OPEN", 1)
    x = np.arange(66, dtype=np.float32).reshape(11, 2, 3)
    rows = np.array([0, 10, 1, 9, 2])
    np.testing.assert_array_equal(read(folder)[0][rows], x[rows])


def test_another_codec_is_refused_by_name(folder):
    with pytest.raises(DataError, match=r"codes is stale: .* codec a1b2, not c3d4; remove"):
        read(folder, ABOUT | {"codec": "c3d4"})
    with pytest.raises(DataError, match=r"transform\.range \[0, 255\], not \[0, 1\]"):
        read(folder, ABOUT | {"transform": {"range": (0, 1), "to": None}})
    assert differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}, "d": 4}) == [
        "b.c 2, not 3",
        "d null, not 4",
    ]


@pytest.mark.parametrize("at", [3, 20, -1])
def test_a_flipped_bit_names_its_shard(folder, at):
    path = folder / "shard-00003.safetensors"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"shard-00003\.safetensors is damaged"):
        read(folder)


def test_missing_short_and_foreign_files_are_named(folder):
    last = folder / "shard-00004.safetensors"
    whole = last.read_bytes()
    last.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"shard-00004\.safetensors is damaged"):
        read(folder)
    last.unlink()
    with pytest.raises(DataError, match=r"shard-00004\.safetensors is missing"):
        read(folder)
    last.write_bytes(whole)
    (folder / "names.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=r"names\.jsonl is damaged"):
        read(folder)
    with pytest.raises(DataError, match=r"holds no codes: it has no manifest\.json"):
        read(folder.parent)


def rehashed(folder, change):
    """Change the manifest, and make its own hash fit: a stranger's work, not damage."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    del manifest["digest"]
    change(manifest)
    path.write_text(json.dumps(manifest | {"digest": encoded._digest(manifest)}))


def test_a_damaged_manifest_is_refused(folder):
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"rows": 3', b'"rows": 2', 1))
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        read(folder)


def test_a_manifest_that_lies_is_refused(folder):
    rehashed(folder, lambda m: m.update(shape=[3, 2]))
    with pytest.raises(DataError, match=r"shard-00001\.safetensors does not hold what"):
        read(folder)
    rehashed(folder, lambda m: m.update(shape=[2, -3]))
    with pytest.raises(DataError, match="damaged"):
        read(folder)
    rehashed(folder, lambda m: m.update(shape=[2, 3], format=2))
    with pytest.raises(DataError, match="newer version"):
        read(folder)


def test_a_header_that_lies_is_refused(folder):
    """Its hash is right, but the header asks for more numbers than the file has."""
    path = folder / "shard-00001.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [3, 2, 3], "data_offsets": [0, 72]}})
    for length in (len(header), 1 << 40):
        content = length.to_bytes(8, "little") + header.encode() + bytes(68)
        path.write_bytes(content)
        rehashed(folder, lambda m, c=content: m["shards"][0].update(encoded._entry(c)))
        with pytest.raises(DataError, match="does not hold what"):
            read(folder)


def test_nothing_is_left_when_making_fails(tmp_path):
    def failing():
        yield np.zeros((4, 2), np.float32)
        raise DataError("no more")

    with pytest.raises(DataError, match="no more"):
        write(tmp_path / "codes", ABOUT, failing(), 2)
    with pytest.raises(DataError, match="no samples"):
        write(tmp_path / "codes", ABOUT, [])
    with pytest.raises(ValueError, match="the first had"):
        write(tmp_path / "codes", ABOUT, [np.zeros((1, 2)), np.zeros((1, 3))])
    with pytest.raises(ValueError, match="other names than the 2 rows"):
        write(tmp_path / "codes", ABOUT, [np.zeros((2, 2))], names=["a"])
    assert names_in(tmp_path) == []


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(path, content, told=None, option="--runs"):
        with fsops.explained(told or path, option):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(fsops, "write", full)
    with pytest.raises(StorageError, match="codes: No space left on device; free some space"):
        write(tmp_path / "codes", ABOUT, [np.zeros((2, 2))])
    assert names_in(tmp_path) == []


def test_of_two_writers_the_first_stays(folder):
    other = np.zeros((5, 2), np.float32)
    write(folder, ABOUT, [other])
    assert read(folder, ABOUT)[0].shape == (11, 2, 3)
    with pytest.raises(StorageError, match="cannot write"):
        write(folder, ABOUT | {"data": "else"}, [other])
    assert names_in(folder.parent) == ["codes"]


def test_what_a_kill_left_long_ago_goes(tmp_path):
    old, new = tmp_path / ".codes.1.tmp", tmp_path / ".codes.2.tmp"
    for left in (old, new):
        left.mkdir()
        (left / "shard-00001.safetensors").write_bytes(b"half")
    long_ago = time.time() - 2 * encoded.OLD
    os.utime(old, (long_ago, long_ago))
    write(tmp_path / "codes", ABOUT, [np.zeros((2, 2))])
    assert names_in(tmp_path) == [".codes.2.tmp", "codes"]


def test_memory_holds_a_shard_not_the_data(tmp_path):
    """Of 64 MiB of rows, never more than a few shards of 1 MiB are in memory."""
    import tracemalloc

    part = np.zeros((64, 1024), np.float32)
    tracemalloc.start()
    write(tmp_path / "codes", ABOUT, (part + n for n in range(256)), 256)
    x, _ = read(tmp_path / "codes", ABOUT)
    assert sum(float(x[n : n + 64].mean()) for n in range(0, len(x), 64)) == sum(range(256))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 8 << 20
