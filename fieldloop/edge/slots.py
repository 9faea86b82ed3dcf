"""The releases on this gateway's disk: staged to the side, installed by one rename, switched by another.

- `incoming/<digest>/`: being downloaded; may be half there
- `releases/<digest>/`: complete; checked again against its digest whenever it is loaded
- `current`: digest of the release to run
"""

import os
import re
import shutil
from pathlib import Path
from typing import Final

from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.release import CANARY, GRAPH, MANIFEST, Release
from fieldloop.edge.files import flush_folder, read_or_none, write_atomic

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")  # SHA-256


class Slots:
    """Releases under one state folder."""

    def __init__(self, folder: Path) -> None:
        self._incoming = folder / "incoming"
        self._releases = folder / "releases"
        self._current = folder / "current"
        for path in (self._incoming, self._releases):
            path.mkdir(parents=True, exist_ok=True)

    def current(self) -> str | None:
        """Return the digest of the release to run, None where there is none."""
        digest = (read_or_none(self._current) or b"").decode(errors="replace").strip()
        return digest if _DIGEST.fullmatch(digest) else None

    def staging(self, digest: str) -> Path:
        """Return the folder into which a release is downloaded; what is already there may be kept.

        Raises:
            ReleaseError: what is asked for is no digest, and must not become a path.
        """
        if not _DIGEST.fullmatch(digest):
            raise ReleaseError(f"desired release: expected a SHA-256 in hexadecimal, got {digest!r}: deploy again")
        folder = self._incoming / digest
        folder.mkdir(exist_ok=True)
        return folder

    def load(self, digest: str) -> Release:
        """Read an installed release and check it against its digest.

        Raises:
            ReleaseError: a file is missing or is not what the digest stands for.
        """
        release = read_release(self._releases / digest)
        release.open(digest)
        return release

    def install(self, digest: str) -> None:
        """Move a staged and proved release to the installed ones."""
        staged, installed = self.staging(digest), self._releases / digest
        for name in (GRAPH, CANARY, MANIFEST):
            with (staged / name).open("rb") as file:
                os.fsync(file.fileno())
        flush_folder(staged)
        shutil.rmtree(installed, ignore_errors=True)  # there only where it failed its check
        staged.replace(installed)
        flush_folder(self._releases)

    def switch(self, digest: str) -> None:
        """Make a release the one to run, and drop all but it and the one before."""
        keep = {digest, self.current()}
        write_atomic(self._current, digest.encode())
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._incoming.mkdir(exist_ok=True)
        for folder in self._releases.iterdir():
            if folder.name not in keep:
                shutil.rmtree(folder, ignore_errors=True)


def read_release(folder: Path) -> Release:
    """Read the three files of a release, unchecked.

    Raises:
        ReleaseError: a file is missing.
    """
    try:
        manifest, graph, canary = ((folder / name).read_bytes() for name in (MANIFEST, GRAPH, CANARY))
    except OSError as exc:
        raise ReleaseError(f"release {folder.name} is not complete on disk: {exc}: it is fetched again") from exc
    return Release(manifest, graph, canary)
