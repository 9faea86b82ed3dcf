"""Servers that sources read from, private ones on free ports: PostgreSQL, Mosquitto, and a small HTTP service."""

import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qsl, urlsplit

from fieldloop.stores.settings import Certificate
from infra.local.ports import free_ports

DEADLINE_S = 60
Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def postgres() -> Iterator[str]:
    """Run a PostgreSQL of Debian's; yields the SQLAlchemy URL of its superuser. It refuses to run as root."""
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    folder, (port,) = Path(tempfile.mkdtemp(prefix="fieldloop-postgres-")), free_ports(1)
    if os.getuid() == 0:
        shutil.chown(folder, user)
    who = {"user": user, "cwd": folder} if os.getuid() == 0 else {"cwd": folder}
    password = folder / "password"
    password.write_text("secret")
    if os.getuid() == 0:
        shutil.chown(password, user)
    init = ["initdb", "-D", "data", "-U", "plant", "-A", "scram-sha-256", f"--pwfile={password}", "--no-sync"]
    subprocess.run([binaries / init[0], *init[1:]], check=True, stdout=subprocess.DEVNULL, **who)
    options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": str(folder), "fsync": "off"}
    server = subprocess.Popen(
        [binaries / "postgres", "-D", "data", "-p", str(port), *(f"--{key}={value}" for key, value in options.items())],
        stderr=subprocess.DEVNULL,
        **who,
    )
    try:
        ready = [binaries / "pg_isready", "-q", "-p", str(port), "-h", "127.0.0.1"]
        wait_until(lambda: subprocess.run(ready).returncode == 0)
        yield f"postgresql+psycopg://plant:secret@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder)


@dataclass(frozen=True)
class Mosquitto:
    """A private Mosquitto: where it listens, and how to stop and start it."""

    port: int
    folder: Path
    processes: list[subprocess.Popen[bytes]]

    def start(self) -> None:
        """Start it; what it had kept is there again."""
        server = subprocess.Popen(
            [which_mosquitto(), "-c", str(self.folder / "mosquitto.conf")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.processes.append(server)
        wait_until(lambda: answers(self.port))

    def stop(self) -> None:
        """Stop it."""
        self.processes[-1].terminate()
        self.processes[-1].wait()


@contextmanager
def mosquitto(folder: Path, certificate: Certificate | None = None) -> Iterator[Mosquitto]:
    """Run a Mosquitto of Debian's; its user is `plant`, its password `secret`; with TLS where it gets a certificate."""
    (port,) = free_ports(1)
    subprocess.run(["mosquitto_passwd", "-b", "-c", folder / "users", "plant", "secret"], check=True)
    tls = f"certfile {certificate.cert}\nkeyfile {certificate.key}\n" if certificate else ""
    (folder / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {folder / 'users'}\n{tls}"
        f"persistence true\npersistence_location {folder}/\nmax_queued_messages 0\nuser root\n"
    )
    running = Mosquitto(port, folder, [])
    running.start()
    try:
        yield running
    finally:
        running.stop()


def which_mosquitto() -> str:
    """Return the path of Debian's Mosquitto, which is not on every PATH."""
    return shutil.which("mosquitto") or "/usr/sbin/mosquitto"


def answers(port: int) -> bool:
    """Say whether something listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Service:
    """An HTTP service that answers as a function says, and remembers what it was asked."""

    answer: Callable[[dict[str, str], dict[str, str]], Answer]
    url: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def service(answer: Callable[[dict[str, str], dict[str, str]], Answer]) -> Iterator[Service]:
    """Run an HTTP service; `answer` takes query and headers."""
    running = Service(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = dict(parse_qsl(urlsplit(self.path).query))
            running.asked.append(query)
            status, headers, body = running.answer(query, dict(self.headers))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.url = f"http://127.0.0.1:{server.server_port}/readings"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()


def page(records: object, **headers: str) -> Answer:
    """Return an answer of JSON."""
    return 200, headers, json.dumps(records).encode()


def wait_until(true: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
