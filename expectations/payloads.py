"""The parts of a profile's document that say how payloads are written, and what they compile to."""

import re
from fractions import Fraction
from typing import Annotated, Final, Literal, Self

import msgspec
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

from expectations.zones import compile_zone
from fieldloop.domain import pattern
from fieldloop.domain.payloads.binary import width
from fieldloop.domain.payloads.csv import BLANKS
from fieldloop.domain.profile import BinaryField, BinaryType, Clock, CsvLayout, Uplink
from fieldloop.domain.recipe.part import to_us

FieldPath = Annotated[str, Field(min_length=1, max_length=200)]

MAX_PAYLOAD_BYTES: Final = 255  # of LoRaWAN
_EXACT: Final = 1 << 53  # whole numbers below it are exact as floats

# Linear units of SenML (RFC 8428, section 12.1, and RFC 8798) and the names that `pint` has for them.
SENML_UNITS: Final = {
    "m": "m", "kg": "kg", "g": "g", "s": "s", "A": "A", "K": "kelvin", "cd": "cd", "mol": "mol", "Hz": "Hz",
    "rad": "rad", "sr": "sr", "N": "N", "Pa": "Pa", "J": "J", "W": "W", "C": "coulomb", "V": "V", "F": "farad",
    "Ohm": "ohm", "S": "siemens", "Wb": "weber", "T": "tesla", "H": "henry", "Cel": "degC", "lm": "lm", "lx": "lx",
    "Bq": "Bq", "Gy": "Gy", "Sv": "Sv", "kat": "kat", "m2": "m**2", "m3": "m**3", "l": "liter", "m/s": "m/s",
    "m/s2": "m/s**2", "m3/s": "m**3/s", "l/s": "liter/s", "W/m2": "W/m**2", "cd/m2": "cd/m**2", "bit": "bit",
    "bit/s": "bit/s", "lat": "deg", "lon": "deg", "/": "dimensionless", "%": "percent", "%RH": "percent",
    "%EL": "percent", "1/s": "1/s", "1/min": "1/minute", "S/m": "siemens/m", "B": "byte", "VA": "V*A", "J/m": "J/m",
    "kg/m3": "kg/m**3", "deg": "deg", "N/m2": "N/m**2", "Ah": "A*hour", "Wh": "W*hour", "kWh": "kW*hour", "ms": "ms",
    "min": "minute", "h": "hour", "MHz": "MHz", "kW": "kW", "kVA": "kV*A", "mm": "mm", "cm": "cm", "km": "km",
    "km/h": "km/hour", "hPa": "hPa", "mV": "mV", "mA": "mA", "mg/l": "mg/liter", "ug/l": "ug/liter", "g/l": "g/liter",
    "ug/m3": "ug/m**3", "mg/m3": "mg/m**3", "ppm": "ppm", "mm/h": "mm/hour", "m/h": "m/hour", "J/kg": "J/kg",
}  # fmt: skip


class Section(BaseModel):
    """A part of the document: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClockDocument(Section):
    """Where a record's event time is, and how it is written.

    Attributes:
        kind: `iso` text, seconds to nanoseconds since 1970, `parts` over several fields, text by a pattern of
            `strptime`, what has `elapsed` since a start, or `arrival` where the device has no clock.
        field: where the time is. Of `elapsed`, `row_number` is the row's own in its file, from 1, where that has no
            column of this name.
        fields: of `parts`: year, month, day and, where there are any, hour, minute, second; of `strptime`: those that
            are read one after the other, a blank between them, such as a date and a time of day.
        zone: IANA name, such as `Europe/Paris`, of local times without an offset; `parts` need it.
        pattern: of `strptime`, such as `%d/%m/%Y %H:%M:%S`.
        start: of `elapsed`: the moment at which it counted 0; for cycles and rows any will do.
        unit: of `elapsed`: what it counts, such as `1 s` or `1 ms`; left out, it counts records, one a cadence.
        round: where a device's times tremble about its cadence (:59, :00, :01), what they are rounded to, such as
            `1 min`: else two records share a grid step, and the next has none.
    """

    kind: Literal[
        "iso", "epoch_s", "epoch_ms", "epoch_us", "epoch_ns", "parts", "strptime", "elapsed", "arrival"
    ]  # fmt: skip
    field: FieldPath | None = None
    fields: Annotated[tuple[FieldPath, ...], Field(min_length=2, max_length=6)] | None = None
    zone: str | None = None
    pattern: Annotated[str, Field(max_length=64)] | None = None
    start: AwareDatetime | None = None
    unit: str | None = None
    round: str | None = None

    @field_validator("pattern")
    @classmethod
    def _of_strptime(cls, text: str | None) -> str | None:
        if text is not None:
            pattern.check(text)
        return text

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str | None) -> str | None:
        if zone is not None:
            compile_zone(zone)
        return zone

    @model_validator(mode="after")
    def _fits(self) -> Self:
        wanted = {"parts": "fields", "arrival": ""}.get(self.kind, "field")
        if self.kind == "strptime" and self.field is None:
            wanted = "fields"
        for name in ("field", "fields"):
            if (getattr(self, name) is not None) != (name == wanted):
                verb = "needs" if name == wanted else "takes no"
                raise ValueError(f"a clock of kind `{self.kind}` {verb} `{name}`")
        if self.kind == "parts" and len(self.fields or ()) < 3:
            raise ValueError("a clock of kind `parts` needs at least year, month and day")
        local = self.kind == "parts" or (self.kind == "strptime" and "%z" not in (self.pattern or ""))
        if local and self.zone is None:
            raise ValueError(f"a clock of kind `{self.kind}` needs a `zone`, such as `Asia/Shanghai` or `UTC`")
        if self.zone is not None and self.kind not in ("iso", "parts", "strptime"):
            raise ValueError(f"a clock of kind `{self.kind}` is UTC and takes no `zone`")
        if (self.pattern is not None) != (self.kind == "strptime"):
            raise ValueError(
                "a clock of kind `strptime` needs a `pattern`, such as `%d/%m/%Y %H:%M`; no other takes one"
            )
        if (self.start is not None) != (self.kind == "elapsed"):
            raise ValueError(
                "a clock of kind `elapsed` needs a `start`, such as 2020-01-01T00:00:00Z; no other takes one"
            )
        if self.unit is not None and self.kind != "elapsed":
            raise ValueError(f"a clock of kind `{self.kind}` takes no `unit`")
        return self

    def compile(self, unit_us: int, round_us: int) -> Clock:
        """Return the clock with its zone as plain numbers, and its durations in microseconds."""
        zone = None if self.zone is None else compile_zone(self.zone)
        clock = Clock(self.field or "", self.kind, self.fields or (), zone, self.pattern or "", round_us=round_us)
        if self.start is None:
            return clock
        return msgspec.structs.replace(clock, start_us=to_us(self.start), unit_us=unit_us)


class CsvDocument(Section):
    r"""How CSV lines are split.

    Attributes:
        columns: names in order; left out where each message begins with a line of names, in which a column without a
            name is `column_` and its place from 1.
        delimiter: one character, or `blanks`: any number of blanks and tabs.
        decimal: sign between a number's whole and its fraction.
        strip: a regular expression; what it finds is taken out of every cell: `%$` of `45%`, `^\d+:` of `12:0.5`, `;$`
            of a line that ends so.
    """

    columns: tuple[FieldPath, ...] = ()
    delimiter: str = ","
    decimal: Literal[".", ","] = "."
    strip: Annotated[str, Field(max_length=200)] = ""

    @field_validator("strip")
    @classmethod
    def _expression(cls, strip: str) -> str:
        try:
            found = re.compile(strip).search("")
        except re.error as exc:
            raise ValueError(f"not a regular expression: {exc}") from exc
        if strip and found is not None:
            raise ValueError(f"`{strip}` finds nothing everywhere; expected something such as `%$`")
        return strip

    @field_validator("delimiter")
    @classmethod
    def _usable(cls, delimiter: str) -> str:
        if delimiter != "blanks" and not re.fullmatch(r'[^\s"\\]|\t', delimiter):
            raise ValueError(f'expected one character, such as `;` or "\\t", or `blanks`, got {delimiter!r}')
        return delimiter

    @field_validator("columns")
    @classmethod
    def _distinct(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if repeated := sorted({name for name in columns if columns.count(name) > 1}):
            raise ValueError(f"each column may be given once; repeated: {', '.join(repeated)}")
        return columns

    def compile(self) -> CsvLayout:
        """Return the layout as the decoder takes it."""
        delimiter = BLANKS if self.delimiter == "blanks" else self.delimiter
        return CsvLayout(self.columns, delimiter, self.decimal, self.strip)

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.delimiter == self.decimal:
            raise ValueError("a decimal comma needs another `delimiter`, such as `;`")
        return self


class BinaryFieldDocument(Section):
    """A number at a fixed place of a binary payload.

    Attributes:
        name: what a channel's `field` calls it.
        offset: bytes before it.
        type: how it is stored.
        endian: byte order.
        scale: the stored number times it is the value.
        port: the LoRaWAN port on which it comes; left out where it comes on any.
    """

    name: FieldPath
    offset: Annotated[int, Field(ge=0, lt=MAX_PAYLOAD_BYTES)]
    type: BinaryType
    endian: Literal["big", "little"] = "big"
    scale: float = 1.0
    port: Annotated[int, Field(ge=0, le=255)] | None = None

    @field_validator("scale")
    @classmethod
    def _exact(cls, scale: float) -> float:
        parts = _fraction(scale)
        if not parts or max(abs(parts.numerator), parts.denominator) >= _EXACT:
            raise ValueError(f"expected a scale such as 0.1 or 2.5, got {scale:g}")
        return scale

    def compile(self) -> BinaryField:
        """Return the field as the decoder takes it."""
        parts = _fraction(self.scale) or Fraction(1)
        return BinaryField(
            self.name, self.offset, self.type, self.endian, parts.numerator, parts.denominator, self.port
        )


class UplinkDocument(Section):
    """Where a LoRaWAN network server puts the device's bytes, and what they mean.

    Attributes:
        payload: path of the bytes: `data` for ChirpStack, `uplink_message.frm_payload` for The Things Stack.
        encoding: how they are written there.
        port: path of the LoRaWAN port: `fPort`, `uplink_message.f_port`.
        codec: Cayenne LPP, or `fields` at fixed places.
        fields: of codec `fields`.
    """

    payload: FieldPath
    encoding: Literal["base64", "hex"] = "base64"
    port: FieldPath | None = None
    codec: Literal["cayenne-lpp", "fields"]
    fields: tuple[BinaryFieldDocument, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if bool(self.fields) != (self.codec == "fields"):
            raise ValueError("codec `fields` needs `fields`, and no other codec takes them")
        if self.port is None and any(field.port is not None for field in self.fields):
            raise ValueError("fields with a `port` need the path of the port: `port: fPort`")
        names = [field.name for field in self.fields]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"each field's name may be given once; repeated: {', '.join(repeated)}")
        for field in self.fields:
            if field.offset + width(field.compile()) > MAX_PAYLOAD_BYTES:
                raise ValueError(f"field `{field.name}` ends after byte {MAX_PAYLOAD_BYTES}, the longest payload")
        return self

    def compile(self) -> Uplink:
        """Return the uplink as the decoder takes it."""
        fields = tuple(field.compile() for field in self.fields)
        return Uplink(self.payload, self.encoding, self.port, self.codec, fields)


def _fraction(scale: float) -> Fraction | None:
    """Return a scale as the fraction that a person meant; None for infinities, NaN and zero."""
    try:
        return Fraction(repr(scale)) or None
    except ValueError:
        return None
