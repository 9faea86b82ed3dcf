"""Labels of edge targets, each `key=value`: rollouts select by them, sites and groups of models are made of them."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Final

from fieldloop.domain.errors import EnrolmentError

_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}=[^\s,]{1,63}")
_SHOWN: Final = 20  # labels that an error names


def check_labels(labels: Iterable[str]) -> None:
    """Accept the labels that one target may bear.

    Raises:
        EnrolmentError: one is no `key=value`, or a key has two values: the target would be of two sites.
    """
    keys: Counter[str] = Counter()
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise EnrolmentError(
                f"label {label!r}: expected key=value, such as site=north: letters, digits, `_`, `.` and `-` in the "
                "key and neither blanks nor commas in the value, at most 63 characters each"
            )
        keys[label.partition("=")[0]] += 1
    if twice := [key for key, count in keys.items() if count > 1]:
        raise EnrolmentError(f"label {twice[0]!r}: expected one value, got {keys[twice[0]]}: a target is of one")


def known_labels(borne: Iterable[Iterable[str]]) -> str:
    """Say in words which labels there are, for somebody who has asked for others.

    Args:
        borne: the labels of each target.
    """
    there = sorted({label for labels in borne for label in labels})
    more = f" and {len(there) - _SHOWN:,} more" if len(there) > _SHOWN else ""
    return f"labels there are: {', '.join(there[:_SHOWN])}{more}" if there else "no target bears a label"
