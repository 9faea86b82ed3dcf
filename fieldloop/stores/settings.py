"""Where the services are and which identity speaks to them: one frozen object, read from `FIELDLOOP_*`.

Every address follows from a host and a port, or is given whole where the service is an outside one. Secrets are read
from files when asked for and are never part of the settings themselves.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from fieldloop.domain.errors import ServiceError

Bucket = Literal["inbox", "lake", "mlflow", "releases", "reports"]
StoreIdentity = Literal["admin", "inbox", "lake", "mlflow", "releases", "reports"]
CertificateKind = Literal["platform", "authority", "device", "target"]
StoreKind = Literal["auto", "minio", "seaweedfs"]

REPORTS_FRONT = "index.html"  # of bucket `reports`
SLOTS = 16  # into which the devices' messages are hashed, for ever; so many partitions are possible

# What the allocators of Python, Polars and Arrow read as a process starts: else each keeps what it was given back, and
# a drain's processes hold a third more. It costs no time that could be measured.
LEAN: Mapping[str, str] = MappingProxyType(
    {
        "MALLOC_ARENA_MAX": "2",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "_RJEM_MALLOC_CONF": "dirty_decay_ms:100,muzzy_decay_ms:0",
    }
)

BUCKETS: tuple[Bucket, ...] = get_args(Bucket)
STORE_IDENTITIES: tuple[StoreIdentity, ...] = get_args(StoreIdentity)


@dataclass(frozen=True)
class Credentials:
    """The key pair of one object-store identity; the secret stays out of `repr`."""

    access_key: str
    secret_key: str = field(repr=False)


@dataclass(frozen=True)
class Certificate:
    """The PEM files with which one identity speaks to the broker, and the authority that it trusts."""

    cert: Path
    key: Path
    ca: Path


class Settings(BaseSettings):
    """Addresses and folders of one installation; each field is the environment variable `FIELDLOOP_<FIELD>`.

    Attributes:
        data_dir: folder of all data, secrets, logs and state; made absolute.
        secrets_dir: folder of secrets where it is not `<data_dir>/secrets`.
        keys_dir: folder of the offline keys that sign releases, outside the data folder; where left out, one of this
            installation's own in the user's configuration folder.
        keys_passphrase_file: file that holds the passphrase of those keys, and nothing else.
        host: address that the embedded services bind to.
        store: which object store `up` starts; `auto` takes MinIO where its binary is found, else SeaweedFS.
        minio: the MinIO binary, where it is neither on `PATH` nor in the user's cache folder.
        certificate_days: how long an edge target's certificate is good; it is renewed at two thirds.
        partitions: parts of the devices' stream that one acquisition drains at a time, each in a process of its own; a
            single one is drained in the run's process. Each reads, decodes and commits at the same time, on two cores.
        store_port: S3 port.
        nats_port: NATS port.
        mqtt_port: MQTT port of the broker.
        prefect_port: Prefect server's port.
        mlflow_port: MLflow server's port.
        store_url: an outside object store, for instance `https://s3.example.org`; `up` then starts none.
        nats_url: an outside broker, for instance `tls://broker.example.org:4222`.
        mqtt_url: its MQTT listener, for instance `mqtts://broker.example.org:8883`.
        prefect_url: an outside Prefect server, without `/api`.
        mlflow_url: an outside MLflow server.
        dask_url: scheduler of an outside Dask cluster, for recipes with `engine: dask`; certificates for `tls://` come
            from Dask's own settings.
    """

    model_config = SettingsConfigDict(env_prefix="FIELDLOOP_", frozen=True, extra="ignore")

    data_dir: Path = Path(".fieldloop")
    secrets_dir: Path | None = None
    keys_dir: Path | None = None
    keys_passphrase_file: Path | None = None
    host: str = "127.0.0.1"
    store: StoreKind = "auto"
    minio: Path | None = None
    certificate_days: float = Field(default=90.0, gt=0, le=825)
    partitions: int = Field(default_factory=lambda: min(SLOTS, max(1, (os.cpu_count() or 1) // 2)), ge=1, le=SLOTS)
    store_port: int = Field(default=9000, ge=1, le=65535)
    nats_port: int = Field(default=4222, ge=1, le=65535)
    mqtt_port: int = Field(default=8883, ge=1, le=65535)
    prefect_port: int = Field(default=4200, ge=1, le=65535)
    mlflow_port: int = Field(default=5000, ge=1, le=65535)
    store_url: str | None = None
    nats_url: str | None = None
    mqtt_url: str | None = None
    prefect_url: str | None = None
    mlflow_url: str | None = None
    dask_url: str | None = None

    @field_validator("data_dir", "secrets_dir", "keys_dir", "keys_passphrase_file", "minio")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser().resolve()

    @field_validator("keys_dir")
    @classmethod
    def _apart(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        if path is not None and "data_dir" in info.data and path.is_relative_to(info.data["data_dir"]):
            raise ValueError(f"expected a folder outside the data folder {info.data['data_dir']}, got {path}")
        return path

    @property
    def root(self) -> Path:
        """The repository: where recipes, profiles, data and flows lie."""
        return Path(__file__).resolve().parents[2]

    @property
    def store_endpoint(self) -> str:
        """URL of the object store."""
        return (self.store_url or f"http://{self.host}:{self.store_port}").rstrip("/")

    @property
    def reports_endpoint(self) -> str:
        """URL under which the objects of bucket `reports` open in a browser."""
        return f"{self.store_endpoint}/reports"

    @property
    def reports_front(self) -> str:
        """URL of the page from which the newest report opens."""
        return f"{self.reports_endpoint}/{REPORTS_FRONT}"

    @property
    def nats_endpoint(self) -> str:
        """URL of the broker's NATS listener."""
        return self.nats_url or f"tls://{self.host}:{self.nats_port}"

    @property
    def mqtt_endpoint(self) -> str:
        """URL of the broker's MQTT listener."""
        return self.mqtt_url or f"mqtts://{self.host}:{self.mqtt_port}"

    @property
    def prefect_ui(self) -> str:
        """URL of the Prefect UI."""
        return (self.prefect_url or f"http://{self.host}:{self.prefect_port}").rstrip("/")

    @property
    def prefect_api(self) -> str:
        """URL of the Prefect API."""
        return f"{self.prefect_ui}/api"

    @property
    def mlflow_endpoint(self) -> str:
        """URL of MLflow, for clients and browsers."""
        return (self.mlflow_url or f"http://{self.host}:{self.mlflow_port}").rstrip("/")

    @property
    def secrets(self) -> Path:
        """Folder of the secrets (0700)."""
        return self.secrets_dir or self.data_dir / "secrets"

    @property
    def offline_keys(self) -> Path:
        """Folder of the offline keys (0700); by default it follows from where the data folder is."""
        configuration = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        own = hashlib.sha256(bytes(self.data_dir)).hexdigest()[:12]
        return self.keys_dir or configuration / "fieldloop" / f"keys-{own}"

    def store_credentials(self, identity: StoreIdentity) -> Credentials:
        """Return the key pair of an object-store identity.

        Raises:
            ServiceError: there is no secrets file, or it does not know the identity.
        """
        path = self.secrets / "store.json"
        try:
            entry = json.loads(path.read_text())[identity]
            return Credentials(entry["access_key"], entry["secret_key"])
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise ServiceError(
                f"no credentials of object-store identity {identity!r} in {path}: run `fieldloop up` once, "
                "or set FIELDLOOP_DATA_DIR or FIELDLOOP_SECRETS_DIR to the folder that has them"
            ) from exc

    def certificate(self, kind: CertificateKind, name: str) -> Certificate:
        """Return the paths of a broker identity's certificate on this machine; they need not exist.

        Key and certificate of those who enrol, devices and targets, are one file.
        """
        folder, ca = self.identity_folder(kind, name), self.data_dir / "pki" / "ca.pem"
        if kind in ("device", "target"):
            return Certificate(folder / "identity.pem", folder / "identity.pem", ca)
        return Certificate(folder / "cert.pem", folder / "key.pem", ca)

    def identity_folder(self, kind: CertificateKind, name: str) -> Path:
        """Return the folder of a broker identity on this machine; a target's is its agent's."""
        return self.data_dir / ("agents" if kind == "target" else f"pki/{kind}") / name

    def environment(self) -> dict[str, str]:
        """Return the `FIELDLOOP_*` variables with which a child process reads these same settings."""
        values = self.model_dump(mode="json", exclude_none=True)
        return {f"FIELDLOOP_{name.upper()}": str(value) for name, value in values.items()}
