"""A job's trace is whole whatever server made which part of it, and sampled as a whole."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from server.events import AttemptEnded, DeclarationChanged, HostAcked, JobsChanged, JobsRecorded, JobsSent, RecordedJob
from server.observe import traces
from server.observe.otel import makes_traces
from server.observe.traces import JobTraceIds, Traces
from wire.messages import JobFinished

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
HERE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


def server(ratio: float = 1.0) -> tuple[Traces, InMemorySpanExporter]:
    """A server's traces, and what it sent."""
    ids, sent = JobTraceIds(), InMemorySpanExporter()
    provider = TracerProvider(sampler=TraceIdRatioBased(ratio), id_generator=ids)
    provider.add_span_processor(SimpleSpanProcessor(sent))
    return Traces(provider, sent, ids, lambda _: 1, lambda _: True, lambda: NOON + 5 * SECOND), sent


def job() -> str:
    return UUID(int=uuid4().int).hex


def ended(job_id: str, status: str = "succeeded", *, final: bool = True) -> AttemptEnded:
    end = JobFinished(job_id, status, NOON + 4 * SECOND, started_at=NOON + 2 * SECOND)  # type: ignore[arg-type]
    return AttemptEnded(job_id, "a", "s", "backup", end, final, "r", NOON)


def test_servers_that_share_a_job_add_to_one_trace() -> None:
    (first, sent), (second, also_sent), id_ = server(), server(), job()
    first.on_event(JobsRecorded([RecordedJob(id_, "a", NOON, 0, NOON)]))
    second.on_event(JobsSent([id_]))
    second.on_event(JobsChanged([id_], accepted=True))
    second.on_event(ended(id_, "failed", final=False))
    first.on_event(ended(id_))
    spans = [*sent.get_finished_spans(), *also_sent.get_finished_spans()]
    assert Counter(it.name for it in spans) == {"record": 1, "command": 1, "run": 2, "finish": 2, "job backup": 1}
    assert len({it.context.trace_id for it in spans}) == 1
    [root] = [it for it in spans if it.parent is None]
    assert root.name == "job backup"
    assert {it.parent.span_id for it in spans if it.parent} == {root.context.span_id}


def test_of_many_jobs_a_share_is_sampled_and_each_of_these_as_a_whole() -> None:
    made, sent = server(ratio=0.3)
    for id_ in (ids := [job() for _ in range(1000)]):
        made.on_event(JobsRecorded([RecordedJob(id_, "a", NOON, 0, NOON)]))
        made.on_event(JobsChanged([id_], accepted=True))
        made.on_event(ended(id_))
    parts = Counter(it.context.trace_id for it in sent.get_finished_spans())
    assert set(parts.values()) == {5}
    assert 200 < len(parts) < 400, len(ids)


def test_what_is_awaited_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "MAX_AWAITED", 2)
    made, sent = server()
    for id_ in (ids := [job() for _ in range(3)]):
        made.on_event(JobsSent([id_]))
    made.on_event(JobsChanged(ids, accepted=True))
    assert [it.name for it in sent.get_finished_spans()] == ["command"] * 2


def test_a_change_of_another_server_is_left_to_it_and_ends_what_was_awaited() -> None:
    made, sent = server()
    made.on_event(DeclarationChanged(schedules=[("ns", "etc")], hosts_with_new_set=["a"]))
    made.on_event(HostAcked("a", 1, 0.5))
    assert sent.get_finished_spans() == ()


@pytest.mark.parametrize(
    ("environ", "makes"),
    [
        ({}, False),
        (HERE, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({**HERE, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({**HERE, "OTEL_SDK_DISABLED": "true"}, False),
        ({**HERE, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False),
    ],
)
def test_traces_are_made_where_the_standard_variables_ask_for_them(environ: dict[str, str], makes: bool) -> None:
    assert makes_traces(environ) is makes
