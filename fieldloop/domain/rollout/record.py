"""The record of a rollout: what it is, how far it has come, what its targets ran before, and which rollout counts."""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from fieldloop.domain.release import MANIFEST, release_folder
from fieldloop.domain.rollout.protocol import NOTHING, Desired, Reported
from fieldloop.domain.rollout.standing import State


class Phase(StrEnum):
    """How a rollout stands."""

    RUNNING = "running"
    PAUSED = "paused"
    ASKING = "asking"
    ROLLING_BACK = "rolling back"
    COMPLETED = "completed"
    STOPPED = "stopped"
    ROLLED_BACK = "rolled back"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"


ACTIVE: Final = (Phase.RUNNING, Phase.PAUSED, Phase.ASKING, Phase.ROLLING_BACK)


class Rollout(msgspec.Struct, frozen=True):
    """A rollout, as `fieldloop rollout list` shows it.

    Attributes:
        name: its own, unique.
        issued_us: when it began, microseconds since the epoch, UTC; the newest supersedes.
        recipe: the use case.
        model: registered model.
        version: its version.
        release: digest.
        manifest: its manifest's path in the repository.
        labels: that its targets bear, each `key=value`.
        profiles: names of the device profiles that the release can read.
        runs: Prefect's ids of the flow run that carries it out, and of the outermost one that called that.
        phase: how it stands.
        batch: number of the batch that was asked last, from 1; 0 before the first.
        batches: how many there are.
        targets: how many targets there are.
        asked: how many of them were asked.
        states: how many of these are in each state.
        proved_us: when the last of the proved ones was; 0 before the first.
        findings: what the gates said last, and why it ended as it did.
        ended_us: when it ended; 0 while it is active.
        holder: stands for the process that carries it out: one that finds another's here leaves it to that one.
    """

    name: str
    issued_us: int
    recipe: str
    model: str
    version: int
    release: str
    manifest: str
    labels: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    phase: Phase = Phase.RUNNING
    batch: int = 0
    batches: int = 0
    targets: int = 0
    asked: int = 0
    states: dict[State, int] = {}
    proved_us: int = 0
    findings: tuple[str, ...] = ()
    ended_us: int = 0
    holder: str = ""

    @property
    def active(self) -> bool:
        """Whether it is still going on."""
        return self.phase in ACTIVE


class Before(msgspec.Struct, frozen=True):
    """Targets that ran the same release before the rollout; `NOTHING` where they ran none."""

    release: str
    manifest: str
    targets: tuple[str, ...]


class Site(msgspec.Struct, frozen=True):
    """A site that keeps some of its targets at work while others change.

    Attributes:
        name: value of the plan's label; empty for the targets that do not bear it.
        room: how many of its targets may be out at once.
        targets: those that were healthy when the rollout was planned.
    """

    name: str
    room: int
    targets: tuple[str, ...]


class Membership(msgspec.Struct, frozen=True):
    """Which targets a rollout asks, batch by batch, and what they ran before: what a rollback goes by.

    `sites` is empty where the plan spares none.
    """

    batches: tuple[tuple[str, ...], ...]
    before: tuple[Before, ...]
    sites: tuple[Site, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """All targets, in the order in which they are asked."""
        return tuple(target for batch in self.batches for target in batch)

    def earlier(self) -> dict[str, tuple[str, str]]:
        """Return release and manifest that each target ran before."""
        return {target: (each.release, each.manifest) for each in self.before for target in each.targets}


def before_rollout(
    release: str,
    targets: Sequence[str],
    asked: Mapping[str, Desired],
    reports: Mapping[str, Reported],
    unfinished: Iterable[Mapping[str, tuple[str, str]]] = (),
) -> tuple[Before, ...]:
    """Return what each target goes back to if the rollout of `release` is rolled back.

    That is what it has proved to run; where it has never said, what it is asked for; else nothing. A target that an
    unfinished rollout of the same release has moved already goes back to what that one would have gone back to.

    Args:
        release: digest of the release that is to be rolled out.
        targets: names.
        asked: desired state by target, where there is one.
        reports: last report by target, where there is one.
        unfinished: what targets ran before unfinished rollouts of this same release, newest first.
    """
    moved: dict[str, tuple[str, str]] = {}
    for earlier in unfinished:
        moved = {**earlier, **moved}
    groups: dict[tuple[str, str], list[str]] = {}
    for target in targets:
        ran = _ran(asked.get(target), reports.get(target))
        groups.setdefault(moved.get(target, ran) if ran[0] == release else ran, []).append(target)
    return tuple(Before(digest, manifest, tuple(names)) for (digest, manifest), names in sorted(groups.items()))


def standing_release(rollouts: Iterable[Rollout], labels: Iterable[str], profiles: Iterable[str]) -> Rollout | None:
    """Return the newest completed rollout that a target with these labels would have been part of.

    Args:
        rollouts: all that there are.
        labels: the target's, each `key=value`.
        profiles: those of the devices that it serves.
    """
    own, served = set(labels), set(profiles)
    fitting = [r for r in rollouts if r.phase is Phase.COMPLETED and set(r.labels) <= own and served & set(r.profiles)]
    return max(fitting, key=lambda rollout: rollout.issued_us, default=None)


def joins(
    rollouts: Sequence[Rollout], labels: Iterable[str], profiles: Iterable[str], asked: Desired | None
) -> Rollout | None:
    """Return the completed rollout that a target has missed; None where something as new was asked of it.

    Args:
        rollouts: all that there are.
        labels: the target's, each `key=value`.
        profiles: those of the devices that it serves.
        asked: what it is asked for.
    """
    standing = standing_release(rollouts, labels, profiles)
    missed = standing is not None and (asked is None or asked.issued_us < standing.issued_us)
    return standing if missed else None


def _ran(asked: Desired | None, report: Reported | None) -> tuple[str, str]:
    """Return release and manifest that a target runs, as far as is known."""
    if report is not None and report.running is not None:
        running = report.running
        return running.release, f"{release_folder(running.model, running.version)}/{MANIFEST}"
    if asked is not None and report is None:
        return asked.release, asked.manifest
    return NOTHING, ""
