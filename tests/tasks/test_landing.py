"""Landing: which rows of a batch are new, and how they stand, whatever came before them in whatever order."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st

from fieldloop.domain.readings import Messages, Named, Readings
from fieldloop.stores.lake import Snapshot
from fieldloop.stores.tables import SCHEMAS
from tasks.landing import KEY, STORED, _by_device, new_readings

DEVICES, METRICS = ("b", "c", "a"), ("wind", "power")
NEW_YEAR = datetime(2024, 1, 1, tzinfo=UTC)

Key = tuple[str, str, int]
keys = st.tuples(st.sampled_from(DEVICES), st.sampled_from(METRICS), st.integers(-6, 6))


def rows(chosen: list[Key]) -> pl.DataFrame:
    """Return rows of table `readings` with these keys, hours from New Year on, numbered by their value."""
    times = [NEW_YEAR + timedelta(hours=hour) for _, _, hour in chosen]
    return pl.DataFrame(
        {
            "device": [device for device, _, _ in chosen],
            "metric": [metric for _, metric, _ in chosen],
            "event_time": times,
            "arrival_time": times,
            "value": [float(number) for number in range(len(chosen))],
            "sequence": list(range(len(chosen))),
            "replay": [0] * len(chosen),
            "year": [time.year for time in times],
        },
        schema=SCHEMAS["readings"],
    )


def stored(folder: Path, chosen: list[Key]) -> Snapshot:
    """Return a table that has rows with these keys."""
    rows(chosen).write_delta(str(folder), delta_write_options={"partition_by": ["year"]})
    return Snapshot("readings", DeltaTable(folder), {})


@given(there=st.lists(keys, unique=True, max_size=12), sent=st.lists(keys, max_size=30), names=st.booleans())
def test_the_first_of_each_key_that_is_not_there_yet_is_new(there: list[Key], sent: list[Key], names: bool) -> None:
    """So it is for names as texts and as `Enum`, for none, some or all that are there, and across New Year."""
    batch = rows(sent)
    if names:
        batch = batch.cast({"device": pl.Enum(sorted(DEVICES)), "metric": pl.Enum(METRICS)})
    with TemporaryDirectory() as folder:
        fresh = new_readings(stored(Path(folder), there), batch)
    first = {key: number for number, key in reversed(list(enumerate(sent))) if key not in there}
    assert sorted(first.values()) == sorted(fresh["value"].to_list())
    order = fresh.sort(STORED, maintain_order=True)
    assert fresh.select(KEY).equals(order.select(KEY))


@given(st.lists(st.tuples(st.sampled_from(DEVICES), st.integers(0, 3)), max_size=20))
def test_readings_stand_by_device_in_order_of_arrival(sent: list[tuple[str, int]]) -> None:
    """Each keeps its message, its metric, its time and its value; devices stand by name, whatever their codes are."""
    numbers = np.array([number for _, number in sent], dtype=np.int64)
    message = np.repeat(np.arange(len(sent)), numbers)
    count = np.arange(len(message))
    messages = Messages(Named.of([device for device, _ in sent]), count, count, [b""] * len(sent))
    readings = Readings(message, (count % 2).astype(np.int16), count * 10, count * 0.5)
    sorted_ = _by_device(messages, readings)
    expected = sorted(count.tolist(), key=lambda place: sent[message[place]][0])
    assert sorted_.value.tolist() == [place * 0.5 for place in expected]
    assert sorted_.event_us.tolist() == [place * 10 for place in expected]
    assert sorted_.metric.tolist() == [place % 2 for place in expected]
    assert sorted_.message.tolist() == [message[place] for place in expected]
