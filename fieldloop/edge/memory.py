"""The memory of this process."""

import ctypes
import gc
import os
from contextlib import suppress
from pathlib import Path


def resident_bytes() -> int:
    """Return the resident memory."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGESIZE")


def give_back() -> None:
    """Collect what is unreachable, and hand free memory back to the system where the C library can."""
    gc.collect()
    with suppress(OSError, AttributeError):  # musl has no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
