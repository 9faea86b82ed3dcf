"""How heavy libraries are loaded, by the step that first needs one."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Hold the garbage collector while libraries load.

    They make some hundred thousand objects that stay, and it would look through all of them again and again: a quarter
    of the time. Threads may nest or overlap; the collector is on again once the one that found it on has ended.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
