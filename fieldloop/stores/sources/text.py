"""Text files in blocks of whole lines: gzip or zstd around them or not, bounded in memory whatever is in them."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, cast

from fieldloop.domain.errors import SourceError

PACKED: Final = (".gz", ".zst")
BLOCK_BYTES: Final = 8 << 20
READ_BYTES: Final = 1 << 20
MAX_LINE_BYTES: Final = 1 << 20  # as of a message: a row has some hundred bytes

_BOM: Final = b"\xef\xbb\xbf"


def suffix(name: str) -> str:
    """Return a name's ending without what says how it is packed: `.csv` of `a.csv.gz`."""
    path = Path(name)
    return (path.with_suffix("") if path.suffix in PACKED else path).suffix.lower()


def blocks(path: Path, name: str) -> Iterator[bytes]:
    """Yield a text file's content in blocks of whole lines.

    Args:
        path: where it is.
        name: what it is called; its ending says how it is packed.

    Raises:
        SourceError: it is damaged, or a line is too long; what came before has been yielded.
    """
    held: list[bytes] = []  # of the block, the last of them may end within a line
    size = line = number = 0
    try:
        for piece in _pieces(path, name):
            held.append(piece)
            size += len(piece)
            cut = piece.rfind(b"\n") + 1
            line = len(piece) - cut if cut else line + len(piece)
            if line > MAX_LINE_BYTES:
                number += sum(each.count(b"\n") for each in held)
                raise SourceError(f"{name}: line {number + 1:,} is longer than {MAX_LINE_BYTES:,} bytes")
            if size >= BLOCK_BYTES and size > line:
                block = b"".join(held)
                yield block[: size - line]
                number += block.count(b"\n")
                held, size = [block[size - line :]], line
    except SourceError:
        if size > line:
            yield b"".join(held)[: size - line]
        raise
    if size:
        yield b"".join(held)


def _pieces(path: Path, name: str) -> Iterator[bytes]:
    """Yield the unpacked content; what could be unpacked of a damaged file comes before the error."""
    from backports.zstd import ZstdError

    with _opened(path, name) as stream:
        first = True
        while True:
            try:
                piece = stream.read1(READ_BYTES)  # type: ignore[attr-defined] # all three have it
            except (EOFError, zlib.error, gzip.BadGzipFile, ZstdError) as exc:
                raise SourceError(f"{name}: damaged, it cannot be unpacked to its end: {exc}") from exc
            if not piece:
                return
            yield piece.removeprefix(_BOM) if first else piece
            first = False


def _opened(path: Path, name: str) -> IO[bytes]:
    from backports import zstd

    if name.endswith(".gz"):
        return cast(IO[bytes], gzip.open(path))
    return cast(IO[bytes], zstd.open(path)) if name.endswith(".zst") else path.open("rb")
