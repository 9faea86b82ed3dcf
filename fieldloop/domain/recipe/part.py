"""What every part of a recipe is made of: an immutable model that knows its keys, names, and moments in time."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Positive = Annotated[float, Field(gt=0)]
Rows = Annotated[int, Field(ge=1, le=1_000_000)]

_US = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Part(BaseModel):
    """A part of a recipe: immutable, and a key that it does not know is an error."""

    # JSON has no infinity; as null, an open range could not be read back
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


def to_us(moment: datetime) -> int:
    """Return UTC microseconds since 1970, exactly."""
    return (moment - _EPOCH) // _US


def refuse_repeated(names: list[str]) -> None:
    """Refuse a list that holds a name twice."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"given twice: {', '.join(f'`{name}`' for name in repeated)}")
