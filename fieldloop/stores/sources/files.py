"""Files, on this machine or in the object store: each content once, whatever it is called.

A file is known by the digest of its bytes. One that was renamed is passed over; one that grew is read on from where it
was, if what it began with is unchanged; one that was rewritten is a new file, whose old readings are repeats. A file
that is damaged half-way keeps what was read, and is tried again once it has changed.
"""

import hashlib
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from fieldloop.domain.errors import SourceError
from fieldloop.stores.sources import folders, tables, text
from fieldloop.stores.sources.folders import Found
from fieldloop.stores.sources.layout import Long, Wide
from fieldloop.stores.sources.source import (
    Batch,
    ItemRefusedError,
    Note,
    Options,
    Position,
    Request,
    require_columnar,
)
from fieldloop.stores.sources.tables import Writing

READ_BYTES: Final = 1 << 20
DIGEST_SHOWN: Final = 12  # hexadecimal digits that tell contents of one name apart


class FileOptions(Options):
    """Which files, and how they are written.

    Attributes:
        path: a pattern such as `/data/air/*.csv.zst` or `inbox/**/*.parquet`, relative to the repository; or
            `s3://inbox/air/*.csv` in the platform's own object store.
        format: how they are written; by their names' endings where left out. `.gz` and `.zst` are unpacked.
        skip_lines: lines above the header of a CSV file, or above its rows where the columns are named otherwise.
        encoding: of text.
        columns: names of the columns of CSV files without a header; where left out, the profile's `csv.columns`.
        wide: where a column is a device, or one of several quantities of a kind.
        long: where a row is one quantity.
        settle_s: a file is read once it has not changed for so long, seconds: it may still be being copied.
    """

    path: Annotated[str, Field(min_length=1)]
    format: Literal["csv", "ndjson", "parquet"] | None = None
    skip_lines: Annotated[int, Field(ge=0, le=1000)] = 0
    encoding: Literal["utf-8", "latin-1", "cp1252"] = "utf-8"
    columns: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = ()
    wide: Wide | None = None
    long: Long | None = None
    settle_s: Annotated[float, Field(ge=0, le=86_400)] = 10.0

    @model_validator(mode="after")
    def _one_layout(self) -> Self:
        if self.wide is not None and self.long is not None:
            raise ValueError("files are either `wide` or `long`; leave one out")
        return self


class FileSource:
    """Reads files that are not in the lake yet, in order of their names."""

    options: ClassVar[type[Options]] = FileOptions

    def __init__(self, request: Request, options: FileOptions) -> None:
        """Remember what to read; see `Source`."""
        self._request = request
        self._options = options

    def read(self, done: Sequence[Position]) -> Generator[Batch | Note, None, None]:
        """Yield what is new; see `Source`."""
        known = _Known(done)
        found = folders.listed(self._request.settings, self._options.path)
        if not found and not done:
            raise SourceError(f"no file fits `{self._options.path}`")
        now = time.time()
        for file in found:
            if known.has(file) or now - file.changed_s < self._options.settle_s:
                continue
            try:
                yield from self._file(file, known)
            except ItemRefusedError as exc:
                yield Note(file.name, None, str(exc))
            except (SourceError, OSError) as exc:
                yield Note(file.name, {"name": file.name, "version": file.version}, str(exc))

    def _file(self, file: Found, known: "_Known") -> Generator[Batch | Note, None, None]:
        """Yield a file's rows behind those that are in the lake, and a note that it is done."""
        with folders.at_hand(self._request.settings, file) as path:
            writing = self._writing(file.name)
            digest, begun = _digest(path, known.grown_from(file))
            position = {"name": file.name, "version": file.version, "size": file.size, "digest": digest}
            rows = known.rows(digest) or known.rows(begun)
            if not known.whole(digest):
                for part in tables.parts(path, file.name, self._request, writing):
                    if part.last > rows:
                        part, rows = part.behind(rows) if rows else part, part.last
                        at = {**position, "rows": rows}
                        yield Batch(file.name, part.rows, part.numbers, at, part.refused, digest[:DIGEST_SHOWN])
            finished = {**position, "rows": rows, "done": True}
            known.add(finished)
            yield Note(file.name, finished)

    def _writing(self, name: str) -> Writing:
        format_ = self._options.format or tables.FORMATS.get(text.suffix(name))
        if format_ is None:
            endings = ", ".join(tables.FORMATS)
            raise SourceError(f"{name}: expected a name that ends in one of {endings}; else give `format`")
        options = self._options
        if format_ != "ndjson":
            require_columnar(self._request, f"{name}: rows of {format_}")
        elif options.wide or options.long:
            raise SourceError(f"{name}: `wide` and `long` are for CSV and Parquet, got {format_}")
        return Writing(format_, options.skip_lines, options.encoding, options.columns, options.wide, options.long)


class _Known:
    """What is known of files from the positions of earlier batches and notes."""

    def __init__(self, done: Sequence[Position]) -> None:
        self._versions: set[tuple[str, str]] = set()
        self._rows: dict[str, int] = {}
        self._whole: set[str] = set()
        self._newest: dict[str, Position] = {}
        for position in done:
            self.add(position)

    def add(self, position: Position) -> None:
        """Remember a position: of a batch, of a file read to its end, or of one that failed."""
        digest = position.get("digest", "")
        if "digest" not in position or position.get("done"):
            self._versions.add((position["name"], position["version"]))
        if "digest" in position:
            self._rows[digest] = max(self._rows.get(digest, 0), position["rows"])
        if position.get("done"):
            self._whole.add(digest)
            self._newest[position["name"]] = position

    def has(self, file: Found) -> bool:
        """Say whether the file, as it is now, was read to its end or failed."""
        return (file.name, file.version) in self._versions

    def whole(self, digest: str) -> bool:
        """Say whether a content is in the lake to its end."""
        return digest in self._whole

    def rows(self, digest: str) -> int:
        """Return how many rows of a content are in the lake."""
        return self._rows.get(digest, 0)

    def grown_from(self, file: Found) -> Position | None:
        """Return what a file of this name was when it was last read to its end, if it was smaller."""
        before = self._newest.get(file.name)
        return before if before is not None and before["size"] < file.size and _can_grow(file.name) else None


def _can_grow(name: str) -> bool:
    return not name.endswith((*text.PACKED, ".parquet"))


def _digest(path: Path, before: Position | None) -> tuple[str, str]:
    """Return a file's digest, and the one it had before where it still begins with those bytes and a whole line."""
    whole, begun = hashlib.sha256(), ""
    left: Any = before["size"] if before else None
    with path.open("rb") as file:
        while piece := file.read(min(READ_BYTES, left or READ_BYTES)):
            whole.update(piece)
            if left:
                left -= len(piece)
                if left == 0 and before and whole.hexdigest() == before["digest"] and piece.endswith(b"\n"):
                    begun = whole.hexdigest()
    return whole.hexdigest(), begun
