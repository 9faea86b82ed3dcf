"""The whole loop, through the worker and with real agents, on two months of four turbines."""

import json
import re
import urllib.request
from collections.abc import Iterator
from datetime import datetime

import httpx
import polars as pl
import pytest
from prefect.client.orchestration import SyncPrefectClient
from rich.console import Console
from typer.testing import CliRunner

from expectations.profiles import load_profile
from fieldloop.cli.demo import PROFILE, RECIPE, TURBINES, run_demo
from fieldloop.cli.main import app
from fieldloop.stores import objects, registry
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import BUCKETS, STORE_IDENTITIES, Settings
from infra.local.turbines import source_readings
from tests.conftest import HISTORY, LIVE, Looped

pytestmark = pytest.mark.timeout(600)

KEY = ["device", "metric", "event_time"]


def test_lake_holds_the_sources_distinct_readings_and_their_values(looped: Looped) -> None:
    """Every (device, metric, event time) of the source is there once, with the source's first value."""
    profile = load_profile(looped.settings.root, PROFILE)
    metric_of = {channel.field: channel.metric for channel in profile.channels}
    source = source_readings(*HISTORY).with_columns(metric=pl.col("field").replace_strict(metric_of))
    lake = Lake(looped.settings).scan("readings").collect()
    assert len(lake) == len(source) == len(lake.unique(KEY))
    both = lake.join(source, on=KEY, how="inner")
    assert len(both) == len(source)
    assert (both["value"] == both["value_right"]).all()


def test_edge_scored_the_lakes_windows(looped: Looped) -> None:
    """Every prediction's window is, bit for bit, one that the lake has; each turbine's agent predicted each step."""
    assert looped.demo.wrong == []
    predictions = Lake(looped.settings).scan("predictions").collect()
    steps = (LIVE[1] - LIVE[0]).days * 144
    left_out = load_window(looped.settings) + 1  # the first step and those before a whole window, and the open last one
    assert dict(predictions.group_by("device").len().iter_rows()) == dict.fromkeys(TURBINES, steps - left_out)
    outcomes = dict(outcome.split(": ", 1) for _, outcome, _ in looped.demo.rows if outcome.startswith("windows bit"))
    total = f"{len(predictions):,}"
    assert outcomes == {"windows bit for bit as in the lake": f"{total} of {total}"}


@pytest.mark.parametrize("event", ["fieldloop.readings.landed", "fieldloop.model.registered"])
def test_commit_and_registration_are_announced(looped: Looped, event: str) -> None:
    """What automations wait for is said with what they ask: the table's version and rows, the model's and its alias."""
    answer = httpx.post(f"{looped.settings.prefect_api}/events/filter", json={"filter": {"event": {"name": [event]}}})
    payloads = [each["payload"] for each in answer.raise_for_status().json()["events"]]
    if event == "fieldloop.model.registered":
        assert {"version": 1, "alias": "champion", "promoted": True} in payloads
    else:
        assert {name for payload in payloads for name in payload.get("names", [])} >= set(TURBINES)
        assert all(payload["rows"] > 0 and payload["table_version"] >= 0 for payload in payloads)


def test_a_recipe_is_checked_before_it_is_learnt(looped: Looped, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command shows parts, devices and example windows of what is in the lake."""
    for name, value in looped.settings.environment().items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["recipe", "check", RECIPE], catch_exceptions=False, env={"COLUMNS": "200"})
    shown = result.output
    assert result.exit_code == (1 if "problem: " in shown else 0)
    assert f"recipe {RECIPE}: value `active_power` from " in shown
    assert all(turbine in shown for turbine in TURBINES)
    assert all(part in shown for part in ("parts", "train", "validation", "test", "examples", "wind_speed"))


def load_window(settings: Settings) -> int:
    """Return how many steps a window has."""
    version = registry.version(settings, RECIPE, "champion")
    return int(json.loads(registry.artifact(settings, version, "release/window.json"))["length"])


def test_every_stage_left_an_artifact(looped: Looped) -> None:
    """A person finds what each stage did in Prefect, with links to MLflow and to Data Docs."""
    with SyncPrefectClient(api=looped.settings.prefect_api) as client:
        left = {artifact.key: str(artifact.data) for artifact in client.read_latest_artifacts()}
    assert {"acquire", "validate", "preprocess", "train", "register", "deploy", "monitor", "lifecycle"} <= left.keys()
    assert looped.settings.mlflow_endpoint in left["train"]
    assert looped.settings.mlflow_endpoint in left["register"]
    assert looped.settings.reports_endpoint in left["validate"]
    with urllib.request.urlopen(looped.settings.reports_front, timeout=10) as answer:
        pages = re.findall(r'href="(.+?)"', answer.read().decode())
    assert len(pages) == 3
    assert all(page in left["validate"] for page in pages)


def test_no_secret_is_in_any_log_or_artifact(looped: Looped) -> None:
    """Store keys, encryption keys and private keys appear in no log, no Prefect log or artifact, no object."""
    settings = looped.settings
    secrets = [settings.store_credentials(identity).secret_key for identity in STORE_IDENTITIES]
    secrets += [_body(path.read_text()) for path in settings.data_dir.glob("pki/**/*key.pem")]
    secrets += [_body(path.read_text()) for path in settings.data_dir.glob("**/identity.pem")]
    secrets += [_body(path.read_text()) for path in settings.secrets.glob("tuf/*.pem")]
    secrets += [_body(path.read_text()) for path in settings.offline_keys.iterdir()]  # the passphrase among them
    secrets += [path.read_text().strip().partition(":")[2] for path in settings.secrets.glob("*kms*")]
    assert len(secrets) > 18
    searched = 0
    for name, text in _texts(settings):
        searched += len(text)
        assert not [secret[:4] for secret in secrets if secret.encode() in text], f"a secret is in {name}"
    assert searched > 1_000_000


def _body(pem: str) -> str:
    """Return the longest line of a key, of whatever stands before it none."""
    return max(pem[max(pem.find("-----BEGIN"), 0) :].splitlines(), key=len)


def _texts(settings: Settings) -> Iterator[tuple[str, bytes]]:
    """Everything that the loop wrote for others to read."""
    for path in settings.data_dir.glob("logs/*"):
        yield str(path), path.read_bytes()
    database = settings.data_dir / "prefect" / "prefect.db"
    for path in database.parent.glob("prefect.db*"):  # Prefect's logs, states, parameters and artifacts
        yield str(path), path.read_bytes()
    for bucket in BUCKETS:
        store = objects.client(settings, bucket)
        for entry in store.list_objects(bucket_name=bucket, recursive=True):
            yield f"{bucket}/{entry.object_name}", objects.get(store, bucket, str(entry.object_name))


def test_a_second_turn_changes_nothing(looped: Looped) -> None:
    """Readings, grid, model, release and predictions stay as they are; the loop finds all of it done."""
    before = _content(looped.settings)
    again = run_demo(looped.settings, Console(stderr=True), HISTORY, LIVE)
    assert again.wrong == []
    assert _content(looped.settings) == before
    outcomes = [outcome for _, outcome, _ in again.rows]
    assert any(outcome.endswith("0 new readings") for outcome in outcomes)
    assert any("nothing new to judge" in outcome for outcome in outcomes)
    assert any(outcome.endswith("unchanged") for outcome in outcomes)


def _content(settings: Settings) -> dict[str, object]:
    lake = Lake(settings)
    version = registry.version(settings, RECIPE, "champion")
    runs = registry.client(settings).search_runs([registry.experiment(settings, RECIPE)])
    newest: datetime = lake.scan("predictions").select(pl.col("arrival_time").max()).collect().item()
    return {
        "readings": lake.scan("readings").select(pl.len()).collect().item(),
        "grid": lake.version(f"grid/{RECIPE}"),
        "windows": lake.version(f"windows/{RECIPE}"),
        "runs": len(runs),
        "champion": (version.version, version.run_id),
        "versions": len(registry.client(settings).search_model_versions(f"name = '{RECIPE}'")),
        "releases": sorted(lake.scan("predictions").select("release").unique().collect()["release"]),
        "predictions": (lake.scan("predictions").select(pl.len()).collect().item(), newest),
    }
