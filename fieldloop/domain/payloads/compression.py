"""What is around a payload: gzip or zstd, unpacked to a bounded size."""

import zlib
from collections.abc import Sequence
from typing import Final

from fieldloop.domain.profile import Compression
from fieldloop.domain.readings import Reason, Reject

MAX_UNPACKED_BYTES: Final = 8 << 20
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
_ZSTD_WINDOW_LOG: Final = 23  # 8 MiB: what a decoder may be asked to hold


class _TooLarge(Exception):  # noqa: N818 - it never leaves this file
    """The payload unpacks to more than is allowed."""


def unpack(compression: Compression, payloads: Sequence[bytes]) -> tuple[list[bytes], list[int], list[Reject]]:
    """Return the payloads that could be unpacked, their rows, and the refusals of the others.

    Args:
        compression: what is around every payload.
        payloads: [M] as they arrived.
    """
    if compression == "none":
        return list(payloads), list(range(len(payloads))), []
    unpack_one = _gzip if compression == "gzip" else _zstd
    unpacked: list[bytes] = []
    rows: list[int] = []
    rejects: list[Reject] = []
    for row, payload in enumerate(payloads):
        try:
            unpacked.append(unpack_one(payload))
            rows.append(row)
        except _TooLarge:
            detail = f"expected at most {MAX_UNPACKED_BYTES:,} bytes once unpacked, got more"
            rejects.append(Reject(row, None, Reason.TOO_LARGE, detail))
        except (zlib.error, ValueError) as error:
            rejects.append(Reject(row, None, Reason.UNDECODABLE, f"expected {compression}: {error}"))
    return unpacked, rows, rejects


def _gzip(payload: bytes) -> bytes:
    member = zlib.decompressobj(_GZIP_WINDOW)
    return _whole(member.decompress(payload, MAX_UNPACKED_BYTES + 1), ended=member.eof, rest=member.unused_data)


def _zstd(payload: bytes) -> bytes:
    from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

    frame = ZstdDecompressor(options={int(DecompressionParameter.window_log_max): _ZSTD_WINDOW_LOG})
    try:
        unpacked = frame.decompress(payload, MAX_UNPACKED_BYTES + 1)
    except ZstdError as error:
        raise ValueError(str(error)) from error
    return _whole(unpacked, ended=frame.eof, rest=frame.unused_data)


def _whole(unpacked: bytes, *, ended: bool, rest: bytes) -> bytes:
    """Return what was unpacked, once it is sure that this is all and not too much."""
    if len(unpacked) > MAX_UNPACKED_BYTES:
        raise _TooLarge
    if not ended:
        raise ValueError("it ends early")
    if rest:
        raise ValueError(f"{len(rest):,} more bytes follow its end")
    return unpacked
