"""Which targets are asked when: waves by size, in an order that nobody chooses, sparing each site some healthy ones."""

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from fieldloop.domain.rollout.plan import Plan


@dataclass(frozen=True)
class Member:
    """A target of a rollout: its site (empty where it has none), and whether it is heard from and works."""

    target: str
    site: str = ""
    healthy: bool = True


@dataclass(frozen=True)
class Batch:
    """Targets that are asked together. A wave has several where a site cannot spare all of its targets at once.

    Attributes:
        wave: number of the wave, from 1.
        soak_s: how long it runs before its gate is judged for good, seconds.
        targets: names, in order.
    """

    wave: int
    soak_s: int
    targets: tuple[str, ...]


def site_of(labels: Iterable[str], key: str) -> str:
    """Return the value of a label among `key=value` ones; empty where there is none."""
    return next((label.partition("=")[2] for label in labels if label.partition("=")[0] == key), "")


def plan_waves(members: Iterable[Member], plan: Plan, seed: str) -> tuple[Batch, ...]:
    """Divide targets into batches; the same whatever the order in which they are given.

    The order is by a hash of `seed` (the release) and the name, so that it is not always the same targets that go
    first; those that are not healthy come last, where they hold nobody up. No batch takes more healthy targets of a
    site than leave it `healthy_per_site`, but always one.
    """
    ordered = sorted(members, key=lambda m: (not m.healthy, hashlib.sha256(f"{seed}/{m.target}".encode()).digest()))
    healthy = Counter(member.site for member in ordered if member.healthy)
    room = {site: max(1, count - plan.healthy_per_site) for site, count in healthy.items()}
    batches: list[Batch] = []
    asked = 0
    for number, wave in enumerate(plan.waves, 1):
        until = max(asked, wave.of(len(ordered)))
        batches += [Batch(number, wave.soak_s, targets) for targets in _spared(ordered[asked:until], room)]
        asked = until
    return tuple(batches)


def waves_of(sizes: Iterable[int], plan: Plan) -> tuple[int, ...]:
    """Return the number of each batch's wave, from 1, by the batches' sizes alone: as `plan_waves` numbered them."""
    asked = list(accumulate(sizes))
    total = asked[-1] if asked else 0
    until = list(accumulate((wave.of(total) for wave in plan.waves), max))
    return tuple(bisect_left(until, count) + 1 for count in asked)


def _spared(members: Sequence[Member], room: dict[str, int]) -> Iterable[tuple[str, ...]]:
    """Split a wave so that no part takes more of a site's healthy targets than it has room for."""
    parts: list[list[str]] = [[]]
    taken: Counter[str] = Counter()
    for member in members:
        part = len(parts) - 1
        if member.healthy:
            part = taken[member.site] // room[member.site]
            taken[member.site] += 1
        if part == len(parts):
            parts.append([])
        parts[part].append(member.target)
    return (tuple(part) for part in parts if part)
