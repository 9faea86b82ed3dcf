"""A Dask cluster, for recipes that say `engine: dask`: who is asked, what is sent there, in which order it comes back.

Workers get references and read the lake by settings of their own (`FIELDLOOP_*`); what they send back is placed by its
part, so that nothing depends on who was quicker.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fieldloop.domain.errors import ServiceError
from fieldloop.domain.recipe import Recipe
from fieldloop.stores.settings import Settings

if TYPE_CHECKING:
    from distributed import Client

Part = TypeVar("Part")
Answer = TypeVar("Answer")

_ANSWER_S: Final = 10  # that a scheduler may take to answer
_AHEAD: Final = 2  # parts a worker thread that are under way or wait to be taken


@contextmanager
def connected(settings: Settings, recipe: Recipe) -> Iterator["Client | None"]:
    """Give a connection to the cluster; None for recipes that compute in process.

    Raises:
        ServiceError: no scheduler is named, none answers there, or it has no workers.
    """
    if recipe.engine != "dask":
        yield None
        return
    if settings.dask_url is None:
        raise ServiceError(
            f"recipe {recipe.name} says `engine: dask`, and no cluster is named: set FIELDLOOP_DASK_URL to the address "
            "of a scheduler, such as tcp://127.0.0.1:8786 (`dask scheduler`, and `dask worker ADDRESS` on each "
            "machine, in this environment), or take `engine` out of the recipe"
        )
    client = _client(settings.dask_url)
    try:
        if not client.ncores():
            raise ServiceError(f"the Dask scheduler at {settings.dask_url} has no workers: start `dask worker` there")
        yield client
    finally:
        client.close()


def in_order(client: "Client", work: Callable[[Part], Answer], parts: Iterable[Part]) -> Iterator[Answer]:
    """Do the work on each part, and give the answers in the order of the parts; few are under way at a time.

    Raises:
        Exception: what the work raised for a part.
    """
    waiting: deque[Any] = deque()
    coming = iter(parts)
    for part in islice(coming, _AHEAD * sum(client.ncores().values())):
        waiting.append(client.submit(work, part, pure=False))
    while waiting:
        answer = waiting.popleft().result()
        waiting.extend(client.submit(work, part, pure=False) for part in islice(coming, 1))
        yield answer


def _client(address: str) -> "Client":
    from distributed import Client

    try:
        return Client(address, timeout=_ANSWER_S, set_as_default=False)
    except (OSError, ValueError) as exc:
        raise ServiceError(
            f"no Dask scheduler answers at {address} (FIELDLOOP_DASK_URL): {exc or type(exc).__name__}; start it, or "
            "take `engine` out of the recipe"
        ) from exc
