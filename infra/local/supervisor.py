"""The supervisor of a stack: starts its services in order, probes them, watches them, stops them.

It reads its plan from standard input, then waits there for the word `keep`: end of file before that means that whoever
started the stack is gone, and everything is stopped. One thread; the loop runs a few times a second.
"""

import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from infra.local import guardian
from infra.local.stack import Plan, ServiceState, Spec, StackState, base_environment

TICK_S: Final = 0.1
PROBE_TIMEOUT_S: Final = 1.0
FIRST_PAUSE_S: Final = 0.5  # before the first restart of a service; doubled each time
LONGEST_PAUSE_S: Final = 30.0
SETTLED_S: Final = 60.0  # a service that ran this long starts over with the first pause
LOG_LIMIT_BYTES: Final = 32 * 2**20  # a log that grows past this is moved aside; one earlier file is kept
PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


@dataclass
class Service:
    """One service while it is supervised; times are of the monotonic clock, seconds."""

    spec: Spec
    state: ServiceState
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    wall_started_at: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    due_at: float = 0.0


@dataclass
class Supervisor:
    """The services of one stack, and what is known about them."""

    plan: Plan
    services: list[Service]
    state: StackState
    began: float = field(default_factory=time.monotonic)
    guard: subprocess.Popen[bytes] | None = None
    written: bytes = b""

    def run(self) -> None:
        """Start, watch and in the end stop all services."""
        stop = _StopSignal()
        kept = False
        try:
            while not stop.asked and not self.state.reason:
                self._guard()
                self._start_due()
                self._probe()
                self._reap()
                self._bound_logs()
                if not kept:
                    kept = self._kept()
                self.state.phase = "running" if kept else "starting"
                self._write()
                if not self.state.reason:
                    stop.wait(TICK_S)
        finally:
            self._stop()

    def _kept(self) -> bool:
        """Read standard input: has the caller said `keep`, or is it gone?"""
        if not select.select([0], [], [], 0)[0]:
            return False
        if os.read(0, 16).startswith(b"keep"):
            return True
        self.state.reason = "whoever started it went away before it was ready"
        return False

    def _guard(self) -> None:
        """Have a guardian: start one where there is none, or where it was killed."""
        if self.guard is None or self.guard.poll() is not None:
            self.guard = subprocess.Popen(
                [sys.executable, "-I", "-S", guardian.__file__, self.plan.stack_id],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )

    def _start_due(self) -> None:
        for service in self.services:
            waiting = service.state.phase == "waiting" and self._ready(service.spec.after)
            due = service.state.phase == "restarting" and time.monotonic() >= service.due_at
            if waiting or due:
                self._start(service)

    def _ready(self, names: tuple[str, ...]) -> bool:
        return all(self.state.service(name).phase == "ready" for name in names)

    def _start(self, service: Service) -> None:
        log = Path(service.state.log)
        _rotate(log)
        service.started_at, service.wall_started_at = time.monotonic(), time.time()
        with log.open("ab") as output:
            try:
                service.process = subprocess.Popen(
                    service.spec.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=service.spec.cwd,
                    env={**base_environment(), **service.spec.env, guardian.MARK: self.plan.stack_id},
                    start_new_session=True,
                    preexec_fn=_die_with_parent,
                )
            except OSError as exc:
                self._fail(service, f"could not be started ({exc})")
                return
        service.state.pid, service.state.phase = service.process.pid, "starting"

    def _probe(self) -> None:
        for service in self.services:
            if service.state.phase != "starting":
                continue
            if answers(service.spec.ready, service.wall_started_at):
                service.state.phase = "ready"
                service.state.seconds = time.monotonic() - self.began
            elif time.monotonic() - service.started_at > service.spec.ready_timeout_s:
                self._fail(service, f"was not ready after {service.spec.ready_timeout_s:.0f} s")

    def _reap(self) -> None:
        for service in self.services:
            if service.process is None or service.process.poll() is None:
                continue
            code, lived = service.process.returncode, time.monotonic() - service.started_at
            service.process = None
            service.state.pid = None
            if service.spec.restart:
                self._restart_later(service, lived)
            else:
                self._fail(service, f"ended {_ending(code)} after {lived:.1f} s")

    def _restart_later(self, service: Service, lived_s: float) -> None:
        service.pause_s = FIRST_PAUSE_S if lived_s > SETTLED_S else min(service.pause_s * 2, LONGEST_PAUSE_S)
        service.due_at = time.monotonic() + service.pause_s
        service.state.phase = "restarting"
        service.state.restarts += 1

    def _fail(self, service: Service, what: str) -> None:
        """Record the first failure: it is the reason why the stack stops."""
        service.state.phase = "failed"
        if not self.state.reason:
            last = _last_line(Path(service.state.log))
            self.state.reason = f"{service.spec.title} {what}; its log: {service.state.log}{last}"

    def _bound_logs(self) -> None:
        """Keep a log that a service holds open within bounds: copy it aside, then cut it."""
        for service in self.services:
            log = Path(service.state.log)
            if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
                shutil.copyfile(log, log.with_suffix(".log.1"))
                os.truncate(log, 0)

    def _stop(self) -> None:
        """Stop the services, the last first; then whatever they left, then the guardian."""
        failed = bool(self.state.reason)
        self.state.phase = "stopping"
        self._write()
        for wave in self._waves():
            _end(wave)
        guardian.sweep(self.plan.stack_id)
        for service in self.services:
            service.state.pid = None
            if service.state.phase != "failed":
                service.state.phase = "stopped"
        self.state.phase = "failed" if failed else "stopped"
        self._write()
        if self.guard is not None:
            self.guard.communicate()

    def _waves(self) -> list[list[Service]]:
        """Group the running services so that each stops before those it came after."""
        waves: list[list[Service]] = []
        left = [service for service in self.services if service.process is not None]
        while left:
            needed = {name for service in left for name in service.spec.after}
            wave = [service for service in left if service.spec.name not in needed] or left
            waves.append(wave)
            left = [service for service in left if service not in wave]
        return waves

    def _write(self) -> None:
        """Write the state down, to a temporary name first, where it has changed."""
        data = msgspec.json.encode(self.state)
        if data != self.written:
            path = Path(self.plan.state)
            temporary = path.with_suffix(".json.new")
            temporary.write_bytes(data)
            temporary.replace(path)
            self.written = data


class _StopSignal:
    """SIGTERM and SIGINT as a flag that can be waited for."""

    def __init__(self) -> None:
        self.asked = False
        self._reader, self._writer = os.pipe()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._take)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def wait(self, seconds: float) -> None:
        select.select([self._reader], [], [], seconds)

    def _take(self, _number: int, _frame: object) -> None:
        self.asked = True
        os.write(self._writer, b".")


def answers(url: str, since: float = 0.0) -> bool:
    """Probe a service once.

    Args:
        url: see `Spec.ready`.
        since: a file counts only if written after this time, seconds of the epoch.
    """
    parts = urlsplit(url)
    if not url:
        return True
    if parts.scheme == "file":
        path = Path(parts.path)
        return path.exists() and path.stat().st_mtime >= since
    try:
        if parts.scheme == "tcp":
            return _greets(parts.hostname or "", parts.port or 0)
        with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_S) as response:  # noqa: S310 - addresses are settings
            return bool(200 <= response.status < 300)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def _greets(host: str, port: int) -> bool:
    with socket.create_connection((host, port), timeout=PROBE_TIMEOUT_S):
        return True


def _die_with_parent() -> None:
    """Have the kernel send SIGTERM to this (new) child when the supervisor dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(services: list[Service]) -> None:
    """Send SIGTERM to the services' process groups, wait for each within its time, then SIGKILL."""
    for service in services:
        _signal(service, signal.SIGTERM)
    for service in services:
        assert service.process is not None  # noqa: S101 - only running services are in a wave
        try:
            service.process.wait(timeout=service.spec.stop_timeout_s)
        except subprocess.TimeoutExpired:
            _signal(service, signal.SIGKILL)
            service.process.wait()


def _signal(service: Service, number: signal.Signals) -> None:
    assert service.process is not None  # noqa: S101 - only running services are in a wave
    try:
        os.killpg(service.process.pid, number)
    except ProcessLookupError:
        return


def _rotate(log: Path) -> None:
    """Move the log of an earlier run aside; one is kept."""
    if log.exists():
        log.replace(log.with_suffix(".log.1"))


def _ending(code: int) -> str:
    return f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"


def _last_line(log: Path) -> str:
    """Return the log's last line with something in it, shortened, ready to be appended to a message."""
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return f" ({lines[-1][:200]})" if lines else ""


def main() -> None:
    """Run the stack whose plan comes in on standard input; what its services write is their owner's alone."""
    os.umask(0o077)
    line = bytearray()
    while not line.endswith(b"\n"):
        chunk = os.read(0, 1)
        if not chunk:
            return
        line += chunk
    plan = msgspec.json.decode(bytes(line), type=Plan)
    services = [Service(spec, _initial(plan, spec)) for spec in plan.specs]
    states = [service.state for service in services]
    state = StackState(plan.name, plan.stack_id, plan.fingerprint, os.getpid(), "starting", "", states)
    Supervisor(plan, services, state).run()


def _initial(plan: Plan, spec: Spec) -> ServiceState:
    return ServiceState(spec.name, spec.title, spec.url, str(Path(plan.logs) / f"{spec.name}.log"))


if __name__ == "__main__":
    main()
