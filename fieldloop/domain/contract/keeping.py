"""A watch as bytes, so that what it has learnt outlives the process, and back.

Arrays are kept as raw little-endian bytes, named as the attributes that they belong to.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.contract.history import Ints
from fieldloop.domain.contract.levels import LevelWatch
from fieldloop.domain.contract.onset import Open
from fieldloop.domain.contract.watch import Watch

_KINDS: Final = {"f": "<f8", "i": "<i8"}

Columns = dict[str, bytes]


class _OpenKept(msgspec.Struct, frozen=True):
    """An onset that is not settled; the change by its name, for another profile may order them otherwise."""

    device: int
    change: str
    onset: float
    since: int
    readings: int
    steps: float
    levels: float
    grain: float = 0.0
    before: tuple[float, int] = (float("nan"), 0)


class _Kept(msgspec.Struct, frozen=True):
    devices: tuple[str, ...]
    judged: bytes
    turn: bytes
    clocks: Columns
    levels: dict[str, Columns]
    open: dict[str, tuple[_OpenKept, ...]]
    ratios: dict[str, Columns] = {}
    changes: dict[str, tuple[str, ...]] = {}  # that `fits` of the grains has a column of each
    grains: dict[str, Columns] = {}


def keep(watch: Watch, devices: Sequence[str]) -> bytes:
    """Return all that is known of some of a watch's devices, as msgpack."""
    rows = np.array([watch.devices[device] for device in devices], dtype=np.int64)
    place = {row: number for number, row in enumerate(rows.tolist())}
    return msgspec.msgpack.encode(
        _Kept(
            tuple(devices),
            _raw(watch.judged[rows]),
            _raw(watch.turn[rows]),
            _columns(watch.clocks.history, rows),
            {levels.promise.metric: _columns(levels.history, rows) for levels in watch.levels},
            {
                levels.promise.metric: tuple(
                    _OpenKept(place[row], levels.promise.changes[onset.change].name, onset.onset, onset.since,
                              onset.readings, onset.steps, onset.levels, onset.grain, onset.before)
                    for row, onset in levels.open.items() if row in place
                )
                for levels in watch.levels
            },
            {levels.promise.metric: _columns(levels.ratios.history, rows) for levels in watch.levels},
            {levels.promise.metric: _names(levels) for levels in watch.levels},
            {levels.promise.metric: _columns(levels.grains.history, rows) for levels in watch.levels},
        )
    )  # fmt: skip


def absorb(watch: Watch, data: bytes) -> None:
    """Make a watch know what was kept of devices that it does not know yet; of other metrics it learns anew.

    Raises:
        msgspec.MsgspecError: the bytes are not a watch's.
    """
    kept = msgspec.msgpack.decode(data, type=_Kept)
    rows = np.array([watch.add(device) for device in kept.devices], dtype=np.int64)
    watch.judged[rows] = np.frombuffer(kept.judged, dtype="<i8")
    watch.turn[rows] = np.frombuffer(kept.turn, dtype="<i8")
    _fill(watch.clocks.history, rows, kept.clocks)
    for levels in watch.levels:
        if levels.promise.metric not in kept.levels:
            continue
        _fill(levels.history, rows, kept.levels[levels.promise.metric])
        if levels.promise.metric in kept.ratios:
            _fill(levels.ratios.history, rows, kept.ratios[levels.promise.metric])
        if kept.changes.get(levels.promise.metric) == _names(levels):
            _fill(levels.grains.history, rows, kept.grains[levels.promise.metric])
        number = {change.name: place for place, change in enumerate(levels.promise.changes)}
        for each in kept.open[levels.promise.metric]:
            if each.change in number:
                levels.open[int(rows[each.device])] = Open(
                    number[each.change], each.onset, each.since, each.before,
                    each.readings, each.steps, each.levels, each.grain,
                )  # fmt: skip


def _names(levels: LevelWatch) -> tuple[str, ...]:
    return tuple(change.name for change in levels.promise.changes)


def _columns(history: Any, rows: Ints) -> Columns:
    """Return a history's arrays as bytes."""
    return {each.name: _raw(getattr(history, each.name)[rows]) for each in fields(history)}


def _fill(history: Any, rows: Ints, columns: Columns) -> None:
    for each in fields(history):
        array = getattr(history, each.name)
        array[rows] = np.frombuffer(columns[each.name], dtype=_KINDS[array.dtype.kind]).reshape(-1, *array.shape[1:])


def _raw(array: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(array, dtype=_KINDS[array.dtype.kind]).tobytes()
