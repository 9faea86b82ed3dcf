"""What Great Expectations works out again and again while it validates a suite, worked out once.

For every argument that it reads it builds an expectation's configuration anew, and for every metric the expectation
itself: thousands of times a suite, with the same outcome, which for seventeen expectations took as long as two million
rows. Both are remembered here from the beginning to the end of a validation by one kind of engine; expectations are
made, used and dropped within it, so that none can change meanwhile (ADR 33).
"""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from great_expectations.execution_engine.execution_engine import ExecutionEngine
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
from great_expectations.validator.validator import Validator


def remember_expectations(engine: type[ExecutionEngine[Any]]) -> None:
    """Have Great Expectations remember expectations and their configurations while it validates.

    Args:
        engine: validations by engines of this class do so; all others go on as before.
    """
    configuration = property(_remembered(Expectation.configuration.fget))  # type: ignore[attr-defined]
    replaced = (
        (Validator, "graph_validate", _remembering(Validator.graph_validate, engine)),
        (Expectation, "configuration", configuration),
        (ExpectationConfiguration, "to_domain_obj", _remembered(ExpectationConfiguration.to_domain_obj)),
    )
    for owner, name, instead in replaced:
        setattr(owner, name, instead)


# Outcomes, by function and the identity of its one argument, which is kept so that no other takes its identity.
_memory: Final[ContextVar[dict[tuple[Any, int], tuple[Any, Any]] | None]] = ContextVar("memory", default=None)


def _remembering(validate: Callable[..., Any], engine: type[ExecutionEngine[Any]]) -> Callable[..., Any]:
    """Return a validation that remembers, for one kind of engine."""

    @functools.wraps(validate)
    def remembering(validator: Validator, *given: Any, **named: Any) -> Any:
        if not isinstance(validator.execution_engine, engine):
            return validate(validator, *given, **named)
        before = _memory.set({})
        try:
            return validate(validator, *given, **named)
        finally:
            _memory.reset(before)

    return remembering


def _remembered(work: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function of one object that works once for each, while there is something to remember it."""

    @functools.wraps(work)
    def remembered(given: Any) -> Any:
        memory = _memory.get()
        if memory is None:
            return work(given)
        key = (work, id(given))
        if key not in memory:
            memory[key] = (given, work(given))
        return memory[key][1]

    return remembered
