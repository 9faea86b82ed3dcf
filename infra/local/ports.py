"""Ports that nobody listens on."""

import socket
from contextlib import ExitStack


def free_ports(number: int, host: str = "127.0.0.1") -> list[int]:
    """Return so many different ones, free now; what takes them should do so soon."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in held:
            each.bind((host, 0))
        return [each.getsockname()[1] for each in held]
