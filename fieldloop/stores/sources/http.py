"""A web service that gives JSON, page by page: by page number, cursor, or the address of the next page.

Each record of a page is a message in the profile's payload format. A run begins with the page at which the last one
ended, or, where the service takes a `since`, with the largest value seen. Bounded in bytes, pages and waiting; a page
is asked for again with growing pauses, or when the service says so (`Retry-After`).
"""

import hashlib
import random
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, ClassVar, Final, Literal

import httpx
import msgspec
import numpy as np
from pydantic import Field, HttpUrl

from fieldloop.domain.errors import SourceError, StoreError
from fieldloop.stores.sources.secrets import SecretName, secret
from fieldloop.stores.sources.source import Batch, Note, Options, Position, Request

MAX_PAGE_BYTES: Final = 32 << 20
MAX_PAGES: Final = 100_000  # of one run
TRIES: Final = 6
FIRST_PAUSE_S: Final = 0.5  # doubled each time
LONGEST_PAUSE_S: Final = 120.0  # also where the service asks for more
TIMEOUT_S: Final = 30.0
SHOWN_CHARS: Final = 200
AGAIN: Final = (408, 425, 429, 500, 502, 503, 504)


class Paging(Options):
    """How to get from page to page.

    Attributes:
        kind: `none`: one page; `page`: pages are numbered; `cursor`: each page tells what to ask the next one with;
            `link`: each page tells the next one's address.
        parameter: the query's parameter of `page` and `cursor`.
        first: the first page's number.
        path: where a page has the cursor or the address, with dots; for `link` the `Link` header where left out.
    """

    kind: Literal["none", "page", "cursor", "link"] = "none"
    parameter: str = "page"
    first: Annotated[int, Field(ge=0)] = 1
    path: str = ""


class Since(Options):
    """How to ask for what is new only.

    Attributes:
        parameter: the query's parameter.
        field: path of the value in a record; the largest one seen is sent.
    """

    parameter: str
    field: str


class HttpOptions(Options):
    """What to ask for.

    Attributes:
        url: the address, without what changes from page to page.
        parameters: of every query.
        records: path of the list of records in a page, with dots; the page is the list where left out.
        paging: how to get from page to page.
        since: how to ask for what is new only.
        secret: file in `<secrets>/sources/` with header lines, such as `Authorization: Bearer …`.
    """

    url: HttpUrl
    parameters: dict[str, str] = Field(default_factory=dict)
    records: str = ""
    paging: Paging = Paging()
    since: Since | None = None
    secret: SecretName | None = None


@dataclass(frozen=True)
class _Page:
    records: list[Any]
    after: str | None  # page number, cursor or address of the next one; None at the end


class HttpSource:
    """Reads pages of JSON records."""

    options: ClassVar[type[Options]] = HttpOptions

    def __init__(self, request: Request, options: HttpOptions) -> None:
        """Remember what to ask for; see `Source`."""
        self._request = request
        self._options = options
        self._item = f"{options.url.scheme}://{options.url.host}:{options.url.port}{options.url.path or ''}"

    def read(self, done: Sequence[Position]) -> Generator[Batch | Note, None, None]:
        """Yield what is new; see `Source`."""
        last = done[-1] if done else {"since": None, "at": None}
        at, since, highest = last["at"], last["since"], last.get("highest", last["since"])
        limits = httpx.Timeout(TIMEOUT_S)
        with httpx.Client(headers=self._headers(), timeout=limits, follow_redirects=False) as client:
            for _ in range(MAX_PAGES):
                page = self._page(client, at, since)
                highest = self._highest(page.records, highest)
                if page.records:
                    yield self._batch(page.records, {"since": since, "at": at, "highest": highest})
                if page.after is None or page.after == at:
                    break
                at = page.after
            else:
                raise SourceError(f"{self._item}: more than {MAX_PAGES:,} pages; is `paging` right?")
        if self._options.since is not None:
            finished = {"since": highest, "at": None, "highest": highest}
            if finished != last:
                yield Note(self._item, finished)

    def _page(self, client: httpx.Client, at: str | None, since: Any) -> _Page:
        """Ask for one page."""
        paging, query = self._options.paging, dict(self._options.parameters)
        url = str(self._options.url)
        if self._options.since is not None and since is not None:
            query[self._options.since.parameter] = str(since)
        if paging.kind == "page":
            at = at or str(paging.first)
            query[paging.parameter] = at
        elif paging.kind == "cursor" and at:
            query[paging.parameter] = at
        elif paging.kind == "link" and at:
            url, query = at, {}
        body, headers = self._answer(client, url, query)
        records = self._records(body)
        return _Page(records, self._next(body, headers, at, url, len(records)))

    def _next(self, body: Any, headers: httpx.Headers, at: str | None, url: str, records: int) -> str | None:
        paging = self._options.paging
        if paging.kind == "page":
            return str(int(at or paging.first) + 1) if records else None
        if paging.kind == "cursor":
            found = _at(body, paging.path)
            return None if found in (None, "", False) else str(found)
        if paging.kind == "link":
            found = _at(body, paging.path) if paging.path else _link(headers)
            return self._own_address(url, str(found)) if found else None
        return None

    def _own_address(self, url: str, found: str) -> str:
        """Return the next page's whole address; another server's would be given our credentials."""
        whole, own = httpx.URL(url).join(found), httpx.URL(str(self._options.url))
        if (whole.scheme, whole.host, whole.port) != (own.scheme, own.host, own.port):
            raise SourceError(f"{self._item}: the next page is said to be at {whole.host}; expected the same server")
        return str(whole)

    def _records(self, body: Any) -> list[Any]:
        found = _at(body, self._options.records) if self._options.records else body
        if not isinstance(found, list):
            where = f"at `{self._options.records}`" if self._options.records else "as the whole answer"
            raise SourceError(f"{self._item}: expected a list of records {where}, got {type(found).__name__}")
        return found

    def _batch(self, records: list[Any], position: Position) -> Batch:
        payloads = [msgspec.json.encode(record) for record in records]
        digests = (hashlib.blake2b(payload, digest_size=8).digest() for payload in payloads)
        numbers = [int.from_bytes(digest, "big") >> 1 for digest in digests]
        return Batch(self._item, payloads, np.array(numbers, dtype=np.int64), position)

    def _highest(self, records: Sequence[Any], highest: Any) -> Any:
        """Return the largest value of the `since` field so far."""
        if self._options.since is None:
            return None
        seen = [_at(record, self._options.since.field) for record in records]
        values = [value for value in (*seen, highest) if isinstance(value, str | int | float)]
        if len({isinstance(value, str) for value in values}) > 1:
            raise SourceError(
                f"{self._item}: `{self._options.since.field}` is text in some records, a number in others"
            )
        return max(values, default=None)

    def _answer(self, client: httpx.Client, url: str, query: Mapping[str, str]) -> tuple[Any, httpx.Headers]:
        """Return a page's JSON and headers; try again where that may help."""
        asked, failure = "", None
        for tried in range(TRIES):
            if tried:
                time.sleep(_pause_s(tried, asked))
            try:
                with client.stream("GET", url, params={**httpx.URL(url).params, **query}) as response:
                    if response.status_code not in AGAIN:
                        return self._json(response), response.headers
                    asked, failure = response.headers.get("retry-after", ""), f"status {response.status_code}"
            except httpx.TransportError as exc:
                asked, failure = "", str(exc) or type(exc).__name__
        raise StoreError(f"{self._item} does not answer after {TRIES} tries: {failure}")

    def _json(self, response: httpx.Response) -> Any:
        body = bytearray()
        for piece in response.iter_bytes():
            body += piece
            if len(body) > MAX_PAGE_BYTES:
                raise SourceError(f"{self._item}: a page is larger than {MAX_PAGE_BYTES:,} bytes; ask for smaller ones")
        if response.status_code != httpx.codes.OK:
            said = body[:SHOWN_CHARS].decode(errors="replace")
            raise SourceError(f"{self._item}: expected status 200, got {response.status_code}: {said}")
        try:
            return msgspec.json.decode(bytes(body))
        except msgspec.DecodeError as exc:
            raise SourceError(f"{self._item}: expected JSON: {exc}") from exc

    def _headers(self) -> dict[str, str]:
        if self._options.secret is None:
            return {}
        lines = secret(self._request.settings, self._options.secret).splitlines()
        pairs = [line.partition(":") for line in lines if line.strip()]
        if not all(colon for _, colon, _ in pairs):
            raise SourceError(f"secret `{self._options.secret}`: expected lines such as `Authorization: Bearer …`")
        own = self._options.url
        if own.scheme != "https" and own.host not in ("127.0.0.1", "localhost", "[::1]"):
            raise SourceError(f"{self._item}: credentials go over https alone")
        return {name.strip(): value.strip() for name, _, value in pairs}


def _at(document: Any, path: str) -> Any:
    """Return what is at a path, None where nothing is."""
    for part in path.split("."):
        if not isinstance(document, dict):
            return None
        document = document.get(part)
    return document


def _link(headers: httpx.Headers) -> str | None:
    """Return the address of the next page by the `Link` header (RFC 8288)."""
    for part in str(headers.get("link", "")).split(","):
        address, _, attributes = part.partition(";")
        if 'rel="next"' in attributes or "rel=next" in attributes:
            return address.strip().strip("<>")
    return None


def _pause_s(tried: int, asked: str) -> float:
    """Return how long to wait: what the service asks for in seconds or as a date, else longer each time."""
    own = FIRST_PAUSE_S * 2 ** (tried - 1) * random.uniform(0.75, 1.25)  # noqa: S311 - spreads clients, keeps no secret
    try:
        wanted = float(asked) if asked else own
    except ValueError:
        try:
            wanted = (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            wanted = own
    return min(max(wanted, 0.0), LONGEST_PAUSE_S)
