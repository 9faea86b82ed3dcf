"""The compiled device profile: what a device model promises, as plain coefficients and field paths.

It is compiled once from YAML (`expectations.profiles`) and travels inside every release, so that the gateway decodes
exactly as the platform does and needs neither YAML nor a unit library.
"""

from typing import Literal

import msgspec

PayloadFormat = Literal["json", "csv", "scalar", "senml-json", "senml-cbor", "sparkplug-b", "lorawan"]
Compression = Literal["none", "gzip", "zstd"]
ClockKind = Literal[
    "iso", "epoch_s", "epoch_ms", "epoch_us", "epoch_ns", "parts", "strptime", "elapsed", "arrival", "payload"
]  # fmt: skip
GridRule = Literal["last", "mean", "min", "max", "sum", "count"]
ROW_NUMBER = "row_number"  # field of a clock that counts rows: what reads files adds it
BinaryType = Literal[
    "uint8", "int8", "uint16", "int16", "uint24", "int24", "uint32", "int32", "uint64", "int64", "float32", "float64"
]


class Channel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One quantity that a device reports.

    Attributes:
        metric: canonical name, for instance `wind_speed`.
        field: where the raw value is: a path in JSON (dots for nesting), a column of CSV, a name elsewhere.
        unit: canonical unit, for people.
        scale: canonical value = raw value * scale + offset.
        offset: see `scale`, in the canonical unit.
        minimum: smallest value the device can send, canonical unit; below it a reading goes to quarantine.
        maximum: largest value the device can send, canonical unit.
        rule: how several readings within one grid step become one value.
        description: one line for reports and forms.
        missing: raw numbers and texts by which the device says that there is no value.
        texts: raw texts and the raw number that each stands for; `true` and `false` stand for booleans too.
        declared: units that a payload may name itself (SenML), each with scale and offset to the canonical unit.
    """

    metric: str
    field: str
    unit: str
    scale: float
    offset: float
    minimum: float
    maximum: float
    rule: GridRule
    description: str = ""
    missing: tuple[float | str, ...] = ()
    texts: tuple[tuple[str, float], ...] = ()
    declared: tuple[tuple[str, float, float], ...] = ()


class Zone(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A time zone as plain numbers, so that reading its local times needs no zone database.

    Attributes:
        name: its IANA name, for people.
        changes_s: [K] UTC seconds at which the offset changes, increasing.
        offsets_s: [K + 1] seconds that local time is ahead of UTC before, between and after the changes.
    """

    name: str
    changes_s: tuple[int, ...]
    offsets_s: tuple[int, ...]


class Clock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a record's event time is and how it is written.

    Attributes:
        field: where the time is, as in `Channel.field`; empty for `parts`, `arrival` and `payload`.
        kind: `parts`: split over several fields; `strptime`: text by a pattern; `elapsed`: counted from a start;
            `arrival`: the device has no clock, the broker's stamp is taken; `payload`: the format has times of its own.
        parts: fields of year, month, day and, where the device sends them, hour, minute, second; or the fields that a
            pattern reads one after the other, a blank between them.
        zone: of local times, that is `parts`, and `iso` and `strptime` without an offset; None where there are none.
        pattern: of `strptime`.
        start_us: where an `elapsed` clock counts from, UTC microseconds.
        unit_us: what it counts, microseconds.
        round_us: times become the nearest multiple of it, microseconds; 0 leaves them as they are.
    """

    field: str
    kind: ClockKind
    parts: tuple[str, ...] = ()
    zone: Zone | None = None
    pattern: str = ""
    start_us: int = 0
    unit_us: int = 0
    round_us: int = 0


class CsvLayout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How lines of text are split.

    Attributes:
        columns: their names in order; empty where each message begins with a line that names them.
        delimiter: one character; a blank stands for any number of blanks and tabs.
        decimal: sign between a number's whole and its fraction.
        strip: a regular expression; what it finds is taken out of every cell.
    """

    columns: tuple[str, ...] = ()
    delimiter: str = ","
    decimal: Literal[".", ","] = "."
    strip: str = ""


class BinaryField(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number at a fixed place of a binary payload: raw integer or float * numerator / denominator.

    Attributes:
        name: what a channel's `field` calls it.
        offset: bytes before it.
        type: how it is stored.
        endian: byte order.
        numerator: see above; two whole numbers, so that 235 * 0.1 is 23.5 to the bit.
        denominator: see above.
        port: the LoRaWAN port on which it comes; None for any.
    """

    name: str
    offset: int
    type: BinaryType
    endian: Literal["big", "little"] = "big"
    numerator: int = 1
    denominator: int = 1
    port: int | None = None


class Uplink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a LoRaWAN network server puts a device's bytes, and what they mean.

    Attributes:
        payload: path of the bytes in the server's JSON.
        encoding: how the bytes are written there.
        port: path of the LoRaWAN port; None where no field asks for one.
        codec: Cayenne LPP, or `fields`.
        fields: of codec `fields`.
    """

    payload: str
    encoding: Literal["base64", "hex"]
    port: str | None
    codec: Literal["cayenne-lpp", "fields"]
    fields: tuple[BinaryField, ...] = ()


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a device model promises.

    Attributes:
        name: the profile's name, for instance `senvion-mm82`.
        format: payload format, see `fieldloop.domain.payloads.formats`.
        device_field: path of the record's own device name, checked against the topic; None where records carry none.
        clock: the record's event time.
        cadence_us: regular distance of two records, microseconds.
        future_tolerance_us: how far event time may lie after arrival before a record is refused, microseconds.
        channels: the quantities, in the order of their codes in `Readings.metric`.
        compression: what is around each payload.
        ignore: fields that no channel reads and that are no trouble; `a.*` means all else beneath `a`, `*` all else.
        csv: how CSV lines are split.
        uplink: the LoRaWAN payload within the network server's JSON.
        aliases: Sparkplug aliases and the metric names that they stand for.
    """

    name: str
    format: PayloadFormat
    device_field: str | None
    clock: Clock
    cadence_us: int
    future_tolerance_us: int
    channels: tuple[Channel, ...]
    compression: Compression = "none"
    ignore: tuple[str, ...] = ()
    csv: CsvLayout = CsvLayout()
    uplink: Uplink | None = None
    aliases: tuple[tuple[int, str], ...] = ()

    def metrics(self) -> tuple[str, ...]:
        """Return the canonical metric names, in the order of their codes."""
        return tuple(channel.metric for channel in self.channels)

    def ignores(self, field: str) -> bool:
        """Say whether a field that no channel reads is to be passed over in silence."""
        return any(
            field == entry or (entry.endswith("*") and field.startswith(entry.removesuffix("*")))
            for entry in self.ignore
        )
