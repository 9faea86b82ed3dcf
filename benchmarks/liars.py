"""Devices that change unit, scale, clock or cadence: the share found before anything wrong is stored, and false alarms.

A fleet of made-up devices sends live, a message an hour with a record every ten minutes, drained every six hours;
one in a hundred changes at some moment. A liar counts as found if the contract watch suspends it and *not one* reading
whose value or time is wrong is stored: neither in the batch that shows the change nor before. What is held in doubt
counts as stored as soon as the doubt passes. A false alarm is a suspension of an honest device, of the made-up fleet or
of the wind farm's own two years; stations of Beijing's air that are set aside are counted apart (docs/adr/0032), where
the set is there (`FIELDLOOP_DATASETS`). Liars convert what their sensors resolve; `found_rounded_once` is the share of
liars found whose firmware converts before it rounds. `LIARS_SEED=100` draws other fleets. Peers see the same messages:
the profile's range check, and a rule by which a message is refused whose mean lies more than four standard deviations
from its device's past.
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from benchmarks import archives
from benchmarks.figure import Figure
from expectations.changes import promises
from expectations.profiles import ProfileDocument, compile_profile
from fieldloop.domain.contract.watch import Watch
from fieldloop.domain.harmonize import harmonize_table
from fieldloop.domain.payloads.records import Table
from fieldloop.domain.readings import Messages, Named

FIRST_SEED: Final = int(os.environ.get("LIARS_SEED", "0"))
SEEDS: Final = 10
SEEDS_ONCE: Final = 5  # of them, those of which the liars round once as well
DEVICES: Final = 2_000  # of a seed
LIARS: Final = 100  # one in so many
DAYS: Final = 16
LEARNT_DAYS: Final = 9  # before the first change
LAST_DAY: Final = 14  # of the changes
STEP_S: Final = 600
HOUR: Final = 6  # records of a message
BATCH: Final = 36  # records of a device in a batch
BEGIN_S: Final = 1_770_000_000
Z_LIMIT: Final = 4.0
FUTURE_S: Final = 300.0  # by which a clock may be ahead, as profiles have it
PROCESSES: Final = 2
RULES: Final = ("watch", "range", "z_score")

_SAME: Final = 1e-9

Floats = NDArray[np.float64]
Signal = Callable[[np.random.Generator, Floats], Floats]


@dataclass(frozen=True)
class Kind:
    """A kind of device.

    Attributes:
        unit: what it sends.
        range: what it can send.
        signal: from days ([N] float64) to values.
        digits: after the decimal point.
        changes: scale and offset of what its liars send.
    """

    unit: str
    range: tuple[float, float]
    signal: Signal
    digits: int
    changes: tuple[tuple[float, float], ...]


def _drift(random: np.random.Generator, days: Floats, size: float, hours: float) -> Floats:
    """Weather: noise that forgets itself within so many hours, of this standard deviation."""
    keep = np.exp(-STEP_S / 3600 / hours)
    steps = random.normal(0, size * np.sqrt(1 - keep * keep), len(days))
    steps[0] = random.normal(0, size)
    return np.asarray(lfilter([1.0], [1.0, -keep], steps))


def _daily(days: Floats, phase: float) -> Floats:
    return np.asarray(np.sin(2 * np.pi * (days + phase)))


def _temperature(random: np.random.Generator, days: Floats) -> Floats:
    swing = random.uniform(0, 7) * _daily(days, random.uniform(0, 1))
    return random.uniform(-5, 28) + swing + _drift(random, days, 2.5, 30) + random.normal(0, 0.1, len(days))


def _pressure(random: np.random.Generator, days: Floats) -> Floats:
    return random.uniform(930, 1015) + _drift(random, days, 7, 40) + random.normal(0, 0.1, len(days))


def _humidity(random: np.random.Generator, days: Floats) -> Floats:
    swing = 12 * _daily(days, random.uniform(0, 1))
    return np.clip(random.uniform(40, 75) + swing + _drift(random, days, 8, 20), 2, 100)


def _wind(random: np.random.Generator, days: Floats) -> Floats:
    calm = np.exp(_drift(random, days, 0.5, 14)) * random.uniform(4, 8)
    return np.maximum(calm * (1 + random.normal(0, 0.12, len(days))), 0)


def _power(random: np.random.Generator, days: Floats) -> Floats:
    return np.clip(0.9 * _wind(random, days) ** 3, 0, 2000) - 3 + random.normal(0, 1.0, len(days))


def _solar(random: np.random.Generator, days: Floats) -> Floats:
    sun = np.maximum(_daily(days, random.uniform(0, 1)), 0)
    clouds = np.clip(0.7 + _drift(random, days, 0.3, 3), 0.05, 1)
    return random.uniform(3, 12) * sun * clouds


def _voltage(random: np.random.Generator, days: Floats) -> Floats:
    return random.uniform(3.3, 4.1) - 0.004 * days + random.normal(0, 0.003, len(days))


def _flow(random: np.random.Generator, days: Floats) -> Floats:
    busy = 1 + 0.5 * _daily(days, random.uniform(0, 1))
    return np.maximum(random.uniform(20, 60) * busy * (1 + random.normal(0, 0.1, len(days))), 0)


KINDS: Final = {
    "temperature": Kind("degC", (-60, 400), _temperature, 1, ((1.8, 32), (1, 273.15), (10, 0), (0.1, 0))),
    "pressure": Kind("hPa", (300, 1200), _pressure, 1, ((100, 0), (0.1, 0), (0.750062, 0))),
    "humidity": Kind("percent", (0, 100), _humidity, 1, ((0.01, 0), (10, 0))),
    "wind_speed": Kind("m/s", (0, 100), _wind, 2, ((3.6, 0), (1.943844, 0))),
    "power": Kind("kW", (-500, 3000), _power, 1, ((1000, 0), (0.001, 0))),
    "solar": Kind("kW", (-1, 20_000), _solar, 3, ((1000, 0), (0.001, 0))),
    "voltage": Kind("V", (0, 20), _voltage, 3, ((1000, 0), (0.1, 0))),
    "flow": Kind("L/min", (0, 2000), _flow, 2, ((0.06, 0), (1000, 0), (10, 0))),
}
CLOCKS: Final = ("ms", "us", "zone", "cadence")


@dataclass(frozen=True)
class Sent:
    """What the devices of one kind send.

    Attributes:
        true: [D, S] float64, what an honest device would send.
        value: [D, S] float64, what is sent.
        time_s: [D, S] float64, the clock as it is sent.
        true_s: [D, S] float64, when it was.
        change: [D] int64, step of the change; S for honest devices.
        what: [D] the change.
    """

    true: Floats
    value: Floats
    time_s: Floats
    true_s: Floats
    change: NDArray[np.int64]
    what: tuple[str, ...]


@dataclass
class Score:
    """What came of one rule: liars, those found, and honest devices that were set aside."""

    liars: int = 0
    found: int = 0
    false_alarms: int = 0

    def __add__(self, other: "Score") -> "Score":
        """Return both together."""
        return Score(self.liars + other.liars, self.found + other.found, self.false_alarms + other.false_alarms)


def measure() -> Figure:
    """Let every seed's fleet send, then the wind farm; count."""
    scores = {rule: Score() for rule in RULES}
    missed: dict[str, list[int]] = {}
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        farming, breathing = pool.submit(archives.wind_farm), pool.submit(archives.beijing)
        seeds = range(FIRST_SEED, FIRST_SEED + SEEDS)
        once = pool.map(_seed, seeds[:SEEDS_ONCE], itertools.repeat(True))
        for scored, gone in pool.map(_seed, seeds, itertools.repeat(False)):
            for rule, score in scored.items():
                scores[rule] += score
            for what, (lost, of) in gone.items():
                before = missed.get(what, [0, 0])
                missed[what] = [before[0] + lost, before[1] + of]
        rounded_once = sum((scored["watch"] for scored, _ in once), Score())
        farm, beijing = farming.result(), breathing.result()
    watch = scores["watch"]
    return Figure(
        figure=round(watch.found / watch.liars, 4),
        unit="share of liars found",
        peer="a rule of four standard deviations",
        ratio=round(watch.found / max(scores["z_score"].found, 1), 2),
        further={
            "found": round(watch.found / watch.liars, 4),
            "found_rounded_once": round(rounded_once.found / rounded_once.liars, 4),
            "false_alarms": watch.false_alarms + rounded_once.false_alarms + farm,
            "liars": watch.liars,
            "seeds": [seeds[0], seeds[-1]],
            "devices": SEEDS * len(KINDS) * (DEVICES // len(KINDS)),
            "false_alarms_wind_farm": farm,
            "false_alarms_beijing": beijing,
            "peers": {
                rule: {"found": round(score.found / score.liars, 4), "false_alarms": score.false_alarms}
                for rule, score in scores.items()
                if rule != "watch"
            },
            "missed": {what: f"{gone[0]} of {gone[1]}" for what, gone in sorted(missed.items()) if gone[0]},
        },
    )


def _seed(seed: int, once: bool) -> tuple[dict[str, Score], dict[str, list[int]]]:
    """Let one seed's fleet send; return the score of each rule, and how many of each change the watch missed."""
    scores = {rule: Score() for rule in RULES}
    missed: dict[str, list[int]] = {}
    for number, (name, kind) in enumerate(KINDS.items()):
        random = np.random.default_rng((seed, number))
        sent = _fleet(random, kind, DEVICES // len(KINDS), once)
        _by_watch(name, kind, sent, scores["watch"], missed)
        _by_range(kind, sent, scores["range"])
        _by_z_score(sent, scores["z_score"])
    return scores, missed


def _fleet(random: np.random.Generator, kind: Kind, devices: int, once: bool = False) -> Sent:
    """Make what the devices of a kind send; one in a hundred, or the rounded number of it, changes.

    Where they round once, firmware converts what is measured, not what is rounded.
    """
    steps = DAYS * 24 * HOUR
    days = np.arange(steps) * STEP_S / 86_400
    measured = np.clip(np.stack([kind.signal(random, days) for _ in range(devices)]), *kind.range)
    true = np.round(measured, kind.digits)
    source = measured if once else true
    value, when = true.copy(), np.broadcast_to(BEGIN_S + np.arange(steps) * float(STEP_S), true.shape)
    time_s, true_s = when.copy(), when.copy()
    change, what = np.full(devices, steps), [""] * devices
    liars = devices // LIARS + int(random.random() < devices % LIARS / LIARS)
    for device in random.choice(devices, liars, replace=False):
        at = int(random.integers(LEARNT_DAYS * 24, LAST_DAY * 24)) * HOUR
        pick = int(random.integers(0, len(kind.changes) + 1))
        change[device] = at
        if pick < len(kind.changes):
            scale, offset = kind.changes[pick]
            digits = max(kind.digits, kind.digits - int(np.floor(np.log10(scale))))
            value[device, at:] = np.round(source[device, at:] * scale + offset, digits)
            what[device] = f"* {scale:g} + {offset:g}"
        else:
            what[device] = str(random.choice(CLOCKS))
            _change_clock(random, what[device], time_s[device, at:], true_s[device, at:])
    return Sent(true, value, time_s, true_s, change, tuple(what))


def _change_clock(random: np.random.Generator, what: str, time_s: Floats, true_s: Floats) -> None:
    """Change a liar's clock in place, from its change on."""
    if what == "zone":
        time_s += 3600.0 * float(random.choice([-11, -8, -5, -2, -1, 1, 2, 5.5, 8]))
    elif what == "cadence":
        step_s = float(random.choice([60, 120, 1800]))
        time_s[:] = true_s[:] = time_s[0] + np.arange(len(time_s)) * step_s
    else:
        time_s *= {"ms": 1e3, "us": 1e6}[what]


def _by_watch(name: str, kind: Kind, sent: Sent, score: Score, missed: dict[str, list[int]]) -> None:
    """Drain the fleet in batches through harmonization and the watch, and store what `tasks.contracts` would store."""
    document = _profile(name, kind)
    profile = compile_profile(document)
    watch = Watch(promises(document), profile.cadence_us)
    devices, steps = sent.true.shape
    stored = np.zeros((devices, steps), dtype=bool)
    refused_from = np.full(devices, steps)  # suspended: nothing of it is looked at any more
    for begin in range(0, steps, BATCH):
        sending = np.flatnonzero(refused_from == steps)
        messages, table, cells = _batch(sent, sending, begin)
        readings, rejects = harmonize_table(profile, messages, table)
        accepted = _accepted(kind, sent, cells, messages.arrival_us[np.asarray(table.rows, dtype=np.int64)])
        if np.count_nonzero(accepted) != len(readings):
            raise SystemExit(f"{name}: {len(readings)} readings were accepted, expected {np.count_nonzero(accepted)}")
        stored[cells[0][accepted], cells[1][accepted]] = True
        for finding in watch.judge(messages, readings, rejects):
            if finding.certain:
                device = int(finding.device)
                refused_from[device] = min(refused_from[device], _step(finding.since, devices))
    held = np.full(devices, steps)
    for name_held, sequence in watch.held().items():
        held[int(name_held)] = _step(sequence, devices)
    stored &= np.arange(steps) < np.minimum(refused_from, held)[:, None]
    wrong = (np.abs(sent.value - sent.true) > _SAME) | (sent.time_s != sent.true_s)
    liar, suspended = sent.change < steps, refused_from < steps
    found = liar & suspended & ~(stored & wrong).any(axis=1)
    _add(score, liar, found, suspended & ~liar)
    for device in np.flatnonzero(liar).tolist():
        gone = missed.setdefault(f"{name} {sent.what[device]}", [0, 0])
        gone[0] += int(not found[device])
        gone[1] += 1


def _by_range(kind: Kind, sent: Sent, score: Score) -> None:
    """The profile's range alone: a liar is found if every wrong value lies outside; it knows no clocks."""
    outside = (sent.value < kind.range[0]) | (sent.value > kind.range[1])
    late = sent.time_s > sent.true_s + FUTURE_S
    wrong = (np.abs(sent.value - sent.true) > _SAME) | (sent.time_s != sent.true_s)
    liar = sent.change < sent.true.shape[1]
    _add(score, liar, liar & wrong.any(axis=1) & ~(wrong & ~outside & ~late).any(axis=1), np.zeros(len(liar), bool))


def _by_z_score(sent: Sent, score: Score) -> None:
    """Four standard deviations: a device is set aside at the first message whose mean is that far from its past."""
    means = sent.value.reshape(len(sent.value), -1, HOUR).mean(axis=2)
    number = np.arange(1, means.shape[1] + 1)
    past = np.cumsum(means, axis=1) / number
    spread = np.sqrt(np.maximum(np.cumsum(means**2, axis=1) / number - past**2, 1e-12))
    far = np.abs(means[:, 1:] - past[:, :-1]) > Z_LIMIT * spread[:, :-1]
    far[:, : LEARNT_DAYS * 24 - 1] = False
    first = np.where(far.any(axis=1), np.argmax(far, axis=1) + 1, means.shape[1])
    liar = sent.change < sent.true.shape[1]
    _add(score, liar, liar & (first == sent.change // HOUR), first < np.minimum(sent.change // HOUR, means.shape[1]))


def _add(score: Score, liar: NDArray[np.bool_], found: NDArray[np.bool_], false: NDArray[np.bool_]) -> None:
    score.liars += int(liar.sum())
    score.found += int(found.sum())
    score.false_alarms += int(false.sum())


def _batch(sent: Sent, sending: NDArray[np.int64], begin: int) -> tuple[Messages, Table, NDArray[np.int64]]:
    """Return the messages of a span by devices, in order of arrival, and device and step of each record: [2, R]."""
    hours = np.arange(begin // HOUR, (begin + BATCH) // HOUR)
    hour, sender = np.repeat(hours, len(sending)), np.tile(sending, len(hours))
    row = np.repeat(np.arange(len(hour)), HOUR)
    device = np.repeat(sender, HOUR)
    step = np.repeat(hour * HOUR, HOUR) + np.tile(np.arange(HOUR), len(hour))
    last = hour * HOUR + HOUR - 1
    messages = Messages(
        Named(tuple(map(str, sending.tolist())), np.tile(np.arange(len(sending), dtype=np.int32), len(hours))),
        ((sent.true_s[sender, last] + 2.0) * 1e6).astype(np.int64),
        hour * len(sent.true) + sender + 1,
        [b""] * len(hour),
    )
    table = Table(row.tolist(), (sent.time_s[device, step],), None, (sent.value[device, step],), [])
    return messages, table, np.stack([device, step])


def _accepted(kind: Kind, sent: Sent, cells: NDArray[np.int64], arrival_us: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say which records harmonization accepts ([R] bool): in range, and not from the future."""
    device, step = cells
    value, time_us = sent.value[device, step], sent.time_s[device, step] * 1e6
    fits: NDArray[np.bool_] = (value >= kind.range[0]) & (value <= kind.range[1])
    fits &= time_us <= arrival_us + FUTURE_S * 1e6
    return fits


def _step(sequence: int, devices: int) -> int:
    return (sequence - 1) // devices * HOUR


def _profile(name: str, kind: Kind) -> ProfileDocument:
    channel = {
        "metric": name,
        "field": "value",
        "source_unit": kind.unit,
        "unit": kind.unit,
        "range": list(kind.range),
    }
    return ProfileDocument.model_validate(
        {
            "name": name.replace("_", "-"),
            "description": "made up",
            "format": "json",
            "clock": {"field": "t", "kind": "epoch_s"},
            "cadence": "10 min",
            "channels": [channel],
        }
    )
