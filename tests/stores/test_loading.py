"""The garbage collector while libraries load: held, and on again however that ends."""

import gc
from contextlib import ExitStack
from importlib import import_module

import pytest

from fieldloop.stores.loading import uncollected


def test_the_collector_is_held_and_comes_back() -> None:
    """Where a library cannot be loaded, too."""
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError), uncollected():
        import_module("no_such_library")
    assert gc.isenabled()


def test_it_comes_back_whoever_ends_first() -> None:
    """Of two threads that load at the same time."""
    first, second = ExitStack(), ExitStack()
    for each in (first, second):
        each.enter_context(uncollected())
    for each in (first, second):
        each.close()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    """Whoever switched it off wants it so."""
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
