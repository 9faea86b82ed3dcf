"""Alarms that go on, as an agent tells of them: batch after batch, device by device, and once more after a restart."""

import numpy as np

from fieldloop.domain import alerts
from fieldloop.domain.alerts import Limits
from fieldloop.edge.scorer import Alarms, Windows
from tests.edge.targets import STEP_US, make_release

HOLD_STEPS = 3
LIMIT = 10.0


def _told(alarms: Alarms, first: int, values: dict[str, list[float]]) -> dict[str, list[int]]:
    """Return the steps that begin an alert, by device; each device's windows begin with step `first`."""
    release = make_release(alerts=Limits(above=LIMIT, hold_us=HOLD_STEPS * STEP_US))
    counts = [(device, len(own)) for device, own in values.items()]
    ends = np.concatenate([first + np.arange(count) for _, count in counts]) * STEP_US
    windows = Windows(counts, ends, np.zeros((len(ends), 2, 3), np.float32), 0, 0.0)
    value = np.array([each for own in values.values() for each in own], np.float32)
    found = [alerts.decode(each) for each in alarms.of(release.digest, release.open(release.digest), windows, value)]
    return {alert.device: [end // STEP_US for end in alert.end_us] for alert in found}


def test_what_goes_on_from_batch_to_batch_is_told_once() -> None:
    """Until there was none for as long as the hold."""
    alarms = Alarms("gw")
    assert _told(alarms, 1, {"a": [20.0, 20.0], "b": [0.0, 0.0]}) == {"a": [1]}
    assert _told(alarms, 3, {"a": [20.0, 0.0], "b": [0.0, 20.0]}) == {"b": [4]}
    assert _told(alarms, 5, {"a": [0.0, 20.0], "b": [0.0, 0.0]}) == {}
    assert _told(alarms, 7, {"a": [0.0, 0.0, 0.0, 20.0], "b": [0.0, 20.0, 20.0, 20.0]}) == {"a": [10], "b": [8]}


def test_after_a_restart_what_goes_on_is_told_once_more() -> None:
    """The hold is in memory; once more is not again and again."""
    before, after = Alarms("gw"), Alarms("gw")
    assert _told(before, 1, {"a": [20.0]}) == {"a": [1]}
    assert _told(after, 2, {"a": [20.0]}) == {"a": [2]}
    assert _told(after, 3, {"a": [20.0]}) == {}
