"""CSV lines: headers, missing cells, and lines that are wrong."""

import msgspec
import pytest

from fieldloop.domain.harmonize import harmonize
from fieldloop.domain.payloads.csv import BLANKS
from fieldloop.domain.profile import Clock, CsvLayout, Zone
from fieldloop.domain.readings import Reason
from tests.domain.payloads.samples import NOON_US, channel, messages, profile

NAMED = profile(format="csv", csv=CsvLayout(("t", "temp", "hum")))
HEADED = profile(format="csv", csv=CsvLayout((), ";"), ignore=("No",))
STATION = profile(
    format="csv",
    device_field="station",
    clock=Clock("", "parts", ("year", "month", "day", "hour"), Zone("Asia/Shanghai", (), (8 * 3600,))),
    csv=CsvLayout(("No", "year", "month", "day", "hour", "PM2.5", "wd", "station")),
    ignore=("No",),
    channels=(
        channel("pm25", "PM2.5", missing=("NA",)),
        channel("wind_direction", "wd", texts=(("NNW", 337.5),), missing=("NA",)),
    ),
)


def test_lines_with_a_header_are_read_by_its_names():
    """In the header's order, with columns that are ignored or absent."""
    readings, rejects = harmonize(HEADED, messages(b"No;temp;t\n1;20.5;1420113600\n2;;1420113601\n3; 21 ;1420113602\n"))
    assert not rejects
    assert readings.value.tolist() == [20.5, 21.0]
    assert readings.event_us.tolist() == [NOON_US, NOON_US + 2_000_000]


def test_a_header_that_says_what_the_profile_says_is_passed_over():
    """Some devices send it after each restart."""
    readings, rejects = harmonize(NAMED, messages(b"t,temp,hum\r\n1420113600,1,2\r\n", b"1420113600,3,4"))
    assert not rejects
    assert readings.value.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_split_times_texts_and_missing_codes_of_an_air_station():
    """Four columns make the time, compass points are angles, NA is no value, and the station is checked."""
    lines = b'1,2015,1,1,20,"4",NNW,d1\n2,2015,1,1,20,NA,NA,d1\n3,2015,1,1,20,4,NNW,d2\n'
    readings, rejects = harmonize(STATION, messages(lines))
    assert readings.value.tolist() == [4.0, 337.5]
    assert set(readings.event_us.tolist()) == {NOON_US}
    assert [reject.reason for reject in rejects] == [Reason.WRONG_DEVICE]


def test_blanks_decimal_commas_and_columns_without_a_name():
    """Blanks and tabs part cells; a decimal comma is one in numbers alone; columns without a name are passed over."""
    blanks = msgspec.structs.replace(NAMED, csv=CsvLayout(("t", "temp", "hum"), BLANKS))
    readings, rejects = harmonize(blanks, messages(b" 1420113600   1.5\t2 \n1420113601 3 4  \n"))
    assert (readings.value.tolist(), rejects) == ([1.5, 2.0, 3.0, 4.0], [])
    texts = (channel("temperature", "temp", texts=(("1,5 or so", 7.0),)), channel("humidity", "hum"))
    comma = msgspec.structs.replace(HEADED, csv=CsvLayout((), ";", ","), channels=texts)
    readings, rejects = harmonize(comma, messages(b"t;temp;hum;;\n1420113600;-1,5;2e1;;\n1420113601;1,5 or so ;,5;;\n"))
    assert (readings.value.tolist(), rejects) == ([-1.5, 20.0, 7.0, 0.5], [])


def test_what_is_around_numbers_is_taken_off():
    """Units behind them, indices in front, a sign at the end of a line."""
    odd = msgspec.structs.replace(NAMED, csv=CsvLayout(("t", "temp", "hum"), strip=r"%$|;$|^\d+:| C$"))
    readings, rejects = harmonize(odd, messages(b"1420113600, 21.5 C,45%\n1420113601,1:20,2:0.5;\n"))
    assert (readings.value.tolist(), rejects) == ([21.5, 45.0, 20.0, 0.5], [])


@pytest.mark.parametrize(
    ("line", "reason", "metric"),
    [
        (b"", Reason.UNDECODABLE, None),
        (b"\n\n", Reason.UNDECODABLE, None),
        (b"\xff\xfe", Reason.UNDECODABLE, None),
        (b"1420113600,1", Reason.UNDECODABLE, None),
        (b"1420113600,1,2,3", Reason.UNDECODABLE, None),
        (b"1420113600,warm,2", Reason.WRONG_TYPE, "temperature"),
        (b"noon,1,2", Reason.NO_EVENT_TIME, None),
        (b",1,2", Reason.NO_EVENT_TIME, None),
    ],
)
def test_a_bad_line_is_named_and_costs_only_itself(line, reason, metric):
    """The lines around it in its message, and other messages, are read."""
    good = b"1420113600,1,2"
    readings, rejects = harmonize(NAMED, messages(good, line, good))
    assert [(reject.message, reject.reason, reject.metric) for reject in rejects] == [(1, reason, metric)]
    assert (readings.message != 1).sum() == 4


def test_a_column_that_no_channel_reads_is_named_once():
    """Not once a line."""
    _, rejects = harmonize(HEADED, messages(b"t;temp;new\n1420113600;1;2\n1420113600;1;2"))
    assert [(reject.metric, reject.reason) for reject in rejects] == [("new", Reason.UNKNOWN_METRIC)]
