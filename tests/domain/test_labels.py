"""Labels: what a target may bear, and what somebody is told who has mistyped one."""

import pytest

from fieldloop.domain.errors import EnrolmentError
from fieldloop.domain.labels import check_labels, known_labels

BARE = ["site", "", "=north", "site=", "-site=a", "sïte=a"]
LONG = ["a" * 64 + "=b", "x=" + "v" * 64]


def test_keys_with_one_value_each_are_accepted() -> None:
    """A value may be any word, `=` included; no labels are as good."""
    check_labels(["site=north", "plant.line_2=a=b", "row=Süd/3", "x=" + "v" * 63])
    check_labels([])


@pytest.mark.parametrize("label", [*BARE, *LONG, "site=a b", "site=a,b", " site=a"])
def test_what_no_rollout_could_mean_is_refused(label: str) -> None:
    """It is named, and what is expected is said."""
    with pytest.raises(EnrolmentError) as refused:
        check_labels(["plant=x", label])
    assert str(refused.value).startswith(f"label {label!r}: expected key=value, such as site=north")


def test_a_target_is_of_one_site() -> None:
    """Else it would be in two groups of models."""
    with pytest.raises(EnrolmentError, match="label 'site': expected one value, got 2"):
        check_labels(["site=north", "plant=x", "site=south"])


def test_the_labels_there_are_are_named_once_and_not_without_end() -> None:
    """For somebody who has asked for others."""
    assert known_labels([("site=s", "p=1"), ("site=n", "p=1"), ()]) == "labels there are: p=1, site=n, site=s"
    assert known_labels([(f"n={n:02d}",) for n in range(25)]).endswith("n=19 and 5 more")
    assert known_labels([(), ()]) == "no target bears a label"
