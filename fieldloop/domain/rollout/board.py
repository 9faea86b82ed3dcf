"""The board of a rollout under way: every asked target's standing, kept up as reports come and time passes."""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fieldloop.domain.release import Manifest
from fieldloop.domain.rollout.gates import Evidence, gather
from fieldloop.domain.rollout.protocol import Desired
from fieldloop.domain.rollout.standing import Clock, Sighting, Standing, State, judge

SILENCE_US: Final = 60_000_000  # four heartbeats of an agent; a report that is older is no proof
NONE: Final[Mapping[str, str]] = MappingProxyType({})


class Board:
    """Where each asked target stands; only those of whom there is news are judged anew.

    Args:
        release: digest of the release.
        manifest: its manifest, which says what proves it.
        deadline_s: a target that is not proved so long after it was asked has failed, or is silent.
    """

    def __init__(self, release: str, manifest: Manifest, deadline_s: float) -> None:
        self._release = release
        self._manifest = manifest
        self._deadline_us = round(deadline_s * 1e6)
        self._orders: dict[str, Desired] = {}
        self._sightings: dict[str, Sighting] = {}
        self._unusable: Mapping[str, str] = {}
        self._standings: dict[str, Standing] = {}

    def ask(self, orders: Mapping[str, Desired], now_us: int) -> None:
        """Put targets on the board, with what they were asked."""
        self._orders.update(orders)
        for target in orders:
            self._judge(target, now_us)

    def see(self, fresh: Mapping[str, Sighting], now_us: int, unusable: Mapping[str, str] = NONE) -> None:
        """Take in reports, of targets that were asked and of others, and why the last ones of some cannot be used."""
        self._sightings.update(fresh)
        self._unusable = unusable
        for target in fresh:
            if target in self._orders:
                self._judge(target, now_us)

    def look(self, now_us: int) -> None:
        """Judge everybody by the time: who was waited for is late, who was proved has gone silent."""
        for target in self._orders:
            self._judge(target, now_us)

    @property
    def standings(self) -> tuple[Standing, ...]:
        """Everybody's standing, in the order in which they were asked."""
        return tuple(self._standings.values())

    @property
    def states(self) -> Counter[State]:
        """How many are in each state."""
        return Counter(standing.state for standing in self._standings.values())

    def evidence(self) -> Evidence:
        """Sum up what has been shown."""
        reports = (self._sightings[target].report for target in self._orders if target in self._sightings)
        return gather(self._release, self.standings, reports)

    def _judge(self, target: str, now_us: int) -> None:
        order = self._orders[target]
        clock = Clock(now_us, order.issued_us + self._deadline_us, SILENCE_US)
        unusable = self._unusable.get(target, "")
        self._standings[target] = judge(target, order, self._manifest, self._sightings.get(target), clock, unusable)
