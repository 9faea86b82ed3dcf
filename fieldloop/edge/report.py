"""What the target says of itself to the platform: what runs, with its proof, and how it fares."""

import asyncio
import logging
import os
import platform
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import onnxruntime

from fieldloop.domain.enrolment import AgentConfig
from fieldloop.domain.errors import ServiceError
from fieldloop.domain.rollout import Inventory, Reported
from fieldloop.edge.bucket import REQUEST_S
from fieldloop.edge.link import Link
from fieldloop.edge.reconcile import Reconciler
from fieldloop.edge.renewal import Renewal
from fieldloop.edge.serving import Serving
from fieldloop.edge.slots import Slots
from fieldloop.edge.spool import Spool

RETRY_S: Final = 1.0  # after a report that was not taken

logger = logging.getLogger(__name__)


class Reporter:
    """Sends a report when there is news, and at every heartbeat."""

    def __init__(
        self,
        config: AgentConfig,
        state: Path,
        serving: Serving,
        slots: Slots,
        spool: Spool,
        reconciler: Reconciler,
        renewal: Renewal,
    ) -> None:
        self._config = config
        self._state = state
        self._serving = serving
        self._slots = slots
        self._spool = spool
        self._reconciler = reconciler
        self._renewal = renewal

    async def run(self, link: Link) -> None:
        """Report over one connection, until it ends."""
        subject = f"$KV.reported.{self._config.target}"
        changed = self._reconciler.changed
        while not link.closed.is_set():
            changed.clear()
            wait_s = self._config.heartbeat_s
            try:
                answer = await link.request(subject, msgspec.json.encode(self.report()), REQUEST_S)
                if b'"error"' in answer.data:
                    raise ServiceError(answer.data.decode(errors="replace"))
            except ServiceError as exc:
                logger.warning("report was not taken: %s", exc)
                wait_s = RETRY_S
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await changed.wait()

    def report(self) -> Reported:
        """Return the report of this moment."""
        serving, attempt, slots = self._serving, self._reconciler.attempt, self._slots.state
        return Reported(
            target=self._config.target,
            at_us=time.time_ns() // 1000,
            runtime=onnxruntime.__version__,
            running=serving.loaded.running if serving.loaded else None,
            attempted=attempt.digest or None,
            refused=attempt.refused,
            error=attempt.error or serving.trouble or self._reconciler.recalled,
            scored=serving.scored,
            errors=serving.errors,
            inventory=inventory(self._state),
            served=serving.served(),
            before=serving.before,
            shadow=serving.shadow(),
            previous=slots.previous,
            reverted=slots.reverted,
            spool=self._spool.state(),
            inputs=serving.inputs(),
            certificate=self._renewal.state(),
            answers_us=attempt.desired.issued_us if attempt.desired else 0,
        )


def inventory(folder: Path) -> Inventory:
    """Return what this machine is, and how much room there is for releases."""
    free = os.statvfs(folder)
    system = os.uname()
    return Inventory(
        machine=system.machine,
        hardware=_hardware(),
        system=f"{system.sysname} {system.release}",
        distribution=_distribution(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        free_bytes=free.f_bavail * free.f_frsize,
        versions={
            "fieldloop": _version(),
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
        },
    )


@cache
def _version() -> str:
    """Return this package's version, as its installation is named: `importlib.metadata` would take 2 MB to say it."""
    found = (path.name for folder in sys.path for path in Path(folder).glob("fieldloop-*.dist-info"))
    return next(found, "").removeprefix("fieldloop-").removesuffix(".dist-info")


@cache
def _hardware() -> str:
    """Return the name of the board or machine: from its device tree, or from its firmware's tables."""
    for path in ("/proc/device-tree/model", "/sys/class/dmi/id/product_name"):
        with suppress(OSError):
            return Path(path).read_text(errors="replace").strip("\0\n ")
    return ""


@cache
def _distribution() -> str:
    with suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    return ""
