"""Graphs run over many windows: cut in chunks, several side by side, here or on a cluster, to the same bits."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fieldloop.domain.graph import MASKED, ORDERED, WINDOW, batch_graphs
from fieldloop.domain.recipe import Recipe
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tasks.cluster import connected, in_order
from tasks.cutting import Cuts
from tasks.grids import LakeGrids, StoredGrid

THREADS: Final = 2  # fixed, so that results do not depend on the machine
_PART_WINDOWS: Final = 65_536  # of whole devices, sent to a worker of a cluster at once; a device with more is one


def apply(graph: bytes, found: Cuts, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
    """Run a graph over chosen windows in batch, with the bits of a window alone.

    Args:
        graph: ONNX, one input `window` float32 [N, R, T], first output float32 [N, F].
        found: the examples.
        chosen: [K] int64, increasing.

    Returns:
        [K, F] float32.
    """
    return _over(found, chosen, graph_run(graph), graph)


@dataclass(frozen=True)
class Run:
    """A graph, or a recipe's features, ready to run.

    Attributes:
        width: F.
        run: windows float32 [N, R, T] → answers float32 [N, F].
    """

    width: int
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]]


def graph_run(graph: bytes) -> Run:
    """Make a graph ready."""
    session = session_of(graph)
    return Run(session.get_outputs()[0].shape[1], partial(_run, session))


def feature_run(recipe: Recipe) -> Run:
    """Build a recipe's features for batches: masks, sort along time, features."""
    graphs = batch_graphs(recipe)
    masks, families = (session_of(graph.SerializeToString()) for graph in (graphs.masks, graphs.features))

    def run(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        masked = _run(masks, windows)
        answer: NDArray[np.float32] = families.run(None, {MASKED: masked, ORDERED: np.sort(masked)})[0]
        return answer

    return Run(families.get_outputs()[0].shape[1], run)


def features(found: Cuts, chosen: NDArray[np.int64], built: Run | None = None) -> NDArray[np.float32]:
    """Return the features of chosen windows ([K] int64, increasing), float32 [K, F], as the release graph gives them.

    Args:
        found: the examples.
        chosen: which of them.
        built: the recipe's features, where they are there already.
    """
    return _over(found, chosen, built or feature_run(found.recipe), None)


def session_of(graph: bytes) -> onnxruntime.InferenceSession:
    """Return a session on one thread: several threads add up an ensemble's trees in another order than one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, windows: NDArray[np.float32]) -> NDArray[np.float32]:
    answer: NDArray[np.float32] = session.run(None, {WINDOW: windows})[0]
    return answer


def _over(found: Cuts, chosen: NDArray[np.int64], run: Run, graph: bytes | None) -> NDArray[np.float32]:
    """Run over the chosen windows where the recipe says; only the answers, [K, F], are all in memory here."""
    grids = found.grids
    if found.recipe.engine == "local" or not isinstance(grids, LakeGrids):
        return _here(found, chosen, run)
    answers = np.empty((len(chosen), run.width), dtype=np.float32)
    parts = list(_parts(found, grids, chosen, graph))
    filled = 0
    with connected(grids.lake.settings, found.recipe) as client:
        for answer in in_order(client, _of_part, parts) if client else ():
            answers[filled : filled + len(answer)] = answer
            filled += len(answer)
    return answers


def _here(found: Cuts, chosen: NDArray[np.int64], run: Run) -> NDArray[np.float32]:
    """Cut and run chunk after chunk, several side by side."""
    answers = np.empty((len(chosen), run.width), dtype=np.float32)

    def fill(rows: NDArray[np.int64]) -> None:
        answers[rows] = run.run(found.windows(chosen[rows]))

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(fill, found.chunks(np.arange(len(chosen)))):
            pass
    return answers


@dataclass(frozen=True)
class _Part:
    """Windows of neighbouring devices, as a worker is told of them.

    Attributes:
        stored: their grids in the lake.
        device: [K] int32, into the grids' devices.
        end_us: [K] int64.
        graph: what to run; None for the recipe's features.
    """

    stored: StoredGrid
    device: NDArray[np.int32]
    end_us: NDArray[np.int64]
    graph: bytes | None


def _parts(found: Cuts, grids: LakeGrids, chosen: NDArray[np.int64], graph: bytes | None) -> Iterator[_Part]:
    """Group the chosen windows by devices."""
    groups: list[list[NDArray[np.int64]]] = [[]]
    for _, mine in found.by_device(chosen):
        if sum(map(len, groups[-1])) + len(mine) > _PART_WINDOWS and groups[-1]:
            groups.append([])
        groups[-1].append(mine)
    for rows in (np.concatenate(group) for group in groups if group):
        device = found.device[rows]
        first = int(device[0])
        yield _Part(grids.stored.of(first, int(device[-1]) + 1), device - first, found.end_us[rows], graph)


def _of_part(part: _Part) -> NDArray[np.float32]:
    """Run over the windows of a part, on a worker."""
    recipe = part.stored.recipe
    grids = LakeGrids(Lake(Settings()), part.stored)
    found = Cuts(recipe, part.stored.devices, grids, part.device, part.end_us)
    run = feature_run(recipe) if part.graph is None else graph_run(part.graph)
    return _here(found, np.arange(len(part.device)), run)
