"""Readmission: what was held or set aside lands after all, by replay out of quarantine, once.

A device is readmitted by an operator, or by a profile that was mended; a doubt passes by itself once further messages
have settled it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from prefect import task
from prefect.events import emit_event

from expectations.profiles import load_profile
from fieldloop.domain.errors import StoreError
from fieldloop.domain.readings import Reason
from fieldloop.stores import fleet
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from fieldloop.stores.standing import By, Standing, readmit, standings, suspend
from tasks.acquire import WHOLE, Share
from tasks.contracts import fingerprint, held_devices, readmit_mended, suspended_since, waiting_devices
from tasks.quarantine import Choice, Replayed, replay, waiting
from tasks.slots import slot_of


@dataclass(frozen=True)
class Settled:
    """What became of devices that were set aside or held.

    Attributes:
        suspended: those set aside since the run began.
        readmitted: those whose mended profile readmitted them.
        released: devices whose doubt has passed.
        readings: rows that are new in table `readings` by both.
    """

    suspended: tuple[Standing, ...]
    readmitted: tuple[str, ...]
    released: tuple[str, ...]
    readings: int


@task(name="settle doubts", retries=3, retry_delay_seconds=5, timeout_seconds=3600)
def settle_doubts(since: datetime, share: Share = WHOLE) -> Settled:
    """Readmit devices with a mended profile, release what is in doubt no more, and name who was set aside."""
    return settle(Settings(), since, share)


def settle(settings: Settings, since: datetime, share: Share = WHOLE) -> Settled:
    """Land what is held or set aside no more; changes nothing where there is nothing of the kind.

    Args:
        settings: where the services are.
        since: devices that were set aside after this moment are named.
        share: whose devices; a run that drains a part leaves the others to those that drain them.

    Raises:
        StoreError: the lake cannot be reached, or acquisition committed at the same time.
    """
    lake = Lake(settings)
    mended = readmit_mended(lake, settings.root, share.slots)
    readings = sum(_land(settings, device).readings for device in mended)
    doubted = {
        device: spaces
        for device, spaces in waiting_devices(waiting(lake), Reason.IN_DOUBT).items()
        if slot_of(device) in share.slots
    }
    aside = {name for name, standing in standings(lake).items() if standing.suspended}
    spaces = {space for device in doubted.keys() - aside for space in doubted[device]}
    released = doubted.keys() - aside - held_devices(lake, settings.root, spaces)
    readings += sum(_land(settings, device).readings for device in sorted(released))
    suspended = tuple(each for each in suspended_since(lake, since) if slot_of(each.device) in share.slots)
    return Settled(suspended, mended, tuple(sorted(released)), readings)


def describe_settled(settled: Settled) -> str:
    """Return who was set aside or came back, as Markdown for a person; nothing where nobody was."""
    aside = [f"| {standing.device} | {standing.why()} |" for standing in settled.suspended]
    lines = ["", "| set aside | suspected |", "|---|---|", *aside] if aside else []
    for text, devices in (("readmitted, profile mended", settled.readmitted), ("in doubt no more", settled.released)):
        if devices:
            lines += ["", f"{text}: {', '.join(devices)}"]
    return "\n".join(lines)


def announce(settled: Settled) -> None:
    """Emit an event for each device that was set aside."""
    for standing in settled.suspended:
        emit_event(
            event="fieldloop.device.suspended",
            resource={"prefect.resource.id": f"fieldloop.device.{standing.device}"},
            payload={"device": standing.device, "metric": standing.metric, "suspected": standing.change},
        )


def suspend_devices(settings: Settings, devices: Sequence[str], reason: str) -> None:
    """Set devices aside because a person wants it.

    Raises:
        StoreError: one of them is not enrolled, or the lake cannot be reached.
    """
    lake = Lake(settings)
    profiles = fleet.devices(lake)
    for device in devices:
        if device not in profiles:
            raise StoreError(f"device `{device}` is not enrolled; `fieldloop device list` shows who is")
    entries = [{"device": device, "metric": None, "change": reason, "since": 0, "profile": ""} for device in devices]
    suspend(lake, entries, By.OPERATOR)


def readmit_devices(settings: Settings, devices: Sequence[str]) -> Replayed:
    """Readmit devices because what they send now is right; they are learnt anew, and their backlog lands.

    Raises:
        StoreError: one of them is neither set aside nor held, or the lake cannot be reached.
        DocumentError: a device's profile cannot be used.
    """
    lake = Lake(settings)
    standing, profiles = standings(lake), fleet.devices(lake)
    held = waiting_devices(waiting(lake), Reason.IN_DOUBT)
    for device in devices:
        if device not in profiles or not ((device in standing and standing[device].suspended) or device in held):
            raise StoreError(f"device `{device}` is not set aside; `fieldloop device list` shows who is")
    prints = {device: fingerprint(load_profile(settings.root, profiles[device])) for device in devices}
    readmit(lake, prints, By.OPERATOR, anew=True)
    return sum((_land(settings, device) for device in devices), Replayed())


def _land(settings: Settings, device: str) -> Replayed:
    """Replay what waits of a device because it was held or set aside."""
    return sum((replay(settings, Choice(reason, device)) for reason in (Reason.SUSPENDED, Reason.IN_DOUBT)), Replayed())
