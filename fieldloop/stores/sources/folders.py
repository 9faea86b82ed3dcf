"""Where files lie: folders of this machine, and prefixes of the object store's bucket `inbox`."""

import fnmatch
import glob
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import urllib3
from minio.error import MinioException

from fieldloop.domain.errors import SourceError, StoreError
from fieldloop.stores import objects
from fieldloop.stores.settings import Settings

BUCKET: Final = "inbox"
SCHEME: Final = "s3://"


@dataclass(frozen=True)
class Found:
    """A file that fits a pattern.

    Attributes:
        name: its path, or its address in the object store.
        version: what changes when its content does; cheap to ask for, unlike a digest.
        size: bytes.
        changed_s: when it was last changed, seconds since 1970.
    """

    name: str
    version: str
    size: int
    changed_s: float

    @property
    def in_store(self) -> bool:
        """Whether it is an object."""
        return self.name.startswith(SCHEME)


def listed(settings: Settings, pattern: str) -> list[Found]:
    """Return the files that fit a pattern, by name; relative patterns begin at the repository.

    Raises:
        SourceError: the pattern names another bucket than `inbox`.
        StoreError: the object store does not answer.
    """
    return _objects(settings, pattern) if pattern.startswith(SCHEME) else _files(settings.root, pattern)


@contextmanager
def at_hand(settings: Settings, file: Found) -> Iterator[Path]:
    """Give a file's path for the length of a `with` block; an object is fetched to a temporary one.

    Raises:
        SourceError: it is gone or may not be read.
        StoreError: the object store does not answer.
    """
    if not file.in_store:
        yield Path(file.name)
        return
    key = file.name.removeprefix(f"{SCHEME}{BUCKET}/")
    with tempfile.NamedTemporaryFile(prefix="fieldloop-inbox-") as copy:
        try:
            objects.client(settings, BUCKET).fget_object(bucket_name=BUCKET, object_name=key, file_path=copy.name)
        except (MinioException, urllib3.exceptions.HTTPError) as exc:
            raise StoreError(f"{file.name} cannot be fetched: {exc}") from exc
        yield Path(copy.name)


def _files(root: Path, pattern: str) -> list[Found]:
    whole = str(Path(pattern).expanduser() if pattern.startswith("~") else root / pattern)
    found = []
    for name in sorted(glob.glob(whole, recursive=True)):
        path = Path(name)
        if path.is_file():
            state = path.stat()
            found.append(Found(name, f"{state.st_size}:{state.st_mtime_ns}", state.st_size, state.st_mtime))
    return found


def _objects(settings: Settings, pattern: str) -> list[Found]:
    bucket, _, keys = pattern.removeprefix(SCHEME).partition("/")
    if bucket != BUCKET:
        raise SourceError(f"`{pattern}`: sources read bucket `{BUCKET}` alone: {SCHEME}{BUCKET}/…")
    prefix = keys[: min((keys.find(sign) for sign in "*?[" if sign in keys), default=len(keys))]
    try:
        entries = objects.client(settings, BUCKET).list_objects(bucket_name=BUCKET, prefix=prefix, recursive=True)
        return sorted(
            (
                Found(
                    f"{SCHEME}{BUCKET}/{entry.object_name}",
                    f"{entry.size}:{entry.etag}",
                    entry.size or 0,
                    entry.last_modified.timestamp() if entry.last_modified else 0.0,
                )
                for entry in entries
                if fnmatch.fnmatchcase(entry.object_name or "", keys) and not entry.is_dir
            ),
            key=lambda found: found.name,
        )
    except (MinioException, urllib3.exceptions.HTTPError) as exc:
        raise StoreError(f"`{pattern}` cannot be listed: {exc}") from exc
