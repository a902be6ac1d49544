"""Where in a Parquet file the values of a column of bytes lie, so that one can be read alone.

    page        levels values            of a chunk, see `ornstein.data.pages`; packed or not
    levels      which of its rows are null: numbers of a few bits, in the hybrid of runs and packed
                groups that the format calls RLE
    values      PLAIN: length (4 bytes, little-endian), bytes, length, bytes, ...
                RLE_DICTIONARY: numbers of values in the chunk's dictionary, a page of PLAIN values

Readers unpack a group of rows at a time, which may be all of a file. Here each page is walked
once, and what is kept of a value is its page, or its dictionary, and its place in what that unpacks
to. To read one again then takes one page, of a megabyte or so; of a page that is not packed, the
value's own bytes. The format: https://github.com/apache/parquet-format (README.md, Encodings.md,
Compression.md).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

import numpy as np

from ornstein.data.pages import Chunk, pages
from ornstein.data.tar import Window

MAX_PAGE = 256 << 20
"""What a page may unpack to, in bytes: so much is unpacked to read one value of it."""

_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
_PLAIN, _DICTIONARIES = 0, (2, 8)
_NONE = np.empty(0, np.int64)


class Part(NamedTuple):
    """Bytes of a file that are unpacked together: `packed` of them from `start` on, to `unpacked`.
    codec: by which rule, 0 for none."""

    start: int
    packed: int
    unpacked: int
    codec: int


class Values(NamedTuple):
    """Some values of a column, in order: where each starts in what `part` unpacks to, and its size
    in bytes, −1 where it is null; both int64 [n]."""

    part: Part
    start: np.ndarray
    size: np.ndarray


def values(raw: IO[bytes], size: int, chunk: Chunk, level: int) -> Iterator[Values]:
    """The values of a chunk of a column whose rows are not null where they have this level.

    Its pages have been held against limits, `size` is that of the file. ValueError: they are
    damaged, too large to be unpacked for one value, or in an encoding that is not known here.
    """
    file = Window(raw, size)
    known = Values(Part(0, 0, 0, 0), _NONE, _NONE)
    for page in pages(raw, chunk):
        levels = page.levels or 0
        part = Part(
            start=page.start + levels,
            packed=page.packed - levels,
            unpacked=page.unpacked - levels,
            codec=0 if page.plain else chunk.codec,
        )
        at = _reader(file, part)
        if page.dictionary:
            known = Values(part, *_plain(part, at, 0, page.values))
            continue
        place, there = 0, np.ones(page.values, bool)
        if level:
            if page.levels is None:
                length = int.from_bytes(at(0, 4), "little")
                place, packed = 4 + length, at(4, length)
            else:
                packed = file.at(page.start, levels)
            there = _hybrid(packed, level.bit_length(), page.values) == level
        count = int(there.sum())
        if page.encoding == _PLAIN:
            start, sizes = _plain(part, at, place, count)
        elif page.encoding in _DICTIONARIES:
            width, rest = at(place, 1)[0], at(place + 1, part.unpacked - place - 1)
            named = _hybrid(rest, width, count)
            if count and not named.max() < len(known.start):
                raise ValueError("a value is not in the dictionary")
            part, start, sizes = known.part, known.start[named], known.size[named]
        else:
            raise ValueError("a page is in an encoding that is not known here")
        found = Values(part, np.zeros(page.values, np.int64), np.full(page.values, -1))
        found.start[there], found.size[there] = start, sizes
        yield found


def unpacked(data: bytes, part: Part) -> bytes:
    """What the bytes of a part unpack to. ValueError: they are damaged."""
    if not part.codec:
        return data
    import pyarrow as pa

    try:
        found: bytes = pa.decompress(data, part.unpacked, _CODECS[part.codec], asbytes=True)
    except KeyError as error:
        raise ValueError("it is packed in a way that is not known here") from error
    except (OSError, ValueError) as error:
        raise ValueError("a page cannot be unpacked") from error
    if len(found) != part.unpacked:
        raise ValueError("a page unpacks to another size")
    return found


_At = Callable[[int, int], bytes]


def _reader(file: Window, part: Part) -> _At:
    """What gives so many bytes of what a part unpacks to, from a place on; or raises ValueError."""
    if min(part) < 0 or not (part.codec or part.packed == part.unpacked):
        raise ValueError("the sizes of a page do not fit")
    if part.codec and part.unpacked > MAX_PAGE:
        raise ValueError(f"a page unpacks to more than {MAX_PAGE >> 20} MiB")
    held = unpacked(file.at(part.start, part.packed), part) if part.codec else b""

    def at(place: int, count: int) -> bytes:
        if not 0 <= place <= place + count <= part.unpacked:
            raise ValueError("a value reaches beyond its page")
        return held[place : place + count] if part.codec else file.at(part.start + place, count)

    return at


def _plain(part: Part, at: _At, place: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The start and the size of each of `count` values from a place on, int64."""
    start, size = array("q"), array("q")
    for _ in range(count):
        length = int.from_bytes(at(place, 4), "little")
        start.append(place + 4)
        size.append(length)
        place += 4 + length
    if place > part.unpacked:
        raise ValueError("a value reaches beyond its page")
    return np.array(start, np.int64), np.array(size, np.int64)


def _hybrid(data: bytes, width: int, count: int) -> np.ndarray:
    """The first `count` numbers, of `width` bits each, of runs and packed groups; int64."""
    if width > 32:
        raise ValueError("a number has too many bits")
    found, done, at = np.zeros(count, np.int64), 0, 0
    each = (width + 7) // 8
    while done < count and width:
        head = shift = 0
        while True:
            if at == len(data) or shift > 28:
                raise ValueError("levels or numbers are cut short")
            head, at, more = head | (data[at] & 127) << shift, at + 1, data[at] & 128
            shift += 7
            if not more:
                break
        many = min((head >> 1) * (8 if head & 1 else 1), count - done)
        if not many:
            raise ValueError("a run of levels or numbers has none")
        size = -(-many // 8) * width if head & 1 else each
        taken = np.frombuffer(data[at : at + size], np.uint8)
        if len(taken) < size:
            raise ValueError("levels or numbers are cut short")
        if head & 1:
            bits = np.unpackbits(taken, bitorder="little").reshape(-1, width)[:many]
            found[done : done + many] = bits @ (1 << np.arange(width))
            size = (head >> 1) * width
        else:
            found[done : done + many] = int.from_bytes(taken.tobytes(), "little")
        done, at = done + many, at + size
    return found
