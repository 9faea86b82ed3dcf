"""A stack: a set of services that start, run and stop together under one detached supervisor.

`start_stack` takes the stack's lock, checks the ports, starts the supervisor, hands it the specs over a pipe (so that
secrets touch neither arguments nor disk), follows its state file until every service is ready and prepared, and only
then says "keep": a caller that dies before leaves nothing behind. State lies in `<data_dir>/run/<stack>.json`.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import IO, Final, Literal

import msgspec

from fieldloop.domain.errors import FieldloopError, ServiceError
from fieldloop.stores.settings import Settings
from infra.local.guardian import marked, sweep

SUPERVISOR_MARK: Final = "FIELDLOOP_SUPERVISOR"  # in the environment of supervisor and guardian: the stack's id
POLL_S: Final = 0.1
STOP_MARGIN_S: Final = 15.0  # what `stop_stack` grants beyond the services' own stop timeouts
PASSED_ON: Final = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")

ServicePhase = Literal["waiting", "starting", "ready", "restarting", "stopped", "failed"]
StackPhase = Literal["starting", "running", "stopping", "stopped", "failed"]


class Port(msgspec.Struct, frozen=True):
    """A port that a service needs, and the setting that changes it."""

    host: str
    number: int
    setting: str


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """One service of a stack.

    Attributes:
        name: short name, also of its log file.
        title: what it is, for people.
        argv: the program and its arguments; never a secret.
        env: its own environment, secrets included, on top of the few variables in `PASSED_ON`.
        cwd: working folder.
        ready: URL that answers once the service is ready: `tcp://host:port`, `http://…` (any 2xx) or `file:///path`
            (exists, written since the start); empty: ready as soon as it runs.
        after: services that must be ready first.
        ports: ports that must be free before the start.
        url: address for people, shown by `status`.
        ready_timeout_s: seconds until a start counts as failed.
        stop_timeout_s: seconds between SIGTERM and SIGKILL.
        restart: start it again (with growing pauses) when it ends, in place of stopping the stack.
    """

    name: str
    title: str
    argv: tuple[str, ...]
    env: dict[str, str] = {}
    cwd: str = "/"
    ready: str = ""
    after: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()
    url: str = ""
    ready_timeout_s: float = 120.0
    stop_timeout_s: float = 10.0
    restart: bool = False


class Plan(msgspec.Struct, frozen=True):
    """What the supervisor is told over its standard input."""

    name: str
    stack_id: str
    fingerprint: str
    state: str
    logs: str
    specs: tuple[Spec, ...]


class ServiceState(msgspec.Struct):
    """One service as its supervisor sees it; `seconds` is from the stack's start until ready."""

    name: str
    title: str
    url: str
    log: str
    phase: ServicePhase = "waiting"
    pid: int | None = None
    seconds: float | None = None
    restarts: int = 0


class StackState(msgspec.Struct):
    """A stack as its supervisor last wrote it down; no secrets."""

    name: str
    stack_id: str
    fingerprint: str
    supervisor: int
    phase: StackPhase
    reason: str
    services: list[ServiceState]

    def service(self, name: str) -> ServiceState:
        """Return one service's state."""
        return next(service for service in self.services if service.name == name)


Report = Callable[[ServiceState], None]


def start_stack(
    settings: Settings,
    name: str,
    specs: Sequence[Spec],
    *,
    prepare: Mapping[str, Callable[[], None]] | None = None,
    report: Report = lambda _: None,
    waiting: Callable[[Sequence[str], float], None] = lambda _names, _seconds: None,
) -> bool:
    """Start a stack and wait until all of it is ready; a stack that runs already is left as it is.

    Args:
        settings: the installation.
        name: the stack's name.
        specs: its services.
        prepare: by service, what is done once it is ready; the services that come after it do not wait for that.
        report: called for each service once it is ready and prepared.
        waiting: called every second with the names of the services that are not, and the seconds so far.

    Returns:
        True if this call started it, False if it ran already.

    Raises:
        ServiceError: a port is taken, a program is missing, a service ended or did not get ready, or the stack runs
            already with other settings. Nothing of the stack is left running then.
    """
    run = _folder(settings.data_dir / "run")
    fingerprint = _fingerprint(specs)
    with _lock(run / f"{name}.lock", name):
        state = stack_status(settings, name)
        if state is not None and state.phase == "running":
            if state.fingerprint != fingerprint:
                raise ServiceError(f"stack {name!r} runs with other settings: `fieldloop down`, then start it again")
            return False
        if state is not None:
            stop_stack(settings, name)
        _check(specs)
        plan = Plan(
            name=name,
            stack_id=secrets.token_hex(8),
            fingerprint=fingerprint,
            state=str(run / f"{name}.json"),
            logs=str(_folder(settings.data_dir / "logs")),
            specs=tuple(specs),
        )
        _launch(settings, plan, prepare or {}, report, waiting)
    return True


def stop_stack(settings: Settings, name: str) -> bool:
    """Stop a stack and whatever is left of it; return whether there was anything to stop.

    Raises:
        ServiceError: its supervisor could not be ended.
    """
    state = _read(settings.data_dir / "run" / f"{name}.json")
    if state is None:
        return False
    supervised = state.supervisor in marked(SUPERVISOR_MARK, state.stack_id)
    if supervised:
        os.kill(state.supervisor, signal.SIGTERM)
        _await_end(state)
    left = sweep(state.stack_id)
    return supervised or left > 0


def stack_status(settings: Settings, name: str) -> StackState | None:
    """Return a stack's state, mended where its supervisor was killed; None if it was never started."""
    state = _read(settings.data_dir / "run" / f"{name}.json")
    if state is None or state.phase in ("stopped", "failed"):
        return state
    if state.supervisor in marked(SUPERVISOR_MARK, state.stack_id):
        return state
    state.phase = "failed"
    state.reason = "its supervisor was killed, and the services were ended with it"
    for service in state.services:
        service.phase, service.pid = "stopped", None
    return state


def base_environment() -> dict[str, str]:
    """Return the few variables of this process's environment that every service gets."""
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ}


def _launch(
    settings: Settings,
    plan: Plan,
    prepare: Mapping[str, Callable[[], None]],
    report: Report,
    waiting: Callable[[Sequence[str], float], None],
) -> None:
    """Start the supervisor, follow it until all is ready, and tell it to stay."""
    supervisor = _spawn(settings, plan)
    assert supervisor.stdin is not None  # noqa: S101 - a pipe was asked for
    try:
        supervisor.stdin.write(msgspec.json.encode(plan) + b"\n")
        supervisor.stdin.flush()
        _follow(settings, plan, supervisor, prepare, report, waiting)
        supervisor.stdin.write(b"keep\n")
        supervisor.stdin.close()
        _await_phase(settings, plan, supervisor)
    except BrokenPipeError as exc:
        raise ServiceError(f"the supervisor of stack {plan.name!r} ended; see {_supervisor_log(plan)}") from exc
    except BaseException:  # Ctrl-C included: closing the pipe makes the supervisor stop everything
        with contextlib.suppress(OSError):
            supervisor.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            supervisor.wait(timeout=max(spec.stop_timeout_s for spec in plan.specs) + STOP_MARGIN_S)
        sweep(plan.stack_id)
        raise
    _forget(supervisor)


def _spawn(settings: Settings, plan: Plan) -> subprocess.Popen[bytes]:
    with Path(_supervisor_log(plan)).open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "infra.local.supervisor", plan.name],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            cwd=settings.root,
            env={**base_environment(), SUPERVISOR_MARK: plan.stack_id},
            start_new_session=True,
        )


def _follow(
    settings: Settings,
    plan: Plan,
    supervisor: subprocess.Popen[bytes],
    prepare: Mapping[str, Callable[[], None]],
    report: Report,
    waiting: Callable[[Sequence[str], float], None],
) -> None:
    """Report each service once it is ready and prepared, until all are."""
    began = time.monotonic()
    open_names = [spec.name for spec in plan.specs]
    preparing: dict[str, Future[None]] = {}
    told = 0
    while open_names:
        state = _state_of(settings, plan, supervisor)
        for service in [s for s in state.services if s.name in open_names and s.phase == "ready"]:
            if service.name in prepare and service.name not in preparing:
                preparing[service.name] = _begin(prepare[service.name])
            if _prepared(service.name, preparing):
                open_names.remove(service.name)
                service.seconds = time.monotonic() - began if service.name in preparing else service.seconds
                report(service)
        elapsed = time.monotonic() - began
        if open_names and int(elapsed) > told:
            told = int(elapsed)
            waiting(tuple(open_names), elapsed)
        time.sleep(POLL_S)


def _begin(preparation: Callable[[], None]) -> Future[None]:
    """Prepare a service in a thread that ends with this process: where the start fails, nobody waits for it."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            preparation()
            future.set_result(None)
        except BaseException as exc:  # whoever asks for the result gets it
            future.set_exception(exc)

    Thread(target=run, daemon=True).start()
    return future


def _state_of(settings: Settings, plan: Plan, supervisor: subprocess.Popen[bytes]) -> StackState:
    """Read the state of this very start.

    Raises:
        ServiceError: it failed, or the supervisor is gone.
    """
    ended = supervisor.poll() is not None  # asked before the file is read, so that its last words count
    state = _read(Path(plan.state))
    if state is not None and state.stack_id == plan.stack_id:
        if state.phase == "failed":
            raise ServiceError(state.reason)
        if not ended:
            return state
    if ended:
        raise ServiceError(f"the supervisor of stack {plan.name!r} ended; see {_supervisor_log(plan)}")
    return StackState(plan.name, plan.stack_id, plan.fingerprint, supervisor.pid, "starting", "", [])


def _prepared(name: str, preparing: Mapping[str, Future[None]]) -> bool:
    """Say whether a service's preparation is over.

    Raises:
        ServiceError: it went wrong.
    """
    future = preparing.get(name)
    if future is None:
        return True
    if not future.done():
        return False
    try:
        future.result()
    except FieldloopError:
        raise
    except Exception as exc:
        raise ServiceError(f"{name} runs but could not be prepared: {type(exc).__name__}: {exc}") from exc
    return True


def _await_phase(settings: Settings, plan: Plan, supervisor: subprocess.Popen[bytes]) -> None:
    """Wait until the supervisor has written down that the stack runs."""
    while _state_of(settings, plan, supervisor).phase != "running":
        time.sleep(POLL_S / 5)


def _await_end(state: StackState) -> None:
    """Wait for a supervisor that was told to stop; it bounds its own waits, so a long silence means that it hangs."""
    deadline = time.monotonic() + 120.0
    while marked(SUPERVISOR_MARK, state.stack_id):
        if time.monotonic() > deadline:
            for pid in marked(SUPERVISOR_MARK, state.stack_id):
                os.kill(pid, signal.SIGKILL)
            deadline += STOP_MARGIN_S
        time.sleep(POLL_S)


def _check(specs: Sequence[Spec]) -> None:
    """Refuse to start where a program is missing or a port is taken."""
    for spec in specs:
        if not os.access(spec.argv[0], os.X_OK):
            raise ServiceError(f"{spec.title}: its program {spec.argv[0]} is missing or cannot be run")
    for spec in specs:
        for port in spec.ports:
            _check_port(spec, port)


def _check_port(spec: Spec, port: Port) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((port.host, port.number))
        except OSError as exc:
            raise ServiceError(
                f"{spec.title}: port {port.number} on {port.host} is taken{_holder(port)}; "
                f"free it, or set {port.setting} to another port"
            ) from exc


def _holder(port: Port) -> str:
    """Name the process that holds a port, where it may be known."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr
            if listens and listens.port == port.number and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        return ""
    return ""


def _fingerprint(specs: Sequence[Spec]) -> str:
    """Return a digest of what runs and where; environments, which hold secrets, are left out."""
    shape = [(spec.name, spec.argv, spec.cwd, spec.ready) for spec in specs]
    return hashlib.sha256(msgspec.json.encode(shape)).hexdigest()


def _read(path: Path) -> StackState | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=StackState)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as exc:
        raise ServiceError(f"{path} is not a stack's state ({exc}): delete it, after ending its processes") from exc


@contextlib.contextmanager
def _lock(path: Path, name: str) -> Iterator[IO[bytes]]:
    """Hold the stack's lock: one start at a time; it falls with the process."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise ServiceError(f"stack {name!r} is being started by another process: wait for it") from exc
        yield file


def _supervisor_log(plan: Plan) -> str:
    return str(Path(plan.logs) / f"{plan.name}-supervisor.log")


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def _forget(supervisor: subprocess.Popen[bytes]) -> None:
    """Let go of a child that is meant to outlive us, without Popen's warning about it."""
    supervisor.returncode = 0
