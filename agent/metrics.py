"""The agent's metrics. Names and units follow Prometheus' practices."""

from collections.abc import Iterable
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from agent.core.machine import Core
from agent.core.state import Ended, Fired, Record

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """An agent's metrics, in a registry of their own."""

    def __init__(self, core: Core) -> None:
        self.registry = registry = CollectorRegistry()
        self._jobs = Counter("lamplighter_agent_jobs", "Jobs that ended here.", ["status"], registry=registry)
        self._fires = Counter("lamplighter_agent_fires", "Due times that came.", registry=registry)
        self._lateness = Histogram(
            "lamplighter_agent_fire_lateness_seconds",
            "From a due time that was not missed to its fire.",
            buckets=SECONDS,
            registry=registry,
        )
        state = core.state
        for name, about, value in (
            ("connected", "Whether the server is connected: 0 or 1.", lambda: core.connected),
            ("schedules", "Schedules that are held.", lambda: len(state.entries)),
            ("applied_version", "The version of the set that is in force.", lambda: state.version),
            ("jobs_running", "Jobs that run.", lambda: len(state.running)),
            ("fires_unanswered", "Fires that the server has yet to answer.", lambda: len(state.fires)),
            ("ends_unconfirmed", "Ends of jobs that the server has yet to confirm.", lambda: len(state.ends)),
        ):
            Gauge(f"lamplighter_agent_{name}", about, registry=registry).set_function(value)

    def count(self, records: Iterable[Record], now: datetime) -> None:
        """Count the ends and the fires in new records."""
        for record in records:
            if isinstance(record, Ended):
                self._jobs.labels(record.end.status).inc()
            elif isinstance(record, Fired):
                self._fires.inc(len(record.fires))
                for fire in record.fires:
                    if not fire.missed:
                        self._lateness.observe(max(0.0, (now - fire.scheduled_at).total_seconds()))
