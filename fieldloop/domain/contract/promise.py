"""What the watch holds a device to, and the changes that it can tell from weather."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """A change of unit or scale: what is stored is the true value * scale + offset, both in the canonical unit.

    Attributes:
        name: what a person should suspect, for instance `as if sent in degF, not degC`.
        scale: see above; positive.
        offset: see above.
    """

    name: str
    scale: float
    offset: float


@dataclass(frozen=True)
class Promise:
    """What one channel is held to.

    Attributes:
        metric: canonical name.
        minimum: smallest value that the device can send, canonical unit.
        maximum: largest one.
        changes: the changes that are looked for.
        turn: a full turn in the canonical unit, where the channel is an angle and goes round; else None.
        scale: of what is sent to the canonical unit.
        offset: likewise.
    """

    metric: str
    minimum: float
    maximum: float
    changes: tuple[Change, ...]
    turn: float | None = None
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Finding:
    """A device that does not seem to keep its promise.

    Attributes:
        device: its name.
        since: stream sequence of the first message that shows it.
        metric: the metric that shows it; None where it is the clock or the cadence.
        change: what a person should suspect.
        certain: whether the device is to be suspended; else its messages are held until more of them have come.
    """

    device: str
    since: int
    metric: str | None
    change: str
    certain: bool
