"""Packed payloads: bounded, whole, and nothing behind them."""

import gzip

import msgspec
import pytest
from backports import zstd

from fieldloop.domain.harmonize import harmonize
from fieldloop.domain.payloads.compression import MAX_UNPACKED_BYTES
from fieldloop.domain.readings import Reason
from tests.domain.payloads.samples import PROFILES, SENDERS, messages

PACKERS = {"gzip": gzip.compress, "zstd": zstd.compress}
GOOD = SENDERS["json"](21.5, 40.0)


@pytest.mark.parametrize("packing", list(PACKERS))
def test_bombs_and_broken_frames_are_refused(packing):
    """More than 8 MiB once unpacked, cut short, with something behind, or not packed at all."""
    pack = PACKERS[packing]
    bad = [pack(b" " * (MAX_UNPACKED_BYTES + 1)), pack(GOOD)[:-4], pack(GOOD) + b"more", GOOD, b""]
    profile = msgspec.structs.replace(PROFILES["json"], compression=packing)
    readings, rejects = harmonize(profile, messages(pack(GOOD), *bad, pack(GOOD)))
    assert readings.message.tolist() == [0, 0, 6, 6]
    expected = [Reason.TOO_LARGE, *[Reason.UNDECODABLE] * 4]
    assert [(reject.message, reject.reason) for reject in rejects] == list(enumerate(expected, start=1))
