"""Recipes: what they refuse, and what follows from them."""

import re
from pathlib import Path

import pytest

from fieldloop.domain.document import load
from fieldloop.domain.errors import DocumentError
from fieldloop.domain.profile import Channel, Clock, Profile
from fieldloop.domain.recipe import Recipe, load_recipe, recipe_names

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "recipes" / "turbine-power.yaml").read_text()
HOUR_US = 3_600_000_000


def refusal(old: str, new: str) -> str:
    """The error of the wind-farm recipe with something replaced."""
    assert old in TEXT
    with pytest.raises(DocumentError) as caught:
        load(Recipe, TEXT.replace(old, new, 1), "r.yaml")
    return str(caught.value)


def line_of(text: str) -> int:
    """Line of the recipe that holds a text."""
    return next(number for number, line in enumerate(TEXT.splitlines(), 1) if text in line)


def profile(*metrics: str) -> Profile:
    """A profile with the given metrics."""
    channels = tuple(Channel(metric, metric, "", 1, 0, -1e9, 1e9, "mean") for metric in metrics)
    return Profile("p", "json", None, Clock("t", "iso"), 600_000_000, 0, channels)


def test_wind_farm() -> None:
    """The recipe that comes with the platform can be read, and `recipe_names` knows it."""
    recipe = load_recipe(ROOT, "turbine-power")
    assert recipe.target.metric == "active_power"
    assert "turbine-power" in recipe_names(ROOT)


@pytest.mark.parametrize(
    ("old", "new", "at", "expected"),
    [
        ("channels:", "chanels:", "channels:", "unknown key `chanels`; did you mean `channels`?"),
        ("frozen_steps: 3", "frozen_step: 3", "wind_speed", "unknown key `frozen_step` in `channels.0`; did you mean"),
        ("[level, spread, trend]", "[level, spraed]", "features:", "input should be 'presence', 'level', 'spread'"),
        ("metric: wind_direction", "metric: wind_speed", "channels:", "given twice: `wind_speed`"),
        ("metric: active_power", "metric: wind_speed", "target:", "a model must not read what it predicts"),
        ("test_until: 2016", "test_until: 2014", "test_until", "expected a time after train_until"),
        ("metric: mae", "metric: log_loss", "promotion:", "`log_loss` does not judge a target of kind value"),
        (
            "algorithm: ridge, penalty: 1.0",
            "algorithm: pca",
            "candidates:",
            "`pca` does not learn a target of kind",
        ),
        ("{metric: active_power}", "{kind: clas, metric: active_power}", "target:", "clas"),
        ("[0, 40]", "[40, 0]", "wind_speed", "expected [lowest, highest], got [40.0, 0.0]"),
        ("length: 6", "length: 2", "window:", "frozen_steps 3 of `wind_speed` never fit into a window of 2"),
        ("length: 6", "length: 6, least: 7", "window:", "expected at most the window's length 6, got 7"),
        ("trees: 200", "tress: 200", "xgboost", "unknown key `tress` in `candidates.0.xgboost`; did you mean `trees`?"),
        ("algorithm: ridge", "algorithm: rigde", "ridge", "rigde"),
        ("step_s: 600", "step_s: 0", "step_s", "greater than or equal to 0.001"),
        ("step_s: 600", "step_s: 0.0333333333", "step_s", "whole number of microseconds"),
        ("2015-01-01T00:00:00Z", "2015-01-01T00:00:00", "train_until:", "timezone"),
    ],
)
def test_mistakes_name_line_and_remedy(old: str, new: str, at: str, expected: str) -> None:
    """Each mistake is reported at its line, in words."""
    errors = refusal(old, new).splitlines()
    assert any(error.startswith(f"r.yaml:{line_of(at)}: ") and expected in error for error in errors), errors


def test_unknown_recipe() -> None:
    """A name without a file lists the names that have one; a path is no name."""
    for name in ("turbine", "../recipes/turbine-power"):
        with pytest.raises(DocumentError, match=r"expected one of .*turbine-power"):
            load_recipe(ROOT, name)


def test_name_must_be_the_file_s(tmp_path: Path) -> None:
    """A copied recipe that kept its name is refused."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "other.yaml").write_text(TEXT)
    with pytest.raises(DocumentError, match="name is `turbine-power`; expected the file's, `other`"):
        load_recipe(tmp_path, "other")


def test_digest_is_of_the_content() -> None:
    """Comments and layout leave the digest alone, a figure does not."""
    recipe = load(Recipe, TEXT, "r.yaml")
    assert load(Recipe, TEXT + "\n# a comment\n", "r.yaml").digest == recipe.digest
    assert load(Recipe, TEXT.replace("trees: 200", "trees: 201"), "r.yaml").digest != recipe.digest


def test_window_spec_takes_rules_from_the_profile() -> None:
    """The windows' rows are the recipe's channels, in its order."""
    recipe = load(Recipe, TEXT, "r.yaml")
    spec = recipe.window_spec(profile("active_power", *reversed(recipe.inputs)))
    assert spec.channels == recipe.inputs
    assert spec.rules == ("mean",) * 6
    assert (spec.step_us, spec.length, spec.grace_us) == (600_000_000, 6, 0)


def test_profile_without_a_channel() -> None:
    """A channel that the profile lacks is named, next to those that it has."""
    recipe = load(Recipe, TEXT, "r.yaml")
    with pytest.raises(DocumentError, match="profile `p` has no metric `wind_direction`; expected one of wind_speed"):
        recipe.window_spec(profile("wind_speed"))
    with pytest.raises(DocumentError, match="no metric `active_power`"):
        recipe.window_spec(profile(*recipe.inputs))


SPLIT = TEXT[TEXT.index("split:") : TEXT.index("candidates:")]


@pytest.mark.parametrize(
    ("old", "new", "at", "expected"),
    [
        (SPLIT, "split: {by: random}\n", "split:", "share steps, so that a random test would ask for what was learnt"),
        (SPLIT, "split: {by: device}\n", "split:", "missing key `test` in `split.device`"),
        (SPLIT, "split: {by: run}\n", "split:", "expected either `gap_steps`"),
        (SPLIT, "split: {by: devices}\n", "split:", "unknown kind `devices`; did you mean `device`?"),
        ("{metric: active_power}", "active_power", "target:", "expected keys and their values, got 'active_power'"),
        (SPLIT, "split: device\n", "split:", "expected keys and their values, got 'device'"),
        ("{metric: active_power}", "{kind: class, labels: {file: a.csv}, classes: [a]}", "target:", "at least 2 items"),
        ("{metric: active_power}", "{kind: class, labels: {}, classes: [a, b]}", "target:", "either `file` or `table`"),
        ("{metric: active_power}", "{kind: class, metric: active_power, classes: [a, b]}", "target:", "its value"),
        ("{metric: active_power}", "{kind: time_to_event, at_end: true, unit: h}", "split:", "give the target a `cap`"),
        ("trees: 20,", "trees: 20, search: {trees: {low: 9, high: 4}},", "extra_trees", "expected low below high"),
        (
            "trees: 20,",
            "trees: 20, search: {trees: {low: 1, high: 9999}},",
            "extra_trees",
            "or equal to 1000",
        ),
        ("trees: 20,", "trees: 20, search: {leafs: {low: 1, high: 9}},", "extra_trees", "`leafs` is no setting"),
        ("algorithm: ridge, penalty: 1.0", "algorithm: last_value", "name:", "needs the target's metric among the"),
        ("promotion: {metric: mae,", "promotion: {metric: auc,", "promotion:", "`auc` does not judge a target of kind"),
    ],
)
def test_use_cases_that_cannot_be(old: str, new: str, at: str, expected: str) -> None:
    """Splits, targets and searches that do not hold together are refused at their line."""
    found = re.findall(r"^r\.yaml:(\d+): (.*)", refusal(old, new), re.MULTILINE)
    assert any(int(line) == line_of(at) and expected in error for line, error in found), found


@pytest.mark.parametrize(
    ("target", "metric", "width", "unit"),
    [
        ("{metric: active_power, horizon: 3}", "mae", 1, ""),
        ("{kind: class, metric: active_power, classes: {low: 0, high: 1}}", "log_loss", 1, "probability of high"),
        ("{kind: class, labels: {file: a.csv}, classes: [a, b, c], otherwise: a}", "log_loss", 4, "class"),
        ("{kind: anomaly}", "alarm_excess", 1, "share of the threshold"),
        ("{kind: anomaly, labels: {table: labels/a}}", "average_precision", 1, "share of the threshold"),
        ("{kind: time_to_event, at_end: true, unit: h, cap: 10}", "mae", 1, "h"),
    ],
)
def test_kinds_of_targets(target: str, metric: str, width: int, unit: str) -> None:
    """Each kind has a metric to be judged by, a prediction of its width, and a unit."""
    kind = "pca" if "anomaly" in target else "majority" if "class" in target else "mean"
    text = re.sub(r"candidates:.*?promotion: .*?\n", f"candidates: [{{algorithm: {kind}}}]\n", TEXT, flags=re.DOTALL)
    recipe = load(Recipe, text.replace("{metric: active_power}", target), "r.yaml")
    assert (recipe.promotion.metric, recipe.width) == (metric, width)
    assert recipe.target_unit(profile("active_power")) == unit


def test_a_forecast_may_read_what_it_predicts() -> None:
    """With a horizon the target may be among the channels, and the baseline repeats it."""
    text = TEXT.replace("{metric: active_power}", "{metric: wind_speed, horizon: 6}")
    recipe = load(Recipe, text.replace("algorithm: ridge, penalty: 1.0", "algorithm: last_value"), "r.yaml")
    assert recipe.beside == ()
    assert recipe.lookahead == 6


GROUPS = (
    "groups: {label: site, of: {north: {include: ['R807[12]*']}, south: {include: ['R*'], exclude: ['R807[12]*']}}}"
)


def test_a_recipe_of_groups_is_a_recipe_for_each(tmp_path: Path) -> None:
    """Each has a name and devices of its own, and is read by that name; what is learnt from is told apart."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "turbine-power.yaml").write_text(TEXT + GROUPS)
    whole, north = (load_recipe(tmp_path, name) for name in ("turbine-power", "turbine-power--north"))
    assert [member.name for member in whole.members] == ["turbine-power--north", "turbine-power--south"]
    assert whole.members[0] == north
    assert [north.devices.takes(device) for device in ("R80711", "R80736")] == [True, False]
    assert [whole.members[1].devices.takes(device) for device in ("R80711", "R80736")] == [False, True]
    assert len({each.digest for each in (whole, *whole.members)}) == 3
    assert north.members == (north,)


@pytest.mark.parametrize(("name", "reason"), [
    ("turbine-power--west", "no group `west`; expected one of north, south"),
    ("turbine--north", "no recipe `turbine--north`"),
])  # fmt: skip
def test_a_group_that_is_not_there_is_named(tmp_path: Path, name: str, reason: str) -> None:
    """So is a recipe that has none of that name."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "turbine-power.yaml").write_text(TEXT + GROUPS)
    with pytest.raises(DocumentError, match=reason):
        load_recipe(tmp_path, name)


def test_one_group_is_none() -> None:
    """It would be the recipe itself; the error names the line."""
    text = TEXT + "groups: {label: site, of: {north: {include: ['*']}}}"
    with pytest.raises(DocumentError, match=rf"r\.yaml:{len(text.splitlines())}:.*groups"):
        load(Recipe, text, "r.yaml")
