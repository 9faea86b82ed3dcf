"""What sources need to be let in: files of `<secrets>/sources/`, read when needed, never part of a declaration."""

import stat
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fieldloop.domain.errors import SourceError
from fieldloop.stores.settings import Settings

SecretName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]


def secret_file(settings: Settings, name: str) -> Path:
    """Return the path of a secret that its owner alone can read.

    Raises:
        SourceError: there is none, or others can read it.
    """
    path = settings.secrets / "sources" / name
    try:
        mode = path.stat().st_mode
    except OSError as exc:
        raise SourceError(f"no secret `{name}`: expected the file {path}, mode 0600") from exc
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SourceError(f"secret {path} can be read by others: chmod 600 it")
    return path


def secret(settings: Settings, name: str) -> str:
    """Return a secret's text without the blank space around it.

    Raises:
        SourceError: there is none, or others can read it.
    """
    return secret_file(settings, name).read_text().strip()
