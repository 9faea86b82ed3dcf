"""A target without devices: it joins, runs nothing of others, and serves devices once it is told of them."""

import asyncio
from pathlib import Path

import msgspec
import nats.js.errors
import pytest
from typer.testing import CliRunner

from fieldloop.cli.main import app
from fieldloop.domain.enrolment import decode_config
from fieldloop.domain.errors import EnrolmentError
from fieldloop.edge import enrol
from fieldloop.stores import broker, fleet, rollouts
from fieldloop.stores.fleet import Target
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tests.edge.targets import Gateway, make_release, mean_of_windows, payload, poll


def test_a_target_is_added_with_labels_alone_and_given_devices_while_it_runs(
    install: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint says how; the agent learns of its device and scores it; labels stay, and so does what it runs."""
    lake = Lake(install)
    fleet.add_devices(lake, ["dev-bare"], "toy")
    for name, value in install.environment().items():
        monkeypatch.setenv(name, value)
    said = CliRunner().invoke(app, ["target", "add", "gw-bare", "--label", "site=north"], catch_exceptions=False)
    assert "gw-bare serves no device yet: `fieldloop target add gw-bare --device NAME` assigns one" in said.stderr
    assert _target(lake) == Target("gw-bare", (), ("site=north",))
    with pytest.raises(nats.js.errors.NotFoundError):
        asyncio.run(_filters(install))
    gateway, release = _joined(install, said.stdout.strip().splitlines()[-1], tmp_path), make_release(model="bare")
    gateway.start()
    try:
        gateway.desire(release)
        gateway.await_running(release)
        again = CliRunner().invoke(app, ["target", "add", "gw-bare", "--device", "dev-bare"], catch_exceptions=False)
        assert "gw-bare has joined" in again.stderr
        assert _target(lake) == Target("gw-bare", ("dev-bare",), ("site=north",))
        assert asyncio.run(_filters(install)) == ["devices.dev-bare.readings"]
        poll(lambda: "devices served: dev-bare" in gateway.log or None, lambda: gateway.log)
        gateway.send([payload(range(10))])
        rows = gateway.await_rows(6)
        assert [rows[end][0] for end in sorted(rows)] == mean_of_windows(range(3, 9)).tolist()
        gateway.desire(release)  # a later order, which says nothing of devices
        held = asyncio.run(_held(install))
        assert held.desired is not None
        assert held.desired.devices == (("dev-bare", "toy"),)
        assert gateway.log.count("is desired") == 1
    finally:
        gateway.stop()
    fleet.remove_targets(install, lake, ["gw-bare"])
    assert [target.name for target in fleet.targets(lake) if target.name == "gw-bare"] == []


def test_a_label_that_was_mistyped_is_named(install: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is none enters nobody; one that no target bears is answered with those there are."""
    for name, value in install.environment().items():
        monkeypatch.setenv(name, value)
    said = CliRunner().invoke(app, ["target", "add", "gw-mistyped", "--label", "site"])
    assert isinstance(said.exception, EnrolmentError)
    assert "label 'site': expected key=value" in str(said.exception)
    fleet.add_targets(install, Lake(install), [Target("gw-labelled", (), ("site=north",))])
    listed = CliRunner().invoke(app, ["target", "list", "--label", "sit=north"], catch_exceptions=False).output
    assert listed.startswith("no target bears sit=north; labels there are: ")
    assert "site=north" in listed
    assert "gw-mistyped" not in CliRunner().invoke(app, ["target", "list"], catch_exceptions=False).output
    fleet.remove_targets(install, Lake(install), ["gw-labelled"])


def _joined(settings: Settings, token: str, folder: Path) -> Gateway:
    """Use a token as the gateway does; the agent is quick to look."""
    asyncio.run(enrol.join(token, folder))
    path = folder / "agent.json"
    config = decode_config(path.read_bytes(), str(path))
    assert config.devices == {}
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(config, heartbeat_s=0.5, poll_s=1.0)))
    return Gateway(settings, "gw-bare", "dev-bare", path)


def _target(lake: Lake) -> Target:
    return next(target for target in fleet.targets(lake) if target.name == "gw-bare")


async def _filters(settings: Settings) -> list[str]:
    async with broker.platform(settings) as (_, js):
        config = (await js.consumer_info("readings", "gw-bare")).config
        return config.filter_subjects or [config.filter_subject or ""]


async def _held(settings: Settings) -> rollouts.Held:
    async with broker.platform(settings) as (_, js):
        return (await rollouts.held(js, ["gw-bare"]))["gw-bare"]
