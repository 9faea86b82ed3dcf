"""Messages to predictions: decode and harmonize, one window stream a device, one graph run a batch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from fieldloop.domain import alerts, predictions
from fieldloop.domain.alerts import Alert
from fieldloop.domain.carry import Carried, Carry
from fieldloop.domain.harmonize import harmonize
from fieldloop.domain.profile import Profile
from fieldloop.domain.readings import Messages
from fieldloop.domain.release import Manifest
from fieldloop.domain.stream import WindowStream, gathered
from fieldloop.domain.windows import WindowSpec, window_hash
from fieldloop.edge.feed import Delivery, Position

MAX_ROWS = 16384  # of one prediction message: 320 kB


@dataclass(frozen=True)
class Windows:
    """Windows that a batch completed, those of one device side by side.

    Attributes:
        devices: each with its number of rows.
        end_us: [N] int64, UTC microseconds at which the last step begins.
        values: [N, R, T] float32, NaN where missing.
        errors: messages, records and values that could not be used.
        received: when the first message that completed one of them came, monotonic clock, seconds.
    """

    devices: Sequence[tuple[str, int]]
    end_us: NDArray[np.int64]
    values: NDArray[np.float32]
    errors: int
    received: float

    def __len__(self) -> int:
        return len(self.end_us)


@dataclass
class _Found:
    """Windows as they are gathered, by device: their last steps, and their channels."""

    steps: dict[str, list[int]] = field(default_factory=dict)
    pasts: dict[str, list[NDArray[np.float32]]] = field(default_factory=dict)
    errors: int = 0
    received: float = float("inf")


class _Saved(msgspec.Struct, frozen=True):
    spec: WindowSpec | None
    position: Position
    streams: dict[str, bytes]
    spooled: int
    carried: list[tuple[str, int, Carried]] = []


class Scorer:
    """The window streams of a target's devices and the position up to which they have read.

    Streams outlive a change of release as long as both want the same windows.
    """

    def __init__(self, target: str, devices: Mapping[str, str]) -> None:
        self._target = target
        self.devices = devices
        self._spec: WindowSpec | None = None
        self._manifest: Manifest | None = None
        self._codes: dict[str, NDArray[np.int64]] = {}  # by profile of the manifest, see `WindowSpec.channel_codes`
        self._streams: dict[str, WindowStream] = {}
        self._known: set[tuple[str, int]] = set()
        self._carry = Carry()
        self.position = Position()

    def take(self, manifest: Manifest, deliveries: Sequence[Delivery], position: Position) -> Windows:
        """Take messages in order, move to `position`, and return the windows that they complete."""
        self._use(manifest)
        found = _Found()
        for name, rows in self._by_profile(manifest.profiles, deliveries).items():
            if name is None:
                found.errors += len(rows)
            else:
                of = deliveries if len(rows) == len(deliveries) else [deliveries[row] for row in rows]
                self._find(manifest.profiles[name], self._codes[name], of, found)
        self._carry.newest()
        self.position = position
        return self._windows(found, manifest.window)

    def state(self, spooled: int) -> bytes:
        """Return all that `restore` needs to go on after a restart, and how many messages were spooled by then."""
        streams = {device: stream.state() for device, stream in self._streams.items()}
        return msgspec.msgpack.encode(_Saved(self._spec, self.position, streams, spooled, self._carry.newest()))

    def restore(self, state: bytes) -> int:
        """Go back to a state; return how many messages were spooled by then.

        Raises:
            msgspec.MsgspecError: the bytes are not a scorer's state.
            ValueError: they are one of other windows.
        """
        saved = msgspec.msgpack.decode(state, type=_Saved)
        spec, streams = saved.spec, {}
        if spec is not None:
            streams = {device: WindowStream.restore(spec, data) for device, data in saved.streams.items()}
        self._spec, self._streams, self.position = spec, streams, saved.position
        self._carry = Carry(saved.carried)
        return saved.spooled

    def leave_out(self, payloads: Sequence[bytes]) -> None:
        """Predict no window again whose prediction is in one of these messages: they were spooled after the state."""
        for payload in payloads:
            message = predictions.unpack(payload)
            self._known.update(zip(message.owners(), message.columns()[0].tolist(), strict=True))

    def _use(self, manifest: Manifest) -> None:
        """Begin anew where the release wants other windows than the one before."""
        if manifest is self._manifest:
            return
        spec = manifest.window
        if spec != self._spec:
            self._spec, self._streams = spec, {}
        self._manifest = manifest
        self._codes = {name: spec.channel_codes(profile) for name, profile in manifest.profiles.items()}

    def _by_profile(
        self, profiles: Mapping[str, Profile], deliveries: Sequence[Delivery]
    ) -> dict[str | None, list[int]]:
        """Return the rows by profile; those of devices that this target or release does not know under None."""
        rows: dict[str | None, list[int]] = {}
        for row, delivery in enumerate(deliveries):
            name = self.devices.get(delivery.device)
            rows.setdefault(name if name in profiles else None, []).append(row)
        return rows

    def _find(self, profile: Profile, codes: NDArray[np.int64], deliveries: Sequence[Delivery], found: _Found) -> None:
        """Push the messages of devices of one profile, each to its device's stream."""
        spec = self._spec
        assert spec is not None  # noqa: S101 - `_use` has set it
        readings, rejects = harmonize(profile, _messages(deliveries, self._carry))
        found.errors += len(rejects)
        channel = codes[readings.metric].tolist()
        event_us, value = readings.event_us.tolist(), readings.value.tolist()
        borders = np.searchsorted(readings.message, np.arange(len(deliveries) + 1)).tolist()
        for row, delivery in enumerate(deliveries):
            stream = self._streams.get(delivery.device)
            if stream is None:
                stream = self._streams[delivery.device] = WindowStream(spec)
            own = slice(borders[row], borders[row + 1])
            steps, pasts = stream.push_message(channel[own], event_us[own], value[own])
            if steps:
                found.steps.setdefault(delivery.device, []).extend(steps)
                found.pasts.setdefault(delivery.device, []).extend(pasts)
                found.received = min(found.received, delivery.received)

    def _windows(self, found: _Found, spec: WindowSpec) -> Windows:
        devices = [(device, len(steps)) for device, steps in found.steps.items()]
        steps = [step for own in found.steps.values() for step in own]
        closed = gathered(spec, steps, [past for own in found.pasts.values() for past in own])
        windows = Windows(devices, closed.end_us, closed.values, found.errors, found.received)
        return self._without_known(windows) if self._known else windows

    def _without_known(self, windows: Windows) -> Windows:
        """Leave out what was spooled before a kill."""
        owners = [device for device, rows in windows.devices for _ in range(rows)]
        keys = list(zip(owners, windows.end_us.tolist(), strict=True))
        fresh = np.array([key not in self._known for key in keys])
        self._known.difference_update(keys)
        kept: dict[str, int] = {}
        for row in np.flatnonzero(fresh).tolist():
            kept[owners[row]] = kept.get(owners[row], 0) + 1
        return Windows(
            list(kept.items()), windows.end_us[fresh], windows.values[fresh], windows.errors, windows.received
        )


def pack(target: str, release: str, windows: Windows, value: NDArray[np.float32]) -> list[bytes]:
    """Return the messages of predictions float32 [N] of these windows: one, unless they are very many."""
    hashes, ends = window_hash(windows.values), windows.end_us
    if len(windows) <= MAX_ROWS:
        return [predictions.pack(target, release, windows.devices, ends, value, hashes)]
    owners = [device for device, count in windows.devices for _ in range(count)]
    packed = []
    for first in range(0, len(windows), MAX_ROWS):
        rows = slice(first, first + MAX_ROWS)
        devices = list(Counter(owners[rows]).items())  # in the order of their first rows
        packed.append(predictions.pack(target, release, devices, ends[rows], value[rows], hashes[rows]))
    return packed


class Alarms:
    """What tells of predictions beyond a release's limits; a hold begins anew when the agent does."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._last: dict[tuple[str, str], int] = {}  # window beyond a limit, by device and side

    def of(self, release: str, manifest: Manifest, windows: Windows, value: NDArray[np.float32]) -> list[bytes]:
        """Return the alerts of predictions float32 [N], one a device and limit."""
        if manifest.alerts is None:
            return []
        found, start = [], 0
        for device, count in windows.devices:
            mine, ends = value[start : start + count], windows.end_us[start : start + count]
            start += count
            for side, limit, rows in alerts.crossings(manifest.alerts, mine):
                rows = self._begun(device, side, manifest.alerts.hold_us, ends, rows)
                alert = Alert(self._target, release, device, manifest.target, manifest.unit, side, limit,
                              tuple(ends[rows].tolist()), tuple(mine[rows].tolist()))  # fmt: skip
                found += [alerts.encode(alert)] if len(rows) else []
        return found

    def _begun(
        self, device: str, side: str, hold_us: int, ends: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Those of the rows beyond a limit that begin an alert."""
        if not hold_us:
            return rows
        begun = rows[alerts.begins(ends[rows], hold_us, self._last.get((device, side)))]
        self._last[device, side] = int(ends[rows[-1]])
        return begun


def _messages(deliveries: Sequence[Delivery], carry: Carry) -> Messages:
    return Messages(
        [delivery.device for delivery in deliveries],
        np.array([delivery.position.arrived_us for delivery in deliveries], dtype=np.int64),
        np.array([delivery.position.stream for delivery in deliveries], dtype=np.int64),
        [delivery.payload for delivery in deliveries],
        carry,
    )
