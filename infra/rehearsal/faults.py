"""What goes wrong in a simulated fleet, and which of its gateways it befalls; the same for the same seed."""

import random
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]


class Fate(StrEnum):
    """What befalls a gateway."""

    WELL = "well"
    SILENT = "silent"
    FLAPPING = "flapping"
    CORRUPTING = "corrupting"
    FAULTY = "faulty"
    DRIFTED = "drifted"


class Faults(BaseModel):
    """How bad it gets: shares of gateways, and what all of them suffer.

    Attributes:
        silent: never heard from.
        flapping: lose power again and again, in the middle of everything, and come back.
        corrupting: their disks flip bits in what they download.
        faulty: their runtime gives other numbers.
        drifted: their inputs have drifted away from what the model has learnt.
        loss: share of requests and reports that are lost; the gateway tries again after its time-out.
        latency_s: of each request, on average.
        offline: share of the time that a gateway is out of reach.
        offline_s: how long it is then, on average.
        skew_s: how far clocks are off, at most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    silent: Share = 0.0
    flapping: Share = 0.0
    corrupting: Share = 0.0
    faulty: Share = 0.0
    drifted: Share = 0.0
    loss: Share = 0.0
    latency_s: Seconds = 0.0
    offline: Annotated[float, Field(ge=0, lt=1)] = 0.0
    offline_s: Annotated[float, Field(gt=0, le=86_400)] = 10.0
    skew_s: Seconds = 0.0

    def fate(self, draw: random.Random) -> Fate:
        """Draw what befalls a gateway."""
        drawn = draw.random()
        for fate in (Fate.SILENT, Fate.FLAPPING, Fate.CORRUPTING, Fate.FAULTY, Fate.DRIFTED):
            share: float = getattr(self, fate.value)
            if drawn < share:
                return fate
            drawn -= share
        return Fate.WELL
