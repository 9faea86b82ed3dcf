"""Published figures on real sets, each through profile, source, recipe and the flows' steps: how many fall short."""

import os
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from benchmarks import streams
from benchmarks.figure import Figure
from fieldloop.stores import registry
from fieldloop.stores.settings import Settings
from infra.local import platform, servers, store
from infra.local.authority import make_authority
from infra.local.keys import make_secrets
from infra.local.stack import start_stack, stop_stack
from tasks import train as training
from tasks.collect import collect
from tasks.preprocess import preprocess
from tasks.results import CandidateResult, TrainResult, describe
from tasks.unjudged import find_new
from tasks.validate import enter, judge

ROOT = Path(__file__).resolve().parents[1]
SEED = 7
NAB_ARCHIVE = "nab.tar.zst"


@dataclass(frozen=True)
class Claim:
    """A figure to reach, to as many digits as it is given.

    Attributes:
        figure: its name as the run logs it.
        reference: what a plain library or a publication reached.
        lower: whether less is better.
        source: who.
    """

    figure: str
    reference: float
    lower: bool
    source: str

    def reached(self, value: float) -> bool:
        """Tell whether a value is as good."""
        value = round(value, len(str(self.reference).partition(".")[2]))
        return value <= self.reference if self.lower else value >= self.reference


@dataclass(frozen=True)
class Case:
    """A set, a recipe, and what others reached on the same split.

    Attributes:
        recipe: its name.
        source: the declaration in `benchmarks/sources/` that brings its data.
        profile: of its devices.
        claims: on the held-out part, which nothing was chosen by.
    """

    recipe: str
    source: str
    profile: str
    claims: tuple[Claim, ...]


NAB = "nab_standard"  # figure that is computed from a run's predictions
PLAIN = "plain XGBoost, near defaults, row by row"
CASES = (
    Case(
        "turbine-power",
        "wind-farm",
        "senvion-mm82",
        (Claim("r2", 0.957, False, PLAIN), Claim("mae", 43.5, True, PLAIN), Claim("rmse", 97.0, True, PLAIN)),
    ),
    Case(
        "turbine-elsewhere",
        "wind-farm",
        "senvion-mm82",
        (Claim("r2", 0.969, False, PLAIN), Claim("mae", 37.2, True, PLAIN)),
    ),
    Case(
        "beijing-pm25",
        "beijing-air",
        "beijing-station",
        (Claim("r2", 0.935, False, PLAIN), Claim("mae", 12.99, True, PLAIN), Claim("rmse", 21.07, True, PLAIN)),
    ),
    Case(
        "occupancy",
        "occupancy",
        "occupancy-room",
        (Claim("accuracy.datatest", 0.979, False, "plain LDA"), Claim("accuracy.datatest2", 0.988, False, "plain LDA")),
    ),
    Case(
        "occupancy-dark",
        "occupancy",
        "occupancy-room",
        (Claim("accuracy.datatest", 0.853, False, "plain LDA"), Claim("accuracy.datatest2", 0.738, False, "plain LDA")),
    ),
    Case(
        "nab",
        "nab",
        "nab-series",
        (
            Claim(
                NAB, 74.9, False, "ARTime, the best that the benchmark publishes; HTM 70.5, KNN-CAD 58.0, Gaussian 39.6"
            ),
        ),
    ),
)


class TruthSettings(Settings):
    """The settings, with a root that holds the sets' declarations beside the repository's recipes and profiles."""

    folder: Path

    @property
    def root(self) -> Path:
        """Where recipes, profiles, sources and sets lie."""
        return self.folder


def measure() -> Figure:
    """Run every set that is there; `FIELDLOOP_DATASETS` is the folder of sets, and `TRUTH` picks recipes by name."""
    sets = Path(os.environ.get("FIELDLOOP_DATASETS", ROOT.parent / "shared" / "data"))
    wanted = os.environ.get("TRUTH", "").split(",") if os.environ.get("TRUTH") else [case.recipe for case in CASES]
    with _platform(sets) as settings:
        rows, absent, brought = [], [], set()
        for case in (case for case in CASES if case.recipe in wanted):
            if not any(settings.root.glob(_pattern(settings, case.source))):
                absent.append(case.recipe)
                continue
            if case.source not in brought:
                _bring(settings, case)
                brought.add(case.source)
            rows.append(_run(settings, case))
    short = [row for row in rows if not row["reached"]]
    return Figure(
        figure=float(len(short)),
        unit="sets that fall short",
        peer="published figures and plain libraries on the same splits",
        ratio=round(len(short) / max(len(rows), 1), 3),
        further={"short": len(short), "sets": rows, "left_out": absent},
    )


def _bring(settings: TruthSettings, case: Case) -> None:
    """Collect and validate."""
    collected = collect(settings, case.source)
    new = find_new(settings, case.profile, None, str(uuid.uuid4()))
    verdict = judge(settings, new)
    enter(settings, new, verdict)
    aside = ", ".join(each.device for each in verdict.set_aside) or "no device"
    print(f"{case.source}: {collected.readings:,} readings, {aside} set aside", file=sys.stderr)


def _run(settings: TruthSettings, case: Case) -> dict[str, object]:
    """Preprocess, train, and hold the best candidate against what others reached."""
    preprocess(settings, case.recipe)
    begun = training.begin(settings, case.recipe, [], None, None, SEED)
    results = [training.train_candidate(settings, begun, name, SEED) for name in begun.algorithms]
    result = training.finish(settings, begun, results)
    figures = {each.algorithm: _figures(settings, each) for each in result.candidates}
    if case.recipe == "nab":
        scored = streams.standard_score(settings, result.best.run_id)
        figures[result.best.algorithm][NAB] = scored.hindsight
    mine = figures[result.best.algorithm]
    claims = [
        {
            "figure": claim.figure,
            "value": round(mine[claim.figure], 4),
            "reference": claim.reference,
            "by": claim.source,
            "reached": claim.reached(mine[claim.figure]),
        }
        for claim in case.claims
    ]
    reached = all(claim["reached"] for claim in claims)
    row = {"recipe": case.recipe, "best": result.best.algorithm, "reached": reached, "claims": claims}
    print(describe(result), file=sys.stderr)
    if case.recipe == "nab":
        return row | scored.fields | ({} if reached else {"why": scored.why})
    return row | ({} if reached else {"why": _why(case, result, figures)})


def _why(case: Case, result: TrainResult, figures: dict[str, dict[str, float]]) -> str:
    """What this run shows of the reason: what each candidate was worth where it was chosen, and where it was judged."""
    told = []
    for each in result.candidates:
        judged = ", ".join(f"{claim.figure} {figures[each.algorithm][claim.figure]:.4f}" for claim in case.claims)
        told.append(f"{each.algorithm} {each.chosen_by:.4f} there, {judged}")
    able = [
        each.algorithm
        for each in result.candidates
        if all(claim.reached(figures[each.algorithm][claim.figure]) for claim in case.claims)
    ]
    none = "no candidate reaches it on the held-out windows"
    some = f"{', '.join(able)} would reach it, which shows on the held-out windows alone"
    return f"{result.metric} on the validation windows chose {result.best.algorithm}; {some if able else none}: " + (
        "; ".join(told)
    )


def _figures(settings: TruthSettings, candidate: CandidateResult) -> dict[str, float]:
    """All metrics that a run logged, those of each device as `metric.device`."""
    figures = dict(registry.client(settings).get_run(candidate.run_id).data.metrics)
    devices = pl.read_csv(registry.run_artifact(settings, candidate.run_id, "evaluation/devices.csv"))
    for metric in devices.drop("device", "windows").columns:
        figures |= {f"{metric}.{device}": value for device, value in devices.select("device", metric).iter_rows()}
    return figures


def _pattern(settings: TruthSettings, source: str) -> str:
    from fieldloop.stores.sources.declaration import load_declaration

    return str(load_declaration(settings.root, source).options.path)


@contextmanager
def _platform(sets: Path) -> Iterator[TruthSettings]:
    """Object store and MLflow, all that these steps need, over a root with every set that is there."""
    with tempfile.TemporaryDirectory(prefix="fieldloop-") as name:
        folder = Path(name)
        lay_out(folder / "root", sets)
        values = Settings().model_dump() | {"data_dir": folder / "data", "folder": folder / "root"}
        settings = TruthSettings.model_validate(values)
        make_secrets(settings)
        make_authority(settings)
        start_stack(settings, platform.PLATFORM, [store.spec(settings), servers.mlflow_spec(settings)])
        try:
            store.prepare(settings)
            yield settings
        finally:
            stop_stack(settings, platform.PLATFORM)


def lay_out(root: Path, sets: Path) -> None:
    """Link recipes, profiles and sets together, and unpack what is packed."""
    (root / "expectations").mkdir(parents=True)
    (root / "datasets").mkdir()
    (root / "recipes").symlink_to(ROOT / "recipes")
    (root / "expectations" / "profiles").symlink_to(ROOT / "expectations" / "profiles")
    (root / "expectations" / "sources").symlink_to(ROOT / "benchmarks" / "sources")
    (root / "datasets" / "wind_farm").symlink_to(ROOT / "data" / "la_haute_borne")
    for each in sets.iterdir() if sets.is_dir() else ():
        if (each / NAB_ARCHIVE).exists():
            streams.unpack(each / NAB_ARCHIVE, root / "datasets" / each.name)
        elif each.is_dir():
            (root / "datasets" / each.name).symlink_to(each)
