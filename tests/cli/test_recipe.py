"""`fieldloop recipe`: what can be said of recipes without the platform."""

import subprocess
import sys
from pathlib import Path

import pytest

from expectations.profiles import load_profile
from fieldloop.domain.recipe import load_recipe, recipe_names
from fieldloop.stores.settings import Settings
from tasks.check import require_channels

ROOT = Path(__file__).parents[2]


def test_list() -> None:
    """Every recipe is shown with what it predicts and what competes."""
    command = [sys.executable, "-m", "fieldloop.cli.main", "recipe", "list"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env={"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    assert "value of active_power" in done.stdout
    for name in recipe_names(ROOT):
        assert name in done.stdout


@pytest.mark.parametrize("name", recipe_names(ROOT))
def test_recipes_fit_their_profiles(name: str) -> None:
    """Every recipe that comes with the platform can be read, and its profiles have what it asks for."""
    recipe = load_recipe(ROOT, name)
    require_channels(Settings(), recipe)
    for profile in recipe.profiles:
        assert recipe.target_unit(load_profile(ROOT, profile))
