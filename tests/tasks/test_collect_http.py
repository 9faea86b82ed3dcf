"""JSON of a web service into the lake: page by page, with credentials, patience and limits."""

from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import pytest

from fieldloop.domain.errors import DocumentError, SourceError, StoreError
from fieldloop.domain.readings import Reason
from fieldloop.stores.settings import Settings
from fieldloop.stores.sources import http
from infra.local.keys import write_private
from tasks.collect import collect
from tests.tasks.servers import Answer, Service, page, service
from tests.tasks.sources import Workshop, workshop

SIZE = 10


@pytest.fixture
def shop(store: Settings, tmp_path: Path) -> Workshop:
    made = workshop(store, tmp_path)
    made.profile(format_="json")
    return made


@pytest.fixture
def running() -> Iterator[Service]:
    with service(lambda query, headers: page([])) as made:
        yield made


def records(device: str, count: int, first: int = 0) -> list[dict[str, object]]:
    return [
        {"meter": device, "at": f"2020-01-01T{n // 60:02}:{n % 60:02}:00Z", "level": n, "state": "on"}
        for n in range(first, first + count)
    ]


def declare(shop: Workshop, running: Service, name: str, options: str = "") -> str:
    return shop.source(
        name, f"kind: http\ndevice: {{field: meter}}\nenrol: true\noptions:\n  url: {running.url}\n{options}"
    )


PAGINGS = {
    "page": "  paging: {kind: page, parameter: p, first: 0}\n  records: data.rows\n",
    "cursor": "  paging: {kind: cursor, parameter: after, path: meta.next}\n  records: data.rows\n",
    "link": "  paging: {kind: link}\n  records: data.rows\n",
    "next": "  paging: {kind: link, path: meta.url}\n  records: data.rows\n",
}


@pytest.mark.parametrize("kind", PAGINGS)
def test_every_page_is_read_and_only_the_last_one_again(kind: str, shop: Workshop, running: Service) -> None:
    """By number, cursor, link header and address in the page; what comes later is read from the last page on."""
    source, device = declare(shop, running, f"http-{kind}", PAGINGS[kind]), f"http-{kind}-1"
    rows = records(device, 25)

    def answer(query: dict[str, str], headers: dict[str, str]) -> Answer:
        number = int(query.get("p", query.get("after", 0)))
        more = len(rows) > SIZE * (number + 1)
        body = {
            "data": {"rows": rows[SIZE * number : SIZE * (number + 1)]},
            "meta": {"next": number + 1, "url": f"/readings?p={number + 1}"} if more else {},
        }
        return page(body, **({"Link": f'</readings?p={number + 1}>; rel="next"'} if more and kind == "link" else {}))

    running.answer = answer
    first = collect(shop, source)
    assert (first.rows, first.readings) == (25, 50)
    again = collect(shop, source)
    assert (again.rows, again.readings, again.table_version) == (5, 0, first.table_version)
    rows += records(device, 10, 25)
    assert collect(shop, source).readings == 20
    assert len(shop.stored(device)) == 70


def test_since_asks_for_what_is_new(shop: Workshop, running: Service) -> None:
    """The largest value seen is sent by the next run, which begins with the first page."""
    source = declare(shop, running, "http-since", "  since: {parameter: from, field: at}\n")
    rows = records("http-since-1", 5)
    running.answer = lambda query, headers: page([row for row in rows if str(row["at"]) >= query.get("from", "")])
    assert collect(shop, source).readings == 10
    rows += records("http-since-1", 2, 5)
    assert collect(shop, source).readings == 4
    assert running.asked == [{}, {"from": "2020-01-01T00:04:00Z"}]


def test_bad_records_cost_only_themselves_and_are_kept_once(shop: Workshop, running: Service) -> None:
    """A record without time, one without device, one that is no record."""
    source = declare(shop, running, "http-bad")
    rows: list[object] = [*records("http-bad-1", 2), {"meter": "http-bad-1", "level": 1}, {"level": 1}, 7]
    running.answer = lambda query, headers: page(rows)
    assert collect(shop, source).quarantined == 3
    assert collect(shop, source).quarantined == 0
    rows.append(*records("http-bad-1", 1, 2))
    done = collect(shop, source)
    assert (done.readings, done.quarantined) == (2, 0)
    reasons = {Reason.NO_EVENT_TIME, Reason.UNKNOWN_DEVICE, Reason.WRONG_TYPE}
    assert set(shop.refused(source)["reason"]) <= reasons
    assert len(shop.refused(source)) == 3


def test_a_busy_service_is_asked_again_when_it_says(
    shop: Workshop, running: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retry-After in seconds and as a date, then a failure: waits as told, and longer each time by itself."""
    slept: list[float] = []
    monkeypatch.setattr(http.time, "sleep", slept.append)
    source = declare(shop, running, "http-busy")
    soon = format_datetime(datetime.now(UTC).replace(year=2099), usegmt=True)
    answers = [(429, {"Retry-After": "7"}, b""), (503, {"Retry-After": soon}, b""), (500, {}, b""), (502, {}, b"")]
    running.answer = lambda query, headers: answers.pop(0) if answers else page(records("http-busy-1", 1))
    assert collect(shop, source).readings == 2
    assert slept[:2] == [7.0, http.LONGEST_PAUSE_S]
    assert slept[2] < slept[3] < http.LONGEST_PAUSE_S
    running.answer = lambda query, headers: (503, {}, b"")
    with pytest.raises(StoreError, match="after 6 tries: status 503"):
        collect(shop, source)


def test_what_is_wrong_with_an_answer_is_said(
    shop: Workshop, running: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No JSON, no list, refused, too large, another server's next page, a redirect."""
    source = declare(shop, running, "http-wrong", "  paging: {kind: link, path: next}\n  records: rows\n")
    monkeypatch.setattr(http, "MAX_PAGE_BYTES", 10_000)
    wrong: dict[str, Answer] = {
        "expected JSON": (200, {}, b"<html>"),
        "expected a list of records at `rows`, got NoneType": page({"data": []}),
        "expected status 200, got 403: go away": (403, {}, b"go away"),
        "expected status 200, got 302": (302, {"Location": "http://127.0.0.1:1/"}, b""),
        "larger than 10,000 bytes": page({"rows": ["x" * 20_000]}),
        "expected the same server": page({"rows": [], "next": "http://elsewhere.example.org/"}),
    }
    for message, answer in wrong.items():
        running.answer = lambda query, headers, answer=answer: answer
        with pytest.raises(SourceError, match=message):
            collect(shop, source)


def test_credentials_come_from_a_file_and_go_as_headers(shop: Workshop, running: Service) -> None:
    """They are in no declaration: one that has them is refused; plain http carries them on this machine alone."""
    (shop.secrets / "sources").mkdir(exist_ok=True)
    write_private(shop.secrets / "sources" / "token", b"Authorization: Bearer abc\n")
    source = declare(shop, running, "http-auth", "  secret: token\n")
    running.answer = lambda query, headers: (
        page(records("http-auth-1", 1)) if headers.get("Authorization") == "Bearer abc" else (401, {}, b"who?")
    )
    assert collect(shop, source).readings == 2
    declare(shop, running, "http-auth", "  headers: {Authorization: abc}\n")
    with pytest.raises(DocumentError, match=r"http-auth.yaml:8: unknown key `headers` in `options`"):
        collect(shop, source)
    shop.source("http-plain", "kind: http\ndevice: {name: x}\noptions: {url: 'http://example.org/', secret: token}\n")
    with pytest.raises(SourceError, match="credentials go over https alone"):
        collect(shop, "http-plain")
