"""Releases on disk: what a kill or a power cut may leave behind, and what must never become a path."""

from pathlib import Path

import pytest

from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.release import Release
from fieldloop.edge.slots import Slots
from tests.edge.targets import make_release


def _install(slots: Slots, release: Release) -> None:
    folder = slots.staging(release.digest)
    for name, data in release.files().items():
        (folder / name).write_bytes(data)
    slots.install(release.digest)


def test_nothing_runs_before_the_switch(tmp_path: Path) -> None:
    """Staged and installed are not running: a kill in between leaves things as they were."""
    slots, release = Slots(tmp_path), make_release()
    _install(slots, release)
    assert slots.state.current is None
    slots.switch(release.digest, 1)
    assert Slots(tmp_path).state.current == release.digest
    assert slots.load(release.digest) == release


def test_a_half_download_is_no_release(tmp_path: Path) -> None:
    """What is in the side folder is never run."""
    slots, release = Slots(tmp_path), make_release()
    (slots.staging(release.digest) / "graph.onnx").write_bytes(release.graph[:10])
    with pytest.raises(ReleaseError, match="not complete"):
        slots.load(release.digest)


def test_the_release_before_is_kept_and_older_ones_are_dropped(tmp_path: Path) -> None:
    """Two slots: one to run, one to go back to."""
    slots = Slots(tmp_path)
    made = [make_release(version=n) for n in (1, 2, 3)]
    for release in made:
        _install(slots, release)
        slots.switch(release.digest, 1)
    assert {folder.name for folder in (tmp_path / "releases").iterdir()} == {made[1].digest, made[2].digest}


@pytest.mark.parametrize("content", [b"", b"../../etc", b"\xff\xfe", b'{"current": "../etc"}', b'{"current": 1}'])
def test_a_damaged_pointer_points_to_nothing(tmp_path: Path, content: bytes) -> None:
    """The agent then begins anew instead of failing."""
    (tmp_path / "slots.json").write_bytes(content)
    assert Slots(tmp_path).state.current is None


def test_a_desired_release_that_is_no_digest_never_becomes_a_path(tmp_path: Path) -> None:
    """Desired state comes over the wire."""
    with pytest.raises(ReleaseError, match="SHA-256"):
        Slots(tmp_path / "state").staging("../outside")
    assert not (tmp_path / "outside").exists()
