"""A recipe held against profiles and data before anything trains: windows, parts, classes, examples, and what is wrong.

Nothing is written: grid and windows are made in memory as *preprocess* would make them.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import polars as pl

from expectations.profiles import load_profile
from fieldloop.domain.document import line_of
from fieldloop.domain.errors import DocumentError
from fieldloop.domain.parts import PARTS
from fieldloop.domain.recipe import Recipe, load_recipe, recipe_file
from fieldloop.domain.recipe.split import ByDevice
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tasks.basis import Basis, basis_of
from tasks.examples import Examples, examples
from tasks.leaks import leak, likenesses
from tasks.preprocess import cut_windows
from tasks.unjudged import named

EXAMPLES: Final = 6  # rows shown
_FEW: Final = 30  # windows of a part, or of a class that trains, below which figures mean little
_MOST_EMBARGO: Final = 0.2  # share of the windows with a target, above which it is remarked upon
_ROWS: Final = 20_000  # windows in which a channel is looked at

Severity = Literal["problem", "warning"]


@dataclass(frozen=True)
class Finding:
    """Something to know before training; a problem stops it or makes its figures worthless."""

    severity: Severity
    text: str


@dataclass(frozen=True)
class Checked:
    """What a recipe makes of the data at hand.

    Attributes:
        recipe: the use case.
        parts: part, windows, first and last end, and of the target what its kind has to show.
        devices: device, its windows, those with a target, and those of each part.
        rows: some windows of each part: the channels in their last step, and the target.
        findings: problems first.
    """

    recipe: Recipe
    parts: pl.DataFrame
    devices: pl.DataFrame
    rows: pl.DataFrame
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing speaks against training."""
        return not any(finding.severity == "problem" for finding in self.findings)


def check(settings: Settings, name: str) -> Checked:
    """Hold a recipe against its profiles, and against the readings of the devices that passed validation.

    Raises:
        DocumentError: the recipe cannot be read, or asks for a channel that its profiles lack; names file and line.
        TrainingError: there are no readings to make windows from.
    """
    recipe, lake = load_recipe(settings.root, name), Lake(settings)
    require_channels(settings, recipe)
    basis = basis_of(settings, lake, recipe, None)
    return inspect(examples(recipe, *cut_windows(lake, basis)), _of_left_out(lake, basis))


def inspect(found: Examples, further: Sequence[Finding] = ()) -> Checked:
    """Show what windows hold, and what speaks against learning from them, and further findings."""
    findings = sorted([*further, *_findings(found)], key=lambda finding: finding.severity)
    return Checked(found.recipe, _parts(found), _devices(found), _rows(found), tuple(findings))


def require_channels(settings: Settings, recipe: Recipe) -> None:
    """Refuse a recipe that asks for a metric that one of its profiles does not have.

    Raises:
        DocumentError: names file and line, and the closest metric there is.
    """
    path = recipe_file(settings.root, recipe.name)
    text, wrong = path.read_text(encoding="utf-8"), []
    places: list[tuple[tuple[str | int, ...], str]] = [
        (("channels", row, "metric"), metric) for row, metric in enumerate(recipe.inputs)
    ]
    places += [(("target", "metric"), recipe.target.metric)] if recipe.target.metric else []
    places += [(("split",), metric) for metric in recipe.beside if metric != recipe.target.metric]
    for profile in (load_profile(settings.root, each) for each in recipe.profiles):
        for place, metric in places:
            if metric not in profile.metrics():
                close = difflib.get_close_matches(str(metric), profile.metrics(), n=1)
                proposal = f"did you mean `{close[0]}`?" if close else f"it has {', '.join(profile.metrics())}"
                line = line_of(text, place)
                wrong.append((line, f"profile `{profile.name}` has no channel `{metric}`; {proposal}"))
    if wrong:
        raise DocumentError("\n".join(f"recipes/{path.name}:{line}: {message}" for line, message in sorted(wrong)))


def _findings(found: Examples) -> list[Finding]:
    return [*_of_parts(found), *_of_classes(found), *_of_labels(found), *_of_channels(found)]


def _of_left_out(lake: Lake, basis: Basis) -> list[Finding]:
    """Devices that did not pass validation, with what the first of them was told."""
    if not basis.left_out:
        return []
    of = lake.scan("validations").filter(pl.col("device").is_in(basis.left_out), ~pl.col("passed")).sort("validated_at")
    told = of.group_by("device").last().select("device", "reason").sort("device").head(1).collect().rows()
    why = f"{told[0][0]}: {told[0][1]}" if told else "they have not been validated yet: run the flow `validate`"
    number, all_of = len(basis.left_out), len(basis.left_out) + len(basis.profiles)
    text = f"{number} of {all_of} devices did not pass validation and are left out ({named(basis.left_out)}); {why}"
    return [Finding("warning", text)]


def _of_parts(found: Examples) -> list[Finding]:
    counts = {part: len(found.chosen(part)) for part in PARTS}
    empty = [part for part, count in counts.items() if not count]
    few = [part for part, count in counts.items() if 0 < count < _FEW]
    findings = [Finding("problem", f"no window is left for {part}: change the recipe's split") for part in empty]
    findings += [Finding("warning", f"only {counts[part]} windows for {part}") for part in few]
    return findings + _of_embargo(found)


def _of_embargo(found: Examples) -> list[Finding]:
    """Borders that cost more than they leave."""
    recipe, counts = found.recipe, found.counts()
    lost = counts.pop("embargo")
    usable = lost + sum(counts[part] for part in PARTS)
    if lost <= usable * _MOST_EMBARGO:
        return []
    ahead = f", and its target looks {recipe.lookahead:,} ahead" if recipe.lookahead else ""
    remedy = (
        "name whole devices that choose: `validation` of the split"
        if isinstance(recipe.split, ByDevice) and not recipe.split.validation
        else "shorten them, or move the borders"
    )
    reach = f"each reads {recipe.window.length:,} steps{ahead}"
    return [Finding("warning", f"{lost:,} of {usable:,} windows with a target serve no part, as {reach}: {remedy}")]


def _of_classes(found: Examples) -> list[Finding]:
    findings = []
    for code, name in enumerate(found.recipe.classes):
        for part in PARTS:
            count = int(np.count_nonzero(found.target[found.chosen(part)] == code))
            if not count:
                severity: Severity = "problem" if part == "train" else "warning"
                remedy = (
                    "mend the labels, move the split, or leave the class out" if part == "train" else "move the split"
                )
                findings.append(Finding(severity, f"class `{name}` has no window in {part}: {remedy}"))
            elif part == "train" and count < _FEW:
                findings.append(Finding("warning", f"class `{name}` has only {count} windows in train"))
    return findings


def _of_labels(found: Examples) -> list[Finding]:
    """Devices of whose windows nobody knows the target; anomalies are learnt without."""
    if found.recipe.target.kind == "anomaly":
        return []
    known = ~np.isnan(found.target)
    if len(known) and not known.any():
        return [Finding("problem", "no window has a target: see the labels' times, devices and zone")]
    bare = [
        (device, int(np.count_nonzero(found.device == code)))
        for code, device in enumerate(found.devices)
        if not known[found.device == code].any()
    ]
    return [
        Finding("warning", f"device {device} has {count:,} windows and no label: none of them serves")
        for device, count in bare
    ]


def _of_channels(found: Examples) -> list[Finding]:
    train = found.chosen("train")
    if not len(train):
        return []
    chosen = train[:: max(1, len(train) // _ROWS)]
    findings = []
    last = np.concatenate([found.windows(part)[:, :, -1] for part in found.chunks(chosen)])
    for row, metric in enumerate(found.recipe.inputs):
        values = last[~np.isnan(last[:, row]), row]
        if not len(values):
            findings.append(Finding("problem", f"channel `{metric}` has no value in any training window: take it out"))
        elif not np.ptp(values):
            findings.append(
                Finding("warning", f"channel `{metric}` is {values[0]:g} in every training window: it teaches nothing")
            )
    target = found.target[train]
    if found.recipe.target.kind in ("value", "time_to_event") and not np.ptp(target):
        findings.append(Finding("problem", f"the target is {target[0]:g} in every training window"))
    for like in likenesses(found):
        if like.copies:
            findings.append(Finding("problem", leak(found.recipe.name, like.metric, found.recipe.target_name)))
        elif like.suspect:
            findings.append(
                Finding(
                    "warning",
                    f"channel `{like.metric}` alone nearly tells the target ({like.share:.3f} of 1): is it known "
                    "before the target is?",
                )
            )
    return findings


def _parts(found: Examples) -> pl.DataFrame:
    """A row a part."""
    rows = []
    for part in PARTS:
        chosen = found.chosen(part)
        target = found.target[chosen]
        span = found.end_us[chosen]
        row: dict[str, Any] = {
            "part": part,
            "windows": len(chosen),
            "from": _day(int(span.min())) if len(span) else "–",
            "to": _day(int(span.max())) if len(span) else "–",
            "devices": len(np.unique(found.device[chosen])),
        }
        rows.append(row | _of_target(found.recipe, target))
    return pl.DataFrame(rows)


def _of_target(recipe: Recipe, target: np.ndarray[tuple[int], np.dtype[np.float32]]) -> dict[str, str]:
    """Class balance, share of anomalies, or mean and range."""
    if recipe.classes:
        counts = [int(np.count_nonzero(target == code)) for code in range(len(recipe.classes))]
        total = max(sum(counts), 1)
        return {name: f"{count:,} ({count / total:.1%})" for name, count in zip(recipe.classes, counts, strict=True)}
    known = target[~np.isnan(target)]
    if not len(known):
        return {"target": "unlabelled"}
    if recipe.target.kind == "anomaly":
        return {"target": f"{int(np.count_nonzero(known)):,} anomalous ({np.mean(known > 0):.1%})"}
    return {"target": f"{np.mean(known, dtype=np.float64):.4g} ({known.min():.4g} to {known.max():.4g})"}


def _devices(found: Examples) -> pl.DataFrame:
    rows = []
    for code, device in enumerate(found.devices):
        mine = found.device == code
        counts = {part: int(np.count_nonzero(mine[found.chosen(part)])) for part in PARTS}
        known = int(np.count_nonzero(mine & ~np.isnan(found.target)))
        row: dict[str, Any] = {"device": device, "windows": int(np.count_nonzero(mine)), "labelled": known}
        rows.append(row | counts)
    return pl.DataFrame(rows)


def _rows(found: Examples) -> pl.DataFrame:
    """A few windows of each part, spread over it."""
    chosen = np.sort(np.concatenate([_some(found.chosen(part), EXAMPLES // len(PARTS)) for part in PARTS]))
    last = found.windows(chosen)[:, : len(found.recipe.inputs), -1]
    classes = found.recipe.classes
    target = found.target[chosen].tolist()
    named: list[Any] = [classes[int(code)] for code in target] if classes else target
    columns: dict[str, Any] = {
        "part": found.split[chosen].tolist(),
        "device": [found.devices[code] for code in found.device[chosen]],
        "end": [_day(int(end)) for end in found.end_us[chosen]],
        **{metric: last[:, row] for row, metric in enumerate(found.recipe.inputs)},
        f"{found.recipe.target_name} (target)": named,
    }
    return pl.DataFrame(columns)


def _some(rows: np.ndarray[tuple[int], np.dtype[np.int64]], number: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    number = min(number, len(rows))
    return rows[np.arange(number) * len(rows) // max(number, 1)]


def _day(us: int) -> str:
    return str(np.datetime64(us, "us").astype("datetime64[m]")).replace("T", " ")
