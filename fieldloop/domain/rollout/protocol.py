"""What platform and target tell each other: desired state one way, reports the other, each the newest of its key.

Every field that came later has a default, so that reports of older agents still decode, and older agents read what is
asked of them.
"""

from collections.abc import Iterator
from typing import Annotated, Final

import msgspec

from fieldloop.domain.errors import PayloadError
from fieldloop.domain.release import Proof
from fieldloop.domain.sketch import Sketch

NOTHING: Final = ""  # as a desired release: run none, forget what runs
MOST: Final = 1 << 40  # windows of one target: thousands a second for years; sums over a fleet stay exact
NAME: Final = 256  # characters of a digest, a model's or a target's name

Count = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
Word = Annotated[str, msgspec.Meta(max_length=NAME)]


class Desired(msgspec.Struct, frozen=True):
    """What a target should run; the newest wins.

    Attributes:
        release: digest of the release; `NOTHING` where the target should stop scoring, as it did before a rollout
            that is being rolled back.
        manifest: its manifest's path in the repository.
        issued_us: when it was asked for, microseconds since the epoch, UTC.
        rollout: name of the rollout that asks.
        shadow: digest of another release to run on the same windows, whose predictions are counted (`Shadow`) and
            never published; None where there is none. A shadow that fails is reported and leaves `release` alone.
        shadow_manifest: its manifest's path in the repository.
        labels: the target's own, `key=value`, by which it takes its graph of a release that has one a group.
        devices: those that it serves, each with its profile; None leaves what it was told before or at enrolment.
    """

    release: str
    manifest: str
    issued_us: int
    rollout: str
    shadow: str | None = None
    shadow_manifest: str | None = None
    labels: tuple[str, ...] = ()
    devices: tuple[tuple[str, str], ...] | None = None


class Running(msgspec.Struct, frozen=True):
    """The release that a target has loaded and proved to run."""

    release: Word
    model: Word
    version: Count
    proof: Proof


class Inventory(msgspec.Struct, frozen=True):
    """What a target is. Its labels are not its own to say: they come from enrolment.

    Attributes:
        machine: architecture, for instance `aarch64`.
        hardware: name of the board or machine; empty where it does not say.
        system: kernel and its release.
        distribution: name and version of the operating system; empty where it does not say.
        cores: how many the agent may use.
        memory_bytes: of the machine.
        free_bytes: left on the disk that keeps releases.
        versions: of what runs there, by name: `fieldloop`, `python`, `onnxruntime`, `numpy`.
    """

    machine: str = ""
    hardware: str = ""
    system: str = ""
    distribution: str = ""
    cores: int = 0
    memory_bytes: int = 0
    free_bytes: int = 0
    versions: dict[str, str] = {}


class Served(msgspec.Struct, frozen=True):
    """What one release has done on a target since it was switched to.

    Attributes:
        release: its digest.
        since_us: when it was switched to, by the target's clock, microseconds since the epoch, UTC.
        windows: windows scored.
        errors: windows and messages that it failed on.
        restarts: starts of the agent with it, beyond the first.
        latency: seconds from a reading received to its prediction published, one value a batch.
        scores: predictions, in the unit of the release.
        start_bytes: resident memory of the agent when it had been switched to and had run its canary.
        memory_bytes: resident memory now; for a release that no longer runs, at its end.
    """

    release: Word
    since_us: int = 0
    windows: Count = 0
    errors: Count = 0
    restarts: Count = 0
    latency: Sketch = Sketch()
    scores: Sketch = Sketch()
    start_bytes: Bytes = 0
    memory_bytes: Bytes = 0


class Shadow(msgspec.Struct, frozen=True):
    """What the shadow has done beside the running release, on the same windows.

    Attributes:
        release: the shadow's digest.
        beside: digest of the release that ran; counts begin anew when either changes.
        proof: of its canary; None where it did not get so far.
        error: why it does not run; None where it does.
        windows: windows that both scored.
        errors: windows that it failed on.
        gaps: shadow minus running, a value a window, in the unit of the running release.
        scores: the shadow's predictions.
        latency: seconds that its graph took, one value a batch.
    """

    release: Word
    beside: Word
    proof: Proof | None = None
    error: str | None = None
    windows: Count = 0
    errors: Count = 0
    gaps: Sketch = Sketch()
    scores: Sketch = Sketch()
    latency: Sketch = Sketch()


class Gap(msgspec.Struct, frozen=True):
    """Messages that a full spool refused: when the first and the last came (own clock, µs since 1970), and how many."""

    from_us: int
    until_us: int
    count: int


class Spool(msgspec.Struct, frozen=True):
    """Messages that wait on the target's disk for the broker.

    Attributes:
        waiting: how many.
        bytes: what the spool takes on the disk.
        dropped: how many were refused since the target was enrolled.
        gaps: the last runs of refused ones.
    """

    waiting: int = 0
    bytes: int = 0
    dropped: int = 0
    gaps: tuple[Gap, ...] = ()


class Reverted(msgspec.Struct, frozen=True):
    """A release that a target had switched to and then left by itself.

    Attributes:
        release: its digest.
        reason: why.
        issued_us: `Desired.issued_us` of the order that it had followed; asked anew, the target tries anew.
        at_us: when, by its own clock, microseconds since the epoch, UTC.
    """

    release: str
    reason: str
    issued_us: int
    at_us: int = 0


class Certified(msgspec.Struct, frozen=True):
    """How long a target's certificate is good, microseconds since the epoch, and why it could not be renewed."""

    until_us: int = 0
    error: str | None = None


class Reported(msgspec.Struct, frozen=True):
    """What a target says of itself.

    Attributes:
        target: its name.
        at_us: its own clock, microseconds since the epoch, UTC.
        runtime: version of its ONNX Runtime.
        running: what it runs; None where nothing.
        attempted: digest of the desired release that it last worked on.
        refused: it will not run `attempted`; False with an `error` means that it tries again.
        error: why `attempted` does not run, or why what runs does not score; None where all is well.
        scored: windows scored since it started.
        errors: messages and records that it could not use since it started.
        inventory: what it is.
        served: what `running` has done; None where nothing runs, or the agent is too old to say.
        before: the same of the release that ran before it, as it stood when it was left.
        shadow: what the desired shadow has done; None where none is desired.
        previous: digest of the release in the other slot, to which it can go back without a download.
        reverted: the last release that it left by itself; None where it never did.
        spool: predictions that wait for the broker.
        inputs: sketch of each channel's newest grid values since the release was switched to, by metric.
        certificate: of its certificate.
        answers_us: `issued_us` of that desired state: which order this report answers; 0 from agents too old to say.
    """

    target: Word
    at_us: int
    runtime: Word
    running: Running | None = None
    attempted: str | None = None
    refused: bool = False
    error: str | None = None
    scored: int = 0
    errors: int = 0
    inventory: Inventory = Inventory()
    served: Served | None = None
    before: Served | None = None
    shadow: Shadow | None = None
    previous: str | None = None
    reverted: Reverted | None = None
    spool: Spool = Spool()
    inputs: dict[str, Sketch] = {}
    certificate: Certified = Certified()
    answers_us: int = 0


def decode_report(data: bytes, target: str) -> Reported:
    """Read what a target says of itself; whoever sums reports up can rely on each of them.

    Raises:
        PayloadError: it is no report, names another target, or counts more than a target can have counted.
    """
    try:
        report = msgspec.json.decode(data, type=Reported)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:  # bad text, numbers and nesting, in this order
        raise PayloadError(f"its last report cannot be read: {exc}") from exc
    if report.target != target:
        raise PayloadError(f"its last report names another target: {report.target}")
    if any(sketch.count > MOST or sketch.missing > MOST for sketch in _sketches(report)):
        raise PayloadError(f"its last report counts more than {MOST:,} values")
    return report


def _sketches(report: Reported) -> Iterator[Sketch]:
    for served in (report.served, report.before):
        if served is not None:
            yield from (served.latency, served.scores)
    if report.shadow is not None:
        yield from (report.shadow.gaps, report.shadow.scores, report.shadow.latency)
    yield from report.inputs.values()
