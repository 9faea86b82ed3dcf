"""What `prefect.yaml` deploys can be loaded: a flow whose imports fail would still pass as a placeholder."""

import importlib
import importlib.util
import pkgutil
from pathlib import Path

import pytest
import yaml
from prefect import Flow, Task
from prefect.utilities.callables import parameter_schema

import tasks

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
NAMES = [deployment["name"] for deployment in DEPLOYMENTS]


def test_every_flow_is_deployed() -> None:
    """A file in `flows/` without a deployment could not be started from the UI."""
    files = {Path(deployment["entrypoint"].partition(":")[0]).stem for deployment in DEPLOYMENTS}
    assert files == {path.stem for path in (ROOT / "flows").glob("[a-z]*.py")}
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=NAMES)
def test_entrypoint_is_a_flow_whose_form_explains_itself(deployment: dict[str, str]) -> None:
    """It imports, its deployment bears its name, and it says of each parameter what it is."""
    file, _, name = deployment["entrypoint"].partition(":")
    flow = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), name)
    assert isinstance(flow, Flow)
    assert flow.name == name == deployment["name"].partition("-")[0]
    assert flow.timeout_seconds
    for parameter, schema in parameter_schema(flow.fn).properties.items():
        assert schema.get("description"), f"{name}: parameter {parameter} is not described"
        assert "default" in schema


@pytest.mark.parametrize("name", NAMES)
def test_no_flow_hides_a_package(name: str) -> None:
    """Prefect puts `flows/` first on the path: a file named like a package would be imported in its place."""
    assert importlib.util.find_spec(name) is None


def test_tasks_bear_no_tags() -> None:
    """Each tag of a task would cost a write on Prefect's server before the task starts (ADR 34)."""
    modules = [importlib.import_module(f"tasks.{found.name}") for found in pkgutil.iter_modules(tasks.__path__)]
    steps = {step.name: step.tags for module in modules for step in vars(module).values() if isinstance(step, Task)}
    assert len(steps) > 20
    assert not {name: tags for name, tags in steps.items() if tags}
