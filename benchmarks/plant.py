"""What benchmarks of the data plane share: services in a folder of their own, made-up devices, a worker's process."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from fieldloop.stores import broker, fleet
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import LEAN, Settings
from infra.local import broker as broker_service
from infra.local import platform
from infra.local import store as store_service
from infra.local.authority import make_authority
from infra.local.keys import make_secrets
from infra.local.ports import free_ports
from infra.local.stack import Spec, start_stack, stop_stack

DEVICES: Final = 50
BEGIN_MS: Final = 1_700_000_000_000
SYNC_MESSAGES: Final = 5_000  # published between two acknowledged ones, so that the broker is never overrun
PORTS: Final = ("store_port", "nats_port", "mqtt_port")
PROFILE: Final = """\
name: bench
description: A machine as plain as can be
manufacturer: none
model: none
format: json
clock: {field: t, kind: epoch_ms}
cadence: 1 s
future_tolerance: 5 min
channels:
"""
CHANNEL: Final = (
    "  - {{metric: {0}, field: {1}, source_unit: degC, unit: degC, range: [-100, 1000], plausible: [0, 39.9], "
    "rule: mean, description: {0}}}\n"
)
MACHINE: Final = ("flow", "load", "pressure", "speed", "temperature")  # metrics of one with five channels


class BenchSettings(Settings):
    """Settings with profiles and recipes of the benchmark's own."""

    @property
    def root(self) -> Path:
        """The folder with `expectations/profiles` and `recipes`."""
        return self.data_dir


def profile(fields: Mapping[str, str]) -> str:
    """Return profile `bench` as YAML: the field that each metric is read from."""
    return PROFILE + "".join(CHANNEL.format(metric, field) for metric, field in fields.items())


THERMOMETER: Final = profile({"temperature": "c"})
MACHINES: Final = profile({metric: metric for metric in MACHINE})


@contextmanager
def grounds(
    services: Sequence[Callable[[Settings], Spec]], documents: Mapping[str, str], *, restart: bool = False
) -> Iterator[Settings]:
    """Start services in a folder of their own, on free ports, and remove all of it in the end.

    Args:
        services: functions from settings to how they are run, the object store among them.
        documents: texts by their path in the folder: profiles, recipes.
        restart: start a service again when it ends, in place of stopping the others.
    """
    with tempfile.TemporaryDirectory(prefix="fieldloop-") as folder:
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        settings = BenchSettings.model_validate({"data_dir": folder, **ports})
        for path, text in documents.items():
            (settings.root / path).parent.mkdir(parents=True, exist_ok=True)
            (settings.root / path).write_text(text)
        make_secrets(settings)
        make_authority(settings)
        specs = [msgspec.structs.replace(spec(settings), restart=restart) for spec in services]
        start_stack(settings, platform.PLATFORM, specs)
        try:
            store_service.prepare(settings)
            yield settings
        finally:
            stop_stack(settings, platform.PLATFORM)


@contextmanager
def data_plane(*, restart: bool = False, profile: str = THERMOMETER) -> Iterator[Settings]:
    """Start an object store and a broker, with devices `dev-0000` and so on of profile `bench`."""
    services = (store_service.spec, broker_service.spec)
    with grounds(services, {"expectations/profiles/bench.yaml": profile}, restart=restart) as settings:
        platform.prepare_broker(settings)
        fleet.add_devices(Lake(settings), [f"dev-{number:04}" for number in range(DEVICES)], "bench")
        yield settings


async def publish(settings: Settings, messages: Iterable[tuple[str, bytes]]) -> None:
    """Fill the stream with (subject, payload) pairs, in order; once it returns the broker has them all."""
    left = iter(messages)
    async with broker.platform(settings) as (client, js):
        while some := list(islice(left, SYNC_MESSAGES)):
            for subject, payload in some[:-1]:
                await client.publish(subject, payload)
            await js.publish(*some[-1])


def worker() -> ProcessPoolExecutor:
    """Return a process of its own, with the platform's worker's environment, for the length of a `with` block."""
    os.environ.update(LEAN)
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
