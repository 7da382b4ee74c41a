"""Traces of the way of a change and of a fire, for OpenTelemetry. Only a server that makes traces imports this.

A change is a trace of the request that made it: `plan`, `store`, and a `push` to each host, up to its ack. A job is a
trace, too: `record`, `command` up to the host's acceptance, `run`, and `finish` up to where the end is stored. Its ids
come from the job's id, so that servers which share a job add to one trace.

Spans have names of objects, hosts and jobs, times, kinds and outcomes. They have no path of a file, no argument, no
URL, no error's text and no credential.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar, get_args

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import server
from server.events import (
    AttemptEnded,
    DeclarationChanged,
    Event,
    HostAcked,
    JobsChanged,
    JobsRecorded,
    JobsSent,
    RecordedJob,
)
from server.store.tables import GOOD
from wire.messages import JobReason

CHANGING = frozenset({"PUT", "POST", "PATCH", "DELETE"})
"""The methods of requests that are traced. What only reads is not the way of anything."""
MAX_PUSHES = 100
"""How many of the hosts that a change reaches have a span of their own."""
MAX_AWAITED = 10_000
"""How many acks, and how many acceptances, are awaited at a time. Beyond, the oldest gets no span."""
MAX_NAMED = 5
"""How many objects a span names."""
SHUTDOWN_S = 5.0
"""Seconds in which a server that stops may send its last spans."""

Value = TypeVar("Value")
Attributes = Mapping[str, str | int | float | Sequence[str]]


class JobTraceIds(RandomIdGenerator):
    """Makes ids at random, but those that were given for the next trace."""

    def __init__(self) -> None:
        self._next: SpanContext | None = None

    def give(self, ids: SpanContext | None) -> None:
        """Use these ids for the next span that has no parent; None: no more."""
        self._next = ids

    def generate_trace_id(self) -> int:
        """The id of a new trace."""
        return super().generate_trace_id() if self._next is None else self._next.trace_id

    def generate_span_id(self) -> int:
        """The id of a new span."""
        return super().generate_span_id() if self._next is None else self._next.span_id


class Traces:
    """Makes spans of requests and events.

    `exporter`: where the provider's spans go. `version_of`: the desired version of a host. `was_sent`: whether the
    command of a job was sent to its host.
    """

    def __init__(
        self,
        provider: TracerProvider,
        exporter: SpanExporter,
        ids: JobTraceIds,
        version_of: Callable[[str], int],
        was_sent: Callable[[str], bool],
        clock: Callable[[], datetime],
    ) -> None:
        self._provider = provider
        self._exporter = exporter
        self._sampler = provider.sampler
        self._tracer = provider.get_tracer("lamplighter", server.__version__)
        self._ids = ids
        self._version_of = version_of
        self._was_sent = was_sent
        self._clock = clock
        self._pushes: dict[str, tuple[int, Context]] = {}  # by host: the version that it has yet to ack
        self._sent: dict[str, datetime] = {}  # by job: when its command was sent, until its host accepts it

    def close(self) -> None:
        """Send what is left, for `SHUTDOWN_S` seconds at most. Blocks."""
        # A daemon, so that a collector that does not answer cannot keep the process from ending.
        sending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        sending.start()
        sending.join(SHUTDOWN_S)
        if sending.is_alive():
            self._exporter.shutdown()  # it tries no more
            sending.join(1.0)

    # Requests.

    def of_requests(self, app: ASGIApp) -> ASGIApp:
        """The application, with a span for each request that changes something."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["method"] not in CHANGING:
                await app(scope, receive, send)
                return
            span = self._begun(scope)

            async def noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _answered(span, message["status"])
                await send(message)

            token = contexts.attach(trace.set_span_in_context(span))
            try:
                await app(scope, receive, noting)
            finally:
                contexts.detach(token)
                if (route := getattr(scope.get("route"), "path", None)) is not None:
                    route = scope.get("root_path", "") + route  # with {name} in place of what the client sent
                    span.update_name(f"{scope['method']} {route}")
                    span.set_attribute("http.route", route)
                span.end(_ns(self._clock()))

        return traced

    def _begun(self, scope: Scope) -> Span:
        parent = _PROPAGATOR.extract(scope, Context(), _HEADERS)
        method = {"http.request.method": scope["method"]}
        start = _ns(self._clock())
        return self._tracer.start_span(scope["method"], parent, SpanKind.SERVER, method, start_time=start)

    # Events.

    def on_event(self, event: Event) -> None:
        """Make spans of an event of this server."""
        match event:
            case DeclarationChanged():
                self._changed(event)
            case HostAcked():
                self._acked(event)
            case JobsRecorded(jobs):
                for job in jobs:
                    self._recorded(job)
            case JobsSent(job_ids):
                self._commands_sent(job_ids)
            case JobsChanged(job_ids, True):
                for job_id in job_ids:
                    self._accepted(job_id)
            case AttemptEnded():
                self._ended(event)

    # The way of a change.

    def _changed(self, event: DeclarationChanged) -> None:
        for host in (*event.deleted_hosts, *event.hosts_with_new_set):
            self._pushes.pop(host, None)
        if (timing := event.timing) is None:
            return  # another server has this trace
        parent = contexts.get_current()
        if not trace.get_current_span(parent).get_span_context().is_valid:
            change = self._tracer.start_span("change", Context(), start_time=_ns(timing.began_at))
            change.end(_ns(timing.stored_at))
            parent = trace.set_span_in_context(change, Context())
        self._span("plan", parent, timing.began_at, timing.planned_at, _what(event))
        self._span("store", parent, timing.planned_at, timing.stored_at)
        for host in event.hosts_with_new_set[:MAX_PUSHES]:
            _note(self._pushes, host, (self._version_of(host), parent))

    def _acked(self, event: HostAcked) -> None:
        awaited = self._pushes.get(event.host)
        if awaited is None or event.version < awaited[0]:
            return
        del self._pushes[event.host]
        if event.seconds is not None:
            now = self._clock()
            attributes: Attributes = {"lamplighter.host": event.host, "lamplighter.version": event.version}
            self._span("push", awaited[1], now - timedelta(seconds=event.seconds), now, attributes)

    # The way of a fire.

    def _recorded(self, job: RecordedJob) -> None:
        now = self._clock()
        asked = trace.get_current_span().get_span_context()  # of the request for a Run or a Restore
        attributes: dict[str, str | int | float] = {"lamplighter.host": job.host, "lamplighter.missed": job.missed}
        if job.due is not None:
            attributes["lamplighter.due"] = job.due.isoformat()
        links = [Link(asked)] if asked.is_valid else []
        self._span("record", self._job(job.job_id), job.created_at, now, attributes, links)
        if self._was_sent(job.job_id):
            _note(self._sent, job.job_id, now)

    def _commands_sent(self, job_ids: Sequence[str]) -> None:
        now = self._clock()
        for job_id in job_ids:
            _note(self._sent, job_id, now)

    def _accepted(self, job_id: str) -> None:
        if (sent_at := self._sent.pop(job_id, None)) is not None:
            self._span("command", self._job(job_id), sent_at, self._clock())

    def _ended(self, event: AttemptEnded) -> None:
        self._sent.pop(event.job_id, None)
        now, end, job = self._clock(), event.end, self._job(event.job_id)
        attributes = _outcome(event)
        if end.started_at is not None:
            self._span("run", job, end.started_at, end.finished_at, attributes)
        self._span("finish", job, end.finished_at, now)
        if event.final:
            self._ids.give(_job_context(event.job_id))
            whole = {"lamplighter.job": event.job_id, "lamplighter.schedule.id": event.schedule_id, **attributes}
            self._span(f"job {event.kind}", Context(), event.created_at, now, whole)

    def _job(self, job_id: str) -> Context | None:
        """The context of a job's trace; None if the sampler leaves it out."""
        of_job = _job_context(job_id)
        decision = self._sampler.should_sample(Context(), of_job.trace_id, "job").decision
        is_sampled = decision is Decision.RECORD_AND_SAMPLE
        return trace.set_span_in_context(NonRecordingSpan(of_job), Context()) if is_sampled else None

    def _span(
        self,
        name: str,
        parent: Context | None,
        start: datetime,
        end: datetime,
        attributes: Attributes | None = None,
        links: Sequence[Link] = (),
    ) -> None:
        """Make a span that has ended. Nothing when `parent` is None."""
        if parent is None:
            return
        try:
            span = self._tracer.start_span(name, parent, attributes=attributes, links=links, start_time=_ns(start))
        finally:
            self._ids.give(None)
        if attributes is not None and attributes.get("lamplighter.status", "succeeded") not in GOOD:
            span.set_status(StatusCode.ERROR)
        span.end(max(_ns(end), _ns(start)))


def _job_context(job_id: str) -> SpanContext:
    """The ids of a job's trace and of its root.

    The halves of the job's id change places, since a UUID has its fixed bits where samplers look for random ones.
    """
    upper, lower = int(job_id[:16], 16), int(job_id[16:], 16)
    return SpanContext(lower << 64 | upper, upper, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _what(event: DeclarationChanged) -> Attributes:
    """What a change was about."""
    declared = {"schedules": event.schedules, "repositories": event.repositories}
    named = {
        f"lamplighter.{kind}": [f"{namespace}/{name}" for namespace, name in keys[:MAX_NAMED]]
        for kind, keys in declared.items()
        if keys
    }
    return {**named, "lamplighter.hosts_with_new_set": len(event.hosts_with_new_set)}


def _outcome(event: AttemptEnded) -> Attributes:
    """How an attempt ended. A reason that is not known here is what a host wrote, and left out."""
    found = {"lamplighter.host": event.host, "lamplighter.kind": event.kind, "lamplighter.status": event.end.status}
    if event.end.reason and event.end.reason in get_args(JobReason):
        found["lamplighter.reason"] = event.end.reason
    return found


def _answered(span: Span, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(StatusCode.ERROR)


def _note(awaited: dict[str, Value], key: str, value: Value) -> None:
    """Await something more. If that is too much, forget what has been awaited for the longest time."""
    awaited[key] = value
    if len(awaited) > MAX_AWAITED:
        del awaited[next(iter(awaited))]


def _ns(at: datetime) -> int:
    """Nanoseconds since 1970."""
    return (at - _EPOCH) // timedelta(microseconds=1) * 1000


class _Headers(Getter[Scope]):
    """Reads the headers of a request."""

    def get(self, carrier: Scope, key: str) -> list[str] | None:
        """The values of a header."""
        return [value.decode("latin-1") for name, value in carrier["headers"] if name == key.encode()] or None

    def keys(self, carrier: Scope) -> list[str]:
        """The names of all headers."""
        return [name.decode("latin-1") for name, _ in carrier["headers"]]


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PROPAGATOR = TraceContextTextMapPropagator()
_HEADERS = _Headers()


def configured(
    instance: str, version_of: Callable[[str], int], was_sent: Callable[[str], bool], clock: Callable[[], datetime]
) -> Traces:
    """Traces that are made and sent as OTEL_* variables say. `instance`: the server's id; the rest as for `Traces`."""
    own = {"service.name": "lamplighter-server", "service.version": server.__version__}
    resource = Resource.create({**own, "service.instance.id": instance}).merge(OTELResourceDetector().detect())
    ids, exporter = JobTraceIds(), OTLPSpanExporter()
    provider = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Traces(provider, exporter, ids, version_of, was_sent, clock)
