"""The embedded broker: one NATS server with JetStream and its MQTT listener, mutual TLS on both.

A client is who its certificate says (`verify_and_map`); `infra.local.identities` writes what each may do.
"""

import json
import sys
from pathlib import Path
from typing import Final

from fieldloop.stores.broker import entrances
from fieldloop.stores.settings import Settings
from infra.local.authority import server_certificate
from infra.local.identities import users_file, write_users
from infra.local.keys import private_folder, write_private
from infra.local.stack import Port, Spec

MAX_PAYLOAD_BYTES: Final = (
    8 * 2**20
)  # a device whose message is refused repeats it for ever; better to take and quarantine it
TLS_TIMEOUT_S: Final = 5


def spec(settings: Settings) -> Spec:
    """Write the configuration, and return how the broker is run."""
    write_users(settings)
    path = settings.data_dir / "nats.conf"
    write_private(path, _configuration(settings).encode())
    return Spec(
        name="nats",
        title="NATS",
        argv=(str(Path(sys.executable).with_name("nats-server")), "--config", str(path)),
        cwd=str(settings.data_dir),
        ready=f"tcp://{settings.host}:{settings.nats_port}",  # the last of its listeners to open
        ports=(
            Port(settings.host, settings.nats_port, "FIELDLOOP_NATS_PORT"),
            Port(settings.host, settings.mqtt_port, "FIELDLOOP_MQTT_PORT"),
        ),
        url=f"{settings.nats_endpoint} {settings.mqtt_endpoint}",
        ready_timeout_s=30.0,
    )


def _configuration(settings: Settings) -> str:
    """Return `nats.conf`; strings are written as JSON, which NATS reads."""
    return f"""server_name: fieldloop
listen: {json.dumps(f"{settings.host}:{settings.nats_port}")}
max_payload: {MAX_PAYLOAD_BYTES}
jetstream {{ store_dir: {json.dumps(str(private_folder(settings.data_dir / "nats")))} }}
tls {{ {_tls(settings)} }}
mqtt {{
  listen: {json.dumps(f"{settings.host}:{settings.mqtt_port}")}
  tls {{ {_tls(settings)} }}
}}
mappings = {json.dumps(entrances())}
authorization {{
  include {json.dumps(users_file(settings).name)}
}}
"""


def _tls(settings: Settings) -> str:
    own = server_certificate(settings)
    files = {"cert_file": own.cert, "key_file": own.key, "ca_file": own.ca}
    lines = "; ".join(f"{name}: {json.dumps(str(path))}" for name, path in files.items())
    return f"{lines}; verify_and_map: true; timeout: {TLS_TIMEOUT_S}"
