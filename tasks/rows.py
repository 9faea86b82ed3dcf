"""Rows of a source: whose they are, the readings in them, and what is refused, by the source's profile."""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Final

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from fieldloop.domain.columns import Coded
from fieldloop.domain.contract.points import ENOUGH
from fieldloop.domain.payloads import fields
from fieldloop.domain.payloads.records import Table
from fieldloop.domain.profile import Profile
from fieldloop.domain.readings import Messages, Named, Reason, Reject
from fieldloop.stores.lake import Lake
from fieldloop.stores.sources import columns
from fieldloop.stores.sources.declaration import DEVICE_NAME, Declaration
from fieldloop.stores.sources.source import Batch, ItemRefusedError, Stray
from fieldloop.stores.tables import SCHEMAS
from tasks.landing import Decoder, refused

JUDGED_ROWS: Final = 2 * ENOUGH  # of a device, about, that the contract watch judges at a time: it looks at all of them


@dataclass(frozen=True)
class Owned:
    """A batch whose rows have owners.

    Attributes:
        batch: as the source gave it.
        devices: [N] whose row it is; empty where that is not known.
        taken: [K] int64, the rows that are to be decoded.
        rejects: the others, `message` is the row.
        newcomers: devices that are to be enrolled for it.
        named_by: the column that named the owners; empty where the item did.
        read_us: [N] int64, when each row was read, a microsecond after the one before: its place among all that the
            source gave, which is also how a replay finds the order again.
    """

    batch: Batch
    devices: Named
    taken: NDArray[np.int64]
    rejects: list[Reject]
    newcomers: list[str]
    named_by: str
    read_us: NDArray[np.int64]


@dataclass
class Owners:
    """Finds whose rows a batch has, by the source's declaration.

    Attributes:
        declared: the declaration.
        known: profile name of each enrolled device.
        read_us: when the last row was read.
    """

    declared: Declaration
    known: dict[str, str] = field(default_factory=dict)
    read_us: int = 0

    def of(self, profile: Profile, batch: Batch) -> Owned:
        """Return the batch with its owners.

        Raises:
            ItemRefusedError: all its rows are of one device, which is not enrolled.
            SourceError: no device can be told from the item's name.
        """
        device = self.declared.device.of(batch.item)
        names = Coded(np.zeros(len(batch), np.int64), [device]) if device else self._named(batch)
        trouble = {name: self._trouble(str(name)) for name in names.entries}
        if device and trouble[device] and not self._enrols(device):
            raise ItemRefusedError(f"{batch.item}: {trouble[device]}")
        newcomers = [str(name) for name in names.entries if self._enrols(str(name))]
        fine = np.array([not trouble[name] or name in newcomers for name in names.entries] + [False], dtype=bool)
        taken = fine[names.codes]
        rejects = [
            Reject(row, None, Reason.UNKNOWN_DEVICE, trouble.get(names[row]) or self._unnamed())
            for row in np.flatnonzero(~taken).tolist()
        ]
        devices = Named((*(str(name) for name in names.entries), ""), names.codes.astype(np.int32))
        read_us = max(int(datetime.now(UTC).timestamp() * 1e6), self.read_us + 1) + np.arange(len(batch))
        self.read_us = int(read_us[-1]) if len(batch) else self.read_us
        named_by = self.declared.device.field or ""
        return Owned(batch, devices, np.flatnonzero(taken), rejects, newcomers, named_by, read_us)

    def _named(self, batch: Batch) -> Coded:
        """Return the names that rows give their device."""
        rule, rows = self.declared.device, batch.rows
        field = str(rule.field)
        found = columns.texts(field, rows[field]) if isinstance(rows, pa.Table) else _json_names(field, rows)
        called = [rule.named(batch.item, entry) for entry in found.entries]
        names = {name: code for code, name in enumerate(dict.fromkeys(called))}
        return Coded(np.array([*(names[name] for name in called), -1], dtype=np.int64)[found.codes], list(names))

    def _trouble(self, name: str) -> str:
        """Say why a device's rows are not taken; empty where they are."""
        profile = self.known.get(name)
        if profile == self.declared.profile:
            return ""
        if profile is not None:
            return f"device `{name}` is enrolled under profile {profile}, the source reads {self.declared.profile}"
        if not DEVICE_NAME.fullmatch(name):
            return f"`{name}` cannot name a device: expected letters, digits, - and _, at most 63 of them"
        return f"device `{name}` is not enrolled; enrol it, or let the source do so: `enrol: true`"

    def _enrols(self, name: str) -> bool:
        return self.declared.enrol and name not in self.known and DEVICE_NAME.fullmatch(name) is not None

    def _unnamed(self) -> str:
        return f"expected a device's name in field `{self.declared.device.field}`, found none"


def decode(decoder: Decoder, profile: Profile, owned: Owned, *, judged: bool) -> tuple[pl.DataFrame, list[Reject]]:
    """Return an owned batch as rows of table `readings`, and everything that was refused, by row.

    Args:
        decoder: of the source's own space.
        profile: of all its devices.
        owned: the batch.
        judged: whether the contract watch judges it. It does so piece by piece: in one go it would learn a file's
            change along with what was before.
    """
    frames, rejects = [pl.DataFrame(schema=SCHEMAS["readings"])], list(owned.rejects)
    devices = len(np.unique(owned.devices.codes))
    piece = JUDGED_ROWS * devices if judged else max(1, len(owned.taken))
    for begin in range(0, len(owned.taken), piece):
        taken = owned.taken[begin : begin + piece]
        admitted, barred = decoder.contracts.admit(profile, _messages(owned, taken))
        rejects += [reject.at(int(taken[reject.message])) for reject in barred]
        taken = taken[admitted]
        table = _table(profile, owned, taken)
        frame, refused = decoder.decode_rows(profile, _messages(owned, taken), table, judged=judged)
        frames.append(frame)
        rejects += [reject.at(int(taken[reject.message])) for reject in refused]
    return pl.concat(frames), rejects


def _messages(owned: Owned, taken: NDArray[np.int64]) -> Messages:
    """Return rows as messages; those that came in columns have no payload."""
    rows = owned.batch.rows
    return Messages(
        owned.devices.take(taken),
        np.full(len(taken), owned.read_us[0] if len(owned.read_us) else 0),
        owned.read_us[taken],
        () if isinstance(rows, pa.Table) else [rows[row] for row in taken.tolist()],
    )


def _table(profile: Profile, owned: Owned, taken: NDArray[np.int64]) -> Table | None:
    """Return rows that came in columns as the profile's columns."""
    rows = owned.batch.rows
    if not isinstance(rows, pa.Table):
        return None
    return columns.to_table(profile, rows if len(taken) == rows.num_rows else rows.take(taken), owned.named_by)


def quarantined(profile: Profile, owned: Owned, rejects: Sequence[Reject], place: str) -> pl.DataFrame:
    """Return rows of table `quarantine`: the item as subject, the row's number as sequence, a message as payload."""
    batch = owned.batch
    subject = f"{place}/{batch.item}" + (f"#{batch.edition}" if batch.edition else "")
    now_us = int(owned.read_us[0]) if len(batch) else int(datetime.now(UTC).timestamp() * 1e6)
    payloads = _Payloads(profile, batch.rows)
    messages = Messages(owned.devices, owned.read_us, batch.numbers, payloads)
    unread = Messages(
        [owned.devices.names[0] if owned.named_by == "" else ""] * len(batch.refused),
        np.full(len(batch.refused), now_us),
        np.array([refusal.number for refusal in batch.refused], dtype=np.int64),
        [refusal.payload for refusal in batch.refused],
    )
    why = [Reject(place, each.metric, each.reason, each.detail) for place, each in enumerate(batch.refused)]
    return pl.concat(
        [
            refused(messages, [subject] * len(batch), rejects),
            refused(unread, [subject] * len(batch.refused), why),
        ]
    )


def strays(messages: Sequence[Stray], place: str) -> pl.DataFrame:
    """Return messages of no device as rows of table `quarantine`: the topic as subject, a digest as sequence."""
    digests = [hashlib.blake2b(message.payload, digest_size=8).digest() for message in messages]
    unread = Messages(
        [""] * len(messages),
        np.full(len(messages), int(datetime.now(UTC).timestamp() * 1e6)),
        np.array([int.from_bytes(digest, "big") >> 1 for digest in digests], dtype=np.int64),
        [message.payload for message in messages],
    )
    why = [Reject(row, None, message.reason, message.detail) for row, message in enumerate(messages)]
    return refused(unread, [f"{place}/{message.topic}" for message in messages], why)


def keep(lake: Lake, waiting: pl.DataFrame) -> int:
    """Enter into quarantine what is not there yet, as from a run that was killed; return how many rows are new."""
    if not len(waiting):
        return 0
    place = ["subject", "sequence"]
    of_these = pl.col("subject").is_in(waiting["subject"].unique().implode())
    there = lake.scan("quarantine").filter(of_these).select(place).unique().collect()
    fresh = waiting.join(there, on=place, how="anti")
    if len(fresh):
        lake.append("quarantine", fresh)
    return len(fresh)


class _Payloads(Sequence[bytes]):
    """The rows of a batch as messages of the profile's own format, each made when it is asked for."""

    def __init__(self, profile: Profile, rows: pa.Table | Sequence[bytes]) -> None:
        self._profile = profile
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        if not isinstance(self._rows, pa.Table):
            return self._rows[row]
        (entries,) = self._rows.slice(int(row), 1).to_pylist()
        return _as_csv(self._profile, entries) if self._profile.format == "csv" else _as_json(entries)


def _as_csv(profile: Profile, entries: Mapping[str, Any]) -> bytes:
    """Return a row as its profile's CSV: with a line of names where the profile gives none."""
    names = profile.csv.columns or tuple(entries)
    text = io.StringIO()
    writer = csv.writer(text, delimiter=profile.csv.delimiter, lineterminator="\n")
    if not profile.csv.columns:
        writer.writerow(names)
    writer.writerow([_plain(entries.get(name)) for name in names])
    return text.getvalue().encode()


def _as_json(entries: Mapping[str, Any]) -> bytes:
    """Return a row as JSON, nested where its fields' names have dots."""
    record: dict[str, Any] = {}
    for path, entry in entries.items():
        *above, name = path.split(".")
        inner = record
        for part in above:
            inner = inner.setdefault(part, {})
        inner[name] = _plain(entry)
    return msgspec.json.encode(record)


def _plain(entry: Any) -> Any:
    if isinstance(entry, datetime | date):
        return entry.isoformat()
    return None if entry != entry else entry  # NaN


def _json_names(path: str, lines: Sequence[bytes]) -> Coded:
    """Return the name at a path of each JSON message, -1 where it has none; of an array's records the first counts."""
    nothing = np.zeros(len(lines), np.int64)
    found = (layout := fields.Fields({path: fields.ANY}, ("*",), {})).find(Messages((), nothing, nothing, lines))
    entries: dict[str, int] = {}
    codes = np.full(len(lines), -1, dtype=np.int64)
    for row, name in zip(reversed(found.rows), reversed(layout.column(found, path)), strict=True):
        if name is not None:
            codes[row] = entries.setdefault(str(name), len(entries))
    return Coded(codes, list(entries))
