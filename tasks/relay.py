"""Relay: pass what an outside broker has on to the platform's own stream; flow `acquire` brings it into the lake."""

from collections.abc import Sequence
from dataclasses import dataclass

from fieldloop.domain.errors import SourceError
from fieldloop.stores import fleet
from fieldloop.stores.lake import Lake
from fieldloop.stores.sources.declaration import Declaration
from fieldloop.stores.sources.source import Relay, Relayed, Stray
from tasks.rows import keep, strays


@dataclass
class _Owner:
    """Tells whose a message is, and keeps those that are nobody's.

    Attributes:
        lake: where fleet and quarantine are.
        declared: the source's declaration.
        known: profile name of each enrolled device.
        enrolled: devices that were enrolled on the way.
    """

    lake: Lake
    declared: Declaration
    known: dict[str, str]
    enrolled: list[str]

    def device_of(self, topic: str) -> str | None:
        """Return the device of a topic, enrolled where the declaration says so; None where none can be told."""
        try:
            device = self.declared.device.of(topic)
        except SourceError:
            return None
        if device is not None and device not in self.known and self.declared.enrol:
            fleet.add_devices(self.lake, [device], self.declared.profile)
            self.known[device] = self.declared.profile
            self.enrolled.append(device)
        return device

    def keep(self, messages: Sequence[Stray]) -> None:
        """Keep messages in quarantine."""
        keep(self.lake, strays(messages, f"sources/{self.declared.name}"))


def relay(lake: Lake, declared: Declaration, source: Relay) -> tuple[Relayed, tuple[str, ...]]:
    """Pass on what a source has; return how much, and the devices that were enrolled.

    Raises:
        SourceError: the outside broker refuses us.
        StoreError: it or the platform's broker does not answer.
    """
    owner = _Owner(lake, declared, fleet.devices(lake), [])
    return source.relay(owner), tuple(owner.enrolled)
