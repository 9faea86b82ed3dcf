"""A release is data: another runtime in another language opens it and gives the canary's outputs."""

import json
import shutil
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fieldloop.domain.graph import feature_graph, merge
from fieldloop.domain.recipe import load_recipe
from fieldloop.domain.release import Canary, File, Release, decode_canary, encode_canary, encode_manifest, output_hash
from fieldloop.edge.model import Model
from fieldloop.stores.settings import Settings
from tasks import candidates
from tasks.matrix import session_of
from tests.edge.targets import make_release

PACKAGE = "onnxruntime-node@1.24.3"
SCRIPT = Path(__file__).with_name("canary.js")
INSTALL_S, RUN_S = 240, 60


@pytest.fixture(scope="session")
def packages() -> Path:
    """Install onnxruntime for Node once into the user's cache; without its scripts, which fetch what GPUs need.

    Where npm reaches no registry the tests are skipped, which `.ci/run` counts as a failure.
    """
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no Node here; Debian and Ubuntu: sudo apt-get install nodejs npm")
    folder = Path.home() / ".cache" / "fieldloop" / PACKAGE
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        options = ["--ignore-scripts", "--no-save", "--no-audit", "--no-fund", "--fetch-retries=1"]
        command = ["npm", "install", *options, "--prefix", str(folder), PACKAGE]
        done = subprocess.run(command, timeout=INSTALL_S, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"npm cannot install {PACKAGE} here: {' '.join(done.stderr.split())[:200]}")
        (folder / "done").touch()
    return folder / "node_modules"


def test_node_gives_a_small_graphs_outputs_bit_for_bit(packages: Path, tmp_path: Path) -> None:
    """Sums and means of a few values."""
    release = make_release(model="node", bias=2.5)
    found = _open(packages, release, tmp_path)
    assert found["digest"] == release.digest
    assert found["outputHash"] == release.open(release.digest).output_hash


@pytest.mark.parametrize("algorithm", ["xgboost", "extra_trees"])
def test_node_gives_a_learnt_graphs_outputs(packages: Path, tmp_path: Path, algorithm: str) -> None:
    """Masks, features with gaps, and trees: what a turbine's release holds, within the recipe's tolerance."""
    release, tolerance = _learnt(algorithm)
    found = _open(packages, release, tmp_path)
    assert np.isnan(decode_canary(release.canary).inputs).any()
    assert found["maxAbsDiff"] <= tolerance


def _open(packages: Path, release: Release, folder: Path) -> dict[str, object]:
    for name, data in release.files().items():
        (folder / name).write_bytes(data)
    environment = {"NODE_PATH": str(packages)}
    done = subprocess.run(
        [str(shutil.which("node")), str(SCRIPT), str(folder)], env=environment, capture_output=True, timeout=RUN_S
    )
    assert done.returncode == 0, done.stderr.decode()
    return dict(json.loads(done.stdout))


def _learnt(algorithm: str) -> tuple[Release, float]:
    """Return a release of the turbine recipe's shape, learnt from noise, and the tolerance of its canary."""
    recipe = load_recipe(Settings().root, "turbine-power")
    random = np.random.default_rng(7)
    windows = random.normal(8, 3, (2_000, len(recipe.rows), recipe.window.length)).astype(np.float32)
    windows[random.random(windows.shape) < 0.05] = np.nan
    half, names = feature_graph(recipe)
    rows = session_of(half.SerializeToString()).run(None, {"window": windows})[0]
    target = np.nan_to_num(windows[:, 0]).mean(axis=1).astype(np.float32) ** 2
    candidate = next(each for each in recipe.candidates if each.algorithm == algorithm)
    learnt = candidates.fit(candidate, candidates.problem(recipe), names, rows, target, 1)
    graph = bytes(merge(half, learnt.convert(len(names))).SerializeToString())
    inputs = windows[: recipe.release.canary_rows]
    outputs = Model.load(graph).run(inputs)
    canary = encode_canary(Canary(inputs, outputs))
    toy = make_release()
    manifest = msgspec.structs.replace(
        toy.open(toy.digest), graph=File.of(graph), canary=File.of(canary), output_hash=output_hash(outputs)
    )
    return Release(encode_manifest(manifest), graph, canary), recipe.release.tolerance
