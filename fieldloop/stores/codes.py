"""Columns of numbers in fewer bytes of Parquet: sorted dictionaries, and codes of whole bytes.

Parquet's writers number a dictionary's values as they come and pack their codes into as few bits as they need. Packed
bits hide from zstd what neighbours have in common. Here the dictionary is sorted, so that near values have near codes,
and each code takes one or two whole bytes, which zstd shrinks to less. Both are plain Parquet, which leaves order
and width to the writer: https://parquet.apache.org/docs/file-format/data-pages/encodings/
"""

import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fieldloop.stores import thrift
from fieldloop.stores.thrift import I32, STRUCT, Struct

MOST_DISTINCT: Final = 1 << 20  # values of a dictionary; a column with more stays as it was written

_MAGIC: Final = b"PAR1"
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_PLAIN, _RLE, _RLE_DICTIONARY = 0, 3, 8
# Field numbers of parquet.thrift.
_ROW_GROUPS, _COLUMNS, _GROUP_BYTES, _GROUP_OFFSET, _GROUP_COMPRESSED = 4, 1, 2, 5, 6
_CHUNK_META, _ENCODINGS, _PATH, _BYTES, _COMPRESSED, _DATA_OFFSET, _DICTIONARY_OFFSET, _ENCODING_STATS = (
    3, 2, 3, 6, 7, 9, 11, 13,
)  # fmt: skip


def with_sorted_codes(file: bytes, column: str, values: Sequence[NDArray[np.float64]], level: int) -> bytes:
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
            pages = pages if pages and len(pages[0]) + len(pages[1]) < meta[_COMPRESSED][1] else None
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


def _replaced(meta: Struct, pages: tuple[bytes, bytes, int], offset: int) -> bytes:
    """Return a chunk's new pages, and say in its metadata what they are."""
    dictionary, data, plain = pages
    new: dict[int, Any] = {
        _ENCODINGS: (I32, [_PLAIN, _RLE, _RLE_DICTIONARY]),
        _BYTES: plain,
        _COMPRESSED: len(dictionary) + len(data),
        _DATA_OFFSET: offset + len(dictionary),
        _DICTIONARY_OFFSET: offset,
    }
    meta |= {field: (meta[field][0], value) for field, value in new.items()}
    meta.pop(_ENCODING_STATS, None)
    return dictionary + data


def _encoded(values: NDArray[np.float64], level: int) -> tuple[bytes, bytes, int] | None:
    """Return dictionary page, data page and their size without compression; None where values are too many."""
    bits = values.view(np.int64)
    order = bits ^ ((bits >> 63) & np.int64(2**63 - 1))  # sorts as the numbers do, and tells -0.0 from 0.0
    distinct, codes = np.unique(order, return_inverse=True)
    if len(distinct) > MOST_DISTINCT:
        return None
    known = distinct ^ ((distinct >> 63) & np.int64(2**63 - 1))
    count = len(values)
    present = thrift.varint(count << 1) + b"\1"  # one run of definition levels: no value is missing
    packed = _packed(codes, len(known))
    dictionary: Struct = {1: (I32, len(known)), 2: (I32, _PLAIN)}
    data: Struct = {1: (I32, count), 2: (I32, _RLE_DICTIONARY), 3: (I32, _RLE), 4: (I32, _RLE)}
    first, first_plain = _page(_DICTIONARY_PAGE, known.astype("<i8").tobytes(), (7, dictionary), level)
    second, second_plain = _page(_DATA_PAGE, struct.pack("<I", len(present)) + present + packed, (5, data), level)
    return first, second, first_plain + second_plain


def _packed(codes: NDArray[np.intp], distinct: int) -> bytes:
    """Return codes as one run: their width in bits, a header, and groups of eight; whole bytes where two suffice."""
    groups = -(-len(codes) // 8)
    padded = np.zeros(groups * 8, dtype="<u4")
    padded[: len(codes)] = codes
    bits = next((whole for whole in (8, 16) if distinct <= 1 << whole), (distinct - 1).bit_length())
    each = padded.view(np.uint8).reshape(-1, 4)
    if bits > 16:
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
