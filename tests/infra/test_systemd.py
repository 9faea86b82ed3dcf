"""The agent's unit: systemd takes it, it shuts the agent in, and what it starts is there and is found where it says."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

UNIT: Final = Path(__file__).resolve().parents[2] / "infra" / "systemd" / "fieldloop-agent@.service"
STATE: Final = "/var/lib"  # what systemd puts for %S in a service of the system
EXPOSED: Final = 20  # tenths of systemd's own measure of exposure, which goes to 100; 50 is what it calls medium


@pytest.fixture
def options() -> dict[str, list[str]]:
    """The unit's options in section [Service], each with its values in order."""
    section, found = "", dict[str, list[str]]()
    for line in UNIT.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif line and not line.startswith("#") and section == "[Service]":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_what_it_starts_is_the_agent_in_the_folder_of_its_own_state(options: dict[str, list[str]]) -> None:
    """The program is one that the package installs, and reads the `agent.json` that the enrolment above it writes."""
    program, *arguments = options["ExecStart"][0].split()
    assert Path(sys.executable).with_name(Path(program).name).exists()
    assert arguments == ["--config", f"%S/{options['StateDirectory'][0]}/agent.json"]
    folder = f"{STATE}/{options['StateDirectory'][0].replace('%i', 'gw-1')}"
    assert f"{program} enrol --folder {folder} " in UNIT.read_text()


def test_it_is_not_started_again_where_that_would_not_help(options: dict[str, list[str]], tmp_path: Path) -> None:
    """By its exit status where there is no configuration; else always, a kill included."""
    program, *arguments = options["ExecStart"][0].split()
    command = [str(Path(sys.executable).with_name(Path(program).name)), *arguments]
    ended = subprocess.run([word.replace("%S", str(tmp_path)) for word in command], capture_output=True, text=True)
    assert str(ended.returncode) in options["RestartPreventExitStatus"]
    assert f"No such file or directory: '{tmp_path}" in ended.stderr
    assert options["Restart"] == ["always"]


def test_systemd_takes_it_and_finds_it_shut_in(tmp_path: Path) -> None:
    """Each option is known and has a value that it may have."""
    if (analyzer := shutil.which("systemd-analyze")) is None:
        pytest.skip("no systemd-analyze; Debian and Ubuntu: sudo apt-get install systemd")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/fieldloop/bin", str(Path(sys.executable).parent)))
    verified = _said(analyzer, "verify", "--man=no", str(unit))
    assert (verified.returncode, verified.stderr) == (0, "")
    judged = _said(analyzer, "security", "--offline=true", f"--threshold={EXPOSED}", str(unit))
    assert judged.returncode == 0, judged.stdout


def _said(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60)
