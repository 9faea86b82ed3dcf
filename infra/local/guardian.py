"""The guardian of a stack: outlives its supervisor by moments and ends whatever the supervisor left behind.

It holds the reading end of a pipe whose writing end the supervisor alone has. When the supervisor ends, by itself or by
`kill -9`, the pipe closes and every process that carries the stack's mark in its environment is ended: children,
their children, flow runs. Standard library alone, run as a plain file: it must stay tiny.
"""

import os
import signal
import sys
import time

MARK = "FIELDLOOP_STACK"  # environment variable that every process of a stack inherits; its value is the stack's id
GRACE_S = 5.0  # between SIGTERM and SIGKILL
POLL_S = 0.05


def marked(mark: str, value: str) -> list[int]:
    """Return the ids of all own processes whose environment has `mark=value`, this process left out."""
    wanted = f"{mark}={value}".encode()
    others = (entry for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid())
    return [int(entry) for entry in others if wanted in _environment(entry)]


def sweep(stack_id: str, grace_s: float = GRACE_S) -> int:
    """End every process of a stack: SIGTERM, after `grace_s` SIGKILL, until none is left; return how many it saw."""
    deadline = time.monotonic() + grace_s
    seen: set[int] = set()
    told: set[int] = set()
    while pids := marked(MARK, stack_id):
        late = time.monotonic() > deadline
        for pid in pids:
            if late or pid not in told:
                _send(pid, signal.SIGKILL if late else signal.SIGTERM)
        told.update(pids)
        seen.update(pids)
        time.sleep(POLL_S)
    return len(seen)


def _environment(pid: str) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:  # gone meanwhile, or another user's
        return []


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def main() -> None:
    """Wait for the end of the supervisor (end of file on standard input), then sweep the stack named in argv."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    while os.read(0, 1):
        pass
    sweep(sys.argv[1])


if __name__ == "__main__":
    main()
