"""Fetching a release over TUF: root, timestamp, snapshot, targets, then the release's files, all verified.

All input comes through one function, `read(key) -> bytes | None`, over which `Mirror` is a TUF transport.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tuf.api import exceptions
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from fieldloop.domain.errors import ReleaseError, ServiceError
from fieldloop.domain.release import CANARY, CHUNK_BYTES, GRAPH, MANIFEST, Release, chunk_key
from fieldloop.domain.rollout import Desired
from fieldloop.edge.slots import read_release

METADATA: Final = "metadata/"
TARGETS: Final = "targets/"
NOT_FOUND: Final = 404

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
    try:
        client = Updater(str(metadata), METADATA, str(staging), TARGETS, Mirror(read), bootstrap=trusted_root)
        client.refresh()
        folder = desired.manifest.removesuffix(MANIFEST)
        for name in (MANIFEST, GRAPH, CANARY):
            _download(client, folder + name, staging / name)
    except exceptions.DownloadLengthMismatchError as exc:
        raise ReleaseError(f"{desired.manifest}: longer than its signed length: {exc}") from exc
    except exceptions.DownloadError as exc:
        raise ServiceError(f"{desired.manifest}: not reachable now: {_chain(exc)}") from exc
    except exceptions.RepositoryError as exc:
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


def _chain(exc: BaseException) -> str:
    """Return an error with its cause, which the transport hides one level down."""
    return f"{exc}: {exc.__cause__}" if exc.__cause__ else str(exc)
