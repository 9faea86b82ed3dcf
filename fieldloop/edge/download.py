"""The agent's side of the updater: starts it, reads the mirror for it at the allowed pace, and takes its outcome.

Over the child's standard input and output: a `Job` in, then questions out (a line of JSON each), answers in (a status,
a length, bytes), and `done` as the last question.
"""

import asyncio
import contextlib
import os
import signal
import struct
import sys
from collections.abc import Awaitable, Callable
from typing import BinaryIO, Final

import msgspec

from fieldloop.domain.errors import ReleaseError, ServiceError
from fieldloop.domain.rollout import Desired

NICENESS: Final = 10  # scoring goes first
QUESTION_BYTES: Final = 1 << 16  # of a line, at most
LONGEST_S: Final = 3600.0  # of one attempt; what has come is kept for the next
_FAULTS: Final = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)  # the release's doing
_ANSWER: Final = struct.Struct(">BI")
_HERE, _ABSENT, _BROKEN = range(3)  # statuses of an answer

Read = Callable[[str], Awaitable[bytes | None]]


class Job(msgspec.Struct, frozen=True):
    """What to fetch, and what to ask after.

    Attributes:
        trusted_root: path of the root metadata that came with enrolment.
        metadata: folder of the metadata seen so far.
        held: manifest path by digest of releases that are here: are they still signed?
        desired: what to fetch; None where nothing is.
        staging: folder for its files.
        installed: folder of the releases that are here; a patch may start from one.
    """

    trusted_root: str
    metadata: str
    held: dict[str, str]
    desired: Desired | None = None
    staging: str = ""
    installed: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """How it went.

    Attributes:
        refused: why the release will not do; None where it will.
        failed: why it could not be told; try again.
        memory_bytes: what loading it and its canary added to the process.
        latency_s: the median of a run of one window.
        revoked: why, by digest of those that were asked after and are signed no longer.
    """

    refused: str | None = None
    failed: str | None = None
    memory_bytes: int = 0
    latency_s: float = 0.0
    revoked: dict[str, str] = {}


class Question(msgspec.Struct, frozen=True):
    """What the child says: a key of the mirror that it wants, or that it is done."""

    read: str | None = None
    done: Outcome | None = None


async def fetch(job: Job, read: Read, bytes_per_s: int | None) -> Outcome:
    """Do a job in a process of its own: a release that is fetched, verified and tried lies in the staging folder then.

    Args:
        job: what and where.
        read: returns a value of the mirror, None where there is none; raises ServiceError.
        bytes_per_s: the pace; None sets no limit.

    Raises:
        ReleaseError: the release is refused, or brings its process down.
        ServiceError: something could not be reached, or the disk is full.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fieldloop.edge.updater",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=QUESTION_BYTES,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        async with asyncio.timeout(LONGEST_S):
            outcome = await _converse(child, job, read, bytes_per_s)
    except TimeoutError as exc:
        raise ServiceError(f"{_subject(job)} did not come within {LONGEST_S:.0f} s") from exc
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
    if outcome.refused is not None:
        raise ReleaseError(outcome.refused)
    if outcome.failed is not None:
        raise ServiceError(outcome.failed)
    return outcome


def read_answer(answers: BinaryIO) -> bytes | None:
    """Read one answer, on the child's side; None where the mirror has no such key.

    Raises:
        ServiceError: it could not be read there, or the agent is gone.
    """
    head = answers.read(_ANSWER.size)
    if len(head) != _ANSWER.size:
        raise ServiceError("the agent is gone")
    status, size = _ANSWER.unpack(head)
    data = answers.read(size)
    if status == _BROKEN:
        raise ServiceError(data.decode(errors="replace"))
    return data if status == _HERE else None


async def _converse(child: asyncio.subprocess.Process, job: Job, read: Read, bytes_per_s: int | None) -> Outcome:
    assert child.stdin is not None and child.stdout is not None  # noqa: S101, PT018 - they are pipes
    child.stdin.write(msgspec.json.encode(job) + b"\n")
    while line := await child.stdout.readline():
        question = msgspec.json.decode(line, type=Question)
        if question.done is not None:
            return question.done
        answer = await _answer(question.read or "", read)
        try:
            child.stdin.write(answer)
            await child.stdin.drain()
        except ConnectionError:
            break
        if bytes_per_s:
            await asyncio.sleep(len(answer) / bytes_per_s)
    code = await child.wait()
    what = f"the process that tried {_subject(job)} ended with"
    if -code in _FAULTS:
        raise ReleaseError(f"{what} {signal.Signals(-code).name}")
    raise ServiceError(f"{what} code {code}")


def _subject(job: Job) -> str:
    return f"release {job.desired.release[:12]}" if job.desired else "the list of releases"


async def _answer(key: str, read: Read) -> bytes:
    try:
        data = await read(key)
    except ServiceError as exc:
        reason = str(exc).encode()
        return _ANSWER.pack(_BROKEN, len(reason)) + reason
    return _ANSWER.pack(_ABSENT, 0) if data is None else _ANSWER.pack(_HERE, len(data)) + data
