"""The model card: what a person reads on a version's page before trusting it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from fieldloop.domain.bootstrap import LEVEL
from fieldloop.domain.metrics import LOWER_IS_BETTER
from fieldloop.domain.parity import Certificate
from fieldloop.domain.recipe import Recipe, load_recipe
from fieldloop.stores import registry
from fieldloop.stores.registry import ModelVersion
from fieldloop.stores.settings import Settings
from tasks.challenge import Verdict
from tasks.runs import intervals_of
from tasks.tags import ALGORITHM, BLOCK, GRAPH_DIGEST, GRID_VERSION, NOTES, WINDOWS_VERSION

if TYPE_CHECKING:
    from mlflow.entities import Run

_LONGEST: Final = 5_000  # characters that MLflow's database keeps of a description
_WORST: Final = 5  # devices
_CHANNELS: Final = 24


def model_card(settings: Settings, version: ModelVersion, parity: Certificate, verdict: Verdict) -> str:
    """Return a version's description, Markdown: purpose, standing, data, figures, limits, proof."""
    recipe = load_recipe(settings.root, version.name)
    run = registry.client(settings).get_run(version.run_id)
    devices = pl.read_csv(registry.run_artifact(settings, version.run_id, "evaluation/devices.csv"))
    periods = pl.read_csv(registry.run_artifact(settings, version.run_id, "evaluation/periods.csv"))
    parts = (
        _purpose(recipe, version),
        _standing(verdict),
        _data(recipe, version, run, devices, periods),
        _figures(recipe, run, verdict),
        _devices(recipe, devices),
        _limits(recipe, version),
        _proof(version, parity),
    )
    card = "\n\n".join(part for part in parts if part)
    return card if len(card) <= _LONGEST else card[: _LONGEST - 2] + " …"


def _purpose(recipe: Recipe, version: ModelVersion) -> str:
    named = ", ".join(f"`{metric}`" for metric in recipe.inputs[:_CHANNELS])
    more = f" and {len(recipe.inputs) - _CHANNELS} more" if len(recipe.inputs) > _CHANNELS else ""
    ahead = f", {recipe.target.horizon} steps ahead" if recipe.target.horizon else ""
    classes = f" (classes {', '.join(recipe.classes)})" if recipe.classes else ""
    return (
        f"{recipe.description}\n\n"
        f"**Predicts** {recipe.target.kind.replace('_', ' ')} `{recipe.target_name}`{classes}{ahead} from the last "
        f"{recipe.window.length} steps of {recipe.grid.step_s} s of {named}{more}, by **{version.tags[ALGORITHM]}**."
    )


def _standing(verdict: Verdict) -> str:
    return f"**Standing** when registered: {verdict.alias} ({verdict.outcome}): {verdict.reason}."


def _data(recipe: Recipe, version: ModelVersion, run: "Run", devices: pl.DataFrame, periods: pl.DataFrame) -> str:
    rows = {part: int(run.data.metrics[f"rows.{part}"]) for part in ("train", "validation", "test")}
    first, last = periods[periods.columns[0]][0], periods[periods.columns[0]][-1]
    span = (
        f"in the {periods.columns[0]} of {first}"
        if first == last
        else f"from {first} to the {periods.columns[0]} of {last}"
    )
    return (
        "### Data\n\n"
        f"`grid/{version.name}` version {version.tags[GRID_VERSION]}, `windows/{version.name}` version "
        f"{version.tags[WINDOWS_VERSION]}; profiles {', '.join(f'`{name}`' for name in recipe.profiles)}. Split by "
        f"{recipe.split.by}: {rows['train']:,} windows taught, {rows['validation']:,} chose, {rows['test']:,} of "
        f"{len(devices):,} devices, {span}, judged and were seen by nothing before."
    )


def _figures(recipe: Recipe, run: "Run", verdict: Verdict) -> str:
    figures, intervals = run.data.metrics, intervals_of(recipe, run.data.metrics)
    baselines = [name for name in ("mean", "last value", "class shares") if any(_of_baseline(figures, name))]
    theirs = verdict.champion_metrics or {}
    against = [f"champion {verdict.champion}"] if theirs else []
    lines = [
        _row(["", "value", f"{LEVEL:.0%} interval", *(f"baseline: {name}" for name in baselines), *against]),
        "|---|" + "---:|" * (2 + len(baselines) + len(against)),
    ]
    for metric in recipe.metrics():
        low, high = intervals.get(metric, (float("nan"), float("nan")))
        cells = [f"{figures[metric]:.4g}", "–" if low != low else f"{low:.4g} – {high:.4g}"]
        cells += [f"{figures[f'baseline.{name}.{metric}']:.4g}" for name in baselines]
        cells += [f"{theirs[metric]:.4g}"] if theirs else []
        label = f"**{metric}**" if metric == recipe.promotion.metric else metric
        lines.append(_row([label, *cells]))
    drawn = f"Intervals by {figures['blocks']:.0f} blocks of held-out windows, each {run.data.tags[BLOCK]}."
    return "### Held-out figures\n\n" + "\n".join(lines) + f"\n\n{drawn}"


def _of_baseline(figures: Mapping[str, float], name: str) -> list[str]:
    return [key for key in figures if key.startswith(f"baseline.{name}.")]


def _devices(recipe: Recipe, devices: pl.DataFrame) -> str:
    metric = recipe.promotion.metric
    known = devices.filter(pl.col(metric).is_not_null())
    if len(known) < 2:
        return ""
    worst = known.sort(metric, descending=metric in LOWER_IS_BETTER)[:_WORST]
    rows = [_row([row["device"], f"{row['windows']:,}", f"{row[metric]:.4g}"]) for row in worst.to_dicts()]
    title = "### Devices" if len(known) <= _WORST else f"### Worst of {len(known):,} devices"
    return f"{title}\n\n" + "\n".join([_row(["device", "windows", metric]), "|---|---:|---:|", *rows])


def _limits(recipe: Recipe, version: ModelVersion) -> str:
    ranges = ", ".join(
        f"`{channel.metric}` {channel.valid[0]:g} to {channel.valid[1]:g}"
        for channel in recipe.channels
        if np.isfinite(channel.valid).any()
    )
    lines = [f"- {note}" for note in version.tags.get(NOTES, "").splitlines()]
    lines += [f"- Values outside their plausible range count as missing: {ranges}."] if ranges else []
    lines.append(
        "- The figures hold for devices of these profiles under conditions like those of the held-out windows"
        f"{'' if recipe.split.by == 'device' else '; of devices that it has not learnt from they say nothing'}."
    )
    return "### Limits\n\n" + "\n".join(lines)


def _proof(version: ModelVersion, parity: Certificate) -> str:
    digest = version.tags.get(GRAPH_DIGEST, "")
    graph = f"\n- graph SHA-256 `{digest}`" if digest else ""
    return (
        "### Proof\n\n"
        f"- parity of graph and native model: largest difference {parity.max_abs_diff:g} (limit {parity.limit:g}) on "
        f"{parity.rows:,} held-out windows, {parity.rows_with_gaps:,} with gaps, {parity.rows_at_branches:,} "
        f"at branches of trees; onnxruntime {parity.runtime.get('onnxruntime', 'unknown')}{graph}\n"
        f"- made again bit for bit by `fieldloop model rebuild {version.label}`; inputs and output: see the schema"
    )


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
