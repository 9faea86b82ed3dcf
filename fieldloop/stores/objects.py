"""Object storage: S3 through the `minio` client, one identity a bucket."""

import io
from collections.abc import Mapping
from html import escape
from typing import Final
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.credentials.providers import StaticProvider
from minio.error import MinioException, S3Error

from fieldloop.domain.errors import StoreError
from fieldloop.stores.settings import REPORTS_FRONT, Bucket, Settings, StoreIdentity

REGION: Final = "us-east-1"  # given to every client: an identity with narrow rights may not ask for a bucket's region
CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 60.0
RETRIES: Final = 3


def client(settings: Settings, identity: StoreIdentity) -> Minio:
    """Return a client of the object store that acts as `identity`.

    Raises:
        ServiceError: the installation has no credentials of that identity.
    """
    credentials = settings.store_credentials(identity)
    url = urlsplit(settings.store_endpoint)
    return Minio(
        endpoint=url.netloc,
        credentials=StaticProvider(credentials.access_key, credentials.secret_key),
        secure=url.scheme == "https",
        region=REGION,
        http_client=pool(),
    )


def delta_options(settings: Settings) -> dict[str, str]:
    """Return deltalake's storage options for bucket `lake`, with commits that exactly one writer wins."""
    credentials = settings.store_credentials("lake")
    return {
        "aws_endpoint": settings.store_endpoint,
        "aws_region": REGION,
        "aws_access_key_id": credentials.access_key,
        "aws_secret_access_key": credentials.secret_key,
        "aws_allow_http": str(settings.store_endpoint.startswith("http://")).lower(),
        "aws_conditional_put": "etag",
        "aws_virtual_hosted_style_request": "false",
    }


def put(store: Minio, bucket: Bucket, key: str, data: bytes, content_type: str = "application/octet-stream") -> None:
    """Write one object whole.

    Raises:
        StoreError: the store refuses or does not answer.
    """
    try:
        store.put_object(
            bucket_name=bucket, object_name=key, data=io.BytesIO(data), length=len(data), content_type=content_type
        )
    except (MinioException, urllib3.exceptions.HTTPError) as exc:
        raise StoreError(f"object {bucket}/{key} ({len(data)} bytes) was not written: {_reason(exc)}") from exc


def put_front(store: Minio, heading: str, links: Mapping[str, str]) -> None:
    """Write bucket `reports`' front page, which reads without the internet: a heading, and links as addresses by text.

    Raises:
        StoreError: the store refuses or does not answer.
    """
    items = "".join(f'<li><a href="{escape(address)}">{escape(text)}</a>' for text, address in links.items())
    style = "<style>body{font:1.1em sans-serif;margin:3em}li{margin:.6em 0}</style>"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Reports</title>{style}'
    page = f"{head}<h1>{escape(heading)}</h1><ul>{items}</ul>\n"
    put(store, "reports", REPORTS_FRONT, page.encode(), "text/html; charset=utf-8")


def get(store: Minio, bucket: Bucket, key: str) -> bytes:
    """Read one object whole.

    Raises:
        StoreError: the object is missing, or the store refuses or does not answer.
    """
    try:
        response = store.get_object(bucket_name=bucket, object_name=key)
        try:
            return response.data
        finally:
            response.close()
            response.release_conn()
    except (MinioException, urllib3.exceptions.HTTPError) as exc:
        raise StoreError(f"object {bucket}/{key} cannot be read: {_reason(exc)}") from exc


def find(store: Minio, bucket: Bucket, key: str) -> bytes | None:
    """Read one object whole; None where there is no such object.

    Raises:
        StoreError: the store refuses or does not answer.
    """
    try:
        return get(store, bucket, key)
    except StoreError as exc:
        if isinstance(exc.__cause__, S3Error) and exc.__cause__.code == "NoSuchKey":
            return None
        raise


def names(store: Minio, bucket: Bucket, prefix: str) -> set[str]:
    """Return the names of all objects that begin with a prefix.

    Raises:
        StoreError: the store refuses or does not answer.
    """
    try:
        found = store.list_objects(bucket_name=bucket, prefix=prefix, recursive=True)
        return {str(each.object_name) for each in found}
    except (MinioException, urllib3.exceptions.HTTPError) as exc:
        raise StoreError(f"objects {bucket}/{prefix}* cannot be listed: {_reason(exc)}") from exc


def pool(*, posts: bool = False) -> urllib3.PoolManager:
    """Return a connection pool with bounded waits, in place of the client's five minutes.

    Args:
        posts: also POST again where a connection broke: what is posted is idempotent.
    """
    methods = None if posts else urllib3.Retry.DEFAULT_ALLOWED_METHODS
    return urllib3.PoolManager(
        maxsize=10,
        timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
        retries=urllib3.Retry(
            RETRIES, allowed_methods=methods, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]
        ),
    )


def _reason(exc: Exception) -> str:
    """Say what the store answered, without the request's headers."""
    return f"{exc.code} ({exc.message})" if isinstance(exc, S3Error) else str(exc)
