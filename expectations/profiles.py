"""Device profiles: from the YAML that people write to the compiled profile that every machine reads.

A document is read (`read_profile`), its units are resolved by `pint`, and what remains is plain coefficients
(`compile_profile`). Nothing else of the platform knows units, and `pint` is imported only here.
"""

import difflib
import functools
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from expectations.payloads import (
    SENML_UNITS,
    ClockDocument,
    CsvDocument,
    FieldPath,
    Section,
    UplinkDocument,
)
from fieldloop.domain import document
from fieldloop.domain.errors import DocumentError
from fieldloop.domain.payloads import scalar
from fieldloop.domain.profile import (
    ROW_NUMBER,
    Channel,
    Clock,
    Compression,
    CsvLayout,
    GridRule,
    PayloadFormat,
    Profile,
)

if TYPE_CHECKING:
    import pint

FOLDER = Path("expectations", "profiles")
MIN_CADENCE_US = 1_000
MAX_DURATION_US = 366 * 24 * 3600 * 1_000_000

Share = Annotated[float, Field(gt=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]
Metric = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Missing = tuple[float | str, ...]


def _range(value: tuple[float, float]) -> tuple[float, float]:
    """Refuse a range that holds no value; NaN fails too."""
    if not value[0] < value[1]:
        raise ValueError(f"expected [low, high] with low < high, got [{value[0]:g}, {value[1]:g}]")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_range)]


class ChannelDocument(Section):
    """One quantity that the device reports.

    Attributes:
        metric: canonical name, used as a column.
        field: path of the raw value in a record, dots for nesting.
        source_unit: the unit in which the device sends it, as `pint` spells it.
        unit: the canonical unit.
        range: what the device can send, canonical unit; a reading outside goes to quarantine.
        plausible: what a healthy sensor shows, canonical unit; `quality.plausible` says how much may lie outside.
        rule: how several readings within one grid step become one value.
        description: one line for reports and forms.
        missing: raw numbers and texts that say that there is no value, besides those of the whole profile.
        values: raw texts and the number, in the source unit, that each stands for; `true` and `false` stand for
            booleans too.
    """

    metric: Metric
    field: FieldPath
    source_unit: str
    unit: str
    range: Range
    plausible: Range | None = None
    rule: GridRule = "mean"
    description: str = ""
    missing: Missing = ()
    values: dict[str, float] = Field(default_factory=dict)

    @field_validator("source_unit", "unit")
    @classmethod
    def _known(cls, unit: str) -> str:
        _unit(unit)
        return unit

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not _unit(self.source_unit).is_compatible_with(_unit(self.unit)):
            kinds = f"{_unit(self.source_unit).dimensionality} and {_unit(self.unit).dimensionality}"
            raise ValueError(
                f"`{self.metric}`: unit `{self.source_unit}` cannot be converted to `{self.unit}` ({kinds}); "
                "give both as units of one quantity"
            )
        if self.plausible and not (self.range[0] <= self.plausible[0] and self.plausible[1] <= self.range[1]):
            raise ValueError(f"`{self.metric}`: plausible {self.plausible} must lie within range {self.range}")
        return self


class Quality(Section):
    """What validation asks of new data; shares are of one device's rows, and of all rows.

    Attributes:
        completeness: least share of a channel's cells that have a value.
        plausible: least share of a channel's values within its plausible range.
        dead_after: a channel whose value does not change for so long is dead; shorter spans are not judged.
        devices: least share of the devices that must pass; with fewer the whole data set fails.
    """

    completeness: Share = 0.9
    plausible: Share = 0.99
    dead_after: str = "7 d"
    devices: Share = 0.5

    @field_validator("dead_after")
    @classmethod
    def _duration(cls, text: str) -> str:
        duration_us(text)
        return text


class ProfileDocument(Section):
    """A device profile as people write it.

    Attributes:
        name: the file's name without its ending.
        description: one line.
        manufacturer: of the device.
        model: of the device.
        format: how payloads are written.
        compression: what is around each payload.
        device_field: where records name their device, checked against the topic; `bn` in SenML.
        clock: where the event time is; SenML and Sparkplug have their own, and a scalar takes its arrival.
        cadence: regular distance of two records.
        future_tolerance: how far event time may lie after arrival before a record is refused.
        missing: raw numbers and texts by which the device says that there is no value, in any channel.
        ignore: fields that no channel reads and that are no trouble; `a.*` means all else beneath `a`, `*` all else.
        csv: how CSV lines are split.
        uplink: the LoRaWAN payload within the network server's JSON.
        aliases: Sparkplug aliases, where the device sends them in place of names, and the names they stand for.
        channels: the quantities.
        quality: what validation asks of new data.
    """

    name: Name
    description: str
    manufacturer: str = ""
    model: str = ""
    format: PayloadFormat
    compression: Compression = "none"
    device_field: FieldPath | None = None
    clock: ClockDocument | None = None
    cadence: str
    future_tolerance: str = "5 min"
    missing: Missing = ()
    ignore: tuple[FieldPath, ...] = ()
    csv: CsvDocument | None = None
    uplink: UplinkDocument | None = None
    aliases: dict[int, FieldPath] = Field(default_factory=dict)
    channels: Annotated[tuple[ChannelDocument, ...], Field(min_length=1)]
    quality: Quality = Quality()

    @field_validator("cadence")
    @classmethod
    def _cadence(cls, text: str) -> str:
        if duration_us(text) < MIN_CADENCE_US:
            raise ValueError(f"expected a cadence of at least {MIN_CADENCE_US / 1000:g} ms, got {text!r}")
        return text

    @field_validator("future_tolerance")
    @classmethod
    def _tolerance(cls, text: str) -> str:
        duration_us(text)
        return text

    @field_validator("clock")
    @classmethod
    def _durations(cls, clock: ClockDocument | None) -> ClockDocument | None:
        for name in ("unit", "round"):
            text = None if clock is None else getattr(clock, name)
            if text is not None and not duration_us(text):
                raise ValueError(f"`{name}`: expected a duration of at least a microsecond, got {text!r}")
        return clock

    @field_validator("channels")
    @classmethod
    def _distinct(cls, channels: tuple[ChannelDocument, ...]) -> tuple[ChannelDocument, ...]:
        for kind in ("metric", "field"):
            names = [str(getattr(channel, kind)) for channel in channels]
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"each {kind} may be given once; repeated: {', '.join(repeated)}")
        return channels

    @model_validator(mode="after")
    def _format_has_its_parts(self) -> Self:
        own_clock = self.format in _OWN_CLOCK
        if own_clock and self.clock is not None:
            raise ValueError(f"format `{self.format}` takes its times from the payload; leave `clock` out")
        if not own_clock and self.clock is None and self.format != "scalar":
            raise ValueError(f"format `{self.format}` needs a `clock`; one of kind `arrival` for devices without any")
        if (self.format == "lorawan") != (self.uplink is not None):
            raise ValueError("format `lorawan` needs `uplink`, and no other format takes it")
        for section, only in (("csv", "csv"), ("aliases", "sparkplug-b")):
            if getattr(self, section) and self.format != only:
                raise ValueError(f"`{section}` is for format `{only}`, not for `{self.format}`")
        if self.device_field is not None and self.format in ("scalar", "sparkplug-b"):
            raise ValueError(f"format `{self.format}` carries no device name; leave `device_field` out")
        if self.format.startswith("senml") and self.device_field not in (None, "bn"):
            raise ValueError("in SenML the device's name is the base name: `device_field: bn`")
        return self

    @model_validator(mode="after")
    def _fields_are_there(self) -> Self:
        read = [channel.field for channel in self.channels]
        beside = [self.device_field] if self.device_field else []
        if self.clock is not None:
            if self.format == "scalar" and self.clock.kind != "arrival":
                raise ValueError("a scalar has no time of its own; leave `clock` out")
            beside += [self.clock.field] if self.clock.field else list(self.clock.fields or ())
        if self.format == "scalar" and read != [scalar.FIELD]:
            raise ValueError(f"format `scalar` has one channel, its field is `{scalar.FIELD}`")
        if self.csv is not None and self.csv.columns:
            counted = self.clock is not None and self.clock.field == ROW_NUMBER
            _require_known("csv.columns", [*beside, *read], (*self.csv.columns, *([ROW_NUMBER] if counted else [])))
        if self.uplink is not None and self.uplink.fields:
            _require_known("uplink.fields", read, [field.name for field in self.uplink.fields])
        if self.format == "json":
            _require_apart([*beside, *read, *(entry for entry in self.ignore if not entry.endswith("*"))])
        if self.uplink is not None:
            _require_apart([*beside, self.uplink.payload, *([self.uplink.port] if self.uplink.port else [])])
        return self


_OWN_CLOCK = ("senml-json", "senml-cbor", "sparkplug-b")


def _require_known(section: str, fields: Sequence[str], known: Sequence[str]) -> None:
    """Refuse fields that a section does not have."""
    for field in fields:
        if field not in known:
            raise ValueError(
                f"field `{field}` is none of `{section}`: {', '.join(known)}. {_close(field, list(known))}"
            )


def _require_apart(paths: Sequence[str]) -> None:
    """Refuse paths of which one is given twice, or lies beneath another and so would be a value and a branch."""
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise ValueError(f"field `{path}` is read twice; give it to one channel, to the clock or to the device")
        if below := [other for other in paths if other.startswith(f"{path}.")]:
            raise ValueError(f"field `{path}` cannot be a value: `{below[0]}` lies beneath it")


def load_profile(root: Path, name: str) -> Profile:
    """Return the compiled profile `expectations/profiles/<name>.yaml`.

    Args:
        root: the repository.
        name: the profile's name, which is its file's.

    Raises:
        DocumentError: there is no such file, or it does not hold a usable profile.
    """
    return compile_profile(read_profile(root, name))


def load_profile_file(path: Path) -> Profile:
    """Return the compiled profile of a file anywhere, such as one that is still being written.

    Raises:
        DocumentError: it cannot be read, or does not hold a usable profile.
    """
    return compile_profile(_parse(path, str(path)))


def load_profiles(root: Path) -> dict[str, Profile]:
    """Return every profile of the repository by name.

    Raises:
        DocumentError: a file does not hold a usable profile.
    """
    return {name: load_profile(root, name) for name in _files(root)}


def read_profile(root: Path, name: str) -> ProfileDocument:
    """Return a profile as it is written, with its quality section.

    Raises:
        DocumentError: there is no such file, or it does not hold a usable profile.
    """
    files = _files(root)
    if name not in files:
        known = ", ".join(files) or "none"
        raise DocumentError(f"no profile `{name}` in {FOLDER}; there are: {known}. {_close(name, list(files))}".strip())
    source = str(FOLDER / files[name].name)
    parsed = _parse(files[name], source)
    if parsed.name != name:
        raise DocumentError(f"{source}: the profile is named `{parsed.name}`; file and name must be the same")
    return parsed


def compile_profile(parsed: ProfileDocument) -> Profile:
    """Return the profile with its units and durations resolved to plain numbers."""
    return Profile(
        name=parsed.name,
        format=parsed.format,
        device_field=parsed.device_field,
        clock=_compile_clock(parsed),
        cadence_us=duration_us(parsed.cadence),
        future_tolerance_us=duration_us(parsed.future_tolerance),
        channels=tuple(_compile_channel(parsed, channel) for channel in parsed.channels),
        compression=parsed.compression,
        ignore=parsed.ignore,
        csv=parsed.csv.compile() if parsed.csv else CsvLayout(),
        uplink=parsed.uplink.compile() if parsed.uplink else None,
        aliases=tuple(sorted(parsed.aliases.items())),
    )


def duration_us(text: str) -> int:
    """Return a duration such as `10 min` in microseconds.

    Raises:
        ValueError: it is not a number with a unit of time, is negative, or longer than a year.
    """
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-zµ]+)", text.strip())
    unit = _unit(parts[2]) if parts else None
    if parts is None or unit is None or not unit.is_compatible_with("second"):
        raise ValueError(f"expected a duration such as `10 min`, `30 s` or `1 h`, got {text!r}")
    microseconds = int(_registry().convert(Decimal(parts[1]), parts[2], "microsecond"))
    if microseconds > MAX_DURATION_US:
        raise ValueError(f"expected a duration of at most a year, got {text!r}")
    return microseconds


def _compile_clock(parsed: ProfileDocument) -> Clock:
    """Return the clock that is written, or the one that the format has."""
    if parsed.clock is not None:
        unit_us = duration_us(parsed.clock.unit or parsed.cadence)
        return parsed.clock.compile(unit_us, duration_us(parsed.clock.round) if parsed.clock.round else 0)
    return Clock("", "payload" if parsed.format in _OWN_CLOCK else "arrival")


def _compile_channel(parsed: ProfileDocument, channel: ChannelDocument) -> Channel:
    """Resolve one channel's units."""
    scale, offset = coefficients(channel.source_unit, channel.unit)
    return Channel(
        metric=channel.metric,
        field=channel.field,
        unit=channel.unit,
        scale=scale,
        offset=offset,
        minimum=channel.range[0],
        maximum=channel.range[1],
        rule=channel.rule,
        description=channel.description,
        missing=tuple(dict.fromkeys((*parsed.missing, *channel.missing))),
        texts=tuple(channel.values.items()),
        declared=_declared(channel.unit) if parsed.format.startswith("senml") else (),
    )


@functools.cache
def _declared(unit: str) -> tuple[tuple[str, float, float], ...]:
    """Return the SenML units of a quantity with their coefficients; an angle is not a share."""
    quantity = (1 * _unit(unit)).to_root_units().units
    return tuple(
        (name, *coefficients(source, unit))
        for name, source in SENML_UNITS.items()
        if (1 * _unit(source)).to_root_units().units == quantity
    )


def coefficients(source: str, target: str) -> tuple[float, float]:
    """Return scale and offset of a conversion; two points suffice, for every unit of `_unit` is linear."""
    zero, one = (_registry().convert(Decimal(point), source, target) for point in (0, 1))
    return float(one - zero), float(zero)


def compatible(one: str, other: str) -> bool:
    """Say whether two units measure the same quantity, and an angle is not taken for a share."""
    mine, theirs = ((1 * _unit(unit)).to_root_units().units for unit in (one, other))
    return bool(mine == theirs)


def _unit(name: str) -> "pint.Unit":
    """Return a unit by name; refuse one that is unknown, scaled, or logarithmic and so without scale and offset."""
    import pint

    try:
        unit: pint.Unit = _registry().Unit(name)
    except (pint.PintError, AssertionError, TypeError, AttributeError, SyntaxError, ValueError) as exc:
        proposal = _close(name, _unit_names()) or "expected a name that `pint` knows, such as `m/s`, `degC` or `kW`"
        raise ValueError(f"unknown unit `{name}`; {proposal}") from exc
    if not name.strip() or re.search(r"bel|neper", str(unit)):
        raise ValueError(f"expected a linear unit, such as `m/s` or `degC`, got `{name}`")
    return unit


def _unit_names() -> list[str]:
    """Return the names of the registry's units, which it offers as attributes beside its own."""
    return sorted(set(dir(_registry())) - set(dir(type(_registry()))))


@functools.cache
def _registry() -> "pint.UnitRegistry[Decimal]":
    """Return the unit registry; decimal, so that coefficients are the nearest float of the exact number."""
    import pint

    return pint.UnitRegistry(non_int_type=Decimal, autoconvert_offset_to_baseunit=False, cache_folder=None)


def _parse(path: Path, source: str) -> ProfileDocument:
    """Return the document in a file."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise DocumentError(f"{source}: expected a profile in YAML: {exc}") from exc
    return document.load(ProfileDocument, text, source)


def _files(root: Path) -> dict[str, Path]:
    """Return the profile files by name, in order."""
    return {path.stem: path for path in sorted((root / FOLDER).glob("*.yaml"))}


def _close(name: str, known: list[str]) -> str:
    """Return a proposal, or nothing."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else ""
