"""What a device's messages leave behind for the reading of its later ones, by their place in the stream.

Two things: the names that Sparkplug's births give to aliases, and where a clock without an offset stands in the hour
that autumn repeats. Lake and gateways keep it with their data; so a restart, another worker, or messages that come in
other batches give the same readings.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping

import msgspec

_BEFORE_ALL = -1  # a sequence


class Repeated(msgspec.Struct, frozen=True):
    """Where a local clock stands in an hour that comes twice.

    Attributes:
        change_s: UTC seconds of the change that makes it come twice.
        local_us: the last time that the clock showed in it.
        second: whether it has stepped back, so that its second pass has begun.
    """

    change_s: int
    local_us: int
    second: bool


class Carried(msgspec.Struct, frozen=True):
    """What one device has left behind.

    Attributes:
        aliases: names of Sparkplug metrics.
        repeated: see above; None where its clock was never in such an hour.
    """

    aliases: Mapping[int, str] = {}
    repeated: Repeated | None = None


class Carry:
    """What devices have left behind, each by the sequence of the message that did.

    Args:
        entries: device, sequence and what was left behind, in any order.
        later: whether aliases of a device's first birth also hold before it: for messages that waited for one.
    """

    def __init__(self, entries: Iterable[tuple[str, int, Carried]] = (), *, later: bool = False) -> None:
        self._later = later
        self._sequences: dict[str, list[int]] = {}
        self._carried: dict[str, list[Carried]] = {}
        self._new: list[tuple[str, int, Carried]] = []
        for device, sequence, carried in entries:
            self._enter(device, sequence, carried)

    def before(self, device: str, sequence: int) -> Carried:
        """Return what the messages of a device before a place in the stream have left behind."""
        sequences = self._sequences.get(device)
        if sequences is None:
            return Carried()
        place = bisect_left(sequences, sequence)
        if place:
            return self._carried[device][place - 1]
        return Carried(self._carried[device][0].aliases) if self._later else Carried()

    def learn(self, device: str, sequence: int, carried: Carried) -> None:
        """Take note of what a message leaves behind."""
        self._enter(device, sequence, carried)
        self._new.append((device, sequence, carried))

    def learnt(self) -> list[tuple[str, int, Carried]]:
        """Return what is new since this was last asked."""
        new, self._new = self._new, []
        return new

    def newest(self) -> list[tuple[str, int, Carried]]:
        """Return what each device has left behind by now, as from before any message, and forget all else.

        For one who reads on and never back, and whose stream may be made anew and count from one again.
        """
        last = [(device, _BEFORE_ALL, of[-1]) for device, of in self._carried.items()]
        self._sequences = {device: [sequence] for device, sequence, _ in last}
        self._carried = {device: [carried] for device, _, carried in last}
        self._new = []
        return last

    def _enter(self, device: str, sequence: int, carried: Carried) -> None:
        sequences, of = self._sequences.setdefault(device, []), self._carried.setdefault(device, [])
        place = bisect_left(sequences, sequence)
        if place < len(sequences) and sequences[place] == sequence:
            of[place] = carried
        else:
            sequences.insert(place, sequence)
            of.insert(place, carried)
