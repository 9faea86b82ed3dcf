"""What an agent does about a release that misbehaves, and what it says of the one that runs."""

import asyncio
import json
import resource

import msgspec
import numpy as np
import pytest

from fieldloop.domain import alerts
from fieldloop.domain.alerts import Alert, Limits
from fieldloop.domain.errors import ServiceError
from fieldloop.domain.release import CHUNK_BYTES, Budget
from fieldloop.domain.rollout import NOTHING, Desired
from fieldloop.edge import download, model, updater
from fieldloop.edge.download import Job
from fieldloop.edge.scorer import Windows
from fieldloop.edge.serving import Serving
from fieldloop.edge.slots import Slots, State
from fieldloop.stores import broker, releases
from tests.edge.targets import Gateway, make_release, payload, poll


def test_a_release_that_fails_on_live_windows_is_left_for_the_one_before(gateway: Gateway) -> None:
    """Its canary passes. The windows it failed on are scored by the release before, none is lost."""
    good, bad = make_release(model="live"), make_release(model="live", version=2, fails_above=9.0)
    gateway.desire(good)
    gateway.start()
    gateway.await_running(good)
    gateway.desire(bad)
    gateway.await_running(bad)
    gateway.send([payload(range(100))])
    report = gateway.await_report(lambda r: r.reverted is not None)
    assert report.running is not None
    assert report.running.release == good.digest
    assert report.reverted is not None
    assert report.reverted.release == bad.digest
    assert "failed on 3 batches in turn" in report.reverted.reason
    assert report.refused
    assert len(gateway.await_rows(96)) == 96
    gateway.kill()
    gateway.start()  # the same order is not followed again
    gateway.send([payload(range(100, 110))])
    gateway.await_rows(106)
    assert gateway.await_report(lambda r: r.refused and r.scored >= 10).attempted == bad.digest


def test_a_release_that_brings_the_agent_down_is_left(gateway: Gateway) -> None:
    """So many starts in turn with it, none of which lasts."""
    good, bad = make_release(model="crash"), make_release(model="crash", version=2, bias=1.0)
    gateway.configure(crashes=2, healthy_s=600.0)
    gateway.desire(good)
    gateway.start()
    gateway.await_running(good)
    gateway.desire(bad)
    gateway.await_running(bad)
    for start in (2, 3):
        gateway.kill()
        gateway.start()
        poll(lambda start=start: True if gateway.log.count("connected to") == start else None, lambda: gateway.log)
    report = gateway.await_report(lambda r: r.reverted is not None)
    assert report.running is not None
    assert report.running.release == good.digest
    assert "crash loop" in (report.error or "")


def test_on_a_full_disk_it_scores_on_and_loses_nothing(gateway: Gateway) -> None:
    """The process's own limit on the size of files stands for a full disk: no file may grow, old or new."""
    first, second = make_release(model="full"), make_release(model="full", version=2, bias=1.0)
    gateway.desire(first)
    gateway.start()
    gateway.await_running(first)
    gateway.send([payload(range(10))])
    gateway.await_rows(6)
    gateway.limit_files(0)
    gateway.desire(second)
    report = gateway.await_report(lambda r: r.attempted == second.digest and r.error is not None)
    assert not report.refused
    assert report.running is not None
    assert report.running.release == first.digest
    gateway.send([payload(range(10, 20))])
    gateway.await_rows(16)
    gateway.limit_files(resource.RLIM_INFINITY)
    gateway.await_running(second)
    gateway.send([payload(range(20, 30))])
    rows = gateway.await_rows(26)
    assert [end // 60_000_000 - 1000 for end in sorted(rows)] == list(range(3, 29))


@pytest.mark.parametrize(
    ("budget", "reason"),
    [(Budget(memory_bytes=1 << 20), "memory over budget"), (Budget(latency_s=1e-9), "latency over budget")],
)
def test_a_release_over_its_budget_is_refused_before_the_switch(gateway: Gateway, budget: Budget, reason: str) -> None:
    """It is tried to the side; what runs is not touched."""
    good = make_release(model=f"budget-{len(reason)}")
    bad = make_release(model=f"budget-{len(reason)}", version=2, bias=1.0, budget=budget)
    gateway.desire(good)
    gateway.start()
    gateway.await_running(good)
    gateway.desire(bad)
    report = gateway.await_report(lambda r: r.refused)
    assert reason in (report.error or "")
    assert report.running is not None
    assert report.running.release == good.digest


def test_a_shadow_runs_on_the_same_windows_and_publishes_nothing(gateway: Gateway) -> None:
    """The report says how far it lies from what was published; a shadow that is none leaves the release alone."""
    champion, challenger = make_release(model="shadow"), make_release(model="shadow", version=2, bias=2.0)
    published = [releases.publish(gateway.settings, each) for each in (champion, challenger)]
    order = Desired(champion.digest, published[0].manifest, 1, "test", challenger.digest, published[1].manifest)
    gateway.order(order)
    gateway.start()
    gateway.await_report(lambda r: r.shadow is not None and r.shadow.proof is not None)
    gateway.send([payload(range(20))])
    report = gateway.await_report(lambda r: r.shadow is not None and r.shadow.windows == 16)
    assert report.shadow is not None
    assert report.shadow.gaps.quantile(0.5) == pytest.approx(2.0, rel=0.03)
    assert {message.release for message in gateway.predictions()} == {champion.digest}
    assert report.served is not None
    assert report.served.windows == 16
    assert report.served.latency.count >= 1
    assert set(report.inputs) == {"wind", "pitch"}
    gateway.order(msgspec.structs.replace(order, shadow="0" * 64, shadow_manifest="releases/none/1/manifest.json"))
    report = gateway.await_report(lambda r: r.shadow is not None and r.shadow.error is not None)
    assert report.running is not None
    assert report.running.release == champion.digest


def test_nothing_desired_stops_scoring(gateway: Gateway) -> None:
    """As before the first release."""
    release = make_release(model="nothing")
    gateway.desire(release)
    gateway.start()
    gateway.await_running(release)
    gateway.order(Desired(NOTHING, "", 2, "test"))
    gateway.await_report(lambda r: r.running is None and r.answers_us == 2)
    assert Slots(gateway.config.parent / "state").state.current is None


def test_predictions_beyond_a_limit_are_alerts_and_the_endpoint_counts(gateway: Gateway) -> None:
    """On `alerts.<target>`, with the limit; health is 503 until a release runs well, metrics are Prometheus' text.

    Those behind the first within the hold are no new alerts.
    """
    release = make_release(model="alert", alerts=Limits(below=None, above=1.0, hold_us=90_000_000))
    gateway.start()
    poll(lambda: True if "connected to" in gateway.log else None, lambda: gateway.log)
    gateway.desire(release)
    gateway.await_running(release)
    gateway.send([payload(range(20))])
    rows = gateway.await_rows(16)
    beyond = {end: value for end, (value, _) in rows.items() if value > 1.0}
    found = poll(lambda: _alerts(gateway) or None, lambda: gateway.log)
    assert len(beyond) > 1
    assert [(alert.end_us, alert.value) for alert in found] == [((min(beyond),), (beyond[min(beyond)],))]
    assert (found[0].metric, found[0].unit, found[0].beyond, found[0].limit) == ("power", "kW", "above", 1.0)
    status, body = gateway.ask("/health")
    assert (status, json.loads(body)["release"]) == (200, release.digest)
    text = gateway.ask("/metrics")[1].decode()
    assert "fieldloop_agent_windows_total 16\n" in text
    assert f'release="{release.digest}"' in text
    assert 'fieldloop_agent_latency_seconds{quantile="0.99"}' in text
    assert gateway.ask("/else")[0] == 404


def test_a_download_goes_on_where_it_was_cut_off(gateway: Gateway) -> None:
    """Chunk by chunk; what has come is not asked for again."""
    release = make_release(model="resume")
    big = bytes(range(256)) * (3 * CHUNK_BYTES // 256)
    settings, folder = gateway.settings, gateway.config.parent / "by-hand"
    published = releases.publish(settings, release)
    mirror = {**asyncio.run(_mirror(gateway)), **{f"targets/big.{n}": big[:CHUNK_BYTES] for n in range(3)}}
    desired = Desired(published.digest, published.manifest, 0, "test")
    folder.mkdir()
    asked: list[str] = []

    def read(key: str) -> bytes | None:
        asked.append(key)
        if "canary" in key and len(asked) < 20:
            raise ServiceError("cut off")
        return mirror.get(key)

    root, chunks = releases.trusted_root(settings), folder / "incoming" / "chunks"
    assert [updater._resumed(read, f"targets/big.{n}", chunks) for n in range(3)] == [big[:CHUNK_BYTES]] * 3
    assert [updater._resumed(read, f"targets/big.{n}", chunks) for n in range(3)] == [big[:CHUNK_BYTES]] * 3
    assert asked == [f"targets/big.{n}" for n in range(3)]
    with pytest.raises(ServiceError, match="cut off"):
        updater.fetch(read, root, folder / "tuf", folder / "incoming", desired)
    before = len(asked)
    asked.extend([""] * 20)
    assert updater.fetch(read, root, folder / "tuf", folder / "incoming", desired) == release
    again = [key for key in asked[before + 20 :] if key.startswith("targets/")]
    assert all("canary" in key for key in again)


def test_a_download_keeps_to_its_pace(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """It pauses as long as all that came may take."""
    published = releases.publish(gateway.settings, make_release(model="pace"))
    mirror, came, paused, sleep = asyncio.run(_mirror(gateway)), [0], [0.0], asyncio.sleep
    (gateway.config.parent / "root.json").write_bytes(releases.trusted_root(gateway.settings))

    async def read(key: str) -> bytes | None:
        came[0] += len(mirror.get(key, b""))
        return mirror.get(key)

    async def pause(seconds: float) -> None:
        paused[0] += seconds
        await sleep(0)

    folder, desired = gateway.config.parent, Desired(published.digest, published.manifest, 0, "test")
    job = Job(str(folder / "root.json"), str(folder / "tuf"), {}, desired, str(folder / "staging"), str(folder / "all"))
    monkeypatch.setattr(asyncio, "sleep", pause)
    asyncio.run(download.fetch(job, read, 1000))
    assert came[0] / 1000 <= paused[0] < came[0] / 1000 + 1


@pytest.mark.parametrize(
    ("budget", "reason"),
    [(Budget(memory_bytes=1 << 20), "memory over budget"), (Budget(latency_s=1e-9), "latency over budget")],
)
def test_a_release_that_grows_or_slows_after_the_switch_is_left(budget: Budget, reason: str) -> None:
    """Not at the first look, and not before there are enough windows to say so."""
    serving, window = Serving(), np.zeros((1, 2, 3), dtype=np.float32)
    serving.run(model.load(make_release(budget=budget)), State())
    assert serving.breach() is None
    for _ in range(100):
        serving.predict(Windows([("d", 1)], np.zeros(1, dtype=np.int64), window, 0, 0.0))
    looks = [serving.breach() for _ in range(3)]
    assert reason in (looks[-1] or "")


def _alerts(gateway: Gateway) -> list[Alert]:
    async def read() -> list[Alert]:
        async with broker.platform(gateway.settings) as (_, js):
            subject = f"alerts.{gateway.target}"
            count = ((await js.stream_info("alerts", subjects_filter=subject)).state.subjects or {}).get(subject, 0)
            reader = await js.subscribe(subject, stream="alerts", ordered_consumer=True)
            return [alerts.decode((await reader.next_msg(5)).data) for _ in range(count)]

    return asyncio.run(read())


async def _mirror(gateway: Gateway) -> dict[str, bytes]:
    async with broker.platform(gateway.settings) as (_, js):
        info = await js.stream_info("KV_releases", subjects_filter=">")
        found = {}
        for subject in info.state.subjects or {}:
            message = await js.get_msg("KV_releases", subject=subject, direct=True)
            found[subject.removeprefix("$KV.releases.")] = message.data or b""
        return found
