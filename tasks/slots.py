"""Slots: the fixed number of parts into which devices are hashed, for ever."""

import zlib

from fieldloop.stores.settings import SLOTS


def slot_of(device: str) -> int:
    """Return the slot to which a device belongs."""
    return zlib.crc32(device.encode()) % SLOTS
