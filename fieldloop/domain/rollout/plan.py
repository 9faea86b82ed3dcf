"""How a rollout goes: its waves, what each must show before the next, and what happens when it does not.

A plan stands in a recipe, or is filled in by a person in the form of the *deploy* flow; hence the descriptions.
"""

from enum import StrEnum
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

LONGEST_S: Final = 7 * 86_400  # of a soak, a deadline, a wait for a person

Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[int, Field(ge=0, le=LONGEST_S)]
Size = Annotated[
    str,
    BeforeValidator(lambda size: str(size) if isinstance(size, int) else size),
    Field(pattern=r"^(all|[1-9][0-9]{0,8}|([1-9][0-9]?|100)%)$"),
]


class _Part(BaseModel):
    """A part of a plan: immutable, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class OnBreach(StrEnum):
    """What happens when a gate is breached."""

    ROLL_BACK = "roll back"
    ASK = "ask"
    STOP = "stop"


class Approval(StrEnum):
    """When a person is asked before a wave begins."""

    NEVER = "never"
    AFTER_FIRST = "after the first wave"
    EVERY_WAVE = "before every wave"


class Wave(_Part):
    """One step of a rollout."""

    size: Size = Field(description="Targets asked when this wave is done: a number, a share such as `10%`, or `all`.")
    soak_s: Seconds = Field(0, description="Seconds that the wave runs, proved, before its gate is judged for good.")

    def of(self, total: int) -> int:
        """Return how many of a fleet's targets are asked when this wave is done; a share is rounded up."""
        if self.size == "all":
            return total
        if self.size.endswith("%"):
            return -(-total * int(self.size[:-1]) // 100)
        return min(int(self.size), total)


class Quality(_Part):
    """How far the new release's predictions may be from those of the release before."""

    shadow: bool = Field(True, description="Let the release before run in shadow on the same windows, to compare with.")
    least_windows: int = Field(
        100, ge=1, description="Windows over all asked targets below which predictions are not judged."
    )
    required: bool = Field(
        False, description="Treat a wave with too few windows to judge as breached; otherwise it passes, unjudged."
    )
    shift: Share = Field(
        0.25, description="Largest distance of the two distributions of predictions (Kolmogorov-Smirnov, 0 to 1)."
    )
    disagreement: Annotated[float, Field(gt=0)] = Field(
        0.5,
        description="Largest difference from the shadow on 9 of 10 windows, as a share of the spread of the shadow's "
        "predictions (5th to 95th percentile).",
    )


class Limits(_Part):
    """What the targets asked so far must show; each limit counts over all of them."""

    deadline_s: Annotated[int, Field(ge=1, le=LONGEST_S)] = Field(
        120, description="A target that is not proved so many seconds after it was asked has failed, or is silent."
    )
    failed: Share = Field(0.02, description="Share of targets that may fail or refuse.")
    silent: Share = Field(
        0.1, description="Share of targets that may be silent; a wave does not wait for these last ones."
    )
    errors: Share = Field(0.01, description="Share of windows that the release may fail on.")
    latency_ms: Annotated[float, Field(gt=0)] = Field(20.0, description="Latency that is never too slow.")
    slower: Annotated[float, Field(ge=1)] = Field(
        3.0,
        description="Above that, how many times slower than the release before it may be (median, 99th percentile).",
    )
    memory_mb: Annotated[float, Field(gt=0)] = Field(
        50.0, description="Memory by which an agent may have grown since it switched to the release, median of targets."
    )
    quality: Quality = Field(Quality(), description="Predictions against those of the release before.")

    def provisional(self) -> "Limits":
        """Return the limits while there may be more windows to come: too few to judge are no breach yet."""
        return self.model_copy(update={"quality": self.quality.model_copy(update={"required": False})})


class Plan(_Part):
    """Waves, the gate behind each, and what happens at a breach."""

    waves: tuple[Wave, ...] = Field(
        (Wave(size="all"),), min_length=1, max_length=50, description="In order, each larger; the last is `all`."
    )
    site_label: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,63}$")] = Field(
        "site", description="Targets with the same value of this label form a site."
    )
    healthy_per_site: int = Field(
        0, ge=0, description="So many healthy targets of a site are at work while others of it change, or have failed."
    )
    limits: Limits = Field(Limits(), description="What a wave must show.")
    on_breach: OnBreach = Field(
        OnBreach.ROLL_BACK, description="Roll back by itself, ask a person in the Prefect UI, or stop where it is."
    )
    approval: Approval = Field(Approval.NEVER, description="Ask a person in the Prefect UI before waves begin.")

    @model_validator(mode="before")
    @classmethod
    def _short_waves(cls, data: Any) -> Any:
        """Take `waves: [1, 10%, all]` for waves of these sizes."""
        if isinstance(data, dict) and isinstance(data.get("waves"), list | tuple):
            waves = [{"size": wave} if isinstance(wave, str | int) else wave for wave in data["waves"]]
            return {**data, "waves": waves}
        return data

    @model_validator(mode="after")
    def _ends_with_all(self) -> Self:
        if self.waves[-1].of(10**9) != 10**9:
            raise ValueError(f"expected the last wave to be `all`, got `{self.waves[-1].size}`; labels choose a part")
        return self
