"""Key-value buckets of the broker, read with no more than the right to ask for one subject."""

from typing import Final

from fieldloop.domain.errors import ServiceError
from fieldloop.edge.link import Link

REQUEST_S: Final = 5.0  # an answer of the broker


async def direct_get(link: Link, bucket: str, key: str, timeout_s: float = REQUEST_S) -> bytes | None:
    """Return the value of a key, None where there is none.

    Raises:
        ServiceError: the broker does not answer, or with another status.
    """
    subject = f"$KV.{bucket}.{key}"
    answer = await link.request(f"$JS.API.DIRECT.GET.KV_{bucket}.{subject}", b"", timeout_s)
    if answer.status == "404" or answer.header("KV-Operation") in ("DEL", "PURGE"):
        return None
    if answer.status is not None:
        raise ServiceError(f"{subject}: the broker answers {answer.headers.decode(errors='replace').strip()}")
    return answer.data
