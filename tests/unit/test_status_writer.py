"""Each status is written once for each change, the latest last, not too often, and again where a write failed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from controller.cluster.kube import Kube as Api
from controller.cluster.kube import KubeError
from controller.cluster.status_writer import StatusWriter
from controller.resources import Key

pytestmark = pytest.mark.anyio

ETC = Key("Schedule", "ns", "etc")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Kube:
    """As much of the API as a writer sees: it can be held up, and can fail."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []
        self.told: list[str] = []
        self.fails: list[int] = []
        self.answers: list[dict[str, Any]] = []
        self.there: dict[str, Any] | None = body({})
        self.open = asyncio.Event()
        self.open.set()
        self.asked = asyncio.Event()

    async def apply_status(self, about: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
        self.asked.set()
        await self.open.wait()
        if self.fails:
            raise KubeError(self.fails.pop(0), "no")
        self.written.append(status)
        return body(status)

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        return self.there

    async def create(self, kind: str, body: dict[str, Any]) -> None:
        self.told.append(body["reason"])


def body(status: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Schedule",
        "metadata": {"name": "etc", "uid": "1"},
        **({} if status is None else {"status": status}),
    }


@pytest.fixture
def kube() -> Kube:
    return Kube()


@asynccontextmanager
async def writing(kube: Kube, interval_s: float = 0.0) -> AsyncIterator[StatusWriter]:
    writer = StatusWriter(cast(Api, kube), lambda: datetime.now(UTC), kube.answers.append, interval_s)
    task = asyncio.create_task(writer.run())
    yield writer
    task.cancel()


async def settled(writer: StatusWriter) -> None:
    async with asyncio.timeout(20):
        while not writer.settled:
            await asyncio.sleep(0)


async def test_what_is_so_already_is_not_written(kube: Kube) -> None:
    async with writing(kube) as writer:
        writer.update_status(ETC, body({"hosts": 1}), {"hosts": 1})
        assert writer.settled


async def test_conditions_of_others_and_their_order_are_no_change(kube: Kube) -> None:
    ready, foreign = {"type": "Ready", "status": "True"}, {"type": "example.org/Audited", "status": "True"}
    stalled = {"type": "Stalled", "status": "True"}
    async with writing(kube) as writer:
        writer.update_status(ETC, body({"conditions": [foreign, stalled, ready]}), {"conditions": [ready, stalled]})
        assert writer.settled
        writer.update_status(ETC, body({"conditions": [ready, foreign, stalled]}), {"conditions": [ready]})
        await settled(writer)
    assert kube.written == [{"conditions": [ready]}]


async def test_only_the_latest_of_what_waits_is_written(kube: Kube) -> None:
    async with writing(kube) as writer:
        about = body()
        for hosts in range(5):
            writer.update_status(ETC, about, {"hosts": hosts})
        await settled(writer)
    assert kube.written == [{"hosts": 4}]
    assert about["status"] == {"hosts": 4}
    assert kube.answers == [body({"hosts": 4})]  # what a watch has yet to tell


async def test_what_changes_during_a_write_is_written_after_it_even_if_it_changes_back(kube: Kube) -> None:
    kube.open.clear()
    async with writing(kube) as writer:
        about = body({"hosts": 0})
        writer.update_status(ETC, about, {"hosts": 1})
        await kube.asked.wait()
        writer.update_status(ETC, about, {"hosts": 0})
        kube.open.set()
        await settled(writer)
    assert kube.written == [{"hosts": 1}, {"hosts": 0}]


async def test_the_next_write_of_an_object_waits_and_that_of_another_does_not(kube: Kube) -> None:
    async with writing(kube, interval_s=3600) as writer:
        about = body()
        writer.update_status(ETC, about, {"hosts": 1})
        await settled(writer)
        writer.update_status(ETC, about, {"hosts": 2})
        writer.update_status(Key("Schedule", "ns", "home"), body(), {"hosts": 3})
        async with asyncio.timeout(20):
            while len(kube.written) < 2:
                await asyncio.sleep(0)
        assert kube.written == [{"hosts": 1}, {"hosts": 3}]
        assert not writer.settled


@pytest.mark.parametrize(("status", "written"), [(0, 1), (429, 1), (500, 1), (403, 0), (409, 1)])
async def test_a_write_that_fails_is_tried_again_where_it_may_succeed(kube: Kube, status: int, written: int) -> None:
    kube.fails = [status]
    async with writing(kube) as writer:
        writer.update_status(ETC, body(), {"hosts": 1})
        await settled(writer)
    assert len(kube.written) == written


async def test_a_status_is_not_written_onto_another_object_with_the_same_name(kube: Kube) -> None:
    for there in (None, body({}) | {"metadata": {"name": "etc", "uid": "2"}}):
        kube.there, kube.fails = there, [409]
        async with writing(kube) as writer:
            writer.update_status(ETC, body(), {"hosts": 1})
            await settled(writer)
    assert kube.written == []


async def test_what_is_gone_is_forgotten(kube: Kube) -> None:
    kube.fails = [500] * 3
    async with writing(kube, interval_s=3600) as writer:
        writer.update_status(ETC, body(), {"hosts": 1})
        await kube.asked.wait()
        writer.forget(ETC)
        assert writer.settled


async def test_an_event_that_cannot_be_posted_does_not_have_a_status_written_twice(
    kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise KubeError(500, "no")

    monkeypatch.setattr(kube, "create", refuse)
    bad = {"type": "Ready", "status": "False", "reason": "Invalid", "message": ""}
    async with writing(kube) as writer:
        writer.update_status(ETC, body(), {"conditions": [bad]})
        await settled(writer)
    assert kube.written == [{"conditions": [bad]}]


async def test_a_fleet_whose_hosts_all_back_up_costs_a_repository_one_write_in_an_interval(kube: Kube) -> None:
    main, about = Key("Repository", "ns", "main"), body()
    async with writing(kube, interval_s=0.2) as writer:
        writer.update_status(main, about, {"snapshots": {"count": 0}})
        await settled(writer)
        for count in range(1, 10_001):
            writer.update_status(main, about, {"snapshots": {"count": count}})
        await settled(writer)
    assert [it["snapshots"]["count"] for it in kube.written] == [0, 10_000]


async def test_a_host_that_flaps_waits_longer_between_two_writes(kube: Kube) -> None:
    async with writing(kube, interval_s=600) as writer:
        about, key = body(), Key("Host", "ns", "n1")
        writer.update_status(key, about, {"connected": True})
        await settled(writer)
        assert writer._not_before[key] - asyncio.get_running_loop().time() > 3000


async def test_an_object_with_a_status_that_nobody_expects_holds_up_no_others(kube: Kube) -> None:
    async with writing(kube) as writer:
        writer.update_status(ETC, body({"conditions": [7]}), {"conditions": [8]})
        await settled(writer)
        for at in range(10):  # more than there are workers
            writer.update_status(Key("Schedule", "ns", f"home-{at}"), body(), {"hosts": at})
        await settled(writer)
    assert {"hosts": 9} in kube.written
