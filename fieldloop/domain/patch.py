"""From one graph to the next as a small patch: zstd with the old graph as its prefix, as `zstd --patch-from` does.

With no old graph it is the new one compressed, so that a first installation is small too. A patch is worth what its
result is: whoever applies one compares that with the digest that it must have.
"""

import hashlib
from typing import Final

from backports.zstd import (
    CompressionParameter,
    DecompressionParameter,
    ZstdDecompressor,
    ZstdDict,
    ZstdError,
    compress,
)

from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.release import File

LEVEL: Final = 19  # made once, applied by the whole fleet
LARGEST: Final = 64 << 20  # bytes of a graph, old or new; beyond that a gateway would need too much memory
WORTH: Final = 0.9  # of the whole file; a patch that is hardly smaller is not worth its risk
_WINDOW_LOG: Final = (17, 27)  # 128 kB to 128 MB, which is what old and new may take together
_ID_CHARACTERS: Final = 16

NOTHING: Final = b""  # as an old graph: there is none
SMALLEST: Final = 1024  # bytes of a graph, old or new, below which nothing is gained


def patch_name(graph: str, old: bytes) -> str:
    """Return the name of the patch that leads from an old graph to the one of this file name."""
    start = hashlib.sha256(old).hexdigest()[:_ID_CHARACTERS] if old else "nothing"
    return f"{graph}.from-{start}.zst"


def make_patch(old: bytes, new: bytes) -> bytes | None:
    """Return what leads from one graph to another; None where the whole file does as well."""
    if max(len(old), len(new)) > LARGEST or len(new) < SMALLEST or 0 < len(old) < SMALLEST:
        return None
    reach = min(max((len(old) + len(new)).bit_length(), _WINDOW_LOG[0]), _WINDOW_LOG[1])
    options: dict[int, int] = {
        CompressionParameter.compression_level: LEVEL,
        CompressionParameter.window_log: reach,
        CompressionParameter.enable_long_distance_matching: 1,
    }
    patch = compress(new, options=options, zstd_dict=ZstdDict(old, is_raw=True).as_prefix if old else None)
    return patch if len(patch) < WORTH * len(new) else None


def apply_patch(old: bytes, patch: bytes, expected: File) -> bytes:
    """Return the graph that a patch leads to.

    Raises:
        ReleaseError: it does not lead to the expected file.
    """
    decompressor = ZstdDecompressor(
        zstd_dict=ZstdDict(old, is_raw=True).as_prefix if old else None,
        options={DecompressionParameter.window_log_max: _WINDOW_LOG[1]},
    )
    try:
        new = decompressor.decompress(patch, max_length=expected.length + 1)
    except ZstdError as exc:
        raise ReleaseError(f"patch: cannot be applied: {exc}") from exc
    if (got := File.of(new)) != expected:
        raise ReleaseError(
            f"patch: expected {expected.length} bytes with SHA-256 {expected.sha256}, "
            f"got {got.length} bytes with {got.sha256}"
        )
    return new
