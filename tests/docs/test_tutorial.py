"""The tutorial, by its own text: its documents and commands, on the real platform, end as it says."""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.schema_tools import validate
from typer.testing import CliRunner

from fieldloop.cli.main import app
from fieldloop.domain.recipe import load_recipe
from fieldloop.stores.settings import Settings

pytestmark = [
    # mlflow.pyfunc warns of its own type hints when it is imported
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

TEXT = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
INBOX = ("pump-1.csv",)
LONG_AGO = 1.0  # seconds since 1970: files that have lain still
SAYS = {  # what a command must say besides ending well
    "source check pumps": "bearing_temperature",
    "recipe check pump-bearing": "pump-bearing: value `bearing_temperature` from 3 channels",
    "lineage pump-bearing@champion": "pump-1",
    "model rebuild pump-bearing@champion": "same",
}


def blocks(language: str) -> list[tuple[str, str]]:
    """The tutorial's blocks in a language, each with the text before it."""
    parts = re.split(r"^```(\w*)\n(.*?)^```\n", TEXT, flags=re.MULTILINE | re.DOTALL)
    found = zip(parts[:-1:3], parts[1::3], parts[2::3], strict=True)
    return [(before, body) for before, kind, body in found if kind == language]


def commands() -> list[list[str]]:
    """All that is typed, word by word, but what makes the files."""
    lines = [line for _, body in blocks("sh") if "<<" not in body for line in body.splitlines()]
    typed = [shlex.split(line.replace("$(date -u +%FT%TZ)", "2026-01-01T00:00:00Z"), comments=True) for line in lines]
    return [words for words in typed if words and words[0] != "export"]


@pytest.fixture
def desk(platform_environment: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what the tutorial has one write, which is the repository's for the length of a test."""
    (tmp_path / ".venv").symlink_to(Path(os.sys.prefix))
    (making,) = (body for _, body in blocks("sh") if "<<" in body)
    subprocess.run(["sh", "-ec", making], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL, timeout=60)
    for file in (tmp_path / "inbox").iterdir():
        os.utime(file, (LONG_AGO, LONG_AGO))
        if file.name not in INBOX:
            file.unlink()  # one pump is learnt in a third of the time
    for before, body in blocks("yaml"):
        path = tmp_path / re.findall(r"`([\w/-]+\.yaml)`", before)[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body)
    recipe = tmp_path / "recipes" / "pump-bearing.yaml"
    assert len(load_recipe(tmp_path, recipe.stem).candidates) == 3
    lean = re.sub(r"  - {algorithm: \w+}\n", "", recipe.read_text().replace("trials: 8", "trials: 1"))
    recipe.write_text(lean)  # one candidate is soon learnt
    monkeypatch.setattr(Settings, "root", tmp_path)
    with temporary_settings({PREFECT_API_URL: platform_environment.prefect_api}):
        yield tmp_path


def test_the_tutorial_ends_with_a_registered_model(desk: Path) -> None:
    """Made-up files, three documents, and every command in its order; a flow's form takes the parameters given."""
    ran = []
    for program, *words in commands():
        assert (desk / program).exists(), program
        if program.endswith("/prefect"):
            ran.append(run_deployment(words))
        else:
            ran.append(run_command(words))
    assert ran == [
        "source check pumps", "collect", "learn", "recipe check pump-bearing", "lineage pump-bearing@champion",
        "model rebuild pump-bearing@champion", "retrace",
    ]  # fmt: skip


def run_command(words: list[str]) -> str:
    """Run a command of ours, and hold it against what the tutorial says of it."""
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert SAYS[" ".join(words)] in done.output
    return " ".join(words)


def run_deployment(words: list[str]) -> str:
    """Hold parameters against the deployment's form, and run its flow here; what only learns once more is not run."""
    assert words[:2] == ["deployment", "run"]
    given = {name: read(value) for name, value in (word.split("=", 1) for word in words[3:] if "=" in word)}
    with SyncPrefectClient(api=Settings().prefect_api) as client:
        deployment = client.read_deployment_by_name(words[2])
    assert validate(given, deployment.parameter_openapi_schema) == []
    module, function = str(deployment.entrypoint).removesuffix(".py").replace(".py:", ":").split(":")
    if function != "retrace":
        getattr(import_module(module.replace("/", ".")), function)(**given)
    return function


def read(value: str) -> Any:
    """Read a parameter as Prefect does: JSON, else text."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
