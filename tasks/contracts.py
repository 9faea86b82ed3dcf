"""Contracts: devices that do not send what their profile promises are set aside before their data lands.

Order of steps, a batch: refuse what suspended devices send, let the watch (`fieldloop.domain.contract`) judge the rest,
suspend the devices that it is certain of, and hold the messages of those in doubt. What is refused waits in quarantine.
`tasks.readmission` replays it once a device is readmitted or its doubt has passed.

What the watch has learnt is kept beside the tables, an object a slot and profile. It is written when a drain ends and
every minute on the way, or with a source's commit; a killed run goes on from the last one, and judges what it reads
again.
"""

import hashlib
import itertools
import time
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from expectations.changes import promises
from expectations.profiles import load_profile, read_profile
from fieldloop.domain.contract.keeping import absorb, keep
from fieldloop.domain.contract.promise import Finding
from fieldloop.domain.contract.watch import Watch
from fieldloop.domain.errors import DocumentError, StoreError
from fieldloop.domain.profile import Profile
from fieldloop.domain.readings import Messages, Named, Readings, Reason, Reject
from fieldloop.stores import fleet
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import SLOTS
from fieldloop.stores.standing import By, Standing, readmit, standings, suspend
from tasks.slots import slot_of

FOLDER: Final = "contracts"
LOOK_S: Final = 20.0  # between two looks at who was readmitted meanwhile
KEEP_S: Final = 60.0  # between two writings of what was learnt
SPACE: Final = pl.col("subject").str.extract("^sources/([^/]+)/").fill_null("")  # that a row of the quarantine is from


def fingerprint(profile: Profile) -> str:
    """Return what tells one content of a profile from another."""
    return hashlib.blake2b(msgspec.msgpack.encode(profile), digest_size=8).hexdigest()


class Contracts:
    """The watch in the way of acquisition, for whatever devices come by.

    Args:
        lake: where tables and memory are.
        root: where the device profiles lie.
        space: the source whose rows are judged; empty for the devices' stream. Each has positions and a memory of its
            own, for one and the same device may come by both.
        remember: whether what is learnt is kept; a replay only looks at it.
    """

    def __init__(self, lake: Lake, root: Path, space: str = "", *, remember: bool = True) -> None:
        self._lake, self._root, self._space, self._remember = lake, root, space, remember
        self._watches: dict[str, Watch] = {}
        self._loaded: set[tuple[int, str]] = set()
        self._standings: Mapping[str, Standing] = {}
        self._looked = self._kept = -np.inf
        self._fingerprints: dict[str, str] = {}

    def admit(self, profile: Profile, messages: Messages) -> tuple[NDArray[np.int64], list[Reject]]:
        """Return the rows of messages that may be looked at ([K] int64), and the refusals of suspended devices."""
        self._look(profile, messages)
        devices = Named.of(messages.devices)
        barred = {name: self._standings[name] for name in devices.names if self._bars(profile, name)}
        if not barred:
            return np.arange(len(devices)), []
        out = np.isin(devices.codes, [code for code, name in enumerate(devices.names) if name in barred])
        return np.flatnonzero(~out), [
            Reject(row, barred[devices[row]].metric, Reason.SUSPENDED, barred[devices[row]].why())
            for row in np.flatnonzero(out).tolist()
        ]

    def judge(
        self, profile: Profile, messages: Messages, readings: Readings, rejects: list[Reject]
    ) -> tuple[Readings, list[Reject]]:
        """Return what is left of harmonized readings, and of refusals, once the watch has seen them.

        A message that is suspect is refused whole, with one row in quarantine.
        """
        watch = self._watches[profile.name]
        findings = watch.judge(messages, readings, rejects)
        if found := [finding for finding in findings if finding.certain]:
            self._suspend(profile, found)
        since = watch.held() | {finding.device: finding.since for finding in found}
        names = Named.of(messages.devices)
        if not since or not (since.keys() & set(names.names)):
            return readings, rejects
        never = np.iinfo(np.int64).max
        limit = np.array([since.get(name, never) for name in names.names])[names.codes]
        suspect = messages.sequence >= limit
        told = _told(findings, found)
        refused = [told.get(names[row], _HELD).at(row) for row in np.flatnonzero(suspect).tolist()]
        kept = ~suspect[readings.message]
        readings = Readings(
            readings.message[kept], readings.metric[kept], readings.event_us[kept], readings.value[kept]
        )
        return readings, [reject for reject in rejects if not suspect[reject.message]] + refused

    def keep(self, *, now: bool = False) -> None:
        """Write what was learnt, at most once a minute unless it must be now."""
        if not self._remember or (time.monotonic() - self._kept < KEEP_S and not now):
            return
        self._kept = time.monotonic()
        for name, watch in self._watches.items():
            by_slot: dict[int, list[str]] = {}
            for device in watch.devices:
                by_slot.setdefault(slot_of(device), []).append(device)
            for slot, devices in by_slot.items():
                self._lake.put(_key(self._space, slot, name), keep(watch, devices))

    def _look(self, profile: Profile, messages: Messages) -> None:
        """Bring up to date what is known of the devices and of how they stand."""
        watch = self._watches.get(profile.name)
        if watch is None:
            document = read_profile(self._root, profile.name)
            watch = self._watches[profile.name] = Watch(promises(document), profile.cadence_us)
            self._kept = max(self._kept, time.monotonic())
        for slot in {slot_of(name) for name in Named.of(messages.devices).names}:
            if (slot, profile.name) not in self._loaded:
                self._loaded.add((slot, profile.name))
                self._absorb(watch, _key(self._space, slot, profile.name))
        if time.monotonic() - self._looked > LOOK_S:
            self._standings, self._looked = standings(self._lake), time.monotonic()
        for device in self._standings.keys() & set(Named.of(messages.devices).names):
            standing = self._standings[device]
            if not standing.suspended:
                watch.settle(device, standing.turn, anew=standing.anew)

    def _absorb(self, watch: Watch, key: str) -> None:
        data = self._lake.get(key)
        if data is None:
            return
        try:
            absorb(watch, data)
        except msgspec.MsgspecError as exc:
            raise StoreError(
                f"object {key} is not what the contract watch wrote: {exc}; remove it to learn anew"
            ) from exc

    def _bars(self, profile: Profile, device: str) -> bool:
        """Say whether a device is set aside; another content of its profile readmits it."""
        standing = self._standings.get(device)
        return standing is not None and standing.suspended and not mended(standing, self._print(profile))

    def _print(self, profile: Profile) -> str:
        return self._fingerprints.setdefault(profile.name, fingerprint(profile))

    def _suspend(self, profile: Profile, found: list[Finding]) -> None:
        """Enter suspensions at once: the batch that shows them comes again if it is not committed."""
        entries = {
            finding.device: {
                "device": finding.device,
                "metric": finding.metric,
                "change": finding.change,
                "since": finding.since,
                "profile": self._print(profile),
            }
            for finding in sorted(found, key=lambda each: -each.since)
        }
        suspend(self._lake, list(entries.values()), By.WATCH)
        self._standings = standings(self._lake)


def mended(standing: Standing, print_now: str) -> bool:
    """Say whether a device's profile is another than the one under which the watch set it aside."""
    return standing.by == By.WATCH and standing.profile != print_now


_HELD: Final = Reject(0, None, Reason.IN_DOUBT, "held until more of its messages have come")


def _told(findings: list[Finding], certain: list[Finding]) -> dict[str, Reject]:
    """Return what the rows of each device say."""
    told = {finding.device: Reject(0, finding.metric, Reason.IN_DOUBT, _why(finding)) for finding in findings}
    return told | {
        finding.device: Reject(0, finding.metric, Reason.SUSPENDED, _why(finding))
        for finding in sorted(certain, key=lambda each: -each.since)
    }


def _why(finding: Finding) -> str:
    return f"{finding.metric}: {finding.change}" if finding.metric else finding.change


def _key(space: str, slot: int, profile: str) -> str:
    return f"{FOLDER}/{f'sources/{space}/' if space else ''}{slot:02}/{profile}.msgpack"


def held_devices(lake: Lake, root: Path, spaces: Collection[str]) -> set[str]:
    """Return the devices whose messages are held at the moment, in some of these spaces."""
    found: set[str] = set()
    for name in set(fleet.devices(lake).values()):
        try:
            document = read_profile(root, name)
        except DocumentError:
            continue
        watch = Watch(promises(document), load_profile(root, name).cadence_us)
        for space, slot in itertools.product(spaces, range(SLOTS)):
            if (data := lake.get(_key(space, slot, name))) is not None:
                absorb(watch, data)
                found |= watch.held().keys()
    return found


def waiting_devices(rows: pl.LazyFrame, reason: Reason) -> dict[str, set[str]]:
    """Return the devices that have messages waiting in quarantine for a reason, each with the spaces they are from."""
    found = rows.filter(pl.col("reason") == reason).group_by("device").agg(SPACE.unique().alias("space")).collect()
    return {device: set(spaces) for device, spaces in found.iter_rows()}


def readmit_mended(lake: Lake, root: Path, slots: Collection[int]) -> tuple[str, ...]:
    """Readmit the suspended devices of these slots whose profile was mended; return their names."""
    profiles = fleet.devices(lake)
    prints: dict[str, str] = {}
    for name, standing in standings(lake).items():
        if standing.suspended and name in profiles and slot_of(name) in slots:
            try:
                print_now = fingerprint(load_profile(root, profiles[name]))
            except DocumentError:
                continue  # still being mended
            if mended(standing, print_now):
                prints[name] = print_now
    readmit(lake, prints, By.PROFILE, anew=False)
    return tuple(sorted(prints))


def suspended_since(lake: Lake, moment: datetime) -> tuple[Standing, ...]:
    """Return the devices that the watch has set aside since a moment."""
    return tuple(
        standing
        for standing in standings(lake).values()
        if standing.suspended and standing.by == By.WATCH and standing.at >= moment
    )
