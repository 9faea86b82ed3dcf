"""Enrolment: a device or target becomes known to the fleet, gets its certificate, and its rights at the broker."""

from collections.abc import Sequence

from expectations.profiles import load_profile
from fieldloop.domain.errors import ServiceError
from fieldloop.stores import fleet, releases
from fieldloop.stores.fleet import Target
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from infra.local import identities
from tasks.joiners import converge


def enrol_devices(settings: Settings, names: Sequence[str], profile: str) -> None:
    """Enrol devices under a profile; those enrolled already are left as they are.

    The fleet knows a device before the broker lets it publish, so that its first message already has a profile.

    Raises:
        DocumentError: there is no such profile.
        ServiceError: a name cannot be part of a topic, or the broker does not take it up.
        StoreError: the lake does not answer.
    """
    load_profile(settings.root, profile)
    identities.check_names(names)
    fleet.add_devices(Lake(settings), names, profile)
    identities.enrol_devices(settings, names)


def enrol_targets(settings: Settings, targets: Sequence[Target]) -> None:
    """Enrol targets with the devices that they serve, and write the folders that their agents start from.

    Raises:
        ServiceError: a name cannot be part of a subject, a device is not enrolled, or the broker does not take it up.
        StoreError: lake or broker do not answer.
    """
    lake = Lake(settings)
    profiles = fleet.devices(lake)
    missing = sorted({device for target in targets for device in target.devices} - profiles.keys())
    if missing:
        raise ServiceError(f"not enrolled: {', '.join(missing)}; `fieldloop device add` them first")
    identities.enrol_targets(settings, [target.name for target in targets])
    fleet.add_targets(settings, lake, targets)
    for target in targets:
        releases.agent_config(settings, target.name, {device: profiles[device] for device in target.devices})
    converge(settings)


def remove_targets(settings: Settings, names: Sequence[str]) -> None:
    """Take targets out of the fleet; the broker refuses their certificates before anything else is forgotten.

    Raises:
        ServiceError: there is no such target, or the broker does not take it up.
        StoreError: lake or broker do not answer.
    """
    lake = Lake(settings)
    missing = sorted(set(names) - {target.name for target in fleet.targets(lake)})
    if missing:
        raise ServiceError(f"no such target: {', '.join(missing)}; `fieldloop target list` shows those there are")
    identities.remove_targets(settings, names)
    fleet.remove_targets(settings, lake, names)
