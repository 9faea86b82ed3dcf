"""The releases on this gateway's disk: two slots and a shadow, installed by one rename, switched by another.

- `incoming/<digest>/`: being downloaded; may be half there
- `releases/<digest>/`: complete; checked again against its digest whenever it is loaded
- `slots.json`: which release runs, which is the one to go back to, which is the shadow, and how the running one fares
"""

import re
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.release import CANARY, GRAPH, MANIFEST, Release, release_folder
from fieldloop.domain.rollout import Reverted
from fieldloop.edge import files

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")  # SHA-256


class State(msgspec.Struct, frozen=True):
    """What `slots.json` holds.

    Attributes:
        current: digest of the release to run.
        previous: the one to go back to.
        shadow: the one that runs beside, unpublished.
        issued_us: `Desired.issued_us` of the order that `current` followed.
        since_us: when it was switched to, own clock, microseconds since the epoch.
        starts: of the agent with it, since it was last found well.
        restarts: of the agent with it, beyond the first.
        reverted: the last release that was left by itself.
        trying: digest of the release that is being taken into the agent's own process.
        tries: how often it has been; it is back at none once it runs.
    """

    current: str | None = None
    previous: str | None = None
    shadow: str | None = None
    issued_us: int = 0
    since_us: int = 0
    starts: int = 0
    restarts: int = -1
    reverted: Reverted | None = None
    trying: str | None = None
    tries: int = 0


class Slots:
    """Releases under one state folder."""

    def __init__(self, folder: Path) -> None:
        self._incoming = folder / "incoming"
        self.installed = folder / "releases"
        self._file = folder / "slots.json"
        for path in (self._incoming, self.installed):
            files.make_folder(path)
        self.state = self._read()

    def staging(self, digest: str) -> Path:
        """Return the folder into which a release is downloaded, kept where it is there; all other ones are dropped.

        Raises:
            ReleaseError: what is asked for is no digest, and must not become a path.
        """
        if not _DIGEST.fullmatch(digest):
            raise ReleaseError(f"desired release: expected a SHA-256 in hexadecimal, got {digest!r}: deploy again")
        for other in self._incoming.iterdir():
            if other.name != digest:
                files.remove(other)
        files.make_folder(self._incoming / digest)
        return self._incoming / digest

    def holds(self, digest: str, labels: Collection[str] = ()) -> bool:
        """Say whether a release is installed, whole, with the graph for these labels."""
        try:
            return self.load(digest).open(digest).suits(labels)
        except ReleaseError:
            return False

    def load(self, digest: str) -> Release:
        """Read an installed release and check it against its digest.

        Raises:
            ReleaseError: a file is missing or is not what the digest stands for.
        """
        release = read_release(self.installed / digest)
        release.open(digest)
        return release

    def held(self) -> dict[str, str]:
        """Return the manifest's path in the repository by digest of the releases here that can be read."""
        found = {}
        for digest in filter(None, (self.state.current, self.state.previous, self.state.shadow)):
            with suppress(ReleaseError):
                manifest = self.load(digest).open(digest)
                found[digest] = f"{release_folder(manifest.model, manifest.version)}/{MANIFEST}"
        return found

    def drop(self, digests: Collection[str]) -> None:
        """Forget releases, but for the one that runs: it goes when there is another."""
        previous, shadow = (None if each in digests else each for each in (self.state.previous, self.state.shadow))
        if (previous, shadow) != (self.state.previous, self.state.shadow):
            self._write(msgspec.structs.replace(self.state, previous=previous, shadow=shadow))
            self._drop_others()

    def install(self, digest: str) -> None:
        """Move a staged and proved release to the installed ones."""
        staged, installed = self.staging(digest), self.installed / digest
        for path in staged.iterdir():
            if path.name not in (GRAPH, CANARY, MANIFEST):
                files.remove(path)
        for name in (GRAPH, CANARY, MANIFEST):
            files.sync(staged / name)
        files.sync_folder(staged)
        files.remove(installed)  # there only where it failed its check
        files.rename(staged, installed)
        files.sync_folder(self.installed)

    def switch(self, digest: str, issued_us: int) -> None:
        """Make an installed release the one to run; the one before is kept to go back to."""
        state = self.state
        previous = state.current if state.current != digest else state.previous
        self._write(
            State(digest, previous, state.shadow, issued_us, time.time_ns() // 1000, starts=1, restarts=0,
                  reverted=state.reverted)
        )  # fmt: skip
        self._drop_others()

    def revert(self, reason: str) -> None:
        """Go back to the release before and remember why.

        Raises:
            ReleaseError: there is none.
        """
        state, now_us = self.state, time.time_ns() // 1000
        if state.current is None or state.previous is None:
            raise ReleaseError(f"there is no release to go back to: {reason}")
        reverted = Reverted(state.current, reason, state.issued_us, now_us)
        self._write(State(state.previous, None, state.shadow, state.issued_us, now_us, 1, 0, reverted))
        self._drop_others()

    def follow(self, issued_us: int) -> None:
        """Remember that the running release is what a later order wants, too."""
        if issued_us != self.state.issued_us:
            self._write(msgspec.structs.replace(self.state, issued_us=issued_us))

    def attempt(self, digest: str) -> int:
        """Count that a release is about to be loaded here; return how often it has been without running after it."""
        before = self.state.tries if self.state.trying == digest else 0
        self._write(msgspec.structs.replace(self.state, trying=digest, tries=before + 1))
        return before

    def shade(self, digest: str | None) -> None:
        """Remember which installed release is the shadow."""
        if digest != self.state.shadow:
            self._write(msgspec.structs.replace(self.state, shadow=digest))
            self._drop_others()

    def clear(self) -> None:
        """Forget all releases."""
        self._write(State(reverted=self.state.reverted))
        self._drop_others()

    def started(self) -> None:
        """Count a start of the agent, before the release is touched."""
        if self.state.current is not None:
            state = self.state
            self._write(msgspec.structs.replace(state, starts=state.starts + 1, restarts=state.restarts + 1))

    def confirm(self) -> None:
        """Remember that the running release is well."""
        if self.state.starts:
            self._write(msgspec.structs.replace(self.state, starts=0))

    def _read(self) -> State:
        """Return the file's state; one that is damaged points to nothing."""
        try:
            state = msgspec.json.decode(files.read_or_none(self._file) or b"{}", type=State)
        except msgspec.MsgspecError:
            return State()
        named = (state.current, state.previous, state.shadow)
        return state if all(name is None or _DIGEST.fullmatch(name) for name in named) else State()

    def _write(self, state: State) -> None:
        files.write_atomic(self._file, msgspec.json.encode(state))
        self.state = state

    def _drop_others(self) -> None:
        keep = {self.state.current, self.state.previous, self.state.shadow}
        for folder in self.installed.iterdir():
            if folder.name not in keep:
                files.remove(folder)


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
