"""Rollouts and targets on the command line, and a rehearsal, beside the demonstration's platform."""

import asyncio
import json
from collections import Counter
from random import Random

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from fieldloop.cli.main import app
from fieldloop.cli.rehearse import run
from fieldloop.domain.errors import FieldloopError, StoreError
from fieldloop.stores import broker, fleet, rollouts
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from flows.monitor import monitor
from infra.rehearsal.faults import Fate, Faults
from infra.rehearsal.stage import Cast
from tests.conftest import Looped


@pytest.fixture
def settled(looped: Looped, monkeypatch: pytest.MonkeyPatch) -> Looped:
    """The demonstration's platform, which the command line finds."""
    for name, value in looped.settings.environment().items():
        monkeypatch.setenv(name, value)
    return looped


def test_rollouts_are_listed_and_shown(settled: Looped) -> None:
    """The demonstration's own is there, completed, with its gates."""
    listed = _said("rollout", "list")
    assert "completed" in listed
    name = next(word for word in listed.split() if word.startswith("turbine-power-"))
    shown = _said("rollout", "show", name)
    assert f"{name}: completed" in shown
    assert "failures good: 0 of 4 targets failed" in shown
    with pytest.raises(StoreError, match="no rollout 'none'"):
        CliRunner().invoke(app, ["rollout", "show", "none"], catch_exceptions=False)


def test_targets_are_listed_and_shown(settled: Looped) -> None:
    """With what they run, and all that the last report says."""
    assert _said("target", "list", "--label", "site=la-haute-borne").count("gw-R") == 4
    known = json.loads(_said("target", "show", "gw-R80711"))
    assert known["reported"]["target"] == "gw-R80711"
    assert known["asked"]["release"] == known["reported"]["running"]["release"]


def test_who_joins_after_a_rollout_is_asked_for_its_release(settled: Looped) -> None:
    """At once where it is added by hand, else when *monitor* runs the next time."""
    settings, labels = settled.settings, ("site=la-haute-borne",)
    _said("target", "add", "late-by-hand", "--device", "R80711", "--label", *labels)
    fleet.add_targets(settings, Lake(settings), [fleet.Target("late-unnoticed", ("R80721",), labels)])
    asked = asyncio.run(_asked(settings))
    assert asked.keys() == {"late-by-hand"}
    with temporary_settings({PREFECT_API_URL: settings.prefect_api}):
        monitor("turbine-power")
    known = json.loads(_said("target", "show", "gw-R80711"))
    assert asyncio.run(_asked(settings)) == dict.fromkeys(("late-by-hand", "late-unnoticed"), known["asked"]["release"])
    _said("target", "remove", "late-by-hand", "late-unnoticed")


def test_a_rehearsal_predicts_and_leaves_the_fleet_alone(settled: Looped) -> None:
    """The real flow, on a stage of its own: how many fail, and why, is as it was drawn.

    Gateways are silent, damage what they load, lose power while they do, are out of reach now and then, and have clocks
    that are off by an hour.
    """
    before = _said("rollout", "list")
    plan = settled.settings.data_dir / "plan.yaml"
    plan.write_text("limits: {deadline_s: 12, failed: 0.5, silent: 0.5}\n")
    faults = Faults(silent=0.2, flapping=0.1, corrupting=0.1, offline=0.05, offline_s=1, skew_s=3600)
    cast = Cast(30, processes=1, faults=faults, heartbeat_s=1.0, seed=2)
    fates = Counter(faults.fate(Random(f"{cast.seed}/{name}")) for name in cast.names())  # noqa: S311 - a simulation
    outcome = run(settled.settings, "turbine-power", "champion", None, cast, plan)
    assert outcome.phase == "completed"
    assert (outcome.states["silent"], outcome.states["failed"]) == (fates[Fate.SILENT], fates[Fate.CORRUPTING])
    assert outcome.running == outcome.states["proved"] == fates[Fate.WELL] + fates[Fate.FLAPPING] < 30
    assert fates[Fate.FLAPPING] > 0
    assert 0 < outcome.proved_s < outcome.seconds
    assert outcome.wire_bytes > outcome.running * outcome.median_bytes > 0
    assert _said("rollout", "list") == before


def test_a_rehearsal_of_what_is_not_there_begins_nothing(settled: Looped, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan, version, share: each is named, and what there is."""
    monkeypatch.setattr("infra.rehearsal.stage.start_stack", None)
    missing = settled.settings.data_dir / "none.yaml"
    for arguments, says in (
        (("--plan", str(missing)), f"{missing}: expected the YAML of a plan"),
        (("--version", "77"), "model turbine-power: expected a version '77' .* got none: the newest are .*1"),
    ):
        with pytest.raises(FieldloopError, match=says):
            CliRunner().invoke(app, ["rehearse", *arguments], catch_exceptions=False)
    assert "Invalid value for '--silent'" in CliRunner().invoke(app, ["rehearse", "--silent", "3"]).output


async def _asked(settings: Settings) -> dict[str, str]:
    """Return the releases that late joiners are asked for."""
    async with broker.platform(settings) as (_, js):
        held = await rollouts.held(js, ["late-by-hand", "late-unnoticed"])
    return {name: each.desired.release for name, each in held.items() if each.desired}


def _said(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "250"})
    assert result.exit_code == 0, result.output
    return result.output
