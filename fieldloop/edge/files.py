"""Files that survive kill -9 and power loss. All that an agent must find again goes through these few operations.

What is written is durable only after `sync`, and a new name only after `sync_folder`: the order in which these come is
what tests replay with the unsynced part lost.
"""

import contextlib
import os
import shutil
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """Make a file or replace its content in place; not durable."""
    with path.open("wb") as file:
        file.write(data)


def open_append(path: Path) -> int:
    """Make a new file whose name is durable at once, and return a handle that appends to it."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    sync_folder(path.parent)
    return handle


def append(handle: int, data: bytes) -> None:
    """Add to the end of a file, all or nothing; durable after `sync_handle`.

    Raises:
        OSError: the disk is full or broken.
    """
    before = os.fstat(handle).st_size
    try:
        if os.write(handle, data) != len(data):
            raise OSError("the disk is full")
    except OSError:
        os.ftruncate(handle, before)
        raise


def sync_handle(handle: int) -> None:
    """Make what was appended durable."""
    os.fsync(handle)


def sync(path: Path) -> None:
    """Make a file's content durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rename(path: Path, to: Path) -> None:
    """Give a file or folder another name, at once; durable after `sync_folder` of the parent."""
    path.replace(to)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    sync(folder)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it."""
    folder.mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """Remove a file or a whole folder, where it is."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file by new bytes, so that a reader finds either the old or the new ones, whatever happens."""
    make_folder(path.parent)
    beside = path.with_name(f".{path.name}.new")
    try:
        write(beside, data)
        sync(beside)
        rename(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            remove(beside)  # a full disk wants its blocks back
        raise
    sync_folder(path.parent)


def write_private(path: Path, data: bytes) -> None:
    """Replace a file as `write_atomic` does, by one that its owner alone may read."""
    beside = path.with_name(f".{path.name}.new")
    remove(beside)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    sync(beside)
    rename(beside, path)
    sync_folder(path.parent)


def read_or_none(path: Path) -> bytes | None:
    """Return a file's bytes, None where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
