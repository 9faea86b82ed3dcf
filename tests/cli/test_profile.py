"""`fieldloop profile check`: what comes of samples, without the platform."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

PROFILE = """\
name: probe
description: a test
format: json
device_field: id
clock: {kind: epoch_s, field: t}
cadence: 10 min
channels:
  - {metric: temperature, field: temp, source_unit: kelvin, unit: degC, range: [-40, 85]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "probe.yaml").write_text(PROFILE)
    return tmp_path


def check(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "fieldloop.cli.main", "profile", "check", str(folder / "probe.yaml"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def frame(**changes: object) -> bytes:
    return json.dumps({"id": "d1", "t": 1420113600, "temp": 300.0} | changes).encode()


def test_good_samples_are_summed_up_and_exit_0(folder: Path):
    """A message a file, and a packed file of one a line; values in canonical units, repeats counted."""
    (folder / "one.json").write_bytes(frame())
    (folder / "many.ndjson.gz").write_bytes(gzip.compress(frame(t=1420113000) + b"\n\n" + frame(temp=290) + b"\n"))
    code, output = check(folder, "one.json", "many.ndjson.gz", "--device", "d1")
    assert code == 0
    assert "3 messages, 3 readings, 1 of them repeats" in output
    row = next(line.split() for line in output.splitlines() if line.startswith("temperature"))
    assert row == ["temperature", "3", "16.85", "26.85", "degC", "2015-01-01", "11:50", "2015-01-01", "12:00"]
    assert "nothing was refused" in output


def test_refusals_are_shown_with_an_example_and_exit_1(folder: Path):
    """Counted by reason and field; the example says in which file and line."""
    (folder / "a.ndjson").write_bytes(b"\n".join([frame(), frame(temp=3e5), frame(temp=2e5), frame(id="d2"), b"{"]))
    code, output = check(folder, "a.ndjson", "--device", "d1")
    assert code == 1
    assert "refused: 4" in output
    assert "2 × value out of range `temperature`" in output
    assert "a.ndjson:2: expected -40 to 85 degC" in output
    assert "1 × wrong device" in output


def test_without_a_device_its_name_is_not_checked(folder: Path):
    """And arrival can be set, for samples from the future or the past."""
    (folder / "a.json").write_bytes(frame())
    assert check(folder, "a.json")[0] == 0
    code, output = check(folder, "a.json", "--arrival", "2014-01-01")
    assert code == 1
    assert "time in the future" in output


@pytest.mark.parametrize(("sample", "error"), [("none.json", "none.json: expected a file"), ("empty", "is empty")])
def test_a_file_without_messages_is_named(folder: Path, sample: str, error: str):
    """One line on standard error."""
    (folder / "empty").touch()
    code, output = check(folder, sample)
    assert code == 1
    assert output.startswith("fieldloop: ")
    assert error in output
