"""Rollouts by the real tasks, on a real broker, store and Prefect, to simulated gateways."""

import asyncio
import contextvars
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID

import pytest
from nats.js import JetStreamContext
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.sorting import ArtifactSort
from prefect.exceptions import Pause
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Failed, Suspended
from typer.testing import CliRunner

from benchmarks.toys import PROFILE_NAME, Toy, make
from fieldloop.cli.main import app
from fieldloop.domain.errors import OvertakenError, ReleaseError, StoreError
from fieldloop.domain.rollout.plan import Plan
from fieldloop.domain.rollout.record import Phase, Rollout
from fieldloop.domain.sketch import Sketch, distance
from fieldloop.stores import broker, fleet, releases, rollouts
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from infra.rehearsal.faults import Faults
from infra.rehearsal.stage import DEVICE, Cast, enrol, playing, stage
from tasks import rollout as rollout_tasks
from tasks import wave
from tasks.answers import resume
from tasks.deploy import Released
from tasks.joiners import converge
from tasks.rollback import withdraw
from tasks.rollout import Rolled, begin_rollout, resumed, roll_out, select

CAST = Cast(targets=12, sites=3, processes=1, heartbeat_s=0.3, windows_per_s=200)
MUTE = ("mute-1", "mute-2")  # targets whose agents never run
PATIENCE_S = 60.0
QUALITY = {"least_windows": 100, "required": True}
PLAN = Plan.model_validate(
    {"waves": [{"size": "1", "soak_s": 1}, "50%", "all"], "limits": {"deadline_s": 30, "quality": QUALITY}}
)
AT_ONCE = Plan.model_validate({"limits": {"quality": {"least_windows": 10**9}}})  # on all, whatever they predict
SPARING = Plan.model_validate({"healthy_per_site": 4, "limits": {"failed": 1}})
STUCK = Plan.model_validate({"waves": [1, "all"], "limits": {"deadline_s": 300}})
ANYHOW = Plan.model_validate({"limits": {"deadline_s": 1, "failed": 1, "silent": 1}})
QUICK = {"TICK_S": 0.05, "LOOK_S": 0.2}  # between looks of a rollout, seconds
MUTED = ["fleet=mute"]
PLAYING = ["fleet=simulated"]


@pytest.fixture(scope="module")
def theatre(platform: Settings) -> Iterator[Settings]:
    """A stage with twelve simulated gateways on three sites, two mute ones, and the session's Prefect."""
    with stage({"prefect_url": platform.prefect_ui}) as settings:
        enrol(settings, CAST, PROFILE_NAME)
        mute = [fleet.Target(name, (DEVICE,), ("fleet=mute",)) for name in MUTE]
        fleet.add_targets(settings, Lake(settings), mute)
        with playing(settings, CAST):
            yield settings


@pytest.fixture
def settings(theatre: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """The stage, which this process's flows find."""
    for name, value in theatre.environment().items():
        monkeypatch.setenv(name, value)
    for name, seconds in QUICK.items():
        monkeypatch.setattr(wave, name, seconds)
    with temporary_settings({PREFECT_API_URL: theatre.prefect_api}):
        yield theatre


def test_a_sound_release_goes_wave_by_wave(settings: Settings) -> None:
    """All run it in the end, each proved, and no shadow is left running."""
    _roll(_publish(settings, Toy(1)), AT_ONCE)
    new = _publish(settings, Toy(2, gain=1.02))
    rolled = _roll(new)
    rollout = _newest(settings)
    assert (rolled.last.asked, rolled.last.proved, rolled.last.exact) == (12, 12, 12)
    assert (rollout.phase, rollout.batch, rollout.batches) == (Phase.COMPLETED, 3, 3)
    assert any(line.startswith("disagreement good") for line in rollout.findings)
    _until(lambda: len(_tasks(settings, rollout)) >= rollout.batches)  # Prefect writes them down a little later
    assert sum("wave" in name for name in _tasks(settings, rollout)) == rollout.batches  # never one a target
    own = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(rollout.runs[0])]))
    with SyncPrefectClient(api=settings.prefect_api) as client:
        assert len(client.read_artifacts(artifact_filter=own)) == rollout.batches  # written anew as the batch goes
    assert set(_running(settings).values()) == {new.digest}
    held = _with(settings, lambda js: rollouts.held(js, CAST.names()))
    assert {each.desired.shadow for each in held.values() if each.desired} == {None}


def test_wrong_predictions_stop_in_wave_one_and_go_back(settings: Settings) -> None:
    """It installs, passes its canary, and halves everything: one target has tried it, and runs the old one again."""
    old, bad = _publish(settings, Toy(3)), _publish(settings, Toy(4, gain=0.5))
    _roll(old, AT_ONCE)
    with pytest.raises(ReleaseError, match=r"rolled back: .*(shift|disagreement) breached"):
        _roll(bad)
    rollout = _newest(settings)
    assert (rollout.phase, rollout.asked) == (Phase.ROLLED_BACK, 1)
    assert rollout.findings[-1] == "1 of 1 targets are back"
    assert set(_running(settings).values()) == {old.digest}


def test_a_person_decides_where_the_plan_asks(settings: Settings) -> None:
    """The run pauses with a form; the choice filled in there is carried out."""
    old, bad = _publish(settings, Toy(5)), _publish(settings, Toy(6, gain=0.5))
    _roll(old, AT_ONCE)
    plan = Plan.model_validate({**PLAN.model_dump(), "on_breach": "ask"})
    with _Running(bad, plan) as running:
        rollout = _await(settings, lambda rollout: rollout.release == bad.digest and rollout.phase is Phase.ASKING)
        with SyncPrefectClient(api=settings.prefect_api) as client:
            _until(lambda: client.read_flow_run(rollout.runs[0]).state.is_paused())  # type: ignore
            resume(client, UUID(rollout.runs[0]), {"choice": "stop"})
        assert "was stopped" in str(running.error())
    assert _newest(settings).phase is Phase.STOPPED
    assert sorted(map(str, _running(settings).values())) == sorted([old.digest] * 11 + [bad.digest])


def test_paused_it_asks_nobody_until_resumed(settings: Settings) -> None:
    """The first wave is proved and soaked, and the second does not begin."""
    old, new = _publish(settings, Toy(15)), _publish(settings, Toy(7))
    _roll(old, AT_ONCE)  # the first wave may meet the target that another test left with a bad release
    with _Running(new, PLAN) as running:
        rollout = _await(settings, lambda rollout: rollout.release == new.digest and rollout.asked == 1)
        _say("pause", rollout.name)
        _await(settings, lambda rollout: rollout.phase is Phase.PAUSED)
        time.sleep(PLAN.waves[0].soak_s + 1)  # long enough for the wave to have passed, were it not paused
        assert _newest(settings).asked == 1
        _say("resume", rollout.name)
        assert running.result().last.proved == 12


def test_a_newer_rollout_supersedes_one_that_is_stuck(settings: Settings) -> None:
    """It waits for nobody, and the older one ends without touching what the newer asks."""
    stuck, newer = _publish(settings, Toy(8)), _publish(settings, Toy(9))
    with _Running(stuck, STUCK, MUTED) as older:
        _await(settings, lambda rollout: rollout.release == stuck.digest and rollout.asked == 1)
        _roll(newer, ANYHOW, MUTED)
        assert isinstance(older.error(), OvertakenError)
    phases = {head.rollout.release: head.rollout.phase for head in _with(settings, rollouts.heads)}
    assert (phases[stuck.digest], phases[newer.digest]) == (Phase.SUPERSEDED, Phase.COMPLETED)
    assert _asked(settings) == {newer.digest}


def test_cancelled_nothing_is_left_to_happen(settings: Settings) -> None:
    """Who had not answered is asked for what it ran; whoever comes later finds nothing of the rollout."""
    new = _publish(settings, Toy(10))
    before = _asked(settings)
    with _Running(new, STUCK, MUTED) as running:
        rollout = _await(settings, lambda rollout: rollout.release == new.digest and rollout.asked == 1)
        assert new.digest in _asked(settings)
        _say("cancel", rollout.name)
        assert isinstance(running.error(), OvertakenError)
    assert withdraw(settings, rollout.runs[0]) == ()  # the hook of the flow finds it done
    assert _newest(settings).phase is Phase.CANCELLED
    assert _asked(settings) == before


def test_another_process_of_the_same_run_goes_on_where_the_one_before_was(settings: Settings) -> None:
    """As when it was suspended and resumed, or killed: one rollout; batches that passed are not gone through again."""
    new = _publish(settings, Toy(16))
    plan = ANYHOW.model_copy(update={"waves": STUCK.waves})

    @flow(name="test-resumed", validate_parameters=False)
    def twice() -> Any:
        begun = begin_rollout(new, MUTED, plan)
        for number, wave_number in enumerate(begun.waves, 1):
            wave.run_batch(begun, number, wave_number, plan)
        return begun.name, roll_out(new, MUTED, plan)

    name, rolled = twice()
    rollout = _newest(settings)
    assert (rollout.name, rolled.name, rollout.phase) == (name, name, Phase.COMPLETED)
    wanted = ["wave 1, batch 1", "wave 2, batch 2", "wave 2, batch 2"]
    _until(lambda: sorted(task for task in _tasks(settings, rollout) if task.startswith("wave")) == wanted)


def test_a_process_leaves_its_rollout_to_another_one_of_its_run(settings: Settings) -> None:
    """It says nothing of how the run ended, which goes on; and asks nobody any more."""
    new = _publish(settings, Toy(17))
    with _Running(new, STUCK, MUTED) as running:
        rollout = _await(settings, lambda rollout: rollout.release == new.digest and rollout.asked == 1)
        begun = resumed(settings, new, STUCK, rollout.runs)
        assert begun is not None
        assert (begun.name, begun.waves, begun.reached) == (rollout.name, (1, 2), 1)
        assert isinstance(running.error(), Pause)
    assert _newest(settings).phase is Phase.RUNNING
    assert resumed(settings, new, STUCK, ["another run"]) is None
    assert withdraw(settings, rollout.runs[0]) == (rollout.name,)


def test_a_pause_that_nobody_ends_in_time_stops_the_rollout_where_it_is(settings: Settings) -> None:
    """Prefect fails such a run; no further target is asked."""
    new = _publish(settings, Toy(18))
    with _Running(new, STUCK, MUTED) as running:
        rollout = _await(settings, lambda rollout: rollout.release == new.digest and rollout.asked == 1)
        with SyncPrefectClient(api=settings.prefect_api) as client:
            client.set_flow_run_state(UUID(rollout.runs[0]), Failed(message="paused and never resumed"), force=True)
        assert "was stopped: its flow run was ended in Prefect" in str(running.error())
    rollout = _newest(settings)
    assert (rollout.phase, rollout.asked) == (Phase.STOPPED, 1)


def test_while_it_is_suspended_its_gates_are_looked_after(settings: Settings) -> None:
    """As the button of Prefect's page does it, which ends no process: a breach stops the rollout all the same."""
    new = _publish(settings, Toy(21))
    plan = STUCK.model_copy(update={"limits": STUCK.limits.model_copy(update={"deadline_s": 3}), "on_breach": "stop"})
    with _Running(new, plan, MUTED) as running:
        rollout = _await(settings, lambda rollout: rollout.release == new.digest and rollout.asked == 1)
        with SyncPrefectClient(api=settings.prefect_api) as client:
            client.set_flow_run_state(UUID(rollout.runs[0]), Suspended(timeout_seconds=300), force=True)
        _await(settings, lambda rollout: rollout.phase is Phase.PAUSED)
        running.error()  # of Prefect: it reschedules no run without a deployment, as this one is
    rollout = _newest(settings)
    assert (rollout.phase, rollout.findings[0]) == (
        Phase.STOPPED,
        "silence breached: 1 of 1 targets are silent (limit 10%)",
    )


def test_nobodys_answer_is_the_one_that_the_question_names(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person is waited for, but not for ever."""
    monkeypatch.setattr(rollout_tasks, "DECISION_S", 1)
    monkeypatch.setattr(rollout_tasks, "DECISION_POLL_S", 0.2)
    new = _publish(settings, Toy(19))

    @flow(name="test-unanswered", validate_parameters=False)
    def unanswered() -> Any:
        begun = begin_rollout(new, MUTED, STUCK)
        choice = rollout_tasks.ask_person(begun, "Go on?", rollout_tasks.Choice.STOP)
        withdraw(settings, begun.runs[0])
        return choice

    assert unanswered() is rollout_tasks.Choice.STOP


@pytest.mark.parametrize(("failure", "tries"), [(ReleaseError("no target bears it"), 1), (StoreError("away"), 3)])
def test_what_a_person_has_to_mend_is_not_tried_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, failure: Exception, tries: int
) -> None:
    """A label that was mistyped is said at once; a broker that is away may come back."""
    tried = []

    def begin(*_: object) -> None:
        tried.append(1)
        raise failure

    monkeypatch.setattr(rollout_tasks, "begin", begin)
    monkeypatch.setattr(rollout_tasks, "begin_rollout", begin_rollout.with_options(retry_delay_seconds=0.01))
    with pytest.raises(type(failure)):
        _roll(Released("toy", 1, "run", "d", "m", new=False), AT_ONCE)
    assert len(tried) == tries


@pytest.mark.parametrize(
    ("approval", "asked"), [("never", []), ("after the first wave", [3]), ("before every wave", [1, 3, 4])]
)
def test_a_person_is_asked_before_waves_and_not_before_each_batch(approval: str, asked: list[int]) -> None:
    """The first wave has two batches here, since a site could not spare all of its targets at once."""
    plan, waves = Plan.model_validate({"approval": approval}), (1, 1, 2, 3)
    assert [number for number in (1, 2, 3, 4) if rollout_tasks._asks_before(plan, waves, number)] == asked


def test_a_target_whose_reports_cannot_be_used_is_shown_as_that(settings: Settings) -> None:
    """It stops no rollout by itself; the live artifact and the list of targets say why it is not proved."""
    new, bad = _publish(settings, Toy(12)), b'{"target":"mute-1","at_us":0,"runtime":"1","served":{"windows":-1}}'
    _with(settings, lambda js: js.publish(f"$KV.{broker.REPORTED}.mute-1", bad))
    rolled = _roll(new, ANYHOW, MUTED)
    assert (rolled.last.asked, rolled.last.proved) == (2, 0)
    key = ArtifactFilter(key=ArtifactFilterKey(any_=["deploy"]))
    with SyncPrefectClient(api=settings.prefect_api) as client:
        shown = client.read_artifacts(artifact_filter=key, sort=ArtifactSort.CREATED_DESC, limit=1)[0].data
    assert "| mute-1 | silent | nothing | its last report cannot be read:" in str(shown)
    assert "| mute-2 | silent | nothing | has never reported" in str(shown)
    listed = CliRunner().invoke(app, ["target", "list", "--label", MUTED[0]], env={"COLUMNS": "250"}).output
    assert listed.count("its last report cannot be read") == 1


def test_who_joins_later_gets_what_was_rolled_out(settings: Settings) -> None:
    """By labels, once; and those who had it are not asked again."""
    new = _publish(settings, Toy(11))
    _roll(new, AT_ONCE, ["site=1"])
    lake = Lake(settings)
    joiners = [fleet.Target("late", (DEVICE,), ("site=1",)), fleet.Target("else", (DEVICE,), ("site=9",))]
    fleet.add_targets(settings, lake, joiners)
    assert "late" in converge(settings)
    assert converge(settings) == ()
    held = _with(settings, lambda js: rollouts.held(js, ["late"]))
    assert held["late"].desired is not None
    assert held["late"].desired.release == new.digest
    fleet.remove_targets(settings, lake, ["late", "else"])
    assert {"late", "else"}.isdisjoint(target.name for target in fleet.targets(lake))
    assert _with(settings, lambda js: rollouts.held(js, ["late"])) == {}


def test_who_joins_later_gets_what_came_before_a_release_that_was_revoked(settings: Settings) -> None:
    """The rollout of the revoked one stays completed, and counts for nobody any more."""
    good, bad = _publish(settings, Toy(13)), _publish(settings, Toy(14))
    for each in (good, bad):
        _roll(each, AT_ONCE, ["site=1"])
    releases.revoke(settings, f"toy/{bad.version}", "gives wrong numbers")
    lake = Lake(settings)
    fleet.add_targets(settings, lake, [fleet.Target("later", (DEVICE,), ("site=1",))])
    assert converge(settings) == ("later",)
    held = _with(settings, lambda js: rollouts.held(js, ["later"]))
    assert held["later"].desired is not None
    assert held["later"].desired.release == good.digest
    fleet.remove_targets(settings, lake, ["later"])


def test_each_site_changes_by_parts(settings: Settings) -> None:
    """Of its four targets two stay while two change, within one wave."""
    new = _publish(settings, Toy(20))
    _roll(new, AT_ONCE.model_copy(update={"healthy_per_site": 2}))
    rollout = _newest(settings)
    members = _with(settings, lambda js: rollouts.membership(js, rollout.name))
    sites = {name: labels[1] for name, labels in CAST.labels().items()}
    assert [Counter(sites[name] for name in batch) for batch in members.batches] == [
        {"site=0": 2, "site=1": 2, "site=2": 2}
    ] * 2
    assert (rollout.phase, {site.room for site in members.sites}) == (Phase.COMPLETED, {2})


def test_a_faulty_runtime_is_refused_and_what_ran_nothing_runs_nothing_again(theatre: Settings) -> None:
    """On a stage of its own: half of the gateways give other numbers on the canary, and lines lose requests.

    Though so many may fail, a site keeps half of its targets at work.
    """
    cast = Cast(8, processes=1, heartbeat_s=0.3, faults=Faults(faulty=0.5, loss=0.1, latency_s=0.002), seed=3)
    wanted = r"failures breached: .* targets failed .*runtime gives other numbers"
    with stage({"prefect_url": theatre.prefect_ui}) as own, pytest.MonkeyPatch.context() as patch:
        for name, value in own.environment().items():
            patch.setenv(name, value)
        enrol(own, cast, PROFILE_NAME)
        new = _publish(own, Toy(1))
        with (
            temporary_settings({PREFECT_API_URL: own.prefect_api}),
            playing(own, cast) as play,
        ):
            with pytest.raises(ReleaseError, match=wanted):
                _roll(new, AT_ONCE, [])
            with pytest.raises(ReleaseError, match="sites breached: site 0 has room for 4 of 8 targets out at once"):
                _roll(new, SPARING, [])
            assert _newest(own).asked == 4
    assert "faulty" in play.fates().values()
    assert sum(part.lost for part in play.outcomes) > 0
    assert set(play.running().values()) == {None}


def test_drifted_inputs_show_in_what_is_predicted(theatre: Settings) -> None:
    """On a stage of its own: half of the gateways see other windows than the model learnt, and report other scores."""
    cast = Cast(6, processes=1, heartbeat_s=0.3, windows_per_s=200, faults=Faults(drifted=0.5), seed=3)
    with stage({"prefect_url": theatre.prefect_ui}) as own, pytest.MonkeyPatch.context() as patch:
        for name, value in own.environment().items():
            patch.setenv(name, value)
        enrol(own, cast, PROFILE_NAME)
        with temporary_settings({PREFECT_API_URL: own.prefect_api}), playing(own, cast) as play:
            _roll(_publish(own, Toy(1)), AT_ONCE, [])
            _until(lambda: all(scores.count > 500 for scores in _scores(own, cast).values()))
            scores = _scores(own, cast)
    drifted = [scores[name] for name, fate in play.fates().items() if fate == "drifted"]
    well = [scores[name] for name, fate in play.fates().items() if fate == "well"]
    assert len(drifted) + len(well) == len(cast.names())
    assert drifted
    assert min(distance(each, other) for each in drifted for other in well) > 0.25
    assert max(distance(each, other) for each in well for other in well) < 0.25


def test_targets_are_chosen_by_devices_and_labels() -> None:
    """A target counts if it serves a device that the release can read; no labels choose all of these."""
    targets = (
        fleet.Target("a", ("d1",), ("site=n", "x=1")),
        fleet.Target("b", ("d2", "d9"), ("site=s", "x=1")),
        fleet.Target("c", ("d3",)),
    )
    assert select(targets, [], {"d1", "d2"}) == targets[:2]
    assert select(targets, ["x=1", "site=s"], {"d1", "d2"}) == (targets[1],)
    wanted = (
        "site=w that serve devices .*, got none of 3: labels there are: site=n, site=s, x=1; `fieldloop target add`"
    )
    with pytest.raises(ReleaseError, match=wanted):
        select(targets, ["site=w"], {"d1", "d2"})
    with pytest.raises(ReleaseError, match="fieldloop target add"):
        select((), [], {"d1"})


class _Running:
    """A rollout in a thread of its own; cancelled where the test leaves it running."""

    def __init__(self, released: Released, plan: Plan, labels: Sequence[str] = PLAYING) -> None:
        self._outcome: Rolled | BaseException | None = None
        context = contextvars.copy_context()  # Prefect keeps in it which server it speaks to
        self._thread = threading.Thread(target=context.run, args=(self._run, released, plan, labels), daemon=True)

    def __enter__(self) -> "_Running":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the rollout still runs"

    def _run(self, released: Released, plan: Plan, labels: Sequence[str]) -> None:
        try:
            self._outcome = _roll(released, plan, labels)
        except (Exception, Pause) as exc:
            self._outcome = exc

    def result(self) -> Rolled:
        """Wait for a rollout that completes."""
        self._thread.join(PATIENCE_S)
        assert isinstance(self._outcome, Rolled), self._outcome
        return self._outcome

    def error(self) -> BaseException:
        """Wait for a rollout that fails, or is left to another process."""
        self._thread.join(PATIENCE_S)
        assert isinstance(self._outcome, BaseException), self._outcome
        return self._outcome


def _roll(released: Released, plan: Plan = PLAN, labels: Sequence[str] = PLAYING) -> Rolled:
    @flow(name="test-rollout", validate_parameters=False)
    def run() -> Any:
        return roll_out(released, labels, plan)

    rolled: Rolled = run()
    return rolled


def _publish(settings: Settings, toy: Toy) -> Released:
    published = releases.publish(settings, make("toy", toy))
    return Released("toy", toy.version, "run", published.digest, published.manifest, published.new)


def _tasks(settings: Settings, rollout: Rollout) -> list[str]:
    """Return the names of the tasks that carried out a rollout."""
    own = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(rollout.runs[0])]))
    with SyncPrefectClient(api=settings.prefect_api) as client:
        return [run.name for run in client.read_task_runs(flow_run_filter=own)]


def _say(word: str, name: str) -> None:
    """Say a word to a rollout on the command line."""
    CliRunner().invoke(app, ["rollout", word, name], catch_exceptions=False)


def _newest(settings: Settings) -> Rollout:
    rollout: Rollout = _with(settings, rollouts.heads)[0].rollout
    return rollout


def _running(settings: Settings) -> dict[str, str | None]:
    """Return what each simulated gateway says that it runs."""
    seen = _with(settings, lambda js: rollouts.sightings(js, CAST.names()))
    return {name: s.report.running.release if s.report.running else None for name, s in seen.items()}


def _scores(settings: Settings, cast: Cast) -> dict[str, Sketch]:
    """Return the distribution of predictions that each gateway reports."""
    seen = _with(settings, lambda js: rollouts.sightings(js, cast.names()))
    return {name: seen[name].report.served.scores if name in seen else Sketch() for name in cast.names()}


def _asked(settings: Settings) -> set[str]:
    """Return the releases that the mute targets are asked for; to be asked for nothing is not to be asked."""
    held = _with(settings, lambda js: rollouts.held(js, MUTE))
    return {each.desired.release for each in held.values() if each.desired and each.desired.release}


def _with(settings: Settings, work: Callable[[JetStreamContext], Any]) -> Any:
    async def run() -> Any:
        async with broker.platform(settings) as (_, js):
            return await work(js)

    return asyncio.run(run())


def _await(settings: Settings, wanted: Callable[[Rollout], bool]) -> Rollout:
    """Wait until the newest rollout is as wanted."""
    found: list[Rollout] = []

    def look() -> bool:
        heads = _with(settings, rollouts.heads)
        found[:] = [head.rollout for head in heads[:1] if wanted(head.rollout)]
        return bool(found)

    _until(look)
    return found[0]


def _until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:.0f} s"
        time.sleep(0.1)
