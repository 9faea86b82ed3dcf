"""A release in memory: its ONNX graph loaded, its canary run, its proof."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.release import GRAPH, MANIFEST, Manifest, Proof, Release, decode_canary, decode_manifest, prove
from fieldloop.domain.rollout import Running

INPUT: Final = "window"
OUTPUT: Final = "prediction"
MAX_WINDOWS: Final = 4096  # rows of one session run
ERRORS_ONLY: Final = 3  # onnxruntime's log severity


class _Alone:
    """A session's run of one window, its input and output bound to memory once: half a dozen microseconds saved."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        source, answer = session.get_inputs()[0], session.get_outputs()[0]
        self._window = np.zeros((1, *source.shape[1:]), dtype=np.float32)
        self._prediction = np.zeros((1, *answer.shape[1:]), dtype=np.float32)
        self._session = session
        self._values = [onnxruntime.OrtValue.ortvalue_from_numpy(part) for part in (self._window, self._prediction)]
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(INPUT, self._values[0])
        self._binding.bind_ortvalue_output(OUTPUT, self._values[1])

    def run(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the prediction float32 [1, P] of a window float32 [1, R, T]; for one caller at a time."""
        self._window[...] = window
        self._session.run_with_iobinding(self._binding)
        return self._prediction.copy()


@dataclass(frozen=True)
class Model:
    """A graph that takes window float32 [N, R, T] and gives prediction float32 [N, P]; for one caller at a time."""

    session: onnxruntime.InferenceSession
    _alone: _Alone | None = None

    @classmethod
    def load(cls, graph: bytes) -> "Model":
        """Load a graph to run on one thread.

        Raises:
            ReleaseError: the runtime does not take it, or its input and output are not a release's.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = ERRORS_ONLY
        options.enable_cpu_mem_arena = False  # it keeps what the largest batch ever took
        try:
            session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # the runtime's exceptions share no base class
            raise ReleaseError(f"{GRAPH}: onnxruntime {onnxruntime.__version__} does not load it: {exc}") from exc
        names = [n.name for n in session.get_inputs()], [n.name for n in session.get_outputs()]
        if names != ([INPUT], [OUTPUT]):
            raise ReleaseError(f"{GRAPH}: expected input {INPUT!r}, output {OUTPUT!r}, got {names[0]}, {names[1]}")
        shapes = [*session.get_inputs()[0].shape[1:], *session.get_outputs()[0].shape[1:]]
        return cls(session, _Alone(session) if all(isinstance(size, int) for size in shapes) else None)

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return predictions float32 [N, P] of windows float32 [N, R, T].

        Raises:
            ReleaseError: the graph fails on them.
        """
        try:
            if len(windows) == 1 and self._alone is not None:
                return self._alone.run(windows)
            parts = [
                self.session.run([OUTPUT], {INPUT: windows[start : start + MAX_WINDOWS]})[0]
                for start in range(0, len(windows), MAX_WINDOWS)
            ]
        except Exception as exc:  # the runtime's exceptions share no base class
            raise ReleaseError(f"{GRAPH}: fails on windows of shape {windows.shape}: {exc}") from exc
        return np.concatenate(parts) if parts else np.empty((0, 1), dtype=np.float32)


@dataclass(frozen=True)
class Loaded:
    """A release that has been loaded and has run its canary."""

    digest: str
    manifest: Manifest
    model: Model
    proof: Proof

    @property
    def running(self) -> Running:
        """What is reported of it."""
        return Running(self.digest, self.manifest.model, self.manifest.version, self.proof)


def load(release: Release) -> Loaded:
    """Load a verified release and run its canary.

    Raises:
        ReleaseError: it does not load or run, or gives other outputs than its canary's.
    """
    manifest = release.open(release.digest)
    model = Model.load(release.graph)
    canary = decode_canary(release.canary)
    proof = prove(manifest, canary.outputs, model.run(canary.inputs))
    if not proof.passed:
        raise ReleaseError(
            f"canary: outputs differ by {proof.max_abs_diff}, allowed {manifest.tolerance:g} {manifest.unit}: "
            f"onnxruntime {onnxruntime.__version__} here, {manifest.runtime.get('onnxruntime')} where it was built"
        )
    return Loaded(release.digest, manifest, model, proof)


def manifest_of(folder: Path) -> Manifest:
    """Read the manifest of a release's folder.

    Raises:
        ReleaseError: it is none.
    """
    return decode_manifest((folder / MANIFEST).read_bytes())
