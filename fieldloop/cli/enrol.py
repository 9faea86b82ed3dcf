"""Enrolment: a device or target becomes known to the fleet, may join by a token, and has its rights at the broker."""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import TypeVar

from expectations.profiles import load_profile
from fieldloop.domain.errors import ServiceError
from fieldloop.domain.labels import check_labels
from fieldloop.stores import fleet
from fieldloop.stores.fleet import Target
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from infra.local import identities, roster
from tasks.joiners import converge

T = TypeVar("T")


def admit_devices(settings: Settings, names: Sequence[str], profile: str) -> dict[str, str]:
    """Enter devices under a profile; return a token for each that has not joined yet.

    The fleet knows a device before the broker lets it publish, so that its first message already has a profile.

    Raises:
        DocumentError: there is no such profile.
        ServiceError: a name cannot be part of a topic, or broker or signer do not take it up.
        StoreError: the lake does not answer.
    """
    _enter_devices(settings, names, profile)
    return identities.admit_devices(settings, names)


def enrol_devices(settings: Settings, names: Sequence[str], profile: str) -> None:
    """Enter devices, and have them join on this machine; those enrolled already are left as they are.

    Raises:
        FieldloopError: as `admit_devices`.
    """
    _enter_devices(settings, names, profile)
    identities.enrol_devices(settings, names)


def admit_targets(settings: Settings, targets: Sequence[Target]) -> dict[str, str]:
    """Enter targets with the devices that they serve; return a token for each that has not joined yet.

    Raises:
        EnrolmentError: a label is no `key=value`, or a key has two values.
        ServiceError: a name cannot be part of a subject, a device is not enrolled, or broker or signer do not take
            it up.
        StoreError: lake or broker do not answer.
    """
    return _enter_targets(settings, targets, lambda served: identities.admit_targets(settings, served))


def enrol_targets(settings: Settings, targets: Sequence[Target]) -> None:
    """Enter targets, and have them join on this machine: their agents start from folders under `agents`.

    Raises:
        FieldloopError: as `admit_targets`.
    """
    _enter_targets(settings, targets, lambda served: identities.enrol_targets(settings, served))


def revoke_devices(settings: Settings, names: Sequence[str]) -> None:
    """Have the broker refuse devices from now on; what they sent stays.

    Raises:
        ServiceError: there is no such device, or the broker does not take it up.
        StoreError: the lake does not answer.
    """
    _require(names, fleet.devices(Lake(settings)).keys(), "device")
    identities.revoke(settings, "device", names)


def revoke_targets(settings: Settings, names: Sequence[str]) -> None:
    """Have the broker refuse targets from now on; they stay in the fleet, for a new token or for removal.

    Raises:
        ServiceError: there is no such target, or the broker does not take it up.
        StoreError: the lake does not answer.
    """
    _require(names, {target.name for target in fleet.targets(Lake(settings))}, "target")
    identities.revoke(settings, "target", names)


def remove_targets(settings: Settings, names: Sequence[str]) -> None:
    """Take targets out of the fleet; the broker refuses their certificates before anything else is forgotten.

    Raises:
        ServiceError: there is no such target, or the broker does not take it up.
        StoreError: lake or broker do not answer.
    """
    revoke_targets(settings, names)
    fleet.remove_targets(settings, Lake(settings), names)


def _enter_devices(settings: Settings, names: Sequence[str], profile: str) -> None:
    load_profile(settings.root, profile)
    roster.check_names(names)
    fleet.add_devices(Lake(settings), names, profile)


def _enter_targets(
    settings: Settings, targets: Sequence[Target], admit: Callable[[Mapping[str, Mapping[str, str]]], T]
) -> T:
    """Enter targets, let them join, and ask of them what late joiners are asked."""
    lake = Lake(settings)
    profiles = fleet.devices(lake)
    _require([device for target in targets for device in target.devices], profiles.keys(), "device")
    roster.check_names([target.name for target in targets])
    for target in targets:
        check_labels(target.labels)
    fleet.add_targets(settings, lake, targets)
    admitted = admit({target.name: {device: profiles[device] for device in target.devices} for target in targets})
    converge(settings)
    return admitted


def _require(names: Sequence[str], known: Set[str], what: str) -> None:
    missing = sorted(set(names) - known)
    if missing:
        raise ServiceError(
            f"no such {what}: {', '.join(missing)}; `fieldloop {what} list` shows those there are, "
            f"`fieldloop {what} add` enrols one"
        )
