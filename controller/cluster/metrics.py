"""What Prometheus is told of a controller. Names and units follow Prometheus' practices."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from controller.cluster.follower import Cluster


class Metrics:
    """A controller's metrics, in a registry of their own. `leading`: what it works on while it holds the lease."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.leading: Cluster | None = None
        gauges: tuple[tuple[str, str, Callable[[Cluster], float]], ...] = (
            ("leader", "Whether this replica is the one at work: 0 or 1.", lambda _: 1),
            ("objects", "Objects of the cluster that are followed.", lambda cluster: cluster.object_count),
            ("objects_failing", "Objects that could not be brought to the server.", lambda cluster: cluster.failing),
            ("queue_length", "Objects that are to be looked at.", lambda cluster: cluster.queue_length),
            ("statuses_waiting", "Statuses that are to be written.", lambda cluster: cluster.writer.waiting),
        )
        for name, about, value in gauges:
            Gauge(f"lamplighter_controller_{name}", about, registry=registry).set_function(self._of_leader(value))
        registry.register(_Writes(self))

    def _of_leader(self, value: "Callable[[Cluster], float]") -> Callable[[], float]:
        return lambda: value(self.leading) if self.leading is not None else 0


class _Writes(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        """The families, as prometheus-client asks for them."""
        leading = self._metrics.leading
        writes = leading.writer.writes if leading is not None else 0
        return [CounterMetricFamily("lamplighter_controller_status_writes", "Statuses written.", value=writes)]
