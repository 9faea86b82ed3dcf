"""Device profiles: what compiles, what is refused, and that the turbine's profile takes its own source."""

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from expectations.profiles import (
    ProfileDocument,
    compile_profile,
    duration_us,
    load_profile,
    load_profiles,
    read_profile,
)
from fieldloop.domain import document
from fieldloop.domain.errors import DocumentError
from fieldloop.domain.profile import Channel, Profile
from infra.local.turbines import source_readings

ROOT = Path(__file__).parents[2]
TURBINE = (ROOT / "expectations" / "profiles" / "senvion-mm82.yaml").read_text()
THERMOMETER = """\
name: thermometer
description: a test
format: json
clock: {field: t, kind: epoch_ms}
cadence: 30 s
channels:
  - metric: temperature
    field: body.temp
    source_unit: degF
    unit: degC
    range: [-40, 125]
"""


def test_every_profile_of_the_repository_compiles() -> None:
    """Each file's profile bears the file's name."""
    profiles = load_profiles(ROOT)
    assert "senvion-mm82" in profiles
    assert all(name == profile.name for name, profile in profiles.items())


def test_the_turbines_profile_accepts_every_reading_of_its_source() -> None:
    """Even a broken outdoor sensor's -273.2 degC is a reading, not a quarantined row."""
    channels = {channel.field: channel for channel in load_profile(ROOT, "senvion-mm82").channels}
    readings = source_readings(datetime(2014, 1, 1, tzinfo=UTC), datetime(2016, 1, 1, tzinfo=UTC))
    seen = readings.group_by("field").agg(low=pl.col("value").min(), high=pl.col("value").max())
    for field, low, high in seen.iter_rows():
        channel = channels.pop(field)
        assert channel.minimum <= low * channel.scale + channel.offset
        assert high * channel.scale + channel.offset <= channel.maximum
    assert channels == {}


def test_a_profile_becomes_plain_numbers() -> None:
    """Durations are microseconds, units are scale and offset, and the defaults are filled in."""
    profile = _compiled(THERMOMETER)
    assert (profile.cadence_us, profile.future_tolerance_us, profile.device_field) == (30_000_000, 300_000_000, None)
    assert profile.channels == (Channel("temperature", "body.temp", "degC", 5 / 9, -160 / 9, -40.0, 125.0, "mean", ""),)


@pytest.mark.parametrize(
    ("source", "target", "scale", "offset"),
    [
        ("degC", "degC", 1.0, 0.0),
        ("kelvin", "degC", 1.0, -273.15),
        ("degC", "kelvin", 1.0, 273.15),
        ("delta_degF", "delta_degC", 5 / 9, 0.0),
        ("m/s", "m/s", 1.0, 0.0),
        ("km/h", "m/s", 1 / 3.6, 0.0),
        ("MW", "kW", 1000.0, 0.0),
        ("%", "dimensionless", 0.01, 0.0),
        ("deg", "rad", 3.141592653589793 / 180, 0.0),
    ],
)
def test_a_unit_becomes_the_nearest_scale_and_offset(source: str, target: str, scale: float, offset: float) -> None:
    """Affine and linear units alike, without rounding on the way."""
    text = THERMOMETER.replace(" unit: degC", f" unit: {target}").replace("degF", f'"{source}"')
    assert (_compiled(text).channels[0].scale, _compiled(text).channels[0].offset) == (scale, offset)


@pytest.mark.parametrize(
    ("found", "put", "error"),
    [
        ("degF", "degFF", "x.yaml:9: `channels.0.source_unit`: unknown unit `degFF`; did you mean `degF`?"),
        (
            "unit: degC",
            "unit: decibel",
            "x.yaml:10: `channels.0.unit`: expected a linear unit, such as `m/s` or `degC`",
        ),
        ("unit: degC", "unit: kW", "x.yaml:7: `channels.0`: `temperature`: unit `degF` cannot be converted to `kW`"),
        (
            "[-40, 125]",
            "[125, -40]",
            "x.yaml:11: `channels.0.range`: expected [low, high] with low < high, got [125, -40]",
        ),
        (
            "[-40, 125]",
            "[.nan, 1]",
            "x.yaml:11: `channels.0.range`: expected [low, high] with low < high, got [nan, 1]",
        ),
        ("[-40, 125]", "[-40, 125]\n    plausible: [-50, 0]", "x.yaml:7: `channels.0`: `temperature`: plausible"),
        ("30 s", "1 us", "x.yaml:5: `cadence`: expected a cadence of at least 1 ms, got '1 us'"),
        ("30 s", "30 m", "x.yaml:5: `cadence`: expected a duration such as `10 min`"),
        ("30 s", "30", "x.yaml:5: `cadence`:"),
        ("epoch_ms", "epoch", "x.yaml:4: `clock.kind`: input should be 'iso'"),
        ("metric: temperature", "metric: Temp C", "x.yaml:7: `channels.0.metric`:"),
        ("range:", "rnge:", "x.yaml:11: unknown key `rnge` in `channels.0`; did you mean `range`?"),
        ("format: json", "format: xml", "x.yaml:3: `format`:"),
    ],
)
def test_a_profile_that_cannot_be_used_is_refused_by_file_and_line(found: str, put: str, error: str) -> None:
    """The message says where, what was expected and what was got."""
    with pytest.raises(DocumentError, match=re.escape(error)):
        _compiled(THERMOMETER.replace(found, put, 1))


@pytest.mark.parametrize(("found", "put"), [("metric: pitch_angle", "metric: wind_speed"), ("Ba_avg", "Ws_avg")])
def test_a_metric_or_field_may_be_given_once(found: str, put: str) -> None:
    """Two channels of one name would overwrite each other."""
    with pytest.raises(DocumentError, match=r"may be given once; repeated: (wind_speed|Ws_avg)"):
        _compiled(TURBINE.replace(found, put))


def test_an_unknown_profile_is_answered_with_those_there_are() -> None:
    """A mistyped name gets a proposal, and no path can be smuggled in."""
    with pytest.raises(DocumentError, match=r"there are: .*senvion-mm82.* did you mean `senvion-mm82`"):
        load_profile(ROOT, "senvion-mm28")
    with pytest.raises(DocumentError, match="no profile"):
        load_profile(ROOT, "../../recipes/turbine-power")


def test_a_file_whose_profile_bears_another_name_is_refused(tmp_path: Path) -> None:
    """Otherwise a device's profile could not be found again."""
    folder = tmp_path / "expectations" / "profiles"
    folder.mkdir(parents=True)
    (folder / "other.yaml").write_text(THERMOMETER)
    with pytest.raises(DocumentError, match="named `thermometer`; file and name must be the same"):
        read_profile(tmp_path, "other")


@pytest.mark.parametrize(
    ("text", "microseconds"), [("10 min", 600_000_000), ("0 s", 0), ("1.5 h", 5_400_000_000), ("7d", 604_800_000_000)]
)
def test_durations_are_read_as_people_write_them(text: str, microseconds: int) -> None:
    """A number and a unit of time."""
    assert duration_us(text) == microseconds


@pytest.mark.parametrize("text", ["-1 s", "10", "10 kW", "2 year", "ten min", "", "1e3 s", "nan s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Negative, without unit, of another quantity, or longer than a year."""
    with pytest.raises(ValueError, match=r"duration|unknown unit"):
        duration_us(text)


def test_importing_profiles_loads_no_unit_library() -> None:
    """`pint` costs a third of a second, and only a compilation needs it."""
    code = "import sys, expectations.profiles; sys.exit('pint' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def _compiled(text: str) -> Profile:
    return compile_profile(document.load(ProfileDocument, text, "x.yaml"))
