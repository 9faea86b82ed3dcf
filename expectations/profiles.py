"""Device profiles: from the YAML that people write to the compiled profile that every machine reads.

A document is read (`read_profile`), its units are resolved by `pint`, and what remains is plain coefficients
(`compile_profile`). Nothing else of the platform knows units, and `pint` is imported only here.
"""

import difflib
import functools
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from fieldloop.domain import document
from fieldloop.domain.errors import DocumentError
from fieldloop.domain.profile import Channel, Clock, GridRule, Profile

if TYPE_CHECKING:
    import pint

FOLDER = Path("expectations", "profiles")
MIN_CADENCE_US = 1_000
MAX_DURATION_US = 366 * 24 * 3600 * 1_000_000

Share = Annotated[float, Field(gt=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]
Metric = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
FieldPath = Annotated[str, Field(min_length=1, max_length=200)]


class _Section(BaseModel):
    """A part of the document: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _range(value: tuple[float, float]) -> tuple[float, float]:
    """Refuse a range that holds no value; NaN fails too."""
    if not value[0] < value[1]:
        raise ValueError(f"expected [low, high] with low < high, got [{value[0]:g}, {value[1]:g}]")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_range)]


class ChannelDocument(_Section):
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
    """

    metric: Metric
    field: FieldPath
    source_unit: str
    unit: str
    range: Range
    plausible: Range | None = None
    rule: GridRule = "mean"
    description: str = ""

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


class ClockDocument(_Section):
    """Where a record's event time is, and how it is written."""

    field: FieldPath
    kind: Literal["iso", "epoch_s", "epoch_ms", "epoch_us"]


class Quality(_Section):
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


class ProfileDocument(_Section):
    """A device profile as people write it."""

    name: Name
    description: str
    manufacturer: str = ""
    model: str = ""
    format: Literal["json"]
    device_field: FieldPath | None = None
    clock: ClockDocument
    cadence: str
    future_tolerance: str = "5 min"
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

    @field_validator("channels")
    @classmethod
    def _distinct(cls, channels: tuple[ChannelDocument, ...]) -> tuple[ChannelDocument, ...]:
        for kind in ("metric", "field"):
            names = [str(getattr(channel, kind)) for channel in channels]
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"each {kind} may be given once; repeated: {', '.join(repeated)}")
        return channels


def load_profile(root: Path, name: str) -> Profile:
    """Return the compiled profile `expectations/profiles/<name>.yaml`.

    Args:
        root: the repository.
        name: the profile's name, which is its file's.

    Raises:
        DocumentError: there is no such file, or it does not hold a usable profile.
    """
    return compile_profile(read_profile(root, name))


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
    parsed = document.load(ProfileDocument, files[name].read_text(), source)
    if parsed.name != name:
        raise DocumentError(f"{source}: the profile is named `{parsed.name}`; file and name must be the same")
    return parsed


def compile_profile(parsed: ProfileDocument) -> Profile:
    """Return the profile with its units and durations resolved to plain numbers."""
    return Profile(
        name=parsed.name,
        format=parsed.format,
        device_field=parsed.device_field,
        clock=Clock(field=parsed.clock.field, kind=parsed.clock.kind),
        cadence_us=duration_us(parsed.cadence),
        future_tolerance_us=duration_us(parsed.future_tolerance),
        channels=tuple(_compile_channel(channel) for channel in parsed.channels),
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


def _compile_channel(channel: ChannelDocument) -> Channel:
    """Resolve one channel's units."""
    scale, offset = _coefficients(channel.source_unit, channel.unit)
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
    )


def _coefficients(source: str, target: str) -> tuple[float, float]:
    """Return scale and offset of a conversion; two points suffice, for every unit of `_unit` is linear."""
    zero, one = (_registry().convert(Decimal(point), source, target) for point in (0, 1))
    return float(one - zero), float(zero)


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


def _files(root: Path) -> dict[str, Path]:
    """Return the profile files by name, in order."""
    return {path.stem: path for path in sorted((root / FOLDER).glob("*.yaml"))}


def _close(name: str, known: list[str]) -> str:
    """Return a proposal, or nothing."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else ""
