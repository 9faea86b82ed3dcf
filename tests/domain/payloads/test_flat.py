"""JSON read as columns of bytes gives, bit for bit, what reading it message by message gives."""

import json
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fieldloop.domain.payloads import flat
from fieldloop.domain.payloads import json as json_payloads
from fieldloop.domain.payloads.flat import learn, read
from fieldloop.domain.payloads.records import Records
from tests.domain.payloads.samples import NOON_US, messages, profile

PROFILE = profile()
FIELDS = frozenset({"t", "temp", "hum"})
T = NOON_US // 1_000_000
AWKWARD = ["0", "-0", "-0.0", "00", "01", "1.", ".5", "+1", "-", "1e3", "1E-2", "1.2.3", "1-2", "--1", "null", '"7"',
           "true", "NaN", "0x1", "1_0", "1 ", "9007199254740993", "999999999999999", "123456789012345678901",
           "0.1234567", "0.12345678", "99999999.9999999", "12345678.5", "-1234567.25", "1٣"]  # fmt: skip

numbers = (
    st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.decimals(-(10**9), 10**9, allow_nan=False, places=3).map(str)
    | st.integers(-(10**18), 10**18).map(str)
    | st.integers(0, 300).map(lambda number: f"{number / 10}")
    | st.sampled_from(AWKWARD)
)
times = st.integers(T - 10**6, T).map(str) | numbers
layouts = st.sampled_from(
    [
        ('{"t": ', ', "temp": ', ', "hum": ', "}"),
        ('{"hum":', ',"t":', ',"temp":', "}"),
        (' {\n "temp" : ', ' ,\t"hum":', ',"t": ', " }\r\n"),
        ('{"t": ', ', "temp": ', ', "other": ', "}"),
        ('{"t": ', ', "t": ', ', "hum": ', "}"),
        ('{"t": ', ', "temp": ', ', "a:b": ', "}"),
    ]
)


@st.composite
def payloads(draw: st.DrawFn) -> list[bytes]:
    """Messages of one or two layouts, single and in arrays, some of them bent in one place."""
    texts = []
    for layout in draw(st.lists(layouts, min_size=1, max_size=2)):
        for _ in range(draw(st.integers(1, 6))):
            rows = draw(st.lists(st.tuples(times, numbers, numbers), min_size=1, max_size=3))
            records = [layout[0] + layout[1].join(row[:2]) + layout[2] + row[2] + layout[3] for row in rows]
            texts.append(f"[{', '.join(records)}]" if len(rows) > 1 or draw(st.booleans()) else records[0])
    return [bend(draw, text.encode()) if draw(st.integers(0, 5)) == 0 else text.encode() for text in texts]


def bend(draw: st.DrawFn, text: bytes) -> bytes:
    """Put something else in place of a few bytes."""
    begin = draw(st.integers(0, len(text)))
    other = draw(st.sampled_from([b"", b" ", b":", b"0", b".", b",", b"}", b"{", b"[", b'"', b"\xff", b"\x00", text]))
    return text[:begin] + other + text[begin + draw(st.integers(0, 3)) :]


def same(one: Records, other: Records) -> None:
    assert one.message.tolist() == other.message.tolist()
    assert one.event_us.tolist() == other.event_us.tolist()
    assert one.values.view(np.int64).tolist() == other.values.view(np.int64).tolist()
    assert sorted(map(repr, one.rejects)) == sorted(map(repr, other.rejects))


@given(payloads())
@example([b'{"t": 1, "temp": 2.5, "hum": 3}', b'{"t": 1, "temp": 2.5, "hum": -0}', b""])
@example([f'{{"t": {T}, "temp": {text}, "hum": 5}}'.encode() for text in AWKWARD])
@example([f'[{{"t": 1, "temp": 2}}, {{"t": {text}, "temp": 5}}]'.encode() for text in ("3", *AWKWARD)])
def test_columns_of_bytes_give_the_very_bits_of_the_general_way(sent: list[bytes]) -> None:
    """Whatever is sent, whatever numbers are in it, however it is broken: values, times and refusals are the same."""
    batch = messages(*sent)
    with mock.patch.object(flat, "FEWEST", 1):
        same(json_payloads.decode(PROFILE, batch), json_payloads.decode_each(PROFILE, batch))


@st.composite
def alike(draw: st.DrawFn) -> list[bytes]:
    """Messages whose numbers have all the same width and point, but for one number or message that may be bent."""
    whole, places = draw(st.integers(1, 13)), draw(st.integers(0, 7))
    signs = draw(st.sampled_from([("",), ("-",), ("", "-")]))
    count, each = draw(st.integers(2, 8)), draw(st.integers(1, 3))
    digits = st.integers(10 ** (whole - 1), 10**whole - 1) | st.just(10 ** (whole - 1))
    fraction = st.integers(0, 10**places - 1)
    texts = []
    for _ in range(count * each):
        behind = f".{draw(fraction):0{places}}" if places else ""
        texts.append(f"{draw(st.sampled_from(signs))}{draw(digits)}{behind}")
    if draw(st.booleans()):
        texts[draw(st.integers(0, len(texts) - 1))] = draw(numbers)
    records = [f'{{"t": {T}, "temp": {text}}}' for text in texts]
    sent = [f"[{', '.join(records[begin : begin + each])}]".encode() for begin in range(0, len(records), each)]
    if draw(st.booleans()):
        place = draw(st.integers(0, count - 1))
        sent[place] = bend(draw, sent[place])
    return sent


@given(alike(), st.sampled_from([64, flat.BLOCK_BYTES]))
@example([b'{"t": 1, "temp": 1.5}', b'{"t": 2, "temp": ..5}'], 64)
@example([b'{"t": 1, "temp": 1.5}', b'{"t": 2, "temp": 1.5.5}'], 64)
@example([b'{"t": 1, "temp": 11.5}', b'{"t": 2, "temp": 1.25}', b'{"t": 2, "temp": 1:.5}'], 64)
def test_what_numbers_have_in_common_changes_none_of_their_bits(sent: list[bytes], block: int) -> None:
    """Width, point and leading digits that all share are looked at once; the one that differs is read as ever."""
    batch = messages(*sent)
    with mock.patch.object(flat, "FEWEST", 1), mock.patch.object(flat, "BLOCK_BYTES", block):
        same(json_payloads.decode(PROFILE, batch), json_payloads.decode_each(PROFILE, batch))


@given(st.lists(st.floats(-1e9, 1e9).flatmap(lambda x: st.integers(0, 7).map(lambda n: f"{x:.{n}f}")), min_size=20))
def test_decimals_are_read_to_the_last_bit(texts: list[str]) -> None:
    """Every decimal of up to fifteen digits that is read this way is the nearest double."""
    (found,) = read([f'{{"t":{text}}}'.encode() for text in ["1", *texts]], FIELDS) or [None]
    assert found is not None
    expected = np.array([float(text) for text in ["1", *texts]])[found.message]
    assert found.columns["t"].tobytes() == expected.tobytes()
    assert all(len(texts[row - 1]) > 15 or float(texts[row - 1]) == 0 for row in found.rest)


def test_one_odd_message_leaves_the_others_to_the_quick_way() -> None:
    """Of a hundred messages alike, only the broken one is decoded by itself."""
    sent = [json.dumps({"t": T + place, "temp": place / 10, "hum": 5}).encode() for place in range(100)]
    sent[42] = b"nonsense"
    (found,) = read(sent, FIELDS)
    assert found.rest.tolist() == [42]
    assert found.columns["temp"].tolist() == [place / 10 for place in range(100) if place != 42]


def test_messages_of_several_blocks_come_out_in_order_and_without_the_odd_ones() -> None:
    sent = [f'{{"t": {T}, "temp": {row / 10}, "hum": {row % 100}}}'.encode() for row in range(1_000)]
    sent[7], sent[-1] = b'{"t": 1', b'{"t": "no number"}'
    with mock.patch.object(flat, "BLOCK_BYTES", 1 << 10):
        same(json_payloads.decode(PROFILE, messages(*sent)), json_payloads.decode_each(PROFILE, messages(*sent)))


def test_two_firmwares_are_two_layouts() -> None:
    """Messages written in two ways are read in two goes, arrays of any length in one."""
    spaced = [json.dumps([{"t": T, "temp": 1.5}] * count).encode() for count in range(2, 40)]
    tight = [f'{{"hum":{count},"t":{T}}}'.encode() for count in range(40)]
    first, second = read(spaced + tight, FIELDS)
    assert len(first.message) == sum(range(2, 40))
    assert (first.rest.tolist(), second.rest.tolist()) == ([*range(38, 78)], [])
    assert second.columns.keys() == {"hum", "t"}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{}",
        b'{"t": 1, "t": 2, "temp": 3}',
        b'{"t": 1, "other": 2}',
        b'{"t": "1"}',
        b'{"t": 1',
        b'[{"t": 1}',
        b'{"t": 1}]',
        b'{"t": 1} {"t": 2}',
        b'{"t": 1},{"t": 2}',
        b'{"t": 1 "temp": 2}',
        b'{"t":\x0b1}',
        b'{"a": {"t": 1}}',
    ],
)
def test_what_is_not_flat_has_no_layout(payload: bytes) -> None:
    """Anything but records of known numbers is left to the general decoder."""
    assert learn(payload, FIELDS) is None
