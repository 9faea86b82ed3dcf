"""`fieldloop suite`: what validation expects, made from readings that were good."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from fieldloop.stores.settings import Settings

app = typer.Typer(help="What validation expects, beside the profile.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `make` a command of its own while it is the only one."""


@app.command()
def make(
    name: Annotated[str, typer.Argument(help="The suite's; validation takes the one that is named as its profile.")],
    profile: Annotated[str, typer.Option(help="Whose devices: a file of expectations/profiles/ without its ending.")],
    since: Annotated[datetime | None, typer.Option(help="Event time from which on, UTC.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Event time before which, UTC.")] = None,
    recipe: Annotated[str | None, typer.Option(help="In place of --until: before this recipe's training ends.")] = None,
    device: Annotated[list[str] | None, typer.Option(help="Only this device; may be given again.")] = None,
    version: Annotated[int | None, typer.Option(help="Of table `readings`; the newest where left out.")] = None,
    margin: Annotated[float, typer.Option(min=0, max=0.9, help="Widens bounds and lowers shares by so much.")] = 0.1,
) -> None:
    """Write expectations/suites/NAME.yaml from what a profile's devices showed in the lake."""
    from expectations.references import write_suite
    from tasks.suites import make_suite, training_until

    settings = Settings()
    end = training_until(settings, recipe) if recipe else _utc(until)
    suite = make_suite(settings, name, profile, _utc(since), end, device or (), version, margin)
    path = write_suite(settings.root, suite)
    reference = suite.reference
    typer.echo(f"{path.relative_to(settings.root)}: {len(suite.metrics)} metrics, from {reference.readings:,} readings")


def _utc(moment: datetime | None) -> datetime | None:
    """Return a time as typed, with its zone."""
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)
