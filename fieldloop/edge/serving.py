"""What runs here and what it has done: the running release, a shadow beside it, and their counts and sketches."""

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.release import Budget
from fieldloop.domain.rollout import Served, Shadow
from fieldloop.domain.sketch import Sketch, Tally
from fieldloop.edge.memory import give_back, resident_bytes
from fieldloop.edge.model import Loaded
from fieldloop.edge.scorer import Windows
from fieldloop.edge.slots import State

FAILURES: Final = 3  # batches in turn on which a release fails before it is left
OVER: Final = 3  # looks in turn that find its memory over budget
GRAPH_RUNS: Final = 512  # whose time is remembered
LEAST_RUNS: Final = 100  # before their 99th percentile says anything
FOLD_ROWS: Final = 2048  # kept as they are before they are counted into sketches, in half a millisecond

logger = logging.getLogger(__name__)


@dataclass
class _Record:
    """What a release has done since it was switched to; rows are counted into the sketches some time later."""

    since_us: int
    restarts: int
    start_bytes: int
    windows: int = 0
    errors: int = 0
    latency: Tally = field(default_factory=Tally)
    scores: Tally = field(default_factory=Tally)
    inputs: dict[str, Tally] = field(default_factory=dict)
    _rows: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=list)
    _waiting: int = 0

    def add(self, newest: NDArray[np.float32], value: NDArray[np.float32], channels: tuple[str, ...]) -> None:
        """Count windows by their newest grid values float32 [N, C] and predictions float32 [N]."""
        self.windows += len(value)
        self._rows.append((newest, value))
        self._waiting += len(value)
        if self._waiting > FOLD_ROWS:
            self.fold(channels)

    def fold(self, channels: tuple[str, ...]) -> None:
        """Bring the sketches up to date."""
        if not self._rows:
            return
        newest = np.concatenate([row[0] for row in self._rows])
        self.scores.add(np.concatenate([row[1] for row in self._rows]))
        for column, channel in enumerate(channels):
            self.inputs.setdefault(channel, Tally()).add(newest[:, column])
        self._rows.clear()
        self._waiting = 0


@dataclass
class _Beside:
    """A shadow and what it has done beside one release."""

    loaded: Loaded | None
    digest: str
    beside: str
    error: str | None = None
    windows: int = 0
    errors: int = 0
    gaps: Tally = field(default_factory=Tally)
    scores: Tally = field(default_factory=Tally)
    latency: Tally = field(default_factory=Tally)


class Serving:
    """The releases in memory."""

    def __init__(self) -> None:
        self.loaded: Loaded | None = None
        self.before: Served | None = None
        self.scored = 0
        self.errors = 0
        self.trouble: str | None = None  # why what runs does not score
        self._record = _Record(0, 0, 0)
        self._shadow: _Beside | None = None
        self._failures = 0
        self._over = 0
        self._graph_s: deque[float] = deque(maxlen=GRAPH_RUNS)

    def run(self, loaded: Loaded, state: State) -> None:
        """Take a release into service; what ran before is released."""
        self.before = self.served() or self.before
        self.loaded = loaded
        give_back()
        self._record = _Record(state.since_us, max(state.restarts, 0), resident_bytes())
        self._failures = self._over = 0
        self._graph_s.clear()
        self.trouble = None
        if self._shadow is not None:
            self.shade(self._shadow.loaded, self._shadow.digest, self._shadow.error)

    def stop(self) -> None:
        """Take the running release out of service."""
        self.before = self.served() or self.before
        self.loaded = None
        give_back()

    def shade(self, loaded: Loaded | None, digest: str, error: str | None = None) -> None:
        """Run a release beside, counted from now on; without one, remember why there is none."""
        beside = self.loaded.digest if self.loaded else ""
        if loaded is not None and self.loaded is not None and loaded.manifest.window != self.loaded.manifest.window:
            error = "it reads other windows than the running release: they cannot be compared here"
        self._shadow = _Beside(None if error else loaded, digest, beside, error)

    def unshade(self) -> None:
        """Run no shadow."""
        self._shadow = None

    @property
    def shadow_digest(self) -> str | None:
        """The shadow's digest, where one runs or has been tried."""
        return self._shadow.digest if self._shadow else None

    @property
    def shadow_loaded(self) -> Loaded | None:
        """The shadow, where it runs."""
        return self._shadow.loaded if self._shadow else None

    def predict(self, windows: Windows) -> NDArray[np.float32]:
        """Return the running release's predictions, float32 [N].

        Raises:
            ReleaseError: there is none, it reads other windows, or its graph fails.
        """
        if self.loaded is None:
            raise ReleaseError("no release runs")
        began = time.perf_counter()
        try:
            value = self.loaded.model.run(windows.values)[:, 0]
        except ReleaseError as exc:
            self._failures += 1
            self._record.errors += len(windows)
            self.errors += len(windows)
            self.trouble = str(exc)
            raise
        self._graph_s.append((time.perf_counter() - began) / len(windows))
        self._failures, self.trouble = 0, None
        return value

    def count(self, windows: Windows, value: NDArray[np.float32]) -> None:
        """Count windows whose predictions float32 [N] were published just now, and run the shadow on them."""
        if self.loaded is None:
            return
        self.scored += len(value)
        self._record.latency.add_one(max(time.monotonic() - windows.received, 0.0))
        self._record.add(windows.values[:, :, -1], value, self.loaded.manifest.window.channels)
        shadow = self._shadow
        if shadow is not None and shadow.loaded is not None:
            _compare(shadow, shadow.loaded, windows, value)

    def refuse(self, errors: int) -> None:
        """Count messages and records that could not be used."""
        self.errors += errors

    def breach(self) -> str | None:
        """Look whether the running release does what it may; return why it must be left, None where it need not."""
        if self.loaded is None:
            return None
        if self._failures >= FAILURES:
            return f"failed on {self._failures} batches in turn: {self.trouble}"
        budget = self.loaded.manifest.budget
        resident = resident_bytes()
        self._over = self._over + 1 if budget.memory_bytes is not None and resident > budget.memory_bytes else 0
        if self._over >= OVER:
            return f"memory over budget: expected at most {budget.memory_bytes:,} bytes, got {resident:,}"
        return self._slow(budget)

    def served(self) -> Served | None:
        """Return what the running release has done."""
        if self.loaded is None:
            return None
        record = self._record
        record.fold(self.loaded.manifest.window.channels)
        latency, scores = record.latency.sketch(), record.scores.sketch()
        return Served(self.loaded.digest, record.since_us, record.windows, record.errors, record.restarts, latency,
                      scores, record.start_bytes, resident_bytes())  # fmt: skip

    def inputs(self) -> dict[str, Sketch]:
        """Return the sketches of the newest grid values of the windows scored, by metric."""
        return {metric: tally.sketch() for metric, tally in self._record.inputs.items()}

    def shadow(self) -> Shadow | None:
        """Return what the shadow has done."""
        own = self._shadow
        if own is None:
            return None
        proof = own.loaded.proof if own.loaded else None
        return Shadow(own.digest, own.beside, proof, own.error, own.windows, own.errors, own.gaps.sketch(),
                      own.scores.sketch(), own.latency.sketch())  # fmt: skip

    def _slow(self, budget: Budget) -> str | None:
        if budget.latency_s is None or len(self._graph_s) < LEAST_RUNS:
            return None
        p99 = float(np.quantile(np.array(self._graph_s), 0.99))
        if p99 <= budget.latency_s:
            return None
        return f"latency over budget: expected at most {budget.latency_s * 1e3:g} ms a window, got {p99 * 1e3:.3g} ms"


def _compare(shadow: _Beside, loaded: Loaded, windows: Windows, value: NDArray[np.float32]) -> None:
    """Run the shadow on windows, and count how far its predictions lie from those that were published."""
    began = time.perf_counter()
    try:
        other = loaded.model.run(windows.values)[:, 0]
    except ReleaseError as exc:
        shadow.errors += len(windows)
        if shadow.errors == len(windows):
            logger.warning("shadow %s fails: %s", shadow.digest[:12], exc)
        return
    shadow.latency.add_one(time.perf_counter() - began)
    shadow.windows += len(windows)
    shadow.gaps.add(other.astype(np.float64) - value)
    shadow.scores.add(other)
