"""How columns become the profile's fields where they are none: a column a device, a row a quantity, no time."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Self

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from fieldloop.domain.errors import SourceError
from fieldloop.domain.profile import ROW_NUMBER, Channel, Profile
from fieldloop.domain.readings import Reason
from fieldloop.stores.sources.source import Options, Refusal, Request

DEVICE = "device"  # column in which wide files have their devices, for the declaration's `device: {field: device}`
_GROUPS = frozenset({"device", "field"})

Column = Annotated[str, Field(min_length=1, max_length=200)]


class Wide(Options):
    r"""Several devices, or several of a kind, side by side: a column each. Columns of other fields are of them all.

    Attributes:
        columns: a regular expression that a whole column's name fits, such as `(?P<device>MT_\d+)` or
            `(?P<device>P\d+)_(?P<field>\w+)`: its groups say whose and which of the profile's fields it is.
        field: of the profile, where the expression has no group `field`.
    """

    columns: str
    field: Column | None = None

    @field_validator("columns")
    @classmethod
    def _has_groups(cls, columns: str) -> str:
        return _expression(columns, _GROUPS)

    @model_validator(mode="after")
    def _one_field(self) -> Self:
        if ("field" in re.compile(self.columns).groupindex) == (self.field is not None):
            raise ValueError(
                "expected a group `field` in `columns`, or `field`: which of the profile's the columns are"
            )
        return self


class Long(Options):
    r"""A row a quantity: one column says which of the profile's fields it is, another its value.

    Attributes:
        name: the column that names the field.
        pattern: or a regular expression with a group `field`, searched in the file's name: `(?P<field>\w+)\.csv`.
        value: the column with the value.
    """

    name: Column | None = None
    pattern: str | None = None
    value: Column

    @field_validator("pattern")
    @classmethod
    def _has_group(cls, pattern: str | None) -> str | None:
        return None if pattern is None else _expression(pattern, frozenset({"field"}))

    @model_validator(mode="after")
    def _one_name(self) -> Self:
        if (self.name is None) == (self.pattern is None):
            raise ValueError("expected either `name` (a column names the field) or `pattern` (the file's name does)")
        return self


@dataclass(frozen=True)
class Layout:
    """How the columns of one file become fields.

    Attributes:
        request: what is asked for, by the profile's fields.
        item: the file's name.
        names: its columns.
        wide: see there.
        long: see there.
    """

    request: Request
    item: str
    names: Sequence[str]
    wide: Wide | None = None
    long: Long | None = None

    @property
    def counted(self) -> bool:
        """Whether a row's time is its number."""
        return ROW_NUMBER in self.request.clock_fields and ROW_NUMBER not in self.names

    @cached_property
    def raw(self) -> Request:
        """What is to be read of the file, by its own columns.

        Raises:
            SourceError: the file lacks a column that its layout names.
        """
        profile, device = self.request.profile, self.request.device_field
        if self.wide is not None:
            places = self._places
            apart = [msgspec.structs.replace(channel, field=name) for name, (_, channel) in places.items()]
            shared = [c for c in profile.channels if c.field in self.names and c.field not in places]
            channels = (*apart, *shared)
            profile = msgspec.structs.replace(profile, channels=channels)
            device = None if self._by_device else device
        elif self.long is not None:
            profile = msgspec.structs.replace(profile, channels=self._long_channels(profile, self.long))
        if self.counted:
            profile = msgspec.structs.replace(profile, clock=msgspec.structs.replace(profile.clock, kind="arrival"))
        return replace(self.request, profile=profile, device_field=device)

    def shaped(
        self, rows: pa.Table, numbers: NDArray[np.int64]
    ) -> tuple[pa.Table, NDArray[np.int64], tuple[Refusal, ...]]:
        """Return rows by the profile's fields, the numbers that they have in the file, and what no field takes."""
        if self.counted:
            rows = rows.append_column(ROW_NUMBER, pa.array(numbers))
        if self.wide is not None:
            return (*self._from_wide(rows, numbers), ())
        if self.long is not None:
            return self._from_long(rows, numbers, self.long)
        return rows, numbers, ()

    @property
    def _by_device(self) -> bool:
        return self.wide is not None and "device" in re.compile(self.wide.columns).groupindex

    @cached_property
    def _places(self) -> dict[str, tuple[str, Channel]]:
        """For each column of a wide file whose it is, and the channel that reads it."""
        wide, places = self.wide, {}
        channels = {channel.field: channel for channel in self.request.profile.channels}
        for name in self.names if wide is not None else ():
            found = re.fullmatch(wide.columns, name) if wide is not None else None
            field = None if wide is None or found is None else wide.field or found["field"]
            if found is not None and field in channels:
                places[name] = (found["device"] if self._by_device else "", channels[field])
        if wide is not None and not places:
            raise SourceError(
                f"{self.item}: no column fits `{wide.columns}` and a field of the profile "
                f"({', '.join(channels)}), there are: {', '.join(self.names)}"
            )
        return places

    def _long_channels(self, profile: Profile, long: Long) -> tuple[Channel, ...]:
        """The columns of a long file as channels: the value, a text if one of the fields is, and the name."""
        for column in (long.value, *([long.name] if long.name else [])):
            if column not in self.names:
                raise SourceError(f"{self.item}: expected a column `{column}`, there are: {', '.join(self.names)}")
        texts = tuple(text for channel in profile.channels for text in channel.texts)
        common = frozenset.intersection(*(frozenset(channel.missing) for channel in profile.channels))
        value = msgspec.structs.replace(profile.channels[0], field=long.value, texts=texts, missing=(*common,))
        if long.name is None:
            return (value,)
        return value, msgspec.structs.replace(value, field=long.name, texts=((long.name, 0.0),))

    def _from_long(
        self, rows: pa.Table, numbers: NDArray[np.int64], long: Long
    ) -> tuple[pa.Table, NDArray[np.int64], tuple[Refusal, ...]]:
        profile = self.request.profile
        if long.name is not None:
            names = pc.fill_null(pc.cast(rows[long.name], pa.string()), "")
        else:
            names = pa.chunked_array([pa.repeat(self._field_of_name(long), len(rows))])
        values = rows[long.value]
        shaped = rows.drop_columns([long.value, *([long.name] if long.name else [])])
        for channel in profile.channels:
            mine = pc.equal(names, channel.field)
            shaped = shaped.append_column(channel.field, pc.if_else(mine, values, pa.scalar(None, values.type)))
        known = {channel.field for channel in profile.channels}
        strange = [name for name in pc.unique(names).to_pylist() if name not in known and not profile.ignores(name)]
        return shaped, numbers, tuple(self._strange(name, names, numbers) for name in strange)

    def _field_of_name(self, long: Long) -> str:
        found = re.search(str(long.pattern), self.item)
        if found is None:
            raise SourceError(f"{self.item}: pattern `{long.pattern}` finds no field in the file's name")
        return found["field"]

    @staticmethod
    def _strange(name: str, names: pa.ChunkedArray, numbers: NDArray[np.int64]) -> Refusal:
        first = int(numbers[pc.index(names, name).as_py()])
        return Refusal(first, name, Reason.UNKNOWN_METRIC, f"no channel reads field `{name}`", b"")

    def _from_wide(self, rows: pa.Table, numbers: NDArray[np.int64]) -> tuple[pa.Table, NDArray[np.int64]]:
        shared = [name for name in rows.column_names if name not in self._places]
        of: dict[str, dict[str, str]] = {}
        for name, (device, channel) in self._places.items():
            if of.setdefault(device, {}).setdefault(channel.field, name) != name:
                raise SourceError(f"{self.item}: two columns, {of[device][channel.field]} and {name}, are one field")
        tables = []
        for device, fields in of.items():
            table = rows.select([*shared, *fields.values()]).rename_columns([*shared, *fields])
            if self._by_device:
                table = table.append_column(DEVICE, pa.repeat(device, len(rows)))
            tables.append(table)
        order = np.argsort(np.tile(np.arange(len(rows)), len(tables)), kind="stable")  # the rows of the file in turn
        whole = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        return whole.take(order), np.tile(numbers, len(tables))[order]


def _expression(text: str, groups: frozenset[str]) -> str:
    """Refuse what is no regular expression with one of some groups."""
    try:
        if not groups & re.compile(text).groupindex.keys():
            wanted = " or ".join(f"`{group}`" for group in sorted(groups))
            raise ValueError(rf"expected a group {wanted}, such as `(?P<{min(groups)}>\w+)`")
    except re.error as exc:
        raise ValueError(f"not a regular expression: {exc}") from exc
    return text
