"""Files that survive kill -9 and power loss: written beside, flushed, then renamed."""

import os
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file by new bytes, so that a reader finds either the old or the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Make the renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_or_none(path: Path) -> bytes | None:
    """Return a file's bytes, None where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
