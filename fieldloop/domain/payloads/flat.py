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
_BEYOND_NINE: Final = _EVERY * np.uint64(0x76)  # carries into the high bit from ten on
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
    text = _Text(memoryview(packed.buffer)[packed.offsets[begin] : packed.offsets[end]], layout)
    offsets = packed.offsets[begin : end + 1] - packed.offsets[begin] + text.begin
    counts, starts = _records(text, offsets, layout)
    filled = np.flatnonzero(counts)
    final = np.cumsum(counts[filled]) - 1
    closing = offsets[filled + 1] - len(layout.after)
    fits, stop = _around_records(text, layout, starts[0], final - counts[filled] + 1, offsets[filled])
    fits[final] &= text.has(closing, layout.after)
    stop[final] = closing
    columns = {}
    for place, key in enumerate(layout.keys):
        number_ends = stop
        if place + 1 < len(layout.keys):
            gap = layout.before[place + 1]
            fits &= text.has(starts[place + 1], gap, -len(gap))
            number_ends = starts[place + 1] - len(gap)
        columns[key], proper = _numbers(text, starts[place], number_ends)
        fits &= proper
    return _whole_messages(begin, counts, fits, columns)


def _around_records(
    text: "_Text", layout: Layout, first: Places, opening: Places, begins: Places
) -> tuple[NDArray[np.bool_], Places]:
    """Say which records follow on what stands before them as the layout has it, and where each but a last one ends.

    Args:
        text: of all messages.
        layout: theirs.
        first: [R] where each record's first number begins.
        opening: [K] the first record of each message that has any.
        begins: [K] where these messages begin.
    """
    gap = layout.before[0]
    heads = first[opening]
    opened = (heads - len(gap) == begins) & text.has(heads, gap, -len(gap))
    if layout.between is None:
        return opened, np.zeros(len(first), dtype=np.int64)
    fits = text.has(first, layout.between, -len(layout.between))
    fits[opening] = opened
    ends = np.zeros(len(first), dtype=np.int64)
    np.subtract(first[1:], len(layout.between), out=ends[:-1])
    return fits, ends


def _records(text: "_Text", offsets: Places, layout: Layout) -> tuple[Places, list[Places]]:
    """Return how many records each message has, and where their numbers begin; none of one with an odd many colons.

    Every number has one colon before it, and there are no others.
    """
    width = len(layout.keys)
    colons = text.colons()
    counts = np.diff(np.searchsorted(colons, offsets))
    fits = (counts % width == 0) & (counts > 0 if layout.between is not None else counts == width)
    if not fits.all():
        colons = colons[np.repeat(fits, counts)]
        counts = np.where(fits, counts, 0)
    gaps = [len(before) - before.index(b":") for before in layout.before]
    return counts // width, [colons[place::width] + gaps[place] for place in range(width)]


def _whole_messages(
    begin: int, counts: Places, fits: NDArray[np.bool_], columns: dict[str, NDArray[np.float64]]
) -> Flat:
    """Keep the records of messages all of whose records fit; `begin` is the row of the first message."""
    rows = np.repeat(np.arange(begin, begin + len(counts)), counts)
    good = counts > 0
    if not fits.all():
        good[rows[~fits] - begin] = False
    if good.all():
        return Flat(rows, columns, np.empty(0, dtype=np.int64))
    kept = good[rows - begin]
    return Flat(rows[kept], {key: column[kept] for key, column in columns.items()}, begin + np.flatnonzero(~good))


class _Text:
    """Bytes that can be looked at eight at a time, around any place that a layout leads to; around them are zeros.

    Attributes:
        begin: the place of the first byte. Places are counted so that a shift takes no pass over them.
    """

    def __init__(self, buffer: memoryview, layout: Layout) -> None:
        self.begin = max(map(len, (*layout.before, layout.between or b"", layout.after)))
        self._lead = max(self.begin, 2 * _WORD)  # further back than that nobody looks from a place
        around = bytes(self._lead + self.begin)
        padded = b"".join((around, buffer, around))
        self._chars = np.frombuffer(padded, dtype=np.uint8)
        self._words = np.lib.stride_tricks.as_strided(
            self._chars[:_WORD].view(np.uint64), shape=(len(padded) - _WORD + 1,), strides=(1,), writeable=False
        )

    def colons(self) -> Places:
        """Return the places of all colons."""
        return np.flatnonzero(self._chars[self._lead :] == _COLON)

    def chars(self, places: Places) -> NDArray[np.uint8]:
        """Return the byte at each place."""
        return self._chars[self._lead :][places]

    def words(self, places: Places, shift: int) -> Words:
        """Return the eight bytes that begin so many bytes from each place, the first one lowest."""
        return self._words[self._lead + shift :][places]

    def has(self, places: Places, text: bytes, shift: int = 0) -> NDArray[np.bool_]:
        """Say so many bytes from which places this text stands; there are no zeros in it."""
        same = np.ones(len(places), dtype=np.bool_)
        for begin in range(0, len(text), _WORD):
            part = text[begin : begin + _WORD]
            mask = np.uint64((1 << 8 * len(part)) - 1)
            same &= (self.words(places, shift + begin) & mask) == np.uint64(int.from_bytes(part, "little"))
        return same


def _numbers(text: _Text, starts: Places, stops: Places) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the numbers that stand between these places, and which of them are proper JSON that is read exactly.

    What all have in common, their width, the place of their point, the digits above the last eight, is looked at once.
    """
    lead = text.chars(starts)
    negative = lead == _MINUS
    signed = bool(negative.any())
    width = stops - starts
    if signed:
        width -= negative
    proper = (width >= 1) & (width <= _WIDEST)
    if not proper.all():
        width = np.clip(width, 1, _WIDEST)
    if signed:
        lead = text.chars(stops - width)
    widest = width.max(initial=1)
    if width.min(initial=_WIDEST) == widest:
        width = width[:1]
    low = _digits_only(text.words(stops, -_WORD), np.minimum(width, _WORD))
    high = (
        _common(_digits_only(text.words(stops, -2 * _WORD), np.maximum(width - _WORD, 0))) if widest > _WORD else None
    )
    low, high, decimals = _without_point(low, high)
    low -= _ZEROS
    proper &= _all_digits(low)
    mantissa = _eight(low).view(np.int64)
    if high is not None:
        high = high - _ZEROS
        proper &= _all_digits(high)
        mantissa = mantissa + _eight(high).view(np.int64) * 10**_WORD
        proper &= mantissa < 10**15
    values = mantissa.astype(np.float64)
    whole = width
    if decimals is not None:
        values /= _POWERS[decimals]
        whole = width - decimals - (decimals > 0)
    proper &= (whole >= 1) & ((lead != _ZERO) | (whole == 1))
    if signed:
        proper &= ~negative | (mantissa != 0)
        values = np.where(negative, -values, values)
    return values, proper


def _common(words: Words) -> Words:
    """Return one word where all are the same."""
    return words[:1] if (words == words[:1]).all() else words


def _digits_only(words: Words, width: Places) -> Words:
    """Put zeros in place of all but the last `width` characters."""
    keep = _KEEP_LAST[width]
    return (words & keep) | (_ZEROS & ~keep)


def _all_digits(digits: Words) -> NDArray[np.bool_]:
    """Say which words, less `_ZEROS`, have digits alone."""
    other = ((digits + _BEYOND_NINE) | digits) & _HIGH_BITS
    return np.asarray(other == 0)


def _without_point(low: Words, high: Words | None) -> tuple[Words, Words | None, Places | None]:
    """Close the gap where the last eight characters hold one decimal point; return how many digits stood behind it.

    A point without a digit behind it stays, as does a second one: neither is a digit. Where a column has no point,
    there are no decimals; where it has no more than eight characters, nothing is to be moved in from above.
    """
    point = _points(low[:1])  # a column whose numbers have all as many decimals is the rule
    if not point.any() or ((low ^ _POINTS) & (point << np.uint64(1)) - (point >> np.uint64(7))).any():
        point = _points(low)
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


def _points(words: Words) -> Words:
    """Return the high bit of the first byte that is a point, and is not the last; nothing where there is none."""
    other = words ^ _POINTS
    point = ~(((other & _LOW_BITS) + _LOW_BITS) | other | _LOW_BITS)
    point &= _HIGH_BITS >> np.uint64(8)
    point &= ~point + np.uint64(1)
    return np.asarray(point)


def _eight(digits: Words) -> Words:
    """Return the number that eight digits make, for each word less `_ZEROS`."""
    pairs = digits * np.uint64(10) + (digits >> np.uint64(8))
    return ((pairs & _OTHERS) * _PAIRS + ((pairs >> np.uint64(16)) & _OTHERS) * _PAIRS_ABOVE) >> np.uint64(32)
