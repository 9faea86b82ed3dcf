"""The real agent on a runtime that is faulty for some versions: `python -m benchmarks.faulty_agent FAULTS CONFIG`.

FAULTS is JSON, version to `leak` (every run of the graph keeps a megabyte) or `numbers` (outputs are off by 0.1).
"""

import json
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.release import Release
from fieldloop.edge import main as agent
from fieldloop.edge import model

LEAK_FLOATS = 1 << 18  # a megabyte a run
_kept: list[NDArray[np.float32]] = []


def main() -> int:
    """Put the faults under the agent, and run it."""
    faults: dict[str, str] = json.loads(sys.argv[1])
    sys.argv[1:] = ["--config", sys.argv[2]]
    sound_load, sound_run = model.load, model.Model.run
    faulty: dict[int, str] = {}

    def load(release: Release, *args: Any, **kwargs: Any) -> Any:
        version = str(release.open(release.digest).version)
        with_fault.append(faults.get(version, ""))
        loaded = sound_load(release, *args, **kwargs)
        faulty[id(loaded.model)] = with_fault.pop()
        return loaded

    with_fault: list[str] = []

    def run(self: model.Model, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        fault = faulty.get(id(self)) or (with_fault[-1] if with_fault else "")
        outputs = sound_run(self, windows)
        if fault == "leak":
            _kept.append(np.ones(LEAK_FLOATS, np.float32))
        return outputs + np.float32(0.1) if fault == "numbers" else outputs

    model.load, model.Model.run = load, run  # type: ignore[method-assign]
    return agent.main()


if __name__ == "__main__":
    sys.exit(main())
