"""Files in the layouts in which public sets come: each described by its profile and source, without a line of code."""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from fieldloop.domain.errors import DocumentError
from fieldloop.stores.settings import Settings
from tasks.collect import Collected, collect
from tests.tasks.sources import Workshop, workshop

HEAD = "name: meter\ndescription: A made-up meter.\nformat: csv\ncadence: 1 min\n"
CHANNEL = "  - {metric: METRIC, field: FIELD, source_unit: dimensionless, unit: dimensionless, range: [-1000, 10000]}\n"
START = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def shop(store: Settings, tmp_path: Path) -> Workshop:
    return workshop(store, tmp_path)


def bring(
    shop: Workshop, source: str, profile: str, channels: dict[str, str], files: dict[str, str], how: str
) -> Collected:
    """Write profile, source and files, and collect."""
    shop.profile(HEAD + profile + "channels:\n" + "".join(
        CHANNEL.replace("METRIC", metric).replace("FIELD", field) for metric, field in channels.items()
    ))  # fmt: skip
    for name, text in files.items():
        path = shop.folder / source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="latin-1")
    device, _, options = how.partition("\n")
    text = (
        f"kind: files\n{device}\nenrol: true\noptions: {{path: '{source}/**/*.*', format: csv, settle_s: 0{options}}}\n"
    )
    return collect(shop, shop.source(source, text))


def values(shop: Workshop, device: str, metric: str) -> list[float]:
    """A device's values in the lake, by time."""
    return shop.stored(device).filter(pl.col("metric") == metric)["value"].to_list()


def test_runs_to_failure_by_cycle_in_blanks_without_a_header(shop: Workshop) -> None:
    """Cycles count from a start; units of two files are told apart by the files' names."""
    profile = (
        "clock: {kind: elapsed, field: cycle, unit: 1 h, start: 2020-01-01T00:00:00Z}\n"
        "csv: {delimiter: blanks, columns: [unit, cycle, s1, s2]}\nignore: [s2]\n"
    )
    rows = "1 1 518.67   2.5  \n1 2 518.70 2.6  \n2 1   519.00 2.7  \n"
    how = "device: {field: unit, pattern: '(?P<device>(train|test)-FD\\d+)'}"
    done = bring(
        shop, "cycles", profile, {"s": "s1"}, {"train-FD001.txt": rows, "test-FD001.txt": rows.splitlines()[0]}, how
    )
    assert (done.readings, done.quarantined, done.failed) == (4, 0, ())
    assert sorted(done.enrolled) == ["test-FD001-1", "train-FD001-1", "train-FD001-2"]
    assert shop.stored("train-FD001-1")["event_time"].to_list() == [START.replace(hour=1), START.replace(hour=2)]


def test_a_semicolon_file_with_decimal_commas_and_unnamed_columns(shop: Workshop) -> None:
    """Date and time in two columns, a code for what is missing, a text among numbers, and a unit that is not UTF-8."""
    profile = (
        "clock: {kind: strptime, fields: [Date, Time], pattern: '%d/%m/%Y %H.%M.%S', zone: Europe/Rome}\n"
        "csv: {delimiter: ';', decimal: ','}\nmissing: [-200]\n"
    )
    text = "Date;Time;CO(GT);T °C;;\n10/03/2004;18.00.00;2,6;-200;;\n11/03/2004;18.00.00;-200,0;13,6;;\n"
    done = bring(
        shop,
        "air",
        profile,
        {"co": "CO(GT)", "t": "T °C"},
        {"a.csv": text},
        "device: {name: air-1}\n, encoding: latin-1",
    )
    assert (done.readings, done.quarantined) == (2, 0)
    assert (values(shop, "air-1", "co"), values(shop, "air-1", "t")) == ([2.6], [13.6])
    assert shop.stored("air-1")["event_time"][0] == datetime(2004, 3, 10, 17, tzinfo=UTC)
    (shop.folder / "air" / "b.csv").write_text("Date;Time;CO(GT)\n12/03/2004;18.00.00;2,6\n13/03/2004;18.00.00;high\n")
    done = collect(shop, "air")
    assert (done.readings, done.quarantined) == (1, 1)


def test_a_column_a_device(shop: Workshop) -> None:
    """Whose it is and what it measures is in a column's name; another field's column is everybody's."""
    profile = "clock: {kind: iso, field: column_1, zone: UTC}\nignore: [note]\n"
    text = ",P 1_flow,P 2_flow,P 1_heat,air,note\n2020-01-01T00:00:00,1,2,3,9,x\n2020-01-01T00:01:00,4,,6,9,x\n"
    how = "device: {field: device}\n, wide: {columns: '(?P<device>P \\d)_(?P<field>\\w+)'}"
    done = bring(shop, "wide", profile, {"flow": "flow", "heat": "heat", "air": "air"}, {"a.csv": text}, how)
    assert (done.readings, done.quarantined, done.enrolled) == (9, 0, ("P-1", "P-2"))
    assert [values(shop, "P-1", metric) for metric in ("flow", "heat", "air")] == [[1, 4], [3, 6], [9, 9]]
    assert [values(shop, "P-2", metric) for metric in ("flow", "air")] == [[2], [9, 9]]


def test_a_row_a_quantity(shop: Workshop) -> None:
    """A column names the field, or the file's name does; what no channel reads is named once."""
    profile = "clock: {kind: epoch_s, field: at}\n"
    text = "at,node,what,reading\n0,n:1,temp,20\n0,n:1,hum,50\n60,n:1,temp,21\n60,n:1,odd,1\n120,n:1,odd,1\n"
    how = "device: {field: node}\n, long: {name: what, value: reading}"
    done = bring(shop, "long", profile, {"temperature": "temp", "humidity": "hum"}, {"a.csv": text}, how)
    assert (done.readings, done.quarantined, done.enrolled) == (3, 1, ("n-1",))
    files = {"413/temp.csv": "0,20\n60,21\n", "413/hum.csv": "0,50\n"}
    how = "device: {pattern: '/(?P<device>\\d+)/'}\n, columns: [at, value]"
    how += ", long: {pattern: '(?P<field>\\w+)\\.csv', value: value}"
    done = bring(shop, "rooms", profile, {"temperature": "temp", "humidity": "hum"}, files, how)
    assert (done.readings, done.enrolled, values(shop, "413", "temperature")) == (3, ("413",), [20, 21])


def test_signs_around_numbers_are_taken_off(shop: Workshop) -> None:
    """As in messages; a number that is none without them is refused."""
    profile = "clock: {kind: epoch_ns, field: at}\ncsv: {columns: [at, ax, ay], strip: '^\\d+:|;$'}\n"
    text = "1577836800000000000,1:0.5,2:-1;\n1577836860000000000,1:,2:3;\n1577836920000000000,1:x,2:4;\n"
    done = bring(shop, "signs", profile, {"ax": "ax", "ay": "ay"}, {"a.txt": text}, "device: {name: signs-1}\n")
    assert (done.readings, done.quarantined) == (4, 1)
    assert (values(shop, "signs-1", "ax"), values(shop, "signs-1", "ay")) == ([0.5], [-1, 3, 4])


def test_rows_without_a_time_are_counted(shop: Workshop) -> None:
    """Each file is a device whose rows are as far apart as the cadence."""
    profile = "clock: {kind: elapsed, field: row_number, start: 2020-01-01T00:00:00Z}\ncsv: {columns: [b]}\n"
    done = bring(
        shop,
        "runs",
        profile,
        {"b": "b"},
        {"2004.02.txt": "1\n2\n3\n"},
        "device: {pattern: '(?P<device>[\\d.]+)\\.txt'}",
    )
    assert (done.readings, done.enrolled) == (3, ("2004-02",))
    assert shop.stored("2004-02")["event_time"].to_list() == [START.replace(minute=minute) for minute in (1, 2, 3)]


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("device: {name: d}\n, wide: {columns: 'P\\d', field: b}", "expected a group `device` or `field`"),
        (
            "device: {name: d}\n, wide: {columns: '(?P<device>P\\d)'}",
            "expected a group `field` in `columns`, or `field`",
        ),
        ("device: {name: d}\n, wide: {columns: '(?P<device>P\\d)', field: b}", "no column fits"),
        ("device: {name: d}\n, long: {value: v}", "expected either `name`"),
        ("device: {name: d}\n, long: {name: n, value: v}", "expected a column `v`, there are: t, b"),
        ("device: {field: t, name: d}\n", "got name and field"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(shop: Workshop, how: str, error: str) -> None:
    """In words, before anything is stored."""
    profile = "clock: {kind: epoch_s, field: t}\n"
    assert error in trouble(shop, profile, how)


def trouble(shop: Workshop, profile: str, how: str) -> str:
    """What is said of a source or of its one file."""
    try:
        return bring(shop, "wrong", profile, {"b": "b"}, {"a.csv": "t,b\n0,1\n"}, how).failed[0].error
    except DocumentError as exc:
        return str(exc)
