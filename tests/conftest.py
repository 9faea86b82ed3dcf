"""What every test may use: real services, started once a session, on free ports, in a folder of their own."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import hypothesis
import pytest
from rich.console import Console

from fieldloop.cli.demo import Demo, run_demo
from fieldloop.stores.settings import Settings
from infra.local import broker as broker_service
from infra.local import platform as platform_services
from infra.local import signer
from infra.local import store as store_service
from infra.local.authority import make_authority
from infra.local.keys import make_secrets
from infra.local.ports import free_ports
from infra.local.stack import Spec, start_stack, stop_stack
from infra.rehearsal.stage import PORTS

HISTORY = datetime(2014, 12, 1, tzinfo=UTC), datetime(2015, 2, 1, tzinfo=UTC)
LIVE = datetime(2015, 1, 20, tzinfo=UTC), datetime(2015, 2, 1, tzinfo=UTC)


def pytest_configure() -> None:
    """Let no setting of the person who runs the tests reach them, nor a clock; keep the one that names a MinIO."""
    hypothesis.settings.register_profile("untimed", deadline=None)  # by default, no example may take 200 ms
    hypothesis.settings.load_profile("untimed")
    for name in [name for name in os.environ if name.startswith(("FIELDLOOP_", "PREFECT_", "MLFLOW_"))]:
        if name not in ("FIELDLOOP_MINIO", "FIELDLOOP_NO_SKIP"):
            del os.environ[name]
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.hookimpl(tryfirst=True)  # pytest-xdist's own hook reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the demonstration meet the platform as it starts; keep a file's tests, and the platform's, in one process."""
    items.sort(key=lambda item: "looped" not in getattr(item, "fixturenames", ()))
    for item in items:
        group = "platform" if "platform" in getattr(item, "fixturenames", ()) else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where no skip is allowed (`FIELDLOOP_NO_SKIP=1`), let a skipped test fail the session."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if reporter and skipped and os.environ.get("FIELDLOOP_NO_SKIP") == "1" and session.exitstatus == 0:
        reporter.write_line(f"FIELDLOOP_NO_SKIP=1, and {len(skipped)} test(s) were skipped")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def free_settings(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Settings]:
    """Return a maker of settings with a fresh data folder and free ports."""

    def make(**fields: object) -> Settings:
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        folders = {"data_dir": tmp_path_factory.mktemp("fieldloop"), "keys_dir": tmp_path_factory.mktemp("keys")}
        values: dict[str, object] = {**folders, **ports, **fields}
        return Settings.model_validate(values)

    return make


@pytest.fixture(scope="session")
def platform(free_settings: Callable[..., Settings]) -> Iterator[Settings]:
    """Start the whole platform, once a session; on MinIO where there is one, else on SeaweedFS."""
    settings = free_settings()
    platform_services.up(settings, lambda _: None, lambda _names, _seconds: None)
    yield settings
    platform_services.down(settings)


@pytest.fixture
def platform_environment(platform: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The platform, and this process's environment pointing to it, as a flow run has it."""
    for name, value in platform.environment().items():
        monkeypatch.setenv(name, value)
    return platform


@dataclass(frozen=True)
class Looped:
    """The platform once the demonstration has run on it, on two months."""

    settings: Settings
    demo: Demo


@pytest.fixture(scope="session")
def looped(platform: Settings) -> Looped:
    """Take two months of four turbines once round the whole loop, agents and all."""
    return Looped(platform, run_demo(platform, Console(stderr=True), HISTORY, LIVE))


@pytest.fixture(scope="session")
def store(free_settings: Callable[..., Settings]) -> Iterator[Settings]:
    """Start an object store alone: MinIO where there is one, else SeaweedFS."""
    yield from _store(free_settings(store="auto"))


@pytest.fixture(scope="session", params=["minio", "seaweedfs"])
def each_store(request: pytest.FixtureRequest, free_settings: Callable[..., Settings]) -> Iterator[Settings]:
    """Start each kind of object store in turn."""
    settings = free_settings(store=request.param)
    if request.param == "minio" and store_service.minio_binary(settings) is None:
        pytest.skip("no MinIO here: `make minio` builds one")
    yield from _store(settings)


@pytest.fixture(scope="session")
def nats(free_settings: Callable[..., Settings]) -> Iterator[Settings]:
    """Start a broker and its signer alone, with the platform's streams."""
    settings = free_settings()
    _run(settings, broker_service.spec, signer.spec)
    platform_services.prepare_broker(settings)
    yield settings
    stop_stack(settings, platform_services.PLATFORM)


def _store(settings: Settings) -> Iterator[Settings]:
    _run(settings, store_service.spec)
    store_service.prepare(settings)
    yield settings
    stop_stack(settings, platform_services.PLATFORM)
    shutil.rmtree(settings.data_dir, ignore_errors=True)


def _run(settings: Settings, *specs: Callable[[Settings], Spec]) -> None:
    make_secrets(settings)
    make_authority(settings)
    start_stack(settings, platform_services.PLATFORM, [spec(settings) for spec in specs])


@pytest.fixture
def output() -> Path:
    """A folder for what a test leaves to be looked at, such as screenshots."""
    folder = Path(__file__).parent / "output"
    folder.mkdir(exist_ok=True)
    return folder
