"""The embedded servers: Prefect's server and process worker, and MLflow's server."""

import datetime
import hashlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fieldloop.domain.errors import ServiceError
from fieldloop.stores.objects import REGION
from fieldloop.stores.settings import LEAN, Settings
from infra.local.keys import private_folder
from infra.local.stack import Port, Spec, base_environment

POOL: Final = "fieldloop"
WORKER: Final = "embedded"
WORKER_TIMEOUT_S: Final = 60.0
POLL_S: Final = 0.2
KEEP_RUNS_S: Final = 30 * 86400  # Prefect's own default is 90 days
HEARTBEAT_S: Final = 30  # Prefect accepts no less
MISSED_AFTER_S: Final = 90.0  # a run that was silent this long has crashed
DEPLOY_TIMEOUT_S: Final = 120.0
REQUEST_TIMEOUT_S: Final = 10.0
NO_TELEMETRY: Final = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
}


def prefect_spec(settings: Settings) -> Spec:
    """Return how Prefect's server is run: SQLite under the data folder, old runs and dead leases cleared away."""
    return Spec(
        name="prefect",
        title="Prefect server",
        argv=(
            *(sys.executable, "-m", "infra.local.prefect_server", "server", "start"),
            *("--host", settings.host, "--port", str(settings.prefect_port)),
        ),
        env={
            **_prefect_environment(settings),
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
            "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(KEEP_RUNS_S),
            "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": "P30D",
        },
        cwd=str(settings.data_dir),
        ready=f"{settings.prefect_api}/health",
        ports=(Port(settings.host, settings.prefect_port, "FIELDLOOP_PREFECT_PORT"),),
        url=settings.prefect_ui,
    )


def worker_spec(settings: Settings) -> Spec:
    """Return how the worker is run: flow runs are its child processes, in the repository, with these same settings."""
    local = () if settings.prefect_url else ("prefect",)
    return Spec(
        name="worker",
        title="Prefect worker",
        argv=(
            *(_program("prefect"), "worker", "start", "--pool", POOL, "--type", "process"),
            *("--name", WORKER, "--install-policy", "never"),
        ),
        env=flow_environment(settings),
        cwd=str(settings.root),
        after=local,
        url="",
        stop_timeout_s=15.0,
    )


def mlflow_spec(settings: Settings) -> Spec:
    """Return how MLflow's server is run: it alone reaches the artifacts' bucket, clients go through it."""
    folder = private_folder(settings.data_dir / "mlflow")
    credentials = settings.store_credentials("mlflow")
    hosts = [f"{host}:{settings.mlflow_port}" for host in dict.fromkeys((settings.host, "127.0.0.1", "localhost"))]
    return Spec(
        name="mlflow",
        title="MLflow server",
        argv=(
            *(_program("mlflow"), "server", "--workers", "1"),
            *("--host", settings.host, "--port", str(settings.mlflow_port)),
            *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
            *("--artifacts-destination", "s3://mlflow/artifacts"),
            *("--allowed-hosts", ",".join(hosts)),
            *("--cors-allowed-origins", ",".join(f"http://{host}" for host in hosts)),
        ),
        env={
            **NO_TELEMETRY,
            "PYTHONUNBUFFERED": "1",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # about eight helper processes, for what nobody here uses
            "MLFLOW_S3_ENDPOINT_URL": settings.store_endpoint,
            "AWS_ACCESS_KEY_ID": credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        },
        cwd=str(folder),
        ready=f"{settings.mlflow_endpoint}/health",
        ports=(Port(settings.host, settings.mlflow_port, "FIELDLOOP_MLFLOW_PORT"),),
        url=settings.mlflow_endpoint,
    )


def flow_environment(settings: Settings) -> dict[str, str]:
    """Return the environment of the worker and, through it, of every flow run; no secrets."""
    return {
        **LEAN,
        **_prefect_environment(settings),
        **settings.environment(),
        "PREFECT_LOGGING_EXTRA_LOGGERS": "fieldloop,tasks",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
    }


def prepare_prefect(settings: Settings, since: datetime.datetime) -> None:
    """Make the work pool, the automation that marks dead runs as crashed, and the deployments of `prefect.yaml`.

    Args:
        settings: where Prefect is.
        since: when the server was started; what ran before has ended with its worker.

    Raises:
        ServiceError: Prefect refuses.
    """
    _request(settings, "POST", "/work_pools/", {"name": POOL, "type": "process"}, fine=(409,))
    _end_former_runs(settings, since)
    _watch_for_dead_runs(settings)
    _deploy(settings)


def await_worker(settings: Settings, since: datetime.datetime) -> None:
    """Wait until the worker has spoken to the server since a moment (an earlier one may still count as online).

    Raises:
        ServiceError: it has not in time.
    """
    deadline = time.monotonic() + WORKER_TIMEOUT_S
    while time.monotonic() < deadline:
        workers = _request(settings, "POST", f"/work_pools/{POOL}/workers/filter", {}, fine=(404,))
        for worker in workers if isinstance(workers, list) else []:
            if worker["name"] == WORKER and datetime.datetime.fromisoformat(worker["last_heartbeat_time"]) > since:
                return
        time.sleep(POLL_S)
    raise ServiceError(
        f"the worker did not reach Prefect in {WORKER_TIMEOUT_S:.0f} s; see its log, `fieldloop logs worker`"
    )


def _end_former_runs(settings: Settings, since: datetime.datetime) -> None:
    """Mark runs as crashed that went on when the platform was stopped: they would hold their concurrency slots."""
    unfinished = {"flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}}
    runs = _request(settings, "POST", "/flow_runs/filter", unfinished)
    for run in runs if isinstance(runs, list) else []:
        if datetime.datetime.fromisoformat(run["state"]["timestamp"]) < since:
            crashed = {"state": {"type": "CRASHED", "message": "The platform was stopped while it ran."}}
            _request(settings, "POST", f"/flow_runs/{run['id']}/set_state", crashed)


def _watch_for_dead_runs(settings: Settings) -> None:
    """Have a run that stopped sending heartbeats marked as crashed: it would hold its concurrency slots for ever.

    See https://docs.prefect.io/v3/advanced/detect-zombie-flows.
    """
    automation = json.loads((Path(__file__).with_name("dead-runs.json")).read_text())
    automation["trigger"]["within"] = MISSED_AFTER_S
    named = {"automations": {"name": {"any_": [automation["name"]]}}}
    if not _request(settings, "POST", "/automations/filter", named):
        _request(settings, "POST", "/automations/", automation)


def _deploy(settings: Settings) -> None:
    """Apply `prefect.yaml` where it or a flow has changed since the last time."""
    source = settings.root / "prefect.yaml"
    if not source.exists():
        return
    mark = settings.data_dir / "prefect" / "deployed"
    digest = _deployed_content(settings, source)
    if mark.exists() and mark.read_text() == digest and _request(settings, "POST", "/deployments/count", {}):
        return
    done = subprocess.run(
        [_program("prefect"), "--no-prompt", "deploy", "--all", "--prefect-file", str(source)],
        env={**base_environment(), **flow_environment(settings)},
        cwd=settings.root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEPLOY_TIMEOUT_S,
        check=False,
    )
    log = settings.data_dir / "logs" / "deploy.log"
    log.write_text(done.stdout + done.stderr)
    if done.returncode:
        raise ServiceError(f"the deployments of {source} were refused (status {done.returncode}); see {log}")
    mark.write_text(digest)


def _deployed_content(settings: Settings, source: Path) -> str:
    """Return a digest of what a deployment records: the file, the flows' parameters, the folder and the server."""
    digest = hashlib.sha256(f"{settings.root}\n{settings.prefect_api}\n".encode())
    for path in (source, *sorted((settings.root / "flows").glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _request(
    settings: Settings, method: str, path: str, body: Mapping[str, object], fine: tuple[int, ...] = ()
) -> object:
    """Call Prefect's REST API; answers with a status in `fine` count as None."""
    url = f"{settings.prefect_api}{path}"
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method=method)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as response:  # noqa: S310
            return json.loads(response.read() or b"null")
    except urllib.error.HTTPError as exc:
        if exc.code in fine:
            return None
        raise ServiceError(f"Prefect refused {method} {url}: {exc.code} {exc.read()[:300].decode()}") from exc
    except OSError as exc:
        raise ServiceError(f"Prefect does not answer {method} {url}: {exc}") from exc


def _prefect_environment(settings: Settings) -> dict[str, str]:
    return {
        **NO_TELEMETRY,
        "PREFECT_HOME": str(private_folder(settings.data_dir / "prefect")),
        "PREFECT_API_URL": settings.prefect_api,
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_LOGGING_COLORS": "false",
        "PREFECT_CLI_COLORS": "false",
        "PYTHONUNBUFFERED": "1",
    }


def _program(name: str) -> str:
    """Return a program of this Python environment, activated or not."""
    return str(Path(sys.executable).with_name(name))
