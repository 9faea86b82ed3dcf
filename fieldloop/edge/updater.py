"""Fetching a release over TUF: root, timestamp, snapshot, targets, then the release's files, all verified.

All input comes through one function, `read(key) -> bytes | None`, over which `Mirror` is a TUF transport. The agent
runs this as a process of its own (`python -m fieldloop.edge.updater`, see `download`): what it takes in libraries is
given back when it ends, and a graph that brings its runtime down brings down nothing else.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from tuf.api import exceptions
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from fieldloop.domain.errors import ReleaseError, ServiceError
from fieldloop.domain.release import CANARY, CHUNK_BYTES, GRAPH, MANIFEST, Release, chunk_key, decode_canary
from fieldloop.domain.rollout import Desired
from fieldloop.edge import files, model
from fieldloop.edge.download import NICENESS, Job, Outcome, Question, read_answer
from fieldloop.edge.memory import resident_bytes
from fieldloop.edge.slots import read_release

METADATA: Final = "metadata/"
TARGETS: Final = "targets/"
NOT_FOUND: Final = 404
CHUNKS: Final = "chunks"  # folder of what has come of files that are not whole yet
TIMED_RUNS: Final = 100  # of one window, for the budget's latency

Read = Callable[[str], bytes | None]


class Mirror(FetcherInterface):
    """Reads the files of the repository from their chunks in the broker."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def _fetch(self, url: str) -> Iterator[bytes]:
        first = self._read(chunk_key(url, 0))
        if first is None:
            raise exceptions.DownloadHTTPError(f"{url} is not in the release mirror", NOT_FOUND)
        return self._chunks(url, first)

    def _chunks(self, url: str, chunk: bytes) -> Iterator[bytes]:
        index = 0
        yield chunk
        while len(chunk) >= CHUNK_BYTES:
            index += 1
            following = self._read(chunk_key(url, index))
            if following is None:
                raise exceptions.DownloadError(f"{url}: chunk {index} is not in the release mirror")
            chunk = following
            yield chunk


def fetch(read: Read, trusted_root: bytes, metadata: Path, staging: Path, desired: Desired) -> Release:
    """Download the desired release into `staging` and return it, verified by signed metadata and by its digest.

    A download that was cut off goes on with the chunk that it was at; those of a file that turns out wrong are dropped.

    Args:
        read: returns the bytes under a key of the mirror, None where there are none; raises ServiceError.
        trusted_root: the root metadata that came with enrolment.
        metadata: folder of the metadata seen so far, against rollback.
        staging: folder for the release's files; those that are there and right are not fetched again.
        desired: what to fetch.

    Raises:
        ReleaseError: the release or the metadata is refused; it will not do to try again with the same bytes.
        ServiceError: something could not be reached or is not there yet.
    """
    metadata.mkdir(parents=True, exist_ok=True)
    for leftover in metadata.glob("tmp*"):  # the updater's own, after a kill
        leftover.unlink(missing_ok=True)
    chunks = staging / CHUNKS
    mirror = Mirror(lambda key: _resumed(read, key, chunks))
    try:
        client = Updater(str(metadata), METADATA, str(staging), TARGETS, mirror, bootstrap=trusted_root)
        client.refresh()
        folder = desired.manifest.removesuffix(MANIFEST)
        for name in (MANIFEST, GRAPH, CANARY):
            _download(client, folder + name, staging / name)
    except exceptions.DownloadLengthMismatchError as exc:
        files.remove(chunks)
        raise ReleaseError(f"{desired.manifest}: longer than its signed length: {exc}") from exc
    except exceptions.DownloadError as exc:
        raise ServiceError(f"{desired.manifest}: not reachable now: {_chain(exc)}") from exc
    except exceptions.RepositoryError as exc:
        files.remove(chunks)
        raise ReleaseError(f"{desired.manifest}: not trusted: {type(exc).__name__}: {exc}") from exc
    release = read_release(staging)
    release.open(desired.release)
    return release


def _download(client: Updater, path: str, file: Path) -> None:
    info = client.get_targetinfo(path)
    if info is None:
        raise ReleaseError(f"{path}: not among the signed targets: publish the release, then ask for it")
    if client.find_cached_target(info, str(file)) is None:
        client.download_target(info, str(file))


def _resumed(read: Read, key: str, chunks: Path) -> bytes | None:
    """Return a chunk from the disk where it has come before; it is checked with its whole file."""
    if not key.startswith(TARGETS):
        return read(key)
    kept = chunks / hashlib.sha256(key.encode()).hexdigest()
    data = files.read_or_none(kept)
    if data is None and (data := read(key)) is not None:
        files.write_atomic(kept, data)
    return data


def measure(release: Release) -> Outcome:
    """Load a release as the agent would, run its canary, and say what it takes.

    Raises:
        ReleaseError: it does not load or run, gives other outputs, or is slower than its budget.
    """
    before = resident_bytes()
    loaded = model.load(release)
    window = decode_canary(release.canary).inputs[:1]
    seconds = []
    for _ in range(TIMED_RUNS):
        began = time.perf_counter()
        loaded.model.run(window)
        seconds.append(time.perf_counter() - began)
    typical = sorted(seconds)[TIMED_RUNS // 2]
    budget = loaded.manifest.budget
    if budget.latency_s is not None and typical > budget.latency_s:
        raise ReleaseError(
            f"latency over budget: expected at most {budget.latency_s * 1e3:g} ms a window, got {typical * 1e3:.3g} ms"
        )
    return Outcome(memory_bytes=max(resident_bytes() - before, 0), latency_s=typical)


def main() -> None:
    """Do the job that comes in on standard input, and ask there for what is to be read."""
    os.nice(NICENESS)
    requests, answers = os.fdopen(os.dup(1), "wb", buffering=0), sys.stdin.buffer
    os.dup2(2, 1)  # what a library prints is no answer

    def read(key: str) -> bytes | None:
        requests.write(msgspec.json.encode(Question(read=key)) + b"\n")
        return read_answer(answers)

    try:
        job = msgspec.json.decode(answers.readline(), type=Job)
        outcome = _do(job, read)
    except ReleaseError as exc:
        outcome = Outcome(refused=str(exc))
    except (ServiceError, OSError) as exc:
        outcome = Outcome(failed=str(exc))
    with suppress(BrokenPipeError):  # the agent was killed meanwhile
        requests.write(msgspec.json.encode(Question(done=outcome)) + b"\n")


def _do(job: Job, read: Read) -> Outcome:
    staging = Path(job.staging)
    release = fetch(read, Path(job.trusted_root).read_bytes(), Path(job.metadata), staging, job.desired)
    files.remove(staging / CHUNKS)
    return measure(release)


def _chain(exc: BaseException) -> str:
    """Return an error with its cause, which the transport hides one level down."""
    return f"{exc}: {exc.__cause__}" if exc.__cause__ else str(exc)


if __name__ == "__main__":
    main()
