"""What a simulated gateway's runtime gives: the release's real graph, run once a process for all of its gateways.

The canary is run as an agent runs it. Live predictions come from a pool of windows drawn around the canary's, through
both graphs where there is a shadow; each gateway takes its own part of the pool.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.release import Canary, Manifest, Proof, Release, decode_canary, prove
from fieldloop.edge.model import Model

POOL_WINDOWS: Final = 2048
NOISE: Final = 0.1  # of a channel's spread over the canary
DRIFT: Final = 2.0  # spreads by which drifted inputs are off
FAULT: Final = 10.0  # tolerances, and units, by which a faulty runtime's outputs are off


@dataclass(frozen=True)
class Runtime:
    """A release as it runs.

    Attributes:
        release: its digest.
        manifest: its manifest.
        model: its graph, loaded.
        canary: its canary.
        outputs: what the graph gives on the canary here, float32 [N, 1].
    """

    release: str
    manifest: Manifest
    model: Model
    canary: Canary
    outputs: NDArray[np.float32]

    def proof(self, *, faulty: bool) -> Proof:
        """Return the proof of a sound runtime, or of one that gives other numbers."""
        off = np.float32(FAULT * (1 + self.manifest.tolerance)) if faulty else np.float32(0)
        return prove(self.manifest, self.canary.outputs, self.outputs + off)


class Library:
    """The releases that a process has seen, each loaded once, and their predictions on the pools."""

    def __init__(self) -> None:
        self._runtimes: list[Runtime] = []
        self._predictions: dict[tuple[str, str, bool], NDArray[np.float32]] = {}

    def get(self, digest: str, labels: Iterable[str]) -> Runtime | None:
        """Return a release that has been loaded before, with the graph for these labels."""
        mine = (each for each in self._runtimes if each.release == digest)
        return next((each for each in mine if each.manifest.suits(labels)), None)

    def load(self, release: Release) -> Runtime:
        """Load a release that came and run its canary.

        Raises:
            ReleaseError: it does not load or run.
        """
        manifest = release.open(release.digest)
        model, canary = Model.load(release.graph), decode_canary(release.canary)
        self._runtimes.append(Runtime(release.digest, manifest, model, canary, model.run(canary.inputs)))
        return self._runtimes[-1]

    def predictions(self, runtime: Runtime, beside: Runtime, *, drifted: bool) -> NDArray[np.float32]:
        """Return a release's predictions, float32 [POOL_WINDOWS], on the pool of the release that it runs beside."""
        key = (runtime.manifest.graph.sha256, beside.manifest.canary.sha256, drifted)
        if key not in self._predictions:
            windows = _pool(beside.canary, DRIFT if drifted else 0.0)
            self._predictions[key] = runtime.model.run(windows)[:, 0]
        return self._predictions[key]


def _pool(canary: Canary, drift: float) -> NDArray[np.float32]:
    """Return windows float32 [POOL_WINDOWS, C, T]: the canary's, each with its own noise, moved by so many spreads."""
    draw = np.random.default_rng(0)
    spread = np.nanstd(canary.inputs, axis=(0, 2), keepdims=True)
    chosen = canary.inputs[draw.integers(0, len(canary.inputs), POOL_WINDOWS)]
    noise = draw.normal(0, NOISE, (POOL_WINDOWS, chosen.shape[1], 1)) * spread
    return np.asarray(chosen + noise + drift * spread, dtype=np.float32)
