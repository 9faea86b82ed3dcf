"""Fetching a release over TUF: root, timestamp, snapshot, targets, then the release's files, all verified.

All input comes through one function, `read(key) -> bytes | None`, over which `Mirror` is a TUF transport. The agent
runs this as a process of its own (`python -m fieldloop.edge.updater`, see `download`): what it takes in libraries is
given back when it ends, and a graph that brings its runtime down brings down nothing else.
"""

import hashlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
from tuf.api import exceptions
from tuf.api.metadata import TargetFile
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from fieldloop.domain.errors import ReleaseError, ServiceError
from fieldloop.domain.patch import NOTHING, apply_patch, patch_name
from fieldloop.domain.release import (
    CANARY,
    CHUNK_BYTES,
    GRAPH,
    MANIFEST,
    MANIFEST_BYTES,
    File,
    Release,
    chunk_key,
    decode_canary,
    decode_manifest,
)
from fieldloop.domain.revocation import REVOKED, decode_revoked
from fieldloop.domain.rollout import Desired
from fieldloop.edge import files, model
from fieldloop.edge.download import NICENESS, Job, Outcome, Question, read_answer
from fieldloop.edge.memory import resident_bytes
from fieldloop.edge.slots import read_release

METADATA: Final = "metadata/"
TARGETS: Final = "targets/"
NOT_FOUND: Final = 404
PATCH: Final = "patch.zst"
CHUNKS: Final = "chunks"  # folder of what has come of files that are not whole yet
TIMED_RUNS: Final = 100  # of one window, for the budget's latency

Read = Callable[[str], bytes | None]

logger = logging.getLogger(__name__)


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


def fetch(
    read: Read, trusted_root: bytes, metadata: Path, staging: Path, desired: Desired, graphs: Sequence[bytes] = ()
) -> Release:
    """Download the desired release into `staging` and return it, verified by signed metadata and by its digest.

    A download that was cut off goes on with the chunk that it was at; those of a file that turns out wrong are dropped.

    Args:
        read: returns the bytes under a key of the mirror, None where there are none; raises ServiceError.
        trusted_root: the root metadata that came with enrolment.
        metadata: folder of the metadata seen so far, against rollback.
        staging: folder for the release's files; those that are there and right are not fetched again.
        desired: what to fetch.
        graphs: those that are here, from which a patch may lead to the desired one.

    Raises:
        ReleaseError: the release or the metadata is refused; it will not do to try again with the same bytes.
        ServiceError: something could not be reached or is not there yet.
    """
    chunks = staging / CHUNKS
    with _client(lambda key: _resumed(read, key, chunks), trusted_root, metadata, desired.manifest, chunks) as client:
        folder = desired.manifest.removesuffix(MANIFEST)
        _download(client, folder + MANIFEST, staging / MANIFEST, MANIFEST_BYTES)
        manifest = decode_manifest((staging / MANIFEST).read_bytes()).suited(desired.labels)
        graph, canary = manifest.names
        _download_graph(client, folder + graph, manifest.graph, staging, graphs)
        _download(client, folder + canary, staging / CANARY)
    release = read_release(staging)
    release.open(desired.release)
    return release


def revoked(read: Read, trusted_root: bytes, metadata: Path, held: Mapping[str, str]) -> dict[str, str]:
    """Return which releases are signed no longer, by digest, and why.

    Args:
        read: see `fetch`.
        trusted_root: see `fetch`.
        metadata: see `fetch`; the reasons are kept beside it.
        held: manifest path by digest of the releases to ask after.

    Raises:
        ReleaseError: the metadata is refused; nothing is known then.
        ServiceError: something could not be reached or is not there yet.
    """
    reasons = metadata.with_name("revoked.json")
    with _client(read, trusted_root, metadata, REVOKED, reasons) as client:
        gone = [digest for digest, path in held.items() if not _signed(client.get_targetinfo(path), digest)]
        if gone and client.get_targetinfo(REVOKED) is not None:
            _download(client, REVOKED, reasons)
    known = {entry.digest: entry.reason for entry in decode_revoked(files.read_or_none(reasons) or b"[]")}
    return {digest: known.get(digest, "it is no longer among the signed releases") for digest in gone}


@contextmanager
def _client(read: Read, trusted_root: bytes, metadata: Path, what: str, doubtful: Path) -> Iterator[Updater]:
    """Open the repository at its newest, and tell refusals from what may be tried again.

    Args:
        read: returns the bytes under a key of the mirror.
        trusted_root: the root metadata that came with enrolment.
        metadata: folder of the metadata seen so far.
        what: is looked for; named in errors.
        doubtful: removed where something is refused, since it may be the cause.
    """
    metadata.mkdir(parents=True, exist_ok=True)
    for leftover in metadata.glob("tmp*"):  # the updater's own, after a kill
        leftover.unlink(missing_ok=True)
    try:
        client = Updater(str(metadata), METADATA, str(metadata), TARGETS, Mirror(read), bootstrap=trusted_root)
        client.refresh()
        yield client
    except exceptions.DownloadLengthMismatchError as exc:
        files.remove(doubtful)
        raise ReleaseError(f"{what}: longer than its signed length: {exc}") from exc
    except exceptions.DownloadError as exc:
        raise ServiceError(f"{what}: not reachable now: {_chain(exc)}") from exc
    except exceptions.RepositoryError as exc:
        files.remove(doubtful)
        raise ReleaseError(f"{what}: not trusted: {type(exc).__name__}: {exc}") from exc


def _signed(info: TargetFile | None, digest: str) -> bool:
    """Say whether a manifest is signed, as this very release's."""
    return info is not None and info.hashes.get("sha256") == digest


def _download_graph(client: Updater, path: str, wanted: File, staging: Path, graphs: Sequence[bytes]) -> None:
    """Make the graph from what is here and the smallest patch; fetch it whole where that does not work out."""
    if File.of(files.read_or_none(staging / GRAPH) or b"") == wanted:
        return
    offers = {old: client.get_targetinfo(patch_name(path, old)) for old in (NOTHING, *graphs)}
    patches = [(info.length, info, old) for old, info in offers.items() if info and info.length < wanted.length]
    if patches:
        _, info, old = min(patches, key=lambda patch: patch[0])
        try:
            client.download_target(info, str(staging / PATCH))
            files.write_atomic(staging / GRAPH, apply_patch(old, (staging / PATCH).read_bytes(), wanted))
        except (ReleaseError, exceptions.RepositoryError, exceptions.DownloadError) as exc:
            logger.warning("the graph is fetched whole: %s", exc)
        else:
            return
    _download(client, path, staging / GRAPH)


def _download(client: Updater, path: str, file: Path, longest: int | None = None) -> None:
    info = client.get_targetinfo(path)
    if info is None:
        raise ReleaseError(f"{path}: not among the signed targets: publish the release, then ask for it")
    if longest is not None and info.length > longest:
        raise ReleaseError(f"{path}: expected at most {longest:,} bytes, got {info.length:,}: deploy another release")
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
    root, metadata, staging = Path(job.trusted_root).read_bytes(), Path(job.metadata), Path(job.staging)
    gone = revoked(read, root, metadata, job.held)
    if job.desired is None:
        return Outcome(revoked=gone)
    graphs = [path.read_bytes() for path in Path(job.installed).glob(f"*/{GRAPH}")]
    release = fetch(read, root, metadata, staging, job.desired, graphs)
    files.remove(staging / CHUNKS)
    return msgspec.structs.replace(measure(release), revoked=gone)


def _chain(exc: BaseException) -> str:
    """Return an error with its cause, which the transport hides one level down."""
    return f"{exc}: {exc.__cause__}" if exc.__cause__ else str(exc)


if __name__ == "__main__":
    main()
