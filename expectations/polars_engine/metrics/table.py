"""Metrics of the whole table."""

from expectations.polars_engine.domain import count
from expectations.polars_engine.plans import Plan, Request, known, of_one


def row_count(request: Request) -> Plan:
    """Return how many rows there are, after the row condition."""
    return of_one(count(request.domain().rows))


def columns(request: Request) -> Plan:
    """Return the columns' names in order."""
    return known(list(request.batch.schema))


def column_count(request: Request) -> Plan:
    """Return how many columns there are."""
    return known(len(request.batch.schema))
