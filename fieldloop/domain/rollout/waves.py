"""Which targets are asked when: waves by size, in an order that nobody chooses, sparing each site some healthy ones."""

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.rollout.plan import Plan
from fieldloop.domain.rollout.record import Site


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
    room = {name: _room(own, plan) for name, own in _healthy(ordered).items()}
    batches: list[Batch] = []
    asked = 0
    for number, wave in enumerate(plan.waves, 1):
        until = max(asked, wave.of(len(ordered)))
        batches += [Batch(number, wave.soak_s, targets) for targets in _spared(ordered[asked:until], room)]
        asked = until
    return tuple(batches)


def sites_of(members: Iterable[Member], plan: Plan) -> tuple[Site, ...]:
    """Return the sites of which a plan spares some targets, with their healthy ones; none where it spares none.

    Raises:
        ReleaseError: no target bears the plan's label: nobody could say what a site is.
    """
    if not plan.healthy_per_site:
        return ()
    healthy = _healthy(members)
    if healthy and not any(healthy):
        raise ReleaseError(
            f"the plan keeps {plan.healthy_per_site} healthy targets of each site, by label `{plan.site_label}`: "
            "expected targets that bear it, got none; give them one by `fieldloop target add NAME --label`, or name "
            "another in `site_label`"
        )
    return tuple(Site(name, _room(own, plan), tuple(own)) for name, own in sorted(healthy.items()))


def crowded(sites: Iterable[Site], batch: Collection[str], out: Collection[str]) -> tuple[str, ...]:
    """Say of which sites a batch cannot be asked now, in a person's words.

    Args:
        sites: those that are spared.
        batch: who is to be asked next.
        out: targets that do not work now: they were asked and are not proved, or are not heard from.
    """
    said = []
    for site in sites:
        own = set(site.targets)
        missing, coming = len(own & set(out)), len(own & set(batch) - set(out))
        if coming and missing + coming > site.room:
            said.append(
                f"site {site.name or 'without a name'} has room for {site.room} of {len(own)} targets out at once: "
                f"{missing} do not work, {coming} more were to change"
            )
    return tuple(said)


def _healthy(members: Iterable[Member]) -> dict[str, list[str]]:
    """Return each site's healthy targets."""
    found: dict[str, list[str]] = {}
    for member in members:
        if member.healthy:
            found.setdefault(member.site, []).append(member.target)
    return found


def _room(healthy: Sequence[str], plan: Plan) -> int:
    """Return how many of a site's healthy targets may be out at once: always one, else nothing would ever change."""
    return max(1, len(healthy) - plan.healthy_per_site)


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
