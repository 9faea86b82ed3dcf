"""Messages for the platform, kept on disk until it has them: numbered, appended, sent in order, dropped once taken.

Bounded: when it is full, what is new is refused and what it holds is kept, so that nothing it has accepted is ever
lost; predictions are refused somewhat earlier than alerts. Each refusal belongs to a gap, which is reported.
Files: `<number of the first>.log` segments of records, and `mark.json`, up to where the platform has them.
"""

import os
import struct
import time
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from fieldloop.domain.rollout import Gap
from fieldloop.domain.rollout import Spool as SpoolState
from fieldloop.edge import files

SEGMENT_BYTES: Final = 1 << 20  # a segment is closed above it
RESERVE: Final = 0.1  # of the limit, for alerts alone
RECENT: Final = 2048  # messages kept in memory beside the disk, at most
RECENT_BYTES: Final = 1 << 20
GAPS: Final = 8  # that are remembered, newest last
_HEAD: Final = struct.Struct("<IIQB")  # bytes of data, CRC-32 of what follows it, number, kind


class Kind(IntEnum):
    """What a message is, and so where it goes."""

    PREDICTIONS = 0
    ALERT = 1


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One message; `number` counts all that were ever accepted, from 1."""

    number: int
    kind: Kind
    data: bytes


@dataclass
class _Segment:
    """A file of consecutive records."""

    path: Path
    first: int
    count: int = 0
    size: int = 0


class _Mark(msgspec.Struct, frozen=True):
    """Up to which number the platform has all, and what was refused."""

    taken: int = 0
    dropped: int = 0
    gaps: tuple[Gap, ...] = ()


class Spool:
    """The spool in one folder."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Find what is there; a record that a power cut left half is the end of its segment."""
        files.make_folder(folder)
        self._folder = folder
        self._limit = limit_bytes
        self._mark = _read_mark(folder / "mark.json")
        self._saved_mark = self._mark
        self._segments = [_scan(path) for path in sorted(folder.glob("*.log"))]
        for empty in [segment for segment in self._segments if not segment.count]:
            files.remove(empty.path)
            self._segments.remove(empty)
        self._bytes = sum(segment.size for segment in self._segments)
        ends = [segment.first + segment.count - 1 for segment in self._segments]
        self.last = max([self._mark.taken, *ends])  # number of the newest message
        self.taken = max(self._mark.taken, self._segments[0].first - 1 if self._segments else 0)
        self._taken_ahead: set[int] = set()
        self._recent: deque[Entry] = deque()  # the newest, without a gap up to `last`
        self._recent_bytes = 0
        self._handle: int | None = None
        self._unsynced: set[int] = set()  # handles
        self._volatile = 0  # number of the newest that is in memory alone, because the disk refused it
        self._dropped, self._gaps = self._mark.dropped, list(self._mark.gaps)
        self._gap_open = False
        self._cursor = (0, 0)  # number and place in its segment from which reading goes on

    def add(self, kind: Kind, messages: Sequence[bytes]) -> int:
        """Append messages; return how many were accepted: all, or those that there was room for."""
        accepted = [data for data in messages if self._admit(kind, len(data) + _HEAD.size)]
        if accepted:
            entries = [Entry(self.last + n, kind, data) for n, data in enumerate(accepted, 1)]
            self.last += len(entries)
            self._remember(entries)
            try:
                self._append(entries)
            except OSError:
                self._volatile = self.last
                self._abandon_segment()
        self._count_refused(len(messages) - len(accepted))
        return len(accepted)

    def entries(self, after: int, most: int) -> list[Entry]:
        """Return up to so many messages from number `after` + 1 on, of those that may have to be sent; see `has`."""
        after = max(after, self.taken)
        if after >= self.last:
            return []
        if self._recent and after + 1 >= self._recent[0].number:
            begin = after + 1 - self._recent[0].number
            return list(islice(self._recent, begin, begin + most))
        return self._read(after + 1, most)

    def kept(self, after: int, most: int) -> list[Entry]:
        """Return up to so many messages on the disk from number `after` + 1 on, though the platform may have them."""
        return self._read(after + 1, most)

    def has(self, number: int) -> bool:
        """Say whether the platform is known to have a message."""
        return number <= self.taken or number in self._taken_ahead

    def book(self, number: int) -> None:
        """Book that the platform has a message."""
        self._taken_ahead.add(number)
        while self.taken + 1 in self._taken_ahead:
            self.taken += 1
            self._taken_ahead.discard(self.taken)
        while self._recent and self._recent[0].number <= self.taken:
            self._recent_bytes -= len(self._recent.popleft().data)

    @property
    def durable(self) -> bool:
        """Whether `sync` makes all durable that the platform does not have."""
        return self._volatile <= self.taken

    @property
    def congested(self) -> bool:
        """Whether the disk refuses and memory is full: nothing more can be accepted."""
        return not self.durable and len(self._recent) >= RECENT // 2

    def sync(self) -> None:
        """Make what was appended durable; may run in another thread than `add`."""
        for handle in tuple(self._unsynced):
            self._unsynced.discard(handle)  # before: what is appended meanwhile marks it again
            files.sync_handle(handle)
            if handle != self._handle:
                os.close(handle)
        mark = _Mark(self.taken, self._dropped, tuple(self._gaps))
        if mark != self._saved_mark:
            files.write_atomic(self._folder / "mark.json", msgspec.json.encode(mark))
            self._saved_mark = mark

    def trim(self, upto: int) -> None:
        """Remove the segments of which the platform has all and that lie within the first `upto` messages."""
        done = min(upto, self._saved_mark.taken)
        while self._segments and self._segments[0].first + self._segments[0].count - 1 <= done:
            if len(self._segments) == 1:
                if self._segments[0].size < SEGMENT_BYTES // 4:
                    return
                self._close_segment()
            gone = self._segments.pop(0)
            self._bytes -= gone.size
            files.remove(gone.path)

    def state(self) -> SpoolState:
        """Return what is reported of it."""
        waiting = self.last - self.taken - len(self._taken_ahead)
        return SpoolState(waiting, self._bytes, self._dropped, tuple(self._gaps))

    def _admit(self, kind: Kind, size: int) -> bool:
        limit = self._limit if kind is Kind.ALERT else self._limit * (1 - RESERVE)
        return self._bytes + size <= limit

    def _count_refused(self, refused: int) -> None:
        """Note what was refused: it opens a gap or widens the open one; an acceptance closes it."""
        if not refused:
            self._gap_open = False
            return
        now_us = time.time_ns() // 1000
        self._dropped += refused
        if self._gap_open:
            last = self._gaps.pop()
            self._gaps.append(Gap(last.from_us, now_us, last.count + refused))
        else:
            self._gaps = [*self._gaps[1 - GAPS :], Gap(now_us, now_us, refused)]
        self._gap_open = True

    def _remember(self, entries: list[Entry]) -> None:
        self._recent.extend(entries)
        self._recent_bytes += sum(len(entry.data) for entry in entries)
        while len(self._recent) > RECENT or self._recent_bytes > RECENT_BYTES:
            if self._volatile >= self._recent[0].number:
                return  # it is nowhere else
            self._recent_bytes -= len(self._recent.popleft().data)

    def _append(self, entries: list[Entry]) -> None:
        data = b"".join(_record(entry) for entry in entries)
        if self._handle is None or self._segments[-1].size >= SEGMENT_BYTES:
            self._open_segment(entries[0].number)
        assert self._handle is not None  # noqa: S101 - `_open_segment` made it
        files.append(self._handle, data)
        self._unsynced.add(self._handle)
        segment = self._segments[-1]
        segment.count += len(entries)
        segment.size += len(data)
        self._bytes += len(data)

    def _open_segment(self, first: int) -> None:
        self._close_segment()
        path = self._folder / f"{first:020d}.log"
        self._handle = files.open_append(path)
        self._segments.append(_Segment(path, first))

    def _close_segment(self) -> None:
        if self._handle is not None and self._handle not in self._unsynced:
            os.close(self._handle)
        self._handle = None

    def _abandon_segment(self) -> None:
        """Let the next message begin another segment: in this one a number would be missing."""
        if self._handle is None:
            return
        self._close_segment()
        if not self._segments[-1].count:
            files.remove(self._segments.pop().path)

    def _read(self, number: int, most: int) -> list[Entry]:
        """Return messages from the disk, of one segment: the first that has any from this number on."""
        place = bisect_right([segment.first for segment in self._segments], number) - 1
        for segment in self._segments[max(place, 0) :]:
            if found := self._read_segment(segment, number, most):
                return found
        return []

    def _read_segment(self, segment: _Segment, number: int, most: int) -> list[Entry]:
        reached, offset = self._cursor
        if not segment.first < reached <= min(number, segment.first + segment.count):
            offset = 0
        found: list[Entry] = []
        for entry, end in _records(segment.path, offset):
            if entry.number >= number:
                found.append(entry)
                self._cursor = (entry.number + 1, end)
            if len(found) >= most:
                break
        return found


def _record(entry: Entry) -> bytes:
    crc = zlib.crc32(entry.data, zlib.crc32(b"%d %d" % (entry.number, entry.kind)))
    return _HEAD.pack(len(entry.data), crc, entry.number, entry.kind) + entry.data


def _records(path: Path, offset: int = 0) -> Iterator[tuple[Entry, int]]:
    """Yield the whole records of a segment, each with the place after it."""
    with path.open("rb") as file:
        file.seek(offset)
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            size, _, number, kind = _HEAD.unpack(head)
            if kind not in (Kind.PREDICTIONS, Kind.ALERT):
                return
            entry = Entry(number, Kind(kind), file.read(size))
            if len(entry.data) != size or _record(entry)[: _HEAD.size] != head:
                return
            offset += _HEAD.size + size
            yield entry, offset


def _scan(path: Path) -> _Segment:
    """Measure a segment and cut off what is not whole."""
    segment = _Segment(path, 0)
    for entry, end in _records(path):
        segment.first = segment.first or entry.number
        segment.count, segment.size = entry.number - segment.first + 1, end
    os.truncate(path, segment.size)
    return segment


def _read_mark(path: Path) -> _Mark:
    try:
        return msgspec.json.decode(files.read_or_none(path) or b"{}", type=_Mark)
    except msgspec.MsgspecError:
        return _Mark()
