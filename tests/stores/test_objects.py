"""The object store, on both kinds: who may do what, what lies on the disk, what an error says."""

import secrets
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

import polars as pl
import pytest
import urllib3
from deltalake import DeltaTable, write_deltalake
from minio.error import S3Error

from fieldloop.domain.errors import ServiceError, StoreError
from fieldloop.stores import objects
from fieldloop.stores.settings import BUCKETS, Bucket, Settings
from infra.local.store import kind, prepare

BODY = b"policy"
OTHERS = [(own, other) for own in BUCKETS for other in BUCKETS if own != other]


@pytest.mark.parametrize("bucket", BUCKETS)
def test_an_identity_writes_and_reads_its_own_bucket(each_store: Settings, bucket: Bucket) -> None:
    """What is put is what is got, and it is listed."""
    client = objects.client(each_store, bucket)
    objects.put(client, bucket, "a/b.bin", b"\x00payload", "application/octet-stream")
    assert objects.get(client, bucket, "a/b.bin") == b"\x00payload"
    assert [found.object_name for found in client.list_objects(bucket_name=bucket, prefix="a/")] == ["a/b.bin"]


@pytest.mark.parametrize(("own", "other"), OTHERS)
def test_an_identity_is_refused_at_every_other_bucket(each_store: Settings, own: Bucket, other: Bucket) -> None:
    """It may neither write, list nor (the public reports apart) read what belongs to another."""
    objects.put(objects.client(each_store, other), other, "theirs", b"x")
    client = objects.client(each_store, own)
    with pytest.raises(StoreError, match="AccessDenied"):
        objects.put(client, other, "mine", b"y")
    with pytest.raises(S3Error, match="AccessDenied"):
        list(client.list_objects(bucket_name=other))
    if other != "reports":
        with pytest.raises(StoreError, match="AccessDenied"):
            objects.get(client, other, "theirs")


@pytest.mark.parametrize("bucket", BUCKETS)
def test_an_identity_cannot_change_its_buckets_encryption(each_store: Settings, bucket: Bucket) -> None:
    """Only the installation's root may turn encryption off."""
    with pytest.raises(S3Error, match="AccessDenied"):
        objects.client(each_store, bucket).delete_bucket_encryption(bucket_name=bucket)


@pytest.mark.parametrize("bucket", BUCKETS)
def test_what_is_stored_is_found_on_no_disk_file(each_store: Settings, bucket: Bucket) -> None:
    """Encryption is the buckets' default: a marker that a client put in the clear lies nowhere in the clear."""
    marker = secrets.token_hex(24).encode()
    objects.put(objects.client(each_store, bucket), bucket, "marked", marker * 200)
    assert objects.get(objects.client(each_store, bucket), bucket, "marked") == marker * 200
    assert not _files_with(each_store, marker)


def test_a_delta_table_is_found_on_no_disk_file(each_store: Settings) -> None:
    """The lake's own writer is encrypted as well, and its options work."""
    marker = secrets.token_hex(24)
    options = objects.delta_options(each_store)
    for _ in range(2):
        write_deltalake("s3://lake/probe", pl.DataFrame({"text": [marker]}), mode="append", storage_options=options)
    table = DeltaTable("s3://lake/probe", storage_options=options)
    assert table.version() >= 1
    assert not _files_with(each_store, marker.encode())


def test_reports_open_without_credentials(each_store: Settings) -> None:
    """A browser that reaches the store's address can open a report."""
    objects.put(objects.client(each_store, "reports"), "reports", "docs/index.html", b"<h1>fine</h1>", "text/html")
    with urllib.request.urlopen(f"{each_store.reports_endpoint}/docs/index.html", timeout=10) as answer:
        assert answer.read() == b"<h1>fine</h1>"
        assert answer.headers["content-type"] == "text/html"


def test_the_reports_front_page_is_there_before_any_report(each_store: Settings) -> None:
    """The address that `fieldloop up` prints opens; `up` again leaves what is there."""
    with urllib.request.urlopen(each_store.reports_front, timeout=10) as answer:
        assert b"No validation has run yet" in answer.read()
    objects.put_front(objects.client(each_store, "reports"), "Mine <b>", {"one": "docs/index.html"})
    prepare(each_store)
    with urllib.request.urlopen(each_store.reports_front, timeout=10) as answer:
        page = answer.read()
    assert b"Mine &lt;b&gt;" in page
    assert b'<a href="docs/index.html">one</a>' in page


@pytest.mark.parametrize("path", ["reports", "reports/?list-type=2", "lake", "lake/open", ""])
def test_nothing_else_opens_without_credentials(each_store: Settings, path: str) -> None:
    """Reports cannot be listed, and the other buckets say no."""
    objects.put(objects.client(each_store, "lake"), "lake", "open", b"x")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{each_store.store_endpoint}/{path}", timeout=10)
    caught.value.close()
    assert caught.value.code == 403


def test_a_missing_object_is_named(store: Settings) -> None:
    """The error says which object of which bucket."""
    with pytest.raises(StoreError, match=r"object lake/no/such cannot be read: NoSuchKey"):
        objects.get(objects.client(store, "lake"), "lake", "no/such")


def test_a_store_that_is_away_is_named(store: Settings) -> None:
    """The error of a store that does not answer is the library's own, not the client's."""
    away = store.model_copy(update={"store_port": 1})
    with pytest.raises(StoreError, match="object lake/key cannot be read"):
        objects.get(objects.client(away, "lake"), "lake", "key")


def test_without_secrets_the_error_says_what_to_do(store: Settings) -> None:
    """A data folder that was never started is named, with the command that fills it."""
    empty = store.model_copy(update={"data_dir": store.data_dir / "empty"})
    with pytest.raises(ServiceError, match=r"no credentials .* run `fieldloop up` once"):
        objects.client(empty, "lake")


def test_a_secret_is_not_in_the_repr(store: Settings) -> None:
    """Credentials can be logged by mistake without harm."""
    credentials = store.store_credentials("lake")
    assert credentials.secret_key not in repr(credentials)


def _files_with(settings: Settings, marker: bytes) -> list[str]:
    files = (path for path in settings.data_dir.rglob("*") if path.is_file())
    return [str(path) for path in files if marker in path.read_bytes()]


@pytest.mark.parametrize("posts", [False, True])
def test_a_post_goes_out_again_only_where_that_is_harmless(posts: bool) -> None:
    """The server drops the first connection when it has read the request, and answers the second."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = Thread(target=_drop_then_answer, args=(server,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        if posts:
            assert objects.pool(posts=True).request("POST", url, body=BODY).status == 204
        else:
            with pytest.raises(urllib3.exceptions.ProtocolError):
                objects.pool().request("POST", url, body=BODY)


def _drop_then_answer(server: socket.socket) -> None:
    for answer in (b"", b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"):
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as request:
            while request.readline().strip():
                pass
            request.read(len(BODY))  # closed with a part of it unread, the answer would be lost as well
            connection.sendall(answer)


def test_an_administrators_post_goes_out_again(store: Settings) -> None:
    """MinIO drops connections while it starts: `up` tells it of the identities all the same."""
    if kind(store) != "minio":
        pytest.skip("SeaweedFS reads its identities from a file: `make minio` builds MinIO")
    with _dropping_the_first_post(store.store_port) as (port, dropped):
        prepare(store.model_copy(update={"store_port": port}))
        assert dropped.is_set()


@contextmanager
def _dropping_the_first_post(port: int) -> Iterator[tuple[int, Event]]:
    """Stand before a server, pass on what comes, and close the first connection that brings a POST."""
    dropped = Event()
    with socket.create_server(("127.0.0.1", 0)) as front:
        Thread(target=_accept, args=(front, port, dropped), daemon=True).start()
        yield front.getsockname()[1], dropped


def _accept(front: socket.socket, port: int, dropped: Event) -> None:
    with suppress(OSError):
        while True:
            client, _ = front.accept()
            Thread(target=_relay, args=(client, port, dropped), daemon=True).start()


def _relay(client: socket.socket, port: int, dropped: Event) -> None:
    with client, socket.create_connection(("127.0.0.1", port)) as server, suppress(OSError):
        Thread(target=_answers, args=(server, client), daemon=True).start()
        while data := client.recv(65_536):
            if data.startswith(b"POST ") and not dropped.is_set():
                dropped.set()
                return
            server.sendall(data)


def _answers(server: socket.socket, client: socket.socket) -> None:
    with suppress(OSError):
        while data := server.recv(65_536):
            client.sendall(data)
