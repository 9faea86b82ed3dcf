"""Partitions: the stream split by a hash of the device, each part with application transactions of its own.

A device belongs to one of a fixed number of slots for ever; a partition is a set of slots. Each slot has its own
position in the tables, so the number of partitions may be another in every run: nothing is lost or doubled by it.
A partition is drained in this process, or in one of its own (`python -m tasks.partitions`, see `tasks.crew`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from fieldloop.domain.readings import Messages, Named
from fieldloop.stores.carried import from_position
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import SLOTS
from tasks.landing import Batch, Decoder, Landed, Landing
from tasks.slots import slot_of

APPLICATIONS: Final = tuple(f"acquire/readings/{slot:02}" for slot in range(SLOTS))  # one a slot


def application_of(device: str) -> str:
    """Return the application in whose name the messages of a device are committed."""
    return APPLICATIONS[slot_of(device)]


def slots_of(number: int, partitions: int) -> tuple[int, ...]:
    """Return the slots of partition `number` (from 0) of so many."""
    return tuple(range(number, SLOTS, partitions))


def positions(lake: Lake) -> Mapping[int, int]:
    """Return the position in stream `readings` up to which the tables have everything, a slot."""
    snapshot = lake.snapshot("readings")
    return {slot: snapshot.transaction(application) for slot, application in enumerate(APPLICATIONS)}


@dataclass(frozen=True)
class Part:
    """What a partition gets of a batch: its messages, their subjects, and the last position of the whole batch."""

    messages: Messages
    subjects: Named
    last: int


class Partition:
    """Decodes and commits the messages of some slots.

    Args:
        lake: where to.
        root: where the device profiles lie.
        slots: those that are its own.
    """

    def __init__(self, lake: Lake, root: Path, slots: tuple[int, ...]) -> None:
        self._slots = slots
        self._positions = positions(lake)
        self._decoder = Decoder(lake, root, carry=from_position(lake, min(self._positions[slot] for slot in slots)))
        self._landing = Landing(lake, application_of)

    def prepare(self, messages: Messages, subjects: Named) -> tuple[Batch, int]:
        """Return this partition's part of a batch decoded, without what its slots have already."""
        return self.decode(own_part(messages, subjects, {slot: self._positions[slot] for slot in self._slots}))

    def decode(self, part: Part) -> tuple[Batch, int]:
        """Return the part decoded; changes nothing outside."""
        rows, rejects = self._decoder.decode(part.messages)
        return Batch(part.messages, part.subjects, rows, rejects, self._decoder.carry.learnt()), part.last

    def close(self) -> None:
        """Keep what was learnt of the devices; call it when all is committed."""
        self._decoder.contracts.keep(now=True)

    def commit(self, decoded: tuple[Batch, int]) -> Landed:
        """Bring it into the lake; when this returns, it is there."""
        batch, last = decoded
        return self._landing.land(batch, {APPLICATIONS[slot]: max(last, self._positions[slot]) for slot in self._slots})


def own_part(messages: Messages, subjects: Named, after: Mapping[int, int]) -> Part:
    """Return the messages of some slots that lie beyond their positions."""
    devices = Named.of(messages.devices)
    never = np.iinfo(np.int64).max
    beyond = np.array([after.get(slot_of(name), never) for name in devices.names], dtype=np.int64)
    rows = np.flatnonzero(messages.sequence > beyond[devices.codes])
    return Part(messages.take(rows), subjects.take(rows), int(messages.sequence[-1]))
