"""`fieldloop source`: declared sources listed, checked and run from the command line."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fieldloop.cli.source import app
from fieldloop.domain.errors import DocumentError
from fieldloop.stores.settings import Settings
from fieldloop.stores.sources.declaration import load_declaration, names, parse

ROOT = Path(__file__).parents[2]
GOOD = """name: a
kind: files
profile: meter
device: {name: m-1}
options: {path: x.csv}
"""


def test_the_carried_wind_farm_is_read_through_its_declaration(
    store: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is listed, the check shows its metrics and changes nothing."""
    for name, value in store.environment().items():
        monkeypatch.setenv(name, value)
    run = CliRunner()
    listed = run.invoke(app, ["list"])
    assert listed.exit_code == 0
    assert "la-haute-borne" in listed.stdout
    assert "files, http, mqtt, sql" in listed.stdout
    checked = run.invoke(app, ["check", "la-haute-borne"])
    assert checked.exit_code == 0, checked.stdout
    assert "in the lake of it: 0 batches" in checked.stdout
    assert "outdoor_temperature" in checked.stdout


def test_every_declaration_of_the_project_is_usable() -> None:
    """Each loads under its file's name."""
    assert [load_declaration(ROOT, name).name for name in names(ROOT)] == names(ROOT)


WRONG = {
    "kind: fles": "a.yaml:2: unknown kind `fles`; there are: files, http, mqtt, sql",
    "device: {name: m-1, field: x}": "a.yaml:4: `device`: expected one of `name`, `field`, `pattern`; got name",
    "device: {pattern: x}": "a.yaml:4: `device.pattern`: expected a group `device`",
    "device: {pattern: '('}": "a.yaml:4: `device.pattern`: not a regular expression",
    "options: {pth: x.csv}": "a.yaml:5: unknown key `pth` in `options`; did you mean `path`?",
}


@pytest.mark.parametrize("line", WRONG)
def test_an_error_names_file_and_line(line: str) -> None:
    """What is wrong in a declaration is said where it stands."""
    key = line.partition(":")[0]
    text = "".join(line + "\n" if row.startswith(f"{key}:") else row for row in GOOD.splitlines(keepends=True))
    with pytest.raises(DocumentError) as refused:
        parse(text, "a.yaml")
    assert WRONG[line] in str(refused.value)
