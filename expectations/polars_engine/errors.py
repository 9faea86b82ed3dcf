"""What can go wrong here, and only here.

GreatExpectationsError
└── PolarsEngineError          the engine cannot compute what was asked
    ├── UnsupportedError       an expectation, or a form of it, that the engine does not know
    └── UnknownColumnError     a column that the data does not have
"""

from great_expectations.exceptions.exceptions import GreatExpectationsError


class PolarsEngineError(GreatExpectationsError):
    """The engine cannot compute what was asked."""


class UnsupportedError(PolarsEngineError):
    """The engine does not know an expectation, or this form of it."""


class UnknownColumnError(PolarsEngineError):
    """The data has no such column."""
