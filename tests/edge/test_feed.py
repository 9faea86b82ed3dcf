"""Order and holes in what the broker delivers, as pure rules; the real broker is in `test_agent`."""

import pytest

from fieldloop.edge.feed import Delivery, OutOfOrder, Position, in_order, put_in_order

HERE = Position(stream=10, consumer=5, arrived_us=100)


def _deliveries(*numbers: tuple[int, int]) -> list[Delivery]:
    """Make deliveries from (stream, consumer) numbers; the time of a message follows from its stream number."""
    return [Delivery("d", b"", Position(stream, consumer, stream * 10), str(stream)) for stream, consumer in numbers]


def _streams(deliveries: list[Delivery]) -> list[int]:
    return [delivery.position.stream for delivery in deliveries]


def test_what_follows_on_is_taken() -> None:
    """Stream numbers may jump: other devices' messages lie between."""
    assert _streams(in_order(HERE, _deliveries((12, 6), (17, 7)))) == [12, 17]


def test_a_hole_is_seen() -> None:
    """Delivery 6 went to a process that was killed."""
    with pytest.raises(OutOfOrder, match="from number 6"):
        in_order(HERE, _deliveries((12, 7)))


def test_a_hole_within_a_batch_is_seen() -> None:
    """One delivery was lost with a connection."""
    with pytest.raises(OutOfOrder):
        in_order(HERE, _deliveries((12, 6), (14, 8)))


def test_disorder_is_seen() -> None:
    """A message comes again behind a later one."""
    with pytest.raises(OutOfOrder, match="disorder"):
        in_order(HERE, _deliveries((12, 6), (11, 7)))


def test_what_was_dealt_with_is_left_out() -> None:
    """The acknowledgement was lost, the state was not."""
    assert _streams(in_order(HERE, _deliveries((9, 6), (10, 7), (12, 8)))) == [12]


def test_what_comes_again_is_put_into_order() -> None:
    """The broker sends what is open in any order, some of it twice."""
    again = _deliveries((13, 20), (14, 21), (12, 22), (10, 23), (13, 24))
    assert _streams(put_in_order(HERE, again)) == [12, 13, 14]


def test_a_hole_in_what_comes_again_is_seen() -> None:
    """Killed while collecting is a hole like any other."""
    with pytest.raises(OutOfOrder):
        put_in_order(HERE, _deliveries((12, 20), (13, 22)))


def test_a_consumer_made_anew_is_taken_up() -> None:
    """Its numbers begin at one; what was dealt with through the old one is left out."""
    assert _streams(in_order(HERE, _deliveries((9, 1), (12, 2)))) == [12]


def test_a_stream_made_anew_is_read_from_its_start() -> None:
    """Its numbers begin at one again, but its times do not."""
    fresh = [Delivery("d", b"", Position(1, 6, 500), "1"), Delivery("d", b"", Position(2, 7, 501), "2")]
    assert _streams(in_order(HERE, fresh)) == [1, 2]
