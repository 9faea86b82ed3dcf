"""Power cuts at every step of installing, switching, going back and spooling, with what was not synced lost."""

from pathlib import Path

import msgspec

from benchmarks.power import record
from fieldloop.domain.release import Release
from fieldloop.edge import files
from fieldloop.edge.slots import Slots
from fieldloop.edge.spool import Kind, Spool
from tests.edge.targets import make_release


def _bring(slots: Slots, release: Release, order: int) -> None:
    """Stage a release as the updater does, unsynced, then install it and switch."""
    folder = slots.staging(release.digest)
    for name, data in release.files().items():
        files.write(folder / name, data)
    slots.install(release.digest)
    slots.switch(release.digest, order)


def test_a_cut_anywhere_leaves_a_whole_release_to_run(tmp_path: Path) -> None:
    """From the first switch on there is always one that loads, and the work can be taken up and finished."""
    first, second, third = (make_release(version=n, bias=n) for n in (1, 2, 3))
    root = tmp_path / "state"
    root.mkdir()
    with record(root) as recording:
        slots = Slots(root)
        _bring(slots, first, 1)
        switched = len(recording.steps)
        slots.started()
        _bring(slots, second, 2)
        slots.revert("slow")
        _bring(slots, third, 3)
        slots.confirm()
    assert switched > 10
    for steps, cut, image in recording.images(tmp_path / "cuts"):
        found = Slots(image)
        if steps >= switched:
            assert found.state.current is not None, (steps, cut)
        for digest in (found.state.current, found.state.previous):
            assert digest is None or found.load(digest).digest == digest, (steps, cut)
        _bring(found, third, 3)
        assert Slots(image).load(third.digest) == third, (steps, cut)


def test_a_cut_anywhere_loses_no_acknowledged_prediction(tmp_path: Path) -> None:
    """What was synced is found again, in order and unharmed, and numbers never go back."""
    root = tmp_path / "spool"
    root.mkdir()
    safe = [(0, 0)]  # steps, and how many messages were safe by then
    with record(root) as recording:
        spool = Spool(root, 1 << 20)
        for batch in range(8):
            spool.add(Kind.PREDICTIONS, [b"%d" % number for number in range(spool.last + 1, spool.last + 4)])
            if batch % 2:
                spool.sync()
                safe.append((len(recording.steps), spool.last))
            for number in range(1, 3 * batch - 8):
                spool.book(number)
    for steps, cut, image in recording.images(tmp_path / "cuts"):
        acknowledged = max(count for at, count in safe if at <= steps)
        found = Spool(image, 1 << 20)
        assert found.last >= acknowledged, (steps, cut)
        waiting = found.entries(found.taken, 100)
        assert [entry.data for entry in waiting] == [b"%d" % entry.number for entry in waiting], (steps, cut)
        assert [e.number for e in waiting] == list(range(found.taken + 1, found.last + 1)), (steps, cut)


def test_a_checkpoint_never_runs_ahead_of_the_spool(tmp_path: Path) -> None:
    """State that says that so many messages are spooled finds them spooled."""
    root = tmp_path / "state"
    root.mkdir()
    with record(root) as recording:
        spool = Spool(root / "spool", 1 << 20)
        for _ in range(4):
            spool.add(Kind.PREDICTIONS, [b"x", b"y"])
            spooled = spool.last
            spool.sync()
            files.write_atomic(root / "streams", msgspec.json.encode(spooled))
    for steps, cut, image in recording.images(tmp_path / "cuts"):
        state = files.read_or_none(image / "streams")
        assert Spool(image / "spool", 1 << 20).last >= (msgspec.json.decode(state) if state else 0), (steps, cut)
