"""Each object and reason has one Kubernetes Event, which counts repetitions and is found again after a restart."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from controller.cluster.events import KEPT, Recorder
from controller.cluster.kube import KubeError
from controller.cluster.status import Notice

pytestmark = pytest.mark.anyio

GONE, BACK = Notice("Warning", "Disconnected", "it is gone"), Notice("Normal", "Connected", "it is back")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Kube:
    """Events as the API server keeps them."""

    def __init__(self) -> None:
        self.events: dict[str, dict[str, Any]] = {}
        self.writes = 0

    async def create(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        self.writes += 1
        if body["metadata"]["name"] in self.events:
            raise KubeError(409, "exists")
        self.events[body["metadata"]["name"]] = body
        return body

    async def get(self, kind: str, namespace: str, name: str) -> Any:
        return self.events.get(name)

    async def patch(self, kind: str, namespace: str, name: str, patch: dict[str, Any]) -> Any:
        self.writes += 1
        if name in self.events:
            self.events[name] |= patch
        return self.events.get(name)


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 3, 29, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


def host(at: int) -> dict[str, Any]:
    metadata = {"namespace": "ns", "name": f"node-{at}", "uid": f"uid-{at}"}
    return {"apiVersion": "lamplighter.dev/v1alpha1", "kind": "Host", "metadata": metadata}


async def flap(recorder: Recorder, hosts: int, times: int) -> None:
    for _ in range(times):
        for at in range(hosts):
            await recorder.record(host(at), GONE)
            await recorder.record(host(at), BACK)


async def test_hosts_that_flap_cost_an_event_for_each_reason_and_a_write_for_each_round() -> None:
    kube: Any = Kube()
    recorder = Recorder(kube, Clock())
    await flap(recorder, hosts=500, times=12)
    assert len(kube.events) == kube.writes == 1000
    await recorder.flush()
    await recorder.flush()
    assert kube.writes == 2000
    assert {it["series"]["count"] for it in kube.events.values()} == {12}


async def test_what_happens_again_after_a_restart_goes_on_counting() -> None:
    kube: Any = Kube()
    for count in (3, 6):
        recorder = Recorder(kube, Clock())
        await flap(recorder, hosts=1, times=3)
        await recorder.flush()
        assert {it["series"]["count"] for it in kube.events.values()} == {count}


async def test_an_event_that_has_run_out_is_posted_anew() -> None:
    kube: Any = Kube()
    clock = Clock()
    recorder = Recorder(kube, clock)
    await recorder.record(host(1), GONE)
    clock.now += KEPT + timedelta(seconds=1)
    await recorder.flush()
    kube.events.clear()
    await recorder.record(host(1), GONE)
    assert len(kube.events) == 1
    await recorder.record(host(1), GONE)
    kube.events.clear()
    await recorder.flush()  # it ran out before its repetition was told
    await recorder.record(host(1), GONE)
    assert len(kube.events) == 1
