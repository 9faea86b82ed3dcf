"""Flat JSON records of numbers, a whole batch at once, where messages are written alike.

Devices of one firmware write the same text over and over, only the numbers change. A layout is learned from one
message; then all messages of a batch are held against it as columns of bytes, and their numbers are read as columns of
digits. What does not fit to the last byte is left to the general decoder, so the outcome is the same: a number is a
whole mantissa below 10^15 divided by a power of ten up to 10^7, both exact in float64, and so correctly rounded
(Clinger, 1990). Eight digits at a time: https://lemire.me/blog/2022/01/21/swar-explained-parsing-eight-digits/
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.readings import Packed

Words = NDArray[np.uint64]
Places = NDArray[np.int64]

FEWEST: Final = 16  # messages for which a layout is worth while
LAYOUTS: Final = 4  # tried on a batch, at most
BLOCK_BYTES: Final = 1 << 19  # of text that is looked at at once, about

_KEY: Final = rb'"([A-Za-z0-9_\- ]+)"[ \t\r\n]*:[ \t\r\n]*'
_FIELD: Final = re.compile(_KEY + rb"(-?[0-9][0-9.]*)")
_OPEN: Final = re.compile(rb"[ \t\r\n]*(\[[ \t\r\n]*)?\{[ \t\r\n]*" + _KEY)
_NEXT: Final = re.compile(rb"[ \t\r\n]*,[ \t\r\n]*" + _KEY)
_AGAIN: Final = re.compile(rb"[ \t\r\n]*\}[ \t\r\n]*,[ \t\r\n]*\{[ \t\r\n]*" + _KEY)
_CLOSE: Final = re.compile(rb"[ \t\r\n]*\}[ \t\r\n]*(\][ \t\r\n]*)?")
_WORD: Final = 8  # bytes
_WIDEST: Final = 16  # characters of a number
_COLON, _MINUS, _ZERO = (np.uint8(ord(char)) for char in ":-0")
_EVERY: Final = np.uint64(0x0101010101010101)
_HIGH_BITS: Final = _EVERY * np.uint64(0x80)
_LOW_BITS: Final = _EVERY * np.uint64(0x7F)
_ZEROS: Final = _EVERY * np.uint64(0x30)
_POINTS: Final = _EVERY * np.uint64(0x2E)
_BEYOND_NINE: Final = _EVERY * np.uint64(0x46)  # carries into the high bit from ":" on
_OTHERS: Final = np.uint64(0x000000FF000000FF)
_PAIRS: Final = np.uint64(0x000F424000000064)
_PAIRS_ABOVE: Final = np.uint64(0x0000271000000001)
_KEEP_LAST: Final = np.array([0] + [(2**64 - 1) >> 8 * (8 - n) << 8 * (8 - n) for n in range(1, 9)], dtype=np.uint64)
_POWERS: Final = 10.0 ** np.arange(_WORD)


@dataclass(frozen=True)
class Layout:
    """How messages are written, but for their numbers.

    Attributes:
        keys: the fields of a record, in order.
        before: what stands before each of their numbers in the first record of a message.
        between: what stands between the records of one message; None where each has one record.
        after: what stands behind the last number.
    """

    keys: tuple[str, ...]
    before: tuple[bytes, ...]
    between: bytes | None
    after: bytes


@dataclass(frozen=True)
class Flat:
    """Records that were read, and what is left to others.

    Attributes:
        message: [R] int64, row of each record's message, never decreasing.
        columns: [R] float64 a field.
        rest: [K] int64, rows of the messages that do not fit.
    """

    message: Places
    columns: dict[str, NDArray[np.float64]]
    rest: Places


def read(payloads: Sequence[bytes], fields: frozenset[str]) -> Iterator[Flat]:
    """Yield the records of messages that are written alike, a layout at a time; the last one's `rest` is what is left.

    Args:
        payloads: [M] JSON texts.
        fields: names that may occur, each with a number.
    """
    packed = Packed.of(payloads)
    rest = np.arange(len(packed), dtype=np.int64)
    for _ in range(LAYOUTS):
        layout = next((found for row in rest[:2].tolist() if (found := learn(packed[row], fields))), None)
        if len(rest) < FEWEST or layout is None:
            return
        flat = _read(packed if len(rest) == len(packed) else packed.take(rest), layout)
        if not len(flat.message):
            return
        yield Flat(rest[flat.message], flat.columns, rest[flat.rest])
        rest = rest[flat.rest]


def learn(payload: bytes, fields: frozenset[str]) -> Layout | None:
    """Return the layout of a message of records with these fields, all numbers; None where it is another one."""
    found = list(_FIELD.finditer(payload))
    keys = tuple(field.group(1).decode() for field in found)
    count = next((place for place in range(1, len(keys)) if keys[place] == keys[0]), len(keys))
    if not found or not fields.issuperset(keys) or len(set(keys[:count])) < count:
        return None
    edges = [0, *(edge for field in found for edge in field.span(2)), len(payload)]
    gaps = [payload[begin:end] for begin, end in zip(edges[::2], edges[1::2], strict=True)]
    opened, closed = _OPEN.fullmatch(gaps[0]), _CLOSE.fullmatch(gaps[-1])
    if not opened or not closed or not all(_NEXT.fullmatch(gap) for gap in gaps[1:count]):
        return None
    listed = opened.group(1) is not None
    between = gaps[count] if len(keys) > count else None
    if listed != (closed.group(1) is not None) or (between is not None and not (listed and _AGAIN.fullmatch(between))):
        return None
    return Layout(keys[:count], tuple(gaps[:count]), between, gaps[-1])


def _read(packed: Packed, layout: Layout) -> Flat:
    """Return the records of the messages that have this layout to the last byte.

    A block at a time, so that what is computed on the way stays in the processor's cache.
    """
    edges = np.searchsorted(packed.offsets, np.arange(0, int(packed.offsets[-1]), BLOCK_BYTES))
    edges = np.unique(np.append(edges, len(packed)))
    parts = [
        _read_block(packed, begin, end, layout)
        for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]
    columns = {key: np.concatenate([part.columns[key] for part in parts]) for key in layout.keys}
    message, rest = (np.concatenate([getattr(part, name) for part in parts]) for name in ("message", "rest"))
    return Flat(message, columns, rest)


def _read_block(packed: Packed, begin: int, end: int, layout: Layout) -> Flat:
    offsets = packed.offsets[begin : end + 1] - packed.offsets[begin]
    text = _Text(packed.buffer[packed.offsets[begin] : packed.offsets[end]], layout)
    rows, starts = _records(text, offsets, layout)
    begins, ends = offsets[rows], offsets[rows + 1]
    first = np.append(True, rows[1:] != rows[:-1])
    last = np.append(first[1:], True)
    # Where the text before each number begins; the number before it ends there.
    befores = [starts[place] - len(before) for place, before in enumerate(layout.before)]
    if layout.between is None:
        fits = (befores[0] == begins) & text.has(befores[0], layout.before[0])
    else:
        opening = np.flatnonzero(first)
        fits = text.has(starts[0] - len(layout.between), layout.between)
        fits[opening] = (befores[0] == begins)[opening] & text.has(befores[0][opening], layout.before[0])
        befores[0] = np.where(first, befores[0], starts[0] - len(layout.between))
    closing = ends - len(layout.after)
    final = np.flatnonzero(last)
    fits[final] &= text.has(closing[final], layout.after)
    columns = {}
    for place, key in enumerate(layout.keys):
        if place + 1 < len(layout.keys):
            stop = befores[place + 1]
            fits &= text.has(stop, layout.before[place + 1])
        else:
            stop = np.where(last, closing, np.append(befores[0][1:], 0))
        columns[key], proper = _numbers(text, starts[place], stop)
        fits &= proper
    return _whole_messages(begin, end - begin, rows, fits, columns)


def _records(text: "_Text", offsets: Places, layout: Layout) -> tuple[Places, list[Places]]:
    """Return the message row of each record, and where its numbers begin; of messages with as many colons as need be.

    Every number has one colon before it, and there are no others.
    """
    width = len(layout.keys)
    colons = text.colons()
    counts = np.diff(np.searchsorted(colons, offsets))
    fits = (counts % width == 0) & (counts > 0 if layout.between is not None else counts == width)
    if not fits.all():
        colons = colons[np.repeat(fits, counts)]
        counts = np.where(fits, counts, 0)
    rows = np.repeat(np.arange(len(counts)), counts // width)
    gaps = [len(before) - before.index(b":") for before in layout.before]
    return rows, [colons[place::width] + gaps[place] for place in range(width)]


def _whole_messages(
    begin: int, count: int, rows: Places, fits: NDArray[np.bool_], columns: dict[str, NDArray[np.float64]]
) -> Flat:
    """Keep the records of messages all of whose records fit; `begin` is the row of the first message."""
    good = np.zeros(count, dtype=np.bool_)
    good[rows] = True
    good[rows[~fits]] = False
    if good.all():
        return Flat(begin + rows, columns, np.empty(0, dtype=np.int64))
    kept = good[rows]
    return Flat(
        begin + rows[kept], {key: column[kept] for key, column in columns.items()}, begin + np.flatnonzero(~good)
    )


class _Text:
    """Bytes that can be looked at eight at a time, from any place that a layout leads to; around them are zeros."""

    def __init__(self, buffer: bytes, layout: Layout) -> None:
        gaps = (*layout.before, layout.between or b"", layout.after)
        self._around = 2 * _WORD + max(map(len, gaps))
        padded = b"".join((bytes(self._around), buffer, bytes(self._around)))
        self._chars = np.frombuffer(padded, dtype=np.uint8)
        self._words = np.lib.stride_tricks.as_strided(
            self._chars[:_WORD].view(np.uint64), shape=(len(padded) - _WORD + 1,), strides=(1,), writeable=False
        )

    def colons(self) -> Places:
        """Return the places of all colons."""
        return np.flatnonzero(self._chars == _COLON) - self._around

    def chars(self, places: Places) -> NDArray[np.uint8]:
        """Return the byte at each place."""
        return self._chars[places + self._around]

    def words(self, places: Places) -> Words:
        """Return the eight bytes from each place on, the first one lowest."""
        return self._words[places + self._around]

    def has(self, places: Places, text: bytes) -> NDArray[np.bool_]:
        """Say at which places this text stands; there are no zeros in it."""
        same = np.ones(len(places), dtype=np.bool_)
        for begin in range(0, len(text), _WORD):
            part = text[begin : begin + _WORD]
            mask = np.uint64((1 << 8 * len(part)) - 1)
            same &= (self.words(places + begin) & mask) == np.uint64(int.from_bytes(part, "little"))
        return same


def _numbers(text: _Text, starts: Places, stops: Places) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the numbers that stand between these places, and which of them are proper JSON that is read exactly."""
    negative = text.chars(starts) == _MINUS
    width = stops - starts
    if negative.any():
        width -= negative
    proper = (width >= 1) & (width <= _WIDEST)
    if not proper.all():
        width = np.clip(width, 1, _WIDEST)
    wide = width.max(initial=0) > _WORD
    low = _digits_only(text.words(stops - _WORD), np.minimum(width, _WORD) if wide else width)
    high = _digits_only(text.words(stops - 2 * _WORD), np.maximum(width - _WORD, 0)) if wide else None
    low, high, decimals = _without_point(low, high)
    proper &= _all_digits(low)
    mantissa = _eight(low).astype(np.int64)
    if high is not None:
        proper &= _all_digits(high)
        mantissa += _eight(high).astype(np.int64) * 10**_WORD
        proper &= mantissa < 10**15
    values = mantissa.astype(np.float64)
    whole = width
    if decimals is not None:
        values /= _POWERS[decimals]
        whole = width - decimals - (decimals > 0)
    led_by_zero = text.chars(stops - width) == _ZERO
    proper &= (whole >= 1) & (~led_by_zero | (whole == 1))
    if negative.any():
        proper &= ~negative | (mantissa != 0)
        values = np.where(negative, -values, values)
    return values, proper


def _digits_only(words: Words, width: Places) -> Words:
    """Put zeros in place of all but the last `width` characters."""
    keep = _KEEP_LAST[width]
    return (words & keep) | (_ZEROS & ~keep)


def _all_digits(words: Words) -> NDArray[np.bool_]:
    return np.asarray(((words + _BEYOND_NINE) | (words - _ZEROS)) & _HIGH_BITS == 0)


def _without_point(low: Words, high: Words | None) -> tuple[Words, Words | None, Places | None]:
    """Close the gap where the last eight characters hold one decimal point; return how many digits stood behind it.

    A point without a digit behind it stays, as does a second one: neither is a digit. Where a column has no point,
    there are no decimals; where it has no more than eight characters, nothing is to be moved in from above.
    """
    other = low ^ _POINTS
    point = ~(((other & _LOW_BITS) + _LOW_BITS) | other | _LOW_BITS)  # the high bit of each byte that is a point
    point &= _HIGH_BITS >> np.uint64(8)  # not of the last
    point &= ~point + np.uint64(1)  # the first one alone
    moved = point > 0
    if not moved.any():
        return low, high, None
    bit = (point.astype(np.float64).view(np.int64) >> 52) - 1023  # the exponent of a power of two is its logarithm
    decimals = np.where(moved, _WORD - 1 - (bit >> 3), 0)
    behind = _KEEP_LAST[np.where(moved, decimals, _WORD)]
    at = _KEEP_LAST[np.where(moved, decimals + 1, _WORD)]
    above = np.uint64(_ZERO) if high is None else high >> np.uint64(8 * (_WORD - 1))
    low = np.where(moved, (low & behind) | ((low & ~at) << np.uint64(8)) | above, low)
    if high is not None:
        high = np.where(moved, (high << np.uint64(8)) | np.uint64(_ZERO), high)
    return low, high, decimals


def _eight(words: Words) -> Words:
    """Return the number that eight digits make, for each word."""
    digits = words - _ZEROS
    pairs = digits * np.uint64(10) + (digits >> np.uint64(8))
    return ((pairs & _OTHERS) * _PAIRS + ((pairs >> np.uint64(16)) & _OTHERS) * _PAIRS_ABOVE) >> np.uint64(32)
