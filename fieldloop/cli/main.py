"""The command line: `fieldloop up`, and the rest of a day with it."""

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from fieldloop.cli import device, keys, model, profile, quarantine, recipe, release, rollout, source, suite, target
from fieldloop.cli.lineage import lineage
from fieldloop.cli.rehearse import rehearse
from fieldloop.domain.errors import FieldloopError, ServiceError
from fieldloop.stores.settings import Settings
from infra.local import minio, platform
from infra.local.stack import ServiceState

SAY_EVERY_S: Final = 5
LOG_LINES: Final = 40
FOLLOW_S: Final = 0.3


class Fieldloop(typer.Typer):
    """A Typer application whose own errors are one line on standard error and exit status 1."""

    def __call__(self) -> None:
        """Run the command line."""
        logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of every TLS connection that the broker ends
        try:
            super().__call__()
        except FieldloopError as exc:
            sys.exit(f"fieldloop: {exc}")
        except ValidationError as exc:
            wrong = "; ".join(f"FIELDLOOP_{str(e['loc'][0]).upper()}: {e['msg']}" for e in exc.errors())
            sys.exit(f"fieldloop: {wrong}")


app = Fieldloop(
    name="fieldloop",
    help="MLOps for fleets of IoT devices: the platform on this machine, from `up` to `down`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


app.add_typer(device.app, name="device")
app.add_typer(target.app, name="target")
app.add_typer(release.app, name="release")
app.add_typer(rollout.app, name="rollout")
app.add_typer(keys.app, name="keys")
app.command("rehearse")(rehearse)
app.command("lineage")(lineage)
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(profile.app, name="profile")
app.add_typer(suite.app, name="suite")
app.add_typer(source.app, name="source")
app.add_typer(recipe.app, name="recipe")
app.add_typer(model.app, name="model")


@app.command()
def up() -> None:
    """Start the platform: object store, broker, Prefect with a worker, MLflow. It stays until `fieldloop down`."""
    console, settings, began = Console(highlight=False), Settings(), time.monotonic()
    console.print(f"starting the platform; data, logs and secrets: {settings.data_dir}", soft_wrap=True)
    fresh = platform.up(settings, lambda state: _say_ready(console, state), _Patience(console))
    if not fresh:
        console.print("the platform is up already; nothing was changed")
    for line in _addresses(settings):
        console.print(line, soft_wrap=True)
    if fresh:
        console.print(f"up in {time.monotonic() - began:.1f} s; `fieldloop status` looks, `fieldloop down` stops it")


@app.command()
def down() -> None:
    """Stop the platform and the agents on this machine. All data stays."""
    began = time.monotonic()
    ran = platform.down(Settings())
    typer.echo(f"stopped in {time.monotonic() - began:.1f} s; the data stays" if ran else "nothing was running")


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Show each service, what it is and whether it answers. Exit status 1 unless all are ready."""
    found = platform.status(Settings())
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        _show(found)
    raise typer.Exit(0 if found.ready else 1)


@app.command()
def logs(
    service: Annotated[
        str | None, typer.Argument(help="One service, for instance `mlflow`; all where left out.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines are written, until Ctrl-C.")] = False,
) -> None:
    """Show the last lines of the services' logs."""
    files = _log_files(Settings(), service)
    for path in files:
        for line in path.read_text(errors="replace").splitlines()[-LOG_LINES:]:
            typer.echo(f"{path.stem:12} {line}" if len(files) > 1 else line)
    if follow:
        _follow(files)


@app.command(name="minio")
def build_minio() -> None:
    """Build the MinIO object store into the user's cache folder; once, about three minutes."""
    minio.build(typer.echo)


@app.command()
def demo() -> None:
    """Take real wind turbines' data once round the whole loop; the platform stays up to be looked at."""
    from fieldloop.cli.demo import RECIPE, run_demo, show
    from fieldloop.stores import registry

    console, settings, began = Console(highlight=False), Settings(), time.monotonic()
    up()
    outcome = run_demo(settings, console)
    outcome.add("in all", "", time.monotonic() - began)
    show(console, outcome)
    champion = registry.version(settings, RECIPE, "champion")
    for line in (*_addresses(settings), f"champion {registry.version_url(settings, champion)}"):
        console.print(line, soft_wrap=True)
    console.print("all of it stays up to be looked at; `make down` stops it", soft_wrap=True)
    raise typer.Exit(1 if outcome.wrong else 0)


class _Patience:
    """Says every few seconds which services are still awaited."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, names: Sequence[str], seconds: float) -> None:
        if int(seconds) % SAY_EVERY_S == 0:
            self._console.print(f"  … {int(seconds):3d} s  waiting for {', '.join(names)}", soft_wrap=True)


def _say_ready(console: Console, state: ServiceState) -> None:
    seconds = f"{state.seconds or 0:5.1f} s"
    console.print(f"  {state.name:8} {state.title:15} ready {seconds}  {state.url}".rstrip(), soft_wrap=True)


def _addresses(settings: Settings) -> list[str]:
    return [
        f"Prefect  {settings.prefect_ui}",
        f"MLflow   {settings.mlflow_endpoint}/#/experiments",  # its front page welcomes, and shows nothing of ours
        f"reports  {settings.reports_front}",
    ]


def _show(found: platform.PlatformStatus) -> None:
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("service", "what", "state", "pid", "address", "log"):
        table.add_column(column, overflow="fold")
    for each in found.services:
        pid = "" if each.pid is None else str(each.pid)
        table.add_row(each.name, each.title, each.phase, pid, each.url, Path(each.log).name if each.log else "")
    console.print(table)
    console.print(f"data and logs: {found.data_dir}", soft_wrap=True)
    if not found.ready:
        console.print(f"not ready: {found.reason}", soft_wrap=True)


def _log_files(settings: Settings, service: str | None) -> list[Path]:
    """Return the log files to show.

    Raises:
        ServiceError: there are none.
    """
    folder = settings.data_dir / "logs"
    files = sorted(folder.glob("*.log"))
    chosen = [path for path in files if service in (None, path.stem)]
    if not chosen:
        there = ", ".join(path.stem for path in files) or "none yet"
        raise ServiceError(f"no log of {service or 'any service'} in {folder}; there are: {there}")
    return chosen


def _follow(files: list[Path]) -> None:
    """Print what is appended to the files until interrupted; a file that was moved aside is read anew."""
    positions = {path: path.stat().st_size for path in files}
    try:
        while True:
            for path in files:
                positions[path] = _print_from(path, positions[path], prefix=len(files) > 1)
            time.sleep(FOLLOW_S)
    except KeyboardInterrupt:
        return


def _print_from(path: Path, position: int, *, prefix: bool) -> int:
    """Print a file's whole lines from a position on; return where to go on."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(position if path.stat().st_size >= position else 0)
        start, data = file.tell(), file.read()
    whole = data[: data.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines():
        typer.echo(f"{path.stem:12} {line}" if prefix else line)
    return start + len(whole)


if __name__ == "__main__":
    app()
