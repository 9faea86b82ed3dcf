"""Columns of numbers in fewer bytes of Parquet: ordered dictionaries, and codes whose bytes look alike.

Parquet's writers number a dictionary's values as they come and pack their codes into as few bits as they need. Packed
bits hide from zstd what neighbours have in common. Here near values have near codes, and each code takes whole bytes.
zstd has one Huffman code for all bytes of a block, so that a high byte of few values beside a low byte of 256 costs
both: codes are numbers of two digits of about equal range instead, with gaps in the dictionary between them. All of it
is plain Parquet, which leaves order, gaps and width to the writer:
https://parquet.apache.org/docs/file-format/data-pages/encodings/
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fieldloop.stores import thrift
from fieldloop.stores.thrift import I32, STRUCT, Struct

MOST_DISTINCT: Final = 1 << 20  # values of a dictionary; a column with more stays as it was written

_LEVEL_TRIED: Final = 6  # of zstd, at which numberings are compared: it tells them apart in a tenth of the time
_STEADY: Final = 0.75  # share of codes whose high digit is the one before, above which codes with zeros are tried
_BASES: Final = (0.8, 0.9, 1.0, 1.15)  # tried, as shares of the one that makes both digits' ranges equal

_MAGIC: Final = b"PAR1"
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_PLAIN, _RLE, _RLE_DICTIONARY = 0, 3, 8
# Field numbers of parquet.thrift.
_ROW_GROUPS, _COLUMNS, _GROUP_BYTES, _GROUP_OFFSET, _GROUP_COMPRESSED = 4, 1, 2, 5, 6
_CHUNK_META, _ENCODINGS, _PATH, _BYTES, _COMPRESSED, _DATA_OFFSET, _DICTIONARY_OFFSET, _ENCODING_STATS = (
    3, 2, 3, 6, 7, 9, 11, 13,
)  # fmt: skip


@dataclass(frozen=True)
class _Pages:
    """A chunk's pages, and how many bytes they are without compression."""

    dictionary: bytes
    data: bytes
    plain: int

    @property
    def size(self) -> int:
        return len(self.dictionary) + len(self.data)


def with_ordered_codes(file: bytes, column: str, values: Sequence[NDArray[np.float64]], level: int) -> bytes:
    """Return a Parquet file with a column of doubles written anew; everything else stays.

    Args:
        file: a file with one dictionary a column and row group, under zstd, without page index or nulls in the column.
        column: the column's name; it stays as it is in row groups where that is smaller.
        values: its values, an array a row group.
        level: of zstd.
    """
    length = struct.unpack("<I", file[-8:-4])[0]
    footer = thrift.Reader(file[-8 - length : -8]).struct()
    written = bytearray(_MAGIC)
    for group, own in zip(footer[_ROW_GROUPS][1][1], values, strict=True):
        begin, size, compressed = len(written), 0, 0
        for chunk in group[_COLUMNS][1][1]:
            meta = chunk[_CHUNK_META][1]
            pages = _encoded(own, level) if _path(meta) == column else None
            pages = pages if pages and pages.size < meta[_COMPRESSED][1] else None
            written += _moved(file, meta, len(written)) if pages is None else _replaced(meta, pages, len(written))
            size, compressed = size + meta[_BYTES][1], compressed + meta[_COMPRESSED][1]
        sums = {_GROUP_BYTES: size, _GROUP_OFFSET: begin, _GROUP_COMPRESSED: compressed}
        group |= {field: (group[field][0], value) for field, value in sums.items() if field in group}
    plain = thrift.write(footer)
    return bytes(written) + plain + struct.pack("<I", len(plain)) + _MAGIC


def _path(meta: Struct) -> str:
    return ".".join(part.decode() for part in meta[_PATH][1][1])


def _moved(file: bytes, meta: Struct, offset: int) -> bytes:
    """Return a chunk's pages as they are, which begin at another place now."""
    first = min(meta[field][1] for field in (_DATA_OFFSET, _DICTIONARY_OFFSET) if field in meta)
    for field in (_DATA_OFFSET, _DICTIONARY_OFFSET):
        if field in meta:
            meta[field] = (meta[field][0], meta[field][1] - first + offset)
    return file[first : first + meta[_COMPRESSED][1]]


def _replaced(meta: Struct, pages: _Pages, offset: int) -> bytes:
    """Return a chunk's new pages, and say in its metadata what they are."""
    new: dict[int, Any] = {
        _ENCODINGS: (I32, [_PLAIN, _RLE, _RLE_DICTIONARY]),
        _BYTES: pages.plain,
        _COMPRESSED: pages.size,
        _DATA_OFFSET: offset + len(pages.dictionary),
        _DICTIONARY_OFFSET: offset,
    }
    meta |= {field: (meta[field][0], value) for field, value in new.items()}
    meta.pop(_ENCODING_STATS, None)
    return pages.dictionary + pages.data


@dataclass(frozen=True)
class _Numbering:
    """How the values of a dictionary are numbered.

    Attributes:
        by_ends: values whose last four bytes are alike stand together, which zstd then repeats; else all are sorted.
        base: of the two digits, a byte each, that a number is written in; 256 leaves no gaps.
        bits: width of a code.
    """

    by_ends: bool
    base: int
    bits: int


def _encoded(values: NDArray[np.float64], level: int) -> _Pages | None:
    """Return a chunk's pages in the numbering that makes them smallest; None where values are too many."""
    bits = values.view(np.int64)
    order = bits ^ ((bits >> 63) & np.int64(2**63 - 1))  # sorts as the numbers do, and tells -0.0 from 0.0
    distinct, codes = np.unique(order, return_inverse=True)
    if len(distinct) > MOST_DISTINCT:
        return None
    known = distinct ^ ((distinct >> 63) & np.int64(2**63 - 1))
    best = min(_numberings(len(known)), key=lambda each: _written(known, codes, each, _LEVEL_TRIED).size)
    finalists = (best, _wide(len(known), codes))
    return min((_written(known, codes, each, level) for each in finalists if each), key=lambda pages: pages.size)


def _numberings(distinct: int) -> Iterator[_Numbering]:
    """Yield those that a quick look at the size can choose from."""
    if distinct <= 1 << 8:
        yield _Numbering(False, 1 << 8, 8)
        return
    for by_ends in (False, True):
        if distinct > 1 << 16:
            yield _Numbering(by_ends, 1 << 8, (distinct - 1).bit_length())
        else:
            bases = {min(int(distinct**0.5 * share) + 1, 1 << 8) for share in _BASES}
            yield from (_Numbering(by_ends, base, 16) for base in sorted(bases) if distinct <= base << 8)


def _wide(distinct: int, codes: NDArray[np.intp]) -> _Numbering | None:
    """Return a numbering for values whose high digit mostly stays from one to the next; None for others.

    Two bytes of zeros behind the digits make the high one long enough for zstd to take it from before.
    """
    base = 1 << 7
    high = codes // base
    steady = 1 << 8 < distinct <= base << 8 and np.mean(high[1:] == high[:-1]) > _STEADY
    return _Numbering(False, base, 32) if steady else None


def _written(known: NDArray[np.int64], codes: NDArray[np.intp], numbering: _Numbering, level: int) -> _Pages:
    """Return the pages of a dictionary and its codes, numbered in one way."""
    places = np.arange(len(known))
    if numbering.by_ends:
        order = np.argsort(known.astype(np.uint32), kind="stable")
        known, codes = known[order], np.argsort(order)[codes]
    numbers = places // numbering.base << 8 | places % numbering.base
    gapless = np.searchsorted(numbers, np.arange(numbers[-1] + 1), side="right") - 1  # a gap repeats what is before it
    count = len(codes)
    present = thrift.varint(count << 1) + b"\1"  # one run of definition levels: no value is missing
    packed = _packed(numbers[codes], numbering.bits)
    dictionary: Struct = {1: (I32, len(gapless)), 2: (I32, _PLAIN)}
    data: Struct = {1: (I32, count), 2: (I32, _RLE_DICTIONARY), 3: (I32, _RLE), 4: (I32, _RLE)}
    first, first_plain = _page(_DICTIONARY_PAGE, known[gapless].astype("<i8").tobytes(), (7, dictionary), level)
    second, second_plain = _page(_DATA_PAGE, struct.pack("<I", len(present)) + present + packed, (5, data), level)
    return _Pages(first, second, first_plain + second_plain)


def _packed(codes: NDArray[np.intp], bits: int) -> bytes:
    """Return codes as one run: their width in bits, a header, and groups of eight."""
    groups = -(-len(codes) // 8)
    padded = np.zeros(groups * 8, dtype="<u4")
    padded[: len(codes)] = codes
    each = padded.view(np.uint8).reshape(-1, 4)
    if bits % 8:
        packed = np.packbits(np.unpackbits(each, axis=1, bitorder="little")[:, :bits], bitorder="little")
    else:
        packed = each[:, : bits // 8]
    return bytes([bits]) + thrift.varint(groups << 1 | 1) + packed.tobytes()


def _page(kind: int, plain: bytes, header: tuple[int, Struct], level: int) -> tuple[bytes, int]:
    """Return a page with its header, and its size without compression."""
    body = pa.Codec("zstd", compression_level=level).compress(plain, asbytes=True)
    field, own = header
    written = thrift.write({1: (I32, kind), 2: (I32, len(plain)), 3: (I32, len(body)), field: (STRUCT, own)})
    return written + body, len(written) + len(plain)
