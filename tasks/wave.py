"""One batch of a rollout: ask its targets, follow their reports, judge the gate behind it; one task, however many."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from uuid import UUID

import msgspec
from nats.js import JetStreamContext
from prefect import get_run_logger, task
from prefect.client.orchestration import get_client
from prefect.client.schemas import FlowRun, StateType
from prefect.runtime import flow_run

from fieldloop.domain.rollout import NOTHING, Desired, Standing, State
from fieldloop.domain.rollout.board import SILENCE_US, Board
from fieldloop.domain.rollout.gates import Finding, Outcome, answered, breached, judge_gates
from fieldloop.domain.rollout.plan import LONGEST_S, Plan
from fieldloop.domain.rollout.record import Membership, Phase, Rollout
from fieldloop.domain.rollout.waves import crowded
from fieldloop.stores import broker, fleet, releases, rollouts
from fieldloop.stores.lake import Lake
from fieldloop.stores.rollouts import Head, now_us
from fieldloop.stores.settings import Settings
from tasks.progress import Logger, Progress

TICK_S: Final = 0.5  # between looks at what has changed
LOOK_S: Final = 2.0  # between looks at everybody, at the gates, and at what people have said
HELD: Final = (StateType.PAUSED, StateType.SCHEDULED, StateType.PENDING)  # paused, or soon another process's to go on


class Ended(StrEnum):
    """How a batch came out."""

    PASSED = "passed"
    BREACHED = "breached"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    FAILED = "failed"  # the flow run, in Prefect's eyes: a pause that nobody ended in time, or a person said so
    HANDED_OVER = "handed over"  # to another process of the same flow run, which goes on with the rollout


@dataclass(frozen=True)
class Begun:
    """A rollout that has been written down: its name, and its batches by wave and soak, without their targets.

    `holder` stands for the process that carries it out, as in its record. `reached` is the batch that an earlier
    process of the same flow run had come to; 0 where there was none.
    """

    name: str
    runs: tuple[str, ...]
    waves: tuple[int, ...]
    soaks_s: tuple[int, ...]
    holder: str
    reached: int = 0


@dataclass(frozen=True)
class BatchResult:
    """How a batch came out.

    Attributes:
        ended: passed its gate, or why not.
        asked: targets asked so far.
        proved: of these, how many run the release, proved.
        exact: of these, how many gave the canary's outputs bit for bit.
        findings: each gate's word, as a line.
        breaches: those of them that stop the rollout.
        seconds: from asking to the gate.
    """

    ended: Ended
    asked: int
    proved: int
    exact: int
    findings: tuple[str, ...]
    breaches: tuple[str, ...]
    seconds: float


@task(name="wave", task_run_name="wave {wave}, batch {number}", timeout_seconds=2 * LONGEST_S, retries=3,
      retry_delay_seconds=5)  # fmt: skip
def run_batch(begun: Begun, number: int, wave: int, plan: Plan) -> BatchResult:
    """Ask a batch's targets, follow their reports, and judge the gate behind it."""
    return asyncio.run(_run_batch(Settings(), begun, number, plan, get_run_logger()))


async def _run_batch(settings: Settings, begun: Begun, number: int, plan: Plan, log: Logger) -> BatchResult:
    began = time.monotonic()
    async with broker.platform(settings) as (_, js):
        head = await rollouts.head(js, begun.name)
        members = await rollouts.membership(js, begun.name)
        published = releases.Published(head.rollout.release, head.rollout.manifest, False)
        manifest = await asyncio.to_thread(releases.manifest_of, settings, published)
        asked = [target for batch in members.batches[:number] for target in batch]
        board = Board(head.rollout.release, manifest, plan.limits.deadline_s)
        async with rollouts.watch(js, asked) as watch:
            if not head.rollout.active or head.rollout.holder != begun.holder:
                return _result(_as_ended(head.rollout), board, (), began)
            labels = await asyncio.to_thread(_labels, settings) if manifest.variants else {}
            orders = await _ask_batch(js, head.rollout, members, asked, members.batches[number - 1], plan, labels)
            board.ask(orders, now_us())
            progress = Progress(log, members, begun.waves)
            follower = _Follower(js, head, board, plan, number, members, progress)
            ended, findings = await follower.follow(watch, begun.soaks_s[number - 1])
    return _result(ended, board, findings, began)


async def _ask_batch(
    js: JetStreamContext,
    rollout: Rollout,
    members: Membership,
    asked: Sequence[str],
    batch: Sequence[str],
    plan: Plan,
    labels: Mapping[str, tuple[str, ...]],
) -> dict[str, Desired]:
    """Ask a batch's targets that this rollout has not asked yet; return what all that were asked are asked for.

    A target that a newer rollout has asked in the meantime is that one's from then on.
    """
    held = await rollouts.held(js, asked)
    mine = {t: h.desired for t, h in held.items() if h.desired and h.desired.rollout == rollout.name}
    issued_us, earlier, shadow = now_us(), members.earlier(), plan.limits.quality.shadow
    known = {**{target: each.desired.labels for target, each in held.items() if each.desired}, **labels}
    orders = {
        target: _order(rollout, issued_us, known.get(target, ()), *(earlier[target] if shadow else (NOTHING, "")))
        for target in batch
        if target not in mine
    }
    written, _ = await rollouts.ask(js, orders, held)
    return {**mine, **{target: held.desired for target, held in written.items() if held.desired}}


class _Follower:
    """Follows one batch until its gate is judged, and keeps record and artifact up with it."""

    def __init__(
        self,
        js: JetStreamContext,
        head: Head,
        board: Board,
        plan: Plan,
        number: int,
        members: Membership,
        progress: Progress,
    ) -> None:
        self._js = js
        self._head = head
        self._board = board
        self._limits = plan.limits
        self._number = number
        self._members = members
        self._last = number == len(members.batches)
        self._progress = progress
        self._paused = False
        self._proved = 0
        self._proved_us = head.rollout.proved_us

    async def follow(self, watch: rollouts.Watch, soak_s: float) -> tuple[Ended, tuple[Finding, ...]]:
        """Return how the batch came out, and what the gates say.

        Targets are waited for until no more are open than may be silent, in the last batch until none is; then the
        batch soaks. A breach ends it at once. The next batch's sites must have room for it: it is waited for that as
        long as targets may still answer.
        """
        soaking_since: float | None = None
        looked = 0.0
        while True:
            self._board.see(await watch.fresh(TICK_S), now_us(), watch.unusable)
            self._count_proved()
            now = time.monotonic()
            if soaking_since is None and self._all_here():
                soaking_since = now
            soaked = soaking_since is not None and now - soaking_since >= soak_s
            if (not soaked or self._paused) and now - looked < LOOK_S:
                continue
            looked = now
            self._board.look(now_us())
            findings = judge_gates(self._board.evidence(), self._limits if soaked else self._limits.provisional())
            ended = await self._look_around(findings)
            if ended is not None:
                return ended, findings
            if breached(findings):
                return Ended.BREACHED, findings
            if soaked and not self._paused and self._all_here():
                if not (full := await self._full_sites()):
                    return Ended.PASSED, findings
                if not self._board.states[State.PENDING]:
                    return Ended.BREACHED, (*findings, Finding("sites", Outcome.BREACHED, "; ".join(full)))

    async def _full_sites(self) -> tuple[str, ...]:
        """Say of which sites the next batch cannot be asked now."""
        if self._last or not self._members.sites:
            return ()
        batch, sites = self._members.batches[self._number], self._members.sites
        asked = {standing.target: standing.state is State.PROVED for standing in self._board.standings}
        waiting = [target for site in sites for target in site.targets if target not in asked]
        seen, now = await rollouts.sightings(self._js, waiting), now_us()
        heard = {target: now - sighting.seen_us <= SILENCE_US for target, sighting in seen.items()}
        out = {target for site in sites for target in site.targets if not (asked | heard).get(target, False)}
        return crowded(sites, batch, out)

    def _count_proved(self) -> None:
        if (proved := self._board.states[State.PROVED]) > self._proved:
            self._proved_us = now_us()
        self._proved = proved

    def _all_here(self) -> bool:
        states = self._board.states
        return not states[State.PENDING] if self._last else answered(states, self._limits)

    async def _look_around(self, findings: Sequence[Finding]) -> Ended | None:
        """Write down how it stands; say whether somebody has ended it."""
        run = await _flow_run()
        if run is not None and (ended := _ended_in_prefect(run)) is not None:
            return ended
        self._paused = run is not None and run.state_type in HELD
        rollout = msgspec.structs.replace(
            self._head.rollout,
            phase=Phase.PAUSED if self._paused else Phase.RUNNING,
            batch=self._number,
            asked=self._board.states.total(),
            states=dict(self._board.states),
            proved_us=self._proved_us,
            findings=tuple(_line(finding) for finding in findings),
        )
        head = await rollouts.advance(self._js, self._head, rollout)
        if head is None:
            return _as_ended((await rollouts.head(self._js, rollout.name)).rollout)
        self._head = head
        await self._progress.show(rollout, self._board.standings)
        return None


def _labels(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return every target's labels."""
    return {target.name: target.labels for target in fleet.targets(Lake(settings))}


def _order(rollout: Rollout, issued_us: int, labels: tuple[str, ...], shadow: str, shadow_manifest: str) -> Desired:
    """Return what a target is asked: the release, and what it ran before in shadow, where that was another."""
    order = Desired(rollout.release, rollout.manifest, issued_us, rollout.name, labels=labels)
    if shadow in (NOTHING, rollout.release):
        return order
    return msgspec.structs.replace(order, shadow=shadow, shadow_manifest=shadow_manifest)


async def _flow_run() -> FlowRun | None:
    """Return the flow run as Prefect has it: people pause and cancel there. None outside of one."""
    if (run := flow_run.get_id()) is None:
        return None
    async with get_client() as client:
        return await client.read_flow_run(UUID(run))


def _ended_in_prefect(run: FlowRun) -> Ended | None:
    """Say whether somebody has ended the flow run in Prefect."""
    if run.state_type in (StateType.CANCELLING, StateType.CANCELLED):
        return Ended.CANCELLED
    if run.state_type in (StateType.FAILED, StateType.CRASHED, StateType.COMPLETED):
        return Ended.FAILED
    return None


def _result(ended: Ended, board: Board, findings: Sequence[Finding], began: float) -> BatchResult:
    standings = board.standings
    return BatchResult(
        ended=ended,
        asked=len(standings),
        proved=sum(standing.state is State.PROVED for standing in standings),
        exact=sum(_exact(standing) for standing in standings),
        findings=tuple(_line(finding) for finding in findings),
        breaches=tuple(_line(finding) for finding in breached(findings)),
        seconds=time.monotonic() - began,
    )


def _exact(standing: Standing) -> bool:
    return standing.state is State.PROVED and standing.proof is not None and standing.proof.exact


def _line(finding: Finding) -> str:
    return f"{finding.gate} {finding.outcome}: {finding.text}"


def _as_ended(rollout: Rollout) -> Ended:
    """Say why somebody else has written the record: to end the rollout, or to go on with it."""
    if rollout.active:
        return Ended.HANDED_OVER
    return Ended.CANCELLED if rollout.phase is Phase.CANCELLED else Ended.SUPERSEDED
