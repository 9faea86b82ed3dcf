"""The message of predictions: what goes in comes out, and what is none is refused."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fieldloop.domain.errors import PayloadError
from fieldloop.domain.predictions import Predictions, message_id, pack, unpack

ROWS = st.integers(0, 20)


@given(st.data(), ROWS)
def test_columns_survive_bit_for_bit(data: st.DataObject, rows: int) -> None:
    """Every value of each type comes back with its bits."""
    ends = data.draw(hnp.arrays(np.int64, rows))
    values = data.draw(hnp.arrays(np.float32, rows))
    hashes = data.draw(hnp.arrays(np.uint64, rows))
    message = unpack(pack("gw", "r", [("d", rows), ("e", 0)], ends, values, hashes))
    assert message.owners() == ["d"] * rows
    for before, after in zip((ends, values, hashes), message.columns(), strict=True):
        assert before.tobytes() == after.tobytes()
        assert before.dtype == after.dtype


def test_the_same_rows_have_the_same_id() -> None:
    """By it the broker drops what a restarted agent sends again."""
    ends, values, hashes = np.arange(3), np.ones(3, np.float32), np.arange(3, dtype=np.uint64)
    first, second = (pack("gw", "r", [("d", 1), ("e", 2)], ends, values, hashes) for _ in range(2))
    assert message_id(first) == message_id(second)
    assert message_id(first) != message_id(pack("gw", "other", [("d", 1), ("e", 2)], ends, values, hashes))
    assert message_id(first) != message_id(pack("gw", "r", [("d", 2), ("e", 1)], ends, values, hashes))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"nonsense",
        msgspec.msgpack.encode({"target": "gw"}),
        msgspec.msgpack.encode(Predictions("gw", "r", (("d", 1),), b"123", b"", b"")),
        msgspec.msgpack.encode(Predictions("gw", "r", (("d", 1),), bytes(8), bytes(8), bytes(8))),
        msgspec.msgpack.encode(Predictions("gw", "r", (("d", 2),), bytes(8), bytes(4), bytes(8))),
        msgspec.msgpack.encode(Predictions("gw", "r", (("d", 2), ("e", -1)), bytes(8), bytes(4), bytes(8))),
    ],
)
def test_what_is_no_message_is_refused(payload: bytes) -> None:
    """Not msgpack, a missing column, half a value, columns of different lengths, or devices with other rows."""
    with pytest.raises(PayloadError):
        unpack(payload)
