"""What the columns of a Parquet file unpack to, known before anything is unpacked.

    file    "PAR1" chunk ... chunk footer length "PAR1"
    chunk   page ... page                               one column of one group of rows
    page    header body

The footer, a struct of Thrift, says where the chunks lie and how large they are. But readers
obey the headers of the pages, structs of Thrift too: a page of a few kilobytes may say that it
unpacks to 2 GB, and it will. So pages are walked first, from header to header; no body is
touched. This is done here and not with pyarrow, because what pyarrow offers for it ends the
process on some damaged footers (the exception of a constructor passes a function that may not
raise; found by flipping bits, version 26).

Some encodings unpack further than their page. In DELTA_BYTE_ARRAY a value is a part of the one
before and a few bytes more, so that n bytes make n² / 2; in a dictionary a long value is named
by a few bits, as often as there are rows.

The format: https://github.com/apache/parquet-format (parquet.thrift, Encodings.md); the compact
protocol: https://github.com/apache/thrift (doc/specs/thrift-compact-protocol.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, NamedTuple

DELTA_BYTE_ARRAY = 7

_DATA, _DICTIONARY, _DATA_2 = 0, 2, 3
# The fields of a header: where a kind of page has a struct of its own, and there the encoding.
_OWN = {_DATA: (5, 2), _DICTIONARY: (7, 2), _DATA_2: (8, 4)}
_HEADER = 1 << 16  # bytes; a header takes some 30, and up to 10 000 with statistics
_FOOTER = 1 << 24  # bytes; a column of a group takes some 100
_ELEMENTS = 100_000  # of all lists in a group of rows


class Chunk(NamedTuple):
    """One column of a group of rows, in the bytes from `start` to `stop` of the file. values: how
    many it has, unpacked: bytes that they take, codec: how they are packed, 0 for not at all; all
    by the footer."""

    start: int
    stop: int
    values: int
    unpacked: int
    codec: int


class Group(NamedTuple):
    """rows: how many there are. chunks: by the dotted name of their column."""

    rows: int
    chunks: dict[str, Chunk]


class Page(NamedTuple):
    """dictionary: whether it is one. values: how many are in it. header, packed, unpacked: bytes
    of the header, of the body, and of the body once it is unpacked. start: of the body, in the
    file. levels: bytes before the values that are never packed, and tell which values are null;
    None where they are packed with the values. plain: whether the values are not packed, though
    others of the chunk are."""

    dictionary: bool
    values: int
    encoding: int
    header: int
    packed: int
    unpacked: int
    start: int
    levels: int | None
    plain: bool


def groups(file: IO[bytes], size: int) -> Iterator[Group]:
    """The groups of rows of a file of `size` bytes, by its footer. ValueError: it has none."""
    file.seek(max(0, size - 8))
    end = file.read(8)
    length = int.from_bytes(end[:4], "little")
    if len(end) < 8 or end[4:] != b"PAR1" or not 0 < length <= min(_FOOTER, size - 12):
        raise ValueError("it has no footer, or one that is too long")
    file.seek(size - 8 - length)
    footer = _Thrift(file.read(length))
    for number, kind in footer.fields():
        if (number, kind) != (4, _LIST):
            footer.value(kind)
            continue
        of, count = footer.list_head()
        for _ in range(count):
            footer.left = _ELEMENTS
            group = footer.value(of)
            chunks: dict[str, Chunk] = {}
            for column in _part(group, 1, list):
                name, chunk = _chunk(column, size)
                if chunks.setdefault(name, chunk) is not chunk:
                    raise ValueError("two columns have one name")
            yield Group(_size(group, 3), chunks)


def _chunk(column: Any, size: int) -> tuple[str, Chunk]:
    about = _part(column, 3, dict)
    start, index = _size(about, 9), about.get(11)
    if isinstance(index, int) and 0 < index < start:  # the dictionary's page comes first
        start = index
    stop = start + _size(about, 7)
    if 1 in column or not 4 <= start <= stop <= size:
        raise ValueError("a column is not where the footer says")
    name = b".".join(_part(about, 3, list)).decode("utf-8", "replace")
    return name, Chunk(start, stop, _size(about, 5), _size(about, 6), _size(about, 4))


def pages(file: IO[bytes], chunk: Chunk) -> Iterator[Page]:
    """The pages of a chunk, in order. ValueError: it is none."""
    start = chunk.start
    while start < chunk.stop:
        file.seek(start)
        head = _Thrift(file.read(min(chunk.stop - start, _HEADER)))
        fields = head.value(_STRUCT)
        kind, unpacked, packed = (_size(fields, number) for number in (1, 2, 3))
        start += head.at + packed
        if start > chunk.stop:
            raise ValueError("a page reaches beyond its column")
        if kind in _OWN:  # others, such as indices, are passed over, as readers do
            own = _part(fields, _OWN[kind][0], dict)
            values, encoding = _size(own, 1), _size(own, _OWN[kind][1])
            second = kind == _DATA_2
            yield Page(
                kind == _DICTIONARY,
                values,
                encoding,
                head.at,
                packed,
                unpacked,
                start=start - packed,
                levels=_size(own, 5) + _size(own, 6) if second else None,
                plain=second and own.get(7) is False,
            )


def _part(fields: Any, number: int, kind: type) -> Any:
    value = fields.get(number) if isinstance(fields, dict) else None
    if not isinstance(value, kind):
        raise ValueError("the footer or the header of a page is damaged")
    return value


def _size(fields: Any, number: int) -> int:
    value: int = _part(fields, number, int)
    if value < 0:
        raise ValueError("a size is negative")
    return value


_TRUE, _FALSE, _BYTE, _DOUBLE, _TEXT, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_WHOLE = (4, 5, 6)  # of 16, 32 and 64 bits, which are written alike


class _Thrift:
    """A reader of Thrift's compact protocol, at byte `at` of `data`. ValueError: it is none.

    Structs become dicts from the numbers of their fields, lists lists, text bytes. left: how many
    elements lists may still have.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.left = _ELEMENTS

    def take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        if len(taken) < count:
            raise ValueError("the footer or the header of a page is cut short")
        self.at += count
        return taken

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("the footer or the header of a page is damaged")

    def signed(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def fields(self) -> Iterator[tuple[int, int]]:
        """The number and the kind of each field of a struct, whose value is to be read next."""
        number = 0
        while head := self.take(1)[0]:
            number = number + (head >> 4) if head >> 4 else self.signed()
            yield number, head & 15

    def list_head(self) -> tuple[int, int]:
        """The kind of a list's elements, and how many there are."""
        head = self.take(1)[0]
        return head & 15, self.varint() if head >> 4 == 15 else head >> 4

    def value(self, kind: int, depth: int = 8, element: bool = False) -> Any:
        if kind in _WHOLE:
            return self.signed()
        if kind in (_TRUE, _FALSE):
            return self.take(1)[0] == _TRUE if element else kind == _TRUE
        if kind == _TEXT:
            return self.take(self.varint())
        if kind in (_BYTE, _DOUBLE):
            return self.take(1 if kind == _BYTE else 8)
        if kind == _STRUCT and depth:
            return {number: self.value(of, depth - 1) for number, of in self.fields()}
        if kind in (_LIST, _SET) and depth:
            of, count = self.list_head()
            self.left -= count
            if self.left < 0:
                raise ValueError("the footer has too long a list")
            return [self.value(of, depth - 1, element=True) for _ in range(count)]
        raise ValueError("the footer or the header of a page is damaged")
