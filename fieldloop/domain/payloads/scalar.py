"""Single scalars: the whole payload is one value as text, such as `21.5`; the profile has one channel for it."""

from fieldloop.domain.payloads.records import Records, Table, to_records
from fieldloop.domain.profile import Profile
from fieldloop.domain.readings import Messages, Reason, Reject

FIELD = "value"


def decode(profile: Profile, messages: Messages) -> Records:
    """Decode messages of devices of one profile; the device has no clock, so the broker's stamp is the event time."""
    rows: list[int] = []
    values: list[str] = []
    rejects: list[Reject] = []
    for row, payload in enumerate(messages.payloads):
        try:
            text = payload.decode().strip()
        except UnicodeDecodeError as error:
            rejects.append(Reject(row, None, Reason.UNDECODABLE, f"expected text in UTF-8: {error}"))
            continue
        rows.append(row)
        values.append(text)
    return to_records(profile, messages, Table(rows, (), None, (values,), rejects))
