"""What lies where in a tar file, by its headers; nothing is unpacked.

    header  512 bytes: name (100), ..., size (12, at 124), ..., checksum (8, at 148), kind (at 156),
            ..., "ustar" (at 257), ..., the beginning of a long name (155, at 345)
    body    so many bytes, filled up to a multiple of 512
    ...     and so on, up to 512 zeros

Sizes are octal, or bytes after 0x80. A header of kind x (PAX) has records `LENGTH KEY=VALUE` as
its body, which say more of the next member, and one of kind L (GNU) the next member's name.
Python's `tarfile` reads the same; it keeps every member in memory and takes five times as long.
The format: POSIX.1-2017, pax; https://www.gnu.org/software/tar/manual (Standard).

These are files from strangers. A checksum that is wrong, a size beyond the end of the file, or an
end without zeros, ends the reading there with a ValueError: what came before is sound. What is a
link, or a sparse file, has no body of its own, and is told apart so that nobody takes it for data.

The samples of WebDataset's layout are members that follow each other and have one key, their
name up to the first dot after the last slash (https://github.com/webdataset/webdataset):

    KEY.jpg, .png, .webp, ...   the image; of several the first
    KEY.cls                     its class, a whole number
    KEY.json                    an object, whose "label" is its class if there is no .cls
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from typing import IO, Literal, NamedTuple

from ornstein.data.decode import MAX_FILE, READABLE, too_big
from ornstein.data.images import READ, SUFFIXES, shown
from ornstein.data.info import BadFile
from ornstein.errors import clip

BLOCK = 512

MAX_RECORDS = 1 << 20
"""The most bytes of a long name, of a PAX header's records, and of a sample's .json."""

_ABOUT = b"xXgLK"  # kinds of headers that say something of other members
_ZEROS = bytes(BLOCK)
_FAR = 1 << 16  # bytes from one read to the next that are worth reading, too
_AHEAD = 1 << 20  # bytes that are read at once where reads are near each other
_LABEL = 32  # bytes of a .cls
_TEXT = 200  # characters of a label
_IMAGES = frozenset(suffix[1:].encode() for suffix in READ)
_OTHERS = frozenset(suffix[1:].encode() for suffix in SUFFIXES - READ)


class Window:
    """An open file of `size` bytes, without a buffer of its own, read here and there: what lies
    close together is read at once, and of large bodies little is read."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.size = size
        self._file = file
        self._start, self._held, self._last = 0, b"", 0

    def at(self, start: int, count: int) -> bytes:
        """The bytes from `start` on. ValueError: the file ends before that."""
        offset, near = start - self._start, 0 <= start - self._last <= _FAR
        self._last = start + count
        if offset >= 0 and offset + count <= len(self._held):
            return self._held[offset : offset + count]
        if not 0 <= start <= start + count <= self.size:
            raise ValueError("it is cut short")
        self._file.seek(start)
        self._held = self._file.read(max(count, _AHEAD if near else 8 * BLOCK))
        self._start = start
        if len(self._held) < count:
            raise ValueError("it is cut short")
        return self._held[:count]


class Member(NamedTuple):
    """A member: its body takes `size` bytes from `start` on. kind: what it is; only a file is
    data."""

    name: bytes
    kind: Literal["file", "link", "sparse", "other"]
    start: int
    size: int


def members(file: Window) -> Iterator[Member]:
    """The members of a tar file, in order. ValueError: it is none, or it is damaged from here."""
    place = 0
    name, size, sparse = b"", -1, False  # what records say of the next member
    while place < file.size:
        header = file.at(place, BLOCK)
        if header == _ZEROS:
            return
        if not _sound(header):
            raise ValueError("the checksum of a header is wrong")
        place += BLOCK
        kind, told = header[156:157], _number(header[124:136])
        if kind in _ABOUT:
            if told > MAX_RECORDS:
                raise ValueError("a header is too long")
            body = file.at(place, told)
            if kind == b"L":
                name = body.partition(b"\0")[0]
            elif kind in b"xX":
                records = _records(body)
                name = records.get(b"path", name)
                size = int(records.get(b"size", b"-1"))
                sparse = any(key.startswith(b"GNU.sparse") for key in records)
        else:
            told = size if size >= 0 else told
            own = name or _name(header)
            what: Literal["file", "link", "sparse", "other"] = "other"
            if kind == b"\0" and own.endswith(b"/"):
                told = 0  # a folder, as old programs wrote them
            elif kind in b"0\0007":
                what = "sparse" if sparse else "file"
            elif kind in b"123456":
                what = "link" if kind in b"12" else "other"
                told = 0  # there is no body, whatever they say
            elif kind == b"S":
                what, more = "sparse", header[482]
                while more:  # maps of its holes, before the body
                    more = file.at(place, BLOCK)[504]
                    place += BLOCK
            if place + told > file.size:
                raise ValueError("a member reaches beyond the end of the file")
            yield Member(own, what, place, told)
            name, size, sparse = b"", -1, False
        place += -(-told // BLOCK) * BLOCK
    raise ValueError("it ends without a block of zeros, as if it were cut short")


def _sound(header: bytes) -> bool:
    """Whether the checksum is right: the sum of all bytes, its own place filled with spaces."""
    told = _number(header[148:156])
    # The low half of Adler-32 is the sum and one, modulo 65521, and twenty times as quick.
    total = (zlib.adler32(header) & 0xFFFF) - 1 - sum(header[148:156]) + 8 * 32
    if (total - told) % 65521 == 0:
        return True
    negative = sum(byte > 127 for byte in header[:148] + header[156:])  # as some old programs add
    return (total - 256 * negative - told) % 65521 == 0


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if digits and not digits.isdigit():
        raise ValueError("a number in a header is none")
    return int(digits or b"0", 8)


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    before = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return before + b"/" + name if before else name


def _records(body: bytes) -> dict[bytes, bytes]:
    """What a PAX header says."""
    found = {}
    while body:
        digits = body[:8].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = body[len(digits) + 1 : length].partition(b"=")
        if not equals or length > len(body) or not value.endswith(b"\n"):
            raise ValueError("the records of a header are damaged")
        found[key] = value[:-1]
        body = body[length:]
    if not found.get(b"size", b"0").isdigit() or len(found.get(b"size", b"")) > 20:
        raise ValueError("a number in a header is none")
    return found


class Sample(NamedTuple):
    """An image, `size` bytes from `start` on, and its label, None where there is none."""

    name: bytes
    start: int
    size: int
    label: int | str | None


def samples(file: Window, labelled: bool = True) -> Iterator[Sample | BadFile | None]:
    """The samples of a tar file, what is left out, and None for each member that is no data.

    labelled: whether labels are read. ValueError: as `members`; the sample before is not lost.
    """
    key, label = b"", Label()
    image: Member | BadFile | None = None

    def done() -> Iterator[Sample | BadFile | None]:
        if isinstance(image, BadFile):
            yield image
        elif image is not None and label.why:
            yield BadFile(_shown(image.name), label.why)
        elif image is not None:
            yield Sample(image.name, image.start, image.size, label.value)
        elif label.read:
            yield None

    found = members(file)
    while True:
        try:
            member = next(found, None)
        except ValueError:
            yield from done()
            raise
        if member is None:
            yield from done()
            return
        slash = member.name.rfind(b"/") + 1
        dot = member.name.find(b".", slash)
        suffix = member.name[dot + 1 :].lower() if dot > slash else b""
        if dot > slash and member.name[:dot] != key:
            yield from done()
            key, image, label = member.name[:dot], None, Label()
        if suffix in (b"cls", b"json") and member.kind == "file":
            if labelled and (suffix == b"cls" or not label.certain):
                label = _label(file, member, suffix)
        elif image is None and (suffix in _IMAGES or suffix in _OTHERS):
            image = _bad(member, suffix) or member
        elif member.kind != "other" or not member.name.endswith(b"/"):
            yield None


class Label(NamedTuple):
    """value: None for none. why: it cannot be used. certain: by a .cls. read: if one was there."""

    value: int | str | None = None
    why: str = ""
    certain: bool = False
    read: bool = False


def _label(file: Window, member: Member, suffix: bytes) -> Label:
    if suffix == b"cls":
        digits = file.at(member.start, min(member.size, _LABEL)).strip()
        if member.size > _LABEL or not digits.isdigit() or len(digits) > 9:
            return Label(None, "Its .cls is no whole number of at most 9 digits.", True, True)
        return Label(int(digits), "", True, True)
    if member.size > MAX_RECORDS:
        return Label(None, f"Its .json is larger than {MAX_RECORDS >> 20} MiB.", False, True)
    try:
        about = json.loads(file.at(member.start, member.size))
    except (ValueError, RecursionError):
        return Label(None, "Its .json cannot be read.", False, True)
    value = about.get("label") if isinstance(about, dict) else None
    if isinstance(value, str):
        return Label(clip(value.encode("utf-8", "replace").decode(), _TEXT), "", False, True)
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9
    return Label(value if whole else None, "", False, True)


def _bad(member: Member, suffix: bytes) -> BadFile | None:
    """Why an image by its name cannot be one."""
    why = ""
    if member.kind != "file":
        words = {"link": "a link", "sparse": "a sparse file"}
        why = f"It is {words.get(member.kind, 'no ordinary file')}, which holds no data."
    elif suffix in _OTHERS:
        why = f"It is a .{suffix.decode()}, not one of {READABLE}."
    elif member.size == 0:
        why = "The file is empty."
    elif member.size > MAX_FILE:
        why = too_big()
    return BadFile(_shown(member.name), why) if why else None


def _shown(name: bytes) -> str:
    return shown(os.fsdecode(name))
