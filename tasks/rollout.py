"""Rollout: a published release goes to its targets in waves, each behind a gate, and back where a gate is breached.

Order of steps: choose targets and plan the waves (`begin_rollout`), ask a batch and follow it through its gate
(`run_batch`), ask a person where the plan wants one (`ask_person`), and end it: completed, stopped, or rolled back
(`end_rollout`, `roll_back`). One task handles a batch, however many targets it has. All that a step needs of the one
before is the rollout's name: its record is in the broker, and whoever writes to it second finds out.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final
from uuid import uuid4

from nats.js import JetStreamContext
from prefect import pause_flow_run, task
from prefect.exceptions import FlowPauseTimeout, Pause
from prefect.input import RunInput
from prefect.runtime import flow_run

from fieldloop.domain.errors import OvertakenError, ReleaseError
from fieldloop.domain.labels import known_labels
from fieldloop.domain.release import Manifest
from fieldloop.domain.rollout import Sighting
from fieldloop.domain.rollout.board import SILENCE_US
from fieldloop.domain.rollout.plan import Approval, OnBreach, Plan
from fieldloop.domain.rollout.record import Membership, Phase, Rollout, before_rollout
from fieldloop.domain.rollout.waves import Member, plan_waves, site_of, sites_of, waves_of
from fieldloop.stores import broker, fleet, releases, rollouts
from fieldloop.stores.lake import Lake
from fieldloop.stores.rollouts import Head, now_us
from fieldloop.stores.settings import Settings
from tasks.deploy import DeployResult, Released
from tasks.retries import may_pass
from tasks.rollback import end_rollout, mark, roll_back, stop, supersede, take_over, withdraw
from tasks.wave import BatchResult, Begun, Ended, run_batch

SHOWN_TARGETS: Final = 10
DECISION_S: Final = 86_400  # how long a person is waited for
DECISION_POLL_S: Final = 2
ENDED: Final = "its flow run was ended in Prefect, or paused there for longer than it may be"


class Choice(StrEnum):
    """Go on with the rollout, put back what ran before, or leave everything as it is."""  # the form shows this

    GO_ON = "go on"
    ROLL_BACK = "roll back"
    STOP = "stop"


class Decision(RunInput):
    """The form of a paused rollout."""

    choice: Choice = Choice.ROLL_BACK


@dataclass(frozen=True)
class Rolled:
    """A completed rollout: its name, and its last batch's figures over all targets."""

    name: str
    last: BatchResult


def roll_out(released: Released, labels: Sequence[str], plan: Plan) -> Rolled:
    """Carry out a rollout within the flow run that calls this.

    Raises:
        ReleaseError: there is no target, or a gate was breached; names the reasons.
        OvertakenError: it was cancelled or superseded.
    """
    begun = begin_rollout(released, labels, plan)
    for number, wave in enumerate(begun.waves, 1):
        if number < begun.reached:
            continue
        if number != begun.reached and _asks_before(plan, begun.waves, number):
            question = f"Wave {wave} of {begun.waves[-1]} is to begin, batch {number} of {len(begun.waves)}."
            _carry_out(begun, ask_person(begun, question, Choice.STOP), ["a person decided"])
        result = run_batch(begun, number, wave, plan)
        _settle(begun, result, plan)
    end_rollout(begun.name, Phase.COMPLETED, result.findings)
    return Rolled(begun.name, result)


def summarize(recipe: str, released: Released, rolled: Rolled, seconds: float) -> DeployResult:
    """Return the figures of a deployment that took so many seconds."""
    return DeployResult(
        recipe=recipe,
        model=released.model,
        version=released.version,
        release=released.digest,
        rollout=rolled.name,
        targets=rolled.last.asked,
        proved=rolled.last.proved,
        exact=rolled.last.exact,
        new=released.new,
        seconds=seconds,
    )


def ask_person(begun: Begun, question: str, otherwise: Choice) -> Choice:
    """Pause the flow run until a person has filled in its form in the Prefect UI; `otherwise` where nobody does."""
    mark(Settings(), begun.name, Phase.ASKING)
    try:
        form = Decision.with_initial_data(description=f"Rollout `{begun.name}`. {question}", choice=otherwise)
        decision = pause_flow_run(wait_for_input=form, timeout=DECISION_S, poll_interval=DECISION_POLL_S)
    except FlowPauseTimeout:
        return otherwise
    mark(Settings(), begun.name, Phase.RUNNING)
    return decision.choice


def _settle(begun: Begun, result: BatchResult, plan: Plan) -> None:
    """Go on after a batch that passed; else do what the plan, or a person, says."""
    if result.ended is Ended.CANCELLED:
        withdraw(Settings(), begun.runs[0])
    if result.ended in (Ended.CANCELLED, Ended.SUPERSEDED):
        raise OvertakenError(f"rollout {begun.name} was {result.ended}")
    if result.ended is Ended.HANDED_OVER:
        raise Pause(f"rollout {begun.name} goes on in another process")
    if result.ended is Ended.FAILED:
        stop(Settings(), begun.name, [ENDED])
        raise ReleaseError(f"rollout {begun.name} was stopped: {ENDED}")
    if result.ended is Ended.BREACHED:
        choice = Choice(plan.on_breach) if plan.on_breach is not OnBreach.ASK else None
        question = "A gate is breached: " + "; ".join(result.breaches)
        _carry_out(begun, choice or ask_person(begun, question, Choice.ROLL_BACK), result.breaches)


def _carry_out(begun: Begun, choice: Choice, reasons: Sequence[str]) -> None:
    if choice is Choice.GO_ON:
        return
    if choice is Choice.ROLL_BACK:
        roll_back(begun.name, reasons)
    else:
        end_rollout(begun.name, Phase.STOPPED, reasons)
    done = "rolled back" if choice is Choice.ROLL_BACK else "stopped"
    raise ReleaseError(f"rollout {begun.name} was {done}: {'; '.join(reasons)}")


def _asks_before(plan: Plan, waves: Sequence[int], number: int) -> bool:
    """Say whether a person is asked before this batch, which must be the first of its wave."""
    begins = number == 1 or waves[number - 1] != waves[number - 2]
    after_first = plan.approval is Approval.AFTER_FIRST and waves[number - 1] == 2
    return begins and (after_first or plan.approval is Approval.EVERY_WAVE)


@task(name="begin rollout", retries=2, retry_delay_seconds=5, retry_condition_fn=may_pass, timeout_seconds=600)
def begin_rollout(released: Released, labels: Sequence[str], plan: Plan) -> Begun:
    """Choose the targets that the release is for, plan its waves, and write the rollout down; it supersedes others.

    A flow run that was suspended, or whose process was killed, goes on with the rollout that it had begun.
    """
    return resumed(Settings(), released, plan, _runs()) or begin(Settings(), released, labels, plan, _runs())


def resumed(settings: Settings, released: Released, plan: Plan, runs: Sequence[str]) -> Begun | None:
    """Take over the rollout of this release that an earlier process of the flow run had begun; None if there is none.

    A run that is suspended in the Prefect UI, and resumed, is given to a new process. The one before, which has looked
    after the gates meanwhile, finds out by the record, and leaves.

    Args:
        settings: the installation.
        released: the release.
        plan: how it is to go, as before.
        runs: ids of the flow run that carries it out and of the one that called it.

    Raises:
        StoreError: the broker does not answer.
    """
    return asyncio.run(_resumed(settings, released, plan, runs))


async def _resumed(settings: Settings, released: Released, plan: Plan, runs: Sequence[str]) -> Begun | None:
    async with broker.platform(settings) as (_, js):
        for head in await rollouts.heads(js):
            rollout = head.rollout
            going = rollout.phase in (Phase.RUNNING, Phase.PAUSED, Phase.ASKING)
            if going and runs and rollout.runs == tuple(runs) and rollout.release == released.digest:
                return await _taken_over(js, rollout, plan)
    return None


async def _taken_over(js: JetStreamContext, rollout: Rollout, plan: Plan) -> Begun:
    """Have this process carry a rollout out, from the batch that was asked last."""
    members = await rollouts.membership(js, rollout.name)
    for other, _ in await _overlapping(js, members.targets):
        if other.rollout.issued_us < rollout.issued_us:  # it may have been begun and no more
            await supersede(js, other.rollout, rollout.name)
    waves = waves_of(map(len, members.batches), plan)
    soaks_s = tuple(plan.waves[wave - 1].soak_s for wave in waves)
    holder = await take_over(js, rollout.name)
    return Begun(rollout.name, rollout.runs, waves, soaks_s, holder, rollout.batch)


def begin(settings: Settings, released: Released, labels: Sequence[str], plan: Plan, runs: Sequence[str]) -> Begun:
    """Do what `begin_rollout` says.

    Args:
        settings: the installation.
        released: the release.
        labels: that targets must bear, each `key=value`.
        plan: how it is to go.
        runs: ids of the flow run that carries it out and of the one that called it.

    Raises:
        ReleaseError: there are no such targets.
        StoreError: lake or broker do not answer.
    """
    lake = Lake(settings)
    manifest = releases.manifest_of(settings, released.published)
    served = {device for device, profile in fleet.devices(lake).items() if profile in manifest.profiles}
    chosen = select(fleet.targets(lake), labels, served)
    refuse_unsuited(manifest, chosen)
    return asyncio.run(_begin(settings, released, manifest, chosen, labels, plan, runs))


def select(
    targets: Sequence[fleet.Target], labels: Sequence[str], devices: Collection[str]
) -> tuple[fleet.Target, ...]:
    """Return the targets that bear all these labels (any where none are given) and serve a device.

    Args:
        targets: the fleet's.
        labels: each `key=value`.
        devices: those whose profiles the release can read.

    Raises:
        ReleaseError: there is none.
    """
    chosen = tuple(t for t in targets if set(t.devices) & set(devices) and set(labels) <= set(t.labels))
    if not chosen:
        wanted = f" with labels {', '.join(labels)}" if labels else ""
        known = f"{known_labels(target.labels for target in targets)}; " if labels and targets else ""
        raise ReleaseError(
            f"expected edge targets{wanted} that serve devices of the release's profiles, got none of {len(targets)}: "
            f"{known}`fieldloop target add` enrols one, and gives it devices by `--device`"
        )
    return chosen


def refuse_unsuited(manifest: Manifest, targets: Sequence[fleet.Target]) -> None:
    """Refuse a rollout to targets for which the release has no graph, or more than one.

    Raises:
        ReleaseError: there are such; names some of them.
    """
    unsuited = []
    for target in targets:
        try:
            manifest.suited(target.labels)
        except ReleaseError as exc:
            unsuited.append((target.name, str(exc)))
    if unsuited:
        names = ", ".join(name for name, _ in unsuited[:SHOWN_TARGETS])
        raise ReleaseError(f"{len(unsuited)} of {len(targets)} targets ({names}): {unsuited[0][1]}")


async def _begin(
    settings: Settings,
    released: Released,
    manifest: Manifest,
    chosen: Sequence[fleet.Target],
    labels: Sequence[str],
    plan: Plan,
    runs: Sequence[str],
) -> Begun:
    names = [target.name for target in chosen]
    async with broker.platform(settings) as (_, js):
        issued_us = now_us()
        asked, seen = await rollouts.held(js, names), await rollouts.sightings(js, names)
        healthy = tuple(_members(chosen, seen, plan, issued_us))
        batches, sites = plan_waves(healthy, plan, released.digest), sites_of(healthy, plan)
        overlapping = await _overlapping(js, names)
        same = [members.earlier() for head, members in overlapping if head.rollout.release == released.digest]
        before = before_rollout(
            released.digest,
            names,
            {target: held.desired for target, held in asked.items() if held.desired},
            {target: sighting.report for target, sighting in seen.items()},
            same,
        )
        rollout = Rollout(
            name=_name(released, issued_us),
            issued_us=issued_us,
            recipe=manifest.recipe,
            model=released.model,
            version=released.version,
            release=released.digest,
            manifest=released.manifest,
            labels=tuple(labels),
            profiles=tuple(manifest.profiles),
            runs=tuple(runs),
            batches=len(batches),
            targets=len(names),
            holder=uuid4().hex,
        )
        await rollouts.begin(js, rollout, Membership(tuple(batch.targets for batch in batches), before, sites))
        for head, _ in overlapping:
            await supersede(js, head.rollout, rollout.name)
    waves, soaks_s = tuple(batch.wave for batch in batches), tuple(batch.soak_s for batch in batches)
    return Begun(rollout.name, rollout.runs, waves, soaks_s, rollout.holder)


async def _overlapping(js: JetStreamContext, names: Collection[str]) -> list[tuple[Head, Membership]]:
    """Return the rollouts under way that have some of these targets."""
    own = set(names)
    return [
        (head, members)
        for head in await rollouts.heads(js)
        if head.rollout.active
        for members in [await rollouts.membership(js, head.rollout.name)]
        if own & set(members.targets)
    ]


def _runs() -> tuple[str, ...]:
    """Return the ids of the flow run at work and of the outermost one."""
    own, root = flow_run.get_id(), flow_run.get_root_flow_run_id()
    return tuple(dict.fromkeys(str(each) for each in (own, root) if each))


def _members(chosen: Sequence[fleet.Target], seen: Mapping[str, Sighting], plan: Plan, now_us: int) -> Iterable[Member]:
    """Return the targets with their sites; healthy are those that have reported of late."""
    for target in chosen:
        sighting = seen.get(target.name)
        fresh = sighting is not None and now_us - sighting.seen_us <= SILENCE_US
        yield Member(target.name, site_of(target.labels, plan.site_label), fresh)


def _name(released: Released, now_us: int) -> str:
    """Return a name that sorts by time and says what is rolled out."""
    moment = datetime.fromtimestamp(now_us / 1e6, UTC)
    return f"{released.model}-{released.version}-{moment:%Y%m%d-%H%M%S}-{now_us // 1000 % 1000:03d}"
