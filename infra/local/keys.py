"""Secrets of an installation: made once, on the first `up`, in a folder of mode 0700 and files of mode 0600."""

import base64
import json
import secrets
from typing import Final

from fieldloop.stores.private import private_folder as private_folder  # for all of infra
from fieldloop.stores.private import write_private as write_private
from fieldloop.stores.settings import STORE_IDENTITIES, Settings

SECRET_BYTES: Final = 20  # S3 secret keys are at most 40 characters, which is what 20 bytes make in hexadecimal
KMS_BYTES: Final = 32  # AES-256


def make_secrets(settings: Settings) -> None:
    """Make what is missing of the object store's keys: one pair an identity, and the master key of encryption."""
    private_folder(settings.data_dir)
    private_folder(settings.secrets)
    pairs = settings.secrets / "store.json"
    made = json.loads(pairs.read_bytes()) if pairs.exists() else {}
    if missing := [name for name in STORE_IDENTITIES if name not in made]:
        made |= {name: {"access_key": f"fieldloop-{name}", "secret_key": _secret()} for name in missing}
        write_private(pairs, json.dumps(made, indent=2).encode())
    master = settings.secrets / "store-kms"
    if not master.exists():
        write_private(master, b"fieldloop:" + base64.b64encode(secrets.token_bytes(KMS_BYTES)))


def kms_key(settings: Settings) -> str:
    """Return the master key of encryption at rest, as MinIO wants it: `name:base64`."""
    return (settings.secrets / "store-kms").read_text()


def _secret() -> str:
    return secrets.token_hex(SECRET_BYTES)
