"""Sources as people declare them: `expectations/sources/<name>.yaml`, beside the profiles that their rows are read by.

A declaration has a common part and the options of its kind. Kinds come from the entry-point group `fieldloop.sources`;
a package that adds one needs no change here.
"""

import difflib
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator, model_validator

from fieldloop.domain import document
from fieldloop.domain.errors import DocumentError, SourceError
from fieldloop.domain.profile import Profile
from fieldloop.stores.settings import Settings
from fieldloop.stores.sources.source import GROUP, Options, Relay, Request, Source

FOLDER: Final = Path("expectations", "sources")
DEVICE_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,63}")  # as in a topic
_OTHER: Final = re.compile(r"[^A-Za-z0-9_-]")

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]


class DeviceRule(Options):
    """Which device a row belongs to; one of these, or `field` and `pattern` together.

    A device's name is of letters, digits, - and _; whatever else a file calls it by becomes -.

    Attributes:
        name: all rows are of this device.
        field: the column, or path in a JSON record, that names it.
        pattern: a regular expression with a group `device`, searched in the file's name, the topic or the address; with
            `field` it gives what comes before, and a `-`, for files in which other devices have the same names.
    """

    name: Annotated[str, Field(pattern=rf"^{DEVICE_NAME.pattern}$")] | None = None
    field: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    pattern: str | None = None

    @field_validator("pattern")
    @classmethod
    def _has_group(cls, pattern: str | None) -> str | None:
        try:
            if pattern is not None and "device" not in re.compile(pattern).groupindex:
                raise ValueError(r"expected a group `device`, such as `(?P<device>\w+)\.csv`")
        except re.error as exc:
            raise ValueError(f"not a regular expression: {exc}") from exc
        return pattern

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in ("name", "field", "pattern") if getattr(self, name) is not None]
        if len(given) != 1 and given != ["field", "pattern"]:
            raise ValueError(f"expected one of `name`, `field`, `pattern`; got {' and '.join(given) or 'none'}")
        return self

    def named(self, item: str, name: object) -> str:
        """Return the device that a row of an item calls so.

        Raises:
            SourceError: a pattern finds no name in the item's.
        """
        before = "" if self.pattern is None else f"{self._found(item)}-"
        return before + _OTHER.sub("-", str(name).strip())

    def of(self, item: str) -> str | None:
        """Return the device of all rows of an item; None where each row names its own.

        Raises:
            SourceError: the pattern finds no name in the item's.
        """
        if self.field is not None:
            return None
        return self.name if self.pattern is None else self._found(item)

    def _found(self, item: str) -> str:
        found = re.search(str(self.pattern), item)
        device = _OTHER.sub("-", found["device"] or "") if found else ""
        if not DEVICE_NAME.fullmatch(device):
            expected = "a name of at most 63 letters, digits, - and _"
            raise SourceError(f"{item}: expected {expected} by pattern `{self.pattern}`, found {device or 'nothing'}")
        return device


class Declaration(BaseModel):
    """A source as it is declared.

    Attributes:
        name: the file's name without its ending.
        description: one line.
        kind: what it is: an entry point of group `fieldloop.sources`.
        profile: the device profile that its rows are read by.
        device: which device a row belongs to.
        enrol: whether devices that are not enrolled yet are, under this profile; else their rows go to quarantine.
        watch: whether a device is set aside where its rows show another unit, scale, cadence or clock than before; for
            sources that devices fill day by day, not for archives in which such a change is what happened.
        options: what the kind needs to know.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    description: str = ""
    kind: str
    profile: Name
    device: DeviceRule
    enrol: bool = False
    watch: bool = False
    options: Any

    def open(self, settings: Settings, profile: Profile) -> Source | Relay:
        """Return the source, ready to be read.

        Args:
            settings: where services and secrets are.
            profile: the compiled profile of its rows.

        Raises:
            SourceError: the profile does not fit a source of this kind.
        """
        opened: Source | Relay = _kind(self.kind)(Request(settings, profile, self.device.field), self.options)
        if profile.clock.kind == "arrival" and not isinstance(opened, Relay):
            raise SourceError(
                f"source {self.name}: profile {profile.name} takes a row's arrival as its time, which here is when it "
                "is read; expected a profile with a clock"
            )
        return opened


class _Kind(BaseModel):
    """The part of a declaration that says how to read the rest."""

    model_config = ConfigDict(extra="allow")

    kind: str


def kinds() -> dict[str, str]:
    """Return the kinds there are, each with where its class is."""
    return {point.name: point.value for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def names(root: Path) -> list[str]:
    """Return the names of all declared sources."""
    return [path.stem for path in sorted((root / FOLDER).glob("*.yaml"))]


def load_declaration(root: Path, name: str) -> Declaration:
    """Return the declaration `expectations/sources/<name>.yaml`.

    Raises:
        DocumentError: there is no such file, or it does not hold a usable declaration.
    """
    path = root / FOLDER / f"{name}.yaml"
    known = names(root)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        more = f" Did you mean `{close[0]}`?" if close else ""
        raise DocumentError(f"no source `{name}` in {FOLDER}; there are: {', '.join(known) or 'none'}.{more}")
    declared = parse(path.read_text(), str(FOLDER / path.name))
    if declared.name != name:
        raise DocumentError(
            f"{FOLDER / path.name}: the source is named `{declared.name}`; give file and source one name"
        )
    return declared


def parse(text: str, source_name: str) -> Declaration:
    """Return a declaration; `source_name` names it in errors.

    Raises:
        DocumentError: it is not usable; names file and line.
    """
    kind = document.load(_Kind, text, source_name).kind
    if kind not in kinds():
        line = next((n for n, row in enumerate(text.splitlines(), 1) if row.startswith("kind:")), 1)
        raise DocumentError(f"{source_name}:{line}: unknown kind `{kind}`; there are: {', '.join(kinds())}")
    options = _kind(kind).options
    model = create_model("Declaration", __base__=Declaration, options=(options, ...))
    return document.load(model, text, source_name)


def _kind(name: str) -> Any:
    """Return the class of a kind."""
    (point,) = entry_points(group=GROUP, name=name)
    return point.load()
