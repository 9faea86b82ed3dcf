"""Random and mutated payloads over every codec: how many crash the decode, and how many are neither stored nor refused.

Most payloads are valid ones, mutated: bits, cuts, splices, repeats, numbers out of all bounds, a nesting too deep,
one format's bytes for another, and all of it packed by gzip or zstd. Some are hypothesis' own: arbitrary bytes,
text, JSON and CBOR. All go through `harmonize`, as acquisition and gateways call it, in batches; a batch that fails is
taken apart, so that every payload counts by itself. A message gives readings or refusals, unless there is nothing in it
at all (`empty`: no record, or none with a value).
"""

import gzip
import json
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import cbor2
import hypothesis
import msgspec
import numpy as np
import zstandard
from hypothesis import strategies as st

from benchmarks.figure import Figure
from fieldloop.domain.harmonize import harmonize
from fieldloop.domain.profile import Profile
from fieldloop.domain.readings import Messages
from tests.domain.payloads.samples import NOON_US, PROFILES, SENDERS

PAYLOADS: Final = 200_000
BATCH: Final = 250
ARBITRARY: Final = 25  # one payload in so many is of hypothesis' own making
SEED: Final = 20_260_101
SHOWN: Final = 5

FIELDS: Final = ("t", "temp", "hum", "n", "v", "bn", "bt", "bv", "u", "vs", "data", "time", "fPort")
JSONISH: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda below: (
        st.lists(below, max_size=4) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), below, max_size=5)
    ),
    max_leaves=12,
)
ANY: Final = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")),
    JSONISH.map(lambda value: json.dumps(value).encode()),
    JSONISH.map(cbor2.dumps),
)
NUMBERS: Final = (
    b"1e999",
    b"-1e308",
    b"NaN",
    b"null",
    b"9" * 400,
    b"-0",
    b"1e-999",
    b"18446744073709551616",
    b'"x"',
    b"[]",
)
PACKED: Final[dict[str, Callable[[bytes], bytes]]] = {
    "none": lambda data: data,
    "gzip": lambda data: gzip.compress(data, mtime=0),  # else the hour is in it, and mutated with the rest
    "zstd": zstandard.ZstdCompressor().compress,
}


def measure() -> Figure:
    """Decode them all, and count."""
    warnings.simplefilter("error")  # a warning of NumPy's is a case that nobody thought of
    profiles = [
        (name, msgspec.structs.replace(profile, compression=packing))
        for name, profile in PROFILES.items()
        for packing in PACKED
    ]
    share = PAYLOADS // len(profiles)
    outcomes: Counter[str] = Counter()
    for number, (name, profile) in enumerate(profiles):
        outcomes += decode_all(profile, list(payloads(name, profile.compression, share, SEED + number)))
    outcomes += decode_all(profiles[0][1], list(payloads("json", "none", PAYLOADS - sum(outcomes.values()), SEED - 1)))
    crashes = outcomes["crashes"]
    return Figure(
        figure=crashes,
        unit="payloads that crashed the decode",
        peer="payloads that were refused with a reason",
        ratio=round(crashes / max(outcomes["refused"], 1), 6),
        further={
            "payloads": sum(outcomes.values()),
            "crashes": crashes,
            "lost": outcomes["lost"],
            "stored": outcomes["stored"],
            "refused": outcomes["refused"],
            "empty": outcomes["empty"],
            "codecs": len(profiles),
        },
    )


def payloads(name: str, packing: str, count: int, seed: int) -> Iterator[bytes]:
    """Yield payloads for a codec: hypothesis' own, then mutated ones."""
    chance = random.Random(seed)  # noqa: S311 - the same payloads in every run, no secrets
    arbitrary = _arbitrary(count // ARBITRARY, seed)
    for number in range(count):
        if number < len(arbitrary):
            data = arbitrary[number]
            yield PACKED[packing](data) if chance.random() < 0.5 else data
            continue
        sender = SENDERS[name if chance.random() < 0.9 else chance.choice(list(SENDERS))]
        valid = sender(round(chance.uniform(-40, 60), chance.randint(0, 6)), round(chance.uniform(0, 100), 1))
        if chance.random() < 0.7:
            yield PACKED[packing](mutated(chance, valid))
        else:
            yield mutated(chance, PACKED[packing](valid))


def mutated(chance: random.Random, data: bytes) -> bytes:
    """Return a payload with a thing wrong, or some."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        data = chance.choice(MUTATIONS)(chance, data)
    return data


def _flip(chance: random.Random, data: bytes) -> bytes:
    at = chance.randrange(len(data) or 1)
    return data[:at] + bytes([(data[at] if at < len(data) else 0) ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def _cut(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _insert(chance: random.Random, data: bytes) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.randbytes(chance.randint(1, 8)) + data[at:]


def _repeat(chance: random.Random, data: bytes) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + data[at : at + 20] * chance.randint(2, 40) + data[at:]


def _number(chance: random.Random, data: bytes) -> bytes:
    places = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
    if not places:
        return data
    at = chance.choice(places)
    return data[:at] + chance.choice(NUMBERS) + data[at + 1 :]


def _nest(chance: random.Random, data: bytes) -> bytes:
    depth = chance.choice((1, 2, 50, 3_000))
    return b"[" * depth + data + b"]" * depth if chance.random() < 0.5 else b'{"temp":' * depth + data + b"}" * depth


MUTATIONS: Final = (_flip, _flip, _flip, _cut, _insert, _insert, _repeat, _number, _number, _number, _nest)


def _arbitrary(count: int, seed: int) -> list[bytes]:
    """Return so many examples of hypothesis' own, the same for a seed; fewer where it finds no more."""
    found: list[bytes] = []

    if not count:
        return []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(ANY)
    def gather(data: bytes) -> None:
        found.append(data)

    gather()
    return found


def decode_all(profile: Profile, bodies: Sequence[bytes]) -> Counter[str]:
    """Decode payloads in batches; return how many were stored, refused, empty, lost, or crashed."""
    outcomes: Counter[str] = Counter()
    for first in range(0, len(bodies), BATCH):
        batch = bodies[first : first + BATCH]
        try:
            outcomes += _decode(profile, batch)
        except Exception:  # that is what is looked for
            for body in batch:
                outcomes += _alone(profile, body)
    return outcomes


def _alone(profile: Profile, body: bytes) -> Counter[str]:
    try:
        return _decode(profile, [body])
    except Exception as exc:
        print(f"{profile.format}, {profile.compression}: {body[:200]!r}: {type(exc).__name__}: {exc}", file=sys.stderr)
        return Counter(crashes=1)


def _decode(profile: Profile, bodies: Sequence[bytes]) -> Counter[str]:
    count = len(bodies)
    messages = Messages(["d1"] * count, np.full(count, NOON_US), np.arange(1, count + 1), list(bodies))
    readings, rejects = harmonize(profile, messages)
    stored, refused = set(readings.message.tolist()), {reject.message for reject in rejects}
    rows = set(range(count))
    outside = (stored | refused) - rows
    return Counter(
        stored=len(stored),
        refused=len(refused - stored),
        empty=len(rows - stored - refused),
        lost=len(outside),
    )
