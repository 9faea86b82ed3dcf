"""What a profile's document may say of payloads and clocks, and what is refused."""

from pathlib import Path

import pytest

from expectations.profiles import ProfileDocument, compile_profile, load_profile_file
from fieldloop.domain import document
from fieldloop.domain.errors import DocumentError
from fieldloop.domain.profile import BinaryField, Clock, CsvLayout, Profile

HEAD = "name: probe\ndescription: a test\ncadence: 1 h\n"
CHANNEL = "channels:\n  - {metric: temperature, field: temp, source_unit: degC, unit: degC, range: [-40, 85]}\n"
CSV = "format: csv\nclock: {kind: parts, fields: [y, m, d], zone: Asia/Shanghai}\n"
ELAPSED = "format: json\nclock: {kind: elapsed, field: t, start: 2020-01-01T00:00:00Z}\n"
UPLINK = (
    "format: lorawan\nclock: {kind: iso, field: time}\nuplink:\n  payload: data\n  port: fPort\n  codec: fields\n"
    "  fields: [{name: temp, offset: 1, type: int16, scale: 0.1, port: 5}]\n"
)


def compiled(text: str) -> Profile:
    return compile_profile(document.load(ProfileDocument, HEAD + text, "x.yaml"))


def test_an_air_stations_profile_compiles():
    """Split times, missing codes of the profile and of the channel, and a table of texts."""
    profile = compiled(
        CSV + "compression: zstd\nmissing: [NA]\ncsv: {columns: [y, m, d, wd], delimiter: ;}\nchannels:\n"
        "  - {metric: wind_direction, field: wd, source_unit: deg, unit: deg, range: [0, 360], missing: [-9999],"
        " values: {N: 0, NNE: 22.5}}\n"
    )
    assert profile.clock.parts == ("y", "m", "d")
    assert profile.clock.zone is not None
    assert profile.clock.zone.offsets_s[-1] == 8 * 3600
    assert profile.csv == CsvLayout(("y", "m", "d", "wd"), ";")
    assert profile.channels[0].missing == ("NA", -9999.0)
    assert profile.channels[0].texts == (("N", 0.0), ("NNE", 22.5))


def test_booleans_are_words_in_a_table_of_values():
    """YAML would make them booleans."""
    profile = compiled("format: scalar\n" + CHANNEL.replace("temp,", "value,").replace("85]", "85], values: {true: 1}"))
    assert profile.channels[0].texts == (("true", 1.0),)
    assert profile.clock == Clock("", "arrival")


def test_a_counter_counts_records_unless_it_says_what():
    """The cadence is the unit where none is given."""
    assert compiled(ELAPSED + CHANNEL).clock == Clock(
        "t", "elapsed", start_us=1_577_836_800_000_000, unit_us=3_600_000_000
    )
    assert compiled(ELAPSED.replace("}", ", unit: 1 ms}") + CHANNEL).clock.unit_us == 1_000


def test_a_scale_becomes_the_fraction_that_was_meant():
    """A tenth is one over ten."""
    uplink = compiled(UPLINK + CHANNEL).uplink
    assert uplink is not None
    assert uplink.fields == (BinaryField("temp", 1, "int16", "big", 1, 10, 5),)


def test_senml_knows_the_units_of_the_channels_quantity():
    """Kelvin can become degrees Celsius, volts cannot."""
    profile = compiled("format: senml-cbor\ndevice_field: bn\n" + CHANNEL)
    assert profile.channels[0].declared == (("K", 1.0, -273.15), ("Cel", 1.0, 0.0))
    assert profile.clock == Clock("", "payload")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("format: json\n" + CHANNEL, "format `json` needs a `clock`"),
        ("format: json\nclock: {kind: iso}\n" + CHANNEL, "x.yaml:5: `clock`: a clock of kind `iso` needs `field`"),
        ("format: json\nclock: {kind: arrival, field: t}\n" + CHANNEL, "of kind `arrival` takes no `field`"),
        ("format: json\nclock: {kind: parts, fields: [y, m, d]}\n" + CHANNEL, "needs a `zone`"),
        ("format: json\nclock: {kind: epoch_s, field: t, zone: UTC}\n" + CHANNEL, "takes no `zone`"),
        ("format: json\nclock: {kind: iso, field: t, zone: Mars}\n" + CHANNEL, "x.yaml:5: `clock.zone`: unknown time"),
        ("format: json\nclock: {kind: iso, field: temp}\n" + CHANNEL, "field `temp` is read twice"),
        ("format: json\nclock: {kind: iso, field: temp.t}\n" + CHANNEL, "`temp.t` lies beneath it"),
        ("format: sparkplug-b\nclock: {kind: iso, field: t}\n" + CHANNEL, "takes its times from the payload"),
        ("format: sparkplug-b\ndevice_field: t\n" + CHANNEL, "carries no device name"),
        ("format: senml-json\ndevice_field: id\n" + CHANNEL, "`device_field: bn`"),
        ("format: senml-json\naliases: {1: temp}\n" + CHANNEL, "`aliases` is for format `sparkplug-b`"),
        ("format: scalar\n" + CHANNEL, "its field is `value`"),
        ("format: scalar\nclock: {kind: iso, field: t}\n" + CHANNEL, "leave `clock` out"),
        (CSV + "csv: {columns: [y, m, d, tmp]}\n" + CHANNEL, "did you mean `tmp`?"),
        (CSV + "csv: {columns: [y, y]}\n" + CHANNEL, "repeated: y"),
        (CSV + "csv: {delimiter: ab}\n" + CHANNEL, "x.yaml:6: `csv.delimiter`: expected one character"),
        (CSV + 'csv: {decimal: ","}\n' + CHANNEL, "a decimal comma needs another `delimiter`"),
        (CSV + "csv: {strip: '('}\n" + CHANNEL, "not a regular expression"),
        (CSV + "csv: {strip: '%*'}\n" + CHANNEL, "finds nothing everywhere"),
        (CSV.replace("[y, m, d]", "[y, m]") + CHANNEL, "needs at least year, month and day"),
        ("format: json\nclock: {kind: strptime, field: t, zone: UTC}\n" + CHANNEL, "needs a `pattern`"),
        ("format: json\nclock: {kind: strptime, field: t, pattern: '%d/%m/%Y'}\n" + CHANNEL, "needs a `zone`"),
        ("format: json\nclock: {kind: strptime, field: t, pattern: '%H:%M'}\n" + CHANNEL, "with year, month and day"),
        ("format: json\nclock: {kind: strptime, field: t, pattern: '%Q'}\n" + CHANNEL, "not a pattern of strptime"),
        ("format: json\nclock: {kind: elapsed, field: t}\n" + CHANNEL, "needs a `start`"),
        ("format: json\nclock: {kind: iso, field: t, unit: 1 s}\n" + CHANNEL, "takes no `unit`"),
        (ELAPSED.replace("}", ", round: 0 s}") + CHANNEL, "`round`: expected a duration of at least a microsecond"),
        (ELAPSED.replace("}", ", unit: 1 cycle}") + CHANNEL, "x.yaml:5: `clock`: expected a duration"),
        ("format: lorawan\nclock: {kind: iso, field: t}\n" + CHANNEL, "needs `uplink`"),
        (UPLINK.replace("name: temp", "name: tmp") + CHANNEL, "field `temp` is none of `uplink.fields`"),
        (UPLINK.replace("codec: fields", "codec: cayenne-lpp") + CHANNEL, "no other codec takes them"),
        (UPLINK.replace("  port: fPort\n", "") + CHANNEL, "need the path of the port"),
        (UPLINK.replace("offset: 1", "offset: 254") + CHANNEL, "ends after byte 255"),
        (UPLINK.replace("0.1", "0") + CHANNEL, "expected a scale such as 0.1"),
        (UPLINK.replace("0.1", ".inf") + CHANNEL, "expected a scale such as 0.1"),
    ],
)
def test_what_does_not_fit_together_is_refused(text: str, error: str):
    """With the line where there is one, and what to do."""
    with pytest.raises(DocumentError) as caught:
        compiled(text)
    assert error in str(caught.value)


def test_a_profile_is_read_from_a_file_anywhere(tmp_path: Path):
    """And one that cannot be read is named."""
    path = tmp_path / "probe.yaml"
    path.write_text(HEAD + "format: senml-json\n" + CHANNEL)
    assert load_profile_file(path).name == "probe"
    with pytest.raises(DocumentError, match=r"none\.yaml: expected a profile"):
        load_profile_file(tmp_path / "none.yaml")
