"""Rollouts: what platform and targets tell each other, where each target stands, waves, gates, and the record."""

from fieldloop.domain.rollout.protocol import (
    NOTHING,
    Certified,
    Desired,
    Gap,
    Inventory,
    Reported,
    Reverted,
    Running,
    Served,
    Shadow,
    Spool,
    decode_report,
)
from fieldloop.domain.rollout.standing import Clock, Sighting, Standing, State, judge

__all__ = [
    "NOTHING",
    "Certified",
    "Clock",
    "Desired",
    "Gap",
    "Inventory",
    "Reported",
    "Reverted",
    "Running",
    "Served",
    "Shadow",
    "Sighting",
    "Spool",
    "Standing",
    "State",
    "decode_report",
    "judge",
]
