"""A failed run is tried again as one job with several attempts; a run past its deadline does not start."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from server.access.identity import Files
from server.access.vault import Vault
from server.app import assemble
from server.jobs.waiting import waits_for
from server.store import queue
from server.store.engine import Store
from server.store.jobs import get_job, list_attempts
from server.store.ownership import probe
from server.store.tables import Actor
from tests.integration.conftest import join
from wire.messages import CommandRun, JobEnd, JobFinished

pytestmark = pytest.mark.anyio

ME = Actor("user", "me")
NOON = datetime(2026, 3, 29, 12, tzinfo=UTC)


class World:
    """A control plane on a store, with a clock that is set by hand and hosts that hear all they are told."""

    def __init__(self, store: Store, vault: Vault) -> None:
        self.store, self.vault, self.now, self.ids = store, vault, NOON, 0
        self.heard: list[Any] = []
        self.parts: Any = None
        self.services: Any = None

    async def restart(self) -> None:
        if self.parts is not None:
            self.services.dispatcher.close()
        self.parts = assemble(self.store, self.vault, lambda: self.now, self.new_id, Files("admin", "agent"))
        self.services = self.parts.services
        await self.parts.loader.load(self.store, self.vault)
        await join(self.parts)
        self.jobs = self.services.dispatcher
        hub = self.services.hub
        hub.deliver = lambda host, effects: self.heard.extend(it for effect in effects for it in effect.messages)

    def new_id(self) -> str:
        self.ids += 1
        return f"id{self.ids}"

    async def settled(self) -> None:
        """What was begun is stored, and what follows from it too."""
        for _ in range(5):
            await self.store.write(probe, self.now)

    async def passes(self, **time: Any) -> None:
        self.now += timedelta(**time)
        self.jobs.advance()
        await self.settled()

    async def runs(self) -> Any:
        [row] = await self.services.runs.run_now(ME, "ns", "etc", None)
        return row["id"]

    async def ends(self, wire_id: str, status: JobEnd, **more: Any) -> None:
        await self.parts.reports.finish("a", [JobFinished(wire_id, status, self.now, **more)])
        await self.settled()

    async def job(self, job_id: str) -> tuple[Any, Any, list[Any]]:
        row = await self.store.read(get_job, job_id)
        assert row is not None
        attempts = await self.store.read(list_attempts, job_id)
        return row["status"], row["attempt"], [it["status"] for it in attempts]

    async def waits_for(self, job_id: str) -> str:
        row = await self.store.read(get_job, job_id)
        assert row is not None
        [wait] = await self.store.read(queue.waits, [job_id])
        return waits_for(row, wait, "ns/main", self.now)

    @property
    def sent(self) -> list[Any]:
        return [it.job_id for it in self.heard if isinstance(it, CommandRun)]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[World]]]:
    """Makes a world with a host, a repository and a schedule."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(*, online: bool = True, **spec: Any) -> World:
            store = Store.open(tmp_path / "lamplighter.db")
            world = World(store, Vault([Vault.new_key()]))
            await world.restart()
            stack.push_async_callback(store.close)
            stack.callback(lambda: world.jobs.close())  # noqa: PLW0108 - those of the last restart
            metadata = {"namespace": "ns", "name": "main"}
            await world.services.repositories.put(ME, {"metadata": metadata, "spec": {"url": "/backup"}})
            spec = {"kind": "backup", "cron": "0 2 * * *", "backup": {"paths": ["/etc"]}, **spec}
            spec["repositoryRef"] = {"name": "main"}
            await world.services.schedules.put(ME, {"metadata": {"namespace": "ns", "name": "etc"}, "spec": spec})
            await world.services.hosts.put(ME, "a", {})
            if online:
                world.jobs.connected("a", ())
            return world

        yield make


RETRY = {"retry": {"limit": 2, "backoffSeconds": 60}}


async def test_a_run_that_failed_is_tried_again_later_and_later_until_its_attempts_are_used_up(
    make: Callable[..., Awaitable[World]],
) -> None:
    world = await make(**RETRY)
    job_id = await world.runs()
    await world.ends(job_id, "failed")
    assert await world.job(job_id) == ("pending", 2, ["failed"])
    assert await world.waits_for(job_id) == "retry at 2026-03-29T12:01:00Z"
    await world.passes(seconds=59)
    assert world.sent == [job_id]
    await world.passes(seconds=1)
    assert world.sent == [job_id, f"{job_id}.2"]
    await world.ends(f"{job_id}.2", "timed_out")
    await world.passes(seconds=119)
    assert len(world.sent) == 2
    await world.passes(seconds=1)
    await world.ends(f"{job_id}.3", "failed", error="still", exit_code=1)
    assert await world.job(job_id) == ("failed", 3, ["failed", "timed_out"])
    row = await world.store.read(get_job, job_id)
    assert row is not None
    assert (row["error"], row["exit_code"]) == ("still", 1)


async def test_the_last_of_many_retries_comes_a_day_after_the_one_before_it(
    make: Callable[..., Awaitable[World]],
) -> None:
    """Doubled that often, the pause is longer than any calendar."""
    world = await make(retry={"limit": 32, "backoffSeconds": 86400})
    job_id = await world.runs()
    await world.ends(job_id, "failed")
    for attempt in range(2, 33):
        await world.passes(days=1)
        await world.ends(f"{job_id}.{attempt}", "failed")
    await world.restart()
    world.jobs.connected("a", ())
    await world.passes(days=1)
    assert world.sent[-1] == f"{job_id}.33"
    await world.ends(f"{job_id}.33", "failed")
    assert (await world.job(job_id))[:2] == ("failed", 33)


NIGHT = {"windows": [{"from": "22:00", "to": "06:00"}]}


async def test_a_run_outside_the_windows_waits_over_a_restart_and_begins_once_when_one_opens(
    make: Callable[..., Awaitable[World]],
) -> None:
    world = await make(**NIGHT)
    job_id = await world.runs()
    await world.settled()
    assert await world.waits_for(job_id) == "its window, which opens at 2026-03-29T22:00:00Z"
    await world.restart()
    world.jobs.connected("a", ())
    await world.passes(hours=9, minutes=59)
    assert world.sent == []
    await world.passes(minutes=1)
    assert world.sent == [job_id]
    await world.passes(hours=1)
    assert world.sent == [job_id]


@pytest.mark.parametrize("status", ["succeeded", "warning", "cancelled"])
async def test_what_went_well_or_was_cancelled_is_not_tried_again(
    make: Callable[..., Awaitable[World]], status: JobEnd
) -> None:
    world = await make(**RETRY)
    job_id = await world.runs()
    await world.ends(job_id, status)
    assert await world.job(job_id) == (status, 1, [])


async def test_without_retries_the_first_end_counts(make: Callable[..., Awaitable[World]]) -> None:
    world = await make()
    job_id = await world.runs()
    await world.ends(job_id, "failed")
    assert await world.job(job_id) == ("failed", 1, [])


async def test_the_end_of_an_older_attempt_that_is_told_again_changes_nothing(
    make: Callable[..., Awaitable[World]],
) -> None:
    world = await make(**RETRY)
    job_id = await world.runs()
    await world.ends(job_id, "failed")
    await world.ends(job_id, "failed")
    assert await world.job(job_id) == ("pending", 2, ["failed"])


async def test_backoff_ends_at_a_day(make: Callable[..., Awaitable[World]]) -> None:
    world = await make(retry={"limit": 32, "backoffSeconds": 86400})
    job_id = await world.runs()
    await world.ends(job_id, "failed")
    await world.passes(days=1)
    await world.ends(f"{job_id}.2", "failed")
    assert await world.waits_for(job_id) == "retry at 2026-03-31T12:00:00Z"


async def test_a_retry_survives_a_restart(make: Callable[..., Awaitable[World]]) -> None:
    world = await make(**RETRY)
    job_id = await world.runs()
    await world.ends(job_id, "interrupted")
    await world.restart()
    world.jobs.connected("a", ())
    await world.settled()
    assert world.sent == [job_id]
    await world.passes(minutes=1)
    assert world.sent == [job_id, f"{job_id}.2"]


async def test_a_cancel_ends_all_attempts(make: Callable[..., Awaitable[World]]) -> None:
    world = await make(**RETRY)
    job_id = await world.runs()
    await world.ends(job_id, "failed")
    await world.services.runs.cancel(ME, job_id)
    await world.passes(hours=1)
    assert (await world.job(job_id), world.sent) == (("cancelled", 2, ["failed"]), [job_id])


async def test_a_run_that_is_being_cancelled_is_not_tried_again(make: Callable[..., Awaitable[World]]) -> None:
    world = await make(**RETRY)
    job_id = await world.runs()
    await world.services.runs.cancel(ME, job_id)
    await world.ends(job_id, "interrupted")
    assert await world.job(job_id) == ("interrupted", 1, [])


async def test_a_schedule_that_is_gone_is_not_tried_again(make: Callable[..., Awaitable[World]]) -> None:
    world = await make(**RETRY)
    job_id = await world.runs()
    await world.services.schedules.delete(ME, "ns", "etc")
    await world.ends(job_id, "failed")
    assert await world.job(job_id) == ("failed", 1, [])


# The deadline.


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_job_that_waited_for_longer_than_its_deadline_ends_as_failed(
    make: Callable[..., Awaitable[World]], restarts: bool
) -> None:
    world = await make(online=False, startingDeadlineSeconds=600, **RETRY)
    job_id = await world.runs()
    await world.passes(seconds=599)
    assert await world.job(job_id) == ("pending", 1, [])
    if restarts:
        await world.restart()
    await world.passes(seconds=1)
    row = await world.store.read(get_job, job_id)
    assert row is not None
    assert (row["status"], row["reason"]) == ("failed", "DeadlineExceeded")
    world.jobs.connected("a", ())
    await world.settled()
    assert world.sent == []


async def test_the_deadline_is_for_the_first_attempt_alone(make: Callable[..., Awaitable[World]]) -> None:
    world = await make(startingDeadlineSeconds=30, **RETRY)
    job_id = await world.runs()
    await world.passes(seconds=40)
    await world.ends(job_id, "failed")
    await world.passes(minutes=1)
    assert world.sent == [job_id, f"{job_id}.2"]


# What is known of the repository.


async def test_a_problem_of_a_repository_is_told_until_a_job_goes_well_and_after_a_restart(
    make: Callable[..., Awaitable[World]],
) -> None:
    world = await make(**RETRY)
    repository = world.parts.catalog.repositories["ns", "main"].id
    first = await world.runs()
    await world.ends(first, "failed", reason="WrongPassword", error="wrong password")
    problem = world.services.health.problem(repository)
    assert (problem.reason, problem.message, problem.host, problem.at) == ("WrongPassword", "wrong password", "a", NOON)
    await world.services.runs.cancel(ME, first)
    second = await world.runs()
    await world.ends(second, "failed", reason="Locked")
    await world.passes(minutes=1)
    await world.ends(f"{second}.2", "failed", reason="Locked")
    await world.passes(minutes=2)
    await world.ends(f"{second}.3", "failed", reason="Locked", error="locked by b")
    await world.restart()
    assert world.services.health.problem(repository).message == "locked by b"
    world.jobs.connected("a", ())
    await world.ends(await world.runs(), "succeeded")
    assert world.services.health.problem(repository) is None


async def test_a_failure_of_the_job_alone_is_no_problem_of_its_repository(
    make: Callable[..., Awaitable[World]],
) -> None:
    world = await make()
    await world.ends(await world.runs(), "failed", reason="HookFailed")
    assert world.services.health.problem(world.parts.catalog.repositories["ns", "main"].id) is None
