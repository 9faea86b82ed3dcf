"""Lineage and rebuilding on the command line, on what the demonstration left."""

import hashlib
import json
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from fieldloop.cli.main import app
from fieldloop.domain.errors import StoreError
from fieldloop.domain.lineage import Lineage, Node
from fieldloop.stores import registry
from fieldloop.stores.lake import Lake
from tasks import lineage as queries
from tasks.lineage import lineage
from tasks.preprocess import preprocess
from tasks.train import begin, train_candidate
from tests.conftest import Looped
from tests.tasks.farm import farm

MODEL = "turbine-power"
DEVICES = {"R80711", "R80721", "R80736", "R80790"}

CLASSES = """
name: NAME
description: Faults of a turbine, as people noted them.
profiles: [senvion-mm82]
channels: [{metric: wind_speed}]
target: {kind: class, labels: {SOURCE}, classes: [fine, fault], otherwise: fine}
grid: {step_s: 600}
window: {length: 6, stride: 6}
features: [level]
split: {train_until: 2015-01-08T00:00:00Z, test_until: 2015-03-01T00:00:00Z}
candidates: [{algorithm: majority}]
parity: {limit: 0.01}
"""


def below(nodes: tuple[Node, ...], *kinds: str) -> list[Node]:
    """All nodes of a path of kinds, from each of these down."""
    found = [node for node in nodes if node.kind == kinds[0]]
    return found if len(kinds) == 1 else [each for node in found for each in below(node.children, *kinds[1:])]


@pytest.fixture(scope="module")
def release(looped: Looped) -> str:
    """Digest of the release that the targets run."""
    return queries.Records(looped.settings, Lake(looped.settings)).releases[0].digest


def test_from_a_release_back_to_its_devices(looped: Looped, release: str) -> None:
    """Release, version, run, recipe, examples, readings, validation and devices, by the first digits of the digest."""
    found = lineage(looped.settings, release[:8])
    assert found.subject.name == release
    (run,) = below(found.origins, "model version", "run")
    assert below(run.children, "recipe")[0].name == MODEL
    (examples,) = below(run.children, "examples")
    assert {node.name for node in below(examples.children, "device")} == DEVICES
    (readings,) = below(examples.children, "table version")
    assert readings.name.startswith("readings@")
    validations = below(examples.children, "validation")
    assert validations
    assert all("checks" in node.facts["passed"] for node in validations)
    assert {node.name for node in below(found.uses, "target")} == {f"gw-{device}" for device in DEVICES}
    assert below(found.uses, "rollout")[0].facts["phase"] == "completed"


def test_from_a_prediction_to_its_release(looped: Looped, release: str) -> None:
    """A device knows the releases that predicted for it, and how often."""
    (scored,) = below(lineage(looped.settings, "R80711").uses, "release")
    assert scored.name == release
    assert int(scored.facts["predictions for it"].replace(",", "")) > 1000


@pytest.mark.parametrize("start", ["readings", "windows", "device", "run", "version"])
def test_from_data_to_the_targets_that_run_its_model(looped: Looped, release: str, start: str) -> None:
    """Whatever stands at the beginning, the targets that now run the release are at the end."""
    version = registry.named(looped.settings, f"{MODEL}@champion")
    tables = {name: version.tags[f"lineage.{name}"].removeprefix("s3://lake/") for name in ("readings", "windows")}
    things = {**tables, "device": "R80711", "run": version.run_id, "version": version.label}
    found = lineage(looped.settings, things[start])
    path = ("examples", "run", "model version", "release", "target")
    kinds = path[{"device": 0, "run": 2, "version": 3}.get(start, 0) :]
    assert {node.name for node in below(found.uses, *kinds)} == {f"gw-{device}" for device in DEVICES}


def test_a_target_back_to_the_run(looped: Looped, release: str) -> None:
    """What a target runs, and the run that made it."""
    found = lineage(looped.settings, "gw-R80711")
    assert found.subject.facts["runs"] == release
    assert below(found.origins, "release", "model version", "run")


# mlflow.pyfunc warns of its own type hints when it is imported
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
@pytest.mark.parametrize("source", ["file: labels/faults.csv", "table: faults"])
def test_labels_to_the_run_and_back(looped: Looped, tmp_path: Path, source: str) -> None:
    """A file of labels by name and digest, a table by its version: the run's tags tell them, and queries both ways."""
    name = f"labelled-{source.partition(':')[0]}"
    settings = farm(looped.settings, tmp_path, name)
    recipe = settings.root / "recipes" / f"{name}.yaml"
    recipe.write_text(CLASSES.replace("NAME", name).replace("SOURCE", source))
    (settings.root / "labels").mkdir()
    file = settings.root / "labels" / "faults.csv"
    file.write_text("device,start,end,label\nR80711,2014-12-10,2014-12-20,fault\nR80711,2015-01-10,2015-01-12,fault\n")
    version = Lake(settings).replace("faults", pl.read_csv(file, try_parse_dates=True))
    made = preprocess(settings, name)
    run_id = train_candidate(settings, begin(settings, name, [], None, None, 7), "majority", 7).run_id
    (labels,) = below(lineage(settings, run_id).origins, "examples", "labels")
    digest = labels.facts["sha256"]
    assert labels.name == ("labels/faults.csv" if source.startswith("file") else f"faults@{version}")
    assert len(digest) == 64
    assert not source.startswith("file") or digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert registry.run_tags(settings, run_id)["lineage.labels"] == f"{labels.name} sha256:{digest}"
    for text in (labels.name, digest[:12]):
        found = lineage(settings, text)
        assert found.subject.name == labels.name
        (run,) = below(found.uses, "examples", "run")
        assert run.name == run_id
    assert found.uses[0].name == f"windows/{name}@{made.windows_version}"


def test_what_nothing_is_called(looped: Looped, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kinds that there are are named, and so are the versions of a model, and things that are alike."""
    with pytest.raises(StoreError, match=r"nothing recorded is called 'what'; expected a release .* a table version"):
        lineage(looped.settings, "what")
    with pytest.raises(StoreError, match=f"; model {MODEL} has the versions .*{MODEL}/1"):
        lineage(looped.settings, MODEL)
    with pytest.raises(StoreError, match="cannot be opened: there is no such version"):
        lineage(looped.settings, "readings@99999")
    device = "R80711"
    monkeypatch.setattr(queries.Records, "targets", (device,))
    with pytest.raises(StoreError, match=f"could be any of: device {device}, target {device}"):
        lineage(looped.settings, device)


def test_branches_are_bounded(looped: Looped, release: str) -> None:
    """No more of them are shown than asked for; how many there are beside them is said."""
    found, whole = lineage(looped.settings, release, shown=2), lineage(looped.settings, release, shown=100)
    assert (len(found.uses), found.more_uses, whole.more_uses) == (2, len(whole.uses) - 2, 0)
    assert found.more_uses > 0
    (examples,) = below(found.origins, "model version", "run", "examples")
    assert (len(below(examples.children, "device")), examples.more) == (2, 2)


def test_command_line(looped: Looped, release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree for people, one object for programs; a model's list and origin; and the model made again."""
    for name, value in looped.settings.environment().items():
        monkeypatch.setenv(name, value)
    assert f"device {'R80711'}" in said("lineage", release)
    answer = json.loads(said("lineage", release, "--json"))
    assert set(answer) == set(Lineage.__struct_fields__)
    assert f"{MODEL}/1" in said("model", "list")
    assert f"grid/{MODEL}@" in said("model", "show", f"{MODEL}@champion")
    assert "same: turbine-power/1 has been made again bit for bit" in said("model", "rebuild", f"{MODEL}@champion")


def said(*words: str) -> str:
    """What a command that succeeds prints."""
    result = CliRunner().invoke(app, words, catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output
