"""Origin: all that a candidate's graph follows from, kept with its run, so that the graph can be made again."""

import hashlib
import subprocess
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, Final

import msgspec
from pydantic import TypeAdapter

from fieldloop.domain.errors import StoreError
from fieldloop.domain.recipe import Candidate
from tasks.examples import Versions
from tasks.fitting import Fitted

ORIGIN: Final = "origin.json"  # artifact of a candidate's run
RECIPE: Final = "recipe.json"  # artifact: the recipe as it was
PACKAGES: Final = (
    "numpy", "onnx", "onnxmltools", "onnxruntime", "optuna", "scikit-learn", "scipy", "skl2onnx", "spox", "xgboost-cpu",
)  # fmt: skip
_GIT_S: Final = 10  # seconds that git may take to answer


class Origin(msgspec.Struct, frozen=True):
    """What a graph follows from.

    Attributes:
        recipe: digest of the recipe; the whole of it is the run's `recipe.json`.
        grid: version of table `grid/<recipe>`.
        windows: version of table `windows/<recipe>`.
        candidate: the algorithm, and the settings that it was fitted with, found ones among them.
        seed: of everything random.
        packages: version of each library that takes part.
        code: commit of Fieldloop, with `+` behind it where files differed from it; empty where there is no git.
        graph: SHA-256 of the graph's bytes.
    """

    recipe: str
    grid: int
    windows: int
    candidate: dict[str, Any]
    seed: int
    packages: dict[str, str]
    code: str
    graph: str

    @property
    def versions(self) -> Versions:
        """The table versions."""
        return Versions(self.grid, self.windows)

    def fitted(self) -> Candidate:
        """Return the candidate with the settings that were chosen."""
        candidate: Candidate = TypeAdapter(Candidate).validate_python(self.candidate)
        return candidate


def origin_of(fitted: Fitted, versions: Versions, seed: int, root: Path) -> Origin:
    """Say what a fitted candidate follows from; `root` is the repository's."""
    return Origin(
        fitted.recipe.digest,
        versions.grid,
        versions.windows,
        {"algorithm": fitted.candidate.algorithm, **fitted.candidate.settings},
        seed,
        packages(),
        code(root),
        digest(fitted.graph.SerializeToString()),
    )


def decode(data: bytes, run_id: str) -> Origin:
    """Read what `origin_of` gave, encoded as JSON.

    Raises:
        StoreError: it is something else.
    """
    try:
        return msgspec.json.decode(data, type=Origin)
    except msgspec.MsgspecError as exc:
        raise StoreError(f"MLflow run {run_id}: {ORIGIN} cannot be read: {exc}: train again") from exc


def digest(graph: bytes) -> str:
    """Return the SHA-256 of a graph."""
    return hashlib.sha256(graph).hexdigest()


def packages() -> dict[str, str]:
    """Return the versions of the libraries that a graph follows from."""
    return {package: package_version(package) for package in PACKAGES}


def code(root: Path) -> str:
    """Return the commit of the code that runs, see `Origin.code`."""
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--match=", "--dirty=+"],
            capture_output=True, text=True, timeout=_GIT_S, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return described.stdout.strip()
