"""The way of a change and of a fire can be followed in traces, which hold no secret; who asks for none pays nothing.

A real receiver of OTLP over HTTP decodes what the server sends.
"""

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from server.app import Config, Running, ServerError, serving
from tests.docs import free_port
from tests.integration.clock import Clock, due
from tests.integration.conftest import Agent, Connect, Declare, Until, leading

pytestmark = pytest.mark.anyio

PASSWORD, KEY, PATH, ERROR = "open sesame", "hunter2", "/srv/payroll", "cannot read the salaries"
NOT_TOLD = (PASSWORD, KEY, PATH, ERROR, "/backup/", "--json", "SOME_REASON_OF_A_HOST", "token=")


class Collector:
    """Takes traces as a collector does."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.paths: set[str] = set()

    @property
    def spans(self) -> list[Span]:
        """All spans, in the order in which they ended."""
        return [it for found in self._scopes() for it in found.spans]

    @property
    def resource(self) -> dict[str, str]:
        """What the server says of itself."""
        requests = map(ExportTraceServiceRequest.FromString, self.bodies)
        return said([it for request in requests for of in request.resource_spans for it in of.resource.attributes])

    def named(self, name: str) -> list[Span]:
        return [it for it in self.spans if it.name == name]

    def _scopes(self) -> Iterator[Any]:
        for request in map(ExportTraceServiceRequest.FromString, self.bodies):
            for of in request.resource_spans:
                yield from of.scope_spans


def said(attributes: list[KeyValue]) -> dict[str, Any]:
    return {it.key: getattr(it.value, str(it.value.WhichOneof("value"))) for it in attributes}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector, to which servers that begin from now on send their traces at once."""
    taken = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.bodies.append(self.rfile.read(int(self.headers["content-length"])))
            taken.paths.add(self.path)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as receiving:
        threading.Thread(target=receiving.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiving.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=token=abc")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield taken
        receiving.shutdown()


@pytest.fixture
async def server(tmp_path: Path, clock: Clock, migrated: Path, collector: Collector) -> AsyncIterator[Running]:
    """One that makes traces."""
    shutil.copy(migrated, tmp_path)
    async with serving(Config(tmp_path, port=0), clock) as running:
        await leading(running)
        yield running


def outlast(outer: Span, *inner: Span) -> bool:
    """Whether a span begins no later than others, and these follow each other."""
    begins = [it.start_time_unix_nano for it in (outer, *inner)]
    return begins == sorted(begins) and all(it.start_time_unix_nano <= it.end_time_unix_nano for it in inner)


async def test_a_change_is_followed_from_the_request_to_the_ack(
    api: httpx.AsyncClient, declare: Declare, connect: Connect, collector: Collector, until: Until
) -> None:
    await declare("etc")
    async with connect() as agent:
        await agent.follow()
        trace_id, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
        api.headers["traceparent"] = f"00-{trace_id}-{caller}-01"
        await declare("etc", cron="0 3 * * *")
        await agent.follow()

        async def whole() -> dict[str, Span]:
            found = {it.name: it for it in collector.spans if it.trace_id.hex() == trace_id}
            return found if "push" in found and ROUTE in found else {}

        spans = await until(whole)
    assert collector.paths == {"/v1/traces"}
    assert spans.keys() == {ROUTE, "plan", "store", "push"}
    request = spans.pop(ROUTE)
    assert (request.parent_span_id.hex(), request.kind) == (caller, Span.SPAN_KIND_SERVER)
    assert {it.parent_span_id for it in spans.values()} == {request.span_id}
    assert outlast(request, spans["plan"], spans["store"], spans["push"])
    assert said(list(request.attributes))["http.response.status_code"] == 200
    [named] = said(list(spans["plan"].attributes))["lamplighter.schedules"].values
    assert named.string_value == "ns/etc"
    assert said(list(spans["push"].attributes)) == {"lamplighter.host": "node-1", "lamplighter.version": 2}
    assert collector.resource["service.name"] == "lamplighter-server"


ROUTE = "PUT /api/v1/schedules/{namespace}/{name}"


async def taken(agent: Agent) -> str:
    job_id: str = (await agent.hears("command.run"))["job_id"]
    await agent.say("job.accepted", job_id=job_id)
    return job_id


async def finished(agent: Agent, job_id: str, status: str, **how: Any) -> None:
    times = dict.fromkeys(("started_at", "finished_at"), agent.clock().isoformat())
    await agent.say("job.finished", job_id=job_id, status=status, **times, **how)
    await agent.hears("job.confirmed")


async def runs(agent: Agent) -> None:
    await finished(agent, await taken(agent), "succeeded")


async def test_a_fire_is_followed_to_where_its_end_is_stored(
    declare: Declare, connect: Connect, collector: Collector, until: Until, api: httpx.AsyncClient
) -> None:
    secrets = {"password": PASSWORD, "env": {"AWS_SECRET_ACCESS_KEY": KEY}}
    schedule_id = await declare("etc", credentials=secrets, backup={"paths": [PATH]})
    async with connect() as agent:
        await agent.follow()
        await agent.say("schedule.fire", schedule_id=schedule_id, scheduled_at=due(), missed=2)
        job_id = await taken(agent)
        await api.get("/jobs", params={"host": "token=1"})
        await finished(agent, job_id, "failed", error=ERROR, reason="SOME_REASON_OF_A_HOST")

        async def whole() -> list[Span]:
            return collector.named("job backup")

        [job] = await until(whole)
        spans = {it.name: it for it in collector.spans if it.trace_id == job.trace_id}
    assert job.trace_id.hex() == job_id[16:] + job_id[:16]
    assert spans.keys() == {"job backup", "record", "command", "run", "finish"}
    assert spans.pop("job backup").parent_span_id == b""
    assert {it.parent_span_id for it in spans.values()} == {job.span_id}
    assert outlast(job, spans["record"], spans["command"], spans["run"], spans["finish"])
    record = said(list(spans["record"].attributes))
    assert (record["lamplighter.host"], record["lamplighter.missed"]) == ("node-1", 2)
    whole_job = said(list(job.attributes))
    assert (whole_job["lamplighter.job"], whole_job["lamplighter.status"]) == (job_id, "failed")
    assert job.status.code == spans["run"].status.code == Status.STATUS_CODE_ERROR
    everything = b"".join(collector.bodies)
    assert [it for it in NOT_TOLD if it.encode() in everything] == []


async def test_a_job_that_had_to_wait_and_one_that_a_request_asked_for_are_followed_too(
    declare: Declare, connect: Connect, collector: Collector, until: Until, api: httpx.AsyncClient
) -> None:
    limited = {"spec": {"url": "/backup", "maxConcurrentJobs": 1}, "credentials": {"password": PASSWORD}}
    (await api.put("/repositories/ns/main", json=limited)).raise_for_status()
    await declare("etc")
    async with connect("a") as first, connect("b") as second:
        await first.follow()
        await second.follow()
        (await api.put("/runs/ns/now", json={"schedule": "etc"})).raise_for_status()
        await asyncio.gather(runs(first), runs(second))  # in either order

        async def whole() -> list[Span]:
            found = collector.named("job backup")
            return found if len(found) == 2 else []

        jobs = await until(whole)
    for job in jobs:
        spans = {it.name: it for it in collector.spans if it.trace_id == job.trace_id}
        assert spans.keys() == {"job backup", "record", "command", "run", "finish"}
        assert job.status.code == Status.STATUS_CODE_UNSET
        [link] = spans["record"].links
        [request] = [it for it in collector.spans if it.name.startswith("PUT /api/v1/runs/")]
        assert (link.trace_id, link.span_id) == (request.trace_id, request.span_id)


async def test_a_collector_that_is_away_stops_no_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: Clock
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("server.observe.traces.SHUTDOWN_S", 0.2)
    async with serving(Config(tmp_path, port=0), clock) as running:
        url = f"http://127.0.0.1:{running.port}/api/v1/hosts/a"
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {running.admin_token}"}) as client:
            (await client.put(url, json={"labels": {}})).raise_for_status()
    assert [it.name for it in threading.enumerate() if it.name.startswith("Otel")] == []  # nobody tries any more


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("OTEL_TRACES_EXPORTER", "console", "OTEL_TRACES_EXPORTER=console: a server only has the exporter otlp"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc: a server only speaks http/protobuf"),
    ],
)
async def test_what_a_server_cannot_do_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, collector: Collector, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ServerError, match=told):
        async with serving(Config(tmp_path, port=0)):
            pass


ALONE = """
import asyncio, pathlib, sys
from server.app import Config, serving

async def run():
    async with serving(Config(pathlib.Path(sys.argv[1]), port=0)):
        print(*sorted(it for it in sys.modules if it.partition(".")[0] in ("opentelemetry", "google", "requests")))

asyncio.run(run())
"""


def test_a_server_that_makes_no_traces_imports_nothing_for_them(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", ALONE, tmp_path], capture_output=True, text=True, check=True, env={})
    assert ran.stdout == "\n"
