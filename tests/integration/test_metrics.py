"""Metrics and probes tell what really happened, over real HTTP."""

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench.servers import free_port
from cli import metrics
from server.app import Running
from tests.integration.clock import Clock, due
from tests.integration.conftest import Connect, Declare, Until
from tests.plain import NO_TLS
from wire.version import __version__

pytestmark = pytest.mark.anyio

DUE = due()


@pytest.fixture
def listen() -> str:
    return f"127.0.0.1:{free_port()}"


async def scraped(listen: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample: its value by its name and labels."""
    async with httpx.AsyncClient(trust_env=False, verify=NO_TLS) as client:
        answer = (await client.get(f"http://{listen}/metrics")).raise_for_status()
    families = list(text_string_to_metric_families(answer.text))
    assert [family.name for family in families if not family.documentation] == []
    return {(it.name, tuple(sorted(it.labels.items()))): it.value for family in families for it in family.samples}


async def test_the_first_end_of_a_kind_can_be_seen_to_be_new(server: Running, listen: str) -> None:
    """Prometheus' increase() sees no increase in the first value of a series."""
    async with metrics.serving(listen, server.parts.registry, metrics.always_ready):
        found = await scraped(listen)
    for kind in ("backup", "forget", "prune", "check", "unlock", "verify", "restore"):
        for status in ("failed", "timed_out", "warning", "interrupted"):
            assert found["lamplighter_jobs_total", (("kind", kind), ("status", status))] == 0


async def test_a_server_tells_what_happened_and_how_it_stands(
    server: Running, api: httpx.AsyncClient, declare: Declare, connect: Connect, until: Until, clock: Clock, listen: str
) -> None:
    schedule_id = await declare("etc")
    await declare("off", suspend=True)
    async with (
        metrics.serving(listen, server.parts.registry, metrics.always_ready),
        connect() as agent,
        connect("gone") as gone,
    ):
        await agent.follow()
        await gone.follow()
        await gone.socket.close()
        await agent.say("schedule.fire", schedule_id=schedule_id, scheduled_at=DUE, missed=3)
        job_id = (await agent.hears("command.run"))["job_id"]
        await agent.say("schedule.fire", schedule_id="nothing", scheduled_at=DUE)
        assert (await agent.hears("schedule.refused"))["reason"] == "NotFound"
        await agent.say("job.accepted", job_id=job_id)
        ended = clock()
        end: dict[str, Any] = {
            "started_at": ended.isoformat(),
            "finished_at": ended.isoformat(),
            "bytes_processed": 1000,
        }
        await agent.say("job.finished", job_id=job_id, status="succeeded", bytes_added=10, **end)
        await agent.hears("job.confirmed")

        async def settled() -> Any:
            found = await scraped(listen)
            settled = found["lamplighter_hosts_connected", ()] == 1 and found["lamplighter_store_queue_length", ()] == 0
            return found if settled and not found["lamplighter_store_commit_running_seconds", ()] else None

        found = await until(settled)
    kind = (("kind", "backup"), ("status", "succeeded"))
    whose = (("host", "node-1"), ("namespace", "ns"), ("schedule", "etc"))
    without = (("host", "gone"), *whose[1:])
    known = datetime.fromisoformat((await api.get("/hosts/gone")).json()["created_at"])
    told = {key: it for key, it in found.items() if "created" not in key[0] and "bucket" not in key[0]}
    from_the_start = {"lamplighter_jobs_total", *(f"lamplighter_job_duration_seconds_{it}" for it in ("sum", "count"))}
    assert {key: it for key, it in told.items() if it or key[0] not in from_the_start} == {
        ("lamplighter_jobs_total", kind): 1,
        ("lamplighter_job_attempts_total", kind): 1,
        ("lamplighter_job_duration_seconds_count", kind[:1]): 1,
        ("lamplighter_backup_added_bytes_total", ()): 10,
        ("lamplighter_backup_processed_bytes_total", ()): 1000,
        ("lamplighter_fires_total", (("result", "Recorded"),)): 1,
        ("lamplighter_fires_total", (("result", "NotFound"),)): 1,
        ("lamplighter_missed_runs_total", ()): 3,
        ("lamplighter_fire_lateness_seconds_count", ()): 0,
        ("lamplighter_fire_lateness_seconds_sum", ()): 0,
        ("lamplighter_push_ack_seconds_count", ()): 2,
        ("lamplighter_push_ack_seconds_sum", ()): found["lamplighter_push_ack_seconds_sum", ()],
        ("lamplighter_build_info", (("version", __version__),)): 1,
        ("lamplighter_hosts", ()): 2,
        ("lamplighter_hosts_connected", ()): 1,
        ("lamplighter_hosts_in_sync", ()): 2,
        ("lamplighter_schedules", ()): 2,
        ("lamplighter_jobs_open", ()): 0,
        ("lamplighter_jobs_waiting", ()): 0,
        ("lamplighter_store_queue_length", ()): 0,
        ("lamplighter_store_failing", ()): 0,
        ("lamplighter_store_commit_seconds_count", ()): found["lamplighter_store_commit_seconds_count", ()],
        ("lamplighter_store_commit_seconds_sum", ()): found["lamplighter_store_commit_seconds_sum", ()],
        ("lamplighter_store_commit_running_seconds", ()): 0,
        ("lamplighter_schedule_disabled", (("namespace", "ns"), ("schedule", "off"))): 1,
        ("lamplighter_server_leads", ()): 1,
        ("lamplighter_last_success_timestamp_seconds", whose): pytest.approx(ended.timestamp(), abs=0.001),
        ("lamplighter_last_success_timestamp_seconds", without): pytest.approx(known.timestamp(), abs=0.001),
        ("lamplighter_success_within_seconds", whose[1:]): 2 * 86400,
        ("lamplighter_overdue_hosts", whose[1:]): 0,
        ("lamplighter_failed_hosts", whose[1:]): 0,
        ("lamplighter_incomplete_hosts", whose[1:]): 0,
        ("lamplighter_hosts_without_schedules", ()): 0,
        ("lamplighter_hosts_without_backup", ()): 0,
        ("lamplighter_repositories_never_verified", ()): 1,
        ("lamplighter_overdue", ()): 0,
        ("lamplighter_schedules_without_hosts", ()): 0,
        ("lamplighter_jobs_hanging", ()): 0,
    }


async def test_of_very_many_pairs_those_that_are_overdue_first_are_told(
    server: Running, declare: Declare, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.observe.state.MAX_SERIES", 1)
    await declare("srv")
    schedule_id = await declare("etc")
    async with connect() as agent:
        await agent.follow()
        await agent.say("schedule.fire", schedule_id=schedule_id, scheduled_at=DUE)
        job_id = (await agent.hears("command.run"))["job_id"]
        await agent.say("job.accepted", job_id=job_id)
        ended = datetime.now(UTC).isoformat()
        await agent.say("job.finished", job_id=job_id, status="succeeded", finished_at=ended)
        await agent.hears("job.confirmed")
        families = {it.name: it for it in server.parts.registry.collect()}
    told = families["lamplighter_last_success_timestamp_seconds"].samples
    assert [it.labels["schedule"] for it in told] == ["srv"]


async def test_a_part_is_probed(server: Running, listen: str) -> None:
    waits_for = ["the moon"]

    async def ready() -> str:
        return waits_for[0]

    async with (
        metrics.serving(listen, server.parts.registry, ready),
        httpx.AsyncClient(base_url=f"http://{listen}", trust_env=False, verify=NO_TLS) as client,
    ):
        alive, not_yet = await client.get("/healthz"), await client.get("/readyz")
        waits_for[0] = ""
        assert (await client.get("/readyz")).text == "ok\n"
        assert (await client.get("/elsewhere")).status_code == 404
    assert (alive.status_code, not_yet.status_code, not_yet.text) == (200, 503, "the moon\n")
