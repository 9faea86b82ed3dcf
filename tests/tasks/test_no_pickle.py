"""Nothing is unpickled: no module can, what a run keeps is none, and one that is put in its place is refused unread."""

import ast
import io
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fieldloop.domain.errors import FieldloopError, ReleaseError, StoreError, TrainingError
from fieldloop.domain.release import decode_canary, decode_manifest
from fieldloop.edge.model import Model as EdgeModel
from tasks import candidates
from tasks.candidates import Problem, boosting, scikit
from tasks.candidates.arrays import FILE as ARRAYS
from tasks.origin import decode

ROOT = Path(__file__).parents[2]
ROOMS = ("fieldloop", "flows", "tasks", "expectations", "infra")
LOADERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "torch"}
READERS = {"read_pickle", "allow_pickle", "pyfunc", "DataFrame.deserialize"}
HEAD = b'{"kind":"value"}'
WIDTH = 3


class Bomb:
    """What writes a file as soon as it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.write_text, (self.mark, "went off")


def modules() -> Iterator[tuple[Path, ast.Module]]:
    """All modules that the platform or a gateway runs."""
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def test_no_module_can() -> None:
    """None imports what unpickles, or calls another library's reader that does."""
    found, seen = [], 0
    for path, tree in modules():
        seen += 1
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Attribute):
                names = [node.attr]
            elif isinstance(node, ast.keyword) and node.arg:
                names = [node.arg]
            found += [f"{path}: {name}" for name in names if name.split(".")[0] in LOADERS or name in READERS]
    assert seen > 200
    assert found == []


def planted(mark: Path) -> bytes:
    """A pickle that goes off, as this test makes sure."""
    data = pickle.dumps(Bomb(mark))
    pickle.loads(data)  # noqa: S301  # a pickle of our own, to see that it would go off
    assert mark.exists()
    mark.unlink()
    return data


def archive(data: bytes) -> bytes:
    """A model of scikit-learn as skops keeps it, with one of its arrays changed for an array of pickled objects."""
    from sklearn.linear_model import Ridge

    model = scikit.fit([Ridge()], Problem("value"), np.eye(WIDTH, dtype=np.float32), np.arange(WIDTH, dtype=np.float32))
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(model.dump()[1])) as before, zipfile.ZipFile(changed, "w") as after:
        arrays = [name for name in before.namelist() if name.endswith(".npy")]
        assert arrays
        for name in before.namelist():
            after.writestr(name, data if name in arrays else before.read(name))
    return changed.getvalue()


def objects(mark: Path) -> bytes:
    """An array of NumPy's own kind that holds a pickle."""
    written = io.BytesIO()
    np.save(written, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    return written.getvalue()


@pytest.mark.parametrize("name", [boosting.FILE, scikit.FILE, ARRAYS])
def test_pickle_for_a_native_model(tmp_path: Path, name: str) -> None:
    """It is refused by what it is, and does not go off."""
    mark = tmp_path / "mark"
    files = {name: planted(mark), candidates.HEAD_FILE: HEAD}
    with pytest.raises(TrainingError, match=f"native model {name}: "):
        candidates.restore(Problem("value"), files)
    assert not mark.exists()


def test_pickle_inside_a_native_model(tmp_path: Path) -> None:
    """Neither does one that is an array inside an archive that is otherwise as it should be."""
    mark = tmp_path / "mark"
    planted(mark)
    files = {scikit.FILE: archive(objects(mark)), candidates.HEAD_FILE: HEAD}
    with pytest.raises(TrainingError, match=f"native model {scikit.FILE}: "):
        candidates.restore(Problem("value"), files)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("read", "refusal"),
    [
        (EdgeModel.load, ReleaseError),
        (decode_canary, ReleaseError),
        (decode_manifest, ReleaseError),
        (lambda data: decode(data, "a run"), StoreError),
        (lambda data: candidates.restore(Problem("value"), {ARRAYS: b"{}", candidates.HEAD_FILE: data}), TrainingError),
    ],
    ids=["graph", "canary", "manifest", "origin", "head"],
)
def test_pickle_for_any_other_file(
    tmp_path: Path, read: Callable[[bytes], object], refusal: type[FieldloopError]
) -> None:
    """Whatever file of a run or a release it stands for."""
    mark = tmp_path / "mark"
    with pytest.raises(refusal):
        read(planted(mark))
    assert not mark.exists()
