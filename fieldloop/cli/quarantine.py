"""`fieldloop quarantine`: what acquisition refused, to be listed, looked at, and replayed."""

from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from fieldloop.stores.settings import Settings

SHOWN_ROWS: Final = 20
SHOWN_BYTES: Final = 2000

Reason = Annotated[str | None, typer.Option(help="Only rows with this reason, as `list` writes it.")]
Device = Annotated[str | None, typer.Option(help="Only rows of this device.")]

app = typer.Typer(help="What acquisition refused: list it, look at it, replay it.", no_args_is_help=True)


@app.command("list")
def list_rows(reason: Reason = None, device: Device = None) -> None:
    """Show what waits in quarantine, a line a reason and device, with counts and the time of arrival."""
    from fieldloop.stores.lake import Lake
    from tasks.quarantine import Choice, summary

    found = summary(Lake(Settings()), Choice(reason, device))
    table = Table(box=None, pad_edge=False)
    for column in ("reason", "device", "rows", "messages", "first arrival", "last arrival"):
        table.add_column(column, overflow="fold")
    for row in found.iter_rows(named=True):
        span = (f"{row[name]:%Y-%m-%d %H:%M:%S}" for name in ("first", "last"))
        table.add_row(row["reason"], row["device"], f"{row['rows']:,}", f"{row['messages']:,}", *span)
    console = Console(highlight=False)
    console.print(table if len(found) else "nothing waits in quarantine")


@app.command()
def show(
    sequence: Annotated[
        int | None, typer.Argument(help="Position of a message in its stream; any where left out.")
    ] = None,
    reason: Reason = None,
    device: Device = None,
    rows: Annotated[int, typer.Option(min=1, max=1000, help="At most so many rows.")] = SHOWN_ROWS,
) -> None:
    """Show rows as they are kept, each with what was expected and its raw bytes, and what became of it."""
    from fieldloop.stores.lake import Lake
    from tasks.quarantine import Choice, history

    for row in history(Lake(Settings()), Choice(reason, device, sequence), rows).iter_rows(named=True):
        metric = f", {row['metric']}" if row["metric"] else ""
        typer.echo(f"{row['sequence']}  {row['subject']}  {row['arrival_time']:%Y-%m-%d %H:%M:%S.%f} UTC")
        typer.echo(f"  {row['reason']}{metric}: {row['detail']}")
        if row["payload"]:
            typer.echo(f"  {len(row['payload']):,} bytes: {printable(row['payload'])}")


@app.command()
def replay(
    reason: Reason = None,
    device: Device = None,
    sequence: Annotated[int | None, typer.Option(help="Only the message at this position of its stream.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything that waits.")] = False,
) -> None:
    """Decode messages again by the profiles as they are now; what is good lands in `readings`, once."""
    from tasks.quarantine import Choice
    from tasks.quarantine import replay as replay_messages

    if not everything and reason is None and device is None and sequence is None:
        raise typer.BadParameter("say which: --reason, --device, --sequence, or --all")
    done = replay_messages(Settings(), Choice(reason, device, sequence))
    typer.echo(
        f"{done.messages:,} messages: {done.readings:,} new readings, {done.duplicates:,} were there already; "
        f"{done.settled:,} messages are settled, {done.refused:,} rows stay in quarantine"
    )


def printable(payload: bytes) -> str:
    """Return raw bytes as one line of text, what cannot be printed escaped, the first two thousand at most."""
    text = payload[:SHOWN_BYTES].decode("utf-8", "backslashreplace")
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return line + ("…" if len(payload) > SHOWN_BYTES else "")
