"""Messages to predictions: decode and harmonize, one window stream a device, one graph run a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from fieldloop.domain import predictions
from fieldloop.domain.harmonize import harmonize
from fieldloop.domain.profile import Profile
from fieldloop.domain.readings import Messages
from fieldloop.domain.windows import Windows, WindowSpec, WindowStream, window_hash
from fieldloop.edge.feed import Delivery, Position
from fieldloop.edge.model import Loaded

MAX_ROWS = 16384  # of one prediction message: 320 kB


@dataclass(frozen=True)
class Scored:
    """What a batch gave: prediction messages, the number of windows in them, and of errors in what was read."""

    messages: Sequence[bytes]
    windows: int
    errors: int


class _Saved(msgspec.Struct, frozen=True):
    spec: WindowSpec | None
    position: Position
    streams: dict[str, bytes]


class Scorer:
    """The window streams of a target's devices and the position up to which they have read.

    Streams outlive a change of release as long as both want the same windows.
    """

    def __init__(self, target: str, devices: Mapping[str, str]) -> None:
        self._target = target
        self._devices = devices
        self._spec: WindowSpec | None = None
        self._streams: dict[str, WindowStream] = {}
        self.position = Position()

    def score(self, loaded: Loaded, deliveries: Sequence[Delivery], position: Position) -> Scored:
        """Take messages in order, move to `position`, and predict for each window that they complete.

        Raises:
            ReleaseError: the graph fails on the windows.
        """
        self._use(loaded.manifest.window)
        windows: dict[str, Windows] = {}
        errors = 0
        for profile, rows in self._by_profile(loaded.manifest.profiles, deliveries):
            if profile is None:
                errors += len(rows)
                continue
            found, rejected = self._windows(profile, [deliveries[row] for row in rows])
            windows.update(found)
            errors += rejected
        self.position = position
        return Scored(self._predict(loaded, windows), sum(len(w.end_us) for w in windows.values()), errors)

    def state(self) -> bytes:
        """Return all that `restore` needs to go on after a restart."""
        streams = {device: stream.state() for device, stream in self._streams.items()}
        return msgspec.msgpack.encode(_Saved(self._spec, self.position, streams))

    def restore(self, state: bytes) -> None:
        """Go back to a state.

        Raises:
            msgspec.MsgspecError: the bytes are not a scorer's state.
        """
        saved = msgspec.msgpack.decode(state, type=_Saved)
        spec, streams = saved.spec, {}
        if spec is not None:
            streams = {device: WindowStream.restore(spec, data) for device, data in saved.streams.items()}
        self._spec, self._streams, self.position = spec, streams, saved.position

    def _use(self, spec: WindowSpec) -> None:
        """Begin anew where the release wants other windows than the one before."""
        if spec != self._spec:
            self._spec, self._streams = spec, {}

    def _by_profile(
        self, profiles: Mapping[str, Profile], deliveries: Sequence[Delivery]
    ) -> list[tuple[Profile | None, list[int]]]:
        """Return the rows of each profile; None for devices that this target or release does not know."""
        rows: dict[str | None, list[int]] = {}
        for row, delivery in enumerate(deliveries):
            name = self._devices.get(delivery.device)
            rows.setdefault(name if name in profiles else None, []).append(row)
        return [(profiles[name] if name else None, found) for name, found in rows.items()]

    def _windows(self, profile: Profile, deliveries: Sequence[Delivery]) -> tuple[dict[str, Windows], int]:
        """Return the windows that messages of one profile complete, by device, and how much was refused."""
        spec = self._spec
        if spec is None:
            raise RuntimeError("windows are asked for before a release")
        readings, rejects = harmonize(profile, _messages(deliveries))
        channel = spec.channel_codes(profile)[readings.metric]
        names = np.array([delivery.device for delivery in deliveries])
        sender = names[readings.message]
        found: dict[str, Windows] = {}
        for device in dict.fromkeys(sender.tolist()):
            mine = sender == device
            stream = self._streams.setdefault(device, WindowStream(spec))
            found[device] = stream.push(
                channel[mine], readings.event_us[mine], readings.value[mine], readings.message[mine]
            )
        return found, len(rejects)

    def _predict(self, loaded: Loaded, windows: Mapping[str, Windows]) -> list[bytes]:
        """Run the graph once over the windows of all devices and pack each device's rows."""
        filled = {device: w for device, w in windows.items() if len(w.end_us)}
        if not filled:
            return []
        values = np.concatenate([w.values for w in filled.values()])
        outputs, hashes = loaded.model.run(values)[:, 0], window_hash(values)
        packed, start = [], 0
        for device, w in filled.items():
            for first in range(0, len(w.end_us), MAX_ROWS):
                ends = w.end_us[first : first + MAX_ROWS]
                rows = slice(start + first, start + first + len(ends))
                packed.append(predictions.pack(self._target, loaded.digest, device, ends, outputs[rows], hashes[rows]))
            start += len(w.end_us)
        return packed


def _messages(deliveries: Sequence[Delivery]) -> Messages:
    return Messages(
        [delivery.device for delivery in deliveries],
        np.array([delivery.position.arrived_us for delivery in deliveries], dtype=np.int64),
        np.array([delivery.position.stream for delivery in deliveries], dtype=np.int64),
        [delivery.payload for delivery in deliveries],
    )
