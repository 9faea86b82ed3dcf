"""Patches beside a release: from the graphs that targets are likely to have, to the new one."""

from collections.abc import Mapping
from typing import Final

from fieldloop.domain.patch import NOTHING, make_patch, patch_name
from fieldloop.stores.repository import Repository

FROM: Final = 2  # versions before, newest first; a target that has an older one fetches the whole, compressed


def patches(repository: Repository, model: str, version: int, graphs: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the patches that are worth it to a version's graphs, by their path in the repository.

    Args:
        repository: has the versions before.
        model: whose they are.
        version: the new one.
        graphs: its graphs by file name; a patch leads from the earlier ones of the same name.

    Raises:
        ReleaseError: an earlier graph in the bucket is not the signed one.
        StoreError: the object store refuses.
    """
    made: dict[str, bytes | None] = {}
    for name, graph in graphs.items():
        earlier = sorted((n for n in _versions(repository, model, name) if n < version), reverse=True)
        olds = [repository.content(f"releases/{model}/{number}/{name}") for number in earlier[:FROM]]
        made |= {patch_name(name, old): make_patch(old, graph) for old in (NOTHING, *olds)}
    return {f"releases/{model}/{version}/{name}": patch for name, patch in made.items() if patch is not None}


def _versions(repository: Repository, model: str, name: str) -> list[int]:
    """Return the signed versions of a model that have a file of this name."""
    parts = [path.split("/") for path in repository.files]
    return [int(part[2]) for part in parts if part[1] == model and part[-1] == name]
