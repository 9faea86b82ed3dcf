"""Sample payloads run through a device profile: what comes out, and what is refused and why."""

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from fieldloop.domain.errors import PayloadError
from fieldloop.domain.harmonize import harmonize
from fieldloop.domain.profile import Profile
from fieldloop.domain.readings import Messages, Readings, Reject

LINE_ENDINGS: Final = (".ndjson", ".jsonl")
MAX_FILE_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class MetricSummary:
    """The readings of one metric, values in its canonical unit; None where there are none."""

    metric: str
    unit: str
    readings: int
    low: float | None
    high: float | None
    first: datetime | None
    last: datetime | None


@dataclass(frozen=True)
class Refused:
    """Refusals of one kind: how many, and the first as an example with the file and number of its message."""

    reason: str
    metric: str | None
    count: int
    example: str


@dataclass(frozen=True)
class Checked:
    """What came of the samples.

    Attributes:
        messages: how many there were.
        readings: how many were accepted.
        repeats: those of them that are repeats of a (device, metric, event time), which the lake would drop.
        metrics: a summary a channel, in the profile's order.
        refused: a summary a reason and field, the most frequent first.
    """

    messages: int
    readings: int
    repeats: int
    metrics: tuple[MetricSummary, ...]
    refused: tuple[Refused, ...]


def check_samples(
    profile: Profile, files: Sequence[Path], *, device: str | None = None, lines: bool = False, arrival: datetime
) -> Checked:
    """Run sample files through the profile.

    Args:
        profile: the compiled profile.
        files: one message each; one a line where the name ends in `.ndjson` or `.jsonl`. `.gz` after it is unpacked.
        device: the device whose topic they would come on; None: any, the name in the payload is not checked.
        lines: every file has one message a line.
        arrival: when they would arrive.

    Raises:
        PayloadError: a file cannot be read or holds no message.
    """
    names: list[str] = []
    owners: list[str] = []
    payloads: list[bytes] = []
    for file in files:
        found = list(_messages(file, lines=lines))
        if not found:
            raise PayloadError(f"{file}: expected messages, the file is empty")
        payloads += found
        names += [f"{file.name}:{number}" if len(found) > 1 else file.name for number in range(1, len(found) + 1)]
        owners += [device or file.name] * len(found)
    arrived = np.full(len(payloads), int(arrival.timestamp() * 1e6))
    messages = Messages(owners, arrived, np.arange(1, len(payloads) + 1), payloads)
    readings, rejects = harmonize(profile if device else _of_any_device(profile), messages)
    return Checked(
        messages=len(payloads),
        readings=len(readings),
        repeats=_repeats(messages, readings),
        metrics=tuple(_summary(profile, number, readings) for number in range(len(profile.channels))),
        refused=_refused(rejects, names),
    )


def _messages(file: Path, *, lines: bool) -> Iterator[bytes]:
    """Yield the messages of one file."""
    packed = file.suffix == ".gz"
    name = file.name.removesuffix(".gz") if packed else file.name
    by_line = lines or name.endswith(LINE_ENDINGS)
    try:
        with gzip.open(file) if packed and by_line else file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except (OSError, EOFError) as exc:
        raise PayloadError(f"{file}: expected a file of messages: {exc}") from exc
    if len(content) > MAX_FILE_BYTES:
        raise PayloadError(f"{file}: expected at most {MAX_FILE_BYTES:,} bytes; take fewer samples")
    if by_line:
        yield from (line for line in content.split(b"\n") if line.strip())
    elif content:
        yield content


def _of_any_device(profile: Profile) -> Profile:
    """Return the profile without its check of the device's name."""
    if profile.device_field is None:
        return profile
    return msgspec.structs.replace(profile, device_field=None, ignore=(*profile.ignore, profile.device_field))


def _repeats(messages: Messages, readings: Readings) -> int:
    if not len(readings):
        return 0
    devices = np.unique(np.array(messages.devices), return_inverse=True)[1]
    keys = np.stack([devices[readings.message], readings.metric.astype(np.int64), readings.event_us], axis=1)
    return len(keys) - len(np.unique(keys, axis=0))


def _summary(profile: Profile, number: int, readings: Readings) -> MetricSummary:
    channel = profile.channels[number]
    mine = readings.metric == number
    values, times = readings.value[mine], readings.event_us[mine]
    if not len(values):
        return MetricSummary(channel.metric, channel.unit, 0, None, None, None, None)
    first, last = (datetime.fromtimestamp(int(us) / 1e6, tz=UTC) for us in (times.min(), times.max()))
    return MetricSummary(
        channel.metric, channel.unit, len(values), float(values.min()), float(values.max()), first, last
    )


def _refused(rejects: Sequence[Reject], names: Sequence[str]) -> tuple[Refused, ...]:
    kinds: dict[tuple[str, str | None], list[Reject]] = {}
    for reject in rejects:
        kinds.setdefault((str(reject.reason), reject.metric), []).append(reject)
    counted = [
        Refused(reason, metric, len(found), f"{names[found[0].message]}: {found[0].detail}")
        for (reason, metric), found in kinds.items()
    ]
    return tuple(sorted(counted, key=lambda refused: -refused.count))
