"""Values of a Parquet column, found alone, are those that pyarrow reads; and damage is told."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ornstein.data import columns
from ornstein.data.columns import Part, _hybrid, unpacked, values
from ornstein.data.pages import groups

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def read(path, column="image.bytes", level=2):
    """All values of a column: their bytes, or None."""
    size, found = path.stat().st_size, []
    with path.open("rb", buffering=0) as raw:
        for group in groups(raw, size):
            for part, start, length in values(raw, size, group.chunks[column], level):
                raw.seek(part.start)
                body = unpacked(raw.read(part.packed), part)
                assert len(body) == part.unpacked
                for at, count in zip(start.tolist(), length.tolist(), strict=True):
                    assert count < 0 or at + count <= len(body)
                    found.append(None if count < 0 else body[at : at + count])
    return found


def contents(count, seed=0, largest=3000):
    """Images' bytes, as they are: some twice, some null, one empty."""
    rng = np.random.default_rng(seed)
    found = [rng.bytes(int(rng.integers(1, largest))) for _ in range(count)]
    for i in range(3, count, 7):
        found[i] = found[i - 2]
    return found


CODECS = ("none", "snappy", "gzip", "zstd", "lz4", "brotli")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_values_are_those_that_were_written(tmp_path, codec, version, dictionary):
    images = contents(2500)
    for i in range(0, 2500, 11):
        images[i] = None
    images[1] = b""
    table = pa.table({"image": [None if x is None else {"bytes": x, "path": None} for x in images]})
    pq.write_table(
        table,
        tmp_path / "x",
        compression=codec,
        data_page_version=version,
        use_dictionary=dictionary,
        row_group_size=1100,
        data_page_size=30_000,
        dictionary_pagesize_limit=200_000,
        write_batch_size=64,
    )
    assert read(tmp_path / "x") == images


def test_values_that_cannot_be_null_have_no_levels(tmp_path):
    images = contents(50)
    schema = pa.schema([pa.field("image", pa.binary(), nullable=False)])
    for version, codec in itertools.product(("1.0", "2.0"), ("none", "snappy")):
        table = pa.table({"image": images}, schema=schema)
        pq.write_table(table, tmp_path / "x", data_page_version=version, compression=codec)
        assert read(tmp_path / "x", "image", 0) == images


def test_what_is_not_packed_is_found_without_reading_it(tmp_path):
    """Of 20 MB of values less than two are read: lengths and levels only."""
    images = [os.urandom(1 << 18) for _ in range(80)]
    pq.write_table(
        pa.table({"image": pa.array(images, pa.binary())}),
        tmp_path / "x",
        compression="none",
        use_dictionary=False,
    )
    taken = []

    class Counted:
        def __init__(self, file):
            self.file, self.seek = file, file.seek

        def read(self, count=-1):
            body = self.file.read(count)
            taken.append(len(body))
            return body

    size = (tmp_path / "x").stat().st_size
    with (tmp_path / "x").open("rb", buffering=0) as file:
        raw = Counted(file)
        [group] = groups(raw, size)
        for part, start, lengths in values(raw, size, group.chunks["image"], 1):
            for at, count in zip(start.tolist(), lengths.tolist(), strict=True):
                file.seek(part.start + at)
                assert file.read(count) == images.pop(0)
    assert not images
    assert sum(taken) < 2 << 20


@pytest.mark.parametrize("encoding", ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])
def test_other_encodings_are_refused(tmp_path, encoding):
    pq.write_table(
        pa.table({"image": [b"a", b"b"]}),
        tmp_path / "x",
        use_dictionary=False,
        column_encoding={"image": encoding},
    )
    with pytest.raises(ValueError, match="encoding that is not known"):
        read(tmp_path / "x", "image", 1)


@given(
    st.integers(0, 20).flatmap(
        lambda w: st.tuples(st.just(w), st.lists(st.integers(0, 2**w - 1), max_size=70))
    ),
    st.booleans(),
)
def test_numbers_of_any_width_in_runs_and_groups(given_numbers, as_runs):
    width, numbers = given_numbers
    data = b""
    if as_runs:
        for value, run in itertools.groupby(numbers):
            data += varint(len(list(run)) << 1) + value.to_bytes((width + 7) // 8, "little")
    elif numbers:
        padded = numbers + [0] * (-len(numbers) % 8)
        packed = sum(value << width * i for i, value in enumerate(padded))
        count = len(padded) // 8
        data = varint(count << 1 | 1) + packed.to_bytes(count * width, "little")
    assert _hybrid(data, width, len(numbers)).tolist() == numbers


def varint(value):
    found = b""
    while value >= 128:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


@given(st.binary(max_size=40), st.integers(0, 33), st.integers(0, 200))
def test_no_bytes_do_more_than_be_refused(data, width, count):
    with suppress(ValueError):
        assert len(_hybrid(data, width, count)) == count


def test_a_page_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "MAX_PAGE", 2 << 20)
    with pytest.raises(ValueError, match="cannot be unpacked|another size"):
        unpacked(b"nonsense", Part(0, 8, 1000, 1))
    with pytest.raises(ValueError, match="not known"):
        unpacked(b"nonsense", Part(0, 8, 1000, 5))
    image = b"x" * (columns.MAX_PAGE // 2)
    table = pa.table({"image": pa.array([image, image + b"y"], pa.binary())})
    pq.write_table(table, tmp_path / "x", compression="snappy", use_dictionary=False)
    with pytest.raises(ValueError, match="more than 2 MiB"):
        read(tmp_path / "x", "image", 1)


@pytest.mark.parametrize("codec", ["none", "snappy"])
def test_flipped_bits_end_in_a_sentence_or_in_values(tmp_path, codec):
    """Each byte of the column, one after the other, to something else."""
    table = pa.table({"image": pa.array([b"abc", None, b"defg" * 9, b"abc"] * 3, pa.binary())})
    pq.write_table(table, tmp_path / "x", compression=codec, write_statistics=False)
    whole = (tmp_path / "x").read_bytes()
    with (tmp_path / "x").open("rb") as raw:
        [group] = groups(raw, len(whole))
    chunk, told = group.chunks["image"], set()
    for at in range(chunk.start, chunk.stop):
        for change in (0x01, 0x40, 0xFF):
            damaged = bytearray(whole)
            damaged[at] ^= change
            (tmp_path / "y").write_bytes(damaged)
            try:
                with (tmp_path / "y").open("rb", buffering=0) as raw:
                    for part, start, size in values(raw, len(whole), chunk, 1):
                        assert len(start) == len(size) < 10**7
                        assert (start + size)[size >= 0].max(initial=0) <= part.unpacked
            except ValueError as error:
                told.add(str(error))
    assert told
