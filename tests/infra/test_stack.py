"""Supervision, with small programs as services: order, failure, restart, and that nothing is ever left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import psutil
import pytest

from fieldloop.domain.errors import ServiceError
from fieldloop.stores.settings import Settings
from infra.local.guardian import MARK, marked
from infra.local.stack import Port, Spec, StackState, stack_status, start_stack, stop_stack

DEADLINE_S = 20.0


@pytest.fixture
def settings(free_settings: Callable[..., Settings]) -> Iterator[Settings]:
    """A data folder whose stack `small` is stopped afterwards."""
    made = free_settings()
    yield made
    stop_stack(made, "small")


def test_a_service_starts_after_the_one_it_needs(settings: Settings) -> None:
    """The second is started only once the first answers."""
    first = _server(settings, "first")
    start_stack(settings, "small", [_sleeper("second", after=("first",)), first])
    state = _state(settings)
    assert state.phase == "running"
    assert (state.service("first").seconds or 0) < (state.service("second").seconds or 0)


def test_a_second_start_changes_nothing(settings: Settings) -> None:
    """The same processes go on."""
    specs = [_sleeper("one")]
    assert start_stack(settings, "small", specs)
    before = _state(settings)
    assert not start_stack(settings, "small", specs)
    assert _state(settings) == before


def test_a_start_with_other_settings_is_refused_while_it_runs(settings: Settings) -> None:
    """Neither ignored nor half applied."""
    start_stack(settings, "small", [_sleeper("one")])
    with pytest.raises(ServiceError, match="runs with other settings"):
        start_stack(settings, "small", [_sleeper("two")])


def test_a_taken_port_is_named_with_its_holder_and_setting(settings: Settings) -> None:
    """Nothing is started then."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", settings.store_port))
        holder.listen()
        with pytest.raises(ServiceError) as caught:
            start_stack(settings, "small", [_sleeper("one"), _server(settings, "two")])
    assert f"port {settings.store_port} on 127.0.0.1 is taken by process {os.getpid()}" in str(caught.value)
    assert "FIELDLOOP_STORE_PORT" in str(caught.value)
    assert stack_status(settings, "small") is None


def test_a_missing_program_is_named(settings: Settings) -> None:
    """Before anything is started."""
    with pytest.raises(ServiceError, match="its program /nowhere/weed is missing"):
        start_stack(settings, "small", [Spec(name="one", title="One", argv=("/nowhere/weed",))])


def test_a_service_that_dies_while_starting_stops_the_rest(settings: Settings) -> None:
    """The error names it, its status, its log and its last words."""
    dying = _shell("dying", "echo it is too cold; exit 3", ready="http://127.0.0.1:1/")
    with pytest.raises(ServiceError) as caught:
        start_stack(settings, "small", [_sleeper("one"), dying])
    log = settings.data_dir / "logs" / "dying.log"
    assert "Dying ended with exit status 3" in str(caught.value)
    assert f"its log: {log} (it is too cold)" in str(caught.value)
    assert "\n" not in str(caught.value)
    _assert_nothing_left(_state(settings))


def test_a_service_that_never_gets_ready_stops_the_rest(settings: Settings) -> None:
    """It is given its time and no more."""
    silent = Spec(
        name="silent", title="Silent", argv=_argv("sleep 100"), ready="tcp://127.0.0.1:1", ready_timeout_s=0.5
    )
    with pytest.raises(ServiceError, match="Silent was not ready after 0 s; its log"):
        start_stack(settings, "small", [silent])
    _assert_nothing_left(_state(settings))


def test_a_failed_start_waits_for_no_preparation(settings: Settings) -> None:
    """What is prepared meanwhile, such as a connection to a broker that is gone, may take long to give up."""
    begun, released, ended = settings.data_dir / "begun", Event(), Event()

    def prepare() -> None:
        begun.touch()
        released.wait(DEADLINE_S)
        ended.set()

    dying = _shell("dying", f"until [ -e {begun} ]; do sleep 0.1; done", ready="")
    with pytest.raises(ServiceError, match="Dying ended with exit status 0"):
        start_stack(settings, "small", [_sleeper("one"), dying], prepare={"one": prepare})
    assert not ended.is_set()
    released.set()


def test_a_preparation_that_fails_stops_everything(settings: Settings) -> None:
    """A service that runs but cannot be prepared is of no use."""

    def fail() -> None:
        raise ValueError("no such bucket")

    with pytest.raises(ServiceError, match="one runs but could not be prepared: ValueError: no such bucket"):
        start_stack(settings, "small", [_sleeper("one")], prepare={"one": fail})
    _assert_nothing_left(_state(settings))


def test_a_service_that_dies_later_stops_the_rest(settings: Settings) -> None:
    """The reason stays to be read."""
    start_stack(settings, "small", [_sleeper("one"), _sleeper("two")])
    os.kill(_pid(_state(settings), "two"), signal.SIGKILL)
    _until(lambda: _state(settings).phase == "failed")
    assert "Two ended by signal SIGKILL" in _state(settings).reason
    _until(lambda: not marked("FIELDLOOP_SUPERVISOR", _state(settings).stack_id))
    _assert_nothing_left(_state(settings))


def test_a_service_that_may_restart_is_started_again(settings: Settings) -> None:
    """The others go on as if nothing had been."""
    start_stack(settings, "small", [_sleeper("one"), _sleeper("agent", restart=True)])
    before = _state(settings)
    os.kill(_pid(before, "agent"), signal.SIGKILL)
    _until(
        lambda: _state(settings).service("agent").restarts == 1 and _state(settings).service("agent").phase == "ready"
    )
    assert _pid(_state(settings), "agent") != _pid(before, "agent")
    assert _pid(_state(settings), "one") == _pid(before, "one")


def test_a_stop_ends_grandchildren_that_left_their_group(settings: Settings) -> None:
    """Whatever carries the stack's mark is ended, also where it ignores SIGTERM."""
    start_stack(settings, "small", [_family("family")])
    state = _state(settings)
    _until(lambda: len(marked(MARK, state.stack_id)) >= 3)
    assert stop_stack(settings, "small")
    assert _state(settings).phase == "stopped"
    _assert_nothing_left(state)
    assert not stop_stack(settings, "small")


def test_killing_the_supervisor_leaves_no_orphan(settings: Settings) -> None:
    """The guardian ends children and grandchildren; the state says why."""
    start_stack(settings, "small", [_family("family"), _sleeper("one")])
    state = _state(settings)
    _until(lambda: len(marked(MARK, state.stack_id)) >= 4)
    os.kill(state.supervisor, signal.SIGKILL)
    _until(lambda: not marked(MARK, state.stack_id) and not marked("FIELDLOOP_SUPERVISOR", state.stack_id))
    assert _state(settings).phase == "failed"
    assert "supervisor was killed" in _state(settings).reason
    assert start_stack(settings, "small", [_sleeper("one")])


def test_a_killed_guardian_is_replaced(settings: Settings) -> None:
    """So that the next kill of the supervisor leaves no orphan either."""
    start_stack(settings, "small", [_sleeper("one")])
    state = _state(settings)
    guardians = set(marked("FIELDLOOP_SUPERVISOR", state.stack_id)) - {state.supervisor}
    os.kill(guardians.pop(), signal.SIGKILL)
    _until(lambda: len(marked("FIELDLOOP_SUPERVISOR", state.stack_id)) == 2)
    os.kill(state.supervisor, signal.SIGKILL)
    _until(lambda: not marked(MARK, state.stack_id))


def test_killing_the_starter_before_all_is_ready_leaves_no_orphan(settings: Settings, tmp_path: Path) -> None:
    """Nobody said `keep`: the supervisor stops what it started."""
    script = tmp_path / "start.py"
    script.write_text(
        "from infra.local.stack import Spec, start_stack\n"
        "from fieldloop.stores.settings import Settings\n"
        "start_stack(Settings(), 'small', [\n"
        "    Spec(name='one', title='One', argv=('/bin/sh', '-c', 'sleep 100 & sleep 100')),\n"
        "    Spec(name='two', title='Two', argv=('/bin/sh', '-c', 'sleep 100'), ready='tcp://127.0.0.1:1'),\n"
        "])\n"
    )
    starter = subprocess.Popen([sys.executable, str(script)], env={**os.environ, **settings.environment()})
    _until(lambda: (state := stack_status(settings, "small")) is not None and state.service("two").pid is not None)
    state = _state(settings)
    starter.kill()
    starter.wait()
    _until(lambda: not marked(MARK, state.stack_id) and not marked("FIELDLOOP_SUPERVISOR", state.stack_id))
    assert "went away before it was ready" in _state(settings).reason


def test_a_service_gets_its_own_environment_alone(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither another service's secrets nor what the caller happens to have."""
    monkeypatch.setenv("SOMEBODYS_TOKEN", "x")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    specs = [Spec(name=name, title=name, argv=_argv("sleep 100"), env={f"SECRET_{name}": "x"}) for name in ("a", "b")]
    start_stack(settings, "small", specs)
    seen = set(psutil.Process(_pid(_state(settings), "a")).environ())
    assert "SECRET_a" in seen
    assert not seen & {"SECRET_b", "SOMEBODYS_TOKEN", "PYTHONDONTWRITEBYTECODE"}


def test_a_log_of_an_earlier_run_is_kept_beside_the_new_one(settings: Settings) -> None:
    """One file a service, one earlier file."""
    for words in ("first", "second", "third"):
        start_stack(settings, "small", [_shell("one", f"echo {words}; sleep 100")])
        log = settings.data_dir / "logs" / "one.log"
        _until(lambda log=log, words=words: log.read_text() == f"{words}\n")
        stop_stack(settings, "small")
    assert log.with_suffix(".log.1").read_text() == "second\n"
    assert sorted(path.name for path in log.parent.glob("one*")) == ["one.log", "one.log.1"]


def _argv(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


def _shell(name: str, script: str, *, ready: str = "") -> Spec:
    return Spec(name=name, title=name.capitalize(), argv=_argv(script), ready=ready)


def _sleeper(name: str, *, after: tuple[str, ...] = (), restart: bool = False) -> Spec:
    return Spec(name=name, title=name.capitalize(), argv=_argv("exec sleep 100"), after=after, restart=restart)


def _family(name: str) -> Spec:
    """A service whose child left its process group and whose grandchild ignores SIGTERM."""
    return _shell(name, "setsid sh -c 'trap \"\" TERM; sleep 100; sleep 100' & exec sleep 100")


def _server(settings: Settings, name: str) -> Spec:
    port = settings.store_port
    return Spec(
        name=name,
        title=name.capitalize(),
        argv=(sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"),
        ready=f"http://127.0.0.1:{port}/",
        ports=(Port("127.0.0.1", port, "FIELDLOOP_STORE_PORT"),),
        cwd=str(settings.data_dir),
    )


def _state(settings: Settings) -> StackState:
    state = stack_status(settings, "small")
    assert state is not None
    return state


def _pid(state: StackState, name: str) -> int:
    pid = state.service(name).pid
    assert pid is not None
    return pid


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


def _assert_nothing_left(state: StackState) -> None:
    assert not marked(MARK, state.stack_id)
    assert not marked("FIELDLOOP_SUPERVISOR", state.stack_id)
