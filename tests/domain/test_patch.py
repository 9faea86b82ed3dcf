"""Patches: whatever they are made of, the result is the graph that was meant, or a refusal."""

import pytest
from backports.zstd import compress
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.patch import NOTHING, SMALLEST, apply_patch, make_patch, patch_name
from fieldloop.domain.release import File

GRAPH = bytes(range(256)) * 64


@settings(max_examples=50)
@given(st.binary(min_size=SMALLEST, max_size=4096), st.integers(0, 4096), st.binary(max_size=64))
def test_a_patch_leads_to_the_new_graph(old: bytes, cut: int, put: bytes) -> None:
    """Something is cut out and something put in, anywhere; a patch comes only where it is smaller."""
    new = old[:cut] + put + old[cut + 40 :]
    patch = make_patch(old, new)
    if patch is not None:
        assert len(patch) < len(new)
        assert apply_patch(old, patch, File.of(new)) == new


def test_a_graph_alone_is_compressed() -> None:
    """For a target that has none."""
    patch = make_patch(NOTHING, GRAPH)
    assert patch is not None
    assert len(patch) < len(GRAPH) / 10
    assert apply_patch(NOTHING, patch, File.of(GRAPH)) == GRAPH


def test_what_is_not_smaller_is_no_patch() -> None:
    """Neither is anything of a few bytes."""
    noise = b"".join(bytes([byte * 7919 % 251 ^ byte // 3 % 256]) for byte in range(64))
    assert make_patch(NOTHING, noise) is None
    assert make_patch(noise, GRAPH) is None


def test_a_patch_on_another_graph_is_refused() -> None:
    """Its name says from which it leads, its result is held against the digest all the same."""
    old = GRAPH[: len(GRAPH) // 2] + bytes(100)
    patch = make_patch(old, GRAPH + old)
    assert patch is not None
    assert patch_name("graph.onnx", old) != patch_name("graph.onnx", GRAPH)
    with pytest.raises(ReleaseError, match="patch: "):
        apply_patch(GRAPH, patch, File.of(GRAPH + old))


@pytest.mark.parametrize("patch", [b"", b"no zstd", compress(bytes(1 << 28)), compress(GRAPH)[:-3]], ids=len)
def test_a_bad_patch_is_refused(patch: bytes) -> None:
    """Empty, something else, cut off, or one that would fill the gateway's memory: it stops at the wanted length."""
    with pytest.raises(ReleaseError, match="patch: "):
        apply_patch(NOTHING, patch, File.of(GRAPH + b"x"))
