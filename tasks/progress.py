"""The live artifact of a rollout: waves, counts, gates, and who is not proved and why."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

from prefect.artifacts import acreate_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from fieldloop.domain.rollout import Standing, State
from fieldloop.domain.rollout.record import Membership, Phase, Rollout

SHOWN_TARGETS: Final = 100  # rows of those that are not proved
SHOWN_REASONS: Final = 10
KEY: Final = "deploy"

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]


class Progress:
    """One artifact that is written anew as the rollout moves; what changes in the counts is logged as well."""

    def __init__(self, log: Logger, members: Membership, waves: Sequence[int]) -> None:
        self._log = log
        self._members = members
        self._waves = waves
        self._text = ""
        self._counts = ""
        self._artifact: UUID | None = None

    async def show(self, rollout: Rollout, standings: Sequence[Standing]) -> None:
        """Bring artifact and log up to date."""
        if (counts := count_line(standings)) != self._counts:
            self._counts = counts
            self._log.info("%s, batch %d of %d: %s", rollout.name, rollout.batch, rollout.batches, counts)
        text = describe(rollout, self._members, self._waves, standings)
        if text == self._text:
            return
        self._text = text
        if self._artifact is None:
            self._artifact = await acreate_markdown_artifact(text, KEY, f"How {rollout.name} goes")
            return
        async with get_client() as client:
            await client.update_artifact(self._artifact, ArtifactUpdate(data=text))


def describe(rollout: Rollout, members: Membership, waves: Sequence[int], standings: Sequence[Standing]) -> str:
    """Return how a rollout stands, as Markdown."""
    batches = zip(waves, members.batches, strict=True)
    by_target = {standing.target: standing for standing in standings}
    lines = [
        f"**{rollout.model}** version {rollout.version}, release `{rollout.release[:12]}`, rollout `{rollout.name}`: "
        f"{_when(rollout)}. {count_line(standings)}; {rollout.targets:,} targets in all.",
        "",
        "| wave | batch | targets | proved | pending | failed | silent |",
        "|---:|---:|---:|---:|---:|---:|---:|",
        *(_batch_row(wave, n, batch, by_target) for n, (wave, batch) in enumerate(batches, 1)),
        "",
        "| gate | | |",
        "|---|---|---|",
        *(_gate_row(line) for line in rollout.findings),
    ]
    return "\n".join(lines + _troubles(standings))


def _when(rollout: Rollout) -> str:
    """Say where it is, in words that stay true when it has ended: how it ended is the flow run's state."""
    where = f"batch {rollout.batch} of {rollout.batches}"
    return where if rollout.phase is Phase.RUNNING else f"{where}, {rollout.phase}"


def count_line(standings: Sequence[Standing]) -> str:
    """Say how many targets are in each state, for instance `3 of 4 proved, 1 failed`."""
    counts = Counter(standing.state for standing in standings)
    others = "".join(f", {counts[state]:,} {state}" for state in State if state is not State.PROVED and counts[state])
    return f"{counts[State.PROVED]:,} of {len(standings):,} proved{others}"


def _batch_row(wave: int, number: int, batch: Sequence[str], standings: Mapping[str, Standing]) -> str:
    counts = Counter(standings[target].state for target in batch if target in standings)
    states = (State.PROVED, State.PENDING, State.FAILED, State.SILENT)
    figures = [f"{counts[state]:,}" if counts else "" for state in states]
    return f"| {wave} | {number} | {len(batch):,} | {' | '.join(figures)} |"


def _gate_row(line: str) -> str:
    verdict, _, text = line.partition(": ")
    gate, _, outcome = verdict.partition(" ")
    return f"| {gate} | {outcome} | {_cell(text)} |"


def _troubles(standings: Sequence[Standing]) -> list[str]:
    """Return the reasons of those that are not proved, most frequent first, then the targets themselves."""
    open_ones = [standing for standing in standings if standing.state is not State.PROVED]
    if not open_ones:
        return []
    reasons = Counter((standing.state, standing.reason) for standing in open_ones).most_common(SHOWN_REASONS)
    lines = ["", "| targets | state | reason |", "|---:|---|---|"]
    lines += [f"| {count:,} | {state} | {_cell(reason)} |" for (state, reason), count in reasons]
    lines += ["", "| target | state | runs | reason |", "|---|---|---|---|"]
    shown = sorted(open_ones, key=lambda s: (s.state is State.PENDING, s.target))[:SHOWN_TARGETS]
    lines += [_target_row(standing) for standing in shown]
    if len(shown) < len(open_ones):
        lines += ["", f"{len(open_ones) - len(shown):,} more are not proved."]
    return lines


def _target_row(standing: Standing) -> str:
    runs = f"`{standing.release[:12]}`" if standing.release else "nothing"
    return f"| {standing.target} | {standing.state} | {runs} | {_cell(standing.reason)} |"


def _cell(text: str) -> str:
    """Keep a text within its cell; some are a target's own words."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
