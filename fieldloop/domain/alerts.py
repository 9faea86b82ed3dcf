"""Alerts: predictions beyond the limits that a release carries, as a target publishes them on `alerts.<target>`."""

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.errors import PayloadError


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Beyond which a prediction is an alert, in the unit of the release; None sets no limit.

    Attributes:
        below: lower limit.
        above: upper limit.
        hold_us: a prediction beyond a limit so soon behind another of the device is no new alert.
    """

    below: float | None = None
    above: float | None = None
    hold_us: int = 0


class Alert(msgspec.Struct, frozen=True):
    """Predictions of one device beyond one limit.

    Attributes:
        target: who scored.
        release: digest of the release.
        device: whose windows.
        metric: what was predicted.
        unit: its unit.
        beyond: on which side of the limit they lie.
        limit: the limit.
        end_us: [N] the windows' last step, microseconds since the epoch, UTC.
        value: [N] predictions.
    """

    target: str
    release: str
    device: str
    metric: str
    unit: str
    beyond: Literal["below", "above"]
    limit: float
    end_us: tuple[int, ...]
    value: tuple[float, ...]


def crossings(
    limits: Limits, value: NDArray[np.float32]
) -> list[tuple[Literal["below", "above"], float, NDArray[np.int64]]]:
    """Return each limit that predictions float32 [N] cross, with the rows that do; NaN crosses none."""
    sides: list[tuple[Literal["below", "above"], float, NDArray[np.bool_]]] = []
    if limits.below is not None:
        sides.append(("below", limits.below, value < limits.below))
    if limits.above is not None:
        sides.append(("above", limits.above, value > limits.above))
    return [(side, limit, np.flatnonzero(beyond)) for side, limit, beyond in sides if beyond.any()]


def begins(end_us: NDArray[np.int64], hold_us: int, before_us: int | None = None) -> NDArray[np.bool_]:
    """Tell which of a device's windows beyond a limit begin an alert: no other lies beyond it within `hold_us` before.

    Args:
        end_us: [N], increasing, of the windows beyond the limit.
        hold_us: see `Limits`; 0 makes each an alert.
        before_us: the last one before these.
    """
    if before_us is None:
        return np.append(np.True_, np.diff(end_us) > hold_us)[: len(end_us)]
    return np.diff(end_us, prepend=before_us) > hold_us


def encode(alert: Alert) -> bytes:
    """Return the message, as JSON."""
    return msgspec.json.encode(alert)


def decode(payload: bytes) -> Alert:
    """Read a message.

    Raises:
        PayloadError: it is no alert.
    """
    try:
        return msgspec.json.decode(payload, type=Alert)
    except msgspec.MsgspecError as exc:
        raise PayloadError(f"not an alert: {exc}") from exc
