"""List the benchmarks, or run one and print its figures as one JSON object on the last line."""

import importlib
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import psutil

from benchmarks.figure import Figure


def main() -> None:
    """Run the benchmark that is named, or list them all."""
    parts = Path(__file__).parent.glob("*.py")
    files = sorted(path.stem for path in parts if "\ndef measure() -> Figure:" in path.read_text())
    names = {file.replace("_", "-"): file for file in files}  # a module's name has no dash
    if len(sys.argv) < 2:
        for name, file in names.items():
            summary = (importlib.import_module(f"benchmarks.{file}").__doc__ or "").splitlines()[0]
            print(f"  make bench NAME={name:12} {summary}")
        return
    if sys.argv[1] not in names:
        sys.exit(f"no benchmark {sys.argv[1]!r}; there are: {', '.join(names)}")
    figure: Figure = importlib.import_module(f"benchmarks.{names[sys.argv[1]]}").measure()
    plain = asdict(figure)
    further = plain.pop("further")
    print(json.dumps({"name": sys.argv[1], **plain, **further, "machine": _machine()}))


def _machine() -> dict[str, object]:
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
