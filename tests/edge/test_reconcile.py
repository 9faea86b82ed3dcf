"""Converging, looked at from inside: real slots and releases; the line and the updater's process are played."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from fieldloop.domain.enrolment import AgentConfig
from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.release import Release
from fieldloop.domain.rollout import Desired
from fieldloop.edge import download, reconcile
from fieldloop.edge.download import Job, Outcome, Read
from fieldloop.edge.link import Link
from fieldloop.edge.reconcile import TRIES, Reconciler
from fieldloop.edge.serving import Serving
from fieldloop.edge.slots import Slots
from tests.edge.targets import make_release

PACE = 12_345
FIRST, SECOND, THIRD = (make_release(version=number, bias=float(number)) for number in (1, 2, 3))
PATIENCE_S = 10.0


@dataclass
class Site:
    """A gateway's folder, and what the platform and the mirror hold for it."""

    folder: Path
    desired: Desired | None = None
    timestamp: bytes = b"1"
    revoked: dict[str, str] = field(default_factory=dict)
    mirror: dict[str, Release] = field(default_factory=dict)
    paces: list[int | None] = field(default_factory=list)
    serving: Serving = field(default_factory=Serving)

    def start(self, **changes: object) -> Reconciler:
        """Start an agent's reconciler anew, on what is in the folder."""
        known: dict[str, object] = {"poll_s": 0.01, "download_bytes_per_s": PACE, "state": "state", **changes}
        rest = dict.fromkeys(("broker", "identity", "ca", "trusted_root"), "x")
        config = msgspec.convert({"target": "gw", "devices": {}, **rest, **known}, AgentConfig)
        self.serving = Serving()
        return Reconciler(config, self.folder, self.slots, self.serving)

    @property
    def slots(self) -> Slots:
        """What the disk says."""
        return Slots(self.folder / "state")

    def order(self, release: Release, issued_us: int, shadow: Release | None = None) -> Desired:
        """Ask for a release."""
        self.mirror |= {each.digest: each for each in (release, shadow) if each}
        order = Desired(release.digest, "releases/toy/1/manifest.json", issued_us, "test")
        if shadow is not None:
            order = msgspec.structs.replace(order, shadow=shadow.digest, shadow_manifest=order.manifest)
        self.desired = order
        return order

    def follow(self, reconciler: Reconciler, until: Callable[[], bool]) -> None:
        """Let it follow the desired state until something is so."""

        async def run() -> None:
            link = Link("_INBOX.gw")
            following = asyncio.create_task(reconciler.run(link))
            try:
                async with asyncio.timeout(PATIENCE_S):
                    while not until():
                        await asyncio.sleep(0.005)
            finally:
                following.cancel()

        asyncio.run(run())


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A gateway on which nothing is installed."""
    made = Site(tmp_path)

    async def get(_: Link, bucket: str, key: str, wait_s: float = 0) -> bytes | None:
        if bucket == "desired":
            return msgspec.json.encode(made.desired) if made.desired else None
        return made.timestamp

    async def fetch(job: Job, _: Read, bytes_per_s: int | None) -> Outcome:
        made.paces.append(bytes_per_s)
        if job.desired is not None and job.desired.release in made.revoked:
            raise ReleaseError("it is not among the signed targets")
        if job.desired is not None:
            for name, data in made.mirror[job.desired.release].files().items():
                (Path(job.staging) / name).write_bytes(data)
        return Outcome(revoked={digest: why for digest, why in made.revoked.items() if digest in job.held})

    monkeypatch.setattr(reconcile, "direct_get", get)
    monkeypatch.setattr(download, "fetch", fetch)
    monkeypatch.setattr(Link, "subscribe", lambda *_: None)
    return made


def _run(site: Site, *releases: Release) -> Reconciler:
    """Have releases run, one after the other."""
    reconciler = site.start()
    for number, release in enumerate(releases, 1):
        site.order(release, number)
        site.follow(reconciler, lambda release=release: _runs(site, release))
    return reconciler


def _runs(site: Site, release: Release) -> bool:
    return site.serving.loaded is not None and site.serving.loaded.digest == release.digest


def test_releases_come_at_the_pace_that_the_configuration_allows(site: Site) -> None:
    """And the list of them, too."""
    _run(site, FIRST)
    assert set(site.paces) == {PACE}


def test_where_the_release_is_damaged_the_one_before_runs_until_it_has_come_again(site: Site) -> None:
    """Before there is a line to the platform."""
    _run(site, FIRST, SECOND)
    graph = site.slots.installed / SECOND.digest / "graph.onnx"
    graph.write_bytes(SECOND.graph[:-1])
    again = site.start()
    asyncio.run(again.load_installed())
    assert _runs(site, FIRST)
    site.follow(again, lambda: _runs(site, SECOND))
    assert graph.read_bytes() == SECOND.graph


def test_a_release_that_ended_the_agent_again_and_again_while_it_was_loaded_is_refused(site: Site) -> None:
    """Each time it had been counted before, as a power cut or a crash of the runtime leaves no word."""
    _run(site, FIRST)
    for _ in range(TRIES):
        site.slots.attempt(SECOND.digest)
    again = site.start()
    asyncio.run(again.load_installed())
    site.order(SECOND, 9)
    site.follow(again, lambda: again.attempt.refused)
    assert again.attempt.error == f"the agent ended {TRIES} times while it loaded this release"
    assert _runs(site, FIRST)


def test_a_start_that_lasts_is_no_part_of_a_crash_loop(site: Site) -> None:
    """Starts are counted from the last time that the release was found well."""
    _run(site, FIRST, SECOND)
    for starts in (2, 3):
        again = site.start(healthy_s=600.0)
        asyncio.run(again.load_installed())
        asyncio.run(again.watch())
        assert site.slots.state.starts == starts
    well = site.start(healthy_s=0.0)
    asyncio.run(well.load_installed())
    assert _runs(site, FIRST)  # it was one start too many
    assert site.slots.state.reverted is not None
    asyncio.run(well.watch())
    assert site.slots.state.starts == 0


def test_the_order_that_is_followed_last_is_the_one_that_a_release_is_left_under(site: Site) -> None:
    """A later order of what runs already is not followed once more after the release was left, at a restart either."""
    reconciler = _run(site, FIRST, SECOND)
    order = site.order(SECOND, 7)
    site.follow(reconciler, lambda: site.slots.state.issued_us == order.issued_us)
    again = site.start(crashes=0)
    asyncio.run(again.load_installed())
    assert _runs(site, FIRST)
    site.follow(again, lambda: again.attempt.desired == order)
    assert again.attempt.refused
    assert _runs(site, FIRST)


def test_a_shadow_outlives_a_restart(site: Site) -> None:
    """Without the platform, which may be away."""
    reconciler = _run(site, FIRST)
    site.order(FIRST, 2, shadow=THIRD)
    site.follow(reconciler, lambda: site.serving.shadow_loaded is not None)
    asyncio.run(site.start().load_installed())
    assert site.serving.shadow_loaded is not None
    assert site.serving.shadow_digest == THIRD.digest


def test_a_revoked_shadow_rests(site: Site) -> None:
    """What runs is left alone."""
    reconciler = _run(site, FIRST)
    site.order(FIRST, 2, shadow=THIRD)
    site.follow(reconciler, lambda: site.serving.shadow_loaded is not None)
    site.revoked, site.timestamp = {THIRD.digest: "wrong unit"}, b"2"
    site.follow(reconciler, lambda: site.slots.state.shadow is None)
    assert site.serving.shadow_loaded is None
    assert _runs(site, FIRST)
