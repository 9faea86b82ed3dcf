"""The stage of a rehearsal: a broker, a store and a lake of its own, and processes of simulated gateways.

Nothing of it touches the real fleet: the release is signed anew by keys of the stage's own, the targets are known to
the stage's lake alone, and all is removed at the end. Prefect and MLflow may be the real ones.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import polars as pl

from fieldloop.stores import fleet, releases
from fieldloop.stores.lake import Lake
from fieldloop.stores.releases import Published
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import SCHEMAS
from infra.local import broker, signer, store
from infra.local.authority import make_authority
from infra.local.keys import make_secrets
from infra.local.platform import PLATFORM, prepare_broker
from infra.local.ports import free_ports
from infra.local.stack import Spec, base_environment, start_stack, stop_stack
from infra.rehearsal.faults import Faults
from infra.rehearsal.fleet import Fleet, Outcome

FLEET: Final = "fleet"  # name of the stack of gateway processes
DEVICE: Final = "rehearsal"  # whose readings all simulated targets serve
PORTS: Final = ("store_port", "nats_port", "mqtt_port", "prefect_port", "mlflow_port")
NOTHING: Final = Published("", "", False)


@dataclass(frozen=True)
class Cast:
    """Who plays.

    Attributes:
        targets: how many simulated targets.
        sites: over how many sites, as label `site=<n>`; all bear `fleet=simulated`.
        groups: label of each group of the release, `key=value`, if it has any; targets take them in turn.
        processes: over how many processes.
        faults: what goes wrong.
        seed: of everything that is drawn.
        heartbeat_s: seconds between a target's reports.
        windows_per_s: windows that each target scores.
    """

    targets: int
    sites: int = 1
    groups: tuple[str, ...] = ()
    processes: int = 2
    faults: Faults = field(default_factory=Faults)
    seed: int = 0
    heartbeat_s: float = 15.0
    windows_per_s: float = 1.0

    def names(self) -> tuple[str, ...]:
        """Return the targets' names."""
        return tuple(self.labels())

    def labels(self) -> dict[str, tuple[str, ...]]:
        """Return each target's labels, by name; where groups go by `site`, that is its site."""
        return {f"rehearsal-{number:06d}": self._labels(number) for number in range(self.targets)}

    def _labels(self, number: int) -> tuple[str, ...]:
        own = [self.groups[number // self.sites % len(self.groups)]] if self.groups else []
        sited = any(label.startswith("site=") for label in own)
        return ("fleet=simulated", *([] if sited else [f"site={number % self.sites}"]), *own)


@contextmanager
def stage(further: Mapping[str, Any], specs: Sequence[Any] = ()) -> Iterator[Settings]:
    """Start a broker and a store in a folder of their own, and remove all of it in the end.

    Args:
        further: settings beyond folder and ports, for instance where Prefect and MLflow are.
        specs: functions from settings to further services.
    """
    folder = Path(tempfile.mkdtemp(prefix="fieldloop-rehearsal-"))
    folders = {"data_dir": folder / "data", "keys_dir": folder / "keys"}
    settings = Settings.model_validate({**folders, **dict(zip(PORTS, free_ports(len(PORTS)), strict=True)), **further})
    try:
        make_secrets(settings)
        make_authority(settings)
        start_stack(settings, PLATFORM, [make(settings) for make in (store.spec, broker.spec, signer.spec, *specs)])
        store.prepare(settings)
        prepare_broker(settings)
        yield settings
    finally:
        stop_stack(settings, FLEET)
        stop_stack(settings, PLATFORM)
        shutil.rmtree(folder, ignore_errors=True)


def enrol(settings: Settings, cast: Cast, profile: str) -> None:
    """Enter the simulated targets into the stage's lake; they share one device of this profile."""
    lake, now = Lake(settings), datetime.now(UTC)
    fleet.add_devices(lake, [DEVICE], profile)
    labels = cast.labels()
    rows = {
        "target": list(labels),
        "devices": [[DEVICE]] * len(labels),
        "labels": [list(own) for own in labels.values()],
        "added_at": [now] * len(labels),
    }
    lake.append("targets", pl.DataFrame(rows, schema=SCHEMAS["targets"]))


@contextmanager
def playing(settings: Settings, cast: Cast, installed: Published = NOTHING) -> Iterator["Play"]:
    """Run the simulated gateways for the length of a `with` block; afterwards the play knows what became of them."""
    folder = settings.data_dir / "fleet"
    folder.mkdir(exist_ok=True)
    labels, root, play = list(cast.labels().items()), releases.trusted_root(settings), Play()
    specs = [
        _spec(settings, folder / str(part), dict(labels[part :: cast.processes]), root, cast, installed)
        for part in range(cast.processes)
    ]
    start_stack(settings, FLEET, specs)
    try:
        yield play
    finally:
        stop_stack(settings, FLEET)
    for part in range(cast.processes):
        play.outcomes.append(msgspec.json.decode((folder / f"{part}.outcome").read_bytes(), type=Outcome))


@dataclass
class Play:
    """What became of the simulated gateways, a piece a process; empty until they have stopped."""

    outcomes: list[Outcome] = field(default_factory=list)

    def running(self) -> dict[str, str | None]:
        """Return the release that really runs on each target."""
        return {name: each.running for part in self.outcomes for name, each in part.gateways.items()}

    def graphs(self) -> dict[str, str | None]:
        """Return the SHA-256 of the graph that really runs on each target."""
        return {name: each.graph for part in self.outcomes for name, each in part.gateways.items()}

    def fates(self) -> dict[str, str]:
        """Return what befell each target."""
        return {name: each.fate for part in self.outcomes for name, each in part.gateways.items()}

    @property
    def verified(self) -> int:
        """How often a gateway has downloaded a release and found it to be what is signed."""
        return sum(part.verified for part in self.outcomes)

    @property
    def wire_bytes(self) -> int:
        """Payload bytes that went over the line, both ways."""
        return sum(part.received_bytes + part.sent_bytes for part in self.outcomes)


def _spec(
    settings: Settings,
    path: Path,
    targets: dict[str, tuple[str, ...]],
    root: bytes,
    cast: Cast,
    installed: Published,
) -> Spec:
    ready, outcome = path.with_suffix(".ready"), path.with_suffix(".outcome")
    part = Fleet(
        targets=targets,
        root=root,
        faults=msgspec.Raw(cast.faults.model_dump_json().encode()),
        seed=cast.seed,
        heartbeat_s=cast.heartbeat_s,
        windows_per_s=cast.windows_per_s,
        ready=str(ready),
        outcome=str(outcome),
        installed=installed.digest,
        manifest=installed.manifest,
    )
    path.write_bytes(msgspec.json.encode(part))
    return Spec(
        name=f"fleet-{path.name}",
        title="Simulated gateways",
        argv=(sys.executable, "-m", "infra.rehearsal.fleet", str(path)),
        env={**base_environment(), **settings.environment()},
        cwd=str(settings.root),
        ready=f"file://{ready}",
        stop_timeout_s=60.0,
    )
