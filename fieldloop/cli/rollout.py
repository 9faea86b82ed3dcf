"""`fieldloop rollout`: what is being rolled out and was, and a person's word in it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID

import typer
from nats.js import JetStreamContext
from rich.console import Console
from rich.table import Table

from fieldloop.domain.errors import ServiceError
from fieldloop.domain.rollout import State
from fieldloop.domain.rollout.record import Membership, Phase, Rollout
from fieldloop.stores import broker, rollouts
from fieldloop.stores.settings import Settings

SHOWN: Final = 20
WIDTH: Final = 110  # of the list, at least: names fold badly
SHOWN_TARGETS: Final = 10

T = TypeVar("T")
Name = Annotated[str, typer.Argument(help="A rollout, as `list` names it.")]

app = typer.Typer(help="Rollouts: list, show, pause, resume, cancel.", no_args_is_help=True)


@app.command("list")
def list_rollouts(
    rows: Annotated[int, typer.Option(min=1, max=1000, help="At most so many, the newest first.")] = SHOWN,
) -> None:
    """Show rollouts, the newest first: how far each has come, and how it ended."""
    heads = asyncio.run(_with(Settings(), rollouts.heads))[:rows]
    table = Table(box=None, pad_edge=False)
    for column in ("rollout", "phase", "batch", "asked", "proved", "failed", "silent", "seconds"):
        table.add_column(column, overflow="fold", no_wrap=column == "rollout")
    for head in heads:
        table.add_row(*_row(head.rollout))
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(table if heads else "nothing was rolled out yet: run *deploy*")


@app.command()
def show(name: Name) -> None:
    """Show one rollout: its waves, what its gates say, and what its targets ran before."""

    async def read(js: JetStreamContext) -> tuple[Rollout, Membership]:
        return (await rollouts.head(js, name)).rollout, await rollouts.membership(js, name)

    rollout, members = asyncio.run(_with(Settings(), read))
    for line in _lines(rollout, members):
        typer.echo(line)


@app.command()
def pause(name: Name) -> None:
    """Hold a rollout: no further target is asked until `resume`; gates still stop it."""
    from prefect.states import Paused

    _tell(_active(name), lambda client, run: client.set_flow_run_state(run, Paused(timeout_seconds=86_400)))
    typer.echo(f"{name}: pauses within seconds; `fieldloop rollout resume {name}` goes on")


@app.command()
def resume(
    name: Name,
    decision: Annotated[str, typer.Option(help="Where the rollout asks: `go on`, `roll back` or `stop`.")] = "go on",
) -> None:
    """Let a paused rollout go on, or answer one that asks."""
    from tasks import answers
    from tasks.rollout import Choice

    if decision not in list(Choice):
        raise typer.BadParameter(f"expected one of {', '.join(Choice)}, got {decision!r}")
    rollout = _active(name)
    answer = {"choice": decision} if rollout.phase is Phase.ASKING else None
    _tell(rollout, lambda client, run: answers.resume(client, run, answer))
    typer.echo(f"{name}: {decision}")


@app.command()
def cancel(name: Name) -> None:
    """End a rollout: proved targets stay, all others are asked for what they ran before; nothing is left to happen."""
    from prefect.states import Cancelling

    from tasks.rollback import withdraw

    rollout = _active(name)
    with suppress(ServiceError):  # its run is over or was never Prefect's to end; the rollout ends all the same
        _tell(rollout, lambda client, run: client.set_flow_run_state(run, Cancelling()), outermost=True)
    for run in rollout.runs:
        withdraw(Settings(), run)
    typer.echo(f"{name}: cancelled")


def _tell(rollout: Rollout, word: Callable[[Any, UUID], Any], *, outermost: bool = False) -> None:
    """Say a word to the flow run that carries out a rollout, or to the outermost run around it.

    Raises:
        ServiceError: there is none, or Prefect does not take the word.
    """
    from prefect.client.orchestration import SyncPrefectClient

    if not rollout.runs:
        raise ServiceError(f"rollout {rollout.name} has no flow run in Prefect")
    with SyncPrefectClient(api=Settings().prefect_api) as client:
        result = word(client, UUID(rollout.runs[-1 if outermost else 0]))
    if result.status.value != "ACCEPT":
        reason = getattr(result.details, "reason", "") or result.status.value
        raise ServiceError(f"rollout {rollout.name}: Prefect says: {reason}")


def _active(name: str) -> Rollout:
    """Return a rollout that is under way.

    Raises:
        ServiceError: it has ended.
    """
    rollout = _read(name)
    if not rollout.active:
        raise ServiceError(f"rollout {name} is {rollout.phase}: there is nothing to do")
    return rollout


def _read(name: str) -> Rollout:
    async def read(js: JetStreamContext) -> Rollout:
        return (await rollouts.head(js, name)).rollout

    return asyncio.run(_with(Settings(), read))


async def _with(settings: Settings, work: Callable[[JetStreamContext], Awaitable[T]]) -> T:
    async with broker.platform(settings) as (_, js):
        return await work(js)


def _row(rollout: Rollout) -> tuple[str, ...]:
    counts = (rollout.states.get(state, 0) for state in (State.PROVED, State.FAILED, State.SILENT))
    return (
        rollout.name,
        rollout.phase,
        f"{rollout.batch} of {rollout.batches}",
        f"{rollout.asked:,} of {rollout.targets:,}",
        *(f"{count:,}" for count in counts),
        f"{(rollout.ended_us - rollout.issued_us) / 1e6:.1f}" if rollout.ended_us else "",
    )


def _lines(rollout: Rollout, members: Membership) -> list[str]:
    counts = ", ".join(f"{count:,} {state}" for state, count in rollout.states.items())
    lines = [
        f"{rollout.name}: {rollout.phase}",
        f"  {rollout.model} version {rollout.version}, release {rollout.release}",
        f"  labels: {', '.join(rollout.labels) or 'all targets'}",
        f"  began {_moment(rollout.issued_us):%Y-%m-%d %H:%M:%S} UTC; {rollout.asked:,} of {rollout.targets:,} asked: "
        f"{counts or 'none'}",
    ]
    for number, batch in enumerate(members.batches, 1):
        state = "asked" if number <= rollout.batch else "waits"
        lines.append(f"  batch {number}: {len(batch):,} targets, {state}: {_some(batch)}")
    lines += [f"  {finding}" for finding in rollout.findings]
    lines += [f"  before: {each.release[:12] or 'nothing'} on {_some(each.targets)}" for each in members.before]
    return lines


def _some(targets: tuple[str, ...]) -> str:
    more = f" and {len(targets) - SHOWN_TARGETS:,} more" if len(targets) > SHOWN_TARGETS else ""
    return ", ".join(targets[:SHOWN_TARGETS]) + more


def _moment(us: int) -> datetime:
    return datetime.fromtimestamp(us / 1e6, UTC)
