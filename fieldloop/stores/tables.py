"""The lake's tables that are known beforehand: their columns, and by what they are partitioned."""

from collections.abc import Mapping
from typing import Final

import polars as pl

TIME: Final = pl.Datetime("us", "UTC")

SCHEMAS: Final[Mapping[str, Mapping[str, pl.DataType | type[pl.DataType]]]] = {
    "readings": {
        "device": pl.String,
        "metric": pl.String,
        "event_time": TIME,
        "arrival_time": TIME,
        "value": pl.Float64,
        "sequence": pl.Int64,
        "replay": pl.Int64,  # what brought it out of the stream's order: a replay, a source; 0 for what came by it
        "year": pl.Int32,
    },
    "quarantine": {
        "device": pl.String,
        "metric": pl.String,
        "reason": pl.String,
        "detail": pl.String,
        "subject": pl.String,
        "arrival_time": TIME,
        "sequence": pl.Int64,
        "replay": pl.Int64,  # the replay that this row came out of; 0 for what was refused as it came
        "payload": pl.Binary,
    },
    "carried": {"device": pl.String, "sequence": pl.Int64, "state": pl.Binary},  # see `stores.carried`
    "replays": {"replay": pl.Int64, "began_at": TIME},
    "predictions": {
        "target": pl.String,
        "device": pl.String,
        "end_time": TIME,
        "release": pl.String,
        "value": pl.Float32,
        "window_hash": pl.Int64,
        "arrival_time": TIME,
        "sequence": pl.Int64,
    },
    "devices": {"device": pl.String, "profile": pl.String, "added_at": TIME},
    "targets": {"target": pl.String, "devices": pl.List(pl.String), "labels": pl.List(pl.String), "added_at": TIME},
    "sources": {
        "source": pl.String,
        "number": pl.Int64,  # the source's transaction in `readings` with which the row counts; 0: it always does
        "after": pl.Int64,  # that transaction before it
        "item": pl.String,
        "position": pl.String,  # JSON
        "rows": pl.Int64,
        "error": pl.String,
        "entered_at": TIME,
    },
    "standing": {
        "device": pl.String,
        "state": pl.String,
        "metric": pl.String,
        "change": pl.String,
        "since": pl.Int64,
        "profile": pl.String,
        "by": pl.String,
        "anew": pl.Boolean,
        "at": TIME,
    },
    "examples": {  # of which device's readings the windows of a version of `windows/<recipe>` were made
        "recipe": pl.String,
        "grid_version": pl.Int64,
        "windows_version": pl.Int64,
        "readings_version": pl.Int64,
        "device": pl.String,
        "profile": pl.String,
        "validation": pl.String,  # run of the validation that the device passed
        "last_sequence": pl.Int64,  # how far it looked
        "last_replay": pl.Int64,
        "windows": pl.Int64,
        "first_time": TIME,  # when its first and last window end
        "last_time": TIME,
        "as_of": TIME,  # the past moment that they were made as of; null for all that there was
        "late": pl.Boolean,  # whether with what arrived after that moment
        "labels": pl.String,  # the file or table version that told the targets; null for those that channels tell
        "labels_sha256": pl.String,
        "made_at": TIME,
    },
    "validations": {
        "run_id": pl.String,
        "device": pl.String,
        "passed": pl.Boolean,
        "last_sequence": pl.Int64,
        "last_replay": pl.Int64,
        "reason": pl.String,
        "report_url": pl.String,
        "validated_at": TIME,
    },
    "checks": {
        "run_id": pl.String,
        "profile": pl.String,
        "suite": pl.String,
        "expectation": pl.String,
        "column": pl.String,
        "device": pl.String,  # empty where all rows are meant
        "description": pl.String,
        "observed": pl.String,
        "elements": pl.Int64,  # rows looked at; null where the expectation is not on rows
        "unexpected": pl.Int64,  # rows that do not fit
        "passed": pl.Boolean,
        "table_version": pl.Int64,  # of table `readings`
        "judged_at": TIME,
    },
}
PARTITIONS: Final = {"readings": ["year"]}
