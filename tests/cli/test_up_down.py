"""`fieldloop up`, `down`, `status`, `logs` on the whole platform, as processes of their own."""

import ipaddress
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fieldloop.cli.main import LOG_LINES
from fieldloop.stores.settings import Settings
from infra.local.guardian import MARK, marked
from infra.local.stack import stack_status

PROGRAM = str(Path(sys.executable).with_name("fieldloop"))
SERVICES = ("store", "nats", "signer", "prefect", "mlflow", "worker")
DEADLINE_S = 60.0


@pytest.fixture
def fresh(free_settings: Callable[..., Settings]) -> Iterator[Settings]:
    """An installation that was never started; stopped afterwards whatever happened."""
    settings = free_settings()
    yield settings
    _fieldloop(settings, "down")
    shutil.rmtree(settings.data_dir)


def test_a_second_up_changes_nothing(platform: Settings) -> None:
    """It says so, and every process is the one that was."""
    before = stack_status(platform, "platform")
    done = _fieldloop(platform, "up")
    assert done.returncode == 0
    assert "the platform is up already; nothing was changed" in done.stdout
    assert stack_status(platform, "platform") == before


def test_status_says_what_runs_where(platform: Settings) -> None:
    """As JSON: every service ready, with its process, address and log; and which object store it is."""
    done = _fieldloop(platform, "status", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["ready"] is True
    services = {service["name"]: service for service in found["services"]}
    assert sorted(services) == sorted(SERVICES)
    assert services["store"]["title"] in ("MinIO", "SeaweedFS")
    for service in services.values():
        assert service["phase"] == "ready"
        assert psutil.pid_exists(service["pid"])
        assert Path(service["log"]).exists()


def test_status_for_people_names_every_service(platform: Settings) -> None:
    """A line a service."""
    done = _fieldloop(platform, "status")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()[1:] if line.split()[0] in SERVICES] == list(SERVICES)


def test_the_servers_answer(platform: Settings) -> None:
    """Prefect's API and UI, MLflow's API and UI."""
    for url in (
        f"{platform.prefect_api}/health",
        platform.prefect_ui,
        f"{platform.mlflow_endpoint}/health",
        platform.mlflow_endpoint,
    ):
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.status == 200


def test_everything_listens_on_loopback_alone(platform: Settings) -> None:
    """No service of ours can be reached from another machine."""
    addresses = {
        ipaddress.ip_address(connection.laddr.ip)
        for process in _processes(platform)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses
    assert all(address.is_loopback for address in addresses)


def test_logs_show_a_service(free_settings: Callable[..., Settings]) -> None:
    """The last lines of its file."""
    settings = free_settings()
    folder = settings.data_dir / "logs"
    folder.mkdir(parents=True)
    lines = [f"line {number}" for number in range(3 * LOG_LINES)]
    (folder / "nats.log").write_text("\n".join(lines))
    (folder / "store.log").write_text("another's")
    done = _fieldloop(settings, "logs", "nats")
    assert done.returncode == 0
    assert done.stdout.splitlines() == lines[-LOG_LINES:]


def test_logs_of_an_unknown_service_are_refused_in_one_line(platform: Settings) -> None:
    """With the names that there are."""
    done = _fieldloop(platform, "logs", "natz")
    assert done.returncode == 1
    assert done.stderr.startswith("fieldloop: no log of natz in ")
    assert "mlflow" in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_secret_is_readable_or_shown(platform: Settings) -> None:
    """Files 0600 in folders 0700; no value in any log, any state, any argument list, or what `status` prints."""
    secrets = _secrets(platform)
    assert len(secrets) >= 6
    private = [*platform.secrets.rglob("*"), *(platform.data_dir / "pki").rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in private if path.is_file()} == {0o600}
    folders = [platform.data_dir, platform.secrets, *(path for path in private if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    shown = [_fieldloop(platform, "status", "--json").stdout, _fieldloop(platform, "logs").stdout]
    shown += [path.read_text(errors="replace") for path in (platform.data_dir / "logs").iterdir()]
    shown += [path.read_text(errors="replace") for path in (platform.data_dir / "run").glob("*.json")]
    shown += ["\0".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not [secret for secret in secrets for text in shown if secret in text]


def test_each_service_is_given_its_own_secrets_alone(platform: Settings) -> None:
    """Only the store knows the root's keys, only MLflow the keys of its bucket; the others know none."""
    keys = json.loads((platform.secrets / "store.json").read_text())
    state = stack_status(platform, "platform")
    assert state is not None
    for name in SERVICES:
        environment = set(psutil.Process(state.service(name).pid).environ().values())
        known = {identity for identity, pair in keys.items() if pair["secret_key"] in environment}
        assert known <= {"store": {"admin"}, "mlflow": {"mlflow"}}.get(name, set())


def test_telemetry_is_off(platform: Settings) -> None:
    """The switches are in the environment of every Python service."""
    state = stack_status(platform, "platform")
    assert state is not None
    for name in ("prefect", "mlflow", "worker"):
        environment = psutil.Process(state.service(name).pid).environ()
        assert environment["DO_NOT_TRACK"] == "1"
        assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
        assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
        assert environment["GX_ANALYTICS_ENABLED"] == "false"
        assert "PYTHONDONTWRITEBYTECODE" not in environment


def test_from_up_to_down_and_killed_in_between(fresh: Settings) -> None:
    """One installation's life: up, killed with -9 without orphans, up again on its data, down without a process."""
    done = _fieldloop(fresh, "up")
    assert done.returncode == 0, done.stderr
    for name in SERVICES:
        assert [line for line in done.stdout.splitlines() if line.split()[:1] == [name] and " s" in line]
    first = stack_status(fresh, "platform")
    assert first is not None
    marker = fresh.data_dir / "minio" if (fresh.data_dir / "minio").exists() else fresh.data_dir / "seaweedfs"
    assert marker.exists()

    os.kill(first.supervisor, signal.SIGKILL)
    _until(lambda: not marked(MARK, first.stack_id))
    status = _fieldloop(fresh, "status")
    assert status.returncode == 1
    assert "supervisor was killed" in status.stdout

    assert _fieldloop(fresh, "up").returncode == 0
    second = stack_status(fresh, "platform")
    assert second is not None
    down = _fieldloop(fresh, "down")
    assert down.returncode == 0
    assert "the data stays" in down.stdout
    assert not marked(MARK, second.stack_id)
    assert not marked("FIELDLOOP_SUPERVISOR", second.stack_id)
    assert marker.exists()
    assert "nothing was running" in _fieldloop(fresh, "down").stdout


def test_killing_up_before_it_is_ready_leaves_no_orphan(fresh: Settings) -> None:
    """Nothing of the half-started platform stays."""
    up = subprocess.Popen(
        [PROGRAM, "up"], env=_environment(fresh), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _until(lambda: (state := stack_status(fresh, "platform")) is not None and state.service("store").phase == "ready")
    state = stack_status(fresh, "platform")
    assert state is not None
    up.kill()
    up.wait()
    _until(lambda: not marked(MARK, state.stack_id) and not marked("FIELDLOOP_SUPERVISOR", state.stack_id))


def test_a_taken_port_is_one_clear_line(fresh: Settings) -> None:
    """It names port and setting; nothing is started."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", fresh.mlflow_port))
        holder.listen()
        done = _fieldloop(fresh, "up")
    assert done.returncode == 1
    assert done.stderr.startswith(f"fieldloop: MLflow server: port {fresh.mlflow_port} on 127.0.0.1 is taken")
    assert "FIELDLOOP_MLFLOW_PORT" in done.stderr
    assert done.stderr.count("\n") == 1
    assert stack_status(fresh, "platform") is None


def test_a_missing_binary_is_one_clear_line(fresh: Settings) -> None:
    """It names the program."""
    done = _fieldloop(fresh, "up", FIELDLOOP_STORE="minio", FIELDLOOP_MINIO="/nowhere/minio")
    assert done.returncode == 1
    assert done.stderr == "fieldloop: MinIO: its program /nowhere/minio is missing or cannot be run\n"


def test_a_service_that_dies_is_one_clear_line(fresh: Settings) -> None:
    """It names the log; the rest is stopped."""
    binary = fresh.data_dir / "broken"
    binary.write_text("#!/bin/sh\necho cannot >&2\nexit 4\n")
    binary.chmod(0o755)
    done = _fieldloop(fresh, "up", FIELDLOOP_STORE="minio", FIELDLOOP_MINIO=str(binary))
    assert done.returncode == 1
    assert "MinIO ended with exit status 4" in done.stderr
    assert f"its log: {fresh.data_dir / 'logs' / 'store.log'}" in done.stderr
    assert done.stderr.count("\n") == 1
    state = stack_status(fresh, "platform")
    assert state is not None
    assert not marked(MARK, state.stack_id)


def test_a_wrong_setting_is_one_clear_line(fresh: Settings) -> None:
    """It names the variable."""
    done = _fieldloop(fresh, "status", FIELDLOOP_NATS_PORT="many")
    assert done.returncode == 1
    assert done.stderr.startswith("fieldloop: FIELDLOOP_NATS_PORT: ")
    assert done.stderr.count("\n") == 1


def test_an_outside_service_that_does_not_answer_is_named(fresh: Settings) -> None:
    """It is probed before anything is started."""
    done = _fieldloop(fresh, "up", FIELDLOOP_MLFLOW_URL="http://127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr == "fieldloop: mlflow: nothing answers at http://127.0.0.1:1 (FIELDLOOP_MLFLOW_URL)\n"


def test_status_before_the_first_up_says_what_to_do(fresh: Settings) -> None:
    """And exits with 1."""
    done = _fieldloop(fresh, "status")
    assert done.returncode == 1
    assert "fieldloop up" in done.stdout


def test_help_names_the_commands() -> None:
    """Without arguments as well."""
    done = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, check=True)
    for command in ("up", "down", "status", "logs"):
        assert f" {command} " in done.stdout


def _environment(settings: Settings, **more: str) -> dict[str, str]:
    return {**os.environ, **settings.environment(), **more, "COLUMNS": "200"}


def _fieldloop(settings: Settings, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [PROGRAM, *arguments],
        env=_environment(settings, **more),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def _processes(settings: Settings) -> list[psutil.Process]:
    state = stack_status(settings, "platform")
    assert state is not None
    return [psutil.Process(pid) for pid in marked(MARK, state.stack_id)]


def _secrets(settings: Settings) -> list[str]:
    keys = [pair["secret_key"] for pair in json.loads((settings.secrets / "store.json").read_text()).values()]
    master = (settings.secrets / "store-kms").read_text().partition(":")[2]
    pem = [path.read_text().splitlines()[1] for path in (settings.data_dir / "pki").rglob("*key.pem")]
    return [*keys, master, *pem]


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)
