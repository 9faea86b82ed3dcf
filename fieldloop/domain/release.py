"""What goes to the edge: a manifest, one ONNX graph, and canary inputs with the outputs that prove a run.

A release is three files under `releases/<model>/<version>/`. Its digest is the SHA-256 of the manifest's bytes, and the
manifest holds the SHA-256 of the other two, so that the digest stands for everything that an edge target runs. Where
models differ by site or group, the manifest holds a variant for each, and a target takes the one for its labels.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.alerts import Limits
from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.profile import Profile
from fieldloop.domain.windows import WindowSpec

SCHEMA: Final = 2  # the newest of manifests; one bears the oldest that can say what it says, see `encode_manifest`
FIRST_SCHEMA: Final = 1
HOLD_SCHEMA: Final = 2  # of those whose alerts are held
MANIFEST: Final = "manifest.json"
GRAPH: Final = "graph.onnx"
CANARY: Final = "canary.json"
MANIFEST_BYTES: Final = 4 << 20  # more is no manifest; it would be read into the memory of every gateway
CHUNK_BYTES: Final = 512 * 1024  # what one broker message carries of a mirrored file
_SHOWN: Final = 128  # characters of a name
_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{_SHOWN - 1}}}")
_NAN: Final = np.float32(np.nan)


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The identity of one file: SHA-256 in hexadecimal and its length in bytes."""

    sha256: str
    length: int

    @classmethod
    def of(cls, data: bytes) -> "File":
        """Describe some bytes."""
        return cls(hashlib.sha256(data).hexdigest(), len(data))


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a release may take of a gateway; None sets no limit.

    Attributes:
        memory_bytes: resident memory of the agent that runs it.
        latency_s: seconds that its graph takes for one window, at the 99th percentile.
    """

    memory_bytes: int | None = None
    latency_s: float | None = None


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The graph of a group of targets.

    Attributes:
        name: of the group; the names of its files begin with it.
        labels: a target takes it that has all of these, each `key=value`.
        model: registered model in MLflow.
        version: its version there.
        run_id: the MLflow run that made it.
        graph: the graph.
        canary: its canary.
        output_hash: `output_hash` of the canary's outputs.
        lineage: where the model comes from.
    """

    name: str
    labels: tuple[str, ...]
    model: str
    version: int
    run_id: str
    graph: File
    canary: File
    output_hash: str
    lineage: dict[str, str]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a release is, where it comes from and what proves that it runs.

    Attributes:
        recipe: the use case.
        model: registered model in MLflow.
        version: its version there.
        run_id: the MLflow run that made it.
        window: the windows that the graph takes.
        profiles: compiled device profiles by name.
        target: metric that the graph predicts.
        unit: its canonical unit.
        features: names of the features inside the graph, in order.
        graph: `graph.onnx`.
        canary: `canary.json`.
        output_hash: `output_hash` of the canary's outputs.
        tolerance: largest difference of an output from the canary's that still counts as proved, in `unit`.
        runtime: versions with which the outputs were computed, by package.
        lineage: where the model comes from: table versions and the like, by name.
        created_at: when the version was registered, ISO 8601 UTC.
        schema: version of this structure.
        budget: what it may take of a gateway.
        alerts: beyond which a prediction is an alert; None where none is.
        variants: the graphs of the groups, where models differ by group; `graph` and the like are the first one's then.
    """

    recipe: str
    model: str
    version: int
    run_id: str
    window: WindowSpec
    profiles: dict[str, Profile]
    target: str
    unit: str
    features: tuple[str, ...]
    graph: File
    canary: File
    output_hash: str
    tolerance: float
    runtime: dict[str, str]
    lineage: dict[str, str]
    created_at: str
    schema: int = FIRST_SCHEMA
    budget: Budget = Budget()
    alerts: Limits | None = None
    variants: tuple[Variant, ...] = ()

    @property
    def names(self) -> tuple[str, str]:
        """File names of graph and canary in the repository."""
        stem = f"{self.variants[0].name}." if self.variants else ""
        return stem + GRAPH, stem + CANARY

    def suits(self, labels: Iterable[str]) -> bool:
        """Say whether a target with these labels may run what this manifest was narrowed to."""
        return not self.variants or set(self.variants[0].labels) <= set(labels)

    def narrowed(self, variant: Variant) -> "Manifest":
        """Return the manifest with one variant alone."""
        return msgspec.structs.replace(
            self,
            graph=variant.graph,
            canary=variant.canary,
            output_hash=variant.output_hash,
            run_id=variant.run_id,
            lineage=variant.lineage,
            variants=(variant,),
        )

    def suited(self, labels: Iterable[str]) -> "Manifest":
        """Return the manifest as it is for a target with these labels.

        Raises:
            ReleaseError: there are variants, and not just one of them is for these labels.
        """
        if not self.variants:
            return self
        own = set(labels)
        fitting = [variant for variant in self.variants if set(variant.labels) <= own]
        if len(fitting) == 1:
            return self.narrowed(fitting[0])
        known = "; ".join(f"{variant.name}: {', '.join(variant.labels)}" for variant in self.variants)
        got = " and ".join(variant.name for variant in fitting) or "none"
        raise ReleaseError(
            f"release {self.model}/{self.version} has a graph for each of {known}: expected that one is for a target "
            f"with {', '.join(sorted(own)) or 'no labels'}, got {got}: give the target the labels of one group"
        )


@dataclass(frozen=True)
class Canary:
    """Inputs float32 [N, C, T], NaN where missing, and the outputs float32 [N, 1] that a release must give on them."""

    inputs: NDArray[np.float32]
    outputs: NDArray[np.float32]


class Proof(msgspec.Struct, frozen=True):
    """What a target's own run of the canary gave.

    Attributes:
        output_hash: hash of its outputs.
        exact: they are bit for bit the manifest's.
        max_abs_diff: largest absolute difference, in the target's unit; None where shape or NaNs differ.
        passed: exact, or within the manifest's tolerance.
    """

    output_hash: str
    exact: bool
    max_abs_diff: float | None
    passed: bool


@dataclass(frozen=True)
class Release:
    """The three files of a release, as bytes; to be published, `variants` holds graph and canary of all of them."""

    manifest: bytes
    graph: bytes
    canary: bytes
    variants: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which stands for all three."""
        return hashlib.sha256(self.manifest).hexdigest()

    def files(self) -> dict[str, bytes]:
        """Return the files by name; the manifest last, as the one that refers to the others."""
        return {**(self.variants or {GRAPH: self.graph, CANARY: self.canary}), MANIFEST: self.manifest}

    def open(self, digest: str) -> Manifest:
        """Check all files against `digest` and return the manifest, narrowed to the variant that is here.

        Raises:
            ReleaseError: a file is not the one that the digest stands for, or the manifest's schema is unknown.
        """
        if self.digest != digest:
            raise ReleaseError(f"{MANIFEST}: expected release {digest}, got {self.digest}: fetch the release again")
        whole = decode_manifest(self.manifest)
        here = next((each for each in whole.variants if each.graph == File.of(self.graph)), None)
        manifest = whole.narrowed(here) if here else whole
        self._check(digest, GRAPH, manifest.graph, self.graph)
        self._check(digest, CANARY, manifest.canary, self.canary)
        for variant in whole.variants if self.variants else ():
            graph, canary = whole.narrowed(variant).names
            self._check(digest, graph, variant.graph, self.variants.get(graph, b""))
            self._check(digest, canary, variant.canary, self.variants.get(canary, b""))
        return manifest

    @staticmethod
    def _check(digest: str, name: str, expected: File, data: bytes) -> None:
        if (got := File.of(data)) != expected:
            raise ReleaseError(
                f"{name} of release {digest}: expected {expected.length} bytes with SHA-256 {expected.sha256}, "
                f"got {got.length} bytes with {got.sha256}: fetch the release again"
            )


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as canonical JSON: sorted keys, no blanks; its schema is the oldest that has all it says.

    So an agent from before a field says that it must be updated, and takes everything that it can understand.

    Raises:
        ReleaseError: it is longer than agents take.
    """
    held = manifest.alerts is not None and manifest.alerts.hold_us > 0
    said = msgspec.structs.replace(manifest, schema=HOLD_SCHEMA if held else FIRST_SCHEMA)
    return _of_bearable_length(msgspec.json.encode(said, order="sorted"))


class _Versioned(msgspec.Struct, frozen=True):
    """What manifests of every schema have."""

    schema: int


def decode_manifest(data: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        ReleaseError: it is not a manifest of this schema, or longer than one may be.
    """
    _of_bearable_length(data)
    try:
        schema = msgspec.json.decode(data, type=_Versioned).schema
        if schema > SCHEMA:
            raise ReleaseError(f"{MANIFEST}: expected schema {SCHEMA}, got {schema}: update fieldloop on this gateway")
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise ReleaseError(f"{MANIFEST}: not a release manifest: {exc}: deploy another release") from exc
    if schema < FIRST_SCHEMA:
        raise ReleaseError(
            f"{MANIFEST}: expected schema {FIRST_SCHEMA} to {SCHEMA}, got {schema}: deploy another release"
        )
    release_folder(manifest.model, manifest.version)
    for variant in manifest.variants:
        release_folder(variant.name, variant.version)
    return manifest


def _of_bearable_length(data: bytes) -> bytes:
    if len(data) > MANIFEST_BYTES:
        raise ReleaseError(f"{MANIFEST}: expected at most {MANIFEST_BYTES:,} bytes, got {len(data):,}")
    return data


def encode_canary(canary: Canary) -> bytes:
    """Return the canary as JSON in which every float32 comes back bit for bit, and null stands for NaN.

    Raises:
        ReleaseError: a value is infinite, which JSON cannot say.
    """
    for name, values in (("inputs", canary.inputs), ("outputs", canary.outputs)):
        if np.isinf(values).any():
            raise ReleaseError(f"canary {name}: expected finite values or NaN, got an infinite one")
    body = {"inputs": canary.inputs.tolist(), "outputs": canary.outputs.tolist()}
    return msgspec.json.encode(body)  # NaN becomes null; the shortest decimal of the float64 is exact


class _CanaryJson(msgspec.Struct, frozen=True):
    inputs: list[list[list[float | None]]]
    outputs: list[list[float | None]] = []


def decode_canary(data: bytes) -> Canary:
    """Read a canary; outputs have shape [0, 1] where the file has none yet.

    Raises:
        ReleaseError: it is no canary: not JSON, of another shape, or ragged.
    """
    try:
        body = msgspec.json.decode(data, type=_CanaryJson)
        inputs = np.array(body.inputs, dtype=np.float64).astype(np.float32)
        outputs = np.array(body.outputs or np.empty((0, 1)), dtype=np.float64).astype(np.float32)
    except (msgspec.MsgspecError, ValueError) as exc:
        raise ReleaseError(f"{CANARY}: expected inputs [N, C, T] and outputs [N, 1]: {exc}") from exc
    if inputs.ndim != 3:
        raise ReleaseError(f"{CANARY}: expected inputs [N, C, T] with N >= 1, got shape {inputs.shape}")
    return Canary(inputs, outputs)


def output_hash(outputs: NDArray[np.float32]) -> str:
    """Return the SHA-256 of the shape and the little-endian float32 bytes, with one bit pattern for NaN."""
    canonical = np.where(np.isnan(outputs), _NAN, outputs).astype("<f4", order="C")
    return hashlib.sha256(repr(canonical.shape).encode() + canonical.tobytes()).hexdigest()


def prove(manifest: Manifest, expected: NDArray[np.float32], outputs: NDArray[np.float32]) -> Proof:
    """Compare a target's canary outputs, float32 [N, 1], with the expected ones."""
    got = output_hash(outputs)
    exact = got == manifest.output_hash
    difference = 0.0 if exact else _max_abs_diff(expected, outputs)
    return Proof(got, exact, difference, exact or (difference is not None and difference <= manifest.tolerance))


def release_folder(model: str, version: int) -> str:
    """Return the folder of a version's release inside the repository.

    Raises:
        ReleaseError: the model's name cannot be part of a path and of a broker subject, or the version is none.
    """
    if not _NAME.fullmatch(model):
        raise ReleaseError(
            f"model name {model[:_SHOWN]!r}: expected at most {_SHOWN} letters, digits, '-' and '_': rename the recipe"
        )
    if version < 1:
        raise ReleaseError(f"version of {model}: expected 1 or more, got {version}")
    return f"releases/{model}/{version}"


def chunk_key(name: str, index: int) -> str:
    """Return the broker key of one chunk of a mirrored file; the first chunk below `CHUNK_BYTES` is the last."""
    return f"{name}.{index}"


def _max_abs_diff(expected: NDArray[np.float32], outputs: NDArray[np.float32]) -> float | None:
    """Return the largest difference, None where the two cannot be compared."""
    if expected.shape != outputs.shape or (np.isnan(expected) != np.isnan(outputs)).any():
        return None
    gaps = np.abs(expected.astype(np.float64) - outputs.astype(np.float64))
    largest = float(np.nanmax(gaps, initial=0.0))
    return largest if math.isfinite(largest) else None
