"""Tar files are read as Python's own reader does, and damage ends the reading with a sentence."""

from __future__ import annotations

import io
import tarfile
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ornstein.data.info import BadFile
from ornstein.data.tar import Sample, Window, members, samples
from tests.data import tars


def opened(data):
    return Window(io.BytesIO(data), len(data))


def archive(entries, kind="pax", **words):
    """The bytes of a tar file; entries: pairs of a TarInfo or a name, and bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tars.FORMATS[kind], **words) as file:
        for about, body in entries:
            about = tarfile.TarInfo(about) if isinstance(about, str) else about
            about.size = len(body)
            file.addfile(about, io.BytesIO(body))
    return stream.getvalue()


def seen_by_python(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        return [(m.name, m.size, m.offset_data) for m in file if m.isreg()]


def seen_by_us(data):
    found = [m for m in members(opened(data)) if m.kind == "file"]
    return [(m.name.decode(), m.size, m.start) for m in found]


NAMES = [
    "a.jpg",
    "folder/b.tar.png",
    "x" * 100,
    f"{'d' * 90}/{'e' * 60}.png",  # longer than a header has room for
    f"{'long/' * 60}name.png",
    "Größe/写真.jpg",
]


@pytest.mark.parametrize("kind", tars.FORMATS)
def test_members_are_those_that_python_sees(kind):
    entries = [(name, bytes([i]) * (300 * i)) for i, name in enumerate(NAMES)]
    if kind == "ustar":  # which cannot say a name of 300 bytes
        entries = [e for e in entries if len(e[0]) < 256]
    data = archive(entries, kind)
    assert seen_by_us(data) == seen_by_python(data)
    assert [name for name, *_ in seen_by_us(data)] == [name for name, _ in entries]
    for (_, body), (_, size, start) in zip(entries, seen_by_us(data), strict=True):
        assert data[start : start + size] == body


word = st.text("ab.c/", min_size=1, max_size=12).filter(lambda s: s.strip("/."))


entry = st.tuples(word, st.binary(max_size=1500))


@given(st.lists(entry, max_size=6), st.sampled_from([*tars.FORMATS]))
def test_any_archive_is_read_as_python_reads_it(entries, kind):
    entries = [(name.strip("/"), body) for name, body in entries]
    data = archive(entries, kind)
    assert seen_by_us(data) == seen_by_python(data)


def special(name, kind, target=""):
    about = tarfile.TarInfo(name)
    about.type, about.linkname = kind, target
    return about


@pytest.mark.parametrize("kind", tars.FORMATS)
def test_links_folders_and_pipes_hold_no_data(kind):
    entries = [("first.png", b"1" * 700)]
    for name, what in (
        ("soft.png", tarfile.SYMTYPE),
        ("hard.png", tarfile.LNKTYPE),
        ("pipe.png", tarfile.FIFOTYPE),
        ("folder", tarfile.DIRTYPE),
    ):
        target = "first.png" if kind == "ustar" or name == "hard.png" else "t" * 150
        entries.append((special(name, what, target), b""))
    data = archive([*entries, ("last.png", b"2")], kind)
    assert [name for name, *_ in seen_by_us(data)] == ["first.png", "last.png"]
    told = {m.name.rstrip(b"/").decode(): m.kind for m in members(opened(data))}
    assert told["hard.png"] == "link"
    assert told["pipe.png"] == told["folder"] == "other"
    reasons = {b.path: b.reason for b in samples(opened(data)) if isinstance(b, BadFile)}
    assert reasons["hard.png"] == "It is a link, which holds no data."
    assert "no ordinary file" in reasons["pipe.png"]


def block(name, size, kind=b"0", magic=b"ustar\x0000", size_field=None, more=b""):
    """A header, made by hand."""
    field = size_field if size_field is not None else b"%011o\0" % size
    head = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + field + b"%011o\0" % 0
    head += b" " * 8 + kind + bytes(100) + magic + bytes(64) + bytes(16)
    head = (head + more).ljust(512, b"\0")[:512]
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def filled(body):
    return body + bytes(-len(body) % 512)


END = bytes(1024)


def test_sizes_may_be_binary():
    data = block(b"a.png", 0, size_field=b"\x80" + (600).to_bytes(11, "big")) + filled(b"x" * 600)
    data += block(b"b.png", 1) + filled(b"y") + END
    assert seen_by_us(data) == seen_by_python(data) == [("a.png", 600, 512), ("b.png", 1, 2048)]


def test_old_sparse_files_are_passed_over_with_their_maps():
    """One map in the header says that more follow, in blocks of their own."""
    holes = bytearray(block(b"s.png", 512, b"S", b"ustar  \0"))
    holes[482] = 1
    holes[148:156] = b"%06o\0 " % (sum(holes[:148]) + 8 * 32 + sum(holes[156:]))
    more = bytearray(512)
    more[504] = 1
    data = bytes(holes) + bytes(more) + bytes(512) + b"d" * 512 + block(b"b.png", 1) + filled(b"y")
    data += END
    found = list(members(opened(data)))
    assert [(m.name, m.kind) for m in found] == [(b"s.png", "sparse"), (b"b.png", "file")]
    assert found[1].start == 512 * 5


def test_pax_records_make_a_file_sparse_or_large():
    entry = tarfile.TarInfo("s.png")
    entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as file:
        file.addfile(entry)
    assert [m.kind for m in members(opened(stream.getvalue()))] == ["sparse"]
    records = b"15 size=000600\n"
    assert len(records) == 15
    data = block(b"p", len(records), b"x") + filled(records) + block(b"a.png", 0)
    data += filled(b"x" * 600) + END
    assert seen_by_us(data) == [("a.png", 600, 1536)]


def test_the_first_block_of_zeros_is_the_end():
    data = block(b"a.png", 1) + filled(b"x") + bytes(512) + block(b"b.png", 1) + filled(b"y")
    assert [name for name, *_ in seen_by_us(data)] == ["a.png"]
    assert seen_by_us(bytes(512)) == []


def test_checksums_of_signed_bytes_are_right_too():
    data = bytearray(block("é.png".encode("latin1"), 1) + filled(b"x") + END)
    signed = sum(b - 256 * (b > 127) for b in data[:148] + data[156:512]) + 8 * 32
    data[148:156] = b"%06o\0 " % signed
    assert [m.size for m in members(opened(bytes(data)))] == [1]


GOOD = block(b"a.png", 3) + filled(b"abc")
DAMAGE = {
    "no end": (GOOD, "without a block of zeros"),
    "cut padding": (GOOD + block(b"b.png", 900)[:512] + b"x" * 910, "without a block of zeros"),
    "cut header": (GOOD + block(b"b.png", 1)[:300], "cut short"),
    "cut body": (GOOD + block(b"b.png", 900) + b"x" * 500, "beyond the end"),
    "flipped": (GOOD + b"c" + block(b"b.png", 1)[1:], "checksum"),
    "no tar": (GOOD + b"\x1f\x8b\x08" * 300, "checksum|number"),
    "16 EiB": (GOOD + block(b"b.png", 0, size_field=b"\x80" + b"\xff" * 11), "beyond the end"),
    "negative": (GOOD + block(b"b.png", 0, size_field=b"\xff" * 12), "none"),
    "words": (GOOD + block(b"b.png", 0, size_field=b"12 34 56 78\0"), "none"),
    "nines": (GOOD + block(b"b.png", 0, size_field=b"00000000009\0"), "invalid literal"),
    "large records": (GOOD + block(b"p", 1 << 30, b"x"), "too long"),
    "long name": (GOOD + block(b"p", 1 << 21, b"L"), "too long"),
    "records": (GOOD + block(b"p", 9, b"x") + filled(b"99 path=x"), "damaged"),
    "records of nothing": (GOOD + block(b"p", 9, b"x") + filled(b"0 path=x\n"), "damaged"),
    "huge size": (
        GOOD + block(b"p", 33, b"x") + filled(b"33 size=" + b"9" * 24 + b"\n") + block(b"b.png", 1),
        "none",
    ),
    "endless maps": (
        GOOD + block(b"s", 0, b"S", b"ustar  \0", more=b"\1" * 255) + b"\1" * 512 * 9,
        "cut short",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_ends_the_reading_and_what_came_before_is_sound(name):
    data, says = DAMAGE[name]
    found, kept = members(opened(data)), samples(opened(data))
    assert next(found).name == b"a.png"
    assert next(kept) == Sample(b"a.png", 512, 3, None)
    for rest in (found, kept):
        with pytest.raises(ValueError, match=says):
            list(rest)


@given(st.integers(0, 3 * 512 * 8 - 1), st.integers(0, 3000))
def test_no_flipped_bit_and_no_cut_does_more(bit, cut):
    """What is found lies within the file, or the reading ends with a ValueError."""
    data = bytearray(archive([("a.png", b"x" * 400), ("b.png", b"y" * 700)], "ustar"))
    data[bit // 8] ^= 1 << bit % 8
    whole = bytes(data[: len(data) - cut])
    with suppress(ValueError):
        for member in members(opened(whole)):
            assert 0 < member.start <= member.start + member.size <= len(whole)


# --- samples ---------------------------------------------------------------------------------


def found_in(entries, **words):
    return list(samples(opened(archive(entries)), **words))


def labels(entries):
    return [(s.name.decode(), s.label) for s in found_in(entries) if isinstance(s, Sample)]


def test_members_of_one_key_are_a_sample():
    assert labels(
        [
            ("a/0.cls", b"2\n"),
            ("a/0.jpg", b"x"),
            ("a/1.png", b"x"),
            tars.with_json("a/1", "cat"),
            ("b/1.JPG", b"x"),
            ("b/2.webp", b"x"),
            ("b/2.cls", b" 7 "),
            tars.with_json("b/2", 3),
            tars.with_json("b/3", 3),
            ("b/3.cls", b"4"),
            ("b/3.gif", b"x"),
            tars.with_json("c", None),
            ("c.bmp", b"x"),
            tars.with_json("d", True),
            ("d.tiff", b"x"),
        ]
    ) == [
        ("a/0.jpg", 2),
        ("a/1.png", "cat"),
        ("b/1.JPG", None),
        ("b/2.webp", 7),
        ("b/3.gif", 4),
        ("c.bmp", None),
        ("d.tiff", None),
    ]


def test_other_members_are_counted():
    """A second image, a mask, words, what has no key, and labels of no image."""
    found = found_in(
        [
            *(("a.jpg", b"x"), ("a.png", b"x"), ("a.seg.png", b"x"), ("a.txt", b"x")),
            *(("README", b"x"), (".hidden.png", b"x"), ("b.cls", b"1"), ("b.txt", b"x")),
        ]
    )
    assert [s for s in found if s is not None] == [Sample(b"a.jpg", 512, 1, None)]
    assert found.count(None) == 7


def test_labels_that_are_not_asked_for_are_not_read():
    found = found_in([("a.cls", b"nonsense"), ("a.jpg", b"x")], labelled=False)
    assert [s.label for s in found if isinstance(s, Sample)] == [None]


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([("a.jpg", b"x"), ("a.cls", b"cat")], "no whole number"),
        ([("a.jpg", b"x"), ("a.cls", b"-1")], "no whole number"),
        ([("a.jpg", b"x"), ("a.cls", b"1" * 10)], "no whole number"),
        ([("a.jpg", b"x"), ("a.cls", b" " * 90)], "no whole number"),
        ([("a.jpg", b"x"), ("a.json", b"{")], "json cannot be read"),
        ([("a.jpg", b"x"), ("a.json", b"[" * 10**5)], "json cannot be read"),
        ([("a.jpg", b"x"), ("a.json", b" " * (2 << 20))], "larger than 1 MiB"),
        ([("a.jpg", b"")], "The file is empty."),
        ([("a.heic", b"x")], "a .heic, not one of JPEG"),
    ],
)
def test_what_cannot_be_used_is_named(entries, says):
    [bad] = [s for s in found_in(entries) if isinstance(s, BadFile)]
    assert bad.path == entries[0][0]
    assert says in bad.reason


def test_an_image_beyond_the_limit_is_left_out(monkeypatch):
    monkeypatch.setattr("ornstein.data.tar.MAX_FILE", 10)
    [bad] = found_in([("a.jpg", b"x" * 11)])
    assert bad.reason.startswith("It is larger than")
