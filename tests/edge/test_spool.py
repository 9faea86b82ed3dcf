"""The spool: order, bounds, gaps, and what a restart or a full disk makes of it."""

import errno
from pathlib import Path
from unittest import mock

import pytest

from fieldloop.edge import files
from fieldloop.edge.spool import RECENT, SEGMENT_BYTES, Entry, Kind, Spool

ROOM = 64 << 20


def _waiting(spool: Spool) -> list[Entry]:
    """Read all that waits, as the sender does."""
    found: list[Entry] = []
    while entries := spool.entries(found[-1].number if found else spool.taken, 100):
        found += entries
    return found


def _numbers(spool: Spool) -> list[int]:
    return [entry.number for entry in _waiting(spool)]


def test_what_waits_comes_back_in_order_after_a_restart(tmp_path: Path) -> None:
    """More than memory holds, over several files."""
    spool = Spool(tmp_path, ROOM)
    count = RECENT * 2
    for number in range(count):
        spool.add(Kind.PREDICTIONS, [b"%06d" % number + bytes(SEGMENT_BYTES // RECENT)])
    assert _numbers(spool) == list(range(1, count + 1))
    spool.sync()
    again = Spool(tmp_path, ROOM)
    assert _numbers(again) == list(range(1, count + 1))
    assert again.entries(4000, 1)[0].data[:6] == b"004000"


def test_what_the_platform_has_is_dropped_and_stays_dropped(tmp_path: Path) -> None:
    """Acknowledged in any order; files go once all in them is booked and the checkpoint is past them."""
    spool = Spool(tmp_path, ROOM)
    for _ in range(4):
        spool.add(Kind.PREDICTIONS, [bytes(SEGMENT_BYTES // 2)] * 2)
    for number in (2, 1, 3, 5, 6, 7, 8):
        spool.book(number)
    assert spool.taken == 3
    assert spool.state().waiting == 1
    spool.book(4)
    spool.sync()
    spool.trim(4)
    assert spool.state().bytes < 5 * SEGMENT_BYTES // 2
    spool.trim(8)
    assert list(tmp_path.glob("*.log")) == []
    again = Spool(tmp_path, ROOM)
    assert (again.last, again.taken) == (8, 8)


def test_what_the_platform_has_is_still_read_where_a_state_does_not_cover_it(tmp_path: Path) -> None:
    """A kill between the spool's mark and the streams' state must not hide what was predicted since the last state."""
    spool = Spool(tmp_path, ROOM)
    spool.add(Kind.PREDICTIONS, [b"1", b"2", b"3"])
    for number in (1, 2, 3):
        spool.book(number)
    spool.sync()
    again = Spool(tmp_path, ROOM)
    assert again.entries(1, 10) == []
    assert [entry.data for entry in again.kept(1, 10)] == [b"2", b"3"]
    assert again.kept(3, 10) == []


def test_a_full_spool_refuses_what_is_new_and_reports_the_gap(tmp_path: Path) -> None:
    """What it has taken it keeps; alerts still find room when predictions do not; one gap an outage."""
    spool = Spool(tmp_path, 100_000)
    accepted = sum(spool.add(Kind.PREDICTIONS, [bytes(1000)]) for _ in range(120))
    assert 80 < accepted < 95
    assert spool.add(Kind.ALERT, [bytes(1000)]) == 1
    state = spool.state()
    assert (state.waiting, state.dropped) == (accepted + 1, 120 - accepted)
    assert [gap.count for gap in state.gaps] == [120 - accepted]
    spool.sync()
    assert Spool(tmp_path, 100_000).state() == state


def test_a_torn_record_ends_the_spool(tmp_path: Path) -> None:
    """A power cut in the middle of a write; what was added later is not mistaken for its rest."""
    spool = Spool(tmp_path, ROOM)
    spool.add(Kind.PREDICTIONS, [b"one", b"two"])
    spool.sync()
    path = next(tmp_path.glob("*.log"))
    path.write_bytes(path.read_bytes()[:-1])
    again = Spool(tmp_path, ROOM)
    assert [entry.data for entry in again.entries(0, 9)] == [b"one"]
    again.add(Kind.PREDICTIONS, [b"three"])
    assert [entry.data for entry in _waiting(Spool(tmp_path, ROOM))] == [b"one", b"three"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG])
def test_on_a_full_disk_nothing_counts_as_durable_until_the_platform_has_it(tmp_path: Path, code: int) -> None:
    """Messages stay in memory and can be sent; the next that the disk takes begins another file."""
    spool = Spool(tmp_path, ROOM)
    spool.add(Kind.PREDICTIONS, [b"one"])
    with mock.patch.object(files.os, "write", side_effect=OSError(code, "full")):
        spool.add(Kind.PREDICTIONS, [b"two"])
    assert not spool.durable
    spool.add(Kind.PREDICTIONS, [b"three"])
    assert [entry.data for entry in spool.entries(0, 9)] == [b"one", b"two", b"three"]
    spool.book(1)
    spool.book(2)
    assert spool.durable
    spool.sync()
    assert [entry.data for entry in Spool(tmp_path, ROOM).entries(2, 9)] == [b"three"]
