"""A crew of processes, one a partition: batches go to all of them, each decodes and commits its part.

Messages between the processes are MessagePack over a socket pair. A worker whose other end is gone ends by itself, and
what it had not committed is read again by the next run.
"""

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec
import numpy as np

from fieldloop.domain.errors import FieldloopError, StoreError
from fieldloop.domain.readings import Messages, Named, Packed
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import LEAN, Settings
from tasks.landing import Batch, Landed
from tasks.partitions import Part, Partition, own_part, positions

LEAVE_S: Final = 10.0  # for a worker that is told to end
AHEAD: Final = 1  # parts that a worker decodes ahead of its commits

Decoded = tuple[Batch, int] | BaseException | None


class Frame(msgspec.Struct):
    """A part on its way to a worker; columns as bytes, int64 and int32 in the machine's own order."""

    names: tuple[str, ...]
    subjects: tuple[str, ...]
    codes: bytes
    subject_codes: bytes
    arrival_us: bytes
    sequence: bytes
    offsets: bytes
    payloads: bytes
    last: int


class Answer(msgspec.Struct):
    """What a worker says of a part: what it landed, or why it could not."""

    landed: Landed | None
    error: str = ""


class Crew:
    """The processes of a run.

    Args:
        settings: where the services are.
        shares: the slots of each worker.
    """

    def __init__(self, settings: Settings, shares: Sequence[tuple[int, ...]]) -> None:
        at = positions(Lake(settings))
        self._after = [{slot: at[slot] for slot in slots} for slots in shares]
        self._workers = [_Worker.start(settings, slots) for slots in shares]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers: at once where something failed, else they have nothing left to do."""
        for worker in self._workers:
            worker.connection.close()
            if error is not None:
                worker.process.kill()
        for worker in self._workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(LEAVE_S)
            worker.process.kill()
            worker.process.wait()

    def send(self, messages: Messages, subjects: Named) -> None:
        """Give every worker its part of a batch; waits while one has enough to do.

        Raises:
            StoreError: a worker has ended.
        """
        for worker, after in zip(self._workers, self._after, strict=True):
            try:
                worker.connection.send_bytes(_packed(own_part(messages, subjects, after)))
            except OSError as exc:
                worker.answer()  # why it ended
                raise worker.ended() from exc

    def landed(self) -> Landed:
        """Wait until all workers have committed their parts of the next batch; return what they brought in.

        Raises:
            StoreError: a worker could not commit, or has ended.
        """
        return sum((worker.answer() for worker in self._workers), Landed())


@dataclass(frozen=True)
class _Worker:
    """A process and our end of its socket pair."""

    connection: Connection
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, settings: Settings, slots: tuple[int, ...]) -> "_Worker":
        ours, theirs = Pipe()
        argv = [sys.executable, "-m", "tasks.crew", str(theirs.fileno()), str(settings.root), *map(str, slots)]
        environment = {**LEAN, **os.environ, **settings.environment()}
        process = subprocess.Popen(argv, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        return cls(ours, process)

    def answer(self) -> Landed:
        """Wait for what it landed of the next part."""
        try:
            answer = msgspec.msgpack.decode(self.connection.recv_bytes(), type=Answer)
        except (EOFError, OSError) as exc:
            raise self.ended() from exc
        if answer.landed is None:
            raise StoreError(answer.error)
        return answer.landed

    def ended(self) -> StoreError:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(LEAVE_S)
        return StoreError(f"a partition's process ended with {self.process.returncode}; run again, nothing is lost")


def _packed(part: Part) -> bytes:
    messages, devices, payloads = part.messages, Named.of(part.messages.devices), Packed.of(part.messages.payloads)
    return msgspec.msgpack.encode(
        Frame(
            devices.names,
            part.subjects.names,
            devices.codes.tobytes(),
            part.subjects.codes.tobytes(),
            messages.arrival_us.tobytes(),
            messages.sequence.tobytes(),
            payloads.offsets.tobytes(),
            payloads.buffer,
            part.last,
        )
    )


def _unpacked(data: bytes) -> Part:
    frame = msgspec.msgpack.decode(data, type=Frame)
    messages = Messages(
        Named(frame.names, np.frombuffer(frame.codes, dtype=np.int32)),
        np.frombuffer(frame.arrival_us, dtype=np.int64),
        np.frombuffer(frame.sequence, dtype=np.int64),
        Packed(frame.payloads, np.frombuffer(frame.offsets, dtype=np.int64)),
    )
    return Part(messages, Named(frame.subjects, np.frombuffer(frame.subject_codes, dtype=np.int32)), frame.last)


def work(connection: Connection, settings: Settings, root: Path, slots: tuple[int, ...]) -> None:
    """Land parts as they come, until the other end is closed: one is decoded while the one before is committed."""
    decoded: queue.Queue[Decoded] = queue.Queue(AHEAD)
    try:
        partition = Partition(Lake(settings), root, slots)
        threading.Thread(target=_decode, args=(connection, partition, decoded), daemon=True).start()
        while (found := decoded.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            connection.send_bytes(msgspec.msgpack.encode(Answer(partition.commit(found))))
        partition.close()
    except FieldloopError as exc:
        connection.send_bytes(msgspec.msgpack.encode(Answer(None, str(exc))))


def _decode(connection: Connection, partition: Partition, decoded: "queue.Queue[Decoded]") -> None:
    try:
        while True:
            decoded.put(partition.decode(_unpacked(connection.recv_bytes())))
    except EOFError:
        decoded.put(None)
    except BaseException as exc:
        decoded.put(exc)  # for the thread that commits to raise: nobody else would hear of it


def main() -> None:
    """Work on the connection, profiles and slots that the arguments name."""
    descriptor, root, *slots = sys.argv[1:]
    with suppress(BrokenPipeError):  # the run was killed: nobody wants the answer
        work(Connection(int(descriptor)), Settings(), Path(root), tuple(map(int, slots)))


if __name__ == "__main__":
    main()
