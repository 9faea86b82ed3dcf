"""Nonsense through the real broker and acquisition: nothing crashes, nothing vanishes."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import numpy as np
import pytest

from benchmarks.fuzz import decode_all, payloads
from expectations.profiles import load_profile
from fieldloop.domain.harmonize import harmonize
from fieldloop.domain.readings import Messages
from fieldloop.stores import fleet
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from infra.local.turbines import payloads as turbine_payloads
from tasks.acquire import acquire
from tests.domain.payloads.samples import PROFILES

PROFILE = "senvion-mm82"
DEVICES = ("R80711", "R80721")
COUNT = 240

Publish = Callable[[Sequence[tuple[str, bytes]]], None]


@pytest.mark.parametrize("name", PROFILES)
def test_no_payload_crashes_a_codec(name: str) -> None:
    """Mutated and arbitrary payloads are decoded, refused with a reason, or have nothing in them."""
    outcomes = decode_all(PROFILES[name], list(payloads(name, "none", COUNT, seed=1)))
    assert sum(outcomes.values()) == COUNT
    assert (outcomes["crashes"], outcomes["lost"]) == (0, 0)
    assert outcomes["refused"] > COUNT // 4


def test_whatever_a_device_sends_is_stored_or_quarantined(data_plane: Settings, publish: Publish) -> None:
    """Good messages land between all kinds of nonsense; each message is in a table, but those with nothing in them."""
    profile = load_profile(data_plane.root, PROFILE)
    good = turbine_payloads(DEVICES, datetime(2014, 1, 1, tzinfo=UTC), datetime(2014, 1, 4, tzinfo=UTC))
    bodies = [body.encode() for body in good["payload"]] + list(payloads("json", "none", COUNT, seed=2))
    order = np.random.default_rng(3).permutation(len(bodies))
    fleet.add_devices(Lake(data_plane), list(DEVICES), PROFILE)
    sent = [(f"devices.{DEVICES[row % 2]}.readings", bodies[row]) for row in order]
    publish(sent)
    assert acquire(data_plane).messages == len(bodies)
    tables = [Lake(data_plane).scan(table).select("sequence").collect() for table in ("readings", "quarantine")]
    kept = set(tables[0]["sequence"]) | set(tables[1]["sequence"])
    for sequence in set(range(1, len(sent) + 1)) - kept:
        subject, body = sent[sequence - 1]
        alone = Messages([subject.split(".")[1]], np.array([2**60]), np.array([sequence]), [body])
        readings, rejects = harmonize(profile, alone)
        assert (len(readings), rejects) == (0, []), body
