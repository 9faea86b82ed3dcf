"""One release from the models of several groups: a variant each, which a target takes by its labels."""

from collections.abc import Mapping
from typing import Final

import msgspec

from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.recipe import Recipe
from fieldloop.domain.release import MANIFEST, Manifest, Release, Variant, decode_manifest, encode_manifest
from fieldloop.stores import releases
from fieldloop.stores.releases import Published
from fieldloop.stores.settings import Settings

SAME: Final = ("window", "target", "unit", "features", "tolerance", "budget", "alerts")


def combine(settings: Settings, recipe: Recipe, built: Mapping[str, Release]) -> Release:
    """Return the release that holds the graphs of all groups; the same models give the same release again.

    Args:
        settings: the installation, whose releases say which number comes next.
        recipe: the use case with its groups.
        built: a release by group, as each would be on its own.

    Raises:
        ReleaseError: the groups' models do not belong together, or a release of the same models was revoked.
        StoreError: the object store refuses.
    """
    assert recipe.groups is not None  # noqa: S101 - whoever calls has looked
    manifests = {group: release.open(release.digest) for group, release in built.items()}
    _refuse_strangers(recipe, manifests)
    label = recipe.groups.label
    variants = tuple(_variant(group, label, manifest) for group, manifest in manifests.items())
    first = next(iter(manifests.values()))
    whole = msgspec.structs.replace(
        first,
        recipe=recipe.name,
        model=recipe.name,
        version=_number(settings, recipe.name, variants),
        run_id=", ".join(f"{variant.name}: {variant.run_id}" for variant in variants),
        lineage={f"{each.name}: {name}": value for each in variants for name, value in each.lineage.items()},
        profiles={name: profile for each in manifests.values() for name, profile in each.profiles.items()},
        created_at=max(manifest.created_at for manifest in manifests.values()),
        variants=variants,
    )
    files: dict[str, bytes] = {}
    for variant, release in zip(variants, built.values(), strict=True):
        files |= dict(zip(whole.narrowed(variant).names, (release.graph, release.canary), strict=True))
    head = next(iter(built.values()))
    return Release(encode_manifest(whole), head.graph, head.canary, files)


def _variant(group: str, label: str, manifest: Manifest) -> Variant:
    return Variant(
        name=group,
        labels=(f"{label}={group}",),
        model=manifest.model,
        version=manifest.version,
        run_id=manifest.run_id,
        graph=manifest.graph,
        canary=manifest.canary,
        output_hash=manifest.output_hash,
        lineage=manifest.lineage,
    )


def _refuse_strangers(recipe: Recipe, manifests: Mapping[str, Manifest]) -> None:
    """Refuse groups whose models read or answer otherwise than the first one's."""
    (name, first), *others = manifests.items()
    for group, manifest in others:
        for field in SAME:
            if getattr(manifest, field) != getattr(first, field):
                raise ReleaseError(
                    f"recipe {recipe.name}: the models of groups `{name}` and `{group}` differ in {field}, so "
                    "that they were trained by different states of the recipe: train and register both again"
                )


def _number(settings: Settings, model: str, variants: tuple[Variant, ...]) -> int:
    """Return the version of the release of these very models, else the next one."""
    numbers = [0]
    for each in releases.signed(settings):
        name, _, number = each.name.rpartition("/")
        if name != model:
            continue
        if _models(decode_manifest(releases.signed_manifest(settings, each.name))) == _models_of(variants):
            return int(number)
        numbers.append(int(number))
    for entry in releases.revoked(settings):
        name, _, number = entry.name.rpartition("/")
        if name != model:
            continue
        former = releases.manifest_of(settings, Published(entry.digest, f"releases/{entry.name}/{MANIFEST}", False))
        if _models(former) == _models_of(variants):
            raise ReleaseError(f"release {entry.name} of these models was revoked {entry.at[:10]}: {entry.reason}")
        numbers.append(int(number))
    return max(numbers) + 1


def _models(manifest: Manifest) -> list[tuple[str, str, int]]:
    return _models_of(manifest.variants)


def _models_of(variants: tuple[Variant, ...]) -> list[tuple[str, str, int]]:
    return [(variant.name, variant.model, variant.version) for variant in variants]
