"""Fields of JSON documents by their paths: an object a record, or an array of them, flat or nested.

The quick way decodes each message straight into structs made from the paths. A message that does not fit is looked at
again field by field, so that what is good in it is kept and what is not is named.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import msgspec

from fieldloop.domain.payloads.records import shown, unknown_field
from fieldloop.domain.readings import Messages, Reason, Reject

NUMBER = float
TEXT = str
ANY = float | str | bool  # a number, or a text or boolean that the profile gives a meaning

_PASSED_OVER = msgspec.Raw
_ACCEPTED: dict[Any, tuple[tuple[type, ...], str]] = {
    NUMBER: ((int, float), "a number"),
    TEXT: ((str,), "text"),
    ANY: ((int, float, str, bool), "a number or text"),
}


@dataclass
class Found:
    """Record structs and the rows of their messages, as they are gathered."""

    rows: list[int] = field(default_factory=list)
    records: list[Any] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


class Fields:
    """The fields to be read from each record.

    Args:
        kinds: path of each field and what it must be: `NUMBER`, `TEXT` or `ANY`.
        ignore: paths that are no trouble though nothing reads them; see `Profile.ignore`.
        metric_of: how a refused field is called, by its path; others by their path.
    """

    def __init__(self, kinds: Mapping[str, Any], ignore: tuple[str, ...], metric_of: Mapping[str, str]) -> None:
        self._kinds = dict(kinds)
        self._metric_of = metric_of
        self._open = {entry.removesuffix("*").removesuffix(".") for entry in ignore if entry.endswith("*")}
        self._ignored = {entry for entry in ignore if not entry.endswith("*")} - self._kinds.keys()
        every = self._kinds | dict.fromkeys(self._ignored, _PASSED_OVER)
        self._branches = {path[:cut] for path in every for cut in range(len(path)) if path[cut] == "."}
        parts = sorted({part for path in every for part in path.split(".")})
        self._names = {part: f"f{number}" for number, part in enumerate(parts)}
        self._record = self._struct(every, "")
        self._decode = msgspec.json.Decoder(self._record | list[self._record]).decode  # type: ignore[name-defined]

    def find(self, messages: Messages) -> Found:
        """Decode messages; one bad message or field costs only itself."""
        found = Found()
        for row, payload in enumerate(messages.payloads):
            try:
                decoded = self._decode(payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._salvage(row, payload, found)
                continue
            records = decoded if isinstance(decoded, list) else [decoded]
            found.records += records
            found.rows += [row] * len(records)
        return found

    def column(self, found: Found, path: str) -> list[Any]:
        """Return one field of every record, None where a record has none."""
        get: Callable[[Any], Any] = attrgetter(".".join(self._names[part] for part in path.split(".")))
        return [get(record) for record in found.records]

    def _salvage(self, row: int, payload: bytes, found: Found) -> None:
        """Keep the good fields of a message that does not fit its profile, and name the others."""
        try:
            document = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            found.rejects.append(Reject(row, None, Reason.UNDECODABLE, f"expected JSON: {error}"))
            return
        for entry in document if isinstance(document, list) else [document]:
            if not isinstance(entry, dict):
                detail = f"expected a record (a JSON object), got {shown(entry)}"
                found.rejects.append(Reject(row, None, Reason.WRONG_TYPE, detail))
                continue
            good = self._good_fields(row, entry, "", found.rejects)
            found.records.append(msgspec.convert(good, self._record))
            found.rows.append(row)

    def _good_fields(self, row: int, entry: dict[str, Any], above: str, rejects: list[Reject]) -> dict[str, Any]:
        good: dict[str, Any] = {}
        for name, value in entry.items():
            path = above + name
            plain = "." not in name  # a path's dots are for nesting
            if plain and path in self._branches and isinstance(value, dict):
                good[name] = self._good_fields(row, value, f"{path}.", rejects)
            elif plain and path in self._kinds:
                if value is None or self._fits(row, path, value, rejects):
                    good[name] = value
            elif not self._is_ignored(path) and not (value is None and path in self._branches):
                rejects.append(unknown_field(row, path))
        return good

    def _fits(self, row: int, path: str, value: object, rejects: list[Reject]) -> bool:
        types, expected = _ACCEPTED[self._kinds[path]]
        fits = isinstance(value, types) and (bool in types or not isinstance(value, bool))
        if fits and isinstance(value, int):
            fits = abs(value) < 1 << 1023  # more does not fit a float
        if not fits:
            detail = f"field `{path}`: expected {expected}, got {shown(value)}"
            rejects.append(Reject(row, self._metric_of.get(path, path), Reason.WRONG_TYPE, detail))
        return fits

    def _is_ignored(self, path: str) -> bool:
        above = {path[:cut] for cut in range(len(path)) if path[cut] == "."} | {"", path}
        return path in self._ignored or bool(self._open & above)

    def _struct(self, paths: Mapping[str, Any], above: str) -> type[msgspec.Struct]:
        """Make the struct of a record; nested paths become nested structs, JSON names their encoded names."""
        branches: dict[str, dict[str, Any]] = {}
        members: list[tuple[str, Any, Any]] = []
        for path, kind in paths.items():
            head, _, rest = path.partition(".")
            if rest:
                branches.setdefault(head, {})[rest] = kind
            else:
                absent = kind() if kind is _PASSED_OVER else None
                members.append((self._names[head], kind if kind is _PASSED_OVER else kind | None, absent))
        for head, below in branches.items():
            nested = self._struct(below, f"{above}{head}.")
            members.append((self._names[head], nested, msgspec.field(default_factory=nested)))
        rename = {python: json for json, python in self._names.items()}
        strict = not self._is_ignored(f"{above}-")
        return msgspec.defstruct("Record", members, rename=rename, forbid_unknown_fields=strict, gc=False)
