"""Power cuts, replayed: what the agent does to its files is recorded, then cut off after each step, the unsynced lost.

A file's content is safe once it was synced, a name once its folder was; what was not may be there or not. Images of a
cut are made four ways: all is there, only what was synced, new names with old contents, and by chance.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock

from fieldloop.edge import files

CUTS: Final = ("all", "synced", "names", "chance")


@dataclass
class _File:
    content: bytes = b""
    synced: bytes = b""


@dataclass
class _Folder:
    entries: dict[str, "_File | _Folder"] = field(default_factory=dict)
    synced: dict[str, "_File | _Folder"] = field(default_factory=dict)


Step = tuple[str, tuple[Any, ...]]


@dataclass
class Recording:
    """The steps done under a folder, in order."""

    root: Path
    steps: list[Step] = field(default_factory=list)

    def images(self, into: Path, seed: int = 0) -> Iterator[tuple[int, str, Path]]:
        """Yield each cut: how many steps came before it, its kind, and the folder as it is found after it."""
        chance = random.Random(seed)  # noqa: S311 - a simulation
        disk = _Disk(self.root)
        for count in range(len(self.steps) + 1):
            if count:
                disk.do(*self.steps[count - 1])
            for cut in CUTS:
                image = into / f"{count:05d}-{cut}"
                image.mkdir(parents=True)
                _write(disk.top, image, cut, chance)
                yield count, cut, image


@contextmanager
def record(root: Path) -> Iterator[Recording]:
    """Record what goes through `fieldloop.edge.files` while it happens."""
    recording = Recording(root)
    handles: dict[int, Path] = {}
    real = {name: getattr(files, name) for name in _STEPS}

    def wrap(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            outcome = real[name](*arguments)
            if name == "open_append":
                handles[outcome] = arguments[0]
            place = handles[arguments[0]] if name in ("append", "sync_handle") else arguments[0]
            recording.steps.append((name, (place, *arguments[1:])))
            return outcome

        return call

    with ExitStack() as patched:
        for name in _STEPS:
            patched.enter_context(mock.patch.object(files, name, wrap(name)))
        yield recording


_STEPS: Final = (
    "write", "open_append", "append", "sync_handle", "sync", "rename", "sync_folder", "make_folder", "remove",
)  # fmt: skip


class _Disk:
    """A file system that remembers what of it is safe."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.top = _Folder()

    def do(self, name: str, arguments: tuple[Any, ...]) -> None:
        path: Path = arguments[0]
        if name == "make_folder":
            self._folder(path)
        elif name in ("write", "open_append"):
            self._parent(path).entries[path.name] = _File(arguments[1] if name == "write" else b"")
            if name == "open_append":
                self._sync(path.parent)
        elif name == "append":
            self._file(path).content += arguments[1]
        elif name == "rename":
            node = self._parent(path).entries.pop(path.name)
            self._parent(arguments[1]).entries[arguments[1].name] = node
        elif name == "remove":
            self._parent(path).entries.pop(path.name, None)
        else:
            self._sync(path)

    def _sync(self, path: Path) -> None:
        node = self.top if path == self._root else self._parent(path).entries.get(path.name)
        if isinstance(node, _Folder):
            node.synced = dict(node.entries)
        elif node is not None:
            node.synced = node.content

    def _parent(self, path: Path) -> _Folder:
        return self._folder(path.parent)

    def _folder(self, path: Path) -> _Folder:
        node = self.top
        for part in path.relative_to(self._root).parts:
            below = node.entries.setdefault(part, _Folder())
            assert isinstance(below, _Folder)
            node = below
        return node

    def _file(self, path: Path) -> _File:
        node = self._parent(path).entries[path.name]
        assert isinstance(node, _File)
        return node


def _write(folder: _Folder, into: Path, cut: str, chance: random.Random) -> None:
    """Put a folder onto the real disk as a cut leaves it."""
    new_names = {"all": True, "synced": False, "names": True}.get(cut)
    names = folder.entries if (chance.random() < 0.5 if new_names is None else new_names) else folder.synced
    for name, node in names.items():
        if isinstance(node, _Folder):
            (into / name).mkdir()
            _write(node, into / name, cut, chance)
        else:
            (into / name).write_bytes(_content(node, cut, chance))


def _content(file: _File, cut: str, chance: random.Random) -> bytes:
    """Return a file's bytes: all, those that were synced, or by chance some of what came after."""
    if cut == "all":
        return file.content
    if cut == "chance" and file.content.startswith(file.synced):
        return file.content[: chance.randint(len(file.synced), len(file.content))]
    return file.synced
