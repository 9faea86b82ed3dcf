"""Errors in YAML documents point at the line and say what to do."""

from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator

from fieldloop.domain.document import load
from fieldloop.domain.errors import DocumentError


class Part(BaseModel):
    """A nested model."""

    model_config = ConfigDict(extra="forbid")
    metric: str
    unit: str | None = None
    count: int = Field(1, ge=1)

    @field_validator("unit")
    @classmethod
    def _known(cls, unit: str) -> str:
        if unit == "furlong":
            raise ValueError("unknown unit `furlong`")
        return unit


class Ridge(BaseModel):
    """One member of a tagged union."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["ridge"]
    alpha: float


class Trees(BaseModel):
    """The other member."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["trees"]
    number: int


class Thing(BaseModel):
    """The document."""

    model_config = ConfigDict(extra="forbid")
    name: str
    channels: tuple[Part, ...] = ()
    by_name: dict[str, Part] = {}
    models: list[Annotated[Ridge | Trees, Field(discriminator="kind")]] = []
    on: bool = False


GOOD = "name: a\nchannels:\n- metric: x\n- metric: y\n  unit: m\n"


def message(text: str) -> str:
    """The error that a text gives."""
    with pytest.raises(DocumentError) as caught:
        load(Thing, text, "thing.yaml")
    return str(caught.value)


def test_good_document() -> None:
    """A document that fits its model becomes a value."""
    assert load(Thing, GOOD, "thing.yaml").channels[1].unit == "m"


def test_words_stay_words() -> None:
    """`no` and `off` are text where text is asked for, and false where a truth value is."""
    thing = load(Thing, "name: no\non: off\n", "thing.yaml")
    assert (thing.name, thing.on) == ("no", False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\nchanels: []\n", "thing.yaml:2: unknown key `chanels`; did you mean `channels`?"),
        ("name: a\nzzz: 1\n", "thing.yaml:2: unknown key `zzz`; expected one of `by_name`, `channels`"),
        (GOOD + "  unti: m\n", "thing.yaml:6: unknown key `unti` in `channels.1`; did you mean `unit`?"),
        (
            "name: a\nby_name:\n  q:\n    metric: x\n    cuont: 2\n",
            "thing.yaml:5: unknown key `cuont` in `by_name.q`; did",
        ),
        (
            "name: a\nmodels:\n- kind: ridge\n  alhpa: 1\n  alpha: 1\n",
            "thing.yaml:4: unknown key `alhpa` in `models.0.ridge`; did",
        ),
        ("channels: []\n", "thing.yaml:1: missing key `name`"),
        (GOOD + "- unit: m\n", "thing.yaml:6: missing key `metric` in `channels.2`"),
        (GOOD + "  count: many\n", "thing.yaml:6: `channels.1.count`: input should be a valid integer"),
        (GOOD + "  count: 0\n", "greater than or equal to 1, got 0"),
        (GOOD + "- {metric: z, unit: furlong}\n", "thing.yaml:6: `channels.2.unit`: unknown unit `furlong`"),
        ("name: a\nname: b\n", "thing.yaml:2: key `name` is given twice"),
        ("name: [a\nchannels: 1\n", "thing.yaml:2: not YAML"),
        ("name: !!python/object:os.system x\n", "thing.yaml:1: not YAML"),
        ("name: a\nchannels: &c [*c]\n", "thing.yaml:2: not YAML: an alias contains itself"),
        ("", "thing.yaml:1: expected a document"),
        ("- a\n", "thing.yaml:1: expected keys and their values, got ['a']"),
    ],
)
def test_error_names_line_and_remedy(text: str, expected: str) -> None:
    """Each kind of mistake gives its line, its path and what was expected."""
    assert expected in message(text)


def test_all_errors_at_once() -> None:
    """Two mistakes give two lines, in the order of the document."""
    lines = message(GOOD + "  count: 0\n  unti: m\n").splitlines()
    assert [line.split(":")[1] for line in lines] == ["6", "7"]


@given(st.text())
def test_any_text(text: str) -> None:
    """Whatever the text, the answer is a value or a DocumentError that names the file."""
    problem = "thing.yaml:"
    try:
        load(Thing, text, "thing.yaml")
    except DocumentError as exc:
        problem = str(exc)
    assert problem.startswith("thing.yaml:")
