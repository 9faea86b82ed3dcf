"""`fieldloop profile`: what a device profile makes of sample payloads, without the platform."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fieldloop.stores.settings import Settings

if TYPE_CHECKING:
    from expectations.samples import Checked
    from fieldloop.domain.profile import Profile

app = typer.Typer(help="What device models promise.", no_args_is_help=True)


@app.command()
def check(
    name: Annotated[str, typer.Argument(metavar="PROFILE", help="A profile's name, or the path of a .yaml file.")],
    samples: Annotated[
        list[Path], typer.Argument(help="Files of one message each, or one a line (.ndjson, .jsonl; .gz after it too).")
    ],
    device: Annotated[
        str | None, typer.Option(help="The device on whose topic they come; else its name is not checked.")
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Every line is a message, whatever the file's name.")] = False,
    arrival: Annotated[datetime | None, typer.Option(help="When they arrive, UTC; now where left out.")] = None,
) -> None:
    """Show what a profile makes of sample payloads. Needs no platform. Exit status 1 if anything is refused."""
    from expectations.samples import check_samples

    profile = _profile(Settings().root, name)
    arrived = arrival.replace(tzinfo=UTC) if arrival else datetime.now(UTC)
    checked = check_samples(profile, samples, device=device, lines=lines, arrival=arrived)
    _show(Console(highlight=False), profile, checked)
    raise typer.Exit(1 if checked.refused else 0)


def _profile(root: Path, name: str) -> "Profile":
    """Return a profile by its file where the name is one, else by its name."""
    from expectations.profiles import load_profile, load_profile_file

    return load_profile_file(Path(name)) if name.endswith((".yaml", ".yml")) else load_profile(root, name)


def _show(console: Console, profile: "Profile", checked: "Checked") -> None:
    console.print(
        f"profile {profile.name} ({profile.format}): {checked.messages:,} messages, {checked.readings:,} readings, "
        f"{checked.repeats:,} of them repeats",
        soft_wrap=True,
    )
    console.print(_metrics(checked))
    if not checked.refused:
        console.print("nothing was refused")
        return
    console.print(f"\nrefused: {sum(refused.count for refused in checked.refused):,}")
    for refused in checked.refused:
        what = f" `{refused.metric}`" if refused.metric else ""
        console.print(f"  {refused.count:,} × {refused.reason}{what}", soft_wrap=True, markup=False)
        console.print(f"      {refused.example}", soft_wrap=True, markup=False)


def _metrics(checked: "Checked") -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    for column in ("readings", "lowest", "highest"):
        table.add_column(column, justify="right")
    for column in ("unit", "first (UTC)", "last (UTC)"):
        table.add_column(column, no_wrap=True)
    for each in checked.metrics:
        low, high = ("–" if value is None else f"{value:g}" for value in (each.low, each.high))
        first, last = ("–" if time is None else f"{time:%Y-%m-%d %H:%M}" for time in (each.first, each.last))
        table.add_row(each.metric, f"{each.readings:,}", low, high, each.unit, first, last)
    return table
