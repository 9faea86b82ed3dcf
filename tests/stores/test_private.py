"""Folders and files that their owner alone may read."""

import stat
from pathlib import Path

from fieldloop.stores.private import private_folder


def test_folders_that_were_missing_above_are_private_too(tmp_path: Path) -> None:
    """Those that were there keep their rights."""
    tmp_path.chmod(0o755)
    private_folder(tmp_path / "pki" / "roster" / "gw-1")
    made = (tmp_path / "pki", tmp_path / "pki" / "roster", tmp_path / "pki" / "roster" / "gw-1")
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (*made, tmp_path)] == [0o700, 0o700, 0o700, 0o755]
