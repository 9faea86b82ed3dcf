"""Which devices a recipe is about, and into which groups they fall where each group has a model of its own."""

from fnmatch import fnmatchcase
from typing import Annotated, Final

from pydantic import Field

from fieldloop.domain.recipe.part import Name, Part
from fieldloop.domain.recipe.split import Globs

GROUP: Final = "--"  # between a recipe's name and a group's, in the name of the group's own recipe and model


class Devices(Part):
    """Which devices of the recipe's profiles it is about: name patterns to take, and patterns to leave out."""

    include: Globs = ("*",)
    exclude: Globs = ()

    def takes(self, device: str) -> bool:
        """Tell whether a device belongs to the use case."""
        return _matches(device, self.include) and not _matches(device, self.exclude)


class Groups(Part):
    """The devices of each group, and the label by which an edge target says whose it is: `<label>=<group>`."""

    label: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
    of: dict[Name, Devices] = Field(min_length=2, max_length=100)


def _matches(device: str, patterns: Globs) -> bool:
    return any(fnmatchcase(device, pattern) for pattern in patterns)
