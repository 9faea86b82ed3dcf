"""What an edge agent's `agent.json` says: who it is, which devices it scores, where its files are."""

from typing import Final

import msgspec

from fieldloop.domain.errors import ReleaseError

NOTICE: Final = "notice"  # under it the broker tells that a bucket's key has changed; what counts is the key
REDELIVERY_S: Final = 10.0  # acknowledgement wait of a target's consumer; what a killed agent took comes again after it


class LocalReadings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A broker on the gateway itself, from which the agent takes readings, so that it scores without the platform.

    Attributes:
        url: `mqtt://` or `mqtts://` for MQTT 3.1.1, `nats://` or `tls://` for NATS with JetStream.
        ca: PEM authority of a broker with TLS; relative paths are relative to the folder of `agent.json`.
        user: name to log in with.
        password_file: file that holds the password, and nothing else.
    """

    url: str
    ca: str | None = None
    user: str | None = None
    password_file: str | None = None


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The agent's `agent.json`; relative paths are relative to its folder.

    Attributes:
        target: the edge target's name, as in its certificate.
        devices: profile name by device.
        broker: URL, for instance `tls://127.0.0.1:4222`.
        identity: PEM file with the target's private key and certificate.
        ca: the authority that signed the broker's certificate.
        trusted_root: TUF root metadata that came with enrolment.
        state: folder for releases and stream state.
        redelivery_s: acknowledgement wait of its consumer, seconds.
        heartbeat_s: a report is sent at least so often, seconds.
        poll_s: desired state is read again so often, seconds, in case a notice was missed.
        readings: a broker on the gateway that has the readings; None takes them from the platform's.
        spool_bytes: what may wait on disk for the platform.
        download_bytes_per_s: releases are fetched no faster; None sets no limit.
        health_port: of the loopback endpoint; 0 takes a free one, which is written to `health.port` in `state`.
        crashes: so many starts in turn with one release, none of which lasts `healthy_s`, and the agent goes back to
            the release before.
        healthy_s: after so many seconds without trouble a start counts as well.
    """

    target: str
    devices: dict[str, str]
    broker: str
    identity: str
    ca: str
    trusted_root: str
    state: str
    redelivery_s: float = REDELIVERY_S
    heartbeat_s: float = 15.0
    poll_s: float = 30.0
    readings: LocalReadings | None = None
    spool_bytes: int = 64 << 20
    download_bytes_per_s: int | None = None
    health_port: int = 0
    crashes: int = 3
    healthy_s: float = 60.0


def decode_config(data: bytes, where: str) -> AgentConfig:
    """Read an `agent.json`; `where` names it in errors.

    Raises:
        ReleaseError: a field is missing, unknown or of the wrong type.
    """
    try:
        return msgspec.json.decode(data, type=AgentConfig)
    except msgspec.MsgspecError as exc:
        raise ReleaseError(f"{where}: not an agent's configuration: {exc}: enrol the target again") from exc
