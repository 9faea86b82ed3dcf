"""From when until when the agent's certificate is good, and the pure rule by which it is renewed.

An identity's file begins with a line that says so, so that an agent need not load a library to parse certificates.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

RENEWED_AT: Final = 2 / 3  # of a certificate's life
JITTER: Final = 1 / 12  # of it: targets that were enrolled together do not renew together
LEAST_PAUSE: Final = 1 / 12  # of it, between two renewals, whatever the clock says

_HEAD: Final = "valid from"


@dataclass(frozen=True)
class Validity:
    """When a certificate is good; by the authority's clock, seconds since the epoch."""

    since: float
    until: float

    @property
    def life_s(self) -> float:
        """How long it is good in all, seconds."""
        return self.until - self.since


def line(since: datetime, until: datetime) -> bytes:
    """Return the first line of an identity's file."""
    return f"{_HEAD} {since.isoformat()} until {until.isoformat()}\n".encode()


def read(identity: bytes) -> Validity | None:
    """Return what the first line of an identity's file says; None where it says nothing."""
    words = identity.split(b"\n", 1)[0].decode(errors="replace").removeprefix(_HEAD).split()
    try:
        since, _, until = words
        return Validity(datetime.fromisoformat(since).timestamp(), datetime.fromisoformat(until).timestamp())
    except ValueError:
        return None


def wait_s(known: Validity | None, draw: float, now: float, held_s: float, renewed: bool) -> float:
    """Return the seconds until a certificate is to be renewed; 0 or less: now.

    A clock outside the certificate's life is wrong, or the certificate is over: either way it is asked for now, which
    does no harm. A clock that was set back does not put it off: the time that this process has held it counts as well.

    Args:
        known: when the certificate is good; None where its file does not say.
        draw: in [0, 1): this target's jitter.
        now: this machine's clock, seconds since the epoch.
        held_s: for how long this process has held this certificate, by a clock that nobody sets.
        renewed: this process got it by a renewal.
    """
    if known is None:
        return 0.0
    share = RENEWED_AT + JITTER * draw
    waits = min(known.since + share * known.life_s - now, share * known.life_s - held_s)
    due = 0.0 if not known.since <= now <= known.until else waits
    return max(due, LEAST_PAUSE * known.life_s - held_s) if renewed else due
