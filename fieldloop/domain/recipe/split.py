"""Which windows train and which ones judge."""

from datetime import datetime

from pydantic import AwareDatetime, ValidationInfo, field_validator

from fieldloop.domain.recipe.part import Part


class Split(Part):
    """By time: windows that end before `train_until` train; those that begin at or after it, until `test_until`, test.

    Windows in between would hold steps of both; they are the embargo and serve neither.
    """

    train_until: AwareDatetime
    test_until: AwareDatetime

    @field_validator("test_until")
    @classmethod
    def _after(cls, test_until: datetime, info: ValidationInfo) -> datetime:
        train_until = info.data.get("train_until")
        if train_until is not None and test_until <= train_until:
            raise ValueError(f"expected a time after train_until ({train_until}), got {test_until}")
        return test_until
