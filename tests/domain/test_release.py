"""Releases: digests, manifests and canaries that survive the way to the edge bit for bit."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fieldloop.domain import release
from fieldloop.domain.alerts import Limits
from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.release import (
    MANIFEST_BYTES,
    Canary,
    File,
    Manifest,
    Release,
    decode_canary,
    decode_manifest,
    encode_canary,
    encode_manifest,
    output_hash,
    prove,
    release_folder,
)
from fieldloop.domain.windows import WindowSpec

FLOATS = st.floats(width=32, allow_infinity=False, allow_nan=True)
OUTPUTS = np.array([[1.5], [np.nan]], dtype=np.float32)


def _manifest(graph: bytes = b"graph", canary: bytes = b"canary", tolerance: float = 0.0) -> Manifest:
    return Manifest(
        recipe="power",
        model="power",
        version=3,
        run_id="run",
        window=WindowSpec(("wind_speed",), ("mean",), 600_000_000, 6),
        profiles={},
        target="active_power",
        unit="kW",
        features=("wind_speed_last",),
        graph=File.of(graph),
        canary=File.of(canary),
        output_hash=output_hash(OUTPUTS),
        tolerance=tolerance,
        runtime={"onnxruntime": "1"},
        lineage={"windows/power": "4"},
        created_at="2026-01-01T00:00:00+00:00",
    )


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(2), st.just(3)), elements=FLOATS))
def test_canary_survives_json_bit_for_bit(inputs: np.ndarray) -> None:
    """Every float32 comes back with its bits, negative zero and subnormals included, and NaN as NaN."""
    outputs = inputs[:, 0, :1]
    back = decode_canary(encode_canary(Canary(inputs, outputs)))
    for before, after in ((inputs, back.inputs), (outputs, back.outputs)):
        present = ~np.isnan(before)
        assert np.array_equal(np.isnan(after), ~present)
        assert np.array_equal(before[present].view(np.uint32), after[present].view(np.uint32))


def test_canary_without_outputs_is_read() -> None:
    """A registered version's canary holds inputs alone; null stands for NaN."""
    canary = decode_canary(b'{"inputs": [[[1.5, null]]]}')
    assert canary.inputs.shape == (1, 1, 2)
    assert np.isnan(canary.inputs[0, 0, 1])
    assert canary.outputs.shape == (0, 1)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"inputs": []}', b'{"inputs": [[[1], [1, 2]]]}', b'{"inputs": [[["x"]]]}']
)
def test_what_is_no_canary_is_refused(data: bytes) -> None:
    """Not JSON, another shape, ragged, or text: one clear error."""
    with pytest.raises(ReleaseError, match="canary"):
        decode_canary(data)


def test_infinite_canary_is_refused() -> None:
    """JSON has no infinity, and a canary with one proves nothing."""
    infinite = np.full((1, 1, 1), np.inf, dtype=np.float32)
    with pytest.raises(ReleaseError, match="infinite"):
        encode_canary(Canary(infinite, OUTPUTS))


def test_manifest_is_canonical() -> None:
    """The same manifest gives the same bytes, and comes back equal."""
    manifest = _manifest()
    assert decode_manifest(encode_manifest(manifest)) == manifest
    assert encode_manifest(decode_manifest(encode_manifest(manifest))) == encode_manifest(manifest)


def test_manifest_of_a_later_schema_is_refused() -> None:
    """An agent does not guess what a later platform means, and says so whatever fields that one has added."""
    later = msgspec.json.decode(encode_manifest(_manifest())) | {"schema": 9, "quantum": True}
    with pytest.raises(ReleaseError, match="schema 2, got 9: update fieldloop on this gateway"):
        decode_manifest(msgspec.json.encode(later))


def test_an_agent_from_before_alerts_were_held_says_that_it_must_be_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes every release without a hold, which says nothing that it does not know."""
    plain = msgspec.structs.replace(_manifest(), alerts=Limits(above=1.0))
    held = msgspec.structs.replace(plain, alerts=Limits(above=1.0, hold_us=5))
    assert decode_manifest(encode_manifest(held)).alerts == held.alerts
    monkeypatch.setattr(release, "SCHEMA", 1)
    assert decode_manifest(encode_manifest(plain)) == plain
    with pytest.raises(ReleaseError, match="expected schema 1, got 2: update fieldloop on this gateway"):
        decode_manifest(encode_manifest(held))


def test_a_manifest_of_no_schema_that_ever_was_is_refused() -> None:
    """Whatever else it holds."""
    none = msgspec.json.decode(encode_manifest(_manifest())) | {"schema": 0}
    with pytest.raises(ReleaseError, match="expected schema 1 to 2, got 0"):
        decode_manifest(msgspec.json.encode(none))


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b'{"schema": "x"}', b'{"schema": 1}', b"\xff\xfe", b"[" * 100_000, b'{"schema": 0}'],
    ids=lambda data: f"{data[:12]!r}",
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    """Malformed in any way: one clear error that says what to do."""
    with pytest.raises(ReleaseError, match=r"manifest\.json: not a release manifest: .*: deploy another release"):
        decode_manifest(data)


def test_a_manifest_with_unknown_fields_is_refused() -> None:
    """The same schema has the same fields; the error names the one too many."""
    more = msgspec.json.decode(encode_manifest(_manifest())) | {"extra": 1}
    with pytest.raises(ReleaseError, match="extra"):
        decode_manifest(msgspec.json.encode(more))


@pytest.mark.parametrize(("field", "value"), [("model", "../../etc"), ("model", "m" * 129), ("version", 0)])
def test_a_manifest_that_could_be_no_path_is_refused(field: str, value: object) -> None:
    """Its model and version become folders."""
    wrong = msgspec.json.decode(encode_manifest(_manifest())) | {field: value}
    with pytest.raises(ReleaseError, match="expected"):
        decode_manifest(msgspec.json.encode(wrong))


def test_a_huge_manifest_is_refused_on_either_side() -> None:
    """Neither signed by a platform nor read by a gateway."""
    huge = msgspec.structs.replace(_manifest(), features=("f" * 1000,) * (MANIFEST_BYTES // 1000))
    with pytest.raises(ReleaseError, match="expected at most 4,194,304 bytes"):
        encode_manifest(huge)
    with pytest.raises(ReleaseError, match="expected at most 4,194,304 bytes"):
        decode_manifest(b" " * (MANIFEST_BYTES + 1))


@pytest.mark.parametrize("part", ["manifest", "graph", "canary"])
def test_any_changed_file_is_refused(part: str) -> None:
    """The digest stands for all three files."""
    files = {"manifest": encode_manifest(_manifest()), "graph": b"graph", "canary": b"canary"}
    digest = Release(**files).digest
    assert Release(**files).open(digest).version == 3
    with pytest.raises(ReleaseError, match="fetch the release again"):
        Release(**{**files, part: files[part] + b" "}).open(digest)


def test_equal_outputs_prove() -> None:
    """The same bits prove, whatever bits a NaN has."""
    other_nan = OUTPUTS.copy()
    other_nan.view(np.uint32)[1, 0] = 0xFFC00001
    proof = prove(_manifest(), OUTPUTS, other_nan)
    assert (proof.exact, proof.max_abs_diff, proof.passed) == (True, 0.0, True)


def test_close_outputs_prove_within_the_tolerance() -> None:
    """Another processor may round otherwise; the recipe says how far."""
    outputs = OUTPUTS + np.float32(0.25)
    near = prove(_manifest(tolerance=0.25), OUTPUTS, outputs)
    far = prove(_manifest(tolerance=0.2), OUTPUTS, outputs)
    assert (near.exact, near.max_abs_diff, near.passed) == (False, 0.25, True)
    assert not far.passed


@pytest.mark.parametrize("outputs", [np.zeros((2, 1), np.float32), np.zeros((1, 1), np.float32)])
def test_other_nans_or_shape_never_prove(outputs: np.ndarray) -> None:
    """What cannot be compared has no difference, and no tolerance admits it."""
    proof = prove(_manifest(tolerance=1e9), OUTPUTS, outputs)
    assert (proof.max_abs_diff, proof.passed) == (None, False)


@pytest.mark.parametrize("name", ["", "../up", "a b", "a.b", "a*", "-a"])
def test_names_that_are_no_path_are_refused(name: str) -> None:
    """A model's name becomes part of a path and of a broker subject."""
    with pytest.raises(ReleaseError, match="rename"):
        release_folder(name, 1)
