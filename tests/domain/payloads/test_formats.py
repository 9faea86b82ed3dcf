"""What must hold for every format: values to the bit, and whatever comes costs only itself."""

import gzip
from dataclasses import replace

import msgspec
import pytest
from backports import zstd
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from fieldloop.domain.harmonize import harmonize
from fieldloop.domain.payloads.formats import DECODERS
from fieldloop.domain.payloads.sparkplug import message_type
from fieldloop.domain.profile import Profile
from tests.domain.payloads.samples import NOON_US, PROFILES, SENDERS, messages, sparkplug, values

PACKERS = {"none": bytes, "gzip": gzip.compress, "zstd": zstd.compress}
formats = pytest.mark.parametrize("name", list(PROFILES))
numbers = st.floats(-1e300, 1e300)
tenths = st.integers(-3000, 3000).map(lambda number: number / 10)
halves = st.integers(0, 200).map(lambda number: number / 2)


def pairs_for(name: str) -> st.SearchStrategy[list[tuple[float, float]]]:
    """Temperatures and humidities that the format can carry."""
    pair = st.tuples(tenths, halves) if name == "cayenne" else st.tuples(numbers, numbers)
    return st.lists(pair, min_size=1, max_size=8)


def test_every_format_has_a_sample():
    """A format that is added is tested here."""
    assert {profile.format for profile in PROFILES.values()} == set(DECODERS)


@formats
@given(data=st.data(), packing=st.sampled_from(list(PACKERS)))
def test_values_survive_to_the_bit(name, data, packing):
    """What the device wrote is what is read, whatever is around it."""
    sent = data.draw(pairs_for(name))
    payloads = [PACKERS[packing](SENDERS[name](*pair)) for pair in sent]
    profile = msgspec.structs.replace(PROFILES[name], compression=packing)
    readings, rejects = harmonize(profile, messages(*payloads))
    assert not rejects
    assert readings.value.tolist() == values(sent, name)
    assert set(readings.event_us.tolist()) == {NOON_US}


@formats
@given(
    noise=st.lists(st.binary(max_size=60), max_size=6), packing=st.sampled_from(list(PACKERS)), wrapped=st.booleans()
)
def test_no_bytes_break_a_batch(name, noise, packing, wrapped):
    """Any bytes are accepted or refused, never raised, and what stands beside them is read."""
    pack = PACKERS[packing]
    good = pack(SENDERS[name](21.5, 40.0))
    profile = msgspec.structs.replace(PROFILES[name], compression=packing)
    readings, rejects = harmonize(profile, messages(good, *(pack(each) if wrapped else each for each in noise), good))
    last = len(noise) + 1
    for row in (0, last):
        assert readings.value[readings.message == row].tolist() == values([(21.5, 40.0)], name)
    assert all(0 < reject.message < last and reject.detail for reject in rejects)


@formats
@given(data=st.data())
def test_no_mutation_breaks_a_batch(name, data):
    """Good payloads with bytes changed, cut out or put in reach deeper than noise does.

    Of the same device and another, before and behind. One that has become a birth, which names an alias anew, may
    change what its own device's later messages mean (docs/adr/0030), and nothing else.
    """
    payload = bytearray(SENDERS[name](21.5, 40.0))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload)))
        payload[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    good = SENDERS[name](21.5, 40.0)
    sent = replace(messages(good, good, bytes(payload), good, good), devices=["d2", "d1", "d1", "d2", "d1"])
    readings, rejects = harmonize(PROFILES[name], sent)
    reborn = name == "sparkplug-b" and names_an_alias(bytes(payload))
    for row in (0, 1, 3) if reborn else (0, 1, 3, 4):
        assert readings.value[readings.message == row].tolist() == values([(21.5, 40.0)], name)
    assert {reject.message for reject in rejects} <= ({2, 4} if reborn else {2})


def names_an_alias(payload: bytes) -> bool:
    """Whether the bytes are a Sparkplug payload as births are: a metric with a name and an alias."""
    try:
        metrics = message_type().FromString(payload).metrics
    except DecodeError:
        return False
    return any(metric.name and metric.HasField("alias") for metric in metrics)


def test_a_birth_goes_before_the_profiles_aliases_for_its_own_device_alone():
    """What it names is read so from then on, by nobody else."""
    data = SENDERS["sparkplug-b"](21.5, 40.0)
    birth = sparkplug({"name": "temp", "alias": 2, "datatype": 10, "double_value": 20.0})
    assert names_an_alias(birth)
    sent = replace(messages(data, birth, data, data), devices=["d1", "d1", "d2", "d1"])
    readings, rejects = harmonize(PROFILES["sparkplug-b"], sent)
    found = list(zip(readings.message.tolist(), readings.metric.tolist(), readings.value.tolist(), strict=True))
    assert found == [(0, 0, 21.5), (0, 1, 40.0), (1, 0, 20.0), (2, 0, 21.5), (2, 1, 40.0), (3, 0, 21.5), (3, 0, 40.0)]
    assert not rejects


@formats
def test_profile_round_trips_through_json(name):
    """A release carries the compiled profile as JSON."""
    assert msgspec.json.decode(msgspec.json.encode(PROFILES[name]), type=Profile) == PROFILES[name]


@formats
def test_no_messages_are_no_readings(name):
    """A batch may be empty."""
    readings, rejects = harmonize(PROFILES[name], messages())
    assert (len(readings), rejects) == (0, [])
