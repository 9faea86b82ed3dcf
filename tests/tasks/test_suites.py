"""Suites made from real turbines' readings in the lake, and validation by them."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from expectations.profiles import load_profile
from expectations.references import FOLDER, read_suite, write_suite
from fieldloop.domain.errors import DocumentError, ValidationError
from fieldloop.stores import fleet
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import SCHEMAS
from infra.local.turbines import source_readings
from tasks.suites import make_suite
from tasks.unjudged import find_new
from tasks.validate import enter, judge
from tasks.verdict import Verdict

ROOT = Path(__file__).parents[2]
CHANNELS = load_profile(ROOT, "senvion-mm82").channels
SINCE, UNTIL = datetime(2014, 1, 1, tzinfo=UTC), datetime(2014, 3, 1, tzinfo=UTC)
SUMMER = datetime(2014, 7, 1, tzinfo=UTC), datetime(2014, 7, 15, tzinfo=UTC)


class Workshop(Settings):
    """Settings whose repository is a folder of the test."""

    folder: Path

    @property
    def root(self) -> Path:
        """The folder with `expectations`."""
        return self.folder


class Farm:
    """Four real turbines under a profile of the test's own."""

    def __init__(self, store: Settings, folder: Path, profile: str) -> None:
        """Enrol them."""
        profiles = folder / "expectations" / "profiles"
        profiles.mkdir(parents=True)
        text = (ROOT / "expectations" / "profiles" / "senvion-mm82.yaml").read_text()
        (profiles / f"{profile}.yaml").write_text(text.replace("name: senvion-mm82", f"name: {profile}"))
        self.settings = Workshop.model_validate({**store.model_dump(), "folder": folder})
        self.profile = profile
        self.names = {name: f"{profile}-{name}" for name in sorted(source_readings(*SUMMER)["device"].unique())}
        fleet.add_devices(Lake(self.settings), tuple(self.names.values()), profile)

    def land(self, sequence: int, since: datetime, until: datetime, spoil: pl.Expr | None = None) -> None:
        """Put what they sent into the lake, with another value where one is given."""
        fields = {channel.field: channel.metric for channel in CHANNELS}
        scales = {channel.field: channel.scale for channel in CHANNELS}
        rows = (
            source_readings(since, until)
            .filter(pl.col("field").is_in(list(fields)))
            .with_columns(
                pl.col("device").replace(self.names),
                metric=pl.col("field").replace_strict(fields),
                value=pl.col("value") * pl.col("field").replace_strict(scales),
            )
        )
        wanted = {"arrival_time": "event_time", "value": pl.col("value") if spoil is None else spoil}
        rows = rows.with_columns(
            **wanted, sequence=pl.lit(sequence), replay=pl.lit(0), year=pl.col("event_time").dt.year()
        )
        Lake(self.settings).append(
            "readings", rows.select(pl.col(name).cast(kind) for name, kind in SCHEMAS["readings"].items())
        )

    def judge(self, run_id: str) -> Verdict:
        """Validate what is new."""
        return judge(self.settings, find_new(self.settings, self.profile, None, run_id))


@pytest.fixture
def winter(store: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> Farm:
    """Two months of the farm in the lake, and their suite beside the profile."""
    farm = Farm(store, tmp_path, re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:50].strip("-"))
    farm.land(1, SINCE, UNTIL)
    suite = make_suite(farm.settings, farm.profile, farm.profile, SINCE, UNTIL)
    write_suite(farm.settings.root, suite)
    return farm


def test_a_suite_says_what_it_was_made_from_and_its_own_data_pass(winter: Farm) -> None:
    """Reference, bounds and shares are read back from the file as they were made; good devices meet them."""
    suite = read_suite(winter.settings.root, winter.profile)
    assert suite is not None
    assert suite.reference.devices == tuple(winter.names.values())
    assert (suite.reference.since, suite.reference.until) == (SINCE, UNTIL)
    outdoor = next(each for each in suite.metrics if each.metric == "outdoor_temperature")
    assert outdoor.bounds is not None
    assert -10 < outdoor.bounds[0] < 5 < 12 < outdoor.bounds[1] < 25
    verdict = winter.judge("winter")
    assert (verdict.set_aside, verdict.failure) == ((), "")
    assert {check.column for check in verdict.checks} >= {f"{each.metric}_usual" for each in suite.metrics}


def test_a_bad_device_is_set_aside_and_bad_days_are_not(winter: Farm) -> None:
    """Summer is outside a winter's bounds for all; a sensor that reads 30 degC too much in winter is one's own."""
    winter.land(2, *SUMMER)
    assert winter.judge("summer").set_aside == ()
    bad = winter.names[min(winter.names)]
    shifted = (pl.col("device") == bad) & (pl.col("metric") == "outdoor_temperature")
    spoil = pl.when(shifted).then(pl.col("value") + 25).otherwise("value")
    new = datetime(2014, 12, 1, tzinfo=UTC)
    _enter(winter)
    winter.land(3, new, new + timedelta(days=14), spoil)
    (refused,) = winter.judge("bad").set_aside
    assert refused.device == bad
    assert "outdoor_temperature within" in refused.reason
    assert "as in the reference" in refused.reason


def _enter(farm: Farm) -> None:
    """Enter what is new as passed."""
    new = find_new(farm.settings, farm.profile, None, "enter")
    enter(farm.settings, new, judge(farm.settings, new))


def test_a_suite_that_does_not_fit_is_refused_by_line(winter: Farm) -> None:
    """A mistyped metric, key or name says where; a suite asked for by name must be there."""
    root, path = winter.settings.root, winter.settings.root / FOLDER / f"{winter.profile}.yaml"
    text = path.read_text()
    path.write_text(text.replace("metric: wind_speed", "metric: wind_sped"))
    with pytest.raises(DocumentError, match=r"\.yaml:\d+: profile .* has no metric `wind_sped`"):
        read_suite(root, winter.profile)
    path.write_text(text.replace("  usual:", "  usal:", 1))
    with pytest.raises(DocumentError, match=r"\.yaml:\d+: unknown key `usal`.*did you mean `usual`"):
        read_suite(root, winter.profile)
    with pytest.raises(DocumentError, match="no suite `nothing`"):
        find_new(winter.settings, winter.profile, None, "run", suite="nothing")


def test_no_readings_make_no_suite(winter: Farm) -> None:
    """An empty span is an error, not a suite that nothing fails."""
    with pytest.raises(ValidationError, match="no reading of profile"):
        make_suite(winter.settings, "empty", winter.profile, datetime(2013, 12, 1, tzinfo=UTC), SINCE)
