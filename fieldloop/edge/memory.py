"""The memory of this process.

Loading a release runs through megabytes of library code that scoring never comes to again, and leaves the heap full of
holes. Both can be handed back: code and constants are mapped from files and come again from the system's cache where
they are needed.
"""

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_DONTNEED: Final = 4  # madvise: drop these pages from the process
_ARENA_MAX: Final = -8  # mallopt: how many heaps threads may have
_END_OF_MAPPING: Final = b"VmFlags:"  # the last line of each
_SAME: Final = b"\nAnonymous:             0 kB\n"  # no page that differs from the file


def resident_bytes() -> int:
    """Return the resident memory."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGESIZE")


def one_heap() -> None:
    """Let all threads share one heap, where the C library can; before the first thread."""
    with suppress(OSError, AttributeError):  # musl has no mallopt
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def give_back() -> None:
    """Collect what is unreachable, and hand free memory and idle code back to the system.

    What is left is taken to stay: the collector does not walk through all of it again while readings wait.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    with suppress(OSError, AttributeError):  # musl has no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
    drop_idle_pages()


def drop_idle_pages() -> None:
    """Hand library code and constants back; what is used comes again, a few thousand pages in a millisecond or two."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for begin, size in _unwritten():
            library.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), _DONTNEED)


def _unwritten() -> Iterator[tuple[int, int]]:
    """Yield place and size of what is mapped from files to be read or executed, and has no page that differs from them.

    A linker's relocations make pages that do differ, and cannot be had again.
    """
    for mapping in (b"\n" + Path("/proc/self/smaps").read_bytes()).split(_END_OF_MAPPING):
        words = mapping[mapping.index(b"\n") :].split(maxsplit=6)
        if len(words) == 7 and words[1] in (b"r-xp", b"r--p") and words[5].startswith(b"/") and _SAME in mapping:
            begin, end = (int(number, 16) for number in words[0].split(b"-"))
            yield begin, end - begin
