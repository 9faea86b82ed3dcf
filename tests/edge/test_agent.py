"""The agent as a process, against the real broker and object store."""

import asyncio
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import nats.errors
import numpy as np
import pytest
from nats.aio.client import Client
from nats.js.api import DeliverPolicy
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Timestamp

from fieldloop.domain.predictions import Predictions
from fieldloop.domain.release import CHUNK_BYTES
from fieldloop.domain.rollout import Desired, Reported
from fieldloop.stores import broker, releases
from fieldloop.stores.settings import Settings
from infra.local import signer
from infra.local.authority import make_authority
from infra.local.broker import spec as broker_spec
from infra.local.platform import PLATFORM, prepare_broker
from infra.local.stack import start_stack, stop_stack
from infra.local.supervisor import answers
from tests.edge.targets import Gateway, enrol, make_release, mean_of_windows, payload, poll

STEPS = 40
LAST = STEPS - 1  # the step still open when the readings end


def test_release_is_fetched_proved_and_scores_the_stream(gateway: Gateway) -> None:
    """From desired state to predictions: each window that the readings complete, with the graph's own output."""
    release = make_release(bias=1.0)
    gateway.start()
    gateway.desire(release)
    report = gateway.await_running(release)
    assert report.running is not None
    assert report.running.proof.exact
    assert report.error is None
    gateway.send([payload(range(s, s + 4)) for s in range(0, STEPS, 4)])
    rows = gateway.await_rows(LAST - 3)
    ends = sorted(rows)
    steps = range(3, LAST)  # the first step may be half a step, so windows begin with the next
    assert [end // 60_000_000 - 1000 for end in ends] == list(steps)
    np.testing.assert_allclose([rows[end][0] for end in ends], mean_of_windows(steps, 1.0), rtol=1e-6)


def test_sigterm_stops_cleanly_and_the_next_start_goes_on(gateway: Gateway) -> None:
    """Nothing is scored twice, nothing is waited for, and no release is fetched again."""
    release = make_release()
    gateway.desire(release)
    gateway.start()
    gateway.await_running(release)
    gateway.send([payload(range(s, s + 1)) for s in range(10)])
    gateway.await_rows(6)
    assert gateway.kill(signal.SIGTERM) == 0
    gateway.start()
    gateway.send([payload(range(s, s + 1)) for s in range(10, 20)])
    gateway.await_rows(16)
    assert sum(len(message.columns()[0]) for message in gateway.predictions()) == 16
    assert gateway.log.count("is desired") == 1
    assert "taken again" not in gateway.log


def test_killed_again_and_again_it_loses_no_window(gateway: Gateway) -> None:
    """Killed with -9 in the middle of scoring, several times: every window is predicted, repeats are the same rows."""
    release = make_release()
    gateway.desire(release)
    gateway.start()
    gateway.await_running(release)
    total, each = 1200, 300
    for start in range(0, total, each):
        gateway.send([payload(range(s, s + 1)) for s in range(start, start + each)])
        gateway.await_rows(max(start - 3, 0) + 1)
        gateway.kill()
        gateway.start()
    rows = gateway.await_rows(total - 4)
    assert [end // 60_000_000 - 1000 for end in sorted(rows)] == list(range(3, total - 1))


def test_what_is_in_the_platform_is_not_predicted_again_after_a_kill_before_the_state(gateway: Gateway) -> None:
    """Its spool knows that the platform has the rows; the streams' state is of before, and the readings come again."""
    release = make_release()
    gateway.desire(release)
    gateway.start()
    gateway.await_running(release)
    state = gateway.config.parent / "state" / "streams.msgpack"
    gateway.send([payload(range(s, s + 1)) for s in range(10)])
    gateway.await_rows(6)
    assert gateway.kill(signal.SIGTERM) == 0
    before = state.read_bytes()
    gateway.start()
    gateway.send([payload(range(s, s + 1)) for s in range(10, 20)])
    gateway.await_rows(16)
    assert gateway.kill(signal.SIGTERM) == 0
    state.write_bytes(before)
    asyncio.run(_deliver_all_again(gateway.settings, gateway.target))
    gateway.start()
    gateway.send([payload(range(s, s + 1)) for s in range(20, 24)])
    gateway.await_rows(20)
    assert sum(len(message.columns()[0]) for message in gateway.predictions()) == 20


def test_a_consumer_made_anew_is_read_on(gateway: Gateway) -> None:
    """The platform makes it anew when the target's devices change."""
    release = make_release()
    gateway.desire(release)
    gateway.start()
    gateway.await_running(release)
    gateway.send([payload(range(s, s + 1)) for s in range(10)])
    gateway.await_rows(6)
    asyncio.run(_remove_consumer(gateway.settings, gateway.target))
    enrol(gateway.settings, gateway.target)
    gateway.send([payload(range(s, s + 1)) for s in range(10, 20)])
    gateway.await_rows(16)


def test_readings_wait_for_the_first_release(gateway: Gateway) -> None:
    """What was sent before there was a release is scored once there is one."""
    gateway.start()
    gateway.await_report(lambda report: report.running is None)
    gateway.send([payload(range(STEPS))])
    gateway.desire(make_release())
    assert len(gateway.await_rows(LAST - 3)) == LAST - 3


def test_bad_messages_are_counted_and_scoring_goes_on(gateway: Gateway) -> None:
    """Neither text, nor wrong types, nor binary stops an agent."""
    release = make_release()
    gateway.desire(release)
    gateway.start()
    gateway.await_running(release)
    bad = [b"nonsense", b'[{"t": "x", "w": {}}]', b"\xff\x00", b"[]"]
    gateway.send([payload(range(10)), *bad, payload(range(10, 20))])
    gateway.await_rows(16)
    assert gateway.await_report(lambda report: report.errors >= 3).scored == 16


def test_windows_go_on_over_a_change_of_release(gateway: Gateway) -> None:
    """The new release wants the same windows, so the past of the device is kept."""
    first, second = make_release(model="switch", version=1), make_release(model="switch", version=2, bias=5.0)
    gateway.desire(first)
    gateway.start()
    gateway.await_running(first)
    gateway.send([payload(range(10))])
    gateway.await_rows(6)
    gateway.desire(second)
    gateway.await_running(second)
    gateway.send([payload(range(10, 20))])
    rows = gateway.await_rows(16)
    values = [rows[end][0] for end in sorted(rows)]
    np.testing.assert_allclose(values[:6], mean_of_windows(range(3, 9)), rtol=1e-6)
    np.testing.assert_allclose(values[6:], mean_of_windows(range(9, 19), 5.0), rtol=1e-6)


def test_a_release_with_other_outputs_is_refused_and_the_old_one_goes_on(gateway: Gateway) -> None:
    """The canary decides before the switch, and the report gives the reason."""
    good, bad = make_release(model="canary", version=1), make_release(model="canary", version=2, answer=1.0)
    gateway.desire(good)
    gateway.start()
    gateway.await_running(good)
    gateway.desire(bad)
    report = gateway.await_report(lambda r: r.refused and r.attempted == bad.digest)
    assert "canary" in (report.error or "")
    assert report.running is not None
    assert report.running.release == good.digest
    gateway.send([payload(range(10))])
    assert {message.release for message in _await(gateway, 6)} == {good.digest}


def test_a_tampered_file_in_the_mirror_is_refused(gateway: Gateway) -> None:
    """Signed metadata gives each file's hash: other bytes never get as far as the runtime."""
    good, bad = make_release(model="tamper", version=1), make_release(model="tamper", version=2, bias=2.0)
    gateway.desire(good)
    gateway.start()
    gateway.await_running(good)
    gateway.kill(signal.SIGTERM)
    gateway.desire(bad)
    asyncio.run(_tamper(gateway.settings, "graph.onnx", bad.graph))
    gateway.start()
    report = gateway.await_report(lambda r: r.refused and r.attempted == bad.digest)
    assert "not trusted" in (report.error or "")
    assert report.running is not None
    assert report.running.release == good.digest


def test_attacks_on_metadata_are_refused_one_after_the_other_and_the_model_goes_on(gateway: Gateway) -> None:
    """Broken, foreign, endless: it scores on with what runs, and follows once the mirror is mended."""
    good, wanted = make_release(model="attacked", version=1), make_release(model="attacked", version=2, bias=2.0)
    gateway.desire(good)
    gateway.start()
    gateway.await_running(good)
    published = releases.publish(gateway.settings, wanted)
    for metadata, reason in (b"{", "Deserialization"), (_forged(), "UnsignedMetadata"), (bytes(20_000), "longer than"):
        asyncio.run(_put_timestamp(gateway.settings, metadata))
        gateway.order(Desired(published.digest, published.manifest, time.time_ns() // 1000, "test"))
        report = gateway.await_report(partial(_refused_for, reason))
        assert report.running is not None
        assert report.running.release == good.digest
    gateway.send([payload(range(10))])
    assert {message.release for message in _await(gateway, 6)} == {good.digest}
    gateway.desire(wanted)  # publishing again mends the mirror
    gateway.await_running(wanted)


def test_a_release_damaged_on_disk_is_not_run_but_fetched_again(gateway: Gateway) -> None:
    """What is on disk is checked against its digest at every start."""
    release = make_release()
    gateway.desire(release)
    gateway.start()
    gateway.await_running(release)
    gateway.kill()
    graph = gateway.config.parent / "state" / "releases" / release.digest / "graph.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\x00")
    gateway.start()
    gateway.send([payload(range(10))])
    gateway.await_rows(6)
    assert "on disk is refused" in gateway.log
    assert graph.read_bytes() == release.graph


def test_without_a_broker_it_loads_what_it_has_and_waits(gateway: Gateway) -> None:
    """An agent that starts while the platform is away is ready when it comes back."""
    release = make_release()
    gateway.desire(release)
    gateway.start()
    gateway.await_running(release)
    gateway.kill()
    config = gateway.config.read_text()
    gateway.config.write_text(config.replace(gateway.settings.nats_endpoint, "tls://127.0.0.1:1"))
    gateway.start()
    poll(lambda: True if "from disk" in gateway.log and "broker: " in gateway.log else None, lambda: gateway.log)
    assert gateway.kill(signal.SIGTERM) == 0


def test_broker_killed_and_started_again(free_settings: Callable[..., Settings], store: Settings) -> None:
    """The agent connects again by itself, and no window is lost."""
    settings = free_settings(store_url=store.store_endpoint, secrets_dir=store.secrets)
    make_authority(settings)
    start_stack(settings, PLATFORM, [broker_spec(settings), signer.spec(settings)])
    prepare_broker(settings)
    gateway, release = enrol(settings, "gw-away"), make_release()
    gateway.desire(release)
    stop_stack(settings, PLATFORM)
    server = _start_broker(settings)
    try:
        gateway.start()
        gateway.await_running(release)
        for start in (0, 200):
            gateway.send([payload(range(s, s + 1)) for s in range(start, start + 200)])
            gateway.await_rows(start + 50)
            server = _restart_broker(server, settings)
        rows = gateway.await_rows(396)
        assert [end // 60_000_000 - 1000 for end in sorted(rows)] == list(range(3, 399))
    finally:
        gateway.stop()
        server.kill()
        server.wait(20)


def test_configuration_that_is_none_stops_with_a_clear_line(gateway: Gateway) -> None:
    """Exit code 2 and the name of the file."""
    gateway.config.write_text('{"target": 1}')
    gateway.start()
    assert gateway._process is not None
    assert gateway._process.wait(20) == 2
    assert "enrol the target again" in gateway.log


def test_configuration_and_key_are_private(gateway: Gateway) -> None:
    """Files that name or hold secrets are for their owner alone."""
    folder = gateway.config.parent
    fresh = enrol(gateway.settings, gateway.target)
    assert stat.S_IMODE(fresh.config.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_agent_has_no_more_rights_than_it_needs(gateway: Gateway) -> None:
    """Its certificate opens its own desired state, reports and predictions, and nothing of another target."""
    other = enrol(gateway.settings, f"{gateway.target}-b")
    asyncio.run(_try_rights(gateway, other.target, other.device))


def test_agent_imports_nothing_of_the_platform() -> None:
    """A gateway has neither the room nor the need."""
    services = ["deltalake", "great_expectations", "minio", "mlflow", "nats", "prefect"]
    libraries = ["cryptography", "onnx", "paho", "pandas", "polars", "pydantic", "sklearn", "spox", "tuf", "xgboost"]
    heavy = [*services, *libraries]
    code = f"import sys, fieldloop.edge.agent, fieldloop.edge.main; print([m for m in {heavy!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def _await(gateway: Gateway, rows: int) -> list[Predictions]:
    gateway.await_rows(rows)
    return gateway.predictions()


def _start_broker(settings: Settings) -> subprocess.Popen[bytes]:
    spec = broker_spec(settings)
    server = subprocess.Popen(spec.argv, cwd=spec.cwd, stderr=subprocess.DEVNULL)
    poll(lambda: answers(spec.ready) or None, lambda: "the broker does not answer")
    return server


def _restart_broker(server: subprocess.Popen[bytes], settings: Settings) -> subprocess.Popen[bytes]:
    server.kill()
    server.wait(20)
    return _start_broker(settings)


async def _deliver_all_again(settings: Settings, target: str) -> None:
    """Put a consumer that begins with the stream's first message in the place of the target's."""
    async with broker.platform(settings) as (_, js):
        config = (await js.consumer_info("readings", target)).config
        await js.delete_consumer("readings", target)
        config.deliver_policy = DeliverPolicy.ALL
        await js.add_consumer("readings", config)


async def _remove_consumer(settings: Settings, target: str) -> None:
    async with broker.platform(settings) as (_, js):
        await js.delete_consumer("readings", target)


def _refused_for(reason: str, report: Reported) -> bool:
    return report.refused and reason in (report.error or "")


def _forged() -> bytes:
    """Return a timestamp signed by a key that is none of the install's."""
    metadata = Metadata(Timestamp(version=1_000_000, expires=datetime.now(UTC) + timedelta(days=1)))
    metadata.sign(CryptoSigner.generate_ed25519())
    return metadata.to_bytes()


async def _put_timestamp(settings: Settings, data: bytes) -> None:
    async with broker.platform(settings) as (_, js):
        await js.publish("$KV.releases.metadata/timestamp.json.0", data)


async def _tamper(settings: Settings, name: str, data: bytes) -> None:
    """Overwrite one file in the mirror, as somebody with write access to the broker could."""
    assert len(data) < CHUNK_BYTES
    async with broker.platform(settings) as (_, js):
        info = await js.stream_info("KV_releases", subjects_filter=">")
        subjects = [s for s in info.state.subjects or {} if s.endswith(f"{name}.0")]
        for subject in subjects:
            if (await js.get_msg("KV_releases", subject=subject, direct=True)).data == data:
                await js.publish(subject, data[:-1] + bytes([data[-1] ^ 1]))


async def _try_rights(gateway: Gateway, other: str, device: str) -> None:
    certificate = gateway.settings.certificate("target", gateway.target)
    client = await broker.connect(gateway.settings, certificate, "test")
    client._inbox_prefix = bytearray(f"_INBOX.{gateway.target}".encode())
    try:
        await client.request(f"$JS.API.DIRECT.GET.KV_desired.$KV.desired.{gateway.target}", timeout=2)
        for subject in (
            f"$JS.API.DIRECT.GET.KV_desired.$KV.desired.{other}",
            f"$JS.API.CONSUMER.MSG.NEXT.readings.{other}",
            "$JS.API.STREAM.INFO.readings",
            f"$KV.desired.{gateway.target}",
            f"$KV.reported.{other}",
            f"predictions.{other}",
            f"devices.{device}.readings",
            "$KV.releases.metadata/timestamp.json.0",
        ):
            await _refused(client, subject)
    finally:
        await client.close()


async def _refused(client: Client, subject: str) -> None:
    with pytest.raises((nats.errors.Error, TimeoutError)):
        await client.request(subject, b"x", timeout=0.3)
