"""Binary payloads of fixed layout: numbers at byte offsets, read for all payloads of one length at once."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.columns import Column
from fieldloop.domain.profile import BinaryField, Profile
from fieldloop.domain.readings import Reason, Reject


def read(
    profile: Profile, payloads: Sequence[bytes], ports: Sequence[float | None]
) -> tuple[dict[str, Column], list[Reject]]:
    """Return a column ([N] numbers, NaN where there is none) a field, and what is refused, by place in `payloads`.

    Args:
        profile: gives the fields.
        payloads: [N] the devices' bytes; empty ones have no value and no fault.
        ports: [N] LoRaWAN ports.
    """
    fields = profile.uplink.fields if profile.uplink else ()
    metrics = {channel.field: channel.metric for channel in profile.channels}
    columns = {field.name: np.full(len(payloads), np.nan) for field in fields}
    faults: list[Reject] = []
    for (length, port), places in _groups(payloads, ports).items():
        matrix = np.frombuffer(b"".join(payloads[at] for at in places), dtype=np.uint8).reshape(len(places), length)
        for field in fields:
            end = field.offset + width(field)
            if field.port is not None and field.port != port:
                continue
            if end <= length:
                columns[field.name][places] = _numbers(field, matrix[:, field.offset : end])
            else:
                detail = f"field `{field.name}`: expected at least {end} bytes, got {length}"
                metric = metrics.get(field.name, field.name)
                faults += [Reject(at, metric, Reason.UNDECODABLE, detail) for at in places]
    return {name: column.tolist() for name, column in columns.items()}, faults


def width(field: BinaryField) -> int:
    """Return the bytes of a field."""
    return int("".join(filter(str.isdigit, field.type))) // 8


def _groups(payloads: Sequence[bytes], ports: Sequence[float | None]) -> dict[tuple[int, float | None], list[int]]:
    """Return the places of the payloads by length and port, without the empty ones."""
    groups: dict[tuple[int, float | None], list[int]] = {}
    for at, (payload, port) in enumerate(zip(payloads, ports, strict=True)):
        if payload:
            groups.setdefault((len(payload), port), []).append(at)
    return groups


def _numbers(field: BinaryField, raw: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the numbers ([N] float64) in N rows of a field's bytes."""
    ordered = raw if field.endian == "big" else raw[:, ::-1]
    size = raw.shape[1]
    if field.type.startswith("float"):
        numbers = np.ascontiguousarray(ordered).view(f">f{size}").reshape(-1).astype(np.float64)
    else:
        stored = 4 if size == 3 else size
        wide = np.zeros((len(raw), stored), dtype=np.uint8)
        wide[:, :size] = ordered
        kind = "u" if field.type.startswith("u") else "i"
        whole = wide.view(f">{kind}{stored}").reshape(-1)
        numbers = (whole >> (8 * (stored - size))).astype(np.float64)
    return numbers * field.numerator / field.denominator
