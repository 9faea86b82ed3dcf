"""Thrift's compact protocol, as far as Parquet's metadata uses it: any struct to plain values, and back byte for byte.

Protocol: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

Struct: TypeAlias = "dict[int, tuple[int, Any]]"  # field number to type and value, in order

TRUE, FALSE, I32, I64, BINARY, LIST, STRUCT = 1, 2, 5, 6, 8, 9, 12
_BYTE: Final = 3
_INTEGERS: Final = (4, I32, I64)
_DOUBLE: Final = 7
_LONG_LIST: Final = 15  # elements from which a list's header gives their number apart


@dataclass
class Reader:
    """Bytes, and how far they were read."""

    data: bytes
    position: int = 0

    def struct(self) -> Struct:
        """Read a struct."""
        fields: Struct = {}
        number = 0
        while header := self._byte():
            kind = header & 0x0F
            number = number + (header >> 4) if header >> 4 else self._integer()
            fields[number] = (kind, self._value(kind))
        return fields

    def _value(self, kind: int) -> Any:
        """Read a value of a type; elements of lists write booleans as a byte, which Parquet has none of."""
        if kind in (TRUE, FALSE):
            return kind == TRUE
        if kind == _BYTE:
            return self._byte()
        if kind in _INTEGERS:
            return self._integer()
        if kind == _DOUBLE:
            return self._bytes(8)
        if kind == BINARY:
            return self._bytes(self._varint())
        if kind == LIST:
            header = self._byte()
            count = self._varint() if header >> 4 == _LONG_LIST else header >> 4
            return header & 0x0F, [self._value(header & 0x0F) for _ in range(count)]
        if kind == STRUCT:
            return self.struct()
        raise ValueError(f"expected a type of Parquet's metadata, got {kind} at byte {self.position}")

    def _byte(self) -> int:
        self.position += 1
        return self.data[self.position - 1]

    def _bytes(self, count: int) -> bytes:
        self.position += count
        return self.data[self.position - count : self.position]

    def _varint(self) -> int:
        result = shift = 0
        while True:
            byte = self._byte()
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result
            shift += 7

    def _integer(self) -> int:
        zigzag = self._varint()
        return (zigzag >> 1) ^ -(zigzag & 1)


def varint(number: int) -> bytes:
    """Write an unsigned number, seven bits a byte, the lowest first."""
    written = bytearray()
    while number >= 0x80:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


def write(fields: Struct) -> bytes:
    """Write a struct."""
    written = bytearray()
    last = 0
    for number, (kind, value) in fields.items():
        given = (TRUE if value else FALSE) if kind in (TRUE, FALSE) else kind
        step = number - last
        written += bytes([step << 4 | given]) if 0 < step < 16 else bytes([given]) + _integer(number)
        written += b"" if kind in (TRUE, FALSE) else _value(kind, value)
        last = number
    return bytes(written) + b"\0"


def _value(kind: int, value: Any) -> bytes:
    """Write a value of a type."""
    if kind == _BYTE:
        return bytes([value])
    if kind in _INTEGERS:
        return _integer(value)
    if kind == _DOUBLE:
        return bytes(value)
    if kind == BINARY:
        return varint(len(value)) + bytes(value)
    if kind == STRUCT:
        return write(value)
    element, values = value
    count = len(values)
    header = bytes([count << 4 | element]) if count < _LONG_LIST else bytes([0xF0 | element]) + varint(count)
    return header + b"".join(_value(element, one) for one in values)


def _integer(number: int) -> bytes:
    return varint((number << 1) ^ (number >> 63))
